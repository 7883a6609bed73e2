"""Mixers: attention in its kinds, and state-space and linear mixers.

Names are Hugging Face's. Every width is explicit. None is derived from `hidden_size`, because real models break every
such rule (Gemma's heads, Mistral Nemo's, T5-11B's).

A kind of mixer is one class, registered here in `SingleMixer`. mypy then asks for its ops
(llmbench/sizing/lower/mixers.py), its module and its cache (llmbench/model/mixers.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from llmbench.spec.base import Fault, Kind
from llmbench.spec.faults import positive
from llmbench.spec.mixer.attention import Attention, DisentangledScores, QKNorm, Temperature
from llmbench.spec.mixer.cache_row import CacheRow, FixedState
from llmbench.spec.mixer.compressed import CompressedAttention
from llmbench.spec.mixer.kind import AttentionKind, Indexer, MixerKind, RecurrentKind
from llmbench.spec.mixer.latent import LatentAttention
from llmbench.spec.mixer.recurrent import (
    RGLRU,
    RWKV,
    GatedDeltaNet,
    KimiDelta,
    LightningAttention,
    Mamba,
    Mamba2,
    ShortConv,
)

__all__ = [
    "RGLRU",
    "RWKV",
    "Attention",
    "AttentionKind",
    "CacheRow",
    "CompressedAttention",
    "DisentangledScores",
    "FixedState",
    "GatedDeltaNet",
    "Indexer",
    "KimiDelta",
    "LatentAttention",
    "LightningAttention",
    "Mamba",
    "Mamba2",
    "Mixer",
    "MixerKind",
    "Parallel",
    "QKNorm",
    "Recurrent",
    "RecurrentKind",
    "ShortConv",
    "SingleMixer",
    "Temperature",
    "branches",
    "scales",
]

Recurrent = Mamba | Mamba2 | GatedDeltaNet | KimiDelta | LightningAttention | RGLRU | ShortConv | RWKV
SingleMixer = Attention | LatentAttention | CompressedAttention | Recurrent


class Parallel(Kind, frozen=True, tag="parallel"):
    """Several mixers on the same input, whose outputs are added (Falcon-H1: attention beside Mamba-2).

    input_scales, output_scales: one factor per branch on its input and on its output; empty: none.
    """

    branches: tuple[SingleMixer, ...]
    input_scales: tuple[float, ...] = ()
    output_scales: tuple[float, ...] = ()

    @property
    def summary(self) -> str:
        """The branches, as a headline shows them."""
        return " beside ".join(branch.summary for branch in self.branches)

    def faults(self) -> Iterator[Fault]:
        if not self.branches:
            yield Fault("branches", "is empty", "a layer without a mixer leaves out the whole mixer")
        if len({type(branch) for branch in self.branches}) != len(self.branches):
            yield Fault("branches", "two are of one kind, but the kind names a branch")
        for field in ("input_scales", "output_scales"):
            factors = getattr(self, field)
            if factors and len(factors) != len(self.branches):
                yield Fault(field, f"needs one number for each of {len(self.branches)} branches, not {len(factors)}")
        yield from positive(self, "input_scales", "output_scales")


Mixer = SingleMixer | Parallel


def branches(mixer: Mixer | None) -> tuple[SingleMixer, ...]:
    """The single mixers inside `mixer`: none, itself, or its parallel branches."""
    if mixer is None:
        return ()
    return mixer.branches if isinstance(mixer, Parallel) else (mixer,)


def scales(mixer: Mixer | None) -> tuple[tuple[float, float], ...]:
    """For each of its `branches`, the factors on its input and on its output."""
    ones = (1.0,) * len(branches(mixer))
    given = (mixer.input_scales, mixer.output_scales) if isinstance(mixer, Parallel) else ((), ())
    return tuple(zip(given[0] or ones, given[1] or ones, strict=True))
