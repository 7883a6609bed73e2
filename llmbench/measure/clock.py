"""How long does a call take? Rivals are timed side by side in one run: A B B A A B B A …

On a GPU two events enclose each call, L2 is emptied before, and calls that are short are captured as CUDA graphs, so
that the gaps between launches are not timed. On a CPU a wall clock encloses as many calls as make a sample that can be
trusted, with the number of torch's threads held and the garbage collector off. Every sample is kept.
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

from llmbench.errors import CannotRunError
from llmbench.kernels.proof.accuracy import tf32_products
from llmbench.measure.graphs import captured
from llmbench.measure.lost import LostError, running
from llmbench.measure.measurement import ClockKind, Measurement, quantile
from llmbench.measure.meeting import meeting
from llmbench.measure.telemetry import watching
from llmbench.measure.waiting import waited_s

__all__ = ["Call", "Clock", "CpuClock", "CudaClock", "Stopwatch", "Warm", "clock_for", "compare"]

Call = Callable[[], Any]
"""What is timed: everything it needs is there already, and nothing it returns is looked at."""

Graphs = Literal["auto", "always", "never"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """One rival, ready: `sample()` runs it and gives the seconds of a call. What grows with the samples: `waits`, where
    the system counts it, the share of each that threads waited for a core; `meetings`, where there are several threads,
    the seconds in which they met behind it."""

    sample: Callable[[], float]
    kind: ClockKind
    calls: int = 1
    cold: bool = False
    notes: tuple[str, ...] = ()
    waits: list[float] = field(default_factory=list)
    meetings: list[float] = field(default_factory=list)


class Warm(NamedTuple):
    """A rival that was called `calls` times; `fastest_s` is the shortest of them."""

    call: Call
    calls: int
    fastest_s: float


class Clock(Protocol):
    """What can time calls on a device. `threads`: torch's on a CPU, None on a GPU."""

    @property
    def device(self) -> torch.device:
        """Where the calls run."""
        ...

    @property
    def threads(self) -> int | None:
        """How many threads of a CPU they have."""
        ...

    def session(self) -> AbstractContextManager[None]:
        """Conditions that hold while anything is timed."""
        ...

    def once(self, call: Call) -> float:
        """Seconds of one call, roughly; done when it returns."""
        ...

    def stopwatches(self, rivals: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Make rivals ready, all in the same way."""
        ...

    def check_device(self) -> None:
        """Raise LostError where the device does nothing any more, whoever asks it to."""
        ...


def clock_for(device: torch.device, *, threads: int | None = None, graphs: Graphs = "auto") -> Clock:
    """The clock of a device: `threads` for a CPU, `graphs` for a GPU."""
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
    """Time rivals, interleaved; one call alone is a comparison too.

    Each is called at least once, and for `warmup_s` seconds, before anything counts. Then come rounds of one sample of
    each, every other round backwards, until `budget_s` seconds have gone and each has `min_samples`, or `max_samples`.
    A rival that raises ends the comparison with its error; where `failed` is given, it is put there by its name and the
    others go on. Raises LostError, with the rival's name, where they cannot.
    """
    left = dict(calls)

    def tried(name: str, action: Callable[[], T]) -> T | None:
        with running(name):
            try:
                return action()
            except LostError:
                raise
            except Exception as problem:
                if failed is None:
                    raise
                failed[name] = problem.with_traceback(None)  # which would keep the tensors of the failed call alive
                del left[name]
                clock.check_device()
                return None

    with clock.session(), watching(clock.device) as watch:
        warm = {name: tried(name, partial(_warm, clock, call, warmup_s)) for name, call in calls.items()}
        ready = {name: each for name, each in warm.items() if each is not None}
        watches = clock.stopwatches(ready)
        samples: dict[str, list[float]] = {name: [] for name in left}
        start = time.perf_counter()
        rounds = 0
        while left and rounds < max_samples:
            if rounds >= min_samples and rounds % 2 == 0 and time.perf_counter() - start >= budget_s:
                break
            for name in list(left) if rounds % 2 == 0 else list(reversed(left)):
                seconds = tried(name, watches[name].sample)
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
            waited=_middle(watches[name].waits),
            meeting_s=_middle(watches[name].meetings),
            conditions=conditions,
            notes=watches[name].notes,
        )
        for name in left
    }


def _middle(values: list[float]) -> float | None:
    return quantile(values, 0.5) if values else None


def _warm(clock: Clock, call: Call, warmup_s: float) -> Warm:
    """Call until the time has gone."""
    start, count, fastest = time.perf_counter(), 0, math.inf
    while count == 0 or time.perf_counter() - start < warmup_s:
        fastest = min(fastest, clock.once(call))
        count += 1
    return Warm(call, count, fastest)


class CpuClock:
    """A wall clock. A sample is so many calls that it takes `sample_s` seconds; they find their inputs in the caches
    where those have room. `threads`: torch's, as they are where None is given."""

    device = torch.device("cpu")

    def __init__(self, *, threads: int | None = None, sample_s: float = 0.01) -> None:
        self.threads: int | None = threads or torch.get_num_threads()
        self.sample_s = sample_s

    @contextmanager
    def session(self) -> Iterator[None]:
        """Threads held, no garbage collected."""
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
        """Seconds of one call."""
        return _wall(call, 1)

    def stopwatches(self, rivals: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Each with as many calls a sample as it needs."""
        meet = meeting(self.threads)
        return {name: self._stopwatch(rival, meet) for name, rival in rivals.items()}

    def check_device(self) -> None:
        """A CPU that is lost asks nobody."""

    def _stopwatch(self, rival: Warm, meet: Callable[[], float] | None) -> Stopwatch:
        count = math.ceil(self.sample_s / max(rival.fastest_s, 1e-8))
        waits: list[float] = []
        meetings: list[float] = []

        def sample() -> float:
            before = waited_s()
            seconds = _wall(rival.call, count)
            after = waited_s()
            if before is not None and after is not None and seconds > 0:
                waits.append(min(max(after - before, 0.0) / seconds, 1.0))  # several threads may wait at once
            if meet is not None:
                meetings.append(meet())
            return seconds / count

        return Stopwatch(sample=sample, kind="cpu", calls=count, waits=waits, meetings=meetings)


def _wall(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start


class CudaClock:
    """Events of a GPU, L2 emptied before each call.

    graphs "auto": graphs where one of the rivals takes less than `SHORT_S` and all can be captured; the reason why one
    cannot is a note of all. "always" raises it, "never" captures nothing. `cuda` is torch.cuda.
    """

    SHORT_S = 500e-6
    threads: int | None = None

    def __init__(self, device: torch.device, *, graphs: Graphs = "auto", cuda: Any = torch.cuda) -> None:
        self.device, self.graphs, self.cuda = device, graphs, cuda
        # Four times the L2, for it replaces by guess. The buffer is read: lines written would be written back to memory
        # during the call that is timed.
        size = max(4 * int(cuda.get_device_properties(device).L2_cache_size), 2**20)
        self._flush = torch.zeros(size // 4, dtype=torch.float32, device=device)
        self._sink = torch.zeros((), dtype=torch.float32, device=device)

    @contextmanager
    def session(self) -> Iterator[None]:
        """The device is current; nothing from before is still running; products of fp32 are tf32, for all."""
        with self.cuda.device(self.device), tf32_products(self.device):
            self.check_device()
            yield

    def once(self, call: Call) -> float:
        """Seconds of one call between two events."""
        start, end = self.cuda.Event(enable_timing=True), self.cuda.Event(enable_timing=True)
        torch.sum(self._flush, dim=0, out=self._sink)  # the launches of the call queue up behind it
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def stopwatches(self, rivals: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """All by events, or all by graphs."""
        notes: tuple[str, ...] = ()
        short = any(rival.fastest_s < self.SHORT_S for rival in rivals.values())
        if self.graphs == "always" or (self.graphs == "auto" and short):
            try:
                replays = {name: self._captured(name, rival.call) for name, rival in rivals.items()}
                return {name: self._stopwatch(replay, "cuda-graph", ()) for name, replay in replays.items()}
            except CannotRunError as problem:
                if self.graphs == "always":
                    raise
                notes = (str(problem),)
        return {name: self._stopwatch(rival.call, "cuda-events", notes) for name, rival in rivals.items()}

    def check_device(self) -> None:
        """After an illegal access, for one, every call of the driver fails."""
        try:
            self.cuda.synchronize(self.device)
        except RuntimeError as problem:
            raise LostError(f"the GPU's context is lost ({str(problem).partition(chr(10))[0]})") from None

    def _stopwatch(self, call: Call, kind: ClockKind, notes: tuple[str, ...]) -> Stopwatch:
        return Stopwatch(sample=lambda: self.once(call), kind=kind, cold=True, notes=notes)

    def _captured(self, name: str, call: Call) -> Call:
        with running(name):
            try:
                replay = captured(call, self.device, f"`{name}`", cuda=self.cuda)
                replay()
                self.cuda.synchronize(self.device)  # what it does wrong is its own, and not the next one's
            except Exception:
                self.check_device()
                raise
        return replay
