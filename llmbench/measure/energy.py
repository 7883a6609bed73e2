"""Energy of a call in joules, from the GPU's own counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from llmbench.measure.telemetry import Gpu, gpu_of

__all__ = ["Energy", "energy_of"]


class Energy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Energy of the whole GPU, its idle power included, over `calls` calls in `seconds` seconds.

    The calls run one after another, and inputs stay in the GPU's caches if they fit. A call that was timed as a CUDA
    graph is replayed as a CUDA graph, so that the GPU is not idle between launches.
    """

    joules: float
    calls: int
    seconds: float

    @property
    def joules_per_call(self) -> float:
        """Joules of one call."""
        return self.joules / self.calls


def energy_of(
    call: Callable[[], Any], device: torch.device, *, least_s: float = 1.0, gpu: Gpu | None = None
) -> Energy | None:
    """Run `call` for at least `least_s` seconds and read the energy counter before and after. Return None if the GPU
    has no counter.

    The counter is updated every 20 to 100 ms, so one second is accurate to a few per cent.
    """
    gpu = gpu or gpu_of(device)
    if gpu is None or gpu.energy_j() is None:
        return None

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    wait()
    calls, batch, passed = 0, 1, 0.0
    before, start = gpu.energy_j(), time.perf_counter()
    while passed < least_s:
        for _ in range(batch):
            call()
        wait()
        calls += batch
        passed = time.perf_counter() - start
        if passed < least_s / 10:
            batch = min(2 * batch, 256)  # a limit, so that the launch queue is not full for long
    after = gpu.energy_j()
    if before is None or after is None or after <= before:
        return None
    return Energy(joules=after - before, calls=calls, seconds=passed)
