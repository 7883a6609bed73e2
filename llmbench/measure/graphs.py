"""A call as one launch: a CUDA graph. What no graph can hold is found before it does harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from llmbench.errors import CannotRunError

__all__ = ["captured"]


def captured(call: Callable[[], Any], device: torch.device, what: str, *, cuda: Any = torch.cuda) -> Callable[[], Any]:
    """What `call` does on the device, as one launch; it was called before, and runs once more. `what` names it in an
    error; `cuda` is torch.cuda.

    Raises CannotRunError for what no graph can hold. Mostly that is a call that waits for the GPU, to learn a number or
    to copy one there, and such a call is not captured at all: a capture that breaks off leaves torch's allocator in the
    middle of it, which from then on frees nothing, and fails where it is asked to.
    """
    try:
        _refuse_waits(call, cuda)
        graph, pool = cuda.CUDAGraph(), cuda.graph_pool_handle()
        # A capture that breaks off does not even go back to the stream that was current.
        with cuda.device(device), _ended(pool, cuda), cuda.stream(cuda.current_stream()), cuda.graph(graph, pool=pool):
            call()
    except Exception as problem:  # whatever a call does that a graph cannot hold
        cuda.synchronize(device)
        raise CannotRunError(f"no CUDA graph holds {what}: {str(problem).partition(chr(10))[0]}") from None
    replay: Callable[[], Any] = graph.replay
    return replay


def _refuse_waits(call: Callable[[], Any], cuda: Any) -> None:
    """Raise RuntimeError where an op of torch waits for the GPU."""
    before = cuda.get_sync_debug_mode()
    cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        cuda.set_sync_debug_mode(before)


@contextmanager
def _ended(pool: Any, cuda: Any) -> Iterator[None]:
    """A capture that breaks off all the same is ended for torch's allocator too."""
    try:
        yield
    except Exception:
        with suppress(RuntimeError):  # it has ended by itself
            torch._C._cuda_endAllocateToPool(cuda.current_device(), pool)
            torch._C._cuda_releasePool(cuda.current_device(), pool)
        raise
