"""Position encodings, which tell a model the order of its tokens."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, final

from llmbench.spec.base import Count, Fault, Kind, Part, Size
from llmbench.spec.faults import not_negative, positive


class PositionKind(Kind, frozen=True):
    """The base class of all position encodings. It declares the properties that other files use."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """A short text for tables: `RoPE (θ 10000)`, `learned (1024)`, `ALiBi`."""

    @property
    @abstractmethod
    def acts_on(self) -> Literal["embedding", "queries and keys", "scores", "nothing"]:
        """The tensor that the position encoding changes.

        A mixer must support an encoding that changes queries and keys, or scores.
        """

    @property
    @abstractmethod
    def position_limit(self) -> int | None:
        """The longest sequence in tokens for which the encoding has positions. None: the length is not limited."""


class RopeScaling(Part, frozen=True):
    """A change of RoPE's frequencies, so that a model can read longer sequences than in training.

    The fields below have the names and meanings of Hugging Face. The sizing commands ignore the scaling, because it
    changes no size. The PyTorch model applies it.

    - kind: the scaling method. "linear" is position interpolation (arXiv 2306.15595). "dynamic" is NTK-aware scaling,
      which increases the base with the sequence length. "yarn" is YaRN (arXiv 2309.00071). "llama3" is from the Llama
      3.1 report. "longrope" is LongRoPE (arXiv 2402.13753). "proportional" rotates only a part of the frequencies
      (Gemma 4).
    - factor: new sequence length divided by the original sequence length.
    - original_max_position_embeddings: longest sequence of the training, in tokens.
    - low_freq_factor, high_freq_factor: limits of the frequency range in which "llama3" interpolates.
    - beta_fast, beta_slow: limits of the range in which "yarn" interpolates, as rotations per original sequence.
    - mscale, mscale_all_dim, attention_factor: parameters of the factor on queries and keys ("yarn", "longrope").
    - truncate: whether the limits of "yarn" are rounded to whole dimensions.
    - short_factor, long_factor: one factor per pair of dimensions, for short and for long sequences ("longrope").
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

    def temperature(self, mscale: float) -> float:
        """Return YaRN's temperature: 0.1·mscale·ln(factor) + 1. It is 1 if the factor does not exceed 1."""
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0

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


SCALING_FIELDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "dynamic": ("original_max_position_embeddings",),
    "yarn": (
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "attention_factor",
        "truncate",
    ),
    "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "longrope": ("original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"),
    "proportional": (),
}
"""The fields of RopeScaling that each kind of scaling uses, in addition to `factor`."""


@final
class Rope(PositionKind, frozen=True, tag="rope"):
    """Rotary position embedding (RoPE, arXiv 2104.09864), which rotates pairs of dimensions of queries and keys.

    - theta: base of the frequencies.
    - rotary_dim: number of rotated dimensions per head. None: the whole head is rotated.
    - interleaved: whether a rotated pair consists of two neighbouring dimensions (GPT-J). If false, the pair has one
      dimension from each half of the head (GPT-NeoX).
    - scaling: change of the frequencies for long sequences.
    - table_rows: number of rows of a stored table, which has the sines and cosines of one position in each row
      (RoFormer). None: sines and cosines are computed.
    """

    theta: float = 10000.0
    rotary_dim: Size | None = None
    interleaved: bool = False
    scaling: RopeScaling | None = None
    table_rows: Size | None = None

    acts_on = "queries and keys"

    @property
    def position_limit(self) -> int | None:
        return self.table_rows

    @property
    def summary(self) -> str:
        details = [f"θ {self.theta:g}".replace("e+0", "e")]  # 1e6, as configs write it
        if self.rotary_dim is not None:
            details.append(f"{self.rotary_dim} dims")
        if self.scaling is not None:
            details.append(f"{self.scaling.kind} ×{self.scaling.factor:g}")
        return f"RoPE ({', '.join(details)})"

    def faults(self) -> Iterator[Fault]:
        if not self.theta > 1:
            yield Fault(
                "theta", f"{self.theta} is not above 1, so the frequencies would not decrease", "10000 is usual"
            )
        if self.rotary_dim is not None and self.rotary_dim % 2:
            yield Fault(
                "rotary_dim", f"{self.rotary_dim} is odd, but dimensions are rotated in pairs", "choose an even number"
            )


