"""How fast the threads of a call meet: what calls of several threads pay beside their work, and what changes with the
cores that the system, or its host, puts them on. Cores that share no cache meet several times as slowly."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["meeting"]

CALLS = 16
SIDE = 64
"""Rows and columns of a product that goes by in some microseconds, and that BLAS still splits."""


def meeting(threads: int | None) -> Callable[[], float] | None:
    """A function that gives the seconds of a meeting: of a row for each thread, normalised in a region of torch's own,
    and of a small product in one of BLAS. None where there is one thread, or no CPU's."""
    if threads is None or threads < 2:
        return None
    rows, square = torch.ones(threads, 1), torch.ones(SIDE, SIDE)

    def meet() -> None:
        F.layer_norm(rows, (1,))
        square @ square

    def seconds() -> float:
        with torch.no_grad():
            meet()  # threads that sleep by now are woken
            start = time.perf_counter()
            for _ in range(CALLS):
                meet()
            return (time.perf_counter() - start) / CALLS

    return seconds
