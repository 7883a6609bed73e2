"""torch.compile for what is timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._functorch import config as functorch

from llmbench.errors import CannotRunError

__all__ = ["Backend", "compiled", "forget_compiled"]

Backend = str | Callable[..., Any]
"""A compiler behind torch.compile, or the name of one."""


def compiled(
    function: Callable[..., Any], *, backend: Backend = "inductor", fullgraph: bool = False
) -> Callable[..., Any]:
    """`function` by torch.compile, for the shapes that it is called with: nothing is made for others. Its backward pass
    can be repeated. It raises CannotRunError where torch gives up compiling, and would go on without.

    The first call changes two settings of torch.compile, for all that the process compiles from then on.
    """
    _set()
    fast: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=False, fullgraph=fullgraph)

    def call(*args: Any, **options: Any) -> Any:
        try:
            return fast(*args, **options)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            most = torch._dynamo.config.recompile_limit
            raise CannotRunError(f"torch.compile gives up here: one function was compiled {most} times") from None

    return call


def _set() -> None:
    """A compiled backward pass writes over what its forward pass kept, unless told otherwise, and refuses to run twice.
    It would be told for the time of a block, but for two reasons: code that was compiled without being told comes back
    from torch's cache, and what one thread sets the others do not see, in which autograd runs on a GPU. Hence the
    default for them all."""
    functorch.donated_buffer = False
    functorch._config["donated_buffer"].default = False  # type: ignore[attr-defined]
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def forget_compiled() -> None:
    """Let go of all compiled code. torch counts how often it compiled a function, and gives up after eight."""
    torch._dynamo.reset()
