"""Measure the energy of a call in joules with the GPU's energy counter."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from llmbench.measure.telemetry import Gpu, gpu_of

if TYPE_CHECKING:
    import torch

__all__ = ["Energy", "energy_of"]


class Energy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The energy that the whole GPU used during `calls` calls in `seconds` seconds, including its idle power.

    The calls run one after another. Inputs that fit into the GPU's caches stay there between the calls. A call that was
    timed as a CUDA graph is replayed as a CUDA graph, so that the GPU is not idle between launches.
    """

    joules: float
    calls: int
    seconds: float

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a ValidationError, which names the position in the result file.
        if self.calls < 1:
            raise ValueError("energy needs at least one call")

    @property
    def joules_per_call(self) -> float:
        """The energy per call in joules."""
        return self.joules / self.calls


def energy_of(
    call: Callable[[], Any], device: torch.device, *, least_s: float = 1.0, gpu: Gpu | None = None
) -> Energy | None:
    """Run `call` repeatedly for at least `least_s` seconds and return the energy, read from the GPU's energy counter.

    The counter is updated every 20 to 100 ms, so the energy over one second is accurate to a few per cent. Return None
    if the GPU has no energy counter, or if the counter did not increase.
    """
    gpu = gpu or gpu_of(device)
    if gpu is None or gpu.energy_j() is None:
        return None

    def wait() -> None:
        if device.type == "cuda":
            import torch

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
            batch = min(2 * batch, 256)  # a longer batch could fill the launch queue, and `wait` would then take long
    after = gpu.energy_j()
    if before is None or after is None or after <= before:
        return None
    return Energy(joules=after - before, calls=calls, seconds=passed)
