"""The time of each op of a call. torch's profiler records the kernels, and each kernel is assigned to the op that
launched it.

Each module, and each function of an implementation (attention, rotation, gate), runs inside a profiler range that has
the name of its op. A kernel belongs to the innermost range around its launch. In a backward pass, a kernel belongs to
the op whose forward pass created the kernel's autograd node. The profiler's sequence numbers identify that op. GPU
kernels that the profiler cannot match with a launch get a separate row, so that the rows sum to the time of all
kernels.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from llmbench.errors import LLMBenchError
from llmbench.measure.cuda import summed
from llmbench.measure.measurement import quantile
from llmbench.measure.reference import Limits
from llmbench.model.implementations.interface import Implementation
from llmbench.sizing.op import Op
from llmbench.sizing.work import Pass, least_s

__all__ = ["TRACE", "Launch", "OpTime", "Recording", "in_ranges", "op_times", "profiled"]

MARK = "llmbench.op "
TRACE = re.compile(rb'\s*\{\s*"schemaVersion"')
"""Matches the beginning of a Chrome trace that torch writes."""
OTHER = "other"
"""The op name for work outside every module: the sums of the residual stream at the end of a layer or of the model, and
the loss."""

UNJOINED = "unjoined"
"""The op name for GPU kernels that the profiler cannot match with a launch."""

_FUNCTIONS = {"attend": "core", "attend_latent": "core", "rotate": "rope", "glu": "act", "loss": "loss"}
"""The functions of an implementation that compute an op for which the model has no module. The key is the name of the
function. The value is the last part of the op's name."""


class Launch(NamedTuple):
    """A kernel that an op launched. On a CPU, an op of torch takes the place of the kernel.

    `op`: the name of the op that launched the kernel. `backward`: whether the kernel ran in the backward pass; None if
    unknown. `runs`: how often the kernel ran. `total_s`: the seconds of all runs together.
    """

    op: str
    backward: bool | None
    kernel: str
    runs: int
    total_s: float


class OpTime(NamedTuple):
    """The time of an op, summed over all layers.

    `predicted_s`: the predicted seconds; None if the op table does not contain the op. `launches`: the kernels of the
    op; empty if another op's kernel computes this op.
    """

    op: str
    predicted_s: float | None
    launches: tuple[Launch, ...]

    @property
    def measured_s(self) -> float:
        """The total time of the op's kernels, in seconds."""
        return sum(launch.total_s for launch in self.launches)


class Recording(NamedTuple):
    """The profiler's record of a call. `launches`: the kernels with their ops, slowest first. `profiler`: the profiler,
    which has the trace."""

    launches: list[Launch]
    profiler: profile

    def save(self, path: Path) -> None:
        """Write the trace for Perfetto or chrome://tracing, gzipped if the name ends in .gz. A trace can be written
        only once. Raises LLMBenchError if the trace cannot be written."""
        # If the profiler cannot write the trace, it deletes an existing file of that name and reports no error. So the
        # trace is first written to a temporary file.
        with TemporaryDirectory() as folder:
            exported = Path(folder) / f"trace{path.suffix}"
            self.profiler.export_chrome_trace(str(exported))
            if not exported.is_file():
                raise LLMBenchError(f"cannot write {path}: the profiler wrote no trace")
            try:
                shutil.copyfile(exported, path)
            except OSError as problem:
                raise LLMBenchError(f"cannot write {path}: {problem.strerror or problem}") from None


class _Ranges:
    """The names of the profiler ranges that are open now. The innermost range is last."""

    def __init__(self) -> None:
        self.path: list[str] = [""]

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        self.path.append(name)
        try:
            with record_function(MARK + name):
                yield
        finally:
            self.path.pop()


