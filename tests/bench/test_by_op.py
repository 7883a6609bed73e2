"""Kernels joined to ops, from events like those of torch's profiler on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

from llmbench.bench.profile.by_op import MARK, OTHER, UNJOINED, Launch, _launches, op_times
from llmbench.measure.reference import Limits
from llmbench.sizing.op import Op
from llmbench.sizing.work import Pass


class Profiled:
    """Events of a host thread, nested by their times in microseconds, and the GPU kernels that they launch."""

    def __init__(self) -> None:
        self.events: list[FunctionEvent] = []

    def host(self, name: str, start: float, end: float, *, node: int = -1, kernels: Any = ()) -> None:
        """Add an event with its sequence number and the kernels (name, µs) that it launched."""
        event = FunctionEvent(len(self.events), name, 1, start, end, use_device="cuda", sequence_nr=node)
        self.events.append(event)
        for kernel, taken in kernels:
            self.gpu(kernel, taken)
            event.append_kernel(kernel, 0, taken)

    def gpu(self, name: str, taken: float, *, annotation: bool = False) -> None:
        """Add an entry to the GPU's timeline."""
        start = 1000.0 + len(self.events)
        self.events.append(
            FunctionEvent(
                len(self.events),
                name,
                7,
                start,
                start + taken,
                use_device="cuda",
                device_type=DeviceType.CUDA,
                is_user_annotation=annotation,
            )
        )

    def range(self, name: str, start: float, end: float, *, kernels: Any = ()) -> None:
        """Add an op's range. The profiler shows it on the GPU's timeline too and attaches it to itself like a
        kernel."""
        self.host(MARK + name, start, end, kernels=kernels)
        self.gpu(MARK + name, 500.0, annotation=True)
        next(event for event in self.events if event.name == MARK + name).append_kernel(MARK + name, 0, 500.0)

    def launches(self) -> dict[Any, Any]:
        """The kernels, joined to ops."""
        events = EventList(sorted(self.events, key=lambda event: event.time_range.start), use_device="cuda")
        events._build_tree()
        launches_by_op = _launches(events, True)
        on_gpu = [
            event for event in self.events if event.device_type == DeviceType.CUDA and not event.is_user_annotation
        ]
        assert sum(runs for runs, _ in launches_by_op.values()) == len(on_gpu)
        total_s = sum(event.time_range.elapsed_us() for event in on_gpu) * 1e-6
        assert sum(total for _, total in launches_by_op.values()) == pytest.approx(total_s)
        return {key: (runs, round(total * 1e6, 6)) for key, (runs, total) in launches_by_op.items()}


def step() -> Profiled:
    """Two products in their ranges, a sum in none, and the backward pass of a product and of the sum."""
    seen = Profiled()
    seen.range("up_proj", 0, 10)
    seen.host("aten::linear", 1, 9)
    seen.host("aten::mm", 2, 8, node=3, kernels=[("gemm", 5.0), ("gemm", 2.0)])
    seen.range("down_proj", 20, 30)
    seen.host("aten::mm", 22, 28, node=4, kernels=[("gemm", 6.0)])
    seen.host("aten::add", 32, 33, node=5, kernels=[("add", 1.0)])
    seen.host("autograd::engine::evaluate_function: AddBackward0", 40, 45, node=5)
    seen.host("aten::sum", 41, 42, kernels=[("reduce", 1.5)])
    seen.host("autograd::engine::evaluate_function: MmBackward0", 50, 60, node=3)
    seen.host("aten::mm", 51, 52, kernels=[("gemm_bwd", 9.0)])
    return seen


JOINED = {
    ("up_proj", False, "gemm"): (2, 7.0),
    ("down_proj", False, "gemm"): (1, 6.0),
    (OTHER, False, "add"): (1, 1.0),
    (OTHER, True, "reduce"): (1, 1.5),
    ("up_proj", True, "gemm_bwd"): (1, 9.0),
}


def test_kernels_belong_to_the_range_around_their_launch() -> None:
    assert step().launches() == JOINED


def test_a_kernel_launched_by_a_range_belongs_to_its_op() -> None:
    """A kernel that no op of torch launched: a Triton kernel called from Python."""
    seen = step()
    seen.range("norm", 70, 80, kernels=[("triton_norm", 4.0)])
    assert seen.launches() == JOINED | {("norm", False, "triton_norm"): (1, 4.0)}


def test_kernels_without_a_launch_have_their_own_row() -> None:
    """Some kernels of one name are joined and some are not. Another kernel is in no host event at all."""
    seen = step()
    seen.gpu("gemm", 8.0)
    seen.gpu("stray", 3.0)
    launches = seen.launches()
    assert launches == JOINED | {(UNJOINED, None, "gemm"): (1, 8.0), (UNJOINED, None, "stray"): (1, 3.0)}


def test_ranges_of_other_tools_are_no_kernels() -> None:
    seen = step()
    seen.host("Torch-Compiled Region: 0/0", 90, 95)
    seen.events[-1].append_kernel("Torch-Compiled Region: 0/0", 0, 300.0)
    seen.gpu("Torch-Compiled Region: 0/0", 300.0, annotation=True)
    assert seen.launches() == JOINED


@pytest.mark.parametrize(
    ("names", "direction", "rows"),
    [
        (("a", "b"), "forward", {"a": 1.0, UNJOINED: 4.0}),
        (("a", "b"), "backward", {"a": 2.0, UNJOINED: 4.0}),
        (("a", "b"), "both", {"a": 3.0, UNJOINED: 4.0}),
        (("a",), "forward", {"a": 5.0}),
        (("a",), "both", {"a": 7.0}),
        (("a",), "backward", {"a": 2.0, UNJOINED: 4.0}),  # it may be the forward pass's
    ],
)
def test_shares_are_of_all_kernels_that_ran(names: tuple[str, ...], direction: Pass, rows: dict[str, float]) -> None:
    launches = [Launch("a", False, "k", 1, 1.0), Launch("a", True, "k", 1, 2.0), Launch(UNJOINED, None, "k", 1, 4.0)]
    ops = [Op(name=name, component="other", kind="elementwise", read_bytes=1) for name in names]
    times = op_times(launches, ops, direction, Limits(1.0, 1.0))
    assert {row.op: row.measured_s for row in times if row.launches} == rows