def rope_frequency(theta: float, pair: Any, dims: int) -> Any:
    """Return RoPE's frequency of a pair of dimensions, counted from 0: 1 / theta^(2·pair / dims), in radians per token.

    - pair: a number, or a tensor of numbers, which gives a tensor of frequencies in its format.
    - dims: the number of dimensions over which the frequencies are spaced.
    """
    return 1.0 / theta ** (2 * pair / dims)


@final
class LearnedPositions(PositionKind, frozen=True, tag="learned"):
    """A trained table with one vector per position. The vector of a position is added to the embedding.

    - num_positions: number of rows in the table.
    - offset: row of the first position. Tokens do not use the rows before it (OPT: 2).
    - uncounted: id of a token that has no position (RoBERTa's padding token). The token uses the row before the first
      position.
    """

    num_positions: Size
    offset: Count = 0
    uncounted: Count | None = None

    acts_on = "embedding"

    @property
    def position_limit(self) -> int:
        return self.num_positions - self.offset

    @property
    def summary(self) -> str:
        return f"learned ({self.position_limit})"

    def faults(self) -> Iterator[Fault]:
        if self.num_positions <= self.offset:
            yield Fault("offset", f"{self.offset} leaves no position in a table of {self.num_positions} rows")
        if self.uncounted is not None and self.offset == 0:
            yield Fault(
                "uncounted", "needs a row before the first position, but offset is 0", "set offset to 1 or more"
            )


@final
class SinusoidalPositions(PositionKind, frozen=True, tag="sinusoidal"):
    """Fixed sines and cosines that are added to the embedding ("Attention is all you need"). They have no parameters.

    - halves: whether all sines stand before all cosines (CTRL). If false, sines and cosines alternate.
    - to_end: whether the slowest wave has a wavelength of exactly 2π · 10000 positions (fairseq, XGLM). If false, the
      geometric series of wavelengths ends one term before this value.
    - offset: position number of the first token.
    - uncounted: id of a token that has no position (the padding token of M2M-100). The token gets no sines and cosines.
    """

    halves: bool = False
    to_end: bool = False
    offset: Count = 0
    uncounted: Count | None = None

    acts_on = "embedding"
    position_limit = None
    summary = "sinusoidal"


@final
class Alibi(PositionKind, frozen=True, tag="alibi"):
    """ALiBi (arXiv 2108.12409): a bias on the scores that grows linearly with the distance between query and key.

    Each head has its own fixed slope. ALiBi has no parameters.

    - scaled: whether the bias is added before the scores are multiplied with their scale factor (Falcon). The bias is
      then scaled too.
    - rounded: whether the bias is slope × key position instead of slope × distance, with both factors rounded to bf16
      (Falcon). The softmax gives the same result in exact arithmetic. The rounding makes far positions coarse.
    """

    scaled: bool = False
    rounded: bool = False

    acts_on = "scores"
    position_limit = None
    summary = "ALiBi"


def alibi_slope(head: Any, heads: int) -> Any:
    """Return ALiBi's slope of a head, counted from 0 (arXiv 2108.12409, section 3 and appendix).

    Let n be the largest power of two up to `heads`. The slopes are 2^(−8·i/n), first for i = 1, 2, …, n. The other
    heads have every second slope of 2n heads: i = ½, 1½, 2½, …

    - head: a number, or a tensor of numbers, which gives a tensor of slopes in its format.
    """
    below = 2 ** int(math.log2(heads))
    # The condition is a factor, because a factor serves a number and a tensor.
    return 2.0 ** (-8 / below * (head + 1 - (below + 0.5) * (head >= below)))


@final
class RelativeBias(PositionKind, frozen=True, tag="relative_bias"):
    """T5's trained bias on the scores, with one value per head and bucket of distances.

    - num_buckets: number of buckets.
    - max_distance: a distance in tokens. All distances of at least max_distance share the last bucket.
    - per_layer: whether each layer has its own table (UMT5). If false, all layers of a stack use one table, which the
      first layer stores (T5).
    """

    num_buckets: Size = 32
    max_distance: Size = 128
    per_layer: bool = False

    acts_on = "scores"
    position_limit = None

    @property
    def summary(self) -> str:
        return f"relative bias ({self.num_buckets} buckets)"


@final
class NoPositions(PositionKind, frozen=True, tag="none"):
    """No position encoding: in NoPE layers, and with recurrent mixers, which read the tokens in order."""

    acts_on = "nothing"
    position_limit = None
    summary = "none"


Positions = Rope | LearnedPositions | SinusoidalPositions | Alibi | RelativeBias | NoPositions
