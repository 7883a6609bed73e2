"""The clock tells the truth: against workloads whose time is known, and against torch's own timer.

A machine that runs tests is busy. So exact times are held in a time of our own (a workload that moves a fake
perf_counter), and real time only where load can but add: a sleep is never short, and two rivals in one comparison share
the load. What may be disturbed is tried up to five times: a clock that is wrong is wrong each time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.benchmark import Timer

from llmbench.errors import CannotRunError
from llmbench.measure import clock as clocks
from llmbench.measure.clock import Clock, CpuClock, CudaClock, DeviceLostError, clock_for, compare
from llmbench.measure.measurement import ratio
from tests.measure.fake_cuda import GAP_S, FakeCuda

CPU = torch.device("cpu")
GPU = torch.device("cuda")


def agree(attempt: Callable[[], tuple[float, float]], within: float) -> None:
    """Two figures that must be equal but for what the machine does beside; in one of five attempts they are."""
    seen = []
    for _ in range(5):
        a, b = attempt()
        if abs(a / b - 1) <= within:
            return
        seen.append((a, b))
    raise AssertionError(seen)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A perf_counter that only workloads move."""
    time = SimpleNamespace(now=100.0)
    time.perf_counter = lambda: time.now
    monkeypatch.setattr(clocks, "time", time)
    return time


def taking(time: SimpleNamespace, *seconds: float) -> Callable[[], None]:
    """A workload that takes these times, one after the other and again."""
    calls = iter(range(10**9))

    def call() -> None:
        time.now += seconds[next(calls) % len(seconds)]

    return call


def test_known_times_exactly(ticking: SimpleNamespace) -> None:
    calls = {"long": taking(ticking, 0.25), "short": taking(ticking, 2e-6)}
    found = compare(calls, clock=CpuClock(), budget_s=0.5, min_samples=4)
    long, short = found["long"], found["short"]
    assert long.median_s == pytest.approx(0.25, rel=1e-9)
    assert short.median_s == pytest.approx(2e-6, rel=1e-6)
    assert (long.n, short.n) == (4, 4)
    assert long.calls_per_sample == long.warmup_calls == 1
    assert short.calls_per_sample == pytest.approx(0.01 / 2e-6, abs=1)  # so that a sample is 10 ms long
    assert short.warmup_calls == pytest.approx(0.1 / 2e-6, abs=1)
    assert long.clock == short.clock == "cpu"
    assert long.threads == torch.get_num_threads()
    assert long.conditions is None


def test_every_sample_is_kept_in_order(ticking: SimpleNamespace) -> None:
    call = taking(ticking, 0.5, 0.1, 0.2, 0.3)  # the first one warms up
    found = compare({"x": call}, clock=CpuClock(), budget_s=0.5, min_samples=2)["x"]
    assert found.samples_s == pytest.approx((0.1, 0.2, 0.3, 0.5))


def test_rivals_run_a_b_b_a(ticking: SimpleNamespace) -> None:
    order: list[str] = []

    def rival(name: str) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            ticking.now += 0.2

        return call

    compare({name: rival(name) for name in "ABC"}, clock=CpuClock(), budget_s=0.1, min_samples=4)
    assert "".join(order) == "ABC" + "ABC" + "CBA" + "ABC" + "CBA"


def test_what_drifts_leaves_the_ratio_alone(ticking: SimpleNamespace) -> None:
    """The machine slows down all the while; B is always half as long again as A."""
    state = SimpleNamespace(speed=1.0)

    def rival(seconds: float) -> Callable[[], None]:
        def call() -> None:
            state.speed *= 1.02
            ticking.now += seconds * state.speed

        return call

    found = compare({"A": rival(0.1), "B": rival(0.15)}, clock=CpuClock(), budget_s=10.0, min_samples=10)
    assert ratio(found["B"], found["A"]).median == pytest.approx(1.5, rel=1e-3)
    one_after_the_other = found["B"].samples_s[-1] / found["A"].samples_s[0]
    assert one_after_the_other > 2


def test_samples_have_a_number_and_a_limit(ticking: SimpleNamespace) -> None:
    fast = compare({"x": taking(ticking, 0.01)}, clock=CpuClock(), budget_s=100.0, max_samples=30)["x"]
    slow = compare({"x": taking(ticking, 60.0)}, clock=CpuClock(), budget_s=1.0, min_samples=3)["x"]
    assert (fast.n, slow.n) == (30, 4)  # whole pairs of rounds


def test_a_rival_that_fails_leaves_the_others(ticking: SimpleNamespace) -> None:
    calls = iter(range(100))

    def fails() -> None:
        ticking.now += 0.1
        if next(calls) == 3:
            raise RuntimeError("no more")

    failed: dict[str, Exception] = {}
    rivals = {"bad": fails, "worse": lambda: 1 / 0, "good": taking(ticking, 0.1)}
    found = compare(rivals, clock=CpuClock(), budget_s=1.0, failed=failed)
    assert list(found) == ["good"]
    assert found["good"].n == 10
    assert {name: str(problem) for name, problem in failed.items()} == {"bad": "no more", "worse": "division by zero"}
    assert all(problem.__traceback__ is None for problem in failed.values())
    with pytest.raises(ZeroDivisionError):
        compare(rivals, clock=CpuClock())


