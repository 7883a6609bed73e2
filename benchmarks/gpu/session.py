"""Measure jobs in child processes and write their rows into the result file.

A candidate that hangs, crashes, or loses the CUDA context ends its child process. It gets a row with the reason, and a
new child process measures the other candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch._dynamo  # our ops import it at their first call; here it is imported once, and every child has it

from benchmarks.gpu import summary
from benchmarks.gpu.children import Child, Reporter
from benchmarks.gpu.goals import REFERENCES
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.machine import Deadline, Machine, Pace
from benchmarks.gpu.measuring import failed_row
from llmbench.errors import CannotRunError
from llmbench.measure.clock import DeviceLostError, observing
from llmbench.measure.environment import environment
from llmbench.measure.reference import measure_references
from llmbench.measure.results import ENDED_SESSION, Header, Key, Row, Scalar, Status
from llmbench.measure.store import Store

__all__ = ["Description", "Opener", "Session", "describe_machine"]

Opener = Callable[[Pace, bool | None], AbstractContextManager[Machine]]
"""`machine.open_gpu` or `machine.open_rehearsal`."""

START_S = 60.0
"""The longest time for the environment and the reference measurements."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process found out about the machine. `names_kernels`: whether the profiler can name kernels."""

    header: Header
    notes: list[str]
    names_kernels: bool


def describe_machine(opener: Opener, pace: Pace, inputs: dict[str, Any], folder: Path) -> Description:
    """Describe the machine and take the reference measurements, in a child process. Raises CannotRunError if there is
    no GPU, or if the child ends badly."""

    def work(reporter: Reporter) -> None:
        try:
            with opener(pace, None) as machine:
                header = Header(
                    command="gpu_check",
                    inputs=inputs,
                    environment=environment(machine.device),
                    reference_measurements=measure_references(
                        machine.clock, machine.dtype, budget_s=0.0 if machine.rehearsal else 0.3, sizes=machine.sizes
                    ),
                )
                description = Description(header=header, notes=machine.notes, names_kernels=machine.names_kernels)
                reporter.send(["found", msgspec.to_builtins(description)])
        except CannotRunError as problem:
            reporter.send(["cannot", [str(problem), problem.hint]])

    child = Child(work, folder / "machine.log")
    for kind, value in child.messages(until=time.monotonic() + START_S, stall_s=START_S):
        if kind == "cannot":
            raise CannotRunError(value[0], hint=value[1])
        return msgspec.convert(value, Description)
    raise CannotRunError(f"the reference measurements failed: {child.outcome}", hint=f"its output is in {child.log}")


class Session:
    """A run in progress: its machine, result file, time limits and rows."""

    def __init__(self, opener: Opener, machine: Description, store: Store, pace: Pace, deadline: Deadline, logs: Path):
        self.opener, self.names_kernels = opener, machine.names_kernels
        self.store, self.pace, self.deadline, self.logs = store, pace, deadline, logs
        self.rehearsal = bool(machine.header.inputs.get("rehearsal"))
        self.rows: list[Row] = []
        self.never: set[Key] = set()  # candidates that failed, which are not tried again at the same case
        self._children = 0

    def keep(self, row: Row) -> None:
        """Write a row into the result file at once, so that an interruption does not lose it, and print it."""
        self.store.write([row])
        self.rows.append(row)
        if row.status in ("INCORRECT", "OOM", "FAILED"):
            self.never.add(row.key)
        print(summary.line(row, self.rehearsal), flush=True)

    def measure(self, jobs: Sequence[Job]) -> None:
        """Measure jobs that share a child process. Every job gets at least one row."""
        until = time.monotonic() + min(self.pace.family_s, self.deadline.left_s)
        left = [(job, [name for name in job.names if self._key(job, name) not in self.never]) for job in jobs]
        while True:
            left = [(job, names) for job, names in left if _worth_measuring(job, names)]
            if not left:
                return
            if time.monotonic() + self.pace.least_s > until:
                for job, names in left:
                    self.keep(self._row(job, names[0], "n/a", "no time was left"))
                return
            left = self._attempt(left, until)

    def _attempt(self, left: list[tuple[Job, list[str]]], until: float) -> list[tuple[Job, list[str]]]:
        """Measure the jobs in one child process. If it ends badly, return what remains."""
        self._children += 1
        names_kernels = self.names_kernels
        pace, opener = self.pace, self.opener

        def work(reporter: Reporter) -> None:
            with opener(pace, names_kernels) as machine, observing(reporter.running):
                for index, (job, names) in enumerate(left):
                    _report_rows(index, job, names, machine, reporter)

        assembler = left[0][0].assembler
        log = self.logs / f"{self._children:03d}-{left[0][0].family}.log"
        child = Child(work, log, environment=assembler.environment if assembler else None)
        current, ended, blamed = 0, -1, False
        for kind, value in child.messages(until=until, stall_s=self.pace.stall_s):
            if kind == "row":
                row = msgspec.convert(value, Row)
                left[current][1].remove(row.implementation)
                self.keep(row)
                blamed = blamed or row.ended_session  # the GPU's context is lost
            elif kind == "job":
                current = value
            else:
                ended = value
        if child.outcome is None:
            return []
        if ended == current:  # the child ended between two jobs
            return left[current + 1 :]
        job, names = left[current]
        late = time.monotonic() >= until
        if child.running in names:
            self._keep_fault(job, child.running, child.outcome, late)
            names = [] if late else [name for name in names if name != child.running]
        elif not late and not blamed:
            self._keep_fault(job, names[0], child.outcome, late)
            names = []
        return [(job, names), *left[current + 1 :]]

    def _keep_fault(self, job: Job, name: str, outcome: str, late: bool) -> None:
        """Keep the row of a candidate that ended its child process, or that ran when the time ended."""
        if late:
            self.keep(self._row(job, name, "n/a", f"no time was left ({outcome})"))
        else:
            self.keep(self._row(job, name, "FAILED", f"its process was {outcome}", {ENDED_SESSION: True}))

    def _row(self, job: Job, name: str, status: Status, reason: str, extra: dict[str, Scalar] | None = None) -> Row:
        return Row(
            experiment=job.title, case=job.case, implementation=name, status=status, reason=reason, extra=extra or {}
        )

    def _key(self, job: Job, name: str) -> Key:
        return self._row(job, name, "n/a", "–").key


def _worth_measuring(job: Job, names: Sequence[str]) -> bool:
    """Whether the names contain more than reference measurements, which mean nothing without a kernel."""
    return any(name not in REFERENCES for name in names)


def _report_rows(index: int, job: Job, names: Sequence[str], machine: Machine, reporter: Reporter) -> None:
    """Measure a job in a child process and send its rows. Raises DeviceLostError if the GPU's context is lost."""
    reporter.send(["job", index])
    try:
        for row in job.rows(machine, names):
            reporter.send(["row", msgspec.to_builtins(row)])
    except DeviceLostError:
        raise
    except Exception as problem:
        reporter.send(["row", msgspec.to_builtins(failed_row(job.title, job.case, names[0], problem))])
    reporter.running("")
    reporter.send(["end", index])
    machine.forget()
    if machine.device.type == "cuda":
        torch.cuda.synchronize(machine.device)
