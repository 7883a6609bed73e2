"""Attention whose output has a gate: out · σ(g), with g for each channel or for each head.

B batch, S length, D hidden, N query heads, H head dim, Hv value head dim.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.attention import AttentionLayer
from llmbench.model.layer_cache import LayerCache
from llmbench.model.step import Step
from llmbench.spec.mixer import Attention


class ElementwiseGatedAttention(AttentionLayer):
    """A gate for each channel, from the same projection as the query, head by head (Qwen3-Next)."""

    projections_per_query = 2

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, S, D] to [B, S, D], and the value that later layers share."""
        q, gate = self.queries(x).chunk(2, dim=-1)  # [B, S, N, H] each
        k, v = self.keys_values(x)
        out, shared = self.attend(q, k, v, step, cache, shared)
        out = out * gate_activation(gate, self.mixer)
        return self.o_proj(out.flatten(2)), shared


class HeadwiseGatedAttention(AttentionLayer):
    """One gate for each head, from a projection of its own (Laguna)."""

    def add_projections(self, hidden: int) -> None:
        super().add_projections(hidden)
        self.g_proj = nn.Linear(hidden, self.mixer.num_attention_heads, bias=False)

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, S, D] to [B, S, D], and the value that later layers share."""
        q = self.queries(x)
        k, v = self.keys_values(x)
        out, shared = self.attend(q, k, v, step, cache, shared)
        out = out * gate_activation(self.g_proj(x), self.mixer)[..., None]
        return self.o_proj(out.flatten(2)), shared


def gate_activation(gate: Tensor, mixer: Attention) -> Tensor:
    """σ(gate), or softplus(gate) (Laguna); softplus in fp32."""
    if mixer.gate_activation == "softplus":
        return F.softplus(gate.float()).to(gate.dtype)
    return torch.sigmoid(gate)


def attention_class(mixer: Attention) -> type[AttentionLayer]:
    """The class of an attention layer: plain, or with its gate."""
    match mixer.output_gate:
        case None:
            return AttentionLayer
        case "elementwise":
            return ElementwiseGatedAttention
        case "headwise":
            return HeadwiseGatedAttention
        case _:
            assert_never(mixer.output_gate)