@contextmanager
def in_ranges(model: nn.Module | None) -> Iterator[Callable[[Implementation], Implementation]]:
    """Run every module of the model inside a profiler range that has the module's name, for the duration of the `with`
    block.

    The block gets a function that wraps an implementation, so that the implementation's functions run in ranges too.
    """
    ranges = _Ranges()
    with ExitStack() as undo:
        for name, module in _modules(model).items():
            own = ExitStack()
            own_name = re.sub(r"\.\d+(?=\.|$)", ".{}", name)

            def enter(_: nn.Module, __: Any, own: ExitStack = own, name: str = own_name) -> None:
                own.enter_context(ranges.within(name))

            def leave(_: nn.Module, __: Any, ___: Any, own: ExitStack = own) -> None:
                own.close()

            undo.callback(module.register_forward_pre_hook(enter).remove)
            undo.callback(module.register_forward_hook(leave, always_call=True).remove)

        def ranged(implementation: Implementation) -> Implementation:
            functions: dict[str, Any] = {
                field: partial(_called, ranges, getattr(implementation, field), last)
                for field, last in _FUNCTIONS.items()
                if getattr(implementation, field) is not None
            }
            return implementation._replace(**functions)

        yield ranged


def _called(ranges: _Ranges, function: Callable[..., Any], last: str, *args: Any, **options: Any) -> Any:
    """Call a function inside a profiler range. The name of the range is the name of the current module, followed by
    `last`."""
    with ranges.within(f"{ranges.path[-1]}.{last}".lstrip(".")):
        return function(*args, **options)


def _modules(model: nn.Module | None) -> dict[str, nn.Module]:
    """Return the modules of a model that get a profiler range, by name: all modules except module lists and the model
    itself."""
    named = () if model is None else model.named_modules()
    return {name: module for name, module in named if name and not isinstance(module, nn.ModuleList)}


def profiled(call: Callable[[], Any], device: torch.device) -> Recording:
    """Run a call `CALLS` times under the profiler. Return the kernels with the median of their times, and the trace of
    the last run.

    On a CPU, the profiler slows down the ops. Only their shares of the total time are meaningful there.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    call()
    samples: dict[_Key, list[tuple[int, float]]] = {}
    for _ in range(CALLS):
        if on_gpu:
            torch.cuda.synchronize(device)
        # Without acc_events, torch 2.11 warns about several profiler cycles, although there is only one cycle.
        with profile(activities=activities, acc_events=True) as profiler:
            call()
            if on_gpu:
                torch.cuda.synchronize(device)
        for key, sample in _launches(profiler.events() or (), on_gpu).items():
            samples.setdefault(key, []).append(sample)
    rows = [Launch(*key, own[-1][0], quantile([total_s for _, total_s in own], 0.5)) for key, own in samples.items()]
    return Recording(sorted(rows, key=lambda row: (-row.total_s, row)), profiler)


CALLS = 5

_Key: TypeAlias = tuple[str, bool | None, str]
"""The name of an op, whether the kernel ran in the op's backward pass (None if unknown), and the name of the kernel."""


def _launches(recorded: Iterable[Any], on_gpu: bool) -> dict[_Key, tuple[int, float]]:
    """Return the number of runs and the total seconds of each kernel of a call.

    The profiler attaches each kernel to the host event that launched the kernel. This event may be a range. The kernels
    that the profiler attaches to a range also contain an entry for the range itself. This entry is skipped, because a
    range is not a kernel.
    """
    ran_on = {DeviceType.CPU: list[Any](), DeviceType.CUDA: list[Any]()}
    for event in recorded:
        if event.device_type in ran_on:
            ran_on[event.device_type].append(event)
    events = ran_on[DeviceType.CPU]
    ranges = {event.name for event in ran_on[DeviceType.CUDA] if event.is_user_annotation}
    owners = {
        event.sequence_nr: _range(event)
        for event in sorted(events, key=lambda event: event.time_range.start)
        if event.sequence_nr >= 0 and _node(event) is None
    }  # Of several events with the same sequence number, the last event created the autograd node. The dict keeps it.
    totals: dict[_Key, tuple[int, float]] = {}
    for event in events:
        node = _node(event)
        op = _range(event) if node is None else owners.get(node.sequence_nr, OTHER)
        for name, microseconds in _ran(event, on_gpu):
            if name not in ranges:
                _add(totals, (op, node is not None, name), 1, microseconds * 1e-6)
    for name, (runs, total_s) in _unjoined(ran_on[DeviceType.CUDA], totals).items():
        _add(totals, (UNJOINED, None, name), runs, total_s)
    return totals


