"""How much memory does a call need at its fullest moment, beside what was there before it?

On a GPU torch's allocator counts. A CPU has no such counter: there every storage that an op makes is followed from its
birth to its death. Scratch inside an op is not seen there, nor what compiled code takes by itself.
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

__all__ = ["Continued", "LiveTensors", "MemoryPeak", "Replayed", "kept_bytes", "peak_memory"]


class MemoryPeak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fullest moment of a call. `added_bytes` is what it took beside what was held when it began, results
    included; `held_bytes` and `reserved_bytes` (the allocator's own, at that peak or since) are None on a CPU."""

    added_bytes: int
    held_bytes: int | None = None
    reserved_bytes: int | None = None
    by: Literal["allocator", "tensors"]


class Continued:
    """A call that goes on, again and again, from what was done before and is kept: a backward pass of its forward.

    `begin()` does that, `go(kept, again)` is the call, which leaves what is kept as it is where it is to go on `again`.
    What is kept is memory that the call needs, though it does not make it.
    """

    def __init__(self, begin: Callable[[], Any], go: Callable[[Any, bool], Any]) -> None:
        self._begin, self._go = begin, go
        self._kept = begin()

    def __call__(self) -> Any:
        """Go on."""
        return self._go(self._kept, True)

    def begin(self) -> None:
        """Do anew what the call goes on from."""
        self._kept = None
        self._kept = self._begin()

    def end(self) -> None:
        """Go on for the last time, as whoever calls once does. Before another call it has to begin anew."""
        kept, self._kept = self._kept, None
        self._go(kept, False)


class Replayed:
    """A call that is launched as a CUDA graph, or of which parts are, and the same call without one.

    A graph was given its memory when it was captured, which a replay does not show: how much that is, the call without
    a graph tells.
    """

    def __init__(self, replay: Callable[[], Any], eager: Callable[[], Any]) -> None:
        self._replay, self.eager = replay, eager

    def __call__(self) -> Any:
        """Replay it."""
        return self._replay()


def kept_bytes(device: torch.device, *, cuda: Any = torch.cuda) -> int:
    """What torch keeps of a GPU's memory once it has given back what it can: graphs' own memory is among it. 0 of a
    CPU, where nothing tells tensors from the rest of a process."""
    if device.type != "cuda":
        return 0
    cuda.empty_cache()
    return int(cuda.memory_reserved(device))


def peak_memory(call: Callable[[], Any], device: torch.device, *, cuda: Any = torch.cuda) -> MemoryPeak:
    """Run `call` once, warmed up, and watch its memory. Of what a `Continued` call goes on from, that counts which is
    kept, not what making it took; of a `Replayed` one, what it takes without a graph. `cuda` is torch.cuda."""
    if isinstance(call, Replayed):
        call = call.eager
    if not isinstance(call, Continued):
        return _peak(_nothing, call, device, cuda)
    call.end()
    found = _peak(call.begin, call.end, device, cuda)
    call.begin()
    return found


def _nothing() -> None:
    """What comes before a call that begins by itself."""


def _peak(begin: Callable[[], Any], call: Callable[[], Any], device: torch.device, cuda: Any) -> MemoryPeak:
    """The fullest moment of `call`, beside what was held before `begin`."""
    if device.type != "cuda":
        live = LiveTensors()
        with live:
            begin()
            live.peak_bytes = live.live_bytes
            call()
        return MemoryPeak(added_bytes=live.peak_bytes, by="tensors")
    gc.collect()
    cuda.synchronize(device)
    cuda.empty_cache()  # what others left reserved is not this call's
    held = cuda.memory_allocated(device)
    begin()
    cuda.synchronize(device)
    cuda.empty_cache()
    cuda.reset_peak_memory_stats(device)
    call()
    cuda.synchronize(device)
    return MemoryPeak(
        added_bytes=cuda.max_memory_allocated(device) - held,
        held_bytes=held,
        reserved_bytes=cuda.max_memory_reserved(device),
        by="allocator",
    )


class LiveTensors(TorchDispatchMode):
    """Follows the storages that ops make inside it: `live_bytes` now, `peak_bytes` at the fullest moment."""

    supports_higher_order_operators = True  # FlexAttention's

    @classmethod
    def is_infra_mode(cls) -> bool:
        """torch.compile refuses to run under the modes of others."""
        return True

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and count storages among its results that no argument had."""
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def gone(_: Any) -> None:
            del self._known[key]
            self.live_bytes -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
