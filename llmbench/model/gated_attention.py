"""Attention whose output is multiplied by σ(g), the sigmoid of a gate g. There is one gate per channel or per head.

Dimensions: B batch, S length, D hidden size, N query heads, H head dim, Hv value head dim.
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
    """Attention with one gate per channel (Qwen3-Next). q_proj computes both the query and the gate of each head."""

    projections_per_query = 2

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gated output [B, S, D] for x [B, S, D], and `shared`, which later layers read."""
        q, gate = self.queries(x).chunk(2, dim=-1)  # [B, S, N, H] each
        k, v = self.keys_values(x)
        out, shared = self.attend(q, k, v, step, cache, shared)
        out = out * gate_activation(gate, self.mixer)
        return self.o_proj(out.flatten(2)), shared


class HeadwiseGatedAttention(AttentionLayer):
    """Attention with one gate per head. A separate projection computes the gates (Laguna)."""

    def add_projections(self, hidden: int) -> None:
        super().add_projections(hidden)
        self.g_proj = nn.Linear(hidden, self.mixer.num_attention_heads, bias=False)

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the gated output [B, S, D] for x [B, S, D], and `shared`, which later layers read."""
        q = self.queries(x)
        k, v = self.keys_values(x)
        out, shared = self.attend(q, k, v, step, cache, shared)
        out = out * gate_activation(self.g_proj(x), self.mixer)[..., None]
        return self.o_proj(out.flatten(2)), shared


def gate_activation(gate: Tensor, mixer: Attention) -> Tensor:
    """Apply the activation of a gate: the sigmoid, or softplus in fp32 (Laguna)."""
    if mixer.gate_activation == "softplus":
        return F.softplus(gate.float()).to(gate.dtype)
    return torch.sigmoid(gate)


def gated_class(mixer: Attention) -> type[AttentionLayer] | None:
    """Return the class of a layer with an output gate. None: the layer has no gate."""
    match mixer.output_gate:
        case None:
            return None
        case "elementwise":
            return ElementwiseGatedAttention
        case "headwise":
            return HeadwiseGatedAttention
        case _:
            assert_never(mixer.output_gate)
