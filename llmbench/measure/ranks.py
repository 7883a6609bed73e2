"""Keep the ranks in step while they measure. The ranks are the processes that torchrun started.

All ranks must call each collective equally often. Therefore the number of repetitions is fixed before a measurement,
and all ranks use the time of the slowest rank. After every step that may fail, the ranks exchange whether the
step failed. If the step failed on one rank, all ranks abandon the step. The ranks send these messages through a
separate process group on the CPUs, the control group, because an unfinished collective does not block this group. If a
rank waits in a collective until the timeout, the ranks are no longer in step, and the session ends. Only the first rank
writes the result file and prints the answer.
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
from llmbench.measure.results import Header, Key, Results, Row
from llmbench.measure.store import Store

__all__ = ["ALONE", "Follower", "Processes", "RankedClock", "Ranks", "join"]

Processes = Literal["one", "any", "several"]
"""The number of processes in which an experiment can run."""

COLLECTIVE_TIMEOUT = timedelta(seconds=120)
"""The time that a rank waits in a collective. After this time, the rank treats the other ranks as lost."""

CONTROL_TIMEOUTS = 3
"""The timeout of the control group, as a multiple of `COLLECTIVE_TIMEOUT`. The control group waits longer, because the
other ranks may wait in collectives until their own timeouts, one rank after another."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The position of this process among all ranks.

    `rank`: the number of this process, from 0.
    `size`: the number of all ranks.
    `processes`: the number of ranks on this machine.
    `control`: the process group through which the ranks exchange messages.
    """

    rank: int = 0
    size: int = 1
    processes: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the first rank, which writes the result file and prints the answer."""
        return self.rank == 0

    def agreed(self, action: Callable[[], T]) -> T:
        """Run `action` on all ranks and return the result. If `action` fails on any rank, raise an error on all ranks.

        The error is that of the first rank that failed. If ranks fail with different errors, DeviceLostError is raised,
        because the ranks are no longer in step: one rank left a collective, and the other ranks waited in the
        collective until the timeout.
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
        """Return the values of all ranks, in rank order. Raises DeviceLostError if a rank does not answer."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        try:
            dist.all_gather_object(values, value, group=self.control)
        except RuntimeError as problem:
            raise DeviceLostError(f"other ranks are lost ({_first_line(problem)})") from None
        return values

    def clock(self, device: torch.device) -> Clock:
        """Return the clock of a device.

        With several ranks, the clock gives all ranks the same times. It captures no CUDA graphs, because a graph cannot
        include the wait for other ranks.
        """
        return clock_for(device) if self.size == 1 else RankedClock(clock_for(device, graphs="never"), self)

    @contextmanager
    def store(self, path: Path, header: Header, *, resume: bool) -> Iterator[Store | Follower]:
        """Open the result file on the first rank. The other ranks write no file, but learn which rows the file has."""
        store = self.agreed(lambda: Store(path, header, resume=resume) if self.first else None)
        known = self.gathered((store.done, store.ended_session) if store is not None else (set(), set()))[0]
        if store is None:
            yield Follower(path, *known)
        else:
            with store:
                yield store


ALONE = Ranks()

NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


def _sendable(problem: Exception) -> Exception:
    """Return the error if it can be pickled, else a RuntimeError with the type and the first line of the error."""
    try:
        copied: Exception = loads(dumps(problem))
    except Exception:  # pickling calls methods of the error's class, which may raise any error
        return RuntimeError(f"{type(problem).__name__}: {_first_line(problem)}")
    return copied


def _common_error(problems: Mapping[int, Exception], size: int) -> Exception:
    """Return one error for all ranks that failed.

    `problems`: the error of each rank that failed. `size`: the number of all ranks. If only some ranks failed, the
    error gets a note that names one of them. Return a DeviceLostError if the ranks failed with different errors.
    """
    for problem in problems.values():
        if isinstance(problem, DeviceLostError):
            return problem
    faults = {rank: fault_of(problem) for rank, problem in problems.items()}
    # Numbers are removed, because equal errors name a different device, rank or address on each rank.
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
    """Replaces the Store on all ranks but the first. A Follower writes no file.

    `path`: the file that the first rank writes. `done`, `ended_session`: the keys of the rows as in `Store`.
    """

    existing: Results | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, done: set[Key], ended_session: set[Key]) -> None:
        self.path, self.done, self.ended_session = path, done, ended_session

    def write(self, rows: Iterable[Row]) -> None:
        """Do nothing, because only the first rank writes rows."""


