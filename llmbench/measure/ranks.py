"""Ranks: the processes that torchrun started, and how they stay in step while they measure.

All ranks must call each collective equally often. Therefore all ranks use the time of the slowest rank, and the number
of repetitions is fixed beforehand. After every step that may fail, the ranks exchange whether it failed. If it failed
on one rank, all ranks abandon it. For these messages they use a separate control group on the hosts' CPUs, because an
unfinished collective does not block it. If a rank waits in a collective until the timeout, the ranks are no longer in
step, and the session ends. Only the first rank writes the file and prints the answer.
"""

from __future__ import annotations

import atexit
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from pickle import dumps, loads
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.measure.clock import Call, Clock, DeviceLostError, Stopwatch, Warm, clock_for
from llmbench.measure.faults import fault_of
from llmbench.measure.results import Header, Key, Results, Row, Store

__all__ = ["ALONE", "Follower", "Processes", "RankedClock", "Ranks", "join"]

Processes = Literal["one", "any", "several"]
"""The number of processes that an experiment runs in."""

COLLECTIVE_TIMEOUT = timedelta(seconds=120)
"""The time that a rank waits in a collective before it treats the other ranks as lost."""

CONTROL_TIMEOUTS = 3
"""The control group's timeout, as a multiple of `COLLECTIVE_TIMEOUT`. It is longer because ranks may reach their
timeouts in collectives one after another."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size` processes, of which `processes` run on this machine. `control`: the
    process group in which the ranks exchange messages."""

    rank: int = 0
    size: int = 1
    processes: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank writes the file and prints the answer."""
        return self.rank == 0

    def agreed(self, action: Callable[[], T]) -> T:
        """Run `action` and return its result. If it raises on any rank, raise the first such error on all ranks.

        Raises DeviceLostError if ranks fail with different errors. That happens when one rank leaves a collective in
        which other ranks wait. Those ranks fail by timeout, and later messages would be matched with the wrong
        collective.
        """
        if self.size == 1:
            return action()
        problem: Exception | None = None
        try:
            result = action()
        except Exception as error:
            problem = _sendable(error)
        problems = {rank: error for rank, error in enumerate(self.gathered(problem)) if error is not None}
        if problems:
            raise _common_error(problems, self.size)
        return result

    def gathered(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order. Raises DeviceLostError if a rank does not answer."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        try:
            dist.all_gather_object(values, value, group=self.control)
        except RuntimeError as problem:
            raise DeviceLostError(f"other ranks are lost ({_first_line(problem)})") from None
        return values

    def clock(self, device: torch.device) -> Clock:
        """Return the clock of a device. With several ranks, the clock gives all ranks the same times, and captures no
        CUDA graphs, because the wait for other ranks cannot be captured."""
        return clock_for(device) if self.size == 1 else RankedClock(clock_for(device, graphs="never"), self)

    @contextmanager
    def store(self, path: Path, header: Header, *, resume: bool) -> Iterator[Store | Follower]:
        """Open the first rank's file. The other ranks learn which rows it has, and write nothing."""
        store = self.agreed(lambda: Store(path, header, resume=resume) if self.first else None)
        known = self.gathered((store.done, store.ended_session) if store is not None else (set(), set()))[0]
        if store is None:
            yield Follower(*known)
        else:
            with store:
                yield store


ALONE = Ranks()

NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


def _sendable(problem: Exception) -> Exception:
    """Return the error if it can be pickled, else a RuntimeError with its type and first line."""
    try:
        copied: Exception = loads(dumps(problem))
    except Exception:  # an error may have any attributes
        return RuntimeError(f"{type(problem).__name__}: {_first_line(problem)}")
    return copied


