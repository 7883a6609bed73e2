"""A decoding step of a layer without its feed-forward: norm, projections, rotation, cache and attention.

B batch, T tokens in the cache, the new one included, D hidden.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from llmbench.bench.pieces.blocks import decoder_of, parameters_of, short_vocabulary
from llmbench.bench.pieces.piece import Made, Piece, Setting
from llmbench.bench.pieces.reduce import attention_of, with_layer
from llmbench.model.attention import Step
from llmbench.model.decoder import Block
from llmbench.model.implementations.interface import Implementation
from llmbench.model.mixers import new_cache, row_shape
from llmbench.model.norms import Residual
from llmbench.model.positions import tables_of
from llmbench.model.state import Cache
from llmbench.sizing.op import Op
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import ModelSpec

__all__ = ["STEP"]


def _filled(setting: Setting, dtype: torch.dtype) -> Cache:
    """The cache of the layer, full but for the newest token's slot (which a step writes, again and again)."""
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


def _step(setting: Setting) -> Made:
    model, version = decoder_of(setting)
    positions = setting.positions()[:, -1:]
    tables = tables_of(model.rotations, positions, setting.seq_len)
    lengths = torch.full((setting.batch,), setting.seq_len, dtype=torch.int64, device=setting.device)
    caches = {setting.format: _filled(setting, setting.format)}

    def run(how: Implementation, x: Tensor) -> Tensor:
        if x.dtype not in caches:
            caches[x.dtype] = _filled(setting, x.dtype)
        step = Step(positions, None, False, tables, how, lengths)
        stream, _ = cast(Block, version(x.dtype).layers[0])(Residual(x), step, caches[x.dtype].layers[0], None)
        return cast(Tensor, stream.whole())

    x = setting.normal(setting.batch, 1, setting.spec.hidden_size)
    return Made(
        run=run,
        inputs={"x": x},
        parameters=parameters_of(version, lambda model: model.layers[0]),
        model=model,
        state_bytes=caches[setting.format].nbytes,
    )


def _attends(spec: ModelSpec) -> ModelSpec:
    return short_vocabulary(with_layer(spec, "attention", lambda layer: isinstance(layer.mixer, AttentionKind)))


def _in_layer(op: Op) -> bool:
    return op.name.startswith("layers.{}.")


STEP = Piece(
    name="step",
    what="a layer's attention, projections and cache included, for one new token a sequence",
    alone=_attends,
    has=_in_layer,
    make=_step,
    shapes={},
    phase="decode",
)
