"""Norms, rotations and gates by themselves: no matrix product, so that bytes bound them.

B batch, S length, D hidden, N query heads, K KV heads, H head dim, R rotated dims, F intermediate.
"""

from __future__ import annotations

import msgspec
from torch import Tensor

from llmbench.bench.pieces.piece import Made, Piece, Setting
from llmbench.bench.pieces.reduce import attention_of, ffn_of, layer_of, with_layer
from llmbench.model.implementations.interface import Implementation
from llmbench.model.positions import rotation_of
from llmbench.sizing.op import Op
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import Rope

__all__ = ["ADD_NORM", "PIECES"]


def _norm(setting: Setting) -> Made:
    spec = setting.spec
    norm = layer_of(spec).norm or spec.norm

    def run(how: Implementation, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return how.norm(x, None, weight, bias, norm)[0]

    inputs = {
        "x": setting.normal(setting.batch, setting.seq_len, spec.hidden_size),
        "weight": setting.normal(spec.hidden_size, seed=1) if norm.weight else None,
        "bias": setting.normal(spec.hidden_size, seed=2) if norm.bias else None,
    }
    return Made(
        run=run, inputs=inputs, differentiable=tuple(name for name, value in inputs.items() if value is not None)
    )


def _add_norm(setting: Setting) -> Made:
    made = _norm(setting)
    norm = layer_of(setting.spec).norm or setting.spec.norm

    def run(
        how: Implementation, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return how.norm(x, residual, weight, bias, norm)

    inputs = made.inputs | {"residual": setting.normal(*made.inputs["x"].shape, seed=3)}
    return Made(run=run, inputs=inputs, differentiable=(*made.differentiable, "residual"))


def _has_norm(spec: ModelSpec) -> ModelSpec:
    """Of two norms around a mixer, the one before it."""
    found = with_layer(spec, "norm of a mixer", lambda layer: layer.mixer is not None)
    ((name, layer),) = found.layers.items()
    if layer.placement != "sandwich":
        return found
    return msgspec.structs.replace(found, layers={name: msgspec.structs.replace(layer, placement="pre")})


def _is_norm(op: Op) -> bool:
    return op.kind == "norm" and op.name in ("layers.{}.mixer_norm", "layers.{}.norm", "layers.{}.post_mixer_norm")


SUM = "layers.{}.mixer_residual"


def _rope(setting: Setting) -> Made:
    spec = setting.spec
    mixer = attention_of(spec)
    rotated = mixer.rotated_heads
    assert rotated is not None
    width = rotated.width
    rotation = rotation_of(spec.positions_of(mixer), width, spec.max_position_embeddings)
    assert rotation is not None
    interleaved = rotation.rope.interleaved
    cos, sin = rotation.tables(setting.positions()[:1], setting.seq_len)

    def run(how: Implementation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return how.rotate(q, k, (cos, sin), interleaved=interleaved)

    B, S = setting.batch, setting.seq_len
    heads = {"q": mixer.num_attention_heads, "k": rotated.key_heads}
    inputs = {
        name: setting.normal(B, S, count, width, seed=seed).transpose(1, 2)
        for seed, (name, count) in enumerate(heads.items())
    }
    return Made(run=run, inputs=inputs | {"cos": cos, "sin": sin}, differentiable=("q", "k"))


def _rotates(spec: ModelSpec) -> ModelSpec:
    def turns(layer: Layer) -> bool:
        mixer = layer.mixer
        if not isinstance(mixer, AttentionKind) or not isinstance(spec.positions_of(mixer), Rope):
            return False
        return mixer.rotated_heads is not None and mixer.rotated_heads.width > 0

    return with_layer(spec, "rotary positions", turns)


def _glu(setting: Setting) -> Made:
    ffn = ffn_of(setting.spec, Gated)

    def run(how: Implementation, gate: Tensor, up: Tensor) -> Tensor:
        return how.glu(gate, up, ffn.activation)

    shape = setting.batch, setting.seq_len, ffn.intermediate_size
    inputs = {"gate": setting.normal(*shape), "up": setting.normal(*shape, seed=1)}
    return Made(run=run, inputs=inputs, differentiable=("gate", "up"))


def _gates(spec: ModelSpec) -> ModelSpec:
    return with_layer(spec, "gated feed-forward", lambda layer: isinstance(layer.ffn, Gated))


ADD_NORM = Piece(
    name="add_norm",
    what="the residual stream's sum, and its norm",
    alone=_has_norm,
    has=lambda op: op.name in (SUM, "final_norm"),  # the norm that reads the sum, where a layer is a mixer alone
    keeps=(SUM,),
    fuses=True,
    make=_add_norm,
    shapes={},
)

PIECES = (
    Piece(
        name="norm",
        what="the norm of a layer's input",
        alone=_has_norm,
        has=_is_norm,
        make=_norm,
        shapes={"cuda": ("llama2-7b", {}, 4, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
    ),
    Piece(
        name="rope",
        what="queries and keys turned by their positions",
        alone=_rotates,
        has=lambda op: op.name == "layers.{}.attention.rope",
        make=_rope,
        shapes={"cuda": ("llama2-7b", {}, 4, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
    ),
    Piece(
        name="glu",
        what="act(gate) · up of a feed-forward",
        alone=_gates,
        has=lambda op: op.name == "layers.{}.ffn.act",
        make=_glu,
        shapes={"cuda": ("llama2-7b", {}, 4, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
    ),
)
