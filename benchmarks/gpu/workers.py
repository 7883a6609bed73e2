"""Run the tests and compile the timed code on all cores, before anything is timed.

There are hundreds of kernels, and a compiler uses only one core. The compiled code goes into the caches of Triton and
torch, and the timing process reads it from there. The processes share the GPU, so nothing is timed while they run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from benchmarks.gpu.goals import TESTS
from benchmarks.gpu.pytest_shards import NOTES, SHARE, UNTIL
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Row

__all__ = ["ROOT", "Suite", "SuiteRun", "run_once", "run_tests_and_compile"]

ROOT = Path(__file__).parents[2]
ONE_CORE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""Environment variables for processes that share the cores. With these variables, each process compiles on one core."""

GRACE_S = 20.0
"""The number of seconds after the time limit in which a test process may finish its current test."""


class Suite(NamedTuple):
    """Tests to run. `arguments`: the arguments of pytest. `shares`: the number of processes that share the tests."""

    name: str
    arguments: tuple[str, ...]
    shares: int


@dataclass(frozen=True)
class SuiteRun:
    """The result of a suite. `outcomes`: the number of tests per outcome. `failures`: each failed test with the first
    line of its error. `problem`: the reason if no test ran."""

    suite: str
    seconds: float
    outcomes: Mapping[str, int]
    failures: Sequence[str]
    problem: str | None = None

    def row(self) -> Row:
        """Return the row for the result file. The row is "ok" if at least one test passed and no test failed."""
        common: dict[str, Any] = {"experiment": TESTS, "case": {"suite": self.suite}, "implementation": "pytest"}
        common["extra"] = {name.replace(" ", "_"): count for name, count in sorted(self.outcomes.items())}
        if self.problem is not None:
            return Row(status="n/a", reason=self.problem, **common)
        if self.failures:
            return Row(status="INCORRECT", reason="; ".join(self.failures), **common)
        if not self.outcomes.get("passed"):
            return Row(status="n/a", reason="no test ran within the time limit", **common)
        return Row(status="ok", measurement=Measurement(samples_s=(self.seconds,), clock="cpu"), **common)


class _Processes:
    """Python processes, each with its own log file. At the end of the `with` block, the processes that still run are
    killed, with their child processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: list[subprocess.Popen[bytes]] = []
        self.ended: set[int] = set()

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        for process in self.all:
            if process.poll() is None:
                self.ended.add(process.pid)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process whose working folder is the root of the repository."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._log(len(self.all)).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": paths, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.all.append(process)
        return process

    def wait(self, processes: Sequence[subprocess.Popen[bytes]], until: float) -> None:
        """Wait until the processes have ended, or until the time `until` (seconds since the epoch)."""
        for process in processes:
            try:
                process.wait(max(0.0, until - time.time()))
            except subprocess.TimeoutExpired:
                return

    def crashes(self, processes: Sequence[subprocess.Popen[bytes]]) -> list[str]:
        """Return one text per crashed process. These exit codes of pytest are not crashes: 0 (all tests passed), 1
        (some tests failed), 5 (no tests)."""
        crashes = []
        for process in processes:
            if process.returncode not in (0, 1, 5) and process.pid not in self.ended:
                log = self._log(self.all.index(process)).read_text(encoding="utf-8", errors="replace").strip()
                crashes.append(f"pytest ended with {process.returncode}: {log[-300:]}")
        return crashes

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"


def run_tests_and_compile(
    suite: Suite | None, warm: Sequence[Sequence[str]], box_s: float, *, module: str = "benchmarks.gpu"
) -> SuiteRun | None:
    """Run a test suite and, in parallel, compiler processes, for at most `box_s` seconds.

    `warm`: the arguments of each compiler process, which runs `module`. The output of the compiler processes is
    ignored. The timing process later compiles all code that is not compiled in time.
    """
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as name:
        notes = Path(name) / "notes.jsonl"
        notes.touch()
        tests: list[subprocess.Popen[bytes]] = []
        with _Processes(Path(name)) as processes:
            for number in range(suite.shares if suite is not None and find_spec("pytest") else 0):
                assert suite is not None
                # pytest does not use its cache, because the processes would overwrite each other's entries.
                options = (
                    "-m",
                    "pytest",
                    "-p",
                    "benchmarks.gpu.pytest_shards",
                    "-p",
                    "no:cacheprovider",
                    *suite.arguments,
                )
                variables = {SHARE: f"{number}/{suite.shares}", UNTIL: str(start + box_s), NOTES: str(notes)}
                tests.append(processes.start(options, variables))
            warmers = [processes.start(("-m", module, *arguments), ONE_CORE) for arguments in warm]
            processes.wait(tests, start + box_s + GRACE_S)
            processes.wait(warmers, start + box_s)
        if suite is None:
            return None
        # A killed process may leave an incomplete last line. This line is dropped.
        whole, _, _ = notes.read_text(encoding="utf-8").rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        outcomes = Counter(line["outcome"] for line in lines)
        cut = sum(process.pid in processes.ended for process in tests)
        failures = [f"{line['test']}: {line['text']}" for line in lines if line["outcome"] in ("failed", "error")]
        return SuiteRun(
            suite=suite.name,
            seconds=time.time() - start,
            outcomes={**outcomes, **({"cut off": cut} if cut else {})},
            failures=[*failures, *processes.crashes(tests)],
            problem=None if tests else "pytest is not installed",
        )


def run_once(candidate: Candidate) -> None:
    """Check and run a candidate once, so that its code is compiled. If an error occurs, only print it, because the same
    error will occur when the candidate is timed."""
    try:
        if candidate.check is not None:
            candidate.check()
        candidate.prepare()()
    except Exception as problem:
        print(f"{candidate.name}: {problem}")
