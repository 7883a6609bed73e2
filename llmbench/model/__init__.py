"""The real PyTorch model of a ModelSpec, which is traced, measured and checked against transformers.

`build(spec)` makes one with random weights, `load(folder)` one with the weights that transformers saved. The files:

    decoder          the plain layer, `Block`, and the `Decoder`; seq2seq.py has encoder-decoders
    norm_placements  layers with other placements of norms, other parts or scales
    residual         the residual stream, whose sum waits for the next norm
    embeddings       from tokens to the first layer; head.py: from the last layer to the vocabulary
    attention        MHA, GQA, MQA; attention_steps.py and gated_attention.py: variants of some families
    latent           MLA; cross.py: attention to an encoder
    recurrent/       mixers with a fixed state; recurrent/state.py: the state of one layer
    mixers           the module and the cache of each kind of mixer
    ffn              dense and gated feed-forwards, mixtures of experts
    step, context    the values of one forward pass; the keys and values that its tokens see
    cache            `Cache`, the cache of a whole model, and its kinds
    layer_cache      the cache of one attention layer, in slots or rings; paged.py: in blocks
    storage          one stored row of a cache, plain or quantised
    implementations/ how a model is computed; weights/: how its weights are read
    create           `build` and `load`; generation.py: new tokens
    trace            FLOPs and saved bytes without memory; describe.py: the figures of `llmbench model`

Names are imported when they are asked for, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmbench.model.cache import Cache
    from llmbench.model.create import build, load
    from llmbench.model.decoder import Decoder

__all__ = ["Cache", "Decoder", "build", "load"]

_MODULES = {
    "Cache": "llmbench.model.cache",
    "Decoder": "llmbench.model.decoder",
    "build": "llmbench.model.create",
    "load": "llmbench.model.create",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
