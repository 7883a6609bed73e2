"""Measure the peak of the memory that a call allocates, without the memory that was allocated before the call.

On a GPU, torch's allocator counts the allocated bytes. On a CPU, torch does not count them, so `LiveTensors` tracks
each storage from its allocation until it is freed. `LiveTensors` does not see scratch memory inside an op, or memory
that compiled code allocates.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from llmbench.measure.measurement import MemoryPeak

__all__ = ["GraphedCall", "LiveTensors", "RepeatableBackward", "peak_memory", "reserved_bytes"]


class RepeatableBackward:
    """A backward pass that can be repeated, because it keeps the autograd graph of one forward pass.

    `forward()` returns the outputs of the forward pass, whose autograd graph has the saved activations.
    `backward(outputs, again)` runs the backward pass. If `again` is true, it keeps the graph for the next call.
    The peak memory of the call includes the saved activations, although the forward pass allocated them.
    """

    def __init__(self, forward: Callable[[], Any], backward: Callable[[Any, bool], Any]) -> None:
        self._forward, self._backward = forward, backward
        self._saved = forward()

    def __call__(self) -> Any:
        """Run the backward pass and keep the graph."""
        return self._backward(self._saved, True)

    def begin(self) -> None:
        """Run the forward pass again, and replace the old graph with the new graph."""
        self._saved = None
        self._saved = self._forward()

    def end(self) -> None:
        """Run the backward pass and free the graph. Call `begin` before the next call."""
        saved, self._saved = self._saved, None
        self._backward(saved, False)


class GraphedCall:
    """A call that replays CUDA graphs for all its work, or for a part. `eager` is the same call without CUDA graphs.

    The peak memory of a replay cannot be counted, because a graph allocates its memory when it is captured. The peak of
    `eager` is counted instead.
    """

    def __init__(self, replay: Callable[[], Any], eager: Callable[[], Any]) -> None:
        self._replay, self.eager = replay, eager

    def __call__(self) -> Any:
        """Replay the graphs."""
        return self._replay()


def reserved_bytes(device: torch.device, *, cuda: Any = torch.cuda) -> int:
    """Free torch's cached GPU blocks, and return the bytes that torch still reserves, including those of CUDA graphs.

    Return 0 on a CPU, because torch does not count the memory of CPU tensors.
    """
    if device.type != "cuda":
        return 0
    cuda.empty_cache()
    return int(cuda.memory_reserved(device))


def peak_memory(call: Callable[[], Any], device: torch.device, *, cuda: Any = torch.cuda) -> MemoryPeak:
    """Run `call` once and return its peak memory. The call must be warmed up.

    The peak of a `RepeatableBackward` includes the saved activations of the forward pass, but no temporaries of the
    forward pass. For a `GraphedCall`, the eager call runs. `cuda`: torch.cuda, or a replacement for it in tests.
    """
    if isinstance(call, GraphedCall):
        call = call.eager
    if not isinstance(call, RepeatableBackward):
        return _peak(_nothing, call, device, cuda)
    call.end()
    peak = _peak(call.begin, call.end, device, cuda)
    call.begin()
    return peak


def _nothing() -> None:
    """Do nothing. This is the argument `begin` of `_peak` for a call that needs no preparation."""


def _peak(begin: Callable[[], Any], call: Callable[[], Any], device: torch.device, cuda: Any) -> MemoryPeak:
    """Return the peak memory during `call`, minus the memory that was allocated before `begin` ran."""
    if device.type != "cuda":
        live = LiveTensors()
        with live:
            begin()
            live.peak_bytes = live.live_bytes
            call()
        return MemoryPeak(added_bytes=live.peak_bytes, by="tensors")
    gc.collect()
    cuda.synchronize(device)
    cuda.empty_cache()  # free the cached blocks of earlier work, which do not belong to this call
    resident = cuda.memory_allocated(device)
    begin()
    cuda.synchronize(device)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats(device)
    call()
    cuda.synchronize(device)
    return MemoryPeak(
        added_bytes=cuda.max_memory_allocated(device) - resident,
        resident_bytes=resident,
        reserved_bytes=cuda.max_memory_reserved(device),
        by="allocator",
    )


class LiveTensors(TorchDispatchMode):
    """Tracks the storages that torch's ops allocate.

    `live_bytes`: the bytes of all storages that are allocated now. `peak_bytes`: the largest `live_bytes` so far.
    """

    supports_higher_order_operators = True  # without this, FlexAttention cannot run under the mode

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return True, because torch.compile refuses to run under a mode that is not an infra mode."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and track the storages of its results. Storages of the arguments are not tracked again."""
        inputs = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in inputs:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def freed(_: Any) -> None:
            del self._known[key]
            self.live_bytes -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
