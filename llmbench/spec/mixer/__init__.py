"""All mixers: kinds of attention, and recurrent mixers (state-space models, linear attention, convolutions).

Spec fields have the names that Hugging Face uses. A spec states every width of a mixer. llmbench does not derive
widths from `hidden_size`. A rule such as head width = hidden_size / heads is wrong for Gemma, Mistral Nemo and T5-11B.

Each kind of mixer is one class, and the union `SingleMixer` lists all of them. If a new class is in the union, mypy
reports the two files that need a case for it: llmbench/sizing/lower/mixers.py (its ops) and llmbench/model/mixers.py
(its PyTorch module and its cache).
"""

from __future__ import annotations

from collections.abc import Iterator

from llmbench.spec.base import Fault, Kind
from llmbench.spec.faults import positive
from llmbench.spec.mixer.attention import Attention, DisentangledScores, QKNorm, Temperature
from llmbench.spec.mixer.cache_row import CacheRow, FixedState
from llmbench.spec.mixer.compressed import CompressedAttention
from llmbench.spec.mixer.kind import AttentionKind, Indexer, MixerKind, RecurrentKind, ScoreSettings
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
    "ScoreSettings",
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

    - branches: the mixers. No two of them may have the same kind.
    - input_scales: one factor per branch, which multiplies the input of the branch. Empty: no factors.
    - output_scales: one factor per branch, which multiplies the output of the branch. Empty: no factors.
    """

    branches: tuple[SingleMixer, ...]
    input_scales: tuple[float, ...] = ()
    output_scales: tuple[float, ...] = ()

    @property
    def summary(self) -> str:
        """A short text about all branches for the headline of a table."""
        return " + ".join(branch.summary for branch in self.branches)

    def faults(self) -> Iterator[Fault]:
        if not self.branches:
            yield Fault("branches", "is empty", "list the mixers, or remove the mixer from the layer")
        if len({type(branch) for branch in self.branches}) != len(self.branches):
            yield Fault("branches", "has two mixers of the same kind, so their modules would have the same name")
        for field in ("input_scales", "output_scales"):
            factors = getattr(self, field)
            if factors and len(factors) != len(self.branches):
                yield Fault(field, f"needs one number per branch ({len(self.branches)}), but has {len(factors)}")
        yield from positive(self, "input_scales", "output_scales")


Mixer = SingleMixer | Parallel


def branches(mixer: Mixer | None) -> tuple[SingleMixer, ...]:
    """Return the single mixers inside `mixer`.

    They are all branches of a `Parallel` mixer, or the mixer itself, or nothing if the mixer is None.
    """
    if mixer is None:
        return ()
    return mixer.branches if isinstance(mixer, Parallel) else (mixer,)


def scales(mixer: Mixer | None) -> tuple[tuple[float, float], ...]:
    """Return the factors on the input and on the output of each mixer that `branches` returns."""
    ones = (1.0,) * len(branches(mixer))
    factors = (mixer.input_scales, mixer.output_scales) if isinstance(mixer, Parallel) else ((), ())
    return tuple(zip(factors[0] or ones, factors[1] or ones, strict=True))
