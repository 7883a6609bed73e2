"""Pieces that are modules of a model, with their weights: the loss, a layer, the decoding step of a layer, and the
whole model.

B batch, S length, T tokens in the cache (including the new token), D hidden, V vocabulary, t = B·S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from llmbench.bench.pieces.piece import BuiltPiece, Piece, Setting
from llmbench.bench.pieces.reduce import attention_of, short_vocabulary, with_attention, with_layer
from llmbench.errors import UnsupportedError
from llmbench.model.cache import Cache
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.implementations.interface import Implementation
from llmbench.model.mixers import new_cache, row_shape
from llmbench.model.norm_placements import BlockParts
from llmbench.model.positions import tables_of
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.sizing.op import Op
from llmbench.spec.model import ModelSpec

__all__ = ["BLOCK", "LOSS", "MODEL", "STEP", "decoder_of", "decoder_only", "parameters_of"]

Versions = Callable[[torch.dtype], Decoder]
"""A function that takes a number format and returns the model in that format. All formats have the same weights."""

Parameters = Callable[[torch.dtype], Mapping[str, Tensor]]
"""A function that takes a number format and returns tensors in that format, by name."""


def decoder_of(setting: Setting) -> tuple[Decoder, Versions]:
    """Return a setting's model with random weights, in the setting's format, and a function that returns the same model
    in another format."""
    model = build(setting.spec, impl="standard", device=setting.device, dtype=setting.format)
    built = {setting.format: model}

    def version(dtype: torch.dtype) -> Decoder:
        if dtype not in built:
            built[dtype] = build(setting.spec, impl="standard", device=setting.device, dtype=dtype, init="empty")
            built[dtype].load_state_dict(model.state_dict())
        return built[dtype]

    return model, version


def parameters_of(version: Versions, module: Callable[[Decoder], nn.Module]) -> Parameters:
    """Return a function that takes a number format and returns the parameters of one module of the model in that
    format."""
    return lambda dtype: dict(module(version(dtype)).named_parameters())


def _first_layer(model: Decoder) -> nn.Module:
    return model.layers[0]


def _loss(setting: Setting) -> BuiltPiece:
    model, version = decoder_of(setting)

    def run(implementation: Implementation, x: Tensor) -> Tensor:
        decoder = version(x.dtype)
        decoder.implementation = implementation
        out: Tensor = decoder.loss(x, targets)
        return out

    width = model.lm_head.in_features
    x = setting.normal(setting.batch, setting.seq_len, width)
    targets = setting.tokens(setting.spec.vocab_size, setting.batch, setting.seq_len)
    parameters = parameters_of(version, lambda model: model.lm_head)
    return BuiltPiece(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def _block(setting: Setting) -> BuiltPiece:
    model, version = decoder_of(setting)
    positions = setting.positions()
    tables = tables_of(model.rotations, positions, setting.seq_len)

    def run(implementation: Implementation, x: Tensor) -> Tensor:
        step = Step(positions, None, True, tables, implementation)
        stream, _ = version(x.dtype).layers[0](Residual(x), step, None, None)
        out: Tensor = stream.whole()
        return out

    x = setting.normal(setting.batch, setting.seq_len, setting.spec.hidden_size)
    parameters = parameters_of(version, _first_layer)
    return BuiltPiece(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def _filled_cache(setting: Setting, dtype: torch.dtype) -> Cache:
    """Return a cache for the layer, filled with random rows. Each timed step overwrites the slot of the newest
    token."""
    spec, mixer = setting.spec, attention_of(setting.spec)
    row = row_shape(mixer.cache_row, mixer.indexer_row)
    widths = (row.heads, sum(row.key)), (row.heads, sum(row.value))
    cache = new_cache(spec, setting.batch, setting.seq_len, dtype=dtype, device=setting.device)
    keys, values = (
        setting.normal(setting.batch, count, setting.seq_len, width, seed=seed).to(dtype)
        for seed, (count, width) in enumerate(widths, 1)
    )
    for layer in cache.layers[0].values():
        layer.fill(keys, values, setting.positions(), None)
    return cache


def _step(setting: Setting) -> BuiltPiece:
    model, version = decoder_of(setting)
    positions = setting.positions()[:, -1:]
    tables = tables_of(model.rotations, positions, setting.seq_len)
    lengths = torch.full((setting.batch,), setting.seq_len, dtype=torch.int64, device=setting.device)
    caches = {setting.format: _filled_cache(setting, setting.format)}

    def run(implementation: Implementation, x: Tensor) -> Tensor:
        if x.dtype not in caches:
            caches[x.dtype] = _filled_cache(setting, x.dtype)
        step = Step(positions, None, False, tables, implementation, lengths)
        stream, _ = cast(BlockParts, version(x.dtype).layers[0])(Residual(x), step, caches[x.dtype].layers[0], None)
        return cast(Tensor, stream.whole())

    return BuiltPiece(
        run=run,
        inputs={"x": setting.normal(setting.batch, 1, setting.spec.hidden_size)},
        parameters=parameters_of(version, _first_layer),
        model=model,
        state_bytes=caches[setting.format].nbytes,
    )


def _model(setting: Setting) -> BuiltPiece:
    model, version = decoder_of(setting)

    def run(implementation: Implementation, tokens: Tensor, like: Tensor) -> Tensor:
        decoder = version(like.dtype)
        decoder.implementation = implementation
        out: Tensor = decoder(tokens, targets=targets if setting.backward else None)
        return out

    shape = setting.spec.vocab_size, setting.batch, setting.seq_len
    targets = setting.tokens(*shape, seed=1)
    # The dtype of `like` selects the format of the model.
    inputs = {"tokens": setting.tokens(*shape), "like": setting.normal()}
    return BuiltPiece(run=run, inputs=inputs, parameters=parameters_of(version, lambda model: model), model=model)


def decoder_only(spec: ModelSpec) -> ModelSpec:
    """Return the model unchanged. Raises UnsupportedError for a model with an encoder."""
    if spec.encoder is not None:
        raise UnsupportedError(
            f"{spec.name}: models with an encoder cannot be timed", hint="choose another model with --model"
        )
    return spec


def _with_any_layer(spec: ModelSpec) -> ModelSpec:
    return with_layer(decoder_only(spec), "layers", lambda layer: True)


def _in_layer(op: Op) -> bool:
    return op.name.startswith("layers.{}.")


LOSS = Piece(
    reduce=_with_any_layer,
    has=lambda op: op.name in ("lm_head", "loss", "soft_cap"),
    fuses=True,
    build=_loss,
    shapes={"cuda": ("llama3-8b", {}, 1, 4096), "cpu": ("smollm2-135m", {}, 1, 128)},
)

BLOCK = Piece(
    reduce=lambda spec: short_vocabulary(_with_any_layer(spec)),
    has=_in_layer,
    build=_block,
    shapes={"cuda": ("llama2-7b", {}, 1, 4096), "cpu": ("smollm2-135m", {}, 1, 256)},
)

STEP = Piece(
    name="step",
    what="a layer's attention for one new token per sequence, with its norm, projections, rotation and cache",
    reduce=lambda spec: short_vocabulary(with_attention(spec)),
    has=_in_layer,
    build=_step,
    phase="decode",
)

MODEL = Piece(
    reduce=decoder_only,
    has=lambda op: True,
    backward_only=("loss",),
    build=_model,
    shapes={"cuda": ("smollm2-1.7b", {}, 1, 2048), "cpu": ("smollm2-135m", {}, 1, 64)},
)
