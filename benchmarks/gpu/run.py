"""A run of the GPU check. It runs tests and compilers in parallel, then the experiments one by one, and prints the
table of goals."""

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
from benchmarks.gpu.machine import Deadline, Machine, open_gpu, open_rehearsal, slug
from benchmarks.gpu.measuring import candidates_of, failed_row, rows_of
from benchmarks.gpu.workers import ROOT, Suite, run_once, run_tests_and_compile
from llmbench.kernels.kernel import Kernel
from llmbench.kernels.registry import KERNELS, load_kernel
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.environment import environment
from llmbench.measure.reference import measure_references
from llmbench.measure.results import Header, Row, Store, read

__all__ = ["run"]

WARMERS = 4
"""The number of processes that compile the timed code while other processes run the tests."""

TESTS_SHARE, ALONE_SHARE, WARM_SHARE = 0.32, 0.05, 0.25
"""Three shares of the time limit. TESTS_SHARE: for the tests and the compilers, which run together. ALONE_SHARE: for
the tests that need the GPU alone. WARM_SHARE: for the compilers if no tests run."""

LATE_S = 15.0
"""If a kernel hangs, faulthandler ends the process this many seconds after the time limit."""


def run(given: argparse.Namespace) -> int:
    """Run the check with the command-line options `given`, and return the exit code."""
    if given.table is not None:
        results = read(given.table)
        part = any(header.inputs.get("only") for header in results.headers)
        quick = any(header.inputs.get("rehearsal") for header in results.headers)
        summary.table(results.rows, rehearsal=quick, only=[row.experiment for row in results.rows] if part else ())
        return _code(results.rows)
    chosen(given.only)  # Look up the names before the run starts, so that an unknown name ends the command at once.
    kernels = [load_kernel(name) for name in given.tune or KERNELS]
    with open_rehearsal() if given.quick else open_gpu() as machine:
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
    """Run with a new result file, or continue the result file `given.resume`. Return the exit code."""
    header, path = _header(given, machine), given.resume or _path(given, machine)
    with Store(path, header, resume=given.resume is not None) as store:
        session = _Session(machine, store, deadline)
        print(f"{summary.heading(header, machine.notes)}\nresults: {path}\n", flush=True)
        code = 0
        try:
            if given.resume is None:
                _prepare(given, session)
            if given.tune is not None:
                _tune(kernels, session)
            else:
                _measure(given, session)
        except KeyboardInterrupt:
            print("\ninterrupted; the table shows the rows so far", flush=True)
            code = 130
        if given.tune is None:
            print()
            only = [experiment.name for experiment in chosen(given.only)]
            summary.table(session.rows, rehearsal=machine.rehearsal, only=only)
        return code or _code(session.rows)


class _Session:
    """A run in progress, with its machine, result file, deadline and rows."""

    def __init__(self, machine: Machine, store: Store, deadline: Deadline) -> None:
        self.machine, self.store, self.deadline = machine, store, deadline
        self.rows = list(store.existing.rows) if store.existing else []

    def keep(self, row: Row, *, printed: bool = True) -> None:
        """Write a row into the result file at once, so that an interruption does not lose it. If `printed`, print the
        row too."""
        self.store.write([row])
        self.rows.append(row)
        if printed:
            print(summary.line(row, self.machine.rehearsal), flush=True)


def _code(rows: Sequence[Row]) -> int:
    return 1 if summary.faults(rows) else 0


def _header(given: argparse.Namespace, machine: Machine) -> Header:
    """Return the header of the result file: the environment and the reference measurements. The reference measurements
    are taken before other processes use the GPU."""
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
    # The times of a rehearsal have no meaning, so the file goes into a temporary folder.
    if machine.rehearsal and given.results is None:
        folder = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    folder.mkdir(parents=True, exist_ok=True)
    name = "tune" if given.tune is not None else "gpu_check"
    return folder / f"{name}-{datetime.now(UTC):%Y-%m-%d-%H%M%S}.jsonl"


def _prepare(given: argparse.Namespace, session: _Session) -> None:
    """Run the tests and the compilers. With `--only`, `--tune` or `--no-tests`, run only the compilers."""
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
    suite_run = run_tests_and_compile(suite, warm, box_s)
    if suite_run is not None:
        session.keep(suite_run.row())
    if tested and not quick:
        alone = run_tests_and_compile(
            Suite("measure", ("tests/measure", "-m", "gpu"), 1), [], ALONE_SHARE * session.deadline.left_s
        )
        assert alone is not None
        session.keep(alone.row())


def _asked(given: argparse.Namespace) -> list[str]:
    """Return the arguments for a process that compiles the code of this run. For a rehearsal, the process compiles only
    one experiment."""
    arguments = (
        ["--quick", "--only", "SwiGLU forward"] if given.quick and given.tune is None else ["--quick"] * given.quick
    )
    if given.tune is not None:
        return [*arguments, "--tune", *given.tune]
    return arguments if given.quick or not given.only else ["--only", *given.only]


def _measure(given: argparse.Namespace, session: _Session) -> None:
    """Measure every experiment that has no rows in the result file yet.

    If an experiment raises an error, it gets a FAILED row and the next experiment begins. If the GPU context is lost, a
    new process measures the remaining experiments.
    """
    begun = {row.experiment for row in session.rows}
    for experiment in chosen(given.only):
        if experiment.name in begun:
            continue
        try:
            for row in rows_of(experiment, session.machine, lambda: session.deadline.left_s):
                session.keep(row)
        except Exception as problem:
            session.keep(failed_row(experiment.name, {}, experiment.candidates[0].name, problem))
        if not _alive(session.machine):
            print("the GPU's context is lost; continuing in a new process", flush=True)
            only = ["--only", *given.only] if given.only else []
            left = f"{session.deadline.left_s:.0f}"
            file = str(session.store.path)
            os.execv(
                sys.executable, [sys.executable, "-m", "benchmarks.gpu", "--resume", file, "--seconds", left, *only]
            )


def _alive(machine: Machine) -> bool:
    """Return whether this process can still use the GPU. After an illegal memory access, every CUDA call fails."""
    try:
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
    except RuntimeError:
        return False
    return True


def _tune(kernels: Sequence[Kernel], session: _Session) -> None:
    for choice, rows in tuning.tune(kernels, session.machine, lambda: session.deadline.left_s):
        for row in rows:
            session.keep(row, printed=False)
        print(tuning.ranking(choice, rows, rehearsal=session.machine.rehearsal), flush=True)


def _warm(given: argparse.Namespace, kernels: Sequence[Kernel], machine: Machine) -> None:
    """Compile one share of the timed code. `given.warm` names the share as K/N."""
    number, shares = map(int, given.warm.split("/"))
    machine = replace(machine, seeds=1)
    for index, candidates in enumerate(_all_candidates(given, kernels, machine)):
        if index % shares != number:
            continue
        for candidate in candidates:
            run_once(candidate)
        machine.forget()


def _all_candidates(
    given: argparse.Namespace, kernels: Sequence[Kernel], machine: Machine
) -> Iterator[list[Candidate]]:
    if given.tune is not None:
        for choice in tuning.choices(kernels, machine):
            yield tuning.candidates_of(choice, machine)
    else:
        for experiment in chosen(given.only):
            for _, candidates in candidates_of(experiment, machine):
                yield candidates
