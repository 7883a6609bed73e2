"""Pieces with weights, taken from the real model: the loss, a layer, a whole model.

B batch, S length, D hidden, V vocabulary, t = B·S tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
import torch
from torch import Tensor, nn

from llmbench.bench.pieces.piece import Made, Piece, Setting
from llmbench.bench.pieces.reduce import with_layer
from llmbench.errors import UnsupportedError
from llmbench.model.attention import Step
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.implementations.interface import Implementation
from llmbench.model.norms import Residual
from llmbench.model.positions import tables_of
from llmbench.sizing.op import Op
from llmbench.spec.model import ModelSpec

__all__ = ["PIECES", "decoder_of", "parameters_of", "short_vocabulary"]

Versions = Callable[[torch.dtype], Decoder]
"""The model in its own format, and the same weights in another, made when they are asked for."""

Versioned = Callable[[torch.dtype], Mapping[str, Tensor]]
"""Tensors by name in each format."""


def decoder_of(setting: Setting) -> tuple[Decoder, Versions]:
    """The model of a setting with random weights, in its format and, asked for, in another."""
    model = build(setting.spec, impl="standard", device=setting.device, dtype=setting.format)
    held = {setting.format: model}

    def version(dtype: torch.dtype) -> Decoder:
        if dtype not in held:
            held[dtype] = build(setting.spec, impl="standard", device=setting.device, dtype=dtype, init="empty")
            held[dtype].load_state_dict(model.state_dict())
        return held[dtype]

    return model, version


def parameters_of(version: Versions, part: Callable[[Decoder], nn.Module]) -> Versioned:
    """The parameters of a part of the model, in each format."""
    return lambda dtype: dict(part(version(dtype)).named_parameters())


def _loss(setting: Setting) -> Made:
    model, version = decoder_of(setting)

    def run(how: Implementation, x: Tensor) -> Tensor:
        of = version(x.dtype)
        of.implementation = how
        out: Tensor = of.loss(x, targets)
        return out

    width = model.lm_head.in_features
    x = setting.normal(setting.batch, setting.seq_len, width)
    targets = setting.tokens(setting.spec.vocab_size, setting.batch, setting.seq_len)
    parameters = parameters_of(version, lambda model: model.lm_head)
    return Made(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def _block(setting: Setting) -> Made:
    model, version = decoder_of(setting)
    positions = setting.positions()
    tables = tables_of(model.rotations, positions, setting.seq_len)

    def run(how: Implementation, x: Tensor) -> Tensor:
        step = Step(positions, None, True, tables, how)
        stream, _ = version(x.dtype).layers[0](Residual(x), step, None, None)
        out: Tensor = stream.whole()
        return out

    x = setting.normal(setting.batch, setting.seq_len, setting.spec.hidden_size)
    parameters = parameters_of(version, lambda model: model.layers[0])
    return Made(run=run, inputs={"x": x}, differentiable=("x",), parameters=parameters, model=model)


def _has_layer(spec: ModelSpec) -> ModelSpec:
    return short_vocabulary(with_layer(_decodes(spec), "layers", lambda layer: True))


def _model(setting: Setting) -> Made:
    model, version = decoder_of(setting)

    def run(how: Implementation, tokens: Tensor, like: Tensor) -> Tensor:
        of = version(like.dtype)
        of.implementation = how
        out: Tensor = of(tokens, targets=targets if setting.backward else None)
        return out

    shape = setting.spec.vocab_size, setting.batch, setting.seq_len
    targets = setting.tokens(*shape, seed=1)
    inputs = {"tokens": setting.tokens(*shape), "like": setting.normal()}  # `like` says in which format to compute
    return Made(run=run, inputs=inputs, parameters=parameters_of(version, lambda model: model), model=model)


def _decodes(spec: ModelSpec) -> ModelSpec:
    if spec.encoder is not None:
        raise UnsupportedError(f"{spec.name}: models with an encoder are not timed", hint="--model names another")
    return spec


def short_vocabulary(spec: ModelSpec) -> ModelSpec:
    """Without most of its vocabulary, which a layer by itself does not meet."""
    return msgspec.structs.replace(spec, vocab_size=min(spec.vocab_size, 256))


def _in_layer(op: Op) -> bool:
    return op.name.startswith("layers.{}.")


PIECES = (
    Piece(
        name="loss",
        what="the head and the cross-entropy of its logits",
        alone=lambda spec: with_layer(_decodes(spec), "layers", lambda layer: True),
        has=lambda op: op.name in ("lm_head", "loss", "soft_cap"),
        fuses=True,
        make=_loss,
        shapes={"cuda": ("llama3-8b", {}, 1, 4096), "cpu": ("smollm2-135m", {}, 1, 128)},
    ),
    Piece(
        name="block",
        what="one layer of the model",
        alone=_has_layer,
        has=_in_layer,
        make=_block,
        shapes={"cuda": ("llama2-7b", {}, 1, 4096), "cpu": ("smollm2-135m", {}, 1, 256)},
        cpu_impl="flash",
    ),
    Piece(
        name="model",
        what="the whole model: logits, or with backward a step's loss and gradients",
        alone=_decodes,
        has=lambda op: True,
        backward_only=("loss",),
        make=_model,
        shapes={"cuda": ("smollm2-1.7b", {}, 1, 2048), "cpu": ("smollm2-135m", {}, 1, 64)},
        cpu_impl="flash",
    ),
)
