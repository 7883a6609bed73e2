"""Train a tiny model of every design that `llmbench ablate` can make, and check that its loss falls.

Exit code 1 if a design lowers its validation loss by less than `MARGIN`, or does not fall below guessing by frequency.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple, get_args, get_type_hints

import torch

from llmbench.learn.data import Corpus, corpus_of
from llmbench.learn.experiments.designs import Design, Size
from llmbench.learn.loop import train
from llmbench.learn.markov import markov_source
from llmbench.learn.settings import Settings
from llmbench.model.create import build

SETTINGS = Settings(steps=200, batch=8, seq_len=16, lr=1e-2, warmup=20, validate_every=200)
SIZE = Size(hidden=16, layers=1, heads=4, head_dim=4, vocab=8, context=16)
MARGIN = 0.1
"""Nats by which the validation loss must fall in 200 steps."""


class Result(NamedTuple):
    """The validation losses of a design in nats: before the training, and after it."""

    design: Design
    before: float
    after: float

    def good(self, unigram: float) -> bool:
        """Return whether the model has learned. `unigram`: the loss of guessing by frequency, in nats."""
        return self.before - self.after >= MARGIN and self.after < unigram


def text() -> Corpus:
    """A synthetic text with eight symbols."""
    source = markov_source("8,2,0")
    return corpus_of("markov:8,2,0", source.text(20_000), vocab_size=source.symbols, floor=source.entropy_rate())


def every_design() -> Iterator[Design]:
    """Yield every combination of the choices, with and without biases. Without norms, there is one placement."""
    choices = [get_args(kind) for kind in get_type_hints(Design).values()]
    for each in itertools.product(*choices):
        design = Design(*each)
        if design.biases != "feed-forward" and (design.norm != "none" or design.placement == "pre"):
            yield design


def pairs(designs: Iterable[Design]) -> list[Design]:
    """Return some of the designs, which together have each pair of choices of two parts that occurs in the designs."""

    def pairs_of(design: Design) -> set[tuple[tuple[str, str], ...]]:
        return set(itertools.combinations(design._asdict().items(), 2))

    left = {design: pairs_of(design) for design in designs}
    missing = set().union(*left.values())
    chosen = []
    while missing:
        best = max(left, key=lambda design: len(left[design] & missing))
        missing -= left.pop(best)
        chosen.append(best)
    return chosen


def result_of(design: Design, data: Corpus) -> Result:
    """Train a tiny model of the design."""
    first, last = train(build(design.spec(SIZE)), data, SETTINGS).validations
    return Result(design, first.validation_loss, last.validation_loss)


def main() -> int:
    torch.set_num_threads(1)
    data = text()
    results = [result_of(design, data) for design in every_design()]
    bad = [result for result in results if not result.good(data.unigram)]
    for result in bad:
        print(f"{result.before:.3f} -> {result.after:.3f}: {', '.join(result.design)}")
    least = min(results, key=lambda result: result.before - result.after)
    print(f"{len(results)} designs, {len(bad)} of them learn too little")
    print(f"the loss falls by at least {least.before - least.after:.3f} nats: {', '.join(least.design)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
