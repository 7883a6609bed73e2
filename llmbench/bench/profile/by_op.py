"""Where the time of a call goes: kernels under torch's profiler, each with the op of the table that launched it.

A module's work, and that of the functions an implementation gives (attention, rotation, gate), runs inside a profiler
range of its op's name; a kernel belongs to the innermost range around its launch. Kernels of a backward pass belong to
the op whose forward made their node of the graph, which the profiler's sequence numbers tell. What ran on a GPU and the
profiler joined to no launch has a row of its own, so that rows always sum to all that ran.
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

__all__ = ["Launch", "OpTime", "Recording", "in_ranges", "op_times", "profiled"]

MARK = "llmbench.op "
OTHER = "other"
"""What no module does: sums of the residual stream at the end of a layer or model, the loss's own work."""

UNJOINED = "unjoined"
"""Kernels that ran, of which the profiler does not know the launch."""

_FUNCTIONS = {"attend": "core", "attend_latent": "core", "rotate": "rope", "glu": "act", "loss": "loss"}
"""The functions of an implementation that are ops without a module."""


class Launch(NamedTuple):
    """A kernel (on a CPU an op of torch) that an op ran so often, and its seconds all together. `backward`: whether in
    its backward pass; None where nothing tells."""

    op: str
    backward: bool | None
    kernel: str
    runs: int
    total_s: float


class OpTime(NamedTuple):
    """An op of the table, all its instances: predicted seconds (None where the table has none), and its kernels (none
    where it runs inside another's)."""

    op: str
    predicted_s: float | None
    launches: tuple[Launch, ...]

    @property
    def measured_s(self) -> float:
        """What its kernels took."""
        return sum(each.total_s for each in self.launches)


class Recording(NamedTuple):
    """What the profiler saw of a call: its kernels by op, what took longest first, and its trace."""

    launches: list[Launch]
    profiler: profile

    def save(self, path: Path) -> None:
        """Write the trace for Perfetto or chrome://tracing, gzipped where the name ends in .gz; once. Raises
        LLMBenchError where that fails."""
        with TemporaryDirectory() as folder:  # the profiler clears its way first, and does not say what it could not do
            made = Path(folder) / f"trace{path.suffix}"
            self.profiler.export_chrome_trace(str(made))
            if not made.is_file():
                raise LLMBenchError(f"cannot write {path}: the profiler made no trace")
            try:
                shutil.copyfile(made, path)
            except OSError as problem:
                raise LLMBenchError(f"cannot write {path}: {problem.strerror or problem}") from None


class _Ranges:
    """Names of ops, kept as a path of modules."""

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
    """Inside, modules run in ranges of their names; what is yielded makes an implementation's functions do so."""
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

        def ranged(how: Implementation) -> Implementation:
            functions: dict[str, Any] = {
                field: partial(_called, ranges, getattr(how, field), part)
                for field, part in _FUNCTIONS.items()
                if getattr(how, field) is not None
            }
            return how._replace(**functions)

        yield ranged


def _called(ranges: _Ranges, function: Callable[..., Any], part: str, *args: Any, **options: Any) -> Any:
    """Call a function in the range of the op that it is of the module at hand."""
    with ranges.within(f"{ranges.path[-1]}.{part}".lstrip(".")):
        return function(*args, **options)


def _modules(model: nn.Module | None) -> dict[str, nn.Module]:
    """The modules inside a model that are ops, or hold functions that are."""
    found = () if model is None else model.named_modules()
    return {name: module for name, module in found if name and not isinstance(module, nn.ModuleList)}


