"""A stand-in for torch.cuda with a time of its own, so that a GPU's code paths run where there is none.

Kernels take the time they say; launched one by one each waits for its launch first, replayed by a graph it does not.
Only what the real one refuses in the same place is refused: a capture cannot wait for the GPU, and after one that broke
off the allocator gives nothing back; and who waits hears that the context is `lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

GAP_S = 5e-6


class FakeCuda:
    """The part of torch.cuda that measuring uses."""

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
        """A call that launches so many kernels of that length."""

        def call() -> None:
            for _ in range(count):
                if self.capturing is None:
                    self.now_s += GAP_S + seconds
                else:
                    self.capturing.append(seconds)

        return call

    @contextmanager
    def graph(self, graph: Any, pool: Any) -> Iterator[None]:
        """Capture into a graph."""
        self.capturing = graph.kernels
        self.broken = True
        try:
            yield
            self.broken = False
        finally:
            self.capturing = None

    def wait(self) -> None:
        """An op that waits, as `.item()` does."""
        if self.sync_debug_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        self.synchronize()

    def get_sync_debug_mode(self) -> int | str:
        """What ops that wait do."""
        return self.sync_debug_mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """Let them raise, or not."""
        self.sync_debug_mode = mode

    def graph_pool_handle(self) -> tuple[int, int]:
        """Memory of a graph's own."""
        return 0, 1

    def current_device(self) -> int:
        """There is one."""
        return 0

    def current_stream(self) -> None:
        """There is one."""

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        """Make it the current one."""
        yield

    def synchronize(self, device: Any = None) -> None:
        """Wait, which a capture cannot."""
        if self.capturing is not None:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might")
        if self.lost:
            raise torch.AcceleratorError(
                "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might"
            )

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        """Make it the current one."""
        yield

    def get_device_properties(self, device: Any) -> SimpleNamespace:
        """As torch names them."""
        return SimpleNamespace(L2_cache_size=2**18, uuid="1234")

    def allocate(self, amount: int) -> None:
        """Take memory, or give it back."""
        self.allocated += amount
        self.peak = max(self.peak, self.allocated)

    def empty_cache(self) -> None:
        """Nothing is cached."""
        assert not self.broken, "captures_underway.empty() INTERNAL ASSERT FAILED"
        self.log.append("empty_cache")

    def reset_peak_memory_stats(self, device: Any) -> None:
        """The peak is what there is."""
        self.peak = self.allocated

    def memory_allocated(self, device: Any) -> int:
        """Now."""
        return self.allocated

    def max_memory_allocated(self, device: Any) -> int:
        """At the peak."""
        return self.peak

    def memory_reserved(self, device: Any) -> int:
        """Now, in such blocks, for nothing is cached."""
        return -(-self.allocated // 2**21) * 2**21

    def max_memory_reserved(self, device: Any) -> int:
        """In blocks of 2 MiB."""
        return -(-self.peak // 2**21) * 2**21
