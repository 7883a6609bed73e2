"""A run of the GPU check: environment and reference measurements, compilation, experiments, table of goals, archive.

The parent process never uses the GPU. Every step that uses the GPU runs in a child process with time limits.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.gpu import archive, summary, tuning
from benchmarks.gpu.candidates import CandidateKernel, Limit
from benchmarks.gpu.children import Child, Reporter, wait_for
from benchmarks.gpu.compiling import compilers
from benchmarks.gpu.experiments import Experiment, chosen
from benchmarks.gpu.goals import REFERENCES, missed
from benchmarks.gpu.jobs import Assembler, Job, first_steps, full_steps, tuning_steps
from benchmarks.gpu.machine import FIRST, FULL, Deadline, Pace, open_gpu, open_rehearsal, slug
from benchmarks.gpu.session import Description, Opener, Session, describe_machine
from benchmarks.gpu.workers import ROOT, Suite, run_once, run_tests_and_compile
from llmbench.errors import LLMBenchError
from llmbench.kernels.kernel import Kernel
from llmbench.kernels.launching import interpreted
from llmbench.kernels.registry import KERNELS, load_kernel
from llmbench.measure.results import Row
from llmbench.measure.store import Store

__all__ = ["run"]

TESTS_SHARE, ALONE_SHARE = 0.32, 0.05
"""Two shares of the time limit. TESTS_SHARE: for the tests and the compilers, which run together. ALONE_SHARE: for the
tests that need the GPU alone."""

WARMERS = 4
"""The number of processes that run torch.compile ahead, and of processes that compile while others run the tests."""

RESERVE_S = 8.0
"""The seconds at the end of the time limit that are kept for the table and the archive."""

PTXAS_SEEDS = 20
"""The number of seeds with which two assemblers are compared. A wrong assembler makes rare errors."""


def run(options: argparse.Namespace) -> int:
    """Run the check with the command-line `options`, and return the exit code."""
    if options.table is not None:
        results = archive.read_results(options.table)
        quick = any(header.inputs.get("rehearsal") for header in results.headers)
        part = any(header.inputs.get("part") for header in results.headers)
        print(_table(results.rows, rehearsal=quick, only=[row.experiment for row in results.rows] if part else ()))
        return _code(results.rows)
    # Names and files are looked up before the run starts, so that a mistake ends the command at once.
    experiments, kernels = _experiments(options), _kernels(options)
    pace = _pace(options)
    deadline = Deadline(pace.total_s - RESERVE_S)
    opener: Opener = open_rehearsal if options.quick else open_gpu
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as name:
        folder = Path(name)
        inputs = {"part": _is_part(options), "tune": options.tune, "rehearsal": options.quick}
        machine = describe_machine(opener, pace, inputs, folder)
        path = _path(options, machine)
        with Store(path, machine.header) as store:
            print(f"{summary.heading(machine.header, machine.notes)}\nresults: {path}\n", flush=True)
            session = Session(opener, machine, store, pace, deadline, folder)
            code = _run_steps(options, experiments, kernels, machine, session)
        for note in store.notes:
            print(note, flush=True)
        return _finish(options, experiments, session, store.path, folder) or code


def _run_steps(
    options: argparse.Namespace,
    experiments: Sequence[Experiment],
    kernels: Sequence[Kernel],
    machine: Description,
    session: Session,
) -> int:
    """Compile and measure. Return the exit code 130 after Ctrl-C or SIGTERM, else 0."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        arch = int((machine.header.environment.compute_capability or "9.0").replace(".", ""))
        batches = _batches(options, experiments, kernels, arch, machine)
        _prepare(options, [job for batch in batches for job in batch], arch, session)
        for batch in batches:
            session.measure(batch)
    except KeyboardInterrupt:
        print("\ninterrupted; the table shows the rows so far", flush=True)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _finish(
    options: argparse.Namespace, experiments: Sequence[Experiment], session: Session, path: Path, folder: Path
) -> int:
    """Print the result and write the archive. Return the exit code."""
    only = [experiment.name for experiment in experiments] if _is_part(options) else ()
    text = _table(session.rows, rehearsal=session.rehearsal, only=only)
    print(f"\n{text}")
    (folder / "table.txt").write_text(text, encoding="utf-8")
    target = path.with_suffix(".tar.gz")
    notes = archive.pack(target, [path, folder / "table.txt", *sorted(folder.glob("*.log"))])
    print(f"archive: {target}", *notes, sep="\n  ", flush=True)
    return _code(session.rows)


