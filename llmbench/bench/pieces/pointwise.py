"""Pieces without matrix products: norms, rotations and gates. Memory traffic limits the speed of these pieces.

B batch, S length, D hidden, N query heads, K KV heads, H head dim, R rotated dims, F intermediate.
"""

from __future__ import annotations

import msgspec
from torch import Tensor

from llmbench.bench.pieces.piece import BuiltPiece, Piece, Setting
from llmbench.bench.pieces.reduce import attention_of, ffn_of, layer_of, with_layer
from llmbench.model.implementations.interface import Implementation
from llmbench.model.positions import rotation_of
from llmbench.sizing.op import Op
from llmbench.spec.base import plural
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import Layer, ModelSpec

__all__ = ["ADD_NORM", "GLU", "NORM", "ROPE"]


def _norm(setting: Setting) -> BuiltPiece:
    spec = setting.spec
    norm = layer_of(spec).norm or spec.norm

    def run(implementation: Implementation, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        return implementation.norm(x, None, weight, bias, norm)[0]

    inputs = {
        "x": setting.normal(setting.batch, setting.seq_len, spec.hidden_size),
        "weight": setting.normal(spec.hidden_size, seed=1) if norm.weight else None,
        "bias": setting.normal(spec.hidden_size, seed=2) if norm.bias else None,
    }
    present = tuple(name for name, value in inputs.items() if value is not None)
    return BuiltPiece(run=run, inputs=inputs, differentiable=present)


def _add_norm(setting: Setting) -> BuiltPiece:
    alone = _norm(setting)
    norm = layer_of(setting.spec).norm or setting.spec.norm

    def run(
        implementation: Implementation, x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return implementation.norm(x, residual, weight, bias, norm)

    inputs = alone.inputs | {"residual": setting.normal(*alone.inputs["x"].shape, seed=3)}
    return BuiltPiece(run=run, inputs=inputs, differentiable=(*alone.differentiable, "residual"))


def _with_norm(spec: ModelSpec) -> ModelSpec:
    """Return the model reduced to its first layer with a mixer. If that layer has norms before and after the mixer,
    remove the norm after the mixer."""
    reduced = with_layer(spec, "norm of a mixer", lambda layer: layer.mixer is not None)
    ((name, layer),) = reduced.layers.items()
    if layer.placement != "sandwich":
        return reduced
    return msgspec.structs.replace(reduced, layers={name: msgspec.structs.replace(layer, placement="pre")})


def _norm_of(spec: ModelSpec) -> str:
    return f"{(layer_of(spec).norm or spec.norm).label} of {plural(spec.hidden_size, 'value')}"


def _is_norm(op: Op) -> bool:
    return op.kind == "norm" and op.name in ("layers.{}.mixer_norm", "layers.{}.norm", "layers.{}.post_mixer_norm")


def _rope(setting: Setting) -> BuiltPiece:
    spec = setting.spec
    mixer = attention_of(spec)
    rotated = mixer.rotated_heads
    assert rotated is not None
    width = rotated.width
    rotation = rotation_of(spec.positions_of(mixer), width, spec.max_position_embeddings)
    assert rotation is not None
    interleaved = rotation.rope.interleaved
    cos, sin = rotation.tables(setting.positions()[:1], setting.seq_len)

    def run(implementation: Implementation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return implementation.rotate(q, k, (cos, sin), interleaved=interleaved)

    B, S = setting.batch, setting.seq_len
    heads = {"q": mixer.num_attention_heads, "k": rotated.key_heads}
    inputs = {
        name: setting.normal(B, S, count, width, seed=seed).transpose(1, 2)
        for seed, (name, count) in enumerate(heads.items())
    }
    return BuiltPiece(run=run, inputs=inputs | {"cos": cos, "sin": sin}, differentiable=("q", "k"))


def _with_rotation(spec: ModelSpec) -> ModelSpec:
    def rotates(layer: Layer) -> bool:
        mixer = layer.mixer
        if not isinstance(mixer, AttentionKind) or mixer.rotated_heads is None:
            return False
        return rotation_of(spec.positions_of(mixer), mixer.rotated_heads.width, None) is not None

    return with_layer(spec, "rotary positions", rotates)


def _glu(setting: Setting) -> BuiltPiece:
    ffn = ffn_of(setting.spec, Gated)

    def run(implementation: Implementation, gate: Tensor, up: Tensor) -> Tensor:
        return implementation.glu(gate, up, ffn.activation)

    shape = setting.batch, setting.seq_len, ffn.intermediate_size
    inputs = {"gate": setting.normal(*shape), "up": setting.normal(*shape, seed=1)}
    return BuiltPiece(run=run, inputs=inputs, differentiable=("gate", "up"))


def _with_gate(spec: ModelSpec) -> ModelSpec:
    return with_layer(spec, "gated feed-forward", lambda layer: isinstance(layer.ffn, Gated))


SUM = "layers.{}.mixer_residual"

ADD_NORM = Piece(
    name="add_norm",
    what="the sum of the residual stream, and its norm",
    reduce=_with_norm,
    has=lambda op: op.name in (SUM, "final_norm"),  # if the layer has no feed-forward, the final norm reads the sum
    outputs=(SUM,),
    fuses=True,
    build=_add_norm,
    of=_norm_of,
)

NORM = Piece(
    reduce=_with_norm,
    has=_is_norm,
    build=_norm,
    of=_norm_of,
    shapes={"cuda": ("llama2-7b", {}, 4, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
)

ROPE = Piece(
    reduce=_with_rotation,
    has=lambda op: op.role == "rope",
    build=_rope,
    shapes={"cuda": ("llama2-7b", {}, 4, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
)

GLU = Piece(
    reduce=_with_gate,
    has=lambda op: op.name == "layers.{}.ffn.act",
    build=_glu,
    of=lambda spec: ffn_of(spec, Gated).summary,
    shapes={"cuda": ("llama2-7b", {}, 4, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
)
