"""The clock is compared with workloads of known time and with torch's own timer.

A machine that runs tests is busy. So exact times are tested in simulated time: the workload advances a fake
perf_counter. Real time is tested only where load cannot make a correct clock fail: a sleep is never too short, and two
candidates of one comparison share the load. A test that load may disturb is tried up to five times; a wrong clock fails
each time.
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
    """Assert that two values agree within a share of `within`, in one of five attempts."""
    attempts = []
    for _ in range(5):
        a, b = attempt()
        if abs(a / b - 1) <= within:
            return
        attempts.append((a, b))
    raise AssertionError(attempts)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A perf_counter that only workloads advance."""
    time = SimpleNamespace(now=100.0)
    time.perf_counter = lambda: time.now
    monkeypatch.setattr(clocks, "time", time)
    return time


def taking(time: SimpleNamespace, *seconds: float) -> Callable[[], None]:
    """Return a workload that takes these times in turn."""
    calls = iter(range(10**9))

    def call() -> None:
        time.now += seconds[next(calls) % len(seconds)]

    return call


def test_known_times_are_exact(ticking: SimpleNamespace) -> None:
    calls = {"long": taking(ticking, 0.25), "short": taking(ticking, 2e-6)}
    times = compare(calls, clock=CpuClock(), budget_s=0.5, min_samples=4)
    long, short = times["long"], times["short"]
    assert long.median_s == pytest.approx(0.25, rel=1e-9)
    assert short.median_s == pytest.approx(2e-6, rel=1e-6)
    assert (long.n, short.n) == (4, 4)
    assert long.calls_per_sample == long.warmup_calls == 1
    assert short.calls_per_sample == pytest.approx(0.01 / 2e-6, abs=1)  # a sample takes 10 ms
    assert short.warmup_calls == pytest.approx(0.1 / 2e-6, abs=1)
    assert long.clock == short.clock == "cpu"
    assert long.threads == torch.get_num_threads()
    assert long.conditions is None


def test_every_sample_is_kept_in_order(ticking: SimpleNamespace) -> None:
    call = taking(ticking, 0.5, 0.1, 0.2, 0.3)  # the first is the warm-up
    measurement = compare({"x": call}, clock=CpuClock(), budget_s=0.5, min_samples=2)["x"]
    assert measurement.samples_s == pytest.approx((0.1, 0.2, 0.3, 0.5))


def test_candidates_run_a_b_b_a(ticking: SimpleNamespace) -> None:
    order: list[str] = []

    def candidate(name: str) -> Callable[[], None]:
        def call() -> None:
            order.append(name)
            ticking.now += 0.2

        return call

    compare({name: candidate(name) for name in "ABC"}, clock=CpuClock(), budget_s=0.1, min_samples=4)
    assert "".join(order) == "ABC" + "ABC" + "CBA" + "ABC" + "CBA"


def test_drift_does_not_change_the_ratio(ticking: SimpleNamespace) -> None:
    """The machine slows down all the time; B always takes 1.5 times as long as A."""
    state = SimpleNamespace(speed=1.0)

    def candidate(seconds: float) -> Callable[[], None]:
        def call() -> None:
            state.speed *= 1.02
            ticking.now += seconds * state.speed

        return call

    times = compare({"A": candidate(0.1), "B": candidate(0.15)}, clock=CpuClock(), budget_s=10.0, min_samples=10)
    assert ratio(times["B"], times["A"]).median == pytest.approx(1.5, rel=1e-3)
    sequential = times["B"].samples_s[-1] / times["A"].samples_s[0]
    assert sequential > 2


def test_the_number_of_samples_has_a_minimum_and_a_maximum(ticking: SimpleNamespace) -> None:
    fast = compare({"x": taking(ticking, 0.01)}, clock=CpuClock(), budget_s=100.0, max_samples=30)["x"]
    slow = compare({"x": taking(ticking, 60.0)}, clock=CpuClock(), budget_s=1.0, min_samples=3)["x"]
    assert (fast.n, slow.n) == (30, 4)  # whole pairs of rounds


def test_the_others_go_on_after_a_candidate_fails(ticking: SimpleNamespace) -> None:
    calls = iter(range(100))

    def fails() -> None:
        ticking.now += 0.1
        if next(calls) == 3:
            raise RuntimeError("no more")

    failed: dict[str, Exception] = {}
    candidates = {"bad": fails, "worse": lambda: 1 / 0, "good": taking(ticking, 0.1)}
    times = compare(candidates, clock=CpuClock(), budget_s=1.0, failed=failed)
    assert list(times) == ["good"]
    assert times["good"].n == 10
    assert {name: str(problem) for name, problem in failed.items()} == {"bad": "no more", "worse": "division by zero"}
    assert all(problem.__traceback__ is None for problem in failed.values())
    with pytest.raises(ZeroDivisionError):
        compare(candidates, clock=CpuClock())