def _table(rows: Sequence[Row], *, rehearsal: bool, only: Sequence[str]) -> str:
    """Return the result of a run: rankings of configurations, times under several assemblers, or the table of goals."""
    if any("choice" in row.case for row in rows):
        return tuning.rankings(rows, rehearsal=rehearsal)
    if any("ptxas" in row.case for row in rows):
        return summary.assemblers(rows, rehearsal=rehearsal)
    return summary.table(rows, rehearsal=rehearsal, only=only)


def _code(rows: Sequence[Row]) -> int:
    return 1 if summary.faults(rows) else 0


def _is_part(options: argparse.Namespace) -> bool:
    """Whether the run leaves out experiments."""
    return bool(options.only or options.since or options.ptxas)


def _experiments(options: argparse.Namespace) -> list[Experiment]:
    experiments = chosen(options.only or (["attention"] if options.ptxas else []))
    if options.since is None or options.tune is not None:
        return experiments
    again = missed(archive.read_results(options.since).rows)
    remaining = [experiment for experiment in experiments if experiment.name in again]
    if not remaining:
        raise LLMBenchError(f"nothing to run: in {options.since}, no chosen experiment missed a goal or failed")
    return remaining


def _kernels(options: argparse.Namespace) -> list[Kernel]:
    """Return the kernels to tune. A word is the name of a kernel, or of a family. With `--since`, only the kernels of
    experiments that missed a goal or failed are tuned."""
    if options.tune is None:
        return []
    names: list[str] = []
    for word in options.tune:
        if word in KERNELS:
            names.append(word)
        else:
            names += [experiment.kernel.name for experiment in chosen([word])]
    if options.since is not None:
        again = missed(archive.read_results(options.since).rows)
        kernels = [experiment.kernel.name for experiment in chosen([]) if experiment.name in again]
        names = [name for name in kernels if not names or name in names]
        if not names:
            raise LLMBenchError(f"nothing to tune: in {options.since}, no chosen experiment missed a goal or failed")
    return [load_kernel(name) for name in dict.fromkeys(names or KERNELS)]


def _pace(options: argparse.Namespace) -> Pace:
    pace = FIRST if options.first else FULL
    seeds = options.seeds or (PTXAS_SEEDS if options.ptxas else pace.seeds)
    total = pace.total_s if options.seconds is None else options.seconds
    return pace._replace(total_s=total, seeds=seeds)


def _batches(
    options: argparse.Namespace,
    experiments: Sequence[Experiment],
    kernels: Sequence[Kernel],
    arch: int,
    machine: Description,
) -> list[list[Job]]:
    if options.tune is not None:
        return tuning_steps(kernels, arch, rehearsal=options.quick)

    def choose(candidate: CandidateKernel | Limit) -> bool:
        if isinstance(candidate, Limit):
            return candidate.name in REFERENCES or not (options.ours or options.ptxas)
        if options.ours or options.ptxas:
            return candidate.own
        return not (candidate.compiled and (options.first or options.no_compiled))

    steps = first_steps if options.first else full_steps
    batches = steps(experiments, choose, rehearsal=options.quick)
    if not options.ptxas:
        return batches
    assemblers = [_assembler(path, machine) for path in options.ptxas]
    return [[job.under(assembler) for job in batch] for batch in batches for assembler in assemblers]