def _ran(event: Any, on_gpu: bool) -> list[tuple[str, float]]:
    """Return the kernels that a host event launched, with their microseconds. On a CPU, the event itself counts as a
    kernel, unless the event is a range."""
    if on_gpu:
        return [(kernel.name, kernel.duration) for kernel in event.kernels]
    return [] if event.name.startswith(MARK) else [(event.name, event.self_cpu_time_total)]


def _add(totals: dict[_Key, tuple[int, float]], key: _Key, runs: int, total_s: float) -> None:
    before = totals.get(key, (0, 0.0))
    totals[key] = before[0] + runs, before[1] + total_s


def _unjoined(on_gpu: list[Any], totals: dict[_Key, tuple[int, float]]) -> dict[str, tuple[int, float]]:
    """Return the runs on the GPU's timeline that `totals` does not contain. For each kernel name, the value is the
    number of these runs and their seconds."""
    joined: dict[str, tuple[int, float]] = {}
    for (_, _, name), (runs, total_s) in totals.items():
        before = joined.get(name, (0, 0.0))
        joined[name] = before[0] + runs, before[1] + total_s
    left = {}
    for kernel in summed(on_gpu, on_gpu=True):
        runs, total_s = joined.get(kernel.name, (0, 0.0))
        if kernel.runs > runs:
            left[kernel.name] = kernel.runs - runs, max(kernel.total_s - total_s, 0.0)
    return left


def _node(event: Any) -> Any:
    """Return the event of the autograd node that ran this event, or None outside a backward pass."""
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return event
        event = event.cpu_parent
    return None


def _range(event: Any) -> str:
    """Return the op whose range is the innermost range around an event, or `OTHER` if the event is outside every
    range."""
    while event is not None:
        if event.name.startswith(MARK):
            return str(event.name.removeprefix(MARK))
        event = event.cpu_parent
    return OTHER


def op_times(launches: list[Launch], ops: list[Op], direction: Pass, limits: Limits) -> list[OpTime]:
    """Return the times of the ops, summed from their kernels, slowest op first.

    A kernel that ran outside every range belongs to the only op if the op table has only one op. If the op table has
    several ops, such a kernel belongs to the loss, which is not a module. If the op table has no loss, such a kernel
    belongs to the row `OTHER`.

    A kernel whose launch is unknown also belongs to the only op. There is one exception: if only the backward pass is
    timed, the kernel gets a separate row, because it may come from the forward pass. If the op table has several ops,
    the kernel also gets a separate row.

    A range can have the name of a module that is not an op. Some ops inside this module may have no kernels of their
    own. The range gets the predictions of these ops.
    """
    known = dict.fromkeys(op.name for op in ops)
    outside = next(iter(known)) if len(known) == 1 else "loss" if "loss" in known else OTHER
    by_op: dict[str, list[Launch]] = {}
    for launch in launches:
        unknown = launch.backward is None
        if unknown or direction == "both" or launch.backward == (direction == "backward"):
            alone = len(known) == 1 and not (unknown and direction == "backward")
            name = outside if launch.op == OTHER or alone else launch.op
            by_op.setdefault(name, []).append(launch)
    predicted: dict[str, float] = {}
    for op in ops:
        least = least_s([op], direction, limits.least_s)
        if least:
            owner = _owner(op.name, by_op)
            predicted[owner] = predicted.get(owner, 0.0) + least
    names = dict.fromkeys([*by_op, *predicted])
    rows = [OpTime(name, predicted.get(name), tuple(by_op.get(name, ()))) for name in names]
    return sorted(rows, key=lambda row: -row.measured_s)


def _owner(name: str, ran: Container[str]) -> str:
    """Return the innermost range that ran a kernel, starting with the op's own range and going outwards. Return the
    op's own name if none of these ranges ran a kernel."""
    owner = name
    while owner and owner not in ran:
        owner = owner.rpartition(".")[0]
    return owner or (OTHER if OTHER in ran else name)
