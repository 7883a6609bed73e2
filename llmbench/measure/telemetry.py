"""What NVML tells of a GPU: clocks, power, temperature, why it was held back, energy. Absent is None, never 0."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    import torch

__all__ = ["Conditions", "Gpu", "Reading", "Watch", "gpu_of", "watching"]

HELD_BACK = {
    0x02: "clocks set by an application",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""NVML's bits for why clocks are low (nvml.h, nvmlClocksEventReasons). 0x01 is idleness, which is no fault."""

INTERVAL_S = 0.05
"""Between two readings. NVML's own averages are hardly fresher, and a reading takes the interpreter for a moment."""


class Reading(NamedTuple):
    """One look at a GPU; what the driver does not tell is None."""

    sm_clock_hz: float | None
    memory_clock_hz: float | None
    power_w: float | None
    temperature_c: float | None
    held_back: tuple[str, ...] | None


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU during a measurement, over `readings` looks; None is unknown. `throttled`: the share of them at which each
    reason held its clocks back."""

    readings: int
    sm_clock_hz_min: float | None = None
    sm_clock_hz_median: float | None = None
    memory_clock_hz_median: float | None = None
    power_w_median: float | None = None
    power_w_max: float | None = None
    temperature_c_max: float | None = None
    throttled: dict[str, float] | None = None


class Gpu:
    """One GPU through NVML. `nvml` is the module pynvml, initialised."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    def read(self) -> Reading:
        """Look at it once."""
        nvml = self.nvml
        power = self._ask("nvmlDeviceGetPowerUsage")
        return Reading(
            sm_clock_hz=_scaled(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1e6),
            memory_clock_hz=_scaled(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
            power_w=_scaled(power, 1e-3),
            temperature_c=_scaled(self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU), 1.0),
            held_back=self._held_back(),
        )

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded, None where the GPU does not count them."""
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def _held_back(self) -> tuple[str, ...] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 know it by its old name
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(reason for bit, reason in HELD_BACK.items() if bits & bit)

    def _ask(self, name: str, *given: Any) -> Any:
        """A figure, None where this driver or GPU has none."""
        function = getattr(self.nvml, name, None)
        try:
            return None if function is None else function(self.handle, *given)
        except self.nvml.NVMLError:
            return None


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def gpu_of(device: torch.device) -> Gpu | None:
    """NVML's view of torch's device; None for a CPU and where NVML does not answer."""
    if device.type != "cuda":
        return None
    import torch

    return _gpu_by_uuid(str(getattr(torch.cuda.get_device_properties(device), "uuid", "")))


@cache
def _gpu_by_uuid(uuid: str) -> Gpu | None:
    """By UUID, because torch and NVML number GPUs differently under CUDA_VISIBLE_DEVICES. NVML stays open."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # NVML raises its own classes, and OSError where the library is broken
        return None
    try:
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
    except pynvml.NVMLError:
        return None


class Watch:
    """Readings of a GPU while something else runs; `conditions` sums them up."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu = gpu
        self.readings: list[Reading] = []

    def look(self) -> None:
        """Take a reading."""
        if self.gpu is not None:
            self.readings.append(self.gpu.read())

    def conditions(self) -> Conditions | None:
        """None where nothing was read."""
        if not self.readings:
            return None
        power = self._known("power_w")
        told = [reading.held_back for reading in self.readings if reading.held_back is not None]
        counted = {reason: sum(reason in each for each in told) for reason in HELD_BACK.values()}
        sm_clock = self._known("sm_clock_hz")
        return Conditions(
            readings=len(self.readings),
            sm_clock_hz_min=min(sm_clock, default=None),
            sm_clock_hz_median=_middle(sm_clock),
            memory_clock_hz_median=_middle(self._known("memory_clock_hz")),
            power_w_median=_middle(power),
            power_w_max=max(power, default=None),
            temperature_c_max=max(self._known("temperature_c"), default=None),
            throttled={reason: count / len(told) for reason, count in counted.items() if count} if told else None,
        )

    def _known(self, field: str) -> list[float]:
        return sorted(value for value in (getattr(reading, field) for reading in self.readings) if value is not None)


def _middle(ordered: list[float]) -> float | None:
    return ordered[len(ordered) // 2] if ordered else None


@contextmanager
def watching(device: torch.device) -> Iterator[Watch]:
    """Watch the GPU from a thread until the block ends, and once more then. On a CPU nothing runs."""
    watch = Watch(gpu_of(device))
    if watch.gpu is None:
        yield watch
        return
    over = threading.Event()

    def follow() -> None:
        while not over.wait(INTERVAL_S):
            watch.look()

    thread = threading.Thread(target=follow, name="llmbench-telemetry", daemon=True)
    thread.start()
    try:
        yield watch
        watch.look()  # under load still: nothing has waited for the last call
    finally:
        over.set()
        thread.join()
