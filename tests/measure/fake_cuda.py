"""A simulated torch.cuda with its own time, so that the GPU's code runs on a machine without one.

Kernels take the given time. Launched one by one, each adds the gap before it; replayed by a graph, it does not. The
simulation refuses only operations that the real torch.cuda refuses: a capture cannot wait for the GPU, the allocator
frees nothing after a capture that broke off, and waiting raises if the context is `lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

GAP_S = 5e-6


class FakeCuda:
    """The part of torch.cuda that llmbench.measure uses."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.capturing: list[float] | None = None
        self.allocated = self.peak = 1000
        self.log: list[str] = []
        self.broken = self.lost = False
        self.sync_debug_mode: int | str = 0
        fake = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                assert fake.capturing is None
                self.at = fake.now_s

            def synchronize(self) -> None:
                fake.synchronize()

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        class CUDAGraph:
            def __init__(self) -> None:
                self.kernels: list[float] = []

            def replay(self) -> None:
                fake.now_s += sum(self.kernels)

        self.Event, self.CUDAGraph = Event, CUDAGraph

    def kernels(self, count: int, seconds: float) -> Callable[[], None]:
        """Return a call that launches `count` kernels of `seconds` each."""

        def call() -> None:
            for _ in range(count):
                if self.capturing is None:
                    self.now_s += GAP_S + seconds
                else:
                    self.capturing.append(seconds)

        return call

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        """Capture the launches of the block into a graph."""
        self.capturing = graph.kernels
        self.broken = True
        try:
            yield
            self.broken = False
        finally:
            self.capturing = None

    def wait(self) -> None:
        """Run an op that waits for the GPU, as `.item()` does."""
        if self.sync_debug_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.synchronize()

    def get_sync_debug_mode(self) -> int | str:
        """Return the mode that says whether waiting ops raise."""
        return self.sync_debug_mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """Set whether waiting ops raise."""
        self.sync_debug_mode = mode

    def graph_pool_handle(self) -> tuple[int, int]:
        """Return the handle of a graph's memory pool."""
        return 0, 1

    def current_device(self) -> int:
        """Return the only device."""
        return 0

    def current_stream(self) -> None:
        """Return the only stream."""

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """Do nothing: there is only one."""
        yield

    def synchronize(self, device: Any = None) -> None:
        """Wait; raises during a capture and after the context is lost."""
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might")
        if self.lost:
            raise torch.AcceleratorError(
                "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"
            )

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Do nothing: there is only one."""
        yield

    def get_device_properties(self, device: Any) -> SimpleNamespace:
        """Return the properties that llmbench reads, by torch's names."""
        return SimpleNamespace(L2_cache_size=2**18, uuid="1234")

    def allocate(self, amount: int) -> None:
        """Allocate memory, or free it if `amount` is negative."""
        self.allocated += amount
        self.peak = max(self.peak, self.allocated)

    def empty_cache(self) -> None:
        """Record the call; nothing is cached."""
        assert not self.broken, "captures_underway.empty() INTERNAL ASSERT FAILED"
        self.log.append("empty_cache")

    def reset_peak_memory_stats(self, device: Any) -> None:
        """Set the peak to the allocated memory."""
        self.peak = self.allocated

    def memory_allocated(self, device: Any) -> int:
        """Return the allocated bytes."""
        return self.allocated

    def max_memory_allocated(self, device: Any) -> int:
        """Return the peak in bytes."""
        return self.peak

    def memory_reserved(self, device: Any) -> int:
        """Return the allocated bytes in blocks of 2 MiB."""
        return -(-self.allocated // 2**21) * 2**21

    def max_memory_reserved(self, device: Any) -> int:
        """Return the peak in blocks of 2 MiB."""
        return -(-self.peak // 2**21) * 2**21
