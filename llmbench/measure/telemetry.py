"""Read the state of a GPU through NVML: clocks, power, temperature, throttling and energy.

An unknown value is None, never 0.
"""

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
"""NVML's bits for the reasons why clocks are low (nvml.h, nvmlClocksEventReasons). Bit 0x01 is left out, because it
means that the GPU is idle."""

INTERVAL_S = 0.05
"""The seconds between two readings. A shorter interval would add little information, because NVML updates its averages
slowly. Each reading also blocks the Python interpreter for a short time."""


class Reading(NamedTuple):
    """One reading of the state of a GPU. A value that the driver does not report is None."""

    sm_clock_hz: float | None
    memory_clock_hz: float | None
    power_w: float | None
    temperature_c: float | None
    throttle_reasons: tuple[str, ...] | None


class Conditions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A summary of the state of a GPU during a measurement. None is unknown.

    `readings`: the number of readings. `throttled`: for each reason why the clocks were low, the share of the readings
    that had this reason.
    """

    readings: int
    sm_clock_hz_min: float | None = None
    sm_clock_hz_median: float | None = None
    memory_clock_hz_median: float | None = None
    power_w_median: float | None = None
    power_w_max: float | None = None
    temperature_c_max: float | None = None
    throttled: dict[str, float] | None = None


class Gpu:
    """One GPU, read through NVML. `nvml`: the initialised module pynvml. `handle`: NVML's handle of the GPU."""

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
        """Return the energy in joules that the GPU has used since the driver was loaded.

        Return None if the GPU does not count its energy.
        """
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3)

    def _throttle_reasons(self) -> tuple[str, ...] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # drivers before 535 have this function only under its older name
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(reason for bit, reason in THROTTLE_REASONS.items() if bits & bit)

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Call an NVML function by name. Return None if the driver or the GPU does not support the function."""
        function = getattr(self.nvml, name, None)
        try:
            return None if function is None else function(self.handle, *arguments)
        except self.nvml.NVMLError:
            return None


def _scaled(value: float | None, by: float) -> float | None:
    return None if value is None else value * by


def gpu_of(device: torch.device) -> Gpu | None:
    """Return the `Gpu` of a torch device. Return None for a CPU, or if NVML does not work."""
    if device.type != "cuda":
        return None
    import torch

    return _gpu_by_uuid(str(getattr(torch.cuda.get_device_properties(device), "uuid", "")))


@cache
def _gpu_by_uuid(uuid: str) -> Gpu | None:
    """Return the GPU with this UUID, or None if NVML does not work. NVML stays initialised.

    The UUID is used, because torch and NVML number the GPUs differently if CUDA_VISIBLE_DEVICES is set.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # NVML raises errors of its own classes, and OSError if the library is broken
        return None
    try:
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
    except pynvml.NVMLError:
        return None


class Watch:
    """The readings of a GPU during a measurement. `gpu` is None if there is no GPU to read."""

    def __init__(self, gpu: Gpu | None) -> None:
        self.gpu = gpu
        self.readings: list[Reading] = []

    def read(self) -> None:
        """Take a reading. Do nothing if there is no GPU."""
        if self.gpu is not None:
            self.readings.append(self.gpu.read())

    def conditions(self) -> Conditions | None:
        """Return a summary of the readings, or None if there are no readings."""
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
    """Take readings of the GPU in a thread until the block ends, and one reading at the end. Do nothing on a CPU."""
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
        watch.read()  # a last reading, while the GPU is still in the state of the last call
    finally:
        ended.set()
        thread.join()
