"""The process that imports and calls the function of a student. A fault in it cannot end the command.

The process ends with the command. It has limits of CPU time and of memory, which its own processes inherit.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import linecache
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmbench.learn.exercises.fault import Fault

__all__ = ["REQUEST", "RESULT", "Reply", "Request", "main"]

REQUEST, RESULT = "request", "result"
"""The files in the folder that both processes use. They are in MessagePack, which also has infinite numbers."""


PR_SET_PDEATHSIG = 1
"""The option of Linux's prctl that names the signal for a process whose parent has ended."""
MOST_MEMORY = 2 * 2**30
"""The largest memory of a student's file and function, in bytes. The tensors of an exercise are small."""
MOST_CHARACTERS = 500
"""The largest length of a message or of a line in a fault."""


class Request(msgspec.Struct, frozen=True):
    """What to check: the exercise, the file, and the seed of the random inputs.

    `cpu_s`: the limit of CPU time in seconds. `token`: a random text that the reply repeats. The request is removed
    before the student's file is imported, so a file that writes a reply itself does not know the text.
    """

    exercise: str
    file: bytes
    seed: int
    cpu_s: int
    token: str


class Reply(NamedTuple):
    """The result: the number of cases that passed, the first fault, or None, and the token of the request."""

    cases: int
    fault: Fault | None
    token: str = ""


def main(folder: str) -> None:
    """Read the request in `folder`, check the function, and write the result there."""
    file = Path(folder, REQUEST)
    request = msgspec.msgpack.decode(file.read_bytes(), type=Request)
    file.unlink()
    _limit(request.cpu_s)
    reply = _checked(request)._replace(token=request.token)
    Path(folder, RESULT).write_bytes(msgspec.msgpack.encode(reply))


def _limit(cpu_s: int) -> None:
    """Let the system end this process after `cpu_s` seconds of CPU time, and on Linux when its parent ends."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    limit = cpu_s if most == resource.RLIM_INFINITY else min(cpu_s, most)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit_memory() -> int | None:
    """On Linux, let this process allocate `MOST_MEMORY` bytes more than it has now, or fewer if the user's own limit is
    lower. Return the number of bytes, or None on another system. Shared memory does not count."""
    if sys.platform != "linux":
        return None
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()  # data and stack
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + MOST_MEMORY if soft == resource.RLIM_INFINITY else min(used + MOST_MEMORY, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))  # `_raised` needs the hard limit
    return max(limit - used, 0)


def _out_of_memory(problem: BaseException, reason: str) -> bool:
    """Whether an exception says that memory could not be allocated. torch raises RuntimeError for that."""
    if isinstance(problem, RuntimeError):
        return "DefaultCPUAllocator" in reason or reason == "std::bad_alloc"
    return isinstance(problem, MemoryError) or (isinstance(problem, OSError) and problem.errno == errno.ENOMEM)


def _checked(request: Request) -> Reply:
    import torch

    from llmbench.learn.exercises import load_exercise
    from llmbench.learn.exercises.check import CaseError, check_cases
    from llmbench.learn.exercises.function import Function

    torch.set_num_threads(1)  # the tensors are small
    exercise = load_exercise(request.exercise)
    assert isinstance(exercise, Function)
    path = Path(os.fsdecode(request.file)).resolve()
    # after the imports above, so that a file of the student cannot take the name of a module that they need
    sys.path.insert(0, str(path.parent))
    memory = _limit_memory()
    try:
        function = _loaded(path, exercise.name)
        if function is None:
            return Reply(0, Fault(message=f"{path.name} defines no function `{exercise.name}`"))
        return Reply(*check_cases(exercise, function, seed=request.seed))
    except CaseError as problem:
        return Reply(problem.passed, _raised(problem.__cause__ or problem, path, memory, case=problem.case))
    except BaseException as problem:  # also SystemExit
        return Reply(0, _raised(problem, path, memory))


def _loaded(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"file of the student: {path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for the module of their class
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    return function if callable(function) else None


def _raised(problem: BaseException, path: Path, memory: int | None, *, case: str = "") -> Fault:
    """Return the fault for an exception, with the innermost line of the student's file. `case`: the call. `memory`: the
    limit of memory in bytes."""
    if memory is not None:  # the frames of the exception can still have all of it, and this function needs a little
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    try:
        reason = " ".join(str(problem).split())
    except BaseException:  # a class of the student can have a broken __str__
        reason = "its text cannot be computed"
    if memory is not None and _out_of_memory(problem, reason):
        reason = f"the function needs more than {memory / 2**30:.3g} GiB of memory"
    message = f"{type(problem).__name__}: {reason}"[:MOST_CHARACTERS]
    if isinstance(problem, SyntaxError) and problem.lineno is not None and problem.filename == str(path):
        return Fault(message=message, line=problem.lineno, code=(problem.text or "").strip()[:MOST_CHARACTERS])
    own = [frame for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == str(path)]
    line = own[-1].lineno if own else None
    code = linecache.getline(str(path), line).strip()[:MOST_CHARACTERS] if line else None
    return Fault(message=message, case=case, line=line, code=code)
