"""Run work in a forked child process with time limits, and name the candidate that was running if the child ends badly.

A kernel that hangs, or that kills its process or its CUDA context, then costs one child. The parent imports torch and
llmbench once. It never uses the GPU, because CUDA does not work in a fork of a process that has used CUDA. A fork
starts in milliseconds, while a new process needs seconds to import torch.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import mmap
import os
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = ["Child", "Reporter", "wait_for"]

STACK_S = 0.2
"""The seconds in which a child that hangs may write its stack into its log before it is killed."""

KILLED_S = 5.0
"""The seconds to wait for the end of a killed child. A process whose kernel hangs may end late."""

NAME_BYTES = 512
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Reporter:
    """The child's end of the connection to its parent.

    `send(message)` sends an object that JSON can encode. `running(name)` writes the name of the running candidate into
    memory that both processes share. This is fast, and the parent can read the name after the child's death.
    """

    def __init__(self, pipe: int, shared: mmap.mmap) -> None:
        self._pipe, self._shared, self._count = pipe, shared, 0

    def send(self, message: Any) -> None:
        """Send a message to the parent."""
        text = json.dumps(message).encode() + b"\n"
        while text:
            text = text[os.write(self._pipe, text) :]

    def running(self, name: str) -> None:
        """Report to the parent that the candidate `name` begins to run. An empty name means that no candidate runs."""
        text = name.encode()[:NAME_BYTES]
        self._count += 1
        self._shared[: 12 + len(text)] = self._count.to_bytes(8, "little") + len(text).to_bytes(4, "little") + text


class Child:
    """A forked child process that runs `work(reporter)`, in its own process group.

    `log`: the file that gets the child's output. `environment`: environment variables to set in the child.
    """

    def __init__(
        self, work: Callable[[Reporter], None], log: Path, *, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self.outcome: str | None = None  # the reason why the child ended badly; None if it ended well or still runs
        self._shared = mmap.mmap(-1, 12 + NAME_BYTES)
        self._pipe, theirs = os.pipe()
        self._rest = b""
        self._ended: int | None = None
        sys.stdout.flush()
        with warnings.catch_warnings():  # Python warns if threads exist, such as those of a test runner
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _run(work, Reporter(theirs, self._shared), log, environment or {})
        os.close(theirs)

    @property
    def running(self) -> str:
        """The candidate that was running last."""
        return bytes(self._shared[12 : 12 + int.from_bytes(self._shared[8:12], "little")]).decode(errors="replace")

    def messages(self, *, until: float, stall_s: float) -> Iterator[Any]:
        """Yield the child's messages until it ends. Then `outcome` says how it ended.

        Kill the child at the time `until` (of `time.monotonic`), or if it neither sends a message nor begins another
        candidate for `stall_s` seconds.
        """
        count, moved = bytes(self._shared[:8]), time.monotonic()
        try:
            while True:
                now = time.monotonic()
                if bytes(self._shared[:8]) != count:
                    count, moved = bytes(self._shared[:8]), now
                if now >= until and self._poll() is None:
                    self.outcome = "killed at the time limit"
                    return
                if now >= moved + stall_s:
                    self.outcome = f"killed: no progress in {stall_s:g} s"
                    return
                waiting = select.select([self._pipe], [], [], max(0.0, min(0.05, until - now)))[0]
                if not waiting and self._poll() is None:
                    continue
                # A child of the child may keep the pipe open after the child has ended.
                text = os.read(self._pipe, 1 << 16) if waiting else b""
                if not text:
                    self.outcome = self._end()
                    return
                moved = time.monotonic()
                *lines, self._rest = (self._rest + text).split(b"\n")
                yield from map(json.loads, lines)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill the child and every process that it has started."""
        if self._poll() is None:
            self._signal(signal.SIGUSR1)
            self._wait(STACK_S)
        self._signal(signal.SIGKILL)  # also ends what the child has started
        self._wait(KILLED_S)
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _end(self) -> str | None:
        """Wait for the end of a child that has closed its pipe. Return the reason if it ended badly."""
        code = self._wait(KILLED_S)
        if code == 0:
            return None
        if code is None:
            return "did not end"
        last = self.last_line()
        ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{ending}: {last}" if last else ending

    def last_line(self) -> str:
        """Return the last line of the log that is not part of a stack, or an empty text."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
        messages = [
            line.strip()
            for line in lines
            if line.strip() and not line.startswith((" ", "Extension modules", "Current"))
        ]
        return messages[-1][:300] if messages else ""

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # the child has no group yet, or the whole group has ended
            if self._poll() is None:
                os.kill(self.pid, number)

    def _poll(self) -> int | None:
        if self._ended is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended = os.waitstatus_to_exitcode(status)
        return self._ended

    def _wait(self, seconds: float) -> int | None:
        until = time.monotonic() + seconds
        while self._poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        return self._ended


def _run(work: Callable[[Reporter], None], reporter: Reporter, log: Path, environment: Mapping[str, str]) -> None:
    """Run `work` in the child and end the process. Errors go into the log."""
    code = 1
    try:
        # The child stays in the session of its parent, so that whoever ends the session ends the child too.
        os.setpgid(0, 0)
        _die_with_parent()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        stream: IO[str] = os.fdopen(os.dup(1), "w", buffering=1, errors="replace")
        sys.stdout = sys.stderr = stream
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        faulthandler.enable(file=2)  # writes the stack at a segmentation fault
        faulthandler.register(signal.SIGUSR1, file=2)  # the parent asks for the stack of a child that hangs
        os.environ.update(environment)
        work(reporter)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)  # without the exit handlers of the parent


def _die_with_parent() -> None:
    """Let Linux kill this process when its parent dies, so that a kernel that hangs does not keep the GPU."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_for(children: Sequence[Child], seconds: float) -> list[str]:
    """Wait until the children have ended, for at most `seconds` seconds, and kill those that still run. Return one text
    per child that ended badly or was killed."""
    until = time.monotonic() + seconds
    problems = []
    for child in children:
        for _ in child.messages(until=until, stall_s=seconds + 1):
            pass
        if child.outcome is not None:
            problems.append(f"{child.log.stem}: {child.outcome}")
    return problems