def test_threads_and_the_collector_are_fixed_and_restored() -> None:
    before, seen = torch.get_num_threads(), set()
    compare({"x": lambda: seen.add((torch.get_num_threads(), gc.isenabled()))}, clock=CpuClock(threads=3), budget_s=0)
    assert seen == {(3, False)}
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)
    with pytest.raises(KeyboardInterrupt):
        compare({"x": _interrupt}, clock=CpuClock(threads=3), failed={})
    assert (torch.get_num_threads(), gc.isenabled()) == (before, True)


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_a_sleep_is_never_too_short_and_hardly_too_long() -> None:
    def attempt() -> tuple[float, float]:
        measurement = compare({"x": lambda: time.sleep(0.02)}, clock=CpuClock(), budget_s=0.3, warmup_s=0)["x"]
        assert min(measurement.samples_s) >= 0.02
        return measurement.median_s, 0.02

    agree(attempt, 0.05)


def test_torchs_timer_agrees() -> None:
    """torch.utils.benchmark is independent of our clock; the call is a product of at least 10 ms on one thread."""
    a = torch.randn(640, 640, dtype=torch.float64)

    def call() -> Any:
        return a @ a

    def attempt() -> tuple[float, float]:
        measurement = compare({"x": call}, clock=CpuClock(threads=1), budget_s=0.4)["x"]
        timer = Timer("call()", globals={"call": call}, num_threads=1)
        return measurement.median_s, timer.blocked_autorange(min_run_time=0.4).median

    agree(attempt, 0.05)


def test_equal_candidates_are_equal() -> None:
    a = torch.randn(400, 400, dtype=torch.float64)

    def attempt() -> tuple[float, float]:
        times = compare({"a": lambda: a @ a, "b": lambda: a @ a}, clock=CpuClock(threads=1), budget_s=0.5)
        return ratio(times["a"], times["b"]).median, 1.0

    agree(attempt, 0.05)


# A simulated GPU


def fake_clock(fake: FakeCuda, **options: Any) -> CudaClock:
    """A clock of the simulated GPU; its own tensors are on the CPU."""
    return CudaClock(CPU, cuda=fake, **options)


def test_fp32_products_are_timed_in_tf32_on_a_gpu() -> None:
    """As in the check. On a CPU the precision stays."""
    clock = fake_clock(FakeCuda())
    with clock.session(), CpuClock().session():
        assert torch.get_float32_matmul_precision() == "highest"
    clock.device = GPU
    with clock.session():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


def test_long_calls_are_timed_by_events() -> None:
    fake = FakeCuda()
    measurement = compare({"x": fake.kernels(3, 1e-3)}, clock=fake_clock(fake), warmup_s=0, budget_s=0)["x"]
    assert measurement.samples_s == pytest.approx([3 * (1e-3 + GAP_S)] * 10)
    assert (measurement.clock, measurement.cold, measurement.threads, measurement.notes) == (
        "cuda-events",
        True,
        None,
        (),
    )


def test_one_short_candidate_makes_all_candidates_graphs() -> None:
    fake = FakeCuda()
    calls = {"short": fake.kernels(4, 20e-6), "long": fake.kernels(2, 1e-3)}
    times = compare(calls, clock=fake_clock(fake), warmup_s=0, budget_s=0)
    assert times["short"].median_s == pytest.approx(4 * 20e-6)  # without the gaps
    assert times["long"].median_s == pytest.approx(2e-3)
    assert {measurement.clock for measurement in times.values()} == {"cuda-graph"}
    never = compare(calls, clock=fake_clock(fake, graphs="never"), warmup_s=0, budget_s=0)
    assert never["short"].median_s == pytest.approx(4 * (20e-6 + GAP_S))


@pytest.mark.parametrize(("graphs", "at"), [("never", 1), ("never", 2), ("auto", 3)], ids=["warm", "sample", "capture"])
def test_a_lost_gpu_is_attributed_to_the_candidate_that_lost_it(graphs: Any, at: int) -> None:
    """Not to the candidate that runs next."""
    fake = FakeCuda()
    kernel, calls = fake.kernels(1, 1e-6), iter(range(1, 100))

    def bad() -> None:
        kernel()
        if next(calls) == at:
            fake.lost = True

    clock, failed = fake_clock(fake, graphs=graphs), dict[str, Exception]()
    with pytest.raises(
        DeviceLostError, match=r"context is lost \(CUDA error: an illegal memory access was encountered\)$"
    ) as lost:
        compare({"good": kernel, "bad": bad}, clock=clock, warmup_s=0, budget_s=0, failed=failed)
    assert lost.value.candidate == "bad"
    assert "good" not in failed


