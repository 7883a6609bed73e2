"""CUDA graphs on a CPU: what ops did is recorded, and a replay does it again on the same storages.

As the real ones, a graph bakes in every value that the host had when it was captured, and refuses what asks the device
for one.
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
    """What `torch.cuda.CUDAGraph` is."""

    def __init__(self) -> None:
        self.ops: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        """Every op again, on the storages of its arguments; what it makes goes where it went before."""
        with torch.no_grad():
            for func, args, kwargs, made in self.ops:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(made), _tensors(again), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: RecordedGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.graph.ops.append((func, args, kwargs or {}, made))
        return made


class _Asking(TorchFunctionMode):
    """Refuses what would bring values to the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__):
            raise RuntimeError("called a synchronizing CUDA operation")
        return func(*args, **(kwargs or {}))


def _tensors(made: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


class RecordedCuda:
    """What is used of `torch.cuda`."""

    CUDAGraph = RecordedGraph

    def __init__(self) -> None:
        self.asking: _Asking | None = None

    @contextmanager
    def graph(self, graph: RecordedGraph, pool: None) -> Iterator[None]:
        """Capture what is done inside."""
        with _Recorder(graph), _Asking():
            yield

    def get_sync_debug_mode(self) -> int | str:
        """What becomes of those who ask for values."""
        return "error" if self.asking else 0

    def set_sync_debug_mode(self, mode: int | str) -> None:
        """Refuse them, or not."""
        if self.asking is not None:
            self.asking.__exit__(None, None, None)
        self.asking = None
        if mode == "error":
            self.asking = _Asking()
            self.asking.__enter__()

    def graph_pool_handle(self) -> None:
        """Memory of a graph's own."""

    def current_device(self) -> int:
        """There is one."""
        return 0

    def device(self, device: torch.device) -> nullcontext[None]:
        """Make it the current one."""
        return nullcontext()

    def current_stream(self) -> None:
        """There is one."""

    def stream(self, stream: None) -> nullcontext[None]:
        """Make it the current one."""
        return nullcontext()

    def synchronize(self, device: torch.device) -> None:
        """Nothing runs behind a CPU's back."""