def _assembler(path: str, machine: Description) -> Assembler:
    """Return the assembler at `path`, after asking it for its version."""
    if path == "default":
        return Assembler(machine.header.environment.ptxas or "default", None)
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as problem:
        raise LLMBenchError(f"cannot run the assembler {path}: {problem}") from None
    version = re.search(r"V(\d+\.\d+\.\d+)", text)
    if version is None:
        raise LLMBenchError(f"{path} --version prints no version of ptxas")
    return Assembler(version[1], str(Path(path).resolve()))


def _path(options: argparse.Namespace, machine: Description) -> Path:
    folder: Path | None = options.results
    if folder is None and os.environ.get("OUT"):
        folder = Path(os.environ["OUT"])
    # The times of a rehearsal have no meaning, so the file goes into a temporary folder.
    if folder is None and options.quick:
        folder = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    if folder is None:
        folder = ROOT / "benchmarks" / "results" / slug(machine.header.environment.device)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"gpu_check-{datetime.now(UTC):%Y%m%d-%H%M%S}.jsonl"


def _prepare(options: argparse.Namespace, jobs: Sequence[Job], arch: int, session: Session) -> None:
    """Compile the code of the jobs and, in a full run, run the tests of the kernels. Nothing is timed meanwhile."""
    quick, cores = session.rehearsal, os.cpu_count() or 1
    tested = not (options.first or options.no_tests or _is_part(options) or options.tune is not None)
    box_s = 20.0 if quick else session.pace.compile_s
    if tested and not quick:
        box_s = TESTS_SHARE * session.deadline.left_s
    children = [] if interpreted() else _compilers(jobs, arch, WARMERS if tested else max(1, cores - 2), session)
    if tested:
        suite = Suite("kernels", ("tests/kernels",), max(1, min(12, cores - WARMERS)))
        if quick:
            only = "within_budget and (glu and relu or rope-2-3-4)"
            suite = Suite("rehearsal", ("tests/kernels/test_kernels.py", "-k", only), 2)
        kernels = run_tests_and_compile(suite, [], box_s)
        if kernels is not None:
            session.keep(kernels.row())
    problems = wait_for(children, 0.0 if tested else box_s)
    if children:
        print("\n".join([f"compiled; {session.deadline.left_s:.0f} s are left", *problems]), flush=True)
    if tested and not quick:
        alone = run_tests_and_compile(
            Suite("measure", ("tests/measure", "-m", "gpu"), 1), [], ALONE_SHARE * session.deadline.left_s
        )
        assert alone is not None
        session.keep(alone.row())


def _compilers(jobs: Sequence[Job], arch: int, processes: int, session: Session) -> list[Child]:
    """Start the processes that compile: one group for each assembler, and one for the code of torch.compile."""
    children: list[Child] = []
    for assembler in dict.fromkeys(job.assembler for job in jobs):
        launches = [launch for job in jobs if job.assembler == assembler for launch in job.launches(arch)]
        for work in compilers(launches, arch, processes):
            log = session.logs / f"compile-{len(children):02d}.log"
            children.append(Child(work, log, environment=assembler.environment if assembler else None))
    slow = [job for job in jobs if job.has_compiled]
    for number in range(min(WARMERS, len(slow))):
        work = partial(_compile_by_torch, slow[number::WARMERS], session.opener, session.pace)
        children.append(Child(work, session.logs / f"torch-compile-{number:02d}.log"))
    return children


def _compile_by_torch(jobs: Sequence[Job], opener: Opener, pace: Pace, reporter: Reporter) -> None:
    """Check and run every candidate of torch.compile once, so that its compiled code is in torch's cache."""
    with opener(pace._replace(seeds=1), False) as machine:
        for job in jobs:
            for candidate in job.compiled(machine):
                run_once(candidate)
            machine.forget()
