"""What torch.cuda offers a clock, made of a wall clock: so that a GPU's way of timing runs where there is no GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

__all__ = ["WallClockCuda"]


class _Event:
    """An event happens when it is recorded."""

    def __init__(self, *, enable_timing: bool) -> None:
        self.at = 0.0 if enable_timing else float("nan")

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing is under way."""

    def elapsed_time(self, end: _Event) -> float:
        """Milliseconds."""
        return (end.at - self.at) * 1e3


class _Graph:
    """Holds nothing: what is captured has run already, and a replay takes no time worth measuring."""

    def replay(self) -> None:
        """Run nothing."""


class WallClockCuda:
    """The part of torch.cuda that `measure.clock.CudaClock` uses."""

    Event = _Event
    CUDAGraph = _Graph

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        """Capture."""
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """Make it the current one."""
        yield

    def current_stream(self) -> None:
        """There is none."""

    def graph_pool_handle(self) -> None:
        """Memory of a graph's own."""

    def current_device(self) -> int:
        """There is one."""
        return 0

    def get_sync_debug_mode(self) -> int:
        """Ops that wait just do so."""
        return 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """None of them waits."""

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Make it the current one."""
        yield

    def synchronize(self, device: Any = None) -> None:
        """Nothing is under way."""

    def get_device_properties(self, device: Any) -> SimpleNamespace:
        """As torch names them."""
        return SimpleNamespace(L2_cache_size=2**12)
