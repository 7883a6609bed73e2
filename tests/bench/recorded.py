"""CUDA graphs on a CPU: what ops did is recorded, and a replay does it again on the same storages.

As the real ones, a graph bakes in every value that the host had when it was captured, and refuses what asks the device
for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
            raise RuntimeError("operation not permitted when stream is capturing")
        return func(*args, **(kwargs or {}))


def _tensors(made: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]


class RecordedCuda:
    """What is used of `torch.cuda`."""

    CUDAGraph = RecordedGraph

    @staticmethod
    @contextmanager
    def graph(graph: RecordedGraph) -> Iterator[None]:
        """Capture what is done inside."""
        with _Recorder(graph), _Asking():
            yield

    @staticmethod
    def synchronize(device: torch.device) -> None:
        """Nothing runs behind a CPU's back."""
