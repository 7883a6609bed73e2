"""Mixers: all kinds of attention, and all recurrent mixers (state-space models, linear attention, convolutions).

Fields have the names of Hugging Face. A spec states every width. No width is derived from `hidden_size`, because some
real models break each such rule (the heads of Gemma, Mistral Nemo and T5-11B).

A kind of mixer is one class, listed here in `SingleMixer`. mypy then reports the places that need a case for it: its
ops (llmbench/sizing/lower/mixers.py), its module and its cache (llmbench/model/mixers.py).
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
    """Several mixers that read the same input. Their outputs are added (Falcon-H1: attention and Mamba-2).

    - branches: the mixers. Their kinds must differ.
    - input_scales: factor on the input of each branch. Empty: no factors.
    - output_scales: factor on the output of each branch. Empty: no factors.
    """

    branches: tuple[SingleMixer, ...]
    input_scales: tuple[float, ...] = ()
    output_scales: tuple[float, ...] = ()

    @property
    def summary(self) -> str:
        """Text of all branches for the headline of a table."""
        return " beside ".join(branch.summary for branch in self.branches)

    def faults(self) -> Iterator[Fault]:
        if not self.branches:
            yield Fault("branches", "is empty", "leave out the mixer of the layer if it has none")
        if len({type(branch) for branch in self.branches}) != len(self.branches):
            yield Fault("branches", "has two mixers of one kind, but their modules and ops would have the same name")
        for field in ("input_scales", "output_scales"):
            factors = getattr(self, field)
            if factors and len(factors) != len(self.branches):
                yield Fault(field, f"needs one number per branch ({len(self.branches)}), but has {len(factors)}")
        yield from positive(self, "input_scales", "output_scales")


Mixer = SingleMixer | Parallel


def branches(mixer: Mixer | None) -> tuple[SingleMixer, ...]:
    """Return the single mixers in `mixer`: its branches if it is parallel, itself if not, nothing for None."""
    if mixer is None:
        return ()
    return mixer.branches if isinstance(mixer, Parallel) else (mixer,)


def scales(mixer: Mixer | None) -> tuple[tuple[float, float], ...]:
    """Return, for each of the `branches` of a mixer, the factors on its input and on its output."""
    ones = (1.0,) * len(branches(mixer))
    given = (mixer.input_scales, mixer.output_scales) if isinstance(mixer, Parallel) else ((), ())
    return tuple(zip(given[0] or ones, given[1] or ones, strict=True))
