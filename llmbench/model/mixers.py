"""Functions that create the module and the cache of each kind of mixer. mypy reports a forgotten kind.

A mixer is called as `mixer(x, step, state, shared)`, and returns its output [B, S, D] and `shared`.

- `x`: the input [B, S, D].
- `state`: the cache or the recurrent state of the layer, or None.
- `shared`: a value that one layer computes and later layers read, such as T5's relative bias.
"""

from __future__ import annotations

from typing import Any, assert_never

from torch import nn

from llmbench.errors import UnsupportedError
from llmbench.model.cache import Cache, Store, open_store
from llmbench.model.cross import CrossState
from llmbench.model.latent import LatentLayer
from llmbench.model.layer_cache import RowShape
from llmbench.model.recurrent import (
    GatedDeltaNetLayer,
    KimiDeltaLayer,
    LightningLayer,
    Mamba2Layer,
    MambaLayer,
    RGLRULayer,
    RWKVLayer,
    ShortConvLayer,
    new_state,
)
from llmbench.model.special_attention import attention_class
from llmbench.spec.mixer import (
    RGLRU,
    RWKV,
    Attention,
    CacheRow,
    CompressedAttention,
    GatedDeltaNet,
    KimiDelta,
    LatentAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    ShortConv,
    SingleMixer,
    branches,
)
from llmbench.spec.model import ModelSpec


def build_mixer(spec: ModelSpec, mixer: SingleMixer, *, index: int, where: str) -> nn.Module:
    """Build the module of a mixer in layer `index`.

    Raises UnsupportedError for a kind of mixer that has no module yet.
    """
    match mixer:
        case Attention():
            layer = attention_class(spec, mixer)
            return layer(spec, mixer, positions=spec.positions_of(mixer), index=index, where=where)
        case LatentAttention():
            return LatentLayer(spec, mixer, positions=spec.positions_of(mixer))
        case Mamba():
            return MambaLayer(spec, mixer)
        case Mamba2():
            return Mamba2Layer(spec, mixer)
        case GatedDeltaNet():
            return GatedDeltaNetLayer(spec, mixer)
        case LightningAttention():
            return LightningLayer(spec, mixer, index=index)
        case RGLRU():
            return RGLRULayer(spec, mixer)
        case ShortConv():
            return ShortConvLayer(spec, mixer)
        case RWKV():
            return RWKVLayer(spec, mixer)
        case KimiDelta():
            return KimiDeltaLayer(spec, mixer)
        case CompressedAttention():
            raise UnsupportedError(
                f"{spec.name}: {where} of kind {mixer.kind} is not implemented in the PyTorch model yet"
            )
        case _:
            assert_never(mixer)


def build_state(mixer: SingleMixer, store: Store, hidden: int) -> Any:
    """Create the memory that a mixer keeps between forward passes: a cache of tokens, or a state of fixed size.

    - `hidden`: the hidden size of the model.

    Raises UnsupportedError if the mixer needs a kind of memory that cannot be built.
    """
    rows, state = mixer.cache_rows, mixer.fixed_state
    if state is not None and not rows:
        return new_state(state, store.batch, hidden, dtype=store.dtype, device=store.device)
    if state is None and len(rows) == 1:
        return store.rows(row_shape(rows[0], mixer.indexer_row), rows[0].span)
    if not mixer.causal:
        raise UnsupportedError("bidirectional attention has no cache, because each token also sees the tokens after it")
    raise UnsupportedError(f"a cache for {mixer.label} is not implemented in the PyTorch model yet")


def row_shape(row: CacheRow, indexer_row: CacheRow | None) -> RowShape:
    """Return the shape of the rows in a cache.

    In latent attention, the value is a part of the key row, so no value is stored. The value row then stores the key of
    the indexer.
    """
    if row.value:
        return RowShape(row.heads, row.key, row.value)
    return RowShape(row.heads, row.key, (0 if indexer_row is None else indexer_row.width,))


def new_cache(spec: ModelSpec, batch: int, capacity: int, *, kind: str = "rolling", **where: Any) -> Cache:
    """Create an empty cache for a whole model. It has room for `capacity` tokens of each of `batch` sequences.

    - `where`: the arguments `dtype` and `device`, and for a paged cache also `block_size` and `num_blocks`.
    """
    store = open_store(kind, batch, capacity, **where)
    layers = []
    for name in spec.order:
        layer = spec.layers[name]
        own = [mixer for mixer in branches(layer.mixer) if not mixer.shares_kv]  # the others read an earlier cache
        layers.append({mixer.module_name: build_state(mixer, store, spec.hidden_size) for mixer in own})
        if layer.cross_attention is not None:
            layers[-1]["cross_attention"] = CrossState()
    return Cache(layers, store)
