"""One process among several that torchrun started: what they must agree on, so that none waits for the others in vain.

Ranks that time a collective call must make it equally often. So times are those of the slowest rank, which all know;
how often something is repeated is settled beforehand; and of every step that may fail it is agreed whether it did: what
fails on one rank is given up by all. They agree in a group of processes of their own, on the hosts, which a collective
that some rank never comes to does not disturb. Where one is left waiting in such a collective, until it is out of
patience, ranks have not done the same any more, and the session ends. The first rank alone writes and answers.
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
from llmbench.measure.clock import Call, Clock, Stopwatch, Warm, clock_for
from llmbench.measure.gate import fault_of
from llmbench.measure.lost import LostError
from llmbench.measure.results import Header, Key, Results, Row, Store

__all__ = ["ALONE", "Follower", "Processes", "RankedClock", "Ranks", "join"]

Processes = Literal["one", "any", "several"]
"""In how many processes an experiment runs."""

PATIENCE = timedelta(seconds=120)
"""How long a rank waits in a collective before it takes others for dead."""

TRIES = 3
"""How many times as long it waits for them to agree: they may be out of patience one after the other."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`, one of `processes` on its machine. They agree in the group `control`."""

    rank: int = 0
    size: int = 1
    processes: int = 1
    control: Any = None

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and answers."""
        return self.rank == 0

    def agreed(self, action: Callable[[], T]) -> T:
        """What `action` gives. Where it raises on any rank, the first such error is raised on all.

        Raises LostError where ranks fail differently: where one has left a collective that others wait in, they fail
        too, of waiting; what they send from then on would meet what it was not meant for.
        """
        if self.size == 1:
            return action()
        problem: Exception | None = None
        try:
            made = action()
        except Exception as error:
            problem = _sendable(error)
        problems = {rank: each for rank, each in enumerate(self.gathered(problem)) if each is not None}
        if problems:
            raise _of_all(problems, self.size)
        return made

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks. Raises LostError where some do not come."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        try:
            dist.all_gather_object(values, value, group=self.control)
        except RuntimeError as problem:
            raise LostError(f"other ranks are lost ({_first_line(problem)})") from None
        return values

    def clock(self, device: torch.device) -> Clock:
        """The clock of a device, and where there are others one that all read alike. It captures no graphs: what ranks
        wait for is no part of one."""
        return clock_for(device) if self.size == 1 else RankedClock(clock_for(device, graphs="never"), self)

    @contextmanager
    def store(self, path: Path, header: Header, *, resume: bool) -> Iterator[Store | Follower]:
        """The first rank's file; the others know what it has, and write nothing."""
        opened = self.agreed(lambda: Store(path, header, resume=resume) if self.first else None)
        known = self.gathered((opened.done, opened.ended_session) if opened is not None else (set(), set()))[0]
        if opened is None:
            yield Follower(*known)
        else:
            with opened:
                yield opened


ALONE = Ranks()

NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


def _sendable(problem: Exception) -> Exception:
    """The same to other processes, or what can be said of it to them."""
    try:
        copied: Exception = loads(dumps(problem))
    except Exception:  # whatever an error is made of
        return RuntimeError(f"{type(problem).__name__}: {_first_line(problem)}")
    return copied


def _of_all(problems: Mapping[int, Exception], size: int) -> Exception:
    """The one error of ranks that failed alike, with a note where the others did not fail."""
    for problem in problems.values():
        if isinstance(problem, LostError):
            return problem
    faults = {rank: fault_of(problem) for rank, problem in problems.items()}
    # Numbers aside: the same error names another device, rank or address on each.
    kinds = {NUMBER.sub("", fault.reason) if fault.status == "FAILED" else fault.status for fault in faults.values()}
    if len(kinds) > 1:
        told = "; ".join(f"rank {rank}: {fault.reason}" for rank, fault in faults.items())
        return LostError(f"ranks are no longer in step: {told}")
    rank, problem = next(iter(problems.items()))
    if len(problems) < size:
        problem.add_note(f"on rank {rank}")
    return problem


def _first_line(problem: Exception) -> str:
    return str(problem).strip().partition("\n")[0]


class Follower:
    """What another rank has in place of a Store."""

    found: Results | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, done: set[Key], ended_session: set[Key]) -> None:
        self.done, self.ended_session = done, ended_session

    def write(self, rows: Iterable[Row]) -> None:
        """The first rank does that."""


def join(processes: Processes, device: torch.device, experiment: str) -> tuple[Ranks, torch.device]:
    """The ranks that torchrun started, or this process alone; and the device of this one.

    Raises LLMBenchError where an experiment is not for so many processes.
    """
    launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    size = int(os.environ["WORLD_SIZE"]) if launched else 1
    if processes == "several" and size == 1:
        raise LLMBenchError(
            f"{experiment} needs several processes, and this is one",
            hint=f"torchrun --nproc-per-node 2 -m llmbench bench {experiment} --device {device.type}",
        )
    if processes == "one" and size > 1:
        raise LLMBenchError(f"{experiment} runs in one process, and torchrun started {size}", hint="leave torchrun out")
    if size == 1:
        return ALONE, device
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise CannotRunError(f"process {local} has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend, where = ("nccl", device) if device.type == "cuda" else ("gloo", None)
        dist.init_process_group(backend, timeout=PATIENCE, device_id=where)
        atexit.register(_leave)
    return _ranks(), device


@cache
def _ranks() -> Ranks:
    """Of the group of all processes, with another one for what they agree upon."""
    control = dist.new_group(backend="gloo", timeout=TRIES * PATIENCE)
    alone = Ranks(dist.get_rank(), dist.get_world_size(), control=control)
    here = platform.node()
    return replace(alone, processes=alone.gathered(here).count(here))


def _leave() -> None:
    """Before Python ends. A thread of gloo may still be letting go of the tensors of what was sent last; that it would
    have to do in an interpreter which is gone, and abort. It has done so when the next thing, a barrier, is through."""
    for group in (None, _ranks().control):
        if dist.get_backend(group) == "gloo":
            with suppress(RuntimeError):  # another rank may be gone already, and is not waited for
                dist.barrier(group, async_op=True).wait(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


class RankedClock:
    """A clock whose times are those of the slowest rank; all begin a call together."""

    def __init__(self, clock: Clock, ranks: Ranks) -> None:
        self.inner, self.ranks = clock, ranks
        self.device, self.threads = clock.device, clock.threads

    def session(self) -> AbstractContextManager[None]:
        """See Clock."""
        return self.inner.session()

    def once(self, call: Call) -> float:
        """See Clock."""
        return self._slowest(partial(self.inner.once, call))

    def stopwatches(self, rivals: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """See Clock. All ranks have the same fastest times, and so as many calls a sample."""

        def together(watch: Stopwatch) -> Stopwatch:
            return replace(watch, sample=partial(self._slowest, watch.sample))

        return {name: together(watch) for name, watch in self.inner.stopwatches(rivals).items()}

    def check_device(self) -> None:
        """See Clock: a device that one rank has lost."""
        self.ranks.agreed(self.inner.check_device)

    def _slowest(self, timed: Callable[[], float]) -> float:
        """The longest of all ranks' times."""

        def begun_together() -> float:
            dist.barrier()
            return timed()

        return max(self.ranks.gathered(self.ranks.agreed(begun_together)))
