"""Attention whose query and output projections are experts: a router selects some of them for each token (JetMoE).

Dimensions: B batch, S length, D hidden size, E experts, k experts per token, K KV heads, H head dim, t = B·S tokens.
Each expert has K query heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.attention import AttentionLayer
from llmbench.model.ffn import even_shares
from llmbench.model.layer_cache import LayerCache
from llmbench.model.step import Step


class ProjectionExperts(nn.Module):
    """The query projections [E, K·H, D] and the output projections [E, D, K·H] of all experts."""

    def __init__(self, hidden: int, num_experts: int, width: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.q_proj = nn.Parameter(torch.empty(num_experts, width, hidden))
        self.o_proj = nn.Parameter(torch.empty(num_experts, hidden, width))

    def forward(self, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        """Multiply each row of x [t·k, in] by the matrix of its expert: `weight` [E, out, in], `chosen` [t·k]."""
        order = chosen.argsort(stable=True)
        rows = x[order].split(self.rows(chosen)[: self.num_experts])
        outputs = [F.linear(own, matrix) for own, matrix in zip(rows, weight.unbind(0), strict=True)]
        return torch.cat(outputs)[order.argsort()]

    def rows(self, chosen: Tensor) -> list[int]:
        """Return the number of rows per expert. On meta, and in a trace, all experts have the same number of rows."""
        if chosen.is_meta:
            return even_shares(chosen.numel(), self.num_experts)
        counts: list[int] = chosen.bincount(minlength=self.num_experts).tolist()
        return counts


class ExpertAttention(AttentionLayer):
    """Attention with k experts per token, each with K query heads. All experts share the keys and values.

    The outputs of the k experts are weighted with a softmax over their logits. A bias is added to their sum.
    """

    def add_projections(self, hidden: int) -> None:
        mixer = self.mixer
        assert mixer.attention_experts is not None
        kv = mixer.num_key_value_heads * mixer.head_dim
        self.router = nn.Linear(hidden, mixer.attention_experts, bias=False)
        self.experts = ProjectionExperts(hidden, mixer.attention_experts, kv)
        self.k_proj = nn.Linear(hidden, kv, bias=False)
        self.v_proj = nn.Linear(hidden, kv, bias=False)
        self.expert_bias = nn.Parameter(torch.empty(hidden))

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output [B, S, D] for x [B, S, D], and `shared`, which later layers read."""
        groups = self.mixer.num_key_value_heads
        top_k = self.mixer.num_attention_heads // groups
        tokens = x.flatten(0, 1)
        logits, indices = self.router(tokens).float().topk(top_k, dim=-1)
        weights, chosen = logits.softmax(-1).to(x.dtype), indices.flatten()
        q = self.experts(tokens.repeat_interleave(top_k, dim=0), chosen, self.experts.q_proj)
        # Query head j of each expert reads KV head j. Attention expects the heads of one KV head next to each other.
        q = q.view(*x.shape[:2], top_k, groups, -1).transpose(2, 3).flatten(2, 3)
        out, shared = self.attend(q, *self.keys_values(x), step, cache, shared)
        inner = out.unflatten(2, (groups, top_k)).transpose(2, 3).reshape(tokens.shape[0] * top_k, -1)
        outputs = self.experts(inner, chosen, self.experts.o_proj).view(-1, top_k, x.shape[-1])
        return (outputs * weights[..., None]).sum(1).view_as(x) + self.expert_bias, shared
