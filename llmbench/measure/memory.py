"""Peak memory of a call, in addition to the memory that was allocated before the call.

On a GPU torch's allocator counts it. A CPU has no such counter, so each storage that an op allocates is tracked until
it is freed. The tracking misses scratch memory inside an op, and memory that compiled code allocates.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["GraphedCall", "LiveTensors", "MemoryPeak", "RepeatableBackward", "peak_memory", "reserved_bytes"]


class MemoryPeak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Peak memory of a call in bytes. `added_bytes`: peak of the memory that the call added, its results included.
    `resident_bytes`: memory that was allocated when the call began. `reserved_bytes`: the most memory that the
    allocator has reserved so far. The last two are None on a CPU. `by`: the source of the numbers: the GPU's allocator
    or tracked tensors."""

    added_bytes: int
    resident_bytes: int | None = None
    reserved_bytes: int | None = None
    by: Literal["allocator", "tensors"]


class RepeatableBackward:
    """A backward pass that can be repeated: it keeps the autograd graph of one forward pass.

    `forward()` returns the saved outputs. `backward(saved, again)` runs the backward pass and, if `again` is true,
    leaves `saved` usable. Saved activations count as memory of the call, although the call does not allocate them.
    """

    def __init__(self, forward: Callable[[], Any], backward: Callable[[Any, bool], Any]) -> None:
        self._forward, self._backward = forward, backward
        self._saved = forward()

    def __call__(self) -> Any:
        """Run the backward pass and keep the graph."""
        return self._backward(self._saved, True)

    def begin(self) -> None:
        """Run the forward pass again, and keep its graph in place of the old one."""
        self._saved = None
        self._saved = self._forward()

    def end(self) -> None:
        """Run the backward pass and free the graph, as a single backward pass does. Call `begin` before the next
        call."""
        saved, self._saved = self._saved, None
        self._backward(saved, False)


class GraphedCall:
    """A call that replays CUDA graphs for all or a part of its work. `eager` is the same call without graphs.

    The peak memory of a replay cannot be counted, because a graph receives its memory when it is captured. The peak of
    `eager` is counted instead.
    """

    def __init__(self, replay: Callable[[], Any], eager: Callable[[], Any]) -> None:
        self._replay, self.eager = replay, eager

    def __call__(self) -> Any:
        """Replay the graphs."""
        return self._replay()


def reserved_bytes(device: torch.device, *, cuda: Any = torch.cuda) -> int:
    """Return the GPU memory that torch reserves after it has freed its cached blocks; graphs' memory is included.

    0 on a CPU, where the memory of tensors cannot be separated from that of the process.
    """
    if device.type != "cuda":
        return 0
    cuda.empty_cache()
    return int(cuda.memory_reserved(device))


def peak_memory(call: Callable[[], Any], device: torch.device, *, cuda: Any = torch.cuda) -> MemoryPeak:
    """Run the warmed-up `call` once and return its peak.

    For a `RepeatableBackward`, the saved activations of the forward pass count, and its temporaries do not. For a
    `GraphedCall`, the eager call runs. `cuda`: torch.cuda or a replacement for it.
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
    """Do nothing: the preparation of a call that needs no preparation."""


def _peak(begin: Callable[[], Any], call: Callable[[], Any], device: torch.device, cuda: Any) -> MemoryPeak:
    """Return the peak during `call`, above what was allocated before `begin`."""
    if device.type != "cuda":
        live = LiveTensors()
        with live:
            begin()
            live.peak_bytes = live.live_bytes
            call()
        return MemoryPeak(added_bytes=live.peak_bytes, by="tensors")
    gc.collect()
    cuda.synchronize(device)
    cuda.empty_cache()  # blocks that earlier work left in the cache do not belong to this call
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
    """Tracks the storages that ops allocate: `live_bytes` is their size now, `peak_bytes` the largest size so far."""

    supports_higher_order_operators = True  # FlexAttention is such an operator

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Return True: torch.compile refuses to run under other modes."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and count the storages of its results that belong to no argument."""
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
