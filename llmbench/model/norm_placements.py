"""All layers except the plain layer. Such a layer has norms at other places, lacks a sublayer, or scales outputs.

`Block` in decoder.py is the plain layer: x + mixer(norm(x)), then x + ffn(norm(x)). For every other layer,
`block_class` selects one of these classes when a model is built:

    PreNormBlock      x + f(norm(x))            missing sublayers (Mamba), cross-attention (T5), scales (Granite)
    PreFFNBlock       x + mixer(x), x + ffn(norm(x))    the first layer of ModernBERT
    PostNormBlock     norm(x + f(x))            the original Transformer, BERT
    OutputNormBlock   x + norm(f(x))            OLMo-2
    SandwichBlock     x + norm(f(norm(x)))      Gemma-2
    NoNormBlock       x + f(x)
    FromNormBlock     n + f(n), n = norm(x)     MiniMax
    ParallelBlock     x + mixer(n) + ffn(n)     Falcon-7B, GPT-J: n is one norm of x
    ParallelTwoBlock  x + mixer(n) + ffn(m)     Falcon-40B, GPT-NeoX: n and m are two norms of x

f is a sublayer: first the mixer, then the cross-attention, then the feed-forward.

Dimensions: B batch, S length, D hidden size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, assert_never

from torch import Tensor, nn

from llmbench.errors import UnsupportedError
from llmbench.model.cross import CrossAttentionLayer
from llmbench.model.ffn import feed_forward
from llmbench.model.implementations.interface import Implementation
from llmbench.model.mixers import build_mixer
from llmbench.model.norms import NormLayer, times
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.spec.mixer import branches, scales
from llmbench.spec.model import Layer, ModelSpec

LayerState = dict[str, Any]
"""The caches and states of one layer, by the name of the sublayer."""


class BlockParts(nn.Module):
    """The base class of all layers.

    It builds the sublayers that the layer has: mixers, cross-attention, feed-forward.
    """

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__()
        self.layer = layer
        self.branch_scales = scales(layer.mixer)
        self.mixers: list[str] = []
        for mixer in branches(layer.mixer):
            self.add_module(mixer.module_name, build_mixer(spec, mixer, index=index, where=f"{where}.mixer"))
            self.mixers.append(mixer.module_name)
        self.cross_attention: CrossAttentionLayer | None = None
        if layer.cross_attention is not None:
            self.cross_attention = CrossAttentionLayer(spec, layer.cross_attention, where=f"{where}.cross_attention")
        self.ffn = self.build_ffn(spec, layer)

    def build_ffn(self, spec: ModelSpec, layer: Layer) -> nn.Module | None:
        """Build the feed-forward of the layer. None: the layer has none."""
        return None if layer.ffn is None else feed_forward(spec.hidden_size, layer.ffn, spec.norm)

    @abstractmethod
    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read (T5's relative
        bias)."""

    def mix(self, x: Tensor, step: Step, state: LayerState | None, shared: Any) -> tuple[Tensor, Any]:
        """Return the output [B, S, D] of the mixer with dropout, and the value that later layers read.

        The output of parallel mixers is their sum (Falcon-H1).
        """
        outputs = []
        for name, (input_scale, output_scale) in zip(self.mixers, self.branch_scales, strict=True):
            own = None if state is None else state.get(name)
            out, shared = self.get_submodule(name)(times(x, input_scale), step, own, shared)
            outputs.append(times(out, output_scale))
        return step.dropped(sum(outputs[1:], outputs[0])), shared

    def feed(self, x: Tensor, step: Step) -> Tensor:
        """Return the output [B, S, D] of the feed-forward, with dropout."""
        assert self.ffn is not None
        return step.dropped(self.ffn(x, step.implementation))

    def add(self, x: Residual, out: Tensor) -> Residual:
        """Add a sublayer's output to the residual stream x: skip_scale · x + residual_scale · out.

        Only Granite, MiniCPM and MiniMax have factors other than 1. A skip_scale of 0 removes the residual connection.
        """
        if self.layer.skip_scale == 0:
            return Residual(times(out, self.layer.residual_scale))
        return Residual(times(x.whole(), self.layer.skip_scale), times(out, self.layer.residual_scale))


def layer_norm(spec: ModelSpec, layer: Layer) -> NormLayer:
    """Create a norm of a layer.

    It has the layer's own kind of norm if the spec gives one, else the norm of the model.
    """
    return NormLayer(spec.hidden_size, spec.norm if layer.norm is None else layer.norm)


Part = Callable[[Tensor], Tensor]
"""A sublayer as a function from [B, S, D] to [B, S, D]."""

Read = Callable[[Residual | Tensor], Tensor]
"""A norm as a function. Its input is the residual stream or a sublayer's output, [B, S, D]."""