def _common_error(problems: Mapping[int, Exception], size: int) -> Exception:
    """Return the error of ranks that failed in the same way, with a note if other ranks did not fail. Return a
    DeviceLostError if ranks failed with different errors."""
    for problem in problems.values():
        if isinstance(problem, DeviceLostError):
            return problem
    faults = {rank: fault_of(problem) for rank, problem in problems.items()}
    # Numbers are ignored: the same error names a different device, rank or address on each rank.
    kinds = {NUMBER.sub("", fault.reason) if fault.status == "FAILED" else fault.status for fault in faults.values()}
    if len(kinds) > 1:
        reasons = "; ".join(f"rank {rank}: {fault.reason}" for rank, fault in faults.items())
        return DeviceLostError(f"ranks are no longer in step: {reasons}")
    rank, problem = next(iter(problems.items()))
    if len(problems) < size:
        problem.add_note(f"on rank {rank}")
    return problem


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0]


class Follower:
    """Replaces the Store on the ranks that write no file."""

    existing: Results | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, done: set[Key], ended_session: set[Key]) -> None:
        self.done, self.ended_session = done, ended_session

    def write(self, rows: Iterable[Row]) -> None:
        """Do nothing: the first rank writes."""


def join(processes: Processes, device: torch.device, experiment: str) -> tuple[Ranks, torch.device]:
    """If torchrun started this process, join the other ranks. Return the ranks and this process's device.

    Raises LLMBenchError if the experiment does not support this number of processes.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else 1
    if processes == "several" and size == 1:
        raise LLMBenchError(
            f"{experiment} needs several processes, and there is only one",
            hint=f"torchrun --nproc-per-node 2 -m llmbench bench {experiment} --device {device.type}",
        )
    if processes == "one" and size > 1:
        raise LLMBenchError(
            f"{experiment} runs in one process, and torchrun started {size}", hint="run it without torchrun"
        )
    if size == 1:
        return ALONE, device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise CannotRunError(f"process {local} has no GPU: this machine has {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend, bound_device = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=bound_device)
        atexit.register(_leave)
    return _ranks(), device


@cache
def _ranks() -> Ranks:
    """Return the ranks of the default process group, with a new control group."""
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUTS * COLLECTIVE_TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), control=control)
    host = platform.node()
    return replace(ranks, processes=ranks.gathered(host).count(host))


def _leave() -> None:
    """Leave the groups before Python ends.

    A thread of gloo may still be releasing the tensors of the last message. If Python ends first, the thread aborts the
    process. A finished barrier shows that the thread is done.
    """
    for group in (None, _ranks().control):
        if dist.get_backend(group) == "gloo":
            with suppress(RuntimeError):  # another rank may have ended already
                dist.barrier(group, async_op=True).wait(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


class RankedClock:
    """A clock that returns the time of the slowest rank. All ranks begin a call together."""

    def __init__(self, clock: Clock, ranks: Ranks) -> None:
        self.inner, self.ranks = clock, ranks
        self.device, self.threads = clock.device, clock.threads

    def session(self) -> AbstractContextManager[None]:
        """Set the conditions for timing until the block ends."""
        return self.inner.session()

    def once(self, call: Call) -> float:
        """Run one call to its end on all ranks, and return the seconds of the slowest rank."""
        return self._slowest(partial(self.inner.once, call))

    def stopwatches(self, candidates: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Make all candidates ready for timing. All ranks have the same fastest times, and therefore the same number of
        calls per sample."""

        def slowest(watch: Stopwatch) -> Stopwatch:
            return replace(watch, sample=partial(self._slowest, watch.sample))

        return {name: slowest(watch) for name, watch in self.inner.stopwatches(candidates).items()}

    def check_device(self) -> None:
        """Raise DeviceLostError on all ranks if one rank has lost its device."""
        self.ranks.agreed(self.inner.check_device)

    def _slowest(self, timed: Callable[[], float]) -> float:
        """Run `timed` on all ranks together and return the longest time."""

        def after_barrier() -> float:
            dist.barrier()
            return timed()

        return max(self.ranks.gathered(self.ranks.agreed(after_barrier)))
