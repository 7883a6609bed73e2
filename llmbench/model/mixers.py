"""Which module mixes tokens, and which cache it keeps: one line a kind.

A mixer is called as `mixer(x, step, state, shared)` with x [B, S, D], what its layer keeps between steps (or None), and
what earlier layers of the stack hand on (T5's relative bias); it returns [B, S, D] and what it hands on.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from llmbench.errors import UnsupportedError
from llmbench.model.attention import AttentionLayer
from llmbench.model.cache import RowShape
from llmbench.model.cross import CrossState
from llmbench.model.latent import LatentLayer, latent_row
from llmbench.model.recurrent import NAMES, Built, new_state, recurrent_layer
from llmbench.model.state import Cache, Store, open_store
from llmbench.spec.mixer import Attention, LatentAttention, SingleMixer, branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import RelativeBias


def mixer_name(mixer: SingleMixer) -> str:
    """What a mixer is called in its layer, as in the sizing table."""
    return _NAMES[type(mixer)]


_NAMES: dict[type, str] = {Attention: "attention", LatentAttention: "attention", **NAMES}


def build_mixer(spec: ModelSpec, mixer: SingleMixer, *, index: int, where: str) -> tuple[str, nn.Module]:
    """The name (as in the sizing table) and the module of a mixer in layer `index`. Raises UnsupportedError."""
    if isinstance(mixer, Attention):
        positions = spec.positions_of(mixer)
        owns_bias = index == 0 or (isinstance(positions, RelativeBias) and positions.per_layer)
        return mixer_name(mixer), AttentionLayer(spec, mixer, positions=positions, owns_bias=owns_bias, where=where)
    if isinstance(mixer, Built):
        return mixer_name(mixer), recurrent_layer(spec, mixer, index=index)
    if isinstance(mixer, LatentAttention):
        return mixer_name(mixer), LatentLayer(spec, mixer, positions=spec.positions_of(mixer))
    raise UnsupportedError(f"{spec.name}: {where} of kind {type(mixer).__name__} is sized, not built yet")


def build_state(mixer: SingleMixer, store: Store) -> Any:
    """What a mixer keeps between steps. Raises UnsupportedError."""
    if isinstance(mixer, Attention):
        if not mixer.causal:
            raise UnsupportedError("bidirectional attention has no cache: each token sees those after it")
        shape = RowShape(mixer.num_key_value_heads, (mixer.head_dim,), (mixer.value_dim,))
        return store.rows(shape, mixer.span)
    if isinstance(mixer, Built):
        return new_state(mixer, store.batch, dtype=store.dtype, device=store.device)
    if isinstance(mixer, LatentAttention):
        return store.rows(latent_row(mixer), mixer.sliding_window)
    raise UnsupportedError(f"a cache for {type(mixer).__name__} is not built yet")


def new_cache(spec: ModelSpec, batch: int, capacity: int, *, kind: str = "rolling", **where: Any) -> Cache:
    """An empty cache of a whole model, with room for `capacity` tokens of each of `batch` sequences; `where` is dtype
    and device, and for paged kinds block_size and num_blocks."""
    store = open_store(kind, batch, capacity, **where)
    layers = []
    for name in spec.order:
        layer = spec.layers[name]
        layers.append({mixer_name(mixer): build_state(mixer, store) for mixer in branches(layer.mixer)})
        if layer.cross_attention is not None:
            layers[-1]["cross_attention"] = CrossState()
    return Cache(layers, store)
