"""Two costs of a CPU measurement that the timed call does not cause: barrier cost and run-queue delay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["barrier_timer", "run_queue_delay_s"]

CALLS = 16
SIDE = 64
"""Rows and columns of a product that takes a few microseconds and that BLAS still splits over threads."""

TASKS = "/proc/self/task"


def barrier_timer(threads: int | None) -> Callable[[], float] | None:
    """Return a function that measures the barrier cost in seconds: the time that torch's threads take to synchronise.

    Each measurement times two small parallel regions, whose work is negligible: a LayerNorm of one row per thread, in a
    region of torch, and a 64×64 product, in a region of BLAS. Every multi-threaded call pays this cost. It changes with
    the cores that the system, or its host, assigns: cores that share no cache synchronise several times as slowly.
    Return None for one thread, and on a GPU, where `threads` is None.
    """
    if threads is None or threads < 2:
        return None
    rows, square = torch.ones(threads, 1), torch.ones(SIDE, SIDE)

    def synchronise() -> None:
        F.layer_norm(rows, (1,))
        square @ square

    def seconds() -> float:
        with torch.no_grad():
            synchronise()  # wakes sleeping threads
            start = time.perf_counter()
            for _ in range(CALLS):
                synchronise()
            return (time.perf_counter() - start) / CALLS

    return seconds


def run_queue_delay_s() -> float | None:
    """Return the run-queue delay so far: the seconds that this process's threads were runnable but had no core, in
    total.

    Source: the second field of Linux's /proc/self/task/*/schedstat, in nanoseconds. None if the system does not count
    it.
    """
    total, counted = 0, False
    try:
        for task in os.listdir(TASKS):
            try:
                with open(f"{TASKS}/{task}/schedstat", "rb") as file:
                    ran, waited, _ = map(int, file.read().split())
            except (FileNotFoundError, ProcessLookupError):  # the thread ended meanwhile
                continue
            total, counted = total + waited, counted or ran > 0
    except (OSError, ValueError):
        return None
    return total * 1e-9 if counted else None
