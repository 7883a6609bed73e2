"""A replacement for torch.cuda that reads a wall clock, so that the GPU timing code runs on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

__all__ = ["WallClockCuda"]


class _Event:
    """A CUDA event that is complete as soon as it is recorded."""

    def __init__(self, *, enable_timing: bool) -> None:
        self.at = 0.0 if enable_timing else float("nan")

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Do nothing: no work is pending."""

    def elapsed_time(self, end: _Event) -> float:
        """Return the milliseconds until `end`."""
        return (end.at - self.at) * 1e3


class _Graph:
    """An empty CUDA graph: the call runs when it is captured, and a replay does nothing."""

    def replay(self) -> None:
        """Run nothing."""


class WallClockCuda:
    """The part of torch.cuda that `measure.clock.CudaClock` uses."""

    Event = _Event
    CUDAGraph = _Graph

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        """Run the block instead of capturing it."""
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """Do nothing: there are no streams."""
        yield

    def current_stream(self) -> None:
        """Return None: there are no streams."""

    def graph_pool_handle(self) -> None:
        """Return None: graphs have no memory pool."""

    def current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_sync_debug_mode(self) -> int:
        """Return 0: in this mode, ops that wait for the GPU raise no error."""
        return 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """Do nothing: no op waits for a GPU."""

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Do nothing: there is only one device."""
        yield

    def synchronize(self, device: Any = None) -> None:
        """Do nothing: no work is pending."""

    def get_device_properties(self, device: Any) -> SimpleNamespace:
        """Return the properties that the clock reads."""
        return SimpleNamespace(L2_cache_size=2**12)
