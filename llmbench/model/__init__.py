"""The real PyTorch model of a ModelSpec, which is traced, measured and checked against transformers.

`build(spec)` makes one with random weights, `load(folder)` one with the weights that transformers saved. Where things
are:

    decoder         the plain layer (`Block`) and the `Decoder`; `seq2seq` has the encoder beside it
    placements      layers with other placements of norms; `residual` has the sum that waits for the next norm
    embeddings      from tokens to the first layer; `head`: from the last layer to the vocabulary
    attention       MHA, GQA, MQA; attention_steps and gated_attention: what only some families have
    latent          MLA; `cross`: attention to an encoder; `recurrent/`: mixers with a fixed state
    mixers          which module and which cache a mixer of a spec has
    ffn             dense and gated feed-forwards, mixtures of experts
    norms, positions, step, context    what all layers use: `step` is one forward pass, `context` the keys in sight
    cache           the cache of a whole model, `Cache`, and its kinds
    layer_cache     the cache of one attention layer: slots and rings; `paged`: blocks; `storage`: one stored row
    recurrent/state the state of one recurrent layer
    implementations, weights           how a model is computed; its weights in files
    create, generation, trace, describe    building, generating, tracing, and the figures of `llmbench model`

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
