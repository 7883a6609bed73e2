"""Which module mixes tokens, and which cache it keeps: one line a kind.

A mixer is called as `mixer(x, step, state, shared)` with x [B, S, D], what its layer keeps between steps (or None), and
what earlier layers of the stack hand on (T5's relative bias); it returns [B, S, D] and what it hands on.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from llmbench.errors import UnsupportedError
from llmbench.model.attention import AttentionLayer
from llmbench.model.cache import SlotCache
from llmbench.spec.mixer import Attention, SingleMixer
from llmbench.spec.model import ModelSpec


def mixer_name(mixer: SingleMixer) -> str:
    """What a mixer is called in its layer, as in the sizing table."""
    return _NAMES[type(mixer)]


_NAMES: dict[type, str] = {Attention: "attention"}


def build_mixer(spec: ModelSpec, mixer: SingleMixer, *, index: int, where: str) -> tuple[str, nn.Module]:
    """The name (as in the sizing table) and the module of a mixer in layer `index`. Raises UnsupportedError."""
    if isinstance(mixer, Attention):
        return mixer_name(mixer), AttentionLayer(
            spec, mixer, positions=spec.positions_of(mixer), owns_bias=index == 0, where=where
        )
    raise UnsupportedError(f"{spec.name}: {where} of kind {type(mixer).__name__} is sized, not built yet")


def build_state(mixer: SingleMixer, batch: int, capacity: int, **place: Any) -> Any:
    """What a mixer keeps between steps, with room for `capacity` tokens a sequence; `place` is dtype and device."""
    if isinstance(mixer, Attention):
        window = mixer.sliding_window
        ring = window is not None and window < capacity
        slots = window if ring and window is not None else capacity
        return SlotCache(batch, mixer.num_key_value_heads, slots, mixer.head_dim, mixer.value_dim, ring=ring, **place)
    raise UnsupportedError(f"a cache for {type(mixer).__name__} is not built yet")
