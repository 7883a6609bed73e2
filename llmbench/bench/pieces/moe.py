"""Feed-forwards with their weights: a whole one, a mixture's router, and its experts on choices that are given.

B batch, S length, D hidden.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from llmbench.bench.experiments.routing import Routing, choices, load
from llmbench.bench.pieces.blocks import decoder_of, parameters_of, short_vocabulary
from llmbench.bench.pieces.piece import Made, Piece, Setting
from llmbench.bench.pieces.reduce import ffn_of, with_layer
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import MixtureLayer
from llmbench.model.implementations.interface import Implementation
from llmbench.sizing.op import Op
from llmbench.spec.ffn import MoE
from llmbench.spec.model import ModelSpec

__all__ = ["FFN", "PIECES", "ROUTER", "experts_piece"]


def _layer(model: Decoder) -> nn.Module:
    ffn = model.layers[0].ffn
    assert isinstance(ffn, nn.Module)
    return ffn


def _mixture(model: Decoder) -> MixtureLayer:
    return cast(MixtureLayer, _layer(model))


def _ffn(setting: Setting) -> Made:
    model, version = decoder_of(setting)

    def run(how: Implementation, x: Tensor) -> Tensor:
        out: Tensor = _layer(version(x.dtype))(x, how)
        return out

    x = setting.normal(setting.batch, setting.seq_len, setting.spec.hidden_size)
    return Made(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters_of(version, _layer), model=model)


def _router(setting: Setting) -> Made:
    model, version = decoder_of(setting)

    def run(how: Implementation, x: Tensor) -> Tensor:
        _, weights, _ = _mixture(version(x.dtype)).router(x, how)
        return cast(Tensor, weights.sum(-1))  # of the chosen, in whatever order an implementation gives them

    x = setting.normal(setting.batch * setting.seq_len, setting.spec.hidden_size)
    parameters = parameters_of(version, lambda model: _mixture(model).router)
    return Made(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def experts_piece(routing: Routing) -> Piece:
    """A mixture's experts alone, on choices of that kind."""

    def make(setting: Setting) -> Made:
        model, version = decoder_of(setting)
        moe = ffn_of(setting.spec, MoE)
        tokens = setting.batch * setting.seq_len
        found = choices(moe.num_experts, moe.num_experts_per_tok, tokens, routing)
        chosen = found.to(setting.device)
        weights = torch.full(chosen.shape, 1 / moe.num_experts_per_tok, device=setting.device)

        def run(how: Implementation, x: Tensor) -> Tensor:
            out: Tensor = _mixture(version(x.dtype)).experts(x, weights.to(x.dtype), chosen, how)
            return out

        x = setting.normal(len(chosen), setting.spec.hidden_size)
        return Made(
            run=run,
            inputs={"x": x},
            differentiable=("x",),
            parameters=parameters_of(version, lambda model: _mixture(model).experts),
            model=model,
            found={"load": load(found, moe.num_experts)},
        )

    return Piece(
        name="experts",
        what="the experts of a mixture on given choices",
        alone=_has_experts,
        has=lambda op: op.component == "experts",
        make=make,
        shapes={},
    )


def _has_experts(spec: ModelSpec) -> ModelSpec:
    return short_vocabulary(with_layer(spec, "experts", lambda layer: isinstance(layer.ffn, MoE)))


def _has_ffn(spec: ModelSpec) -> ModelSpec:
    return short_vocabulary(with_layer(spec, "feed-forward", lambda layer: layer.ffn is not None))


def _of_ffn(op: Op) -> bool:
    return op.name.startswith("layers.{}.ffn.")


FFN = Piece(
    name="ffn", what="the feed-forward of a layer", alone=_has_ffn, has=_of_ffn, make=_ffn, shapes={}, check_seq=64
)

ROUTER = Piece(
    name="router",
    what="the router of a mixture: scores of all experts, and the choice",
    alone=_has_experts,
    has=lambda op: op.component == "router",
    make=_router,
    shapes={},
)

PIECES = (
    Piece(
        name="moe",
        what="router, experts and what stands beside them, of a layer",
        alone=_has_experts,
        has=_of_ffn,
        make=_ffn,
        shapes={
            "cuda": ("mixtral-8x7b", {}, 1, 4096),
            "cpu": ("olmoe-1b-7b", {"num_experts": 8, "num_experts_per_tok": 2}, 1, 128),
        },
        cpu_impl="standard",
        check_seq=64,
    ),
)
