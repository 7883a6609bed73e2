"""The run: where it is, tests and compilers beside each other, then the experiments one by one, then the table."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu import summary, tuning
from benchmarks.gpu.experiments import chosen
from benchmarks.gpu.machine import Deadline, Machine, a_gpu, a_rehearsal, slug
from benchmarks.gpu.measuring import broken, rivals_of, rows_of
from benchmarks.gpu.workers import ROOT, Suite, prepare, run_once
from llmbench.kernels.kernel import Kernel
from llmbench.kernels.registry import KERNELS, load_kernel
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.environment import environment
from llmbench.measure.reference import measure_references
from llmbench.measure.results import Header, Row, Store, read

__all__ = ["run"]

WARMERS = 4
"""Processes that compile what will be timed, beside those that run tests."""

TESTS_SHARE, ALONE_SHARE, WARM_SHARE = 0.32, 0.05, 0.25
"""Of the seconds: what tests and compilers may take, tests that need the GPU alone, and compilers without tests."""

LATE_S = 15.0
"""What the end may be late, before a run that hangs in a kernel is ended from outside Python."""


def run(given: argparse.Namespace) -> int:
    """Do what was asked; the exit code."""
    if given.table is not None:
        found = read(given.table)
        part = any(header.inputs.get("only") for header in found.headers)
        quick = any(header.inputs.get("rehearsal") for header in found.headers)
        summary.table(found.rows, rehearsal=quick, only=[row.experiment for row in found.rows] if part else ())
        return _code(found.rows)
    chosen(given.only)  # names are refused before anything is started
    kernels = [load_kernel(name) for name in given.tune or KERNELS]
    with a_rehearsal() if given.quick else a_gpu() as machine:
        if given.warm is not None:
            _warm(given, kernels, machine)
            return 0
        deadline = Deadline(given.seconds)
        faulthandler.dump_traceback_later(given.seconds + LATE_S, exit=True, file=sys.__stderr__ or sys.stderr)
        try:
            return _run_into_a_file(given, kernels, machine, deadline)
        finally:
            faulthandler.cancel_dump_traceback_later()


def _run_into_a_file(given: argparse.Namespace, kernels: Sequence[Kernel], machine: Machine, deadline: Deadline) -> int:
    """A run with a file of its own, or the rest of one."""
    header, path = _header(given, machine), given.resume or _path(given, machine)
    with Store(path, header, resume=given.resume is not None) as store:
        session = _Session(machine, store, deadline)
        print(f"{summary.begin(header, machine.notes)}\nresults: {path}\n", flush=True)
        code = 0
        try:
            if given.resume is None:
                _prepare(given, session)
            if given.tune is not None:
                _tune(kernels, session)
            else:
                _measure(given, session)
        except KeyboardInterrupt:
            print("\ninterrupted: what follows is what was measured", flush=True)
            code = 130
        if given.tune is None:
            print()
            only = [each.name for each in chosen(given.only)]
            summary.table(session.rows, rehearsal=machine.rehearsal, only=only)
        return code or _code(session.rows)


class _Session:
    """A run under way: `keep` writes a row into the file, and says it."""

    def __init__(self, machine: Machine, store: Store, deadline: Deadline) -> None:
        self.machine, self.store, self.deadline = machine, store, deadline
        self.rows = list(store.existing.rows) if store.existing else []

    def keep(self, row: Row, *, said: bool = True) -> None:
        """A row is in the file before the next is measured."""
        self.store.write([row])
        self.rows.append(row)
        if said:
            print(summary.line(row, self.machine.rehearsal), flush=True)


def _code(rows: Sequence[Row]) -> int:
    return 1 if summary.faults(rows) else 0


def _header(given: argparse.Namespace, machine: Machine) -> Header:
    """The environment, and reference measurements of a quiet GPU."""
    return Header(
        command="gpu_check",
        inputs={"only": given.only, "tune": given.tune, "rehearsal": machine.rehearsal},
        environment=environment(machine.device),
        reference_measurements=measure_references(
            machine.clock, machine.dtype, budget_s=0.0 if machine.rehearsal else 0.3, sizes=machine.sizes
        ),
    )


def _path(given: argparse.Namespace, machine: Machine) -> Path:
    folder: Path = given.results or ROOT / "benchmarks" / "results" / slug(machine.name)
    if machine.rehearsal and given.results is None:  # nothing to keep
        folder = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    folder.mkdir(parents=True, exist_ok=True)
    what = "tune" if given.tune is not None else "gpu_check"
    return folder / f"{what}-{datetime.now(UTC):%Y-%m-%d-%H%M%S}.jsonl"


def _prepare(given: argparse.Namespace, session: _Session) -> None:
    """Tests and compilers. A part of the experiments, or of the configurations, is run without tests."""
    quick, cores = session.machine.rehearsal, os.cpu_count() or 1
    tested = not (given.only or given.no_tests or given.tune is not None)
    share = TESTS_SHARE if tested else WARM_SHARE
    box_s = 20.0 if quick else share * session.deadline.left_s
    warmers = 1 if quick else WARMERS if tested else max(1, cores - 2)
    suite = None
    if quick and tested:
        suite = Suite(
            "rehearsal", ("tests/kernels/test_kernels.py", "-k", "within_budget and (glu and relu or rope-2-3-4)"), 2
        )
    elif tested:
        suite = Suite("kernels", ("tests/kernels",), max(1, min(12, cores - WARMERS)))
    warm = [["--warm", f"{number}/{warmers}", *_asked(given)] for number in range(warmers)]
    ran = prepare(suite, warm, box_s)
    if ran is not None:
        session.keep(ran.row())
    if tested and not quick:
        alone = prepare(Suite("measure", ("tests/measure", "-m", "gpu"), 1), [], ALONE_SHARE * session.deadline.left_s)
        assert alone is not None
        session.keep(alone.row())


def _asked(given: argparse.Namespace) -> list[str]:
    """The same request for another process; a rehearsal compiles one experiment only."""
    said = ["--quick", "--only", "SwiGLU forward"] if given.quick and given.tune is None else ["--quick"] * given.quick
    if given.tune is not None:
        return [*said, "--tune", *given.tune]
    return said if given.quick or not given.only else ["--only", *given.only]


def _measure(given: argparse.Namespace, session: _Session) -> None:
    """Every experiment that is not in the file yet. One that breaks is a row, and the others go on: in a new process
    where the GPU's context is lost with it."""
    begun = {row.experiment for row in session.rows}
    for experiment in chosen(given.only):
        if experiment.name in begun:
            continue
        try:
            for row in rows_of(experiment, session.machine, lambda: session.deadline.left_s):
                session.keep(row)
        except Exception as problem:
            session.keep(broken(experiment.name, {}, experiment.contenders[0].name, problem))
        if not _alive(session.machine):
            print("the GPU's context is lost: going on in a new process", flush=True)
            only = ["--only", *given.only] if given.only else []
            left = f"{session.deadline.left_s:.0f}"
            file = str(session.store.path)
            os.execv(
                sys.executable, [sys.executable, "-m", "benchmarks.gpu", "--resume", file, "--seconds", left, *only]
            )


