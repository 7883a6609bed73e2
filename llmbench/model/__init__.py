"""The PyTorch model that llmbench builds from a ModelSpec.

The model can be traced and measured. Tests check it against transformers. `build(spec)` creates a model with random
weights. `load(folder)` reads weights that transformers saved. The package has these files:

    decoder.py            the plain layer `Block`, and the `Decoder`
    seq2seq.py            encoder-decoder models
    norm_placements.py    layers whose norms, sublayers or scales differ from those of the plain layer
    residual.py           the residual stream, which delays a sum until the next norm
    embeddings.py         from tokens to the input of the first layer
    head.py               from the output of the last layer to the vocabulary
    attention.py          MHA, GQA and MQA; attention_steps.py, gated_attention.py and
                          special_attention.py have variants of some families
    latent.py             multi-head latent attention (MLA)
    cross.py              attention to the output of an encoder
    recurrent/            mixers with a state of fixed size; state.py there has the state of one layer
    mixers.py             the module and the cache of each kind of mixer
    ffn.py                dense and gated feed-forwards, and mixtures of experts
    expert_parallel.py    experts that are divided among processes
    gemma4.py, rwkv.py    layers that only Gemma 4 or RWKV has
    step.py               the inputs that all layers of a forward pass share
    context.py            the keys and values that the tokens of a forward pass see
    cache.py              `Cache`, the cache of a whole model, and its kinds
    layer_cache.py        the cache of one attention layer, in slots or in a ring; paged.py stores it in blocks
    storage.py            the stored rows of a cache, plain or quantised
    implementations/      the implementations that compute a model
    weights/              reading weights from files
    create.py             `build` and `load`
    initialise.py         the first values of the weights; sigma_reparam.py trains with σReparam
    generation.py         generation of new tokens
    attention_maps.py     the attention probabilities of each layer
    routing.py            the decisions of routers, and the loss that balances the load of experts
    trace.py              FLOPs and saved bytes, traced without memory
    describe.py           the figures that `llmbench model` prints

Importing this package loads none of these files. A file is loaded when one of its names is first used.
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