def test_a_call_that_no_graph_holds_leaves_the_group_alone() -> None:
    """It is timed with events and its note gives the reason. The other candidates stay graphs."""
    fake = FakeCuda()
    calls = {"good": fake.kernels(1, 1e-6), "waits": fake.wait}
    times = compare(calls, clock=fake_clock(fake), warmup_s=0, budget_s=0)
    reason = "cannot capture `waits` as a CUDA graph: called a synchronizing CUDA operation"
    assert (times["good"].clock, times["good"].notes) == ("cuda-graph", ())
    assert times["good"].median_s == pytest.approx(1e-6)
    assert times["waits"].clock == "cuda-events"
    assert times["waits"].notes == (f"{reason}; this time includes gaps between launches",)
    assert fake.sync_debug_mode == 0
    fake.empty_cache()
    with pytest.raises(CannotRunError, match="cannot capture `waits` as a CUDA graph"):
        compare(calls, clock=fake_clock(fake, graphs="always"), warmup_s=0)


def test_an_observer_learns_which_candidate_runs() -> None:
    """In the warm-up, in the capture and in each round. After the block, nothing is reported."""
    fake, seen = FakeCuda(), list[str]()
    calls = {name: fake.kernels(1, 1e-6) for name in "ab"}
    with clocks.observing(seen.append):
        compare(calls, clock=fake_clock(fake), warmup_s=0, budget_s=0, min_samples=2)
    assert seen == [*"ab", *"ab", *"ab", *"ba"]
    compare(calls, clock=fake_clock(fake), warmup_s=0, budget_s=0)
    assert len(seen) == 8


def test_a_failed_capture_is_noted_by_its_first_line() -> None:
    fake = FakeCuda()
    measurement = compare({"x": fake.synchronize}, clock=fake_clock(fake), warmup_s=0, budget_s=0)["x"]
    note = (
        "cannot capture `x` as a CUDA graph: CUDA error: operation not permitted when stream is capturing; "
        "this time includes gaps between launches"
    )
    assert (measurement.clock, measurement.notes) == ("cuda-events", (note,))


def test_l2_is_emptied_before_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """By reading four times its size, outside of the events."""
    fake, read = FakeCuda(), []
    real = torch.sum

    def summed(buffer: torch.Tensor, **options: Any) -> torch.Tensor:
        read.append(buffer.nbytes)
        fake.now_s += 1.0
        return real(buffer, **options)

    monkeypatch.setattr(torch, "sum", summed)
    measurement = compare({"x": fake.kernels(1, 3e-3)}, clock=fake_clock(fake), warmup_s=0, budget_s=0)["x"]
    assert measurement.median_s == pytest.approx(3e-3 + GAP_S)
    assert read == [4 * 2**18] * (measurement.warmup_calls + measurement.n)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_barrier_cost_of_several_threads_is_measured(threads: int) -> None:
    """A reading has two ops, which no machine runs within 0.1 µs. One thread has no barrier cost."""
    measurement = compare({"x": lambda: None}, clock=CpuClock(threads=threads), budget_s=0)["x"]
    assert measurement.barrier_s is not None
    assert 1e-7 < measurement.barrier_s < 1
    assert compare({"x": lambda: None}, clock=CpuClock(threads=1), budget_s=0)["x"].barrier_s is None


def test_the_median_barrier_cost_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([3e-6, 9e-6, 4e-6, 5e-6])
    monkeypatch.setattr(clocks, "barrier_timer", lambda threads: lambda: next(readings))
    measurement = compare({"x": lambda: None}, clock=CpuClock(), budget_s=0, min_samples=4, max_samples=4)["x"]
    assert measurement.barrier_s == pytest.approx(4.5e-6)


def test_a_cpu_has_a_cpu_clock() -> None:
    chosen = clock_for(CPU, threads=2)
    assert isinstance(chosen, CpuClock)
    assert chosen.threads == 2


# A real GPU


@pytest.fixture
def gpu_clock() -> Clock:
    """The clock of the GPU."""
    return clock_for(GPU)


@pytest.mark.gpu
def test_tritons_benchmark_agrees() -> None:
    from triton.testing import do_bench

    a = torch.randn(4096, 4096, device=GPU, dtype=torch.bfloat16)

    def attempt() -> tuple[float, float]:
        measurement = compare({"x": lambda: a @ a}, clock=clock_for(GPU, graphs="never"), budget_s=0.5)["x"]
        return measurement.median_s, do_bench(lambda: a @ a, rep=500, return_mode="median") * 1e-3

    agree(attempt, 0.03)


@pytest.mark.gpu
def test_twice_the_cycles_take_twice_the_time(gpu_clock: Clock) -> None:
    calls = {str(n): (lambda n=n: torch.cuda._sleep(n * 10_000_000)) for n in (1, 2)}
    times = compare(calls, clock=gpu_clock, budget_s=0.5)
    assert ratio(times["2"], times["1"]).median == pytest.approx(2.0, rel=0.03)


@pytest.mark.gpu
def test_graphs_have_no_gaps(gpu_clock: Clock) -> None:
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
    """16 MiB fit into L2; reading them from memory takes longer."""
    x = torch.randn(2**22, device=GPU)
    cold = compare({"x": lambda: x.sum()}, clock=gpu_clock)["x"].median_s
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            x.sum()
    warm = compare({"x": graph.replay}, clock=clock_for(GPU, graphs="never"))["x"].median_s / 100
    assert cold > 1.1 * warm
