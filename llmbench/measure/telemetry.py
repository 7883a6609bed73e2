"""A GPU's state through NVML: clocks, power, temperature, throttling, energy. An unknown value is None, never 0."""

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

THROTTLE_REASONS = {
    0x02: "clocks set by an application",
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""NVML's bits for the reasons of low clocks (nvml.h, nvmlClocksEventReasons). 0x01, an idle GPU, is left out."""

INTERVAL_S = 0.05
"""Seconds between two readings. Shorter intervals give little more, because NVML updates its averages slowly. Each
reading briefly blocks the interpreter."""


class Reading(NamedTuple):
    """One reading of a GPU's state; values that the driver does not report are None."""

    sm_clock_hz: float | None
    memory_clock_hz: float | None
    power_w: float | None
    temperature_c: float | None
    throttle_reasons: tuple[str, ...] | None


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU's state during a measurement, over `readings` readings; None is unknown. `throttled`: throttle reason →
    share of the readings with it."""

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
        """Take one reading."""
        nvml = self.nvml
        power = self._ask("nvmlDeviceGetPowerUsage")
        return Reading(
            sm_clock_hz=_scaled(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1e6),
            memory_clock_hz=_scaled(self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1e6),
            power_w=_scaled(power, 1e-3),
            temperature_c=_scaled(self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU), 1.0),
            throttle_reasons=self._throttle_reasons(),
        )

    def energy_j(self) -> float | None:
        """Return the energy in joules that the GPU has used since the driver was loaded; None if the GPU does not count
        it."""
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def _throttle_reasons(self) -> tuple[str, ...] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 only have the older name
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(reason for bit, reason in THROTTLE_REASONS.items() if bits & bit)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Call an NVML function; return None if this driver or GPU does not support it."""
        function = getattr(self.nvml, name, None)
        try:
            return None if function is None else function(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def gpu_of(device: torch.device) -> Gpu | None:
    """Return the NVML handle of a torch device; None for a CPU, and if NVML does not work."""
    if device.type != "cuda":
        return None
    import torch

    return _gpu_by_uuid(str(getattr(torch.cuda.get_device_properties(device), "uuid", "")))


@cache
def _gpu_by_uuid(uuid: str) -> Gpu | None:
    """Find a GPU by UUID, because torch and NVML number GPUs differently under CUDA_VISIBLE_DEVICES. NVML stays
    open."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # NVML raises its own classes, and OSError if the library is broken
        return None
    try:
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
    except pynvml.NVMLError:
        return None


class Watch:
    """Readings of a GPU during a measurement; `conditions` summarises them."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu = gpu
        self.readings: list[Reading] = []

    def read(self) -> None:
        """Take a reading, if there is a GPU."""
        if self.gpu is not None:
            self.readings.append(self.gpu.read())

    def conditions(self) -> Conditions | None:
        """Return the summary; None without readings."""
        if not self.readings:
            return None
        power = self._known("power_w")
        known = [reading.throttle_reasons for reading in self.readings if reading.throttle_reasons is not None]
        counts = {reason: sum(reason in reasons for reasons in known) for reason in THROTTLE_REASONS.values()}
        sm_clock = self._known("sm_clock_hz")
        return Conditions(
            readings=len(self.readings),
            sm_clock_hz_min=min(sm_clock, default=None),
            sm_clock_hz_median=_median(sm_clock),
            memory_clock_hz_median=_median(self._known("memory_clock_hz")),
            power_w_median=_median(power),
            power_w_max=max(power, default=None),
            temperature_c_max=max(self._known("temperature_c"), default=None),
            throttled={reason: count / len(known) for reason, count in counts.items() if count} if known else None,
        )

    def _known(self, field: str) -> list[float]:
        return sorted(value for value in (getattr(reading, field) for reading in self.readings) if value is not None)


def _median(ordered: list[float]) -> float | None:
    return ordered[len(ordered) // 2] if ordered else None


@contextmanager
def watching(device: torch.device) -> Iterator[Watch]:
    """Read the GPU from a thread until the block ends, and once more at its end. On a CPU no thread starts."""
    watch = Watch(gpu_of(device))
    if watch.gpu is None:
        yield watch
        return
    ended = threading.Event()

    def read_until_ended() -> None:
        while not ended.wait(INTERVAL_S):
            watch.read()

    thread = threading.Thread(target=read_until_ended, name="llmbench-telemetry", daemon=True)
    thread.start()
    try:
        yield watch
        watch.read()  # the GPU is still busy with the last call
    finally:
        ended.set()
        thread.join()
