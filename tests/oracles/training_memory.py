"""An oracle for training memory: one step of a plain PyTorch transformer, traced on fake tensors.

Nothing here knows a formula. The step runs op by op under ``FakeTensorMode``, every storage is followed from
its birth to its death, and the highest sum of live bytes is the answer; a 7B model takes a second or two.

Two independent readings come out of one configuration:

* ``peak_bytes`` and what is alive at that moment, by following storages below autograd (a dispatch mode);
* ``saved_bytes``, what autograd keeps for backward, by ``saved_tensors_hooks`` above it, each storage once.

The trace runs on the fake CPU, for a CPU build of PyTorch cannot run autograd on fake CUDA tensors. Where
CUDA differs, its behaviour is put in:

* RMSNorm is one kernel that keeps its input and an fp32 rstd, like ``aten::_fused_rms_norm`` on CUDA; on a
  CPU that op decomposes.
* Flash attention keeps q, k, v, out and an fp32 logsumexp, K and V at their own head count; its backward has
  the fp32 accumulator of dq, the row sums, and for GQA dk and dv of every query head, as in FlashAttention 2.
* LayerNorm's mean and rstd are fp32.
* The autograd engine adds a second gradient to the first in place, unless the first is a view; under a
  dispatch mode it never does. (Compared with a real step's allocations in test_training_memory_oracle.py.)

Not counted: the allocator's rounding (512 B a tensor) and fragmentation, cuBLAS and NCCL workspaces, the CUDA
context, scratch inside other kernels (the sort in embedding backward, partial sums in norm backward).
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .training_transformer import Dims, Optimizer, Setup, Transformer, build, loss_of, run_step

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class Live:
    """One storage alive at the peak: its size, category, the op that made it and the shape it was made in."""

    nbytes: int
    category: str
    op: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
    """What one traced step came to.  All sizes in bytes."""

    peak_bytes: int
    peak_phase: str  # forward, loss, backward or optimizer
    peak_op: str
    peak_by_category: dict[str, int]
    peak_live: tuple[Live, ...]
    phase_peak_bytes: dict[str, int]
    steady_bytes: int  # alive between two steps
    live_after_forward_bytes: int  # activations alive when backward starts, by following storages
    saved_bytes: int  # the same, by saved_tensors_hooks
    saved_by_module: dict[str, int]  # keyed by the module that saved it first; "loss" for the loss
    parameters: int

    def saved_under(self, prefix: str) -> int:
        """Bytes saved by the module ``prefix`` and everything below it."""
        return sum(n for name, n in self.saved_by_module.items() if f"{name}.".startswith(f"{prefix}."))


class CudaBehaviour(TorchDispatchMode):
    """Makes ops behave as on a GPU without dispatch modes; enter it last."""

    def __init__(self) -> None:
        super().__init__()
        self.in_backward = False

    @contextlib.contextmanager
    def recompute(self) -> Iterator[None]:
        """Inside, backward runs forward ops again."""
        self.in_backward = False
        try:
            yield
        finally:
            self.in_backward = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` as CUDA would."""
        kwargs = kwargs or {}
        if func is aten.native_layer_norm.default:
            out, mean, rstd = func(*args, **kwargs)
            return (
                out,
                torch.empty_like(mean, dtype=torch.float32),
                torch.empty_like(rstd, dtype=torch.float32),
            )
        if self.in_backward and func is aten.add.Tensor and not kwargs:
            a, b = args
            if isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype and not a._is_view():
                return aten.add_.Tensor(a, b)  # the engine's, the only such add in these backwards
        return func(*args, **kwargs)


