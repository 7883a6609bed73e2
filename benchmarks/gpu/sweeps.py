"""Run the experiments of `llmbench bench` on this GPU one after another. Each experiment has its own process and its
own result file.

A run is one slice of at most 240 s. It takes on the next experiments for which it has enough time. First, all cores
compile their code, as in `workers`. Then each experiment gets a share of the remaining time. If an experiment needs
more time, it is interrupted. Its rows are kept, and the next slice continues its result file. An experiment is done
when its table is written. After each experiment, all files are packed into one archive, from which the next slice can
go on, also on another machine.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec
import torch

from benchmarks.gpu.archive import pack, unpack
from benchmarks.gpu.machine import Deadline, slug
from benchmarks.gpu.workers import ROOT, run_once, run_tests_and_compile
from llmbench.bench.experiments import find_experiment
from llmbench.bench.experiments.experiment import Ask
from llmbench.errors import CannotRunError, LLMBenchError, unknown
from llmbench.measure.clock import clock_for
from llmbench.measure.reference import Sizes, measure_references
from llmbench.measure.results import ENDED_SESSION, Row, read
from llmbench.model.formats import DTYPES

__all__ = ["main", "warm"]

SHARES = {"heads": 1.0, "moe": 1.0, "textbook": 1.5, "train": 2.0, "generate": 3.0, "attention": 4.0}
"""The experiments, each with its weight. An experiment's share of the time is proportional to its weight. The weight
grows with the number and the size of the cases. If an experiment does not use all of its time, the later experiments
get the rest."""

WARM_SHARE, WARMERS = 0.25, 8
"""The compilers' share of the time limit, and the largest number of compiler processes. The number is limited because
the processes share the GPU's memory."""

SLICE_S, LEAST_S, GRACE_S = 60.0, 30.0, 25.0
"""SLICE_S: a run takes on one experiment per SLICE_S seconds. LEAST_S: the least number of seconds that must be left
before an experiment begins. GRACE_S: the number of seconds in which an interrupted experiment can write its rows."""

ARCHIVE = "gpu_bench.tar.gz"

PLAIN = ("standard", "loop", "dense, active", "dense, total")
"""Slow candidates that need no compilation. The compiler processes do not run them."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command-line options."""
    options = argparse.ArgumentParser(
        prog="benchmarks/gpu_bench.sh", description="Run the experiments of llmbench bench on this GPU."
    )
    add = options.add_argument
    add(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"run only these of {', '.join(SHARES)} (default: all that are not done)",
    )
    add("--quick", action="store_true", help="use the quick preset; on a machine without a GPU, rehearse on the CPU")
    add(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="folder of the files (default: benchmarks/results/GPU, with the archive in $OUT if it is set)",
    )
    add("--seconds", type=float, default=240.0, metavar="N", help="time limit of the whole run (default: 240)")
    add(
        "--since",
        type=Path,
        metavar="ARCHIVE",
        help="go on from the archive of an earlier run, also of another machine",
    )
    add("--warm", metavar="K/N", help=argparse.SUPPRESS)  # a compiler process compiles its share of the code
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    options = parser().parse_args(arguments)
    try:
        for name in options.only:
            if name not in SHARES:
                raise unknown("experiment", name, SHARES)
        if not (options.quick or torch.cuda.is_available()):
            raise CannotRunError("no CUDA GPU here", hint="--quick rehearses on a CPU")
        if options.warm is not None:
            number, shares = map(int, options.warm.split("/"))
            warm(options.only, number, shares, quick=options.quick)
            return 0
        return _run(options)
    except LLMBenchError as problem:
        print(f"error: {problem}" + (f"\n\nhint: {problem.hint}" if problem.hint else ""), file=sys.stderr)
        return problem.exit_code


def _run(options: argparse.Namespace) -> int:
    deadline = Deadline(options.seconds)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "rehearsal"
    folder: Path = options.results or ROOT / "benchmarks" / "results" / slug(gpu)
    folder.mkdir(parents=True, exist_ok=True)
    if options.since is not None:
        unpack(options.since, folder)
    undone = [name for name in SHARES if (name in options.only if options.only else not _table(folder, name).exists())]
    most = max(1, int(((1 - WARM_SHARE) * deadline.left_s - GRACE_S) / SLICE_S))
    names = undone[:most]
    quick = ["--quick"] * options.quick
    warmers = 1 if options.quick else max(1, min(WARMERS, (os.cpu_count() or 1) - 2))
    commands = [["--warm", f"{number}/{warmers}", *quick, "--only", *names] for number in range(warmers)]
    if names and torch.cuda.is_available():
        run_tests_and_compile(None, commands, WARM_SHARE * deadline.left_s, module="benchmarks.gpu.sweeps")
        print(f"compiled; {deadline.left_s:.0f} s are left", flush=True)
    wrong = False
    # If an experiment ends early, the rest of its time goes to the experiments after it.
    for index, name in enumerate(undone):
        spare = deadline.left_s - GRACE_S
        remaining = names[index:] or [name]
        box_s = spare * SHARES[name] / sum(SHARES[other] for other in remaining)
        if box_s < LEAST_S:
            late = ", ".join(undone[index:])
            print(f"not measured, because no time was left: {late}; run this command again", flush=True)
            break
        code = _bench(name, folder, box_s, quick=options.quick)
        counts, faults = _summary(folder, name)
        print(f"{name}: {'done' if code == 0 else f'not done ({code})'}; {counts}", *faults, sep="\n  ", flush=True)
        wrong = wrong or bool(faults) or code not in (0, 130)
        _pack(options, folder)
    return 1 if wrong else 0