def join(processes: Processes, device: torch.device, experiment: str) -> tuple[Ranks, torch.device]:
    """If torchrun started this process, join the other ranks. Return the ranks and this process's device.

    Raises LLMBenchError if the experiment does not support this number of processes.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    size = _number("WORLD_SIZE", least=1) if launched else 1
    if launched:
        _number("RANK", most=size - 1)
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
        local = _number("LOCAL_RANK")
        if local >= torch.cuda.device_count():
            raise CannotRunError(
                f"process {local} has no GPU: torchrun started more processes than the machine has GPUs "
                f"({torch.cuda.device_count()})",
                hint="start at most one process per GPU",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend, bound_device = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        try:
            dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, device_id=bound_device)
        except (ValueError, RuntimeError) as problem:  # a wrong MASTER_ADDR or MASTER_PORT, or missing processes
            raise CannotRunError(
                f"the {size} processes cannot reach each other: {_first_line(problem)}",
                hint="start them with torchrun, or remove the variables RANK and WORLD_SIZE",
            ) from None
        atexit.register(_leave)
    return _ranks(), device


def _number(variable: str, *, least: int = 0, most: int = 2**31) -> int:
    """Return the number of an environment variable that torchrun sets; 0 if it is not set."""
    text = os.environ.get(variable, "0")
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        raise LLMBenchError(
            f"the environment variable {variable} is {text[:60]!r}, not a number from {least} to {most}",
            hint="start the processes with torchrun, or remove the variables RANK and WORLD_SIZE",
        )
    return int(text)


@cache
def _ranks() -> Ranks:
    """Return the ranks of torch's default process group, with a new control group."""
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUTS * COLLECTIVE_TIMEOUT)
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), control=control)
    host = platform.node()
    return replace(ranks, processes=ranks.gathered(host).count(host))


def _leave() -> None:
    """Leave the process groups before Python ends.

    A thread of gloo may still be freeing the tensors of the last message. If Python ends before this thread is done,
    the thread aborts the process. After a barrier, the thread is done.
    """
    for group in (None, _ranks().control):
        if dist.get_backend(group) == "gloo":
            with suppress(RuntimeError):  # the barrier fails if another rank has already ended
                dist.barrier(group, async_op=True).wait(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


class RankedClock:
    """A clock that gives all ranks the time of the slowest rank. All ranks start each call at the same time."""

    def __init__(self, clock: Clock, ranks: Ranks) -> None:
        self.inner, self.ranks = clock, ranks
        self.device, self.threads = clock.device, clock.threads

    def session(self) -> AbstractContextManager[None]:
        """Set the conditions for timing until the block ends."""
        return self.inner.session()

    def once(self, call: Call) -> float:
        """Run one call on all ranks, wait for its end, and return the time of the slowest rank in seconds."""
        return self._slowest(partial(self.inner.once, call))

    def stopwatches(self, candidates: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """Make all candidates ready for timing.

        All ranks have equal warm-up times, and therefore take the same number of calls per sample.
        """

        def slowest(watch: Stopwatch) -> Stopwatch:
            return replace(watch, sample=partial(self._slowest, watch.sample))

        return {name: slowest(watch) for name, watch in self.inner.stopwatches(candidates).items()}

    def check_device(self) -> None:
        """Raise DeviceLostError on all ranks if the device of one rank is lost."""
        self.ranks.agreed(self.inner.check_device)

    def _slowest(self, timed: Callable[[], float]) -> float:
        """Run `timed` on all ranks at the same time and return the longest time in seconds."""

        def after_barrier() -> float:
            dist.barrier()
            return timed()

        return max(self.ranks.gathered(self.ranks.agreed(after_barrier)))
