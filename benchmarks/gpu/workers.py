"""What is done on all cores before anything is timed: the tests, in shares, and compilation of all that will be timed.

Compilers work on one core each, and there are hundreds of kernels to compile; what they made lies in the caches of
Triton and torch afterwards, where the timing process finds it. The GPU is shared meanwhile, so nothing is timed.
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
from benchmarks.gpu.sharding import NOTES, SHARE, UNTIL
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Row

__all__ = ["ROOT", "Suite", "SuiteRun", "prepare", "run_once"]

ROOT = Path(__file__).parents[2]
ONE_CORE = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
"""For processes that share the cores: each compiles on one."""

GRACE_S = 20.0
"""What a share of tests may take beyond its time, for the test that it is in the middle of."""


class Suite(NamedTuple):
    """Tests to run: arguments of pytest, in so many processes."""

    name: str
    arguments: tuple[str, ...]
    shares: int


@dataclass(frozen=True)
class SuiteRun:
    """How a suite went: outcomes counted, and what failed with its first line. `problem`: why nothing ran."""

    suite: str
    seconds: float
    outcomes: Mapping[str, int]
    failures: Sequence[str]
    problem: str | None = None

    def row(self) -> Row:
        """As it stands in a file of results; right if nothing that was begun failed, and something was."""
        common: dict[str, Any] = {"experiment": TESTS, "case": {"suite": self.suite}, "implementation": "pytest"}
        common["extra"] = {name.replace(" ", "_"): count for name, count in sorted(self.outcomes.items())}
        if self.problem is not None:
            return Row(status="n/a", reason=self.problem, **common)
        if self.failures:
            return Row(status="INCORRECT", reason="; ".join(self.failures), **common)
        if not self.outcomes.get("passed"):
            return Row(status="n/a", reason="no test ran in its time", **common)
        return Row(status="ok", measurement=Measurement(samples_s=(self.seconds,), clock="cpu"), **common)


class _Crew:
    """Processes of this Python, each with a log; those that still run at the end are ended, with what they began."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.every: list[subprocess.Popen[bytes]] = []
        self.ended: set[int] = set()

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        for process in self.every:
            if process.poll() is None:
                self.ended.add(process.pid)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def begin(self, arguments: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Begin one, in the root of the tree."""
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._log(len(self.every)).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": paths, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.every.append(process)
        return process

    def wait(self, processes: Sequence[subprocess.Popen[bytes]], until: float) -> None:
        """Until they are done, or that time."""
        for process in processes:
            try:
                process.wait(max(0.0, until - time.time()))
            except subprocess.TimeoutExpired:
                return

    def crashes(self, processes: Sequence[subprocess.Popen[bytes]]) -> list[str]:
        """How pytest ended where that says more than its notes: 0 passed, 1 failed, 5 had no tests."""
        found = []
        for process in processes:
            if process.returncode not in (0, 1, 5) and process.pid not in self.ended:
                said = self._log(self.every.index(process)).read_text(encoding="utf-8", errors="replace").strip()
                found.append(f"pytest ended with {process.returncode}: {said[-300:]}")
        return found

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"


def prepare(
    suite: Suite | None, warm: Sequence[Sequence[str]], box_s: float, *, module: str = "benchmarks.gpu"
) -> SuiteRun | None:
    """Run a suite, and beside it the commands `warm` (arguments of `module`), for `box_s` seconds at most.

    What `warm` says is not looked at: what is not compiled by then is compiled later.
    """
    start = time.time()
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as name:
        notes = Path(name) / "notes.jsonl"
        notes.touch()
        tests: list[subprocess.Popen[bytes]] = []
        with _Crew(Path(name)) as crew:
            for number in range(suite.shares if suite is not None and find_spec("pytest") else 0):
                assert suite is not None
                # no cache folder: shares would write over each other's
                options = ("-m", "pytest", "-p", "benchmarks.gpu.sharding", "-p", "no:cacheprovider", *suite.arguments)
                said = {SHARE: f"{number}/{suite.shares}", UNTIL: str(start + box_s), NOTES: str(notes)}
                tests.append(crew.begin(options, said))
            warmers = [crew.begin(("-m", module, *arguments), ONE_CORE) for arguments in warm]
            crew.wait(tests, start + box_s + GRACE_S)
            crew.wait(warmers, start + box_s)
        if suite is None:
            return None
        # what stands behind the last line's end was being written when a process was ended
        whole, _, _ = notes.read_text(encoding="utf-8").rpartition("\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        outcomes = Counter(line["outcome"] for line in lines)
        cut = sum(process.pid in crew.ended for process in tests)
        failures = [f"{line['test']}: {line['text']}" for line in lines if line["outcome"] in ("failed", "error")]
        return SuiteRun(
            suite=suite.name,
            seconds=time.time() - start,
            outcomes={**outcomes, **({"cut off": cut} if cut else {})},
            failures=[*failures, *crew.crashes(tests)],
            problem=None if tests else "pytest is not installed",
        )


def run_once(rival: Candidate) -> None:
    """Check and run what will be timed, so that it is compiled; what fails will fail again where it counts."""
    try:
        if rival.check is not None:
            rival.check()
        rival.prepare()()
    except Exception as problem:
        print(f"{rival.name}: {problem}")
