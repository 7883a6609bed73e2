"""Measure two causes of slow CPU times that are not in the timed code: barrier cost and run-queue delay."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["barrier_timer", "run_queue_delay_s"]

CALLS = 16
SIDE = 64
"""The rows and columns of a matrix product that takes a few microseconds, but that BLAS still splits over threads."""

TASKS = "/proc/self/task"


def barrier_timer(threads: int | None) -> Callable[[], float] | None:
    """Return a function that measures the barrier cost in seconds: the time that torch's threads take to synchronise.

    A measurement times two small computations: a LayerNorm of one row per thread, which torch splits over threads, and
    a 64×64 matrix product, which BLAS splits over threads. Most of their time is synchronisation. Every multi-threaded
    call has this cost. The cost depends on the cores on which the system, or the host of a virtual machine, runs the
    threads: cores that share no cache synchronise several times as slowly.

    Return None for one thread. Return None for a GPU, which has `threads` = None.
    """
    if threads is None or threads < 2:
        return None
    rows, square = torch.ones(threads, 1), torch.ones(SIDE, SIDE)

    def synchronise() -> None:
        F.layer_norm(rows, (1,))
        square @ square

    def seconds() -> float:
        with torch.no_grad():
            synchronise()  # not timed, because this run wakes sleeping threads
            start = time.perf_counter()
            for _ in range(CALLS):
                synchronise()
            return (time.perf_counter() - start) / CALLS

    return seconds


def run_queue_delay_s() -> float | None:
    """Return the run-queue delay so far: the seconds that runnable threads of this process waited for a core.

    The delays of all threads are added up. The source is the second field of Linux's /proc/self/task/*/schedstat, in
    nanoseconds. Return None if the system does not count the delay.
    """
    total, counted = 0, False
    try:
        for task in os.listdir(TASKS):
            try:
                with open(f"{TASKS}/{task}/schedstat", "rb") as file:
                    ran, waited, _ = map(int, file.read().split())
            except (FileNotFoundError, ProcessLookupError):  # the thread ended after listdir
                continue
            total, counted = total + waited, counted or ran > 0
    except (OSError, ValueError):
        return None
    return total * 1e-9 if counted else None