def test_threads_and_the_collector_are_held_and_given_back() -> None:
    before, seen = torch.get_num_threads(), set()
    compare({"x": lambda: seen.add((torch.get_num_threads(), gc.isenabled()))}, clock=CpuClock(threads=3), budget_s=0)
    assert seen == {(3, False)}
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)
    with pytest.raises(KeyboardInterrupt):
        compare({"x": _interrupt}, clock=CpuClock(threads=3), failed={})
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_sleep_is_never_short_and_hardly_longer() -> None:
    def attempt() -> tuple[float, float]:
        found = compare({"x": lambda: time.sleep(0.02)}, clock=CpuClock(), budget_s=0.3, warmup_s=0)["x"]
        assert min(found.samples_s) >= 0.02
        return found.median_s, 0.02

    agree(attempt, 0.05)


def test_torch_says_the_same() -> None:
    """torch.utils.benchmark is no part of ours; a product of 10 ms and more, one thread."""
    a = torch.randn(640, 640, dtype=torch.float64)

    def call() -> Any:
        return a @ a

    def attempt() -> tuple[float, float]:
        found = compare({"x": call}, clock=CpuClock(threads=1), budget_s=0.4)["x"]
        timer = Timer("call()", globals={"call": call}, num_threads=1)
        return found.median_s, timer.blocked_autorange(min_run_time=0.4).median

    agree(attempt, 0.05)


def test_equal_rivals_are_equal() -> None:
    a = torch.randn(400, 400, dtype=torch.float64)

    def attempt() -> tuple[float, float]:
        found = compare({"a": lambda: a @ a, "b": lambda: a @ a}, clock=CpuClock(threads=1), budget_s=0.5)
        return ratio(found["a"], found["b"]).median, 1.0

    agree(attempt, 0.05)


# A GPU, by its stand-in


def on_fake(fake: FakeCuda, **options: Any) -> CudaClock:
    """A clock of the stand-in; its own tensors are on the CPU."""
    return CudaClock(CPU, cuda=fake, **options)


def test_products_are_timed_as_they_are_checked() -> None:
    """Those of fp32 in tf32, while a GPU is timed; a CPU's are left alone."""
    clock = on_fake(FakeCuda())
    with clock.session(), CpuClock().session():
        assert torch.get_float32_matmul_precision() == "highest"
    clock.device = GPU
    with clock.session():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_long_calls_are_timed_by_events() -> None:
    fake = FakeCuda()
    found = compare({"x": fake.kernels(3, 1e-3)}, clock=on_fake(fake), warmup_s=0, budget_s=0)["x"]
    assert found.samples_s == pytest.approx([3 * (1e-3 + GAP_S)] * 10)
    assert (found.clock, found.cold, found.threads, found.notes) == ("cuda-events", True, None, ())


def test_short_calls_are_timed_as_graphs_and_so_are_their_rivals() -> None:
    fake = FakeCuda()
    calls = {"short": fake.kernels(4, 20e-6), "long": fake.kernels(2, 1e-3)}
    found = compare(calls, clock=on_fake(fake), warmup_s=0, budget_s=0)
    assert found["short"].median_s == pytest.approx(4 * 20e-6)  # without the gaps
    assert found["long"].median_s == pytest.approx(2e-3)
    assert {each.clock for each in found.values()} == {"cuda-graph"}
    never = compare(calls, clock=on_fake(fake, graphs="never"), warmup_s=0, budget_s=0)
    assert never["short"].median_s == pytest.approx(4 * (20e-6 + GAP_S))


@pytest.mark.parametrize(("graphs", "at"), [("never", 1), ("never", 2), ("auto", 3)], ids=["warm", "sample", "capture"])
def test_a_lost_gpu_is_laid_to_who_lost_it(graphs: Any, at: int) -> None:
    """And not to who has the next turn."""
    fake = FakeCuda()
    kernel, calls = fake.kernels(1, 1e-6), iter(range(1, 100))

    def bad() -> None:
        kernel()
        if next(calls) == at:
            fake.lost = True

    clock, failed = on_fake(fake, graphs=graphs), dict[str, Exception]()
    with pytest.raises(
        DeviceLostError, match=r"context is lost \(CUDA error: an illegal memory access was encountered\)$"
    ) as lost:
        compare({"good": kernel, "bad": bad}, clock=clock, warmup_s=0, budget_s=0, failed=failed)
    assert lost.value.candidate == "bad"
    assert "good" not in failed


