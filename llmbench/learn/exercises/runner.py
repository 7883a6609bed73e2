"""Run the check of a student's function in a process of its own, with a time limit.

The process is no sandbox: it has the rights of the user. Whatever it does, the command ends in time, and so does the
process if the command is stopped.
"""

from __future__ import annotations

import ast
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.learn.exercises import EXERCISES
from llmbench.learn.exercises.child import REQUEST, RESULT, Reply, Request
from llmbench.learn.exercises.descendants import ends_descendants
from llmbench.learn.exercises.fault import Fault
from llmbench.learn.exercises.output import Output
from llmbench.spec.reading import read_bytes

__all__ = ["exercises_in", "run_check"]

MOST_BYTES = 2**20
"""The largest size of a student's file, in bytes."""
MOST_REPLY_BYTES = 2**16
"""The largest size of a result, in bytes."""


def run_check(exercise: str, file: Path, *, seed: int, timeout_s: float, show: Callable[[str], object]) -> Reply:
    """Check the function of `exercise` in `file`. A process that does not end in `timeout_s` seconds is stopped.

    show: it is called with what the process printed.
    """
    # The process may leave anything in the folder, also files that cannot be removed.
    folders = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with folders as folder, _stops_on_signals(), ends_descendants():
        cpu_s = math.ceil(timeout_s) * (os.cpu_count() or 1)
        request = Request(exercise, os.fsencode(file), seed, cpu_s, secrets.token_hex())
        Path(folder, REQUEST).write_bytes(msgspec.msgpack.encode(request))
        code = f"from llmbench.learn.exercises.child import main; main({folder!r})"
        # -P: no module from the current folder takes the place of another one. -u: output before a sudden end is seen
        process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        output = Output()
        try:
            output.read(process, timeout_s)
        except subprocess.TimeoutExpired:
            return Reply(0, Fault(message=f"the function did not end within {timeout_s:g} s"))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also the processes that the function started
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
            show(output.text)
        try:
            reply = msgspec.msgpack.decode(read_bytes(Path(folder, RESULT), MOST_REPLY_BYTES), type=Reply)
            if reply.token == request.token:
                return reply
        except (LLMBenchError, msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        return Reply(0, Fault(message=f"the process ended with {how} before the check was done"))


@contextmanager
def _stops_on_signals() -> Iterator[None]:
    """Until the block ends, let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does. Otherwise they would end
    the command at once, and leave the process of the student running."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # only this thread may set handlers
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exercises_in(file: Path) -> list[str]:
    """Return the exercises whose functions a file defines, in the order of `EXERCISES`.

    Raises LLMBenchError if the file cannot be read, or defines no such function.
    """
    try:
        tree = ast.parse(read_bytes(file, MOST_BYTES))
    except (RecursionError, MemoryError):  # the parser of Python raises either for deep nesting
        raise LLMBenchError(f"{file} is nested too deeply for Python") from None
    except (SyntaxError, ValueError) as problem:
        line = getattr(problem, "lineno", None)
        where = f"line {line}: " if line else ""
        raise LLMBenchError(f"{file} is not valid Python: {where}{getattr(problem, 'msg', problem)}") from None
    defined = set().union(*map(_names, tree.body))
    names = {name for name, module in EXERCISES.items() if module.startswith("functions.")}
    found = [name for name in EXERCISES if name in names and name.replace("-", "_") in defined]
    if not found:
        known = ", ".join(name.replace("-", "_") for name in EXERCISES if name in names)
        raise LLMBenchError(f"{file} defines no function of an exercise", hint=f"the names are {known}")
    return found


def _names(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines: of functions, classes, imports and plain variables."""
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return {node.name}
        case ast.ImportFrom() | ast.Import():
            return {alias.asname or alias.name for alias in node.names}
        case ast.Assign():
            return {target.id for target in node.targets if isinstance(target, ast.Name)}
        case _:
            return set()
