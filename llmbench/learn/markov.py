"""A synthetic text from a Markov source. Its entropy rate is known, so it is an exact floor for the loss.

The next symbol depends on the last `order` symbols only. V symbols, k order: the source has V^k contexts.
"""

from __future__ import annotations

import random
from bisect import bisect
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from llmbench.errors import LLMBenchError
from llmbench.learn.texts import MarkovName, markov_name

__all__ = ["MarkovSource", "markov_source", "source_of"]

SPREAD = 2.0
"""The standard deviation of the logits from which the transition probabilities are computed."""
MOST_STEPS, MOST_PRODUCTS = 100_000, 2**28
"""The largest number of steps until the stationary distribution, and of products in all of them: about 5 s."""


@dataclass(frozen=True)
class MarkovSource:
    """A Markov source. `transitions` [V^k, V], fp64: the probability of each symbol after each context."""

    symbols: int
    order: int
    seed: int
    transitions: Tensor

    @cached_property
    def stationary(self) -> Tensor:
        """The share [V^k] of each context in an endless text, in fp64.

        It is the fixed point of one step of the source. Every transition is possible, so the steps converge to it.
        Raises LLMBenchError if they need too long.
        """
        contexts = len(self.transitions)
        shares = torch.full((contexts,), 1.0 / contexts, dtype=torch.float64)
        for _ in range(min(MOST_STEPS, MOST_PRODUCTS // self.transitions.numel())):
            # The oldest symbol of the context is forgotten: the joint [V, V^(k-1) · V] is summed over it.
            after = (shares[:, None] * self.transitions).reshape(self.symbols, contexts).sum(dim=0)
            if float((after - shares).abs().sum()) < 1e-14:
                return after / after.sum()
            shares = after
        raise LLMBenchError(
            f"markov:{self.symbols},{self.order},{self.seed}: its stationary distribution does not converge in time, "
            "so its entropy is unknown",
            hint="use a smaller order or another seed",
        )

    def entropy_rate(self) -> float:
        """Return the entropy of the next symbol, given all earlier symbols, in nats.

        It is Σ_c π(c) · H(next symbol | c) over the contexts c, where π is the stationary distribution (Cover and
        Thomas, Elements of Information Theory, theorem 4.2.4). No model has a lower expected loss.
        """
        entropies = torch.special.entr(self.transitions).sum(dim=1)
        return float(self.stationary @ entropies)

    def text(self, length: int) -> bytes:
        """Return `length` symbols, one per byte. They begin after a random context of the stationary distribution."""
        generator = random.Random(f"{self.seed} text")
        sums = [list(accumulate(row)) for row in self.transitions.tolist()]
        starts = list(accumulate(self.stationary.tolist()))
        context, contexts, last = bisect(starts, generator.random() * starts[-1]), len(sums), self.symbols - 1
        context = min(context, contexts - 1)
        symbols = bytearray()
        for _ in range(length):
            symbol = min(bisect(sums[context], generator.random()), last)
            symbols.append(symbol)
            context = (context * self.symbols + symbol) % contexts
        return bytes(symbols)


def markov_source(text: str) -> MarkovSource:
    """Return the source that `V,order,seed` describes, for example `16,2,0`. Raises the errors of `markov_name`."""
    return source_of(markov_name(text))


def source_of(name: MarkovName) -> MarkovSource:
    """Return the source with these numbers."""
    symbols, order, seed = name
    generator = random.Random(f"{seed} transitions")
    contexts = symbols**order
    logits = torch.tensor([generator.gauss(0.0, SPREAD) for _ in range(contexts * symbols)], dtype=torch.float64)
    return MarkovSource(symbols, order, seed, logits.reshape(contexts, symbols).softmax(dim=1))
