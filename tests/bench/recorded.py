"""CUDA graphs on a CPU: ops are recorded, and a replay runs them again on the same storages.

Like a real graph, a recorded one keeps every host value from its capture, and refuses calls that read a value from the
device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class RecordedGraph:
    """A stand-in for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.ops: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Run every op again on the storages of its arguments, and write its results to the same place."""
        with torch.no_grad():
            for func, args, kwargs, output in self.ops:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(output), _tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.graph.ops.append((func, args, kwargs or {}, output))
        return output


class _Asking(TorchFunctionMode):
    """Refuse calls that copy values to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__):
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


class RecordedCuda:
    """A stand-in for the used parts of `torch.cuda`."""

    CUDAGraph = RecordedGraph

    def __init__(self) -> None:
        self.asking: _Asking | None = None

    @contextmanager
    def graph(self, graph: RecordedGraph, pool: None) -> Iterator[None]:
        """Capture the ops inside."""
        with _Recorder(graph), _Asking():
            yield

    def get_sync_debug_mode(self) -> int | str:
        """The present mode."""
        return "error" if self.asking else 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """Refuse calls that read values from the device, or allow them."""
        if self.asking is not None:
            self.asking.__exit__(None, None, None)
        self.asking = None
        if mode == "error":
            self.asking = _Asking()
            self.asking.__enter__()

    def graph_pool_handle(self) -> None:
        """A memory pool for a graph: none."""

    def current_device(self) -> int:
        """The only one."""
        return 0

    def device(self, device: torch.device) -> nullcontext[None]:
        """Make it the current one: it always is."""
        return nullcontext()

    def current_stream(self) -> None:
        """The only one."""

    def stream(self, stream: None) -> nullcontext[None]:
        """Make it the current one: it always is."""
        return nullcontext()

    def synchronize(self, device: torch.device) -> None:
        """Nothing to wait for: ops on a CPU are synchronous."""
