"""One case per kind of mixer, which adds the ops of the mixer. mypy reports an error here if a kind has no case."""

from __future__ import annotations

from typing import assert_never

from llmbench.sizing.lower.attention import attention
from llmbench.sizing.lower.builder import Builder
from llmbench.spec.mixer import Attention, CompressedAttention, LatentAttention, RecurrentKind, SingleMixer


def lower_mixer(b: Builder, mixer: SingleMixer) -> None:
    """Add the ops of a mixer.

    The code for rare mixers is imported only if a model has such a mixer. This keeps the start time short for other
    models.
    """
    match mixer:
        case Attention():
            attention(b, mixer)
        case LatentAttention():
            from llmbench.sizing.lower.latent import latent

            latent(b, mixer)
        case CompressedAttention():
            from llmbench.sizing.lower.compressed import compressed

            compressed(b, mixer)
        case RecurrentKind():
            from llmbench.sizing.lower.recurrent import recurrent

            recurrent(b, mixer)
        case _:
            assert_never(mixer)
