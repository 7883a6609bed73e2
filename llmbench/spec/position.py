"""How a model knows where a token stands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from llmbench.spec.base import Count, Fault, Kind, Part, Size
from llmbench.spec.faults import not_negative, positive


class RopeScaling(Part, frozen=True):
    """A change of RoPE's frequencies so that a model reads further than it was trained.

    `kind`: "linear" (position interpolation, arXiv 2306.15595), "dynamic" (NTK-aware, base grows with length),
    "yarn" (arXiv 2309.00071), "llama3" (the Llama 3.1 report), "longrope" (arXiv 2402.13753),
    "proportional" (Gemma 4: only a part of the frequencies turns).
    No figure of the sizing commands depends on it; the real model does.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope", "proportional"]
    factor: float = 1.0
    original_max_position_embeddings: Size | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    attention_factor: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
        yield from positive(self, "attention_factor", "short_factor", "long_factor")
        yield from not_negative(self, "mscale", "mscale_all_dim")
        low, high = self.low_freq_factor or 1.0, self.high_freq_factor or 4.0
        if self.kind == "llama3" and high < low:
            yield Fault("high_freq_factor", f"{high} is below low_freq_factor {low}")
        fast, slow = self.beta_fast or 32.0, self.beta_slow or 1.0
        if self.kind == "yarn" and fast < slow:
            yield Fault("beta_fast", f"{fast} is below beta_slow {slow}")


class Rope(Kind, frozen=True, tag="rope"):
    """Rotary embedding (arXiv 2104.09864). `rotary_dim` None turns the whole head; `interleaved` pairs
    neighbours (GPT-J) instead of halves (GPT-NeoX)."""

    theta: float = 10000.0
    rotary_dim: Size | None = None
    interleaved: bool = False
    scaling: RopeScaling | None = None

    def faults(self) -> Iterator[Fault]:
        if not self.theta > 1:
            yield Fault("theta", f"{self.theta} is not above 1: frequencies are its negative powers", "10000 is usual")
        if self.rotary_dim is not None and self.rotary_dim % 2:
            yield Fault("rotary_dim", f"{self.rotary_dim} is odd, but dims are turned in pairs", "choose an even one")


class LearnedPositions(Kind, frozen=True, tag="learned"):
    """A trained table of `num_positions` rows, the first `offset` of which no token uses (OPT: 2).

    uncounted: a token that takes no position, and itself has the row before the first (RoBERTa's padding).
    """

    num_positions: Size
    offset: Count = 0
    uncounted: Count | None = None

    def faults(self) -> Iterator[Fault]:
        if self.num_positions <= self.offset:
            yield Fault("offset", f"{self.offset} leaves no position in a table of {self.num_positions}")
        if self.uncounted is not None and self.offset == 0:
            yield Fault("uncounted", "takes the row before the first, and offset 0 leaves none", "offset = 1 or more")


class SinusoidalPositions(Kind, frozen=True, tag="sinusoidal"):
    """Fixed sines and cosines added to the embedding ("Attention is all you need"); no parameters.

    halves: all sines and then all cosines, not in turn (CTRL). to_end: the slowest pair has a wavelength of exactly
    2π · 10000 (fairseq's, XGLM), not one step short of it. offset: the number of the first token's position.
    """

    halves: bool = False
    to_end: bool = False
    offset: Count = 0


class Alibi(Kind, frozen=True, tag="alibi"):
    """A bias per head that grows linearly with distance (arXiv 2108.12409); no parameters.

    scaled: the bias is added before scores are scaled, so that it is scaled with them (Falcon). rounded: it is slope
    times the key's position (which softmax cannot tell from the distance), each rounded to bf16 (Falcon), so that far
    positions become coarse.
    """

    scaled: bool = False
    rounded: bool = False


class RelativeBias(Kind, frozen=True, tag="relative_bias"):
    """T5's learned bias per bucket of distance and head. T5 keeps one table a stack, in its first layer;
    `per_layer` gives every layer its own (UMT5)."""

    num_buckets: Size = 32
    max_distance: Size = 128
    per_layer: bool = False


class NoPositions(Kind, frozen=True, tag="none"):
    """Nothing tells the order: NoPE layers, and state-space mixers that know it by recurrence."""


Positions = Rope | LearnedPositions | SinusoidalPositions | Alibi | RelativeBias | NoPositions