def _alive(machine: Machine) -> bool:
    """Whether the GPU still answers: after an illegal access nothing runs in this process any more."""
    try:
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
    except RuntimeError:
        return False
    return True


def _tune(kernels: Sequence[Kernel], session: _Session) -> None:
    for choice, rows in tuning.tuned(kernels, session.machine, lambda: session.deadline.left_s):
        for row in rows:
            session.keep(row, said=False)
        print(tuning.ranked(choice, rows, rehearsal=session.machine.rehearsal), flush=True)


def _warm(given: argparse.Namespace, kernels: Sequence[Kernel], machine: Machine) -> None:
    """Compile a share of what will be timed."""
    number, shares = map(int, given.warm.split("/"))
    machine = replace(machine, seeds=1)
    for index, rivals in enumerate(_all_rivals(given, kernels, machine)):
        if index % shares != number:
            continue
        for rival in rivals:
            run_once(rival)
        machine.forget()


def _all_rivals(given: argparse.Namespace, kernels: Sequence[Kernel], machine: Machine) -> Iterator[list[Candidate]]:
    if given.tune is not None:
        for choice in tuning.choices(kernels, machine):
            yield tuning.rivals_of(choice, machine)
    else:
        for experiment in chosen(given.only):
            for _, rivals in rivals_of(experiment, machine):
                yield rivals
