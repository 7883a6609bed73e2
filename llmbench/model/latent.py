"""Multi-head latent attention (MLA) in its two forms. Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.

The cache stores one row per token: the latent c = norm(W_a x), and one rotary key that all heads share.

The expanded form computes the keys and values of each head from the latents: k = [W_uk c, k_rope] and v = W_uv c. Then
it attends like ordinary attention. This form takes fewer FLOPs per pair of a query and a key.

The absorbed form applies W_uk to the queries and W_uv to the result. The cached rows are then the keys of a single
head, and their latents are its values. The expanded form computes the keys and values of all cached tokens again in
each decoding step. The absorbed form does not.

Dimensions: B batch, S query length, T key length, D hidden size, N heads, C latent width (kv_lora_rank), R rotary dims
of a key, P plain dims of a key, V value dims, I index head dim.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from llmbench.model.context import context
from llmbench.model.implementations.interface import Given, Implementation, Mask, Scores, Seen
from llmbench.model.layer_cache import LayerCache
from llmbench.model.norms import NormLayer
from llmbench.model.positions import rotate, rotation_of
from llmbench.model.step import Step
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.position import Positions

Form = Literal["auto", "expanded", "absorbed"]


class LatentLayer(nn.Module):
    """Latent attention. Its input and output are [B, S, D].

    With the form "auto", a forward pass over one new token and a cache uses the absorbed form. Every other pass uses
    the expanded form.
    """

    def __init__(self, spec: ModelSpec, mixer: LatentAttention, *, positions: Positions) -> None:
        super().__init__()
        self.mixer = mixer
        self.form: Form = "auto"
        self.rotation = rotation_of(positions, mixer.qk_rope_head_dim, spec.max_position_embeddings)
        hidden, heads = spec.hidden_size, mixer.num_attention_heads
        latent_norm = Norm(kind=spec.norm.kind, bias=spec.norm.bias, eps=mixer.latent_eps)
        self.q_proj = self.q_a_proj = self.q_a_norm = self.q_b_proj = None
        if mixer.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * mixer.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, mixer.q_lora_rank, bias=mixer.latent_bias)
            self.q_a_norm = NormLayer(mixer.q_lora_rank, latent_norm) if mixer.latent_norms else None
            self.q_b_proj = nn.Linear(mixer.q_lora_rank, heads * mixer.qk_head_dim, bias=False)
        self.kv_a_proj = nn.Linear(hidden, mixer.kv_lora_rank + mixer.qk_rope_head_dim, bias=mixer.latent_bias)
        self.kv_a_norm = NormLayer(mixer.kv_lora_rank, latent_norm) if mixer.latent_norms else None
        self.kv_b_proj = nn.Linear(mixer.kv_lora_rank, heads * (mixer.qk_nope_head_dim + mixer.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * mixer.v_head_dim, hidden, bias=mixer.output_bias)
        self.indexer: IndexerLayer | None = None
        if mixer.indexer is not None and not mixer.indexer.shared:
            self.indexer = IndexerLayer(hidden, mixer)
        self.scale = mixer.score_scale(positions)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None, shared: Any) -> tuple[Tensor, Any]:
        """Return the output [B, S, D] of attention for x [B, S, D], and `shared`.

        - `shared`: the keys that an indexer selected, as a bias [B, 1, S, T] of the scores. Later layers without an
          indexer use the same keys (GLM-5).
        """
        mixer, implementation = self.mixer, step.implementation
        q_input = self._query_input(x, implementation)
        q_proj = self.q_b_proj if self.q_proj is None else self.q_proj
        assert q_proj is not None
        q = q_proj(q_input).unflatten(-1, (mixer.num_attention_heads, -1)).transpose(1, 2)  # [B, N, S, P + R]
        q_plain, q_rope = q.split((mixer.qk_nope_head_dim, mixer.qk_rope_head_dim), dim=-1)
        latent, k_rope = self.kv_a_proj(x).split((mixer.kv_lora_rank, mixer.qk_rope_head_dim), dim=-1)
        latent = latent if self.kv_a_norm is None else self.kv_a_norm(latent, implementation)
        k_rope = k_rope[:, None]  # [B, 1, S, R]
        tables = None
        if self.rotation is not None:
            tables, interleaved = step.tables[self.rotation.name], self.rotation.rope.interleaved
            q_rope, k_rope = implementation.rotate(q_rope, k_rope, tables, interleaved=interleaved)
        rows = torch.cat((latent[:, None], k_rope), dim=-1)  # [B, 1, S, C + R]
        index_keys = rows[..., :0]
        if self.indexer is not None:
            index_keys = self.indexer.keys(x, tables, implementation)
        seen = context(rows, index_keys, step, cache, causal=True, window=mixer.sliding_window, chunk=None)
        if self.indexer is not None:
            shared = self.indexer.choose(x, q_input, seen.v, seen.mask, tables)
        bias = None
        if mixer.indexer is not None:
            bias = shared.expand(-1, mixer.num_attention_heads, -1, -1)
        scores = Scores(self.scale, bias=bias, dropout=step.dropout)
        if self.form == "absorbed" or (self.form == "auto" and cache is not None and x.shape[1] == 1):
            out = self._absorbed(q_plain, q_rope, seen, scores, implementation)
        else:
            out = self._expanded(q_plain, q_rope, seen, scores, implementation)
        return self.o_proj(out.transpose(1, 2).flatten(2)), shared

    def _query_input(self, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the input from which the layer and its indexer project their queries.

        The input is x, or the latent [B, S, q_lora_rank] of the queries if the layer has one.
        """
        if self.q_a_proj is None:
            return x
        latent: Tensor = self.q_a_proj(x)
        return latent if self.q_a_norm is None else self.q_a_norm(latent, implementation)

    def _expanded(
        self, q_plain: Tensor, q_rope: Tensor, seen: Seen, scores: Scores, implementation: Implementation
    ) -> Tensor:
        """Attend in the expanded form: compute the keys and values of each head from the cache rows [B, 1, T, C + R].

        Returns the weighted values [B, N, S, V].
        """
        mixer = self.mixer
        latent, k_rope = seen.k.split((mixer.kv_lora_rank, mixer.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(latent[:, 0]).unflatten(-1, (mixer.num_attention_heads, -1)).transpose(1, 2)
        k_plain, v = kv.split((mixer.qk_nope_head_dim, mixer.v_head_dim), dim=-1)
        k = torch.cat((k_plain, k_rope.expand(-1, mixer.num_attention_heads, -1, -1)), dim=-1)
        return implementation.attend(torch.cat((q_plain, q_rope), dim=-1), Given(k, v, seen.mask), scores)

    def _absorbed(
        self, q_plain: Tensor, q_rope: Tensor, seen: Seen, scores: Scores, implementation: Implementation
    ) -> Tensor:
        """Attend in the absorbed form: the cache rows [B, 1, T, C + R] are the keys of one head.

        Returns the weighted values [B, N, S, V].
        """
        mixer = self.mixer
        weights = self.kv_b_proj.weight.unflatten(0, (mixer.num_attention_heads, -1))  # [N, P + V, C]
        up_k, up_v = weights.split((mixer.qk_nope_head_dim, mixer.v_head_dim), dim=1)
        q_latent = torch.einsum("bnsp,npc->bnsc", q_plain, up_k)
        out = implementation.attend_latent(q_latent, q_rope, seen, scores)
        return torch.einsum("bnsc,nvc->bnsv", out, up_v)


class IndexerLayer(nn.Module):
    """DeepSeek-V3.2's lightning indexer. It selects the `top_k` keys to which each query attends.

    score(s, t) = Σ_h w(s, h) · relu(q(s, h) · k(t) / √I) / √heads. The first R dims of q and k are rotated. The
    selection has no gradient.
    """

    def __init__(self, hidden: int, mixer: LatentAttention) -> None:
        super().__init__()
        indexer = mixer.indexer
        assert indexer is not None
        self.spec = indexer
        width = hidden if mixer.q_lora_rank is None else mixer.q_lora_rank
        self.q_proj = nn.Linear(width, indexer.num_heads * indexer.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, indexer.head_dim, bias=False)
        self.k_norm = NormLayer(indexer.head_dim, Norm(kind="layernorm", bias=True, eps=mixer.latent_eps))
        self.weights_proj = nn.Linear(hidden, indexer.num_heads, bias=False)

    @torch.no_grad()
    def keys(self, x: Tensor, tables: tuple[Tensor, Tensor] | None, implementation: Implementation) -> Tensor:
        """Return the keys [B, 1, S, I] of the indexer, projected from x [B, S, D]."""
        return self._rotated(self.k_norm(self.k_proj(x), implementation)[:, None], tables)

    def _rotated(self, x: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        return x if tables is None else rotate(x, tables, interleaved=self.spec.interleaved)

    @torch.no_grad()
    def choose(
        self, x: Tensor, q_input: Tensor, keys: Tensor, mask: Mask, tables: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Select keys, and return the selection as a bias [B, 1, S, T] of the scores.

        The bias is 0 for a selected key, and -inf for every other key.
        """
        q = self.q_proj(q_input).unflatten(-1, (self.spec.num_heads, -1)).transpose(1, 2)
        products = self._rotated(q, tables).float() @ keys.float().transpose(-1, -2)  # [B, heads, S, T]
        matches = torch.relu(products * self.spec.head_dim**-0.5)
        weights = self.weights_proj(x).float().transpose(1, 2)[..., None] * self.spec.num_heads**-0.5
        score = (matches * weights).sum(dim=1, keepdim=True).masked_fill(~mask.allowed(), -torch.inf)
        best = score.topk(min(self.spec.top_k, score.shape[-1]), dim=-1).indices
        return torch.full_like(score, -torch.inf).scatter(-1, best, 0.0)


def set_latent_form(model: nn.Module, form: Form) -> None:
    """Set the form of every latent attention layer in a model: auto, expanded or absorbed."""
    for module in model.modules():
        if isinstance(module, LatentLayer):
            module.form = form