def test_what_no_graph_holds_is_said_by_all() -> None:
    """And is not captured: nothing could be freed any more."""
    fake = FakeCuda()
    calls = {"good": fake.kernels(1, 1e-6), "waits": fake.wait}
    found = compare(calls, clock=on_fake(fake), warmup_s=0, budget_s=0)
    for each in found.values():
        assert each.clock == "cuda-events"
        assert each.notes == ("no CUDA graph holds `waits`: called a synchronizing CUDA operation",)
    assert fake.sync_debug_mode == 0
    fake.empty_cache()
    with pytest.raises(CannotRunError, match="no CUDA graph holds `waits`"):
        compare(calls, clock=on_fake(fake, graphs="always"), warmup_s=0)


def test_a_capture_that_breaks_off_is_told_by_its_first_line() -> None:
    fake = FakeCuda()
    found = compare({"x": fake.synchronize}, clock=on_fake(fake), warmup_s=0, budget_s=0)["x"]
    said = "no CUDA graph holds `x`: CUDA error: operation not permitted when stream is capturing"
    assert (found.clock, found.notes) == ("cuda-events", (said,))


def test_l2_is_emptied_before_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By reading four times its size, outside the events."""
    fake, read = FakeCuda(), []
    real = torch.sum

    def summed(buffer: torch.Tensor, **options: Any) -> torch.Tensor:
        read.append(buffer.nbytes)
        fake.now_s += 1.0
        return real(buffer, **options)

    monkeypatch.setattr(torch, "sum", summed)
    found = compare({"x": fake.kernels(1, 1e-3)}, clock=on_fake(fake), warmup_s=0, budget_s=0)["x"]
    assert found.median_s == pytest.approx(1e-3 + GAP_S)
    assert read == [4 * 2**18] * (found.warmup_calls + found.n)


@pytest.mark.parametrize("threads", [2, 3])
def test_several_threads_are_timed_meeting(threads: int) -> None:
    """Two ops a meeting: no machine is through with them in a tenth of a microsecond. One thread meets nobody."""
    found = compare({"x": lambda: None}, clock=CpuClock(threads=threads), budget_s=0)["x"]
    assert found.barrier_s is not None
    assert 1e-7 < found.barrier_s < 1
    assert compare({"x": lambda: None}, clock=CpuClock(threads=1), budget_s=0)["x"].barrier_s is None


def test_the_middle_meeting_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([3e-6, 9e-6, 4e-6, 5e-6])
    monkeypatch.setattr(clocks, "barrier_timer", lambda threads: lambda: next(seen))
    found = compare({"x": lambda: None}, clock=CpuClock(), budget_s=0, min_samples=4, max_samples=4)["x"]
    assert found.barrier_s == pytest.approx(4.5e-6)


def test_the_clock_of_a_device() -> None:
    chosen = clock_for(CPU, threads=2)
    assert isinstance(chosen, CpuClock)
    assert chosen.threads == 2


# A real one


@pytest.fixture
def gpu_clock() -> Clock:
    """The GPU's."""
    return clock_for(GPU)


@pytest.mark.gpu
def test_triton_says_the_same() -> None:
    from triton.testing import do_bench

    a = torch.randn(4096, 4096, device=GPU, dtype=torch.bfloat16)

    def attempt() -> tuple[float, float]:
        found = compare({"x": lambda: a @ a}, clock=clock_for(GPU, graphs="never"), budget_s=0.5)["x"]
        return found.median_s, do_bench(lambda: a @ a, rep=500, return_mode="median") * 1e-3

    agree(attempt, 0.03)


@pytest.mark.gpu
def test_twice_the_cycles_take_twice_the_time(gpu_clock: Clock) -> None:
    calls = {str(n): (lambda n=n: torch.cuda._sleep(n * 10_000_000)) for n in (1, 2)}
    found = compare(calls, clock=gpu_clock, budget_s=0.5)
    assert ratio(found["2"], found["1"]).median == pytest.approx(2.0, rel=0.03)


@pytest.mark.gpu
def test_graphs_leave_the_gaps_out(gpu_clock: Clock) -> None:
    x = torch.randn(1024, device=GPU)

    def call() -> torch.Tensor:
        y = x
        for _ in range(50):
            y = y + 1
        return y

    graph = compare({"x": call}, clock=gpu_clock)["x"]
    events = compare({"x": call}, clock=clock_for(GPU, graphs="never"))["x"]
    assert (graph.clock, events.clock) == ("cuda-graph", "cuda-events")
    assert graph.median_s < events.median_s


@pytest.mark.gpu
def test_cold_is_slower_than_warm(gpu_clock: Clock) -> None:
    """16 MiB fit into L2: read from memory they take longer than read from there."""
    x = torch.randn(2**22, device=GPU)
    cold = compare({"x": lambda: x.sum()}, clock=gpu_clock)["x"].median_s
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            x.sum()
    warm = compare({"x": graph.replay}, clock=clock_for(GPU, graphs="never"))["x"].median_s / 100
    assert cold > 1.1 * warm
