"""Pieces of a feed-forward, with their weights: the whole feed-forward, the router of a mixture of experts, and the
experts alone with fixed expert choices.

B batch, S length, D hidden, t tokens, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from llmbench.bench.pieces.blocks import decoder_of, parameters_of
from llmbench.bench.pieces.piece import BuiltPiece, Piece, Setting
from llmbench.bench.pieces.reduce import ffn_of, short_vocabulary, with_layer
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import MixtureLayer
from llmbench.model.implementations.interface import Implementation
from llmbench.sizing.op import Op
from llmbench.spec.ffn import MoE
from llmbench.spec.model import ModelSpec

__all__ = ["FFN", "MIXTURE", "ROUTER", "busiest_share", "experts_piece"]


def _ffn_module(model: Decoder) -> nn.Module:
    ffn = model.layers[0].ffn
    assert isinstance(ffn, nn.Module)
    return ffn


def _mixture_module(model: Decoder) -> MixtureLayer:
    return cast(MixtureLayer, _ffn_module(model))


def _ffn(setting: Setting) -> BuiltPiece:
    model, version = decoder_of(setting)

    def run(implementation: Implementation, x: Tensor) -> Tensor:
        out: Tensor = _ffn_module(version(x.dtype))(x, implementation)
        return out

    x = setting.normal(setting.batch, setting.seq_len, setting.spec.hidden_size)
    parameters = parameters_of(version, _ffn_module)
    return BuiltPiece(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def _router(setting: Setting) -> BuiltPiece:
    model, version = decoder_of(setting)

    def run(implementation: Implementation, x: Tensor) -> Tensor:
        _, weights, _ = _mixture_module(version(x.dtype)).router(x, implementation)
        # Implementations order the chosen experts of a token differently. A sum over these experts does not depend on
        # their order, so the check can compare it.
        return cast(Tensor, weights.sum(-1))

    x = setting.normal(setting.batch * setting.seq_len, setting.spec.hidden_size)
    parameters = parameters_of(version, lambda model: _mixture_module(model).router)
    return BuiltPiece(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def experts_piece(choose: Callable[[int, int, int], Tensor]) -> Piece:
    """Return the piece that computes the experts of a mixture without their router.

    `choose(experts, experts per token, tokens)` returns the chosen experts [t, k].
    """

    def build(setting: Setting) -> BuiltPiece:
        model, version = decoder_of(setting)
        moe = ffn_of(setting.spec, MoE)
        choices = choose(moe.num_experts, moe.num_experts_per_tok, setting.batch * setting.seq_len)
        chosen = choices.to(setting.device)
        weights = torch.full(chosen.shape, 1 / moe.num_experts_per_tok, device=setting.device)

        def run(implementation: Implementation, x: Tensor) -> Tensor:
            out: Tensor = _mixture_module(version(x.dtype)).experts(x, weights.to(x.dtype), chosen, implementation)
            return out

        x = setting.normal(len(chosen), setting.spec.hidden_size)
        return BuiltPiece(
            run=run,
            inputs={"x": x},
            differentiable=("x",),
            parameters=parameters_of(version, lambda model: _mixture_module(model).experts),
            model=model,
            extra={"load": busiest_share(choices, moe.num_experts)},
        )

    return Piece(
        name="experts",
        what="the experts of a mixture, with given choices",
        reduce=_with_experts,
        has=lambda op: op.component == "experts",
        build=build,
    )


def busiest_share(chosen: Tensor, experts: int) -> float:
    """Return the number of tokens of the busiest expert, divided by the mean number of tokens per expert."""
    return float(chosen.flatten().bincount(minlength=experts).max()) * experts / chosen.numel()


def _with_experts(spec: ModelSpec) -> ModelSpec:
    return short_vocabulary(with_layer(spec, "experts", lambda layer: isinstance(layer.ffn, MoE)))


def _with_ffn(spec: ModelSpec) -> ModelSpec:
    return short_vocabulary(with_layer(spec, "feed-forward", lambda layer: layer.ffn is not None))


def _in_ffn(op: Op) -> bool:
    return op.name.startswith("layers.{}.ffn.")


FFN = Piece(name="ffn", what="the feed-forward of a layer", reduce=_with_ffn, has=_in_ffn, build=_ffn, check_seq=64)

ROUTER = Piece(
    name="router",
    what="the router of a mixture: the scores of all experts, and the choice of experts",
    reduce=_with_experts,
    has=lambda op: op.component == "router",
    build=_router,
)

MIXTURE = Piece(
    reduce=_with_experts,
    has=_in_ffn,
    build=_ffn,
    shapes={
        "cuda": ("mixtral-8x7b", {}, 1, 4096),
        "cpu": ("olmoe-1b-7b", {"num_experts": 8, "num_experts_per_tok": 2}, 1, 128),
    },
    default_change="Only 8 of 64 experts and 2 of 8 per token are timed, because the default on a CPU is small;"
    " `--model olmoe-1b-7b` times all experts.",
    check_seq=64,
)
