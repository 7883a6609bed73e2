"""What only Gemma 4 has: per-layer embeddings, a stored scale per layer, and experts beside a dense feed-forward with
norms of their own.

Dimensions: B batch, S length, D hidden size, L layers, W width of a per-layer embedding, k experts per token, t = B·S
tokens.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from llmbench.errors import UnsupportedError
from llmbench.model.ffn import MixtureLayer, RouterLayer
from llmbench.model.implementations.interface import Implementation
from llmbench.model.norm_placements import LayerState, SandwichBlock
from llmbench.model.norms import NormLayer
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.spec.ffn import Activation, MoE
from llmbench.spec.model import Layer, ModelSpec, Norm, PerLayerEmbedding


def is_gemma4(spec: ModelSpec, layer: Layer) -> bool:
    """Return whether a layer has a part that only Gemma 4 has."""
    experts = isinstance(layer.ffn, MoE) and layer.ffn.separate_norms
    return layer.output_scale or spec.embedding.per_layer is not None or experts


class PerLayerEmbeddings(nn.Module):
    """The per-layer embeddings of all layers: (norm(projection(x) / √D) + table[token] · √W) / √2.

    x is the embedding of the tokens. The table has L·W elements per token.
    """

    def __init__(self, spec: ModelSpec, kind: PerLayerEmbedding) -> None:
        super().__init__()
        self.size = kind.size
        width = spec.num_hidden_layers * kind.size
        self.table = nn.Embedding(kind.vocab_size, width)
        self.projection = nn.Linear(spec.hidden_size, width, bias=False)
        self.norm = NormLayer(kind.size, spec.norm)

    def forward(self, tokens: Tensor, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the per-layer embeddings [B, S, L, W] for tokens [B, S] with the embedding x [B, S, D]."""
        looked_up = self.table(tokens) * torch.tensor(self.size**0.5, dtype=x.dtype)
        projected = (self.projection(x) * x.shape[-1] ** -0.5).unflatten(-1, (-1, self.size))
        return (self.norm(projected, implementation) + looked_up.unflatten(-1, (-1, self.size))) * 2.0**-0.5


