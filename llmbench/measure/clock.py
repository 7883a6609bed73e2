"""Clocks measure the time of calls. Candidates A and B are timed in turn in one run: A B B A A B B A …

On a GPU, the time of a call is the time between two CUDA events. The L2 cache is emptied before each call. Short calls
are captured as CUDA graphs, so that the gaps between kernel launches are not timed.

On a CPU, a wall clock measures several calls together. The number of torch's threads is fixed, and Python's garbage
collector is off.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.kernels.proof.accuracy import tf32_products
from llmbench.measure.cpu import barrier_timer, run_queue_delay_s
from llmbench.measure.cuda import captured
from llmbench.measure.measurement import ClockKind, Measurement, quantile
from llmbench.measure.telemetry import watching

__all__ = [
    "Call",
    "Clock",
    "CpuClock",
    "CudaClock",
    "DeviceLostError",
    "Stopwatch",
    "Warm",
    "attribute_loss",
    "clock_for",
    "compare",
    "observing",
]

Call = Callable[[], Any]
"""A function to time, without arguments. The inputs of the computation exist already, and the result is ignored."""

Graphs = Literal["auto", "always", "never"]
T = TypeVar("T")


class DeviceLostError(LLMBenchError):
    """The GPU's context or another rank is lost, so that this process cannot measure any more.

    This error ends the session, while other errors end only one candidate. `candidate`: the name of the candidate that
    was running, or None if the name is unknown.
    """

    exit_code = 3
    candidate: str | None = None


_observer: Callable[[str], None] | None = None


@contextmanager
def observing(observer: Callable[[str], None]) -> Iterator[None]:
    """Until the block ends, call `observer` with the name of a candidate each time the candidate begins to run.

    benchmarks/gpu measures in a child process. If the child hangs or dies, the last name is that of the
    running candidate.
    """
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


@contextmanager
def attribute_loss(candidate: str) -> Iterator[None]:
    """Report that the candidate begins to run. If the block raises a DeviceLostError, store the candidate's name in the
    error."""
    if _observer is not None:
        _observer(candidate)
    try:
        yield
    except DeviceLostError as problem:
        problem.candidate = candidate
        raise


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """A candidate that is ready for timing.

    `sample()` runs the candidate and returns the seconds per call.
    `kind`: the kind of clock. `calls`: the number of calls in a sample.
    `cold`: whether the GPU's L2 cache is emptied before each call.
    `notes`: facts that a reader must know before using the times.
    `run_queue_shares`: for each sample, the share of the time in which threads waited for a core. The list is empty if
        the system does not count this time.
    `barriers_s`: the barrier cost after each sample, in seconds. The list is empty for a single thread.
    """

    sample: Callable[[], float]
    kind: ClockKind
    calls: int = 1
    cold: bool = False
    notes: tuple[str, ...] = ()
    run_queue_shares: list[float] = field(default_factory=list)
    barriers_s: list[float] = field(default_factory=list)


class Warm(NamedTuple):
    """A candidate after its warm-up. `calls`: the number of warm-up calls. `fastest_s`: seconds of the fastest call."""

    call: Call
    calls: int
    fastest_s: float


class Clock(Protocol):
    """Times calls on one device."""

    @property
    def device(self) -> torch.device:
        """The device that the calls run on."""
        ...

    @property
    def threads(self) -> int | None:
        """The number of torch's threads on a CPU; None on a GPU."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Set the conditions for timing until the block ends."""
        ...

    def once(self, call: Call) -> float:
        """Run one call, wait for its end, and return its approximate time in seconds."""
        ...

    def stopwatches(self, candidates: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Make all candidates ready for timing. If possible, all candidates are timed by the same method."""
        ...

    def check_device(self) -> None:
        """Raise DeviceLostError if the device does not respond any more."""
        ...


def clock_for(device: torch.device, *, threads: int | None = None, graphs: Graphs = "auto") -> Clock:
    """Return the clock of a device. `threads` is used only on a CPU, and `graphs` only on a GPU."""
    return CudaClock(device, graphs=graphs) if device.type == "cuda" else CpuClock(threads=threads)


def compare(
    calls: Mapping[str, Call],
    *,
    clock: Clock,
    budget_s: float = 1.0,
    warmup_s: float = 0.1,
    min_samples: int = 10,
    max_samples: int = 400,
    failed: dict[str, Exception] | None = None,
) -> dict[str, Measurement]:
    """Time one or more candidates in interleaved rounds. `calls`: the call of each candidate, by name.

    Each candidate is warmed up for `warmup_s` seconds, with at least one call. A round takes one sample of each
    candidate. Every second round takes the candidates in reverse order. The rounds end when `budget_s` seconds have
    passed and each candidate has `min_samples` samples, or after `max_samples` rounds.

    If `failed` is None, the first error of a candidate ends the comparison. If `failed` is a dict, errors are stored in
    the dict under the names of the candidates, and the other candidates go on. Raises DeviceLostError with the name of
    the candidate if the device is lost.
    """
    left = dict(calls)

    def attempt(name: str, action: Callable[[], T]) -> T | None:
        with attribute_loss(name):
            try:
                return action()
            except DeviceLostError:
                raise
            except Exception as problem:
                if failed is None:
                    raise
                failed[name] = problem.with_traceback(None)  # a traceback would keep the call's tensors alive
                del left[name]
                clock.check_device()
                return None

    with clock.session(), watching(clock.device) as watch:
        warmed = {name: attempt(name, partial(_warm, clock, call, warmup_s)) for name, call in calls.items()}
        ready = {name: warm for name, warm in warmed.items() if warm is not None}
        watches = clock.stopwatches(ready)
        samples: dict[str, list[float]] = {name: [] for name in left}
        start = time.perf_counter()
        rounds = 0
        while left and rounds < max_samples:
            if rounds >= min_samples and rounds % 2 == 0 and time.perf_counter() - start >= budget_s:
                break
            for name in list(left) if rounds % 2 == 0 else list(reversed(left)):
                seconds = attempt(name, watches[name].sample)
                if seconds is not None:
                    samples[name].append(seconds)
            rounds += 1
    conditions = watch.conditions()
    return {
        name: Measurement(
            samples_s=tuple(samples[name]),
            clock=watches[name].kind,
            calls_per_sample=watches[name].calls,
            warmup_calls=ready[name].calls,
            cold=watches[name].cold,
            threads=clock.threads,
            run_queue_share=_median(watches[name].run_queue_shares),
            barrier_s=_median(watches[name].barriers_s),
            conditions=conditions,
            notes=watches[name].notes,
        )
        for name in left
    }


def _median(values: list[float]) -> float | None:
    return quantile(values, 0.5) if values else None


def _warm(clock: Clock, call: Call, warmup_s: float) -> Warm:
    """Run `call` for `warmup_s` seconds, and at least once."""
    start, count, fastest = time.perf_counter(), 0, math.inf
    while count == 0 or time.perf_counter() - start < warmup_s:
        fastest = min(fastest, clock.once(call))
        count += 1
    return Warm(call, count, fastest)


class CpuClock:
    """A wall clock for calls on a CPU.

    A sample has as many calls as run in `sample_s` seconds. Inputs that fit into the CPU's caches stay there between
    the calls. `threads`: the number of torch's threads; None keeps the current number.
    """

    device = torch.device("cpu")

    def __init__(self, *, threads: int | None = None, sample_s: float = 0.01) -> None:
        self.threads: int | None = threads or torch.get_num_threads()
        self.sample_s = sample_s

    @contextmanager
    def session(self) -> Iterator[None]:
        """Fix the number of threads and disable the garbage collector."""
        assert self.threads is not None
        threads, collecting = torch.get_num_threads(), gc.isenabled()
        torch.set_num_threads(self.threads)
        gc.disable()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if collecting:
                gc.enable()

    def once(self, call: Call) -> float:
        """Run one call and return its time in seconds."""
        return _wall_s(call, 1)

    def stopwatches(self, candidates: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Make each candidate ready for timing. Each candidate has its own number of calls per sample."""
        barrier_s = barrier_timer(self.threads)
        return {name: self._stopwatch(candidate, barrier_s) for name, candidate in candidates.items()}

    def check_device(self) -> None:
        """Do nothing: a CPU cannot be lost."""

    def _stopwatch(self, candidate: Warm, barrier_s: Callable[[], float] | None) -> Stopwatch:
        count = math.ceil(self.sample_s / max(candidate.fastest_s, 1e-8))
        shares: list[float] = []
        barriers: list[float] = []

        def sample() -> float:
            before = run_queue_delay_s()
            seconds = _wall_s(candidate.call, count)
            after = run_queue_delay_s()
            if before is not None and after is not None and seconds > 0:
                # The delay is a sum over threads, so it can exceed the wall time.
                shares.append(min(max(after - before, 0.0) / seconds, 1.0))
            if barrier_s is not None:
                barriers.append(barrier_s())
            return seconds / count

        return Stopwatch(sample=sample, kind="cpu", calls=count, run_queue_shares=shares, barriers_s=barriers)


def _wall_s(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


class CudaClock:
    """A clock that times calls on a GPU with CUDA events, and empties the L2 cache before each call.

    `graphs`: when calls are captured as CUDA graphs.
        "auto": if a call takes less than `SHORT_S` seconds, all calls are captured. A candidate that cannot be captured
        is timed with direct calls, and gets a note with the reason. The other candidates are still timed as graphs.
        "always": always. If the capture of a candidate fails, the error is raised.
        "never": never.
    `cuda`: torch.cuda, or a replacement for it in tests.
    """

    SHORT_S = 2e-3
    threads: int | None = None

    def __init__(self, device: torch.device, *, graphs: Graphs = "auto", cuda: Any = torch.cuda) -> None:
        self.device, self.graphs, self.cuda = device, graphs, cuda
        # Reading this buffer empties L2. The buffer is four times as large as L2, because the replacement policy of L2
        # is unknown. Writing the buffer instead would leave modified cache lines, which L2 would write to memory during
        # the timed call.
        size = max(4 * int(cuda.get_device_properties(device).L2_cache_size), 2**20)
        self._flush = torch.zeros(size // 4, dtype=torch.float32, device=device)
        self._sink = torch.zeros((), dtype=torch.float32, device=device)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Select the device, wait for earlier work, and let all candidates compute fp32 matrix products in tf32."""
        with self.cuda.device(self.device), tf32_products(self.device):
            self.check_device()
            yield

    def once(self, call: Call) -> float:
        """Run one call between two CUDA events and return its time in seconds."""
        start, end = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
        # Reading the buffer empties L2. It also keeps the GPU busy while the CPU queues the call.
        torch.sum(self._flush, dim=0, out=self._sink)
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def stopwatches(self, candidates: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Make all candidates ready for timing, as CUDA graphs or as direct calls (see `graphs` of CudaClock)."""
        short = any(candidate.fastest_s < self.SHORT_S for candidate in candidates.values())
        graphs = self.graphs == "always" or (self.graphs == "auto" and short)
        return {name: self._ready(name, candidate.call, graphs) for name, candidate in candidates.items()}

    def _ready(self, name: str, call: Call, graphs: bool) -> Stopwatch:
        if not graphs:
            return self._stopwatch(call, "cuda-events", ())
        try:
            return self._stopwatch(self._captured(name, call), "cuda-graph", ())
        except CannotRunError as problem:
            if self.graphs == "always":
                raise
            return self._stopwatch(call, "cuda-events", (f"{problem}; this time includes gaps between launches",))

    def check_device(self) -> None:
        """Raise DeviceLostError if the CUDA context is lost, as after an illegal memory access."""
        try:
            self.cuda.synchronize(self.device)
        except RuntimeError as problem:
            raise DeviceLostError(f"the GPU's context is lost ({str(problem).partition(chr(10))[0]})") from None

    def _stopwatch(self, call: Call, kind: ClockKind, notes: tuple[str, ...]) -> Stopwatch:
        return Stopwatch(sample=lambda: self.once(call), kind=kind, cold=True, notes=notes)

    def _captured(self, name: str, call: Call) -> Call:
        with attribute_loss(name):
            try:
                replay = captured(call, self.device, f"`{name}`", cuda=self.cuda)
                replay()
                self.cuda.synchronize(self.device)  # if the replay fails, this call raises the error
            except Exception:
                self.check_device()
                raise
        return replay
