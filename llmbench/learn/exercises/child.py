"""The process that imports and calls the function of a student. A fault in it cannot end the command."""

from __future__ import annotations

import importlib.util
import linecache
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmbench.learn.exercises.fault import Fault

__all__ = ["REQUEST", "RESULT", "Reply", "Request", "main"]

REQUEST, RESULT = "request", "result"
"""The files in the folder that both processes use. They are in MessagePack, which also has infinite numbers."""


class Request(msgspec.Struct, frozen=True):
    """What to check: the exercise, the file, and the seed of the random inputs."""

    exercise: str
    file: bytes
    seed: int


class Reply(NamedTuple):
    """The result: the number of cases that passed, and the first fault, or None."""

    cases: int
    fault: Fault | None


def main(folder: str) -> None:
    """Read the request in `folder`, check the function, and write the result there."""
    request = msgspec.msgpack.decode(Path(folder, REQUEST).read_bytes(), type=Request)
    reply = _checked(request)
    Path(folder, RESULT).write_bytes(msgspec.msgpack.encode(reply))


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
    try:
        function = _loaded(path, exercise.name)
        if function is None:
            return Reply(0, Fault(message=f"{path.name} defines no function `{exercise.name}`"))
        return Reply(*check_cases(exercise, function, seed=request.seed))
    except CaseError as problem:
        return Reply(problem.passed, _raised(problem.__cause__ or problem, path, case=problem.case))
    except BaseException as problem:  # also SystemExit
        return Reply(0, _raised(problem, path))


def _loaded(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"file of the student: {path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for the module of their class
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    return function if callable(function) else None


def _raised(problem: BaseException, path: Path, *, case: str = "") -> Fault:
    """Return the fault for an exception, with the innermost line of the student's file. `case`: the call."""
    try:
        reason = " ".join(str(problem).split())[:500]
    except BaseException:  # a class of the student can have a broken __str__
        reason = "its text cannot be computed"
    message = f"{type(problem).__name__}: {reason}"
    if isinstance(problem, SyntaxError) and problem.lineno is not None and problem.filename == str(path):
        return Fault(message=message, line=problem.lineno, code=(problem.text or "").strip())
    own = [frame for frame in traceback.extract_tb(problem.__traceback__) if frame.filename == str(path)]
    line = own[-1].lineno if own else None
    code = linecache.getline(str(path), line).strip() if line else None
    return Fault(message=message, case=case, line=line, code=code)
