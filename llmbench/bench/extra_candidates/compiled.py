"""The candidate `compiled`: plain torch, compiled by torch.compile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from llmbench.errors import CannotRunError
from llmbench.measure.compiler_cache import compiler_cache_fault
from llmbench.model.implementations.interface import Implementation
from llmbench.model.implementations.plain import STANDARD

__all__ = ["Backend", "build", "compiled", "forget_compiled"]

Backend = str | Callable[..., Any]
"""The type of torch.compile's argument `backend`: a compiler or the name of a compiler."""


def compiled(
    function: Callable[..., Any], *, backend: Backend = "inductor", fullgraph: bool = False
) -> Callable[..., Any]:
    """Compile `function` with torch.compile, once for each input shape. The backward pass of the compiled function can
    run more than once.

    Raises CannotRunError if the cache folder of torch.compile cannot be written, or if torch reaches its recompile
    limit, because torch would then run the function uncompiled. This function changes two settings of torch.compile for
    the whole process.
    """
    fault = compiler_cache_fault()
    if fault is not None:
        raise CannotRunError(fault, hint="set TORCHINDUCTOR_CACHE_DIR to a folder that can be written")
    _configure_compiler()
    fast: Callable[..., Any] = torch.compile(function, backend=backend, dynamic=False, fullgraph=fullgraph)

    def call(*args: Any, **options: Any) -> Any:
        try:
            return fast(*args, **options)
        except torch._dynamo.exc.FailOnRecompileLimitHit:
            limit = torch._dynamo.config.recompile_limit
            raise CannotRunError(
                f"torch.compile reached its recompile limit: it compiled one function {limit} times"
            ) from None

    return call


def _configure_compiler() -> None:
    """Forbid donated buffers, and make the recompile limit an error.

    With donated buffers, a compiled backward pass overwrites the saved activations, so that it cannot run twice. This
    function changes the default of that option, because a temporary change would fail in two cases. torch's cache would
    return code that was compiled with the other value. Other threads would not see the change, and on a GPU autograd
    runs in another thread.
    """
    from torch._functorch import config as functorch  # imports the compiler, which takes seconds

    functorch.donated_buffer = False
    functorch._config["donated_buffer"].default = False  # type: ignore[attr-defined]
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def forget_compiled() -> None:
    """Delete all compiled code, and reset torch's count of compilations. Without the reset, torch compiles no function
    more than eight times."""
    if "torch._dynamo" in sys.modules:  # otherwise nothing was compiled
        torch._dynamo.reset()


def build() -> Implementation:
    """Return plain torch, with the trait that each piece is compiled as a whole."""
    return STANDARD._replace(name="compiled", traits=STANDARD.traits._replace(compiled="piece"))
