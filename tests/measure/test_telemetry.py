"""Clocks, power and energy from a simulated NVML; a value that the driver does not report is None."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmbench.measure import energy, telemetry
from llmbench.measure.clock import CpuClock, compare
from llmbench.measure.energy import energy_of
from llmbench.measure.telemetry import Gpu, Watch, gpu_of, watching

GPU = torch.device("cuda", 0)


class NVMLError(Exception):
    """Stands for pynvml's error."""


def nvml(**values: Any) -> SimpleNamespace:
    """Return a pynvml with these values; those left out are not supported."""

    def answer(name: str) -> Any:
        def ask(handle: str, *_: Any) -> Any:
            assert handle == "GPU-1234"
            if name not in values:
                raise NVMLError("Not Supported")
            return values[name]() if callable(values[name]) else values[name]

        return ask

    names = ("PowerUsage", "ClockInfo", "Temperature", "TotalEnergyConsumption")
    reasons = ("CurrentClocksEventReasons", "CurrentClocksThrottleReasons")
    return SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        **{f"nvmlDeviceGet{name}": answer(name) for name in (*names, *reasons)},
    )


def test_a_reading_in_base_units() -> None:
    device = Gpu(nvml(PowerUsage=350_500, ClockInfo=1980, Temperature=61, CurrentClocksEventReasons=0x25), "GPU-1234")
    reading = device.read()
    assert (reading.sm_clock_hz, reading.power_w, reading.temperature_c) == (1.98e9, 350.5, 61)
    assert reading.throttle_reasons == ("power cap", "thermal slowdown (software)")  # 0x01 means idle
    assert device.energy_j() is None


def test_unknown_is_not_zero() -> None:
    watch = Watch(Gpu(nvml(), "GPU-1234"))
    watch.read()
    conditions = watch.conditions()
    assert conditions is not None
    assert conditions.readings == 1
    values = [getattr(conditions, name) for name in conditions.__struct_fields__ if name != "readings"]
    assert values == [None] * len(values)


def test_old_drivers_report_throttling_by_the_old_name() -> None:
    assert Gpu(nvml(CurrentClocksThrottleReasons=0x40), "GPU-1234").read().throttle_reasons == (
        "thermal slowdown (hardware)",
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU at 500 W, with a power cap from the third reading on."""
    readings = iter(range(10**6))
    fake = nvml(
        PowerUsage=500_000,
        ClockInfo=1500,
        Temperature=70,
        CurrentClocksEventReasons=lambda: 0x04 if next(readings) >= 2 else 0x01,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    telemetry._gpu_by_uuid.cache_clear()
    yield fake
    telemetry._gpu_by_uuid.cache_clear()


def test_a_thread_reads_the_gpu(machine: SimpleNamespace) -> None:
    with watching(GPU) as watch:
        while len(watch.readings) < 3:
            time.sleep(0.01)
    assert not any(thread.name == "llmbench-telemetry" for thread in threading.enumerate())
    conditions = watch.conditions()
    assert conditions is not None
    assert conditions.readings == len(watch.readings) >= 4  # one of them at the end
    assert (conditions.sm_clock_hz_min, conditions.power_w_max) == (1.5e9, 500)
    assert conditions.throttled == {"power cap": (conditions.readings - 2) / conditions.readings}


def test_a_throttled_gpu_is_remarked(machine: SimpleNamespace) -> None:
    clock = CpuClock()
    clock.device = GPU  # NVML reads it; the call runs on the CPU
    for _ in range(2):
        machine.nvmlDeviceGetCurrentClocksEventReasons("GPU-1234")  # the two idle readings
    measurement = compare({"x": lambda: time.sleep(0.01)}, clock=clock, budget_s=0.1)["x"]
    assert measurement.conditions is not None
    assert measurement.remarks()[-1] == "GPU throttled: power cap (100% of readings)"


def test_a_cpu_and_a_missing_driver_have_no_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_of(torch.device("cpu")) is None
    with watching(torch.device("cpu")) as watch:
        watch.read()
    assert watch.conditions() is None

    def broken() -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlInit=broken))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="5678"))
    telemetry._gpu_by_uuid.cache_clear()
    assert gpu_of(GPU) is None


def test_energy_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 W and calls of 1/64 s, in simulated time. Eight calls take 1/8 s; the warm-up call does not count."""
    now = [100.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call() -> None:
        now[0] += 1 / 64

    counter = nvml(TotalEnergyConsumption=lambda: now[0] * 500e3)
    total_energy = energy_of(call, torch.device("cpu"), least_s=1 / 8, gpu=Gpu(counter, "GPU-1234"))
    assert total_energy is not None
    assert (total_energy.calls, total_energy.seconds) == (8, 1 / 8)
    assert total_energy.joules_per_call == pytest.approx(500 / 64)


def test_a_slow_call_runs_once() -> None:
    calls, readings = [], iter([1e3, 1e3, 9e3])
    gpu = Gpu(nvml(TotalEnergyConsumption=lambda: next(readings)), "GPU-1234")

    def call() -> None:
        calls.append(1)
        time.sleep(0.02)

    energy = energy_of(call, torch.device("cpu"), least_s=0.01, gpu=gpu)
    assert energy is not None
    assert (energy.joules, energy.calls, len(calls)) == (8.0, 1, 2)


def test_without_a_counter_there_is_no_energy() -> None:
    assert energy_of(lambda: None, torch.device("cpu")) is None
    assert energy_of(lambda: None, torch.device("cpu"), gpu=Gpu(nvml(), "GPU-1234")) is None
    stuck = Gpu(nvml(TotalEnergyConsumption=5000), "GPU-1234")
    assert energy_of(lambda: None, torch.device("cpu"), least_s=0.001, gpu=stuck) is None


@pytest.mark.gpu
def test_a_real_gpu_reports_plausible_power() -> None:
    gpu = gpu_of(GPU)
    assert gpu is not None
    power = gpu.read().power_w
    assert power is None or 10 < power < 2000
