"""One process among several that torchrun started: what they must agree on, so that none waits for the others in vain.

Ranks that time a collective call must make it equally often. So times are those of the slowest rank, which all know;
how often something is repeated is settled beforehand; and what fails on one rank fails on all. The first rank alone
writes and answers.
"""

from __future__ import annotations

import atexit
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.measure.clock import Call, Clock, Stopwatch, Warm, clock_for
from llmbench.measure.results import Header, Key, Results, Row, Store

__all__ = ["ALONE", "Follower", "Processes", "RankedClock", "Ranks", "join"]

Processes = Literal["one", "any", "several"]
"""In how many processes an experiment runs."""

PATIENCE = timedelta(seconds=120)
"""How long a rank waits for others before it takes them for dead."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and answers."""
        return self.rank == 0

    def agreed(self, action: Callable[[], T]) -> T:
        """What `action` gives. Where it raises on any rank, the first such error is raised on all."""
        if self.size == 1:
            return action()
        problem: Exception | None = None
        try:
            made = action()
        except Exception as error:
            problem = error.with_traceback(None)
        problems: list[Exception | None] = [None] * self.size
        dist.all_gather_object(problems, problem)
        found = next((each for each in problems if each is not None), None)
        if found is not None:
            raise found
        return made

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def clock(self, device: torch.device) -> Clock:
        """The clock of a device, and where there are others one that all read alike. It captures no graphs: what ranks
        wait for is no part of one."""
        return clock_for(device) if self.size == 1 else RankedClock(clock_for(device, graphs="never"))

    @contextmanager
    def store(self, path: Path, header: Header, *, resume: bool) -> Iterator[Store | Follower]:
        """The first rank's file; the others know what it has, and write nothing."""
        opened = self.agreed(lambda: Store(path, header, resume=resume) if self.first else None)
        done = self.gathered(opened.done if opened is not None else set())[0]
        if opened is None:
            yield Follower(done)
        else:
            with opened:
                yield opened


ALONE = Ranks()


class Follower:
    """What another rank has in place of a Store."""

    found: Results | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, done: set[Key]) -> None:
        self.done = done

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
    return Ranks(dist.get_rank(), dist.get_world_size()), device


def _leave() -> None:
    """Before Python ends. A thread of gloo may still be letting go of the tensors of what was sent last; that it would
    have to do in an interpreter which is gone, and abort. It has done so when the next thing, a barrier, is through."""
    if dist.get_backend() == "gloo":
        with suppress(RuntimeError):  # another rank may be gone already, and is not waited for
            dist.barrier(async_op=True).wait(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


class RankedClock:
    """A clock whose times are those of the slowest rank; all begin a call together."""

    def __init__(self, clock: Clock) -> None:
        self.inner, self.device, self.threads = clock, clock.device, clock.threads

    def session(self) -> AbstractContextManager[None]:
        """See Clock."""
        return self.inner.session()

    def once(self, call: Call) -> float:
        """See Clock."""
        return self._slowest(lambda: self.inner.once(call))

    def stopwatches(self, rivals: Mapping[str, Warm]) -> dict[str, Stopwatch]:
        """See Clock. All ranks have the same fastest times, and so as many calls a sample."""

        def together(watch: Stopwatch) -> Stopwatch:
            return replace(watch, sample=lambda: self._slowest(watch.sample))

        return {name: together(watch) for name, watch in self.inner.stopwatches(rivals).items()}

    def _slowest(self, timed: Callable[[], float]) -> float:
        """The longest of all ranks' times. What fails on one takes forever, and so fails on all."""
        dist.barrier()
        seconds, problem = math.inf, None
        try:
            seconds = timed()
        except Exception as error:
            problem = error
        found = torch.tensor(seconds, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        if problem is not None:
            raise problem
        if math.isinf(float(found)):
            raise RuntimeError("another rank failed")
        return float(found)