class StorageTracker(TorchDispatchMode):
    """Follows every storage an op makes until it is freed, and records the moment with the most bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = "setup"
        self.recomputing = False
        self.total = 0
        self.phase_peak: dict[str, int] = {}
        self.peak = 0
        self.peak_at = ("", "")
        self.peak_live: dict[int, Live] = {}
        self._live: dict[int, Live] = {}
        self._refs: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def add(self, tensor: Tensor, category: str, op: str = "given") -> None:
        """Count the tensor's storage, or give one already counted a new category."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            self._live[key] = dataclasses.replace(self._live[key], category=category)
            return
        self._live[key] = Live(storage.nbytes(), category, op, tuple(tensor.shape), tensor.dtype)
        self._refs[key] = weakref.ref(storage, lambda _ref, key=key: self._drop(key))
        self.total += storage.nbytes()
        self.phase_peak[self.phase] = max(self.phase_peak.get(self.phase, 0), self.total)
        if self.total > self.peak:
            self.peak, self.peak_at, self.peak_live = self.total, (self.phase, op), dict(self._live)

    def _drop(self, key: int) -> None:
        self.total -= self._live.pop(key).nbytes
        del self._refs[key]

    def enter(self, phase: str) -> None:
        """Start a phase."""
        self.phase = phase
        self.phase_peak[phase] = self.total

    def live(self, category: str) -> int:
        """Bytes of a category alive now."""
        return sum(item.nbytes for item in self._live.values() if item.category == category)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and count the new storages among its results."""
        out = func(*args, **(kwargs or {}))
        forward = self.recomputing or self.phase in ("forward", "loss")
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in self._live:
                self.add(t, "activations" if forward else "temporaries", str(func))
        return out


class SavedTensors:
    """Collects what autograd saves, each storage once, under the module that saved it first."""

    def __init__(self, model: nn.Module, exclude: set[int]) -> None:
        self.by_module: dict[str, int] = {}
        self.items: list[tuple[str, Tensor]] = []
        self._seen = set(exclude)
        self._stack = [""]
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            if name:
                self._handles += [
                    module.register_forward_pre_hook(lambda *_, name=name: self.enter(name)),
                    module.register_forward_hook(lambda *_: self.leave()),
                ]

    def enter(self, name: str) -> None:
        """Attribute what follows to ``name``."""
        self._stack.append(name)

    def leave(self) -> None:
        """Return to the enclosing module."""
        self._stack.pop()

    def pack(self, tensor: Tensor) -> Tensor:
        """The pack hook; the tensors seen are kept, so no storage's address is used twice."""
        key = tensor.untyped_storage()._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.items.append((self._stack[-1], tensor))
            name = self._stack[-1]
            self.by_module[name] = self.by_module.get(name, 0) + tensor.untyped_storage().nbytes()
        return tensor

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()


def saved_for_backward(model: Transformer, ids: Tensor, labels: Tensor) -> SavedTensors:
    """What a forward pass and its loss save for backward, without parameters, buffers and the batch."""
    not_saved = [*model.parameters(), *model.buffers(), ids, labels]
    saved = SavedTensors(model, {t.untyped_storage()._cdata for t in not_saved})
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda t: t):
        logits = model(ids)
        saved.enter("loss")
        loss_of(logits, labels)
    saved.close()
    return saved


def trace(dims: Dims, setup: Setup, *, batch: int, seq: int) -> Trace:
    """Trace one training step in the steady state (optimizer states exist, gradients were freed)."""
    tracker, cuda = StorageTracker(), CudaBehaviour()
    after_forward: list[int] = []

    def enter(phase: str) -> None:
        if phase == "backward":
            after_forward.append(tracker.live("activations"))
        cuda.in_backward = phase == "backward"
        tracker.enter(phase)

    @contextlib.contextmanager
    def recompute() -> Iterator[None]:
        tracker.recomputing = True
        try:
            with cuda.recompute():
                yield
        finally:
            tracker.recomputing = False

    with FakeTensorMode(allow_non_fake_inputs=True):  # step counters of torch's AdamW are real
        model, ids, labels = build(dims, setup, batch, seq)
        params = list(model.parameters())
        optimizer = Optimizer([p for p in params if p.requires_grad], setup)
        with CudaBehaviour():
            saved = saved_for_backward(model, ids, labels)
        for category, tensors in {
            "parameters": params,
            "optimizer": optimizer.states(),
            "gradients": optimizer.grads.values(),
            "inputs": (*model.buffers(), ids, labels),
        }.items():
            for t in tensors:
                tracker.add(t, category)
        steady = tracker.total
        optimizer.on_grad = lambda grad: tracker.add(grad, "gradients")
        model.recompute_context = recompute
        with tracker, cuda:
            run_step(model, optimizer, ids, labels, enter)
    by_category: dict[str, int] = {}
    for item in tracker.peak_live.values():
        by_category[item.category] = by_category.get(item.category, 0) + item.nbytes
    return Trace(
        peak_bytes=tracker.peak,
        peak_phase=tracker.peak_at[0],
        peak_op=tracker.peak_at[1],
        peak_by_category=by_category,
        peak_live=tuple(sorted(tracker.peak_live.values(), key=lambda item: -item.nbytes)),
        phase_peak_bytes={k: v for k, v in tracker.phase_peak.items() if k != "setup"},
        steady_bytes=steady,
        live_after_forward_bytes=after_forward[0],
        saved_bytes=sum(saved.by_module.values()),
        saved_by_module=saved.by_module,
        parameters=sum(p.numel() for p in params),
    )
