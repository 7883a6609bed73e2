"""Position encodings: how a model knows the order of its tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, final

from llmbench.spec.base import Count, Fault, Kind, Part, Size
from llmbench.spec.faults import not_negative, positive


class PositionKind(Kind, frozen=True):
    """A position encoding, with what other code needs to know about it."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """The encoding in the field's words: `RoPE (θ 10000)`, `learned (1024)`, `ALiBi`."""

    @property
    @abstractmethod
    def acts_on(self) -> Literal["embedding", "queries and keys", "scores", "nothing"]:
        """What the encoding changes. A mixer has to know those that act on queries and keys or on scores."""


class RopeScaling(Part, frozen=True):
    """A change of RoPE's frequencies that lets a model read further than it was trained.

    kind: "linear" (position interpolation, arXiv 2306.15595), "dynamic" (NTK-aware, base grows with length),
    "yarn" (arXiv 2309.00071), "llama3" (the Llama 3.1 report), "longrope" (arXiv 2402.13753),
    "proportional" (Gemma 4: only a part of the frequencies turns).
    No figure of the sizing commands depends on it. The real model does.
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


@final
class Rope(PositionKind, frozen=True, tag="rope"):
    """Rotary embedding (arXiv 2104.09864).

    rotary_dim: dimensions that turn; None turns the whole head. interleaved: a pair is two neighbours (GPT-J), not one
    dimension of each half (GPT-NeoX).
    """

    theta: float = 10000.0
    rotary_dim: Size | None = None
    interleaved: bool = False
    scaling: RopeScaling | None = None

    acts_on = "queries and keys"

    @property
    def summary(self) -> str:
        details = [f"θ {self.theta:g}"]
        if self.rotary_dim is not None:
            details.append(f"{self.rotary_dim} dims")
        if self.scaling is not None:
            details.append(f"{self.scaling.kind} ×{self.scaling.factor:g}")
        return f"RoPE ({', '.join(details)})"

    def faults(self) -> Iterator[Fault]:
        if not self.theta > 1:
            yield Fault("theta", f"{self.theta} is not above 1: frequencies are its negative powers", "10000 is usual")
        if self.rotary_dim is not None and self.rotary_dim % 2:
            yield Fault(
                "rotary_dim", f"{self.rotary_dim} is odd, but dimensions turn in pairs", "choose an even number"
            )


@final
class LearnedPositions(PositionKind, frozen=True, tag="learned"):
    """A trained table of `num_positions` rows. No token uses the first `offset` rows (OPT: 2).

    uncounted: the number of a token that takes no position; its own row is the one before the first (RoBERTa's
    padding).
    """

    num_positions: Size
    offset: Count = 0
    uncounted: Count | None = None

    acts_on = "embedding"

    @property
    def summary(self) -> str:
        return f"learned ({self.num_positions - self.offset})"

    def faults(self) -> Iterator[Fault]:
        if self.num_positions <= self.offset:
            yield Fault("offset", f"{self.offset} leaves no position in a table of {self.num_positions}")
        if self.uncounted is not None and self.offset == 0:
            yield Fault("uncounted", "takes the row before the first, and offset 0 leaves none", "offset = 1 or more")


@final
class SinusoidalPositions(PositionKind, frozen=True, tag="sinusoidal"):
    """Fixed sines and cosines added to the embedding ("Attention is all you need"); no parameters.

    halves: all sines stand before all cosines (CTRL), instead of in turn. to_end: the slowest pair has a wavelength of
    exactly 2π · 10000 (fairseq's, XGLM), instead of one step less. offset: the position of the first token.
    """

    halves: bool = False
    to_end: bool = False
    offset: Count = 0

    acts_on = "embedding"
    summary = "sinusoidal"


@final
class Alibi(PositionKind, frozen=True, tag="alibi"):
    """A bias per head that grows linearly with distance (arXiv 2108.12409); no parameters.

    scaled: the bias is added before the scores are scaled, and so is scaled with them (Falcon). rounded: the bias is
    the slope times the key's position (softmax gives the same result as with the distance), each rounded to bf16
    (Falcon), which makes far positions coarse.
    """

    scaled: bool = False
    rounded: bool = False

    acts_on = "scores"
    summary = "ALiBi"


@final
class RelativeBias(PositionKind, frozen=True, tag="relative_bias"):
    """T5's learned bias per head and bucket of distances.

    per_layer: each layer has its own table (UMT5). Without it, a stack has one table, in its first layer (T5).
    """

    num_buckets: Size = 32
    max_distance: Size = 128
    per_layer: bool = False

    acts_on = "scores"

    @property
    def summary(self) -> str:
        return f"relative bias ({self.num_buckets} buckets)"


@final
class NoPositions(PositionKind, frozen=True, tag="none"):
    """No encoding: NoPE layers, and state-space mixers, which know the order by recurrence."""

    acts_on = "nothing"
    summary = "none"


Positions = Rope | LearnedPositions | SinusoidalPositions | Alibi | RelativeBias | NoPositions
