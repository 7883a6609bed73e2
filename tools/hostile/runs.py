"""Tries with real processes and with forks that run a short `bench` while something happens to it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_readers import as_json, broken
from hostile.answers import EVIL, FORMATS, MOST_WALL_S, ROOT, WORDS, Answer, Attempt, Problems, inside, named
from hostile.inputs import damaged, sizing

BENCH = ["bench", "norms", "--device", "cpu", "--model", "smollm2-135m", "--seq", "2"]
"""An experiment with 16 rows, which takes less than a second of CPU time."""


class Whole(NamedTuple):
    """A whole result file of `BENCH`: its bytes, the keys of its rows, and the seconds that a fork needs for it."""

    content: bytes
    keys: frozenset[Any]
    seconds: float


def measure_quickly() -> Whole:
    """Make `bench` in this process measure few samples with the rates of one measurement. Return a whole file."""
    import torch

    from llmbench.bench.experiments import experiment
    from llmbench.measure import environment, reference
    from llmbench.measure.clock import CpuClock
    from llmbench.measure.results import read

    torch.set_num_threads(1)
    environment.commit = lambda root: "0" * 40
    experiment.QUICK = experiment.QUICK.fixed(3)
    measured = reference.measure_references(
        CpuClock(), torch.float32, budget_s=0.05, sizes=reference.Sizes(64, 2**16, 10)
    )
    reference.measure_references = lambda *arguments, **options: measured
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assert inside([*BENCH, "-o", str(folder / "x.jsonl")]).code == 0
        seconds = math.inf
        for number in range(3):
            fork = Fork(folder, [*BENCH, "-o", f"y{number}.jsonl"])
            assert fork.answer().code == 0
            seconds = min(seconds, time.monotonic() - fork.started)
        path = folder / "x.jsonl"
        return Whole(path.read_bytes(), frozenset(read(path).by_key()), seconds)


def results(whole: Whole) -> Attempt:
    """Damaged result files, for `diff` and `bench --resume`."""
    lines = [json.loads(line) for line in whole.content.splitlines()]

    def attempt(rng: random.Random, folder: Path) -> Problems:
        copy = lines[: rng.choice([len(lines), rng.randint(1, len(lines))])]
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(copy))
            copy[at] = damaged(copy[at], rng)
        if rng.random() < 0.3:
            copy.insert(rng.randrange(len(copy)), rng.choice([EVIL, lines[0], {**lines[-1], "implementation": EVIL}]))
        path, other = folder / "x.jsonl", folder / "y.jsonl"
        content = broken(b"\n".join(map(as_json, copy)) + b"\n", rng)
        path.write_bytes(content)
        other.write_bytes(whole.content)
        if rng.random() < 0.75:
            files = [str(path), str(other)]
            rng.shuffle(files)
            command = ["diff", *files, "--all", "--notes", "--format", rng.choice(FORMATS)]
            return named(command, inside(command))
        command = [*BENCH, "--resume", str(path), "--format", rng.choice(FORMATS)]
        answer = inside(command)
        problems = named(command, answer)
        if not path.read_bytes().startswith(content):
            problems.append("lost rows: the old content of the resumed file has changed")
        if answer.code == 0:
            problems += missing(path, whole.keys)
        return problems

    return attempt


def missing(path: Path, keys: frozenset[Any]) -> Problems:
    """Return the rows that a finished file lacks."""
    from llmbench.measure.results import read

    found = frozenset(read(path).by_key())
    return [f"lost rows: {path.name} lacks {len(keys - found)} of {len(keys)} rows"] if keys - found else []


def started(command: Sequence[str], folder: Path, variables: dict[str, str], **options: Any) -> Answer:
    """Run a command in a real process. `options`: `wrap` (shell code around it), `sent` and `after` (a signal)."""
    wrap = options.pop("wrap", "exec {}")
    sent, after = options.pop("sent", 0), options.pop("after", 0.0)
    words = [sys.executable, "-m", "llmbench", *command]
    shell = wrap.format('"$@"')
    process = subprocess.Popen(
        ["bash", "-c", shell, "bash", *words],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )
    if sent:
        time.sleep(after)
        process.send_signal(sent)
    try:
        out, err = process.communicate(timeout=MOST_WALL_S)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = None
    return Answer(code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def processes() -> Attempt:
    """Real processes with other locales, widths, closed streams, broken pipes, full disks, lost folders and Ctrl-C."""

    def attempt(rng: random.Random, folder: Path) -> Problems:
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder)}
        choices: dict[str, list[str]] = {
            "LC_ALL": ["C", "POSIX", "C.UTF-8", "tr_TR.UTF-8", "xx"],
            "PYTHONUTF8": ["0", "1"],
            "PYTHONCOERCECLOCALE": ["0"],
            "PYTHONIOENCODING": ["ascii", "latin-1", "utf-16", "cp437", "ascii:strict", "utf-8:surrogateescape"],
            "COLUMNS": ["0", "1", "2", "-1", "x", "9" * 30, "1000000", ""],
            "LINES": ["0", "x"],
            "NO_COLOR": ["", "1"],
            "FORCE_COLOR": ["1"],
            "TERM": ["", "dumb", "xterm-256color", "\x1b[2J"],
            "HOME": ["", "/nonexistent", "/dev/null", "relative"],
            "TMPDIR": ["/nonexistent", ""],
            "HF_ENDPOINT": ["", "x", "file:///", "http://127.0.0.1:9", "\x1b[2J"],
            "HF_TOKEN": ["a\nb", "\x1b", "x" * 9999],
            "HF_HOME": ["/dev/null", "/proc"],
            "LLMBENCH_COMMIT": ["\x1b[2J\n"],
            "PYTHONWARNINGS": ["always"],
            "PYTHONHASHSEED": ["1"],
            "_LLMBENCH_COMPLETE": ["bash", "zsh", "fish", "x", ""],
        }
        for name in rng.sample(list(choices), k=rng.randint(0, 5)):
            if name != "_LLMBENCH_COMPLETE" or rng.random() < 0.3:
                variables[name] = rng.choice(choices[name])
        if rng.random() < 0.05:
            variables.pop("HOME")
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", EVIL: EVIL, "hidden_act": "é\u202e"}))
        words = [word for word in WORDS if word and "\0" not in word]
        command = rng.choice(
            [
                [*sizing(rng), "llama2-7b"],
                [*sizing(rng), rng.choice([".", "config.json", str(folder)])],
                [*sizing(rng), rng.choice(words)],
                ["specs", "list"],
                ["specs", "show", "gpt2"],
                ["specs", "import", "."],
                ["--help"],
                [rng.choice(["bench", "memory", "profile", "specs"]), "--help"],
                ["--show-completion", "bash"],
                ["params", "hf:x/y"],
                ["params", "gpt2", "-o", rng.choice(["/dev/stdout", "/dev/full", "x.json", "missing/x", ".", "-"])],
            ]
        )
        what = rng.randrange(10)
        options: dict[str, Any] = {}
        if what == 0:
            options["wrap"] = "exec {} " + rng.choice([">&-", "2>&-", "<&-", ">&- 2>&-", ">/dev/full", "2>/dev/full"])
        elif what == 1:
            options["wrap"] = "{} | head -c " + str(rng.choice([0, 1, 100, 5000])) + "; exit ${{PIPESTATUS[0]}}"
        elif what == 2:
            options["wrap"] = "mkdir -p gone/deep && cd gone/deep && rmdir $PWD && exec {}"
        elif what == 3:
            command = [*command, "-o", "x.json"]
            options["wrap"] = f"ulimit -f {rng.choice([0, 1])}; exec {{}}"
            variables["PYTHONDONTWRITEBYTECODE"] = "1"  # Python keeps compiled files that it could not write whole
        elif what == 4:
            options |= {"sent": signal.SIGINT, "after": rng.uniform(0, 1.5)}
        elif what == 5:
            options["wrap"] = f"stty cols {rng.choice([1, 7, 40])} </dev/tty 2>/dev/null; exec {{}}"
            terminal = ["script", "-qec", "true", "/dev/null"]
            if shutil.which(terminal[0]):
                options["wrap"] = 'printf -v line "%q " {}; exec script -qec "$line" /dev/null'
        answer = started(command, folder, variables, **options)
        if variables.get("PYTHONIOENCODING") == "utf-16":
            answer = answer._replace(out="", err=answer.err.replace("\0", ""))
        if what == 4 and "KeyboardInterrupt" in answer.err and f"{ROOT}/llmbench/" not in answer.err:
            return []  # the interpreter was starting, and no code of llmbench ran
        if answer.code == 2 and what == 0:
            answer = answer._replace(err=answer.err or "stderr is closed")
        if variables.get("_LLMBENCH_COMPLETE") == "fish":
            answer = answer._replace(out=answer.out.replace("\t", ""))
        shown = [f"{name}={value!r}" for name, value in variables.items() if name in choices]
        return named([*shown, *command, options.get("wrap", "")], answer, sent=options.get("sent", 0), styles=what == 5)

    return attempt


class Fork:
    """A command that runs in a fork of this process. Its streams are the files `out` and `err` in the folder."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        number: int = 0,
        *,
        variables: dict[str, str] | None = None,
        encoding: str = "utf-8",
        most_bytes: int = 0,
    ) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.streams = [folder / f"{name}{number}" for name in ("out", "err")]
        for path in self.streams:
            path.touch()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the child can handle it
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        else:
            self._run(command, variables or {}, encoding, most_bytes)

    def _run(self, command: Sequence[str], variables: dict[str, str], encoding: str, most_bytes: int) -> None:
        code: Any = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for stream, path in enumerate(self.streams, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream)
            sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
            sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
            os.environ.update(variables)
            tempfile.tempdir = variables.get("TMPDIR", str(self.folder))  # removed with the folder of the try
            os.chdir(self.folder)
            if most_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            from llmbench.cli import main
            from llmbench.measure.store import Store

            close = Store.close

            def closing(store: Store) -> None:
                """Close, and tell the parent before the file is checked for the last time."""
                (self.folder / "closing").touch()
                close(store)

            Store.close = closing  # type: ignore[method-assign]
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            except KeyboardInterrupt:
                os._exit(130)
            main(list(command))
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code if isinstance(code, int) else 1)

    def send(self, sent: int, after: float) -> bool:
        """Send a signal after so many seconds. Return whether the process was still running."""
        end = time.monotonic() + after
        while time.monotonic() < end:
            if self.ended():
                return False
            time.sleep(0.002)
        if self.ended():
            return False
        os.kill(self.pid, sent)
        return True

    def ended(self) -> bool:
        """Whether the process has ended. It can still be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def answer(self) -> Answer:
        """Wait for the process, and return its answer."""
        code: int | None = None
        while time.monotonic() - self.started < MOST_WALL_S and not self.ended():
            time.sleep(0.002)
        if not self.ended():
            os.killpg(self.pid, signal.SIGKILL)
        else:
            code = 0
        _, status = os.waitpid(self.pid, 0)
        if code is not None:
            code = os.waitstatus_to_exitcode(status)
        return Answer(code, *(path.read_bytes().decode("utf-8", "replace") for path in self.streams))


def whole_rows(content: bytes) -> list[bytes]:
    """Return the lines of rows that end with a line break."""
    return [line for line in content.split(b"\n")[:-1] if line.startswith(b'{"line":"row"')]


def claimed(answer: Answer, folder: Path) -> Problems:
    """Return the rows that stderr claims and that the named file has not."""
    problems = []
    for count, name in re.findall(r"^(\d+) rows in (.+)$", answer.err, re.MULTILINE):
        path = folder / name
        found = len(set(whole_rows(path.read_bytes()))) if path.is_file() else 0
        if found < int(count):
            problems.append(f"lost rows: {found} of {count} claimed rows are in {name}")
    return problems


def surroundings(rng: random.Random) -> dict[str, Any]:
    """Return a width, an encoding and colours for a run of `bench`."""
    values = {"NO_COLOR": "1", "COLUMNS": "1", "LC_ALL": "C"}
    variables = {name: value for name, value in values.items() if rng.random() < 0.4}
    return {"variables": variables, "encoding": rng.choice(["utf-8", "ascii", "latin-1"])}


def killed(whole: Whole) -> Attempt:
    """`kill -9` or Ctrl-C at a random moment of a run, several times, and then `--resume`."""

    def attempt(rng: random.Random, folder: Path) -> Problems:
        path = folder / "x.jsonl"
        sent = rng.choice([signal.SIGKILL, signal.SIGINT])
        problems: Problems = []
        rows: list[bytes] = []
        command = [*BENCH, "-o", "x.jsonl"]
        for number in range(rng.randint(1, 3)):
            fork = Fork(folder, command, number, **surroundings(rng))
            fork.send(sent, rng.uniform(0, whole.seconds))
            if sent == signal.SIGINT and rng.random() < 0.2:
                fork.send(sent, rng.uniform(0, 0.05))
            answer = fork.answer()
            problems += named([*command, sent.name], answer, sent=sent) + claimed(answer, folder)
            content = path.read_bytes() if path.exists() else b""
            if not set(rows) <= set(whole_rows(content)):
                problems.append("lost rows: a later session lost rows of an earlier session")
            rows = whole_rows(content)
            command = [*BENCH, "--resume" if content else "-o", "x.jsonl"]
            if path.exists() and not content:
                path.unlink()
        answer = Fork(folder, command, 9).answer()
        problems += named([*command, "at last"], answer) + claimed(answer, folder)
        content = path.read_bytes() if path.exists() else b""
        if answer.code != 0 and b'"line":"header"' not in content.split(b"\n")[0]:
            return [] if "no results" in answer.err else problems  # killed while the first header was written
        if not set(rows) <= set(whole_rows(content)):
            problems.append("lost rows: the last session lost rows")
        if answer.code != 0:
            return [*problems, f"not resumed: {answer.err[-300:]}"]
        return problems + missing(path, whole.keys)

    return attempt


def lost_file(whole: Whole) -> Attempt:
    """The result file or its folder is removed, renamed, replaced or changed during a run."""

    def attempt(rng: random.Random, folder: Path) -> Problems:
        where = folder / "where"
        where.mkdir()
        path = where / "x.jsonl"

        def attack() -> None:
            match rng.randrange(9):
                case 0:
                    path.unlink()
                case 1:
                    path.rename(folder / "elsewhere")
                case 2:
                    shutil.rmtree(where)
                case 3:
                    where.rename(folder / "moved")
                case 4:
                    os.truncate(path, rng.choice([0, 10, path.stat().st_size // 2]))
                case 5:
                    (folder / "new").write_text("other\n")
                    (folder / "new").replace(path)
                case 6:
                    shutil.rmtree(where)
                    where.write_text("a file")
                case 7:
                    path.unlink()
                    path.symlink_to(rng.choice(["/dev/full", "/dev/null", "x.jsonl", str(folder / "link")]))
                case 8:
                    path.write_bytes(b"x" * rng.choice([1, path.stat().st_size, 2 * path.stat().st_size]))

        resumed = rng.random() < 0.4
        if resumed:
            lines = whole.content.splitlines(keepends=True)
            path.write_bytes(b"".join(lines[: rng.randint(2, len(lines) - 1)]))
        command = [*BENCH, "--resume" if resumed else "-o", "where/x.jsonl"]
        fork = Fork(folder, command, **surroundings(rng))
        for _ in range(rng.choice([1, 1, 2])):
            fork.send(0, rng.uniform(0, whole.seconds))
            with contextlib.suppress(OSError):
                attack()
        during = not (folder / "closing").exists()  # a file that is lost after the run is no fault of the run
        answer = fork.answer()
        return named(command, answer) + (claimed(answer, folder) if during else [])

    return attempt


def full_disk(whole: Whole) -> Attempt:
    """A disk that becomes full during a run: a limit of the size of files, or a small file system in memory.

    The folder for temporary files, where a result file moves, is on the same disk or on another one.
    """

    def attempt(rng: random.Random, folder: Path) -> Problems:
        where, elsewhere = folder / "where", folder / "elsewhere"
        where.mkdir()
        elsewhere.mkdir()
        small = rng.random() < 0.6 and mounted(where, rng.choice([4096, 8192, 12288]))
        limit = 0 if small else rng.randrange(1, len(whole.content) + 500)
        variables = {"TMPDIR": str(rng.choice([where, elsewhere]))}
        command = [*BENCH, "-o", "where/x.jsonl", "--format", "json"]
        try:
            answer = Fork(folder, command, variables=variables, most_bytes=limit).answer()
            path = where / "x.jsonl"
            kept = len(set(whole_rows(path.read_bytes()))) if path.exists() else 0
            problems = named([*command, "tmpfs" if small else "limit"], answer) + claimed(answer, folder)
        finally:
            if small:
                subprocess.run(["umount", str(where)], check=False)
        if answer.code == 0 and " rows in " not in answer.err:
            problems.append("lost rows: exit code 0 without a file")
        if answer.code != 0 and "error: " not in answer.err:
            problems.append(f"no error after {kept} rows")
        if answer.code != 0 and small and kept and answer.out.count('"implementation": ') < kept:
            problems.append(f"lost rows: the answer lacks some of {kept} rows")
        return problems

    return attempt


def mounted(folder: Path, size: int) -> bool:
    """Mount a file system of `size` bytes at a folder. Return whether this user may do so."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def two_runs(whole: Whole) -> Attempt:
    """Two runs continue one file at once."""

    def attempt(rng: random.Random, folder: Path) -> Problems:
        path = folder / "x.jsonl"
        lines = whole.content.splitlines(keepends=True)
        before = lines[: rng.randint(2, len(lines))]
        path.write_bytes(b"".join(before))
        command = [*BENCH, "--resume", "x.jsonl"]
        first = Fork(folder, command, 1)
        time.sleep(rng.uniform(0, whole.seconds))
        second = Fork(folder, command, 2)
        answers = [first.answer(), second.answer()]
        problems = [problem for answer in answers for problem in named(command, answer) + claimed(answer, folder)]
        for answer in answers:
            if answer.code != 0 and "another run writes" not in answer.err:
                problems.append(f"not resumed: {answer.err[-300:]}")
        content = path.read_bytes()
        if not content.startswith(b"".join(before)):
            problems.append("lost rows: the old content has changed")
        if len(whole_rows(content)) > len(whole_rows(b"".join(before))) + len(whole.keys):
            problems.append("both runs measured the same rows")
        return problems + missing(path, whole.keys)

    return attempt