def profiled(call: Callable[[], Any], device: torch.device) -> Recording:
    """Run a call under the profiler `CALLS` times; its kernels, each with the median of its times, and the trace of the
    last. On a CPU the profiler slows ops down: shares mean something, times are the clock's to tell."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    call()
    found: dict[_Key, list[tuple[int, float]]] = {}
    for _ in range(CALLS):
        if on_gpu:
            torch.cuda.synchronize(device)
        # acc_events: there is one cycle; torch 2.11 warns that it would forget others
        with profile(activities=activities, acc_events=True) as profiler:
            call()
            if on_gpu:
                torch.cuda.synchronize(device)
        for key, taken in _launches(profiler.events() or (), on_gpu).items():
            found.setdefault(key, []).append(taken)
    rows = [Launch(*key, taken[-1][0], quantile([each[1] for each in taken], 0.5)) for key, taken in found.items()]
    return Recording(sorted(rows, key=lambda row: (-row.total_s, row)), profiler)


CALLS = 5

_Key: TypeAlias = tuple[str, bool | None, str]
"""An op, whether in its backward pass, and a kernel."""


def _launches(recorded: Iterable[Any], on_gpu: bool) -> dict[_Key, tuple[int, float]]:
    """Runs and seconds of each kernel of a call.

    The profiler hands a kernel to the event of the host that launched it, which may be a range by itself. A range is
    shown on the GPU's line too, and is handed to itself; it is no kernel.
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
    }  # the last with a number is the one that made the node
    found: dict[_Key, tuple[int, float]] = {}
    for event in events:
        node = _node(event)
        op = _range(event) if node is None else owners.get(node.sequence_nr, OTHER)
        for name, microseconds in _ran(event, on_gpu):
            if name not in ranges:
                _add(found, (op, node is not None, name), 1, microseconds * 1e-6)
    for name, (runs, total_s) in _unjoined(ran_on[DeviceType.CUDA], found).items():
        _add(found, (UNJOINED, None, name), runs, total_s)
    return found


def _ran(event: Any, on_gpu: bool) -> list[tuple[str, float]]:
    """What an event of the host ran: its kernels, or on a CPU itself, unless it is a range; and microseconds."""
    if on_gpu:
        return [(kernel.name, kernel.duration) for kernel in event.kernels]
    return [] if event.name.startswith(MARK) else [(event.name, event.self_cpu_time_total)]


def _add(found: dict[_Key, tuple[int, float]], key: _Key, runs: int, total_s: float) -> None:
    before = found.get(key, (0, 0.0))
    found[key] = before[0] + runs, before[1] + total_s


def _unjoined(on_gpu: list[Any], found: dict[_Key, tuple[int, float]]) -> dict[str, tuple[int, float]]:
    """Runs and seconds, by name, of those kernels on the GPU's line that `found` does not have."""
    joined: dict[str, tuple[int, float]] = {}
    for (_, _, name), (runs, total_s) in found.items():
        before = joined.get(name, (0, 0.0))
        joined[name] = before[0] + runs, before[1] + total_s
    left = {}
    for each in summed(on_gpu, on_gpu=True):
        runs, total_s = joined.get(each.name, (0, 0.0))
        if each.runs > runs:
            left[each.name] = each.runs - runs, max(each.total_s - total_s, 0.0)
    return left


def _node(event: Any) -> Any:
    """The autograd node that an event runs for, if it is part of a backward pass."""
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return event
        event = event.cpu_parent
    return None


def _range(event: Any) -> str:
    """The innermost range around an event."""
    while event is not None:
        if event.name.startswith(MARK):
            return str(event.name.removeprefix(MARK))
        event = event.cpu_parent
    return OTHER


def op_times(launches: list[Launch], ops: list[Op], of: Pass, limits: Limits) -> list[OpTime]:
    """Kernels joined to the table, what took longest first.

    A range that is no op (a module's own work) has the prediction of those ops inside it that ran nothing of their own.
    What runs in no range is the one op's where there is only one, else the loss's, which is no module. What was joined
    to no launch is the one op's, too, where it cannot be of a pass that is not asked for; else it has its own row.
    """
    known = dict.fromkeys(op.name for op in ops)
    outside = next(iter(known)) if len(known) == 1 else "loss" if "loss" in known else OTHER
    by_op: dict[str, list[Launch]] = {}
    for each in launches:
        unsure = each.backward is None
        if unsure or of == "both" or each.backward == (of == "backward"):
            alone = len(known) == 1 and not (unsure and of == "backward")
            name = outside if each.op == OTHER or alone else each.op
            by_op.setdefault(name, []).append(each)
    predicted: dict[str, float] = {}
    for op in ops:
        least = least_s([op], of, limits.least_s)
        if least:
            where = _holder(op.name, by_op)
            predicted[where] = predicted.get(where, 0.0) + least
    names = dict.fromkeys([*by_op, *predicted])
    rows = [OpTime(name, predicted.get(name), tuple(by_op.get(name, ()))) for name in names]
    return sorted(rows, key=lambda row: -row.measured_s)


def _holder(name: str, ran: Container[str]) -> str:
    """The innermost range around an op, its own first, that ran anything; its own name where none did."""
    where = name
    while where and where not in ran:
        where = where.rpartition(".")[0]
    return where or (OTHER if OTHER in ran else name)
