"""Clocks, power and energy by NVML, here by a stand-in of its module; what a driver does not tell is None."""

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
    """As pynvml's."""


def nvml(**found: Any) -> SimpleNamespace:
    """pynvml with these answers; a figure that is left out is not supported."""

    def answer(name: str) -> Any:
        def ask(handle: str, *_: Any) -> Any:
            assert handle == "GPU-1234"
            if name not in found:
                raise NVMLError("Not Supported")
            return found[name]() if callable(found[name]) else found[name]

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
    found = Gpu(nvml(PowerUsage=350_500, ClockInfo=1980, Temperature=61, CurrentClocksEventReasons=0x25), "GPU-1234")
    reading = found.read()
    assert (reading.sm_clock_hz, reading.power_w, reading.temperature_c) == (1.98e9, 350.5, 61)
    assert reading.throttle_reasons == ("power cap", "thermal slowdown (software)")  # 0x01 is idleness
    assert found.energy_j() is None


def test_unknown_is_not_zero() -> None:
    watch = Watch(Gpu(nvml(), "GPU-1234"))
    watch.read()
    conditions = watch.conditions()
    assert conditions is not None
    assert conditions.readings == 1
    figures = [getattr(conditions, name) for name in conditions.__struct_fields__ if name != "readings"]
    assert figures == [None] * len(figures)


def test_old_drivers_know_reasons_by_their_old_name() -> None:
    assert Gpu(nvml(CurrentClocksThrottleReasons=0x40), "GPU-1234").read().throttle_reasons == (
        "thermal slowdown (hardware)",
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU whose driver answers: power cap from the third reading on, 500 W all the while."""
    looks = iter(range(10**6))
    fake = nvml(
        PowerUsage=500_000,
        ClockInfo=1500,
        Temperature=70,
        CurrentClocksEventReasons=lambda: 0x04 if next(looks) >= 2 else 0x01,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    telemetry._gpu_by_uuid.cache_clear()
    yield fake
    telemetry._gpu_by_uuid.cache_clear()


def test_a_thread_watches(machine: SimpleNamespace) -> None:
    with watching(GPU) as watch:
        while len(watch.readings) < 3:
            time.sleep(0.01)
    assert not any(thread.name == "llmbench-telemetry" for thread in threading.enumerate())
    conditions = watch.conditions()
    assert conditions is not None
    assert conditions.readings == len(watch.readings) >= 4  # one at the end
    assert (conditions.sm_clock_hz_min, conditions.power_w_max) == (1.5e9, 500)
    assert conditions.throttled == {"power cap": (conditions.readings - 2) / conditions.readings}


def test_a_throttled_gpu_is_told(machine: SimpleNamespace) -> None:
    clock = CpuClock()
    clock.device = GPU  # what is watched; the call itself runs here
    for _ in range(2):
        machine.nvmlDeviceGetCurrentClocksEventReasons("GPU-1234")  # the two at which it is idle
    found = compare({"x": lambda: time.sleep(0.01)}, clock=clock, budget_s=0.1)["x"]
    assert found.conditions is not None
    assert found.remarks()[-1] == "GPU throttled: power cap (100% of readings)"


def test_nothing_is_known_of_a_cpu_nor_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_joules_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """500 W over calls of a 64th of a second, in a time that only they move. Eight take an eighth; the first, which
    warms up, is not among them."""
    now = [100.0]
    monkeypatch.setattr(energy, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def call() -> None:
        now[0] += 1 / 64

    counter = nvml(TotalEnergyConsumption=lambda: now[0] * 500e3)
    found = energy_of(call, torch.device("cpu"), least_s=1 / 8, gpu=Gpu(counter, "GPU-1234"))
    assert found is not None
    assert (found.calls, found.seconds) == (8, 1 / 8)
    assert found.joules_per_call == pytest.approx(500 / 64)


def test_a_slow_call_is_made_once() -> None:
    count, read = [], iter([1e3, 1e3, 9e3])
    gpu = Gpu(nvml(TotalEnergyConsumption=lambda: next(read)), "GPU-1234")

    def call() -> None:
        count.append(1)
        time.sleep(0.02)

    found = energy_of(call, torch.device("cpu"), least_s=0.01, gpu=gpu)
    assert found is not None
    assert (found.joules, found.calls, len(count)) == (8.0, 1, 2)


def test_no_counter_is_no_energy() -> None:
    assert energy_of(lambda: None, torch.device("cpu")) is None
    assert energy_of(lambda: None, torch.device("cpu"), gpu=Gpu(nvml(), "GPU-1234")) is None
    stuck = Gpu(nvml(TotalEnergyConsumption=5000), "GPU-1234")
    assert energy_of(lambda: None, torch.device("cpu"), least_s=0.001, gpu=stuck) is None


@pytest.mark.gpu
def test_a_real_gpu_tells_something() -> None:
    gpu = gpu_of(GPU)
    assert gpu is not None
    power = gpu.read().power_w
    assert power is None or 10 < power < 2000
