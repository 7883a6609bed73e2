"""Claims about position encodings: frequencies, slopes, and sequences longer than those in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from llmbench.spec.position import Rope, alibi_slope, rope_frequency
from llmbench.textbook.claim import Bound, Claim, Estimate, Figure, Training
from llmbench.textbook.estimates import perplexity_growth, perplexity_rise, reads

__all__ = ["CLAIMS"]

ROPE = "RoPE, arXiv 2104.09864"
ALIBI = "ALiBi, arXiv 2108.12409"
LENGTH = f"{ROPE}; {ALIBI}"
HEAD_DIM = 64
RUNS = ("length-0", "length-1", "length-2")
"""The recorded runs of `extrapolate`, with one seed each."""
TRAINED = 64
"""The length of the sequences in these trainings, in tokens."""
GROWTH = f"exp(loss − loss at {TRAINED} tokens)"
TEXTS = "the textbook states no model, no text and no length; 2, 4 and 8 times the length of the training are assumed"


def frequency(pair: int) -> float:
    """Return RoPE's frequency of a pair of dimensions of a head of 64 dims, in radians per token."""
    return float(rope_frequency(Rope().theta, pair, HEAD_DIM))


def last_slope(heads: int) -> float:
    """Return ALiBi's slope of the last of some heads."""
    return float(alibi_slope(heads - 1, heads))


def largest_shift(distance: int) -> float:
    """Return how much the rotated score of a query and a key at this distance changes with their position, at most.

    The query and the key are random vectors of 64 elements. The pair is moved by up to 1,000 tokens.
    """
    random = Random(0)
    q, k = ([random.gauss(0, 1) for _ in range(HEAD_DIM)] for _ in range(2))

    def rotated(vector: list[float], position: int) -> list[float]:
        half = HEAD_DIM // 2
        angles = [position * frequency(index) for index in range(half)]
        first = [vector[i] * math.cos(a) - vector[i + half] * math.sin(a) for i, a in enumerate(angles)]
        second = [vector[i] * math.sin(a) + vector[i + half] * math.cos(a) for i, a in enumerate(angles)]
        return first + second

    def score(position: int) -> float:
        pairs = zip(rotated(q, position), rotated(k, position - distance), strict=True)
        return sum(a * b for a, b in pairs)

    scores = [score(distance + shift) for shift in (0, 1, 10, 100, 1000)]
    return max(scores) - min(scores)


def longer(formula: str, value: Callable[[Sequence[str], str, int], Estimate], method: str) -> tuple[Training, ...]:
    """Return a figure of all seeds at 2, 4 and 8 times the length of the training."""
    lengths = [factor * TRAINED for factor in (2, 4, 8)]
    return tuple(
        Training(formula, RUNS, partial(value, RUNS, method, length), f"{length} tokens") for length in lengths
    )


def grown(kind: str, short: float, long: float, bound: Bound, trainings: tuple[Training, ...], why: str) -> Claim:
    """Return the claim that the perplexity grows from `short` to `long` at longer texts."""
    return Claim(
        name=f"{kind} perplexity",
        says=f"{kind}: the perplexity grows by a factor of {long / short:.2f} ({short} to {long}) at longer texts",
        claimed=long / short,
        at=TEXTS,
        source=LENGTH,
        bound=bound,
        trainings=trainings,
        why=why,
    )


