"""Makes Triton's interpreter faster without changing what it runs."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import pytest

from llmbench.kernels import launching


@pytest.fixture(scope="module", autouse=True)
def _quick_interpreter() -> Any:
    """Find the builtins of a module of Triton's language once.

    The interpreter replaces these builtins at each launch and at each call of a device function. Each time it searches
    all members of the modules for them, which took a fifth of the time of these tests.

    The interpreter also copies the whole memory of each argument back to its device after a launch. On a CPU it copies
    the memory onto itself, which would touch every page of the memory that `test_offsets.py` reserves."""
    from triton.runtime import interpreter

    if not launching.interpreted():
        yield
        return

    is_builtin = interpreter.tl.core.is_builtin

    @functools.cache
    def builtins_of(package: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(package) if is_builtin(member)]

    def patch_builtin(package: Any, *scope: Any) -> None:
        for name in builtins_of(package):
            member = getattr(package, name)
            if is_builtin(member):  # not yet replaced
                interpreter._patch_attr(package, name, member, *scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", patch_builtin)
        patch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *_: None)
        yield