def _pack(options: argparse.Namespace, folder: Path) -> None:
    """Pack all files into the archive. It is written after each experiment, so that a run that is killed leaves one."""
    place = Path(os.environ["OUT"]) if options.results is None and os.environ.get("OUT") else folder
    notes = pack(place / ARCHIVE, sorted(folder.glob("bench-*")))
    print(f"archive: {place / ARCHIVE}", *notes, sep="\n  ", flush=True)


def _table(folder: Path, name: str) -> Path:
    return folder / f"bench-{name}.txt"


def _bench(name: str, folder: Path, box_s: float, *, quick: bool) -> int:
    """Begin or continue an experiment. Return 0 if the experiment is done, even if rows are INCORRECT or FAILED. Return
    130 if it reached its time limit."""
    table = _table(folder, name)
    table.unlink(missing_ok=True)
    unfinished = table.with_suffix(".unfinished.txt")
    with unfinished.open("wb") as out:
        command = _command(name, folder, quick=quick)
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stdin=subprocess.DEVNULL, process_group=0)
        try:
            code = process.wait(box_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                code = process.wait(GRACE_S) and 130  # code 0: the process ended by itself
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                code = 130
                _blame_hanging_group(name, folder, quick=quick)
    # The experiment is done. The caller reports the rows that are INCORRECT or FAILED.
    if code == 1 and _summary(folder, name)[1]:
        code = 0
    if code == 0:
        unfinished.rename(table)
    return code


def _blame_hanging_group(name: str, folder: Path, *, quick: bool) -> None:
    """Write FAILED rows for the group in which the process of an experiment hung, so that the next slice leaves it out.
    It is the first group that lacks rows."""
    path = folder / f"bench-{name}.jsonl"
    if not path.exists():
        return
    latest = read(path).by_key()
    done = {key for key, row in latest.items() if row.status != "FAILED" or row.ended_session}
    for group in find_experiment(name).groups(_ask(quick)):
        lacking = [key for key in group.row_keys() if key not in done]
        if lacking:
            names = ", ".join(group.names)
            reason = f"the process did not end at its time limit; one of these hangs: {names}"
            rows = [
                Row(
                    experiment=group.experiment,
                    case=dict(group.case),
                    implementation=implementation,
                    status="FAILED",
                    reason=reason,
                    extra={ENDED_SESSION: True},
                )
                for _, _, implementation in lacking
            ]
            with path.open("ab") as file:
                file.write(b"".join(b"\n" + msgspec.json.encode(row) for row in rows) + b"\n")
            return


def _ask(quick: bool) -> Ask:
    """Return the request that `llmbench bench` makes of an experiment on this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Ask(quick=quick, device=device, dtype="bf16" if device.type == "cuda" else "fp32")


def _command(name: str, folder: Path, *, quick: bool) -> list[str]:
    rows = folder / f"bench-{name}.jsonl"
    command = [sys.executable, "-m", "llmbench", "bench", name, "--preset", "quick" if quick else "full"]
    command += ["--resume" if rows.exists() else "--output", str(rows)]
    if find_experiment(name).chart is not None and not quick and find_spec("matplotlib"):
        command += ["--plot", str(folder / f"bench-{name}.svg")]
    return command


def _summary(folder: Path, name: str) -> tuple[str, list[str]]:
    """Return the number of rows per status as text, and one text for each row that is INCORRECT or FAILED."""
    path = folder / f"bench-{name}.jsonl"
    rows = list(read(path).by_key().values()) if path.exists() else []
    faults = [row for row in rows if row.status in ("INCORRECT", "FAILED")]
    counts = Counter(row.status for row in rows)
    text = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no rows"
    return text, [f"{row.implementation} at {row.case}: {row.status}, {row.reason}" for row in faults]


def warm(names: Sequence[str], number: int, shares: int, *, quick: bool) -> None:
    """Compile every `shares`-th group of cases, starting with group `number`."""
    ask = _ask(quick)
    device = ask.device
    references = measure_references(
        clock_for(device), DTYPES[ask.dtype], budget_s=0.0, sizes=Sizes(matmul=64, bytes=2**12, launches=10)
    )
    groups = [group for name in names for group in find_experiment(name).groups(ask)]
    for group in groups[number::shares]:
        for candidate in group.candidates(references):
            if candidate.name in PLAIN:
                continue
            run_once(candidate)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