CLAIMS = (
    *(
        Claim(
            name=f"RoPE θ{index}",
            says=f"RoPE's frequency θ{index} of a head of 64 dims is {claimed}",
            claimed=claimed,
            unit="number",
            at="base 10,000; θ0 = 1",
            source=ROPE,
            figures=(Figure(f"10,000^(−2·{index}/64)", partial(frequency, index)),),
            why=why,
            command="llmbench worked rope",
        )
        for index, claimed, why in (
            (1, 0.891, "The printed numbers do not follow from the printed formula."),
            (2, 0.794, "The printed numbers are powers of the wrong θ1."),
            (31, 0.001, "The slowest pair turns much more slowly, so it can tell positions apart over long texts."),
        )
    ),
    Claim(
        name="RoPE distance",
        says="a score of rotated queries and keys depends only on their distance",
        claimed=1e-9,
        unit="number",
        bound="at most",
        at="the largest change of a score, if query and key move by 1 to 1,000 tokens",
        source=ROPE,
        figures=(Figure("max − min of R(m)q · R(m−5)k over m", lambda: largest_shift(5)),),
        why="Two rotations by m·θ and n·θ leave an angle of (m − n)·θ. Only rounding remains.",
        command="llmbench worked rope",
    ),
    Claim(
        name="ALiBi slopes",
        says="ALiBi's slopes are 2^(−8/n), 2^(−16/n), … so that the last slope is 2^(−8) = 0.00391",
        claimed=2**-8,
        unit="number",
        at="the slope of the last of n heads",
        source=ALIBI,
        figures=(
            Figure("2^(−8·8/8)", partial(last_slope, 8), "8 heads"),
            Figure("every second slope of 16 heads", partial(last_slope, 12), "12 heads"),
            Figure("2^(−8·16/16)", partial(last_slope, 16), "16 heads"),
        ),
        why="The rule needs a power of two. With 12 heads, the first 8 have the slopes of 8 heads, and the last 4 take"
        " every second slope of 16 heads.",
        command="llmbench worked alibi",
    ),
    *(
        Claim(
            name=f"{kind} length",
            says=f"a model with {kind} positions can{'not' * (not can)} read sequences longer than those in training",
            claimed=float(can),
            at="twice the length",
            source=LENGTH,
            unit="yes",
            bound="exact",
            trainings=(Training("whether the model runs", RUNS[:1], partial(reads, RUNS[0], method, 2 * TRAINED)),),
            why="A table of learned positions has no rows for later positions."
            if not can
            else "The encoding is a formula, so it exists for every position. Whether the model still predicts well is"
            " another question.",
        )
        for kind, method, can in (("learned", "learned", False), ("RoPE", "rope", True), ("ALiBi", "alibi", True))
    ),
    grown(
        "learned",
        15.2,
        89.2,
        "near",
        (
            Training(
                "the table has no row for a later position",
                RUNS[:1],
                partial(perplexity_growth, RUNS[:1], "learned", 2 * TRAINED),
                "the model refuses longer texts",
            ),
        ),
        "The textbook also says that such a model cannot read longer texts, and both cannot be true. A longer table"
        " would have rows that were never trained.",
    ),
    grown(
        "RoPE",
        14.8,
        35.7,
        "between",
        longer(GROWTH, perplexity_growth, "rope"),
        "The perplexity grows with each doubling of the length, so the figure depends on the length.",
    ),
    grown(
        "ALiBi",
        14.9,
        19.4,
        "between",
        longer(GROWTH, perplexity_growth, "alibi"),
        "Far tokens get a large negative bias. So a longer text changes almost nothing, and does not help.",
    ),
    *(
        Claim(
            name=f"{kind} extension",
            says=f"{kind} raises the perplexity past the training length by {claimed:.0%}",
            claimed=claimed,
            unit="change",
            at=f"without further training; {TEXTS}",
            source=source,
            bound="between",
            trainings=longer(f"{GROWTH} − 1", perplexity_rise, method),
            why=why,
        )
        for kind, method, claimed, source, why in (
            (
                "interpolation",
                "interpolation",
                1.50,
                "position interpolation, arXiv 2306.15595",
                "The model never saw fractions of a position. The paper trains it again for some steps.",
            ),
            (
                "NTK-aware scaling",
                "ntk",
                0.20,
                "YaRN, arXiv 2309.00071",
                "A larger base helps up to some times the length. The figure depends on this factor.",
            ),
            (
                "YaRN",
                "yarn",
                0.03,
                "YaRN, arXiv 2309.00071",
                "YaRN is the best of the three at 8 times the length. Its paper trains the model again for some steps.",
            ),
        )
    ),
)
"""All claims of this topic."""