class SequentialBlock(BlockParts):
    """A layer that runs its sublayers one after the other. A subclass defines in `around` the places of the norms."""

    norms_before: ClassVar[bool] = True
    norms_after: ClassVar[bool] = False

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        self.cross_norm = None if self.cross_attention is None else layer_norm(spec, layer)
        self.post_cross_norm = None
        self.mixer_norm = self.ffn_norm = self.post_mixer_norm = self.post_ffn_norm = None
        if self.norms_before:
            self.mixer_norm = layer_norm(spec, layer) if self.mixers else None
            self.ffn_norm = layer_norm(spec, layer) if self.ffn is not None else None
        if self.norms_after:
            self.post_mixer_norm = layer_norm(spec, layer) if self.mixers else None
            self.post_cross_norm = None if self.cross_attention is None else layer_norm(spec, layer)
            self.post_ffn_norm = layer_norm(spec, layer) if self.ffn is not None else None

    @abstractmethod
    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        """Return the residual stream after the sublayer `f`, with the norms before and after the sublayer."""

    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read."""
        implementation, cross_attention = step.implementation, self.cross_attention

        def mix(x: Tensor) -> Tensor:
            nonlocal shared
            out, shared = self.mix(x, step, state, shared)
            return out

        def cross(x: Tensor) -> Tensor:
            assert cross_attention is not None
            return step.dropped(cross_attention(x, step, None if state is None else state["cross_attention"]))

        def feed(x: Tensor) -> Tensor:
            return self.feed(x, step)

        if self.mixers:
            x = self.around(x, mix, _read(self.mixer_norm, implementation), _read(self.post_mixer_norm, implementation))
        if cross_attention is not None:
            x = self.around(
                x, cross, _read(self.cross_norm, implementation), _read(self.post_cross_norm, implementation)
            )
        if self.ffn is not None:
            x = self.around(x, feed, _read(self.ffn_norm, implementation), _read(self.post_ffn_norm, implementation))
        return x, shared


def _read(norm: NormLayer | None, implementation: Implementation) -> Read:
    """Return a function of one argument that applies the norm to its argument, or only reads it if there is no norm."""

    def read(x: Residual | Tensor) -> Tensor:
        if norm is None:
            return x.whole() if isinstance(x, Residual) else x
        normed: Tensor = norm(x, implementation)
        return normed

    return read


class PreNormBlock(SequentialBlock):
    """A layer with norms before its sublayers: x + f(norm(x))."""

    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        return self.add(x, f(norm(x)))


class PreFFNBlock(PreNormBlock):
    """A layer with a norm before its feed-forward only: x + mixer(x), then x + ffn(norm(x))."""

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        self.mixer_norm = None


class PostNormBlock(SequentialBlock):
    """A layer with norms after each sum: norm(x + f(x))."""

    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        return Residual(norm(self.add(x, f(x.whole()))))


class OutputNormBlock(SequentialBlock):
    """A layer that normalises the outputs of its sublayers: x + norm(f(x))."""

    norms_before, norms_after = False, True

    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        return self.add(x, post_norm(f(x.whole())))


class SandwichBlock(SequentialBlock):
    """A layer with norms before and after its sublayers: x + norm(f(norm(x)))."""

    norms_after = True

    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        return self.add(x, post_norm(f(norm(x))))


class NoNormBlock(SequentialBlock):
    """A layer without norms: x + f(x)."""

    norms_before = False

    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        return self.add(x, f(x.whole()))


class FromNormBlock(SequentialBlock):
    """A layer whose residual connections start after the norm: n + f(n) with n = norm(x)."""

    def around(self, x: Residual, f: Part, norm: Read, post_norm: Read) -> Residual:
        normed = norm(x)
        return self.add(Residual(normed), f(normed))


class ParallelBlock(BlockParts):
    """A layer with parallel sublayers and one norm: x + mixer(n) + ffn(n) with n = norm(x)."""

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        self.norm = layer_norm(spec, layer)

    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read."""
        normed = self.norm(x, step.implementation)
        if self.mixers:
            out, shared = self.mix(normed, step, state, shared)
            x = self.add(x, out)
        if self.ffn is not None:
            x = self.add(x, self.feed(normed, step))
        return x, shared


class ParallelTwoBlock(BlockParts):
    """A layer with parallel sublayers and two norms: x + mixer(n) + ffn(m). n and m are norms of x."""

    def __init__(self, spec: ModelSpec, layer: Layer, *, index: int, where: str) -> None:
        super().__init__(spec, layer, index=index, where=where)
        self.mixer_norm = layer_norm(spec, layer) if self.mixers else None
        self.ffn_norm = layer_norm(spec, layer) if self.ffn is not None else None

    def forward(self, x: Residual, step: Step, state: LayerState | None, shared: Any) -> tuple[Residual, Any]:
        """Return the residual stream [B, S, D] after this layer, and the value that later layers read."""
        start = x
        if self.mixer_norm is not None:
            out, shared = self.mix(self.mixer_norm(start, step.implementation), step, state, shared)
            x = self.add(x, out)
        if self.ffn is not None and self.ffn_norm is not None:
            x = self.add(x, self.feed(self.ffn_norm(start, step.implementation), step))
        return x, shared


def is_plain(layer: Layer) -> bool:
    """Return whether a layer is the plain layer of decoder.py: x + mixer(norm(x)), then x + ffn(norm(x)), without
    scales."""
    has_both = layer.mixer is not None and layer.ffn is not None and layer.cross_attention is None
    scaled = layer.residual_scale != 1.0 or layer.skip_scale != 1.0
    return layer.placement == "pre" and has_both and not scaled and not layer.residual_from_norm


def block_class(spec: ModelSpec, layer: Layer, *, where: str) -> type[BlockParts]:
    """Return the class of a layer that is not the plain layer.

    Raises UnsupportedError for cross-attention in a layer whose placement is none of pre, post and sandwich.
    """
    if layer.cross_attention is not None and layer.placement not in ("pre", "post", "sandwich"):
        raise UnsupportedError(
            f"{spec.name}: {where}.cross_attention with placement {layer.placement} is not implemented in the "
            "PyTorch model yet"
        )
    match layer.placement:
        case "pre":
            return FromNormBlock if layer.residual_from_norm else PreNormBlock
        case "pre_ffn":
            return PreFFNBlock
        case "post":
            return PostNormBlock
        case "output":
            return OutputNormBlock
        case "sandwich":
            return SandwichBlock
        case "none":
            return NoNormBlock
        case "parallel":
            return ParallelBlock
        case "parallel_two":
            return ParallelTwoBlock
        case _:
            assert_never(layer.placement)
