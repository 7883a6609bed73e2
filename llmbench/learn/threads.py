"""Choose the number of CPU threads of a training run, by timing.

A small model can train several times as slowly with all threads as with one, because the threads wait for each other,
and for cores that other processes use. The number also decides the order of sums, and therefore the last bits of the
weights. A run keeps its number, also when it is resumed.
"""

from __future__ import annotations

import os

import torch

from llmbench.learn.data import Corpus
from llmbench.learn.settings import Settings
from llmbench.measure.clock import CpuClock
from llmbench.model.decoder import Decoder

__all__ = ["choose_threads"]

WORTH = 1.5
"""How many times as fast all threads must be. With one thread, results are more likely to be equal on two machines."""
ROUNDS = 3


def choose_threads(model: Decoder, data: Corpus, settings: Settings) -> int:
    """Return one, or the present number of threads if it makes a step at least `WORTH` times as fast.

    If the environment variable OMP_NUM_THREADS is set, its number is kept. The weights, the gradients and the random
    generators stay as they are.
    """
    most = torch.get_num_threads()
    if most == 1 or "OMP_NUM_THREADS" in os.environ:
        return most
    tokens, targets = data.batch(1, seed=settings.seed, sequences=settings.batch, seq_len=settings.seq_len)

    def step() -> None:
        torch.autograd.grad(model(tokens, targets=targets), list(model.parameters()), allow_unused=True)

    times: dict[int, list[float]] = {1: [], most: []}
    with torch.random.fork_rng(devices=[]):
        for round in range(ROUNDS + 1):
            for threads, measured in times.items():
                torch.set_num_threads(threads)
                took = CpuClock().once(step)
                if round:  # the first round warms up
                    measured.append(took)
    torch.set_num_threads(most)
    return most if WORTH * min(times[most]) <= min(times[1]) else 1