class PerLayerInput(nn.Module):
    """The sublayer that adds the per-layer embedding e of a layer: x + norm(out(act(gate(x)) · e))."""

    def __init__(self, spec: ModelSpec, size: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(spec.hidden_size, size, bias=False)
        self.out_proj = nn.Linear(size, spec.hidden_size, bias=False)
        self.norm = NormLayer(spec.hidden_size, spec.norm)

    def forward(self, x: Tensor, embedding: Tensor, implementation: Implementation) -> Tensor:
        """Return what the sublayer adds to x [B, S, D], for the per-layer embedding [B, S, W]."""
        inner = implementation.glu(self.gate_proj(x), embedding, self.activation)
        out: Tensor = self.norm(self.out_proj(inner), implementation)
        return out


class OutputScale(nn.Module):
    """A stored number that multiplies the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.empty(1))

    def reset_parameters(self) -> None:
        """Set the scale to 1."""
        with torch.no_grad():
            self.scale.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the scale."""
        return x * self.scale


class Gemma4Block(SandwichBlock):
    """Gemma 4's layer: a sandwich layer, then the per-layer embedding, then the stored scale."""

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        if layer.placement != "sandwich" or layer.ffn is None or layer.mixer is None or layer.cross_attention:
            raise UnsupportedError(
                f"{spec.name}: {where}: per-layer embeddings, output_scale and separate_norms are implemented in the "
                'PyTorch model only for layers with placement "sandwich", a mixer and a feed-forward'
            )
        self.index = index
        per_layer = spec.embedding.per_layer
        self.per_layer_input = None
        if per_layer is not None:
            self.per_layer_input = PerLayerInput(spec, per_layer.size, layer.ffn.activation)
        self.output_scale = OutputScale() if layer.output_scale else None

    def build_ffn(self, spec: ModelSpec, layer: Layer) -> nn.Module | None:
        if isinstance(layer.ffn, MoE) and layer.ffn.separate_norms:
            return Gemma4Mixture(spec.hidden_size, layer.ffn, spec.norm)
        return super().build_ffn(spec, layer)

    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read."""
        implementation = step.implementation
        mixed, shared = self.mix(self._norm("mixer_norm")(x, implementation), step, state, shared)
        x = self.add(x, self._norm("post_mixer_norm")(mixed, implementation))
        normed = self._norm("ffn_norm")(x, implementation)
        assert self.ffn is not None
        if isinstance(self.ffn, Gemma4Mixture):
            out = self.ffn.beside_stream(normed, x.whole(), implementation)
        else:
            out = self.ffn(normed, implementation)
        x = self.add(x, self._norm("post_ffn_norm")(step.dropped(out), implementation))
        if self.per_layer_input is not None:
            assert step.per_layer is not None
            x = x.plus(self.per_layer_input(x.whole(), step.per_layer[:, :, self.index], implementation))
        return x if self.output_scale is None else Residual(self.output_scale(x.whole())), shared

    def _norm(self, name: str) -> NormLayer:
        return cast(NormLayer, self.get_submodule(name))


class Gemma4Router(RouterLayer):
    """A router whose input is x / rms(x) · scale / √D. A trained factor per expert multiplies the weights."""

    def __init__(self, hidden: int, moe: MoE, eps: float) -> None:
        super().__init__(hidden, moe)
        self.scale = nn.Parameter(torch.empty(hidden))
        self.expert_scale = nn.Parameter(torch.empty(moe.num_experts))
        self.norm = Norm(weight=False, eps=eps)

    def reset_parameters(self) -> None:
        """Set all factors to 1."""
        with torch.no_grad():
            self.scale.fill_(1.0)
            self.expert_scale.fill_(1.0)

    def forward(self, x: Tensor, implementation: Implementation) -> tuple[Tensor, Tensor, Tensor]:
        """Score the experts for tokens x [t, D], and select k experts per token."""
        normed = implementation.norm(x, None, None, None, self.norm)[0]
        logits, weights, chosen = super().forward(normed * self.scale * x.shape[-1] ** -0.5, implementation)
        return logits, weights * self.expert_scale[chosen], chosen


class Gemma4Mixture(MixtureLayer):
    """Experts beside a dense feed-forward. Each has its own norm before and after it.

    The dense feed-forward reads the norm of the layer. The router and the norm of the experts read the residual stream.
    """

    def __init__(self, hidden: int, moe: MoE, norm: Norm) -> None:
        super().__init__(hidden, moe, norm)
        if self.beside is None or self.shared is not None or self.latent_in is not None:
            raise UnsupportedError(
                "separate_norms needs a dense feed-forward beside the experts (beside), and is implemented in the "
                "PyTorch model without shared experts and latent_size"
            )
        self.router = Gemma4Router(hidden, moe, norm.eps)
        self.experts_norm = NormLayer(hidden, norm)
        self.post_experts_norm = NormLayer(hidden, norm)
        self.post_beside_norm = NormLayer(hidden, norm)

    def beside_stream(self, normed: Tensor, x: Tensor, implementation: Implementation) -> Tensor:
        """Return the sum [B, S, D] of both outputs, for the normed input and the residual stream x, both [B, S, D]."""
        assert self.beside is not None
        dense = self.post_beside_norm(self.beside(normed, implementation), implementation)
        _, weights, chosen = self.router(x.flatten(0, -2), implementation)
        self.last_chosen = chosen
        inputs = self.experts_norm(x, implementation).flatten(0, -2)
        routed = self._routed(inputs, weights, chosen, x.shape[0], implementation).view_as(x)
        out: Tensor = dense + self.post_experts_norm(routed, implementation)
        return out
