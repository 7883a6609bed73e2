"""Tests of every kernel: results in each case and format, completeness as a torch op, FLOPs, and its file's order."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import llmbench
from llmbench.kernels import launching
from llmbench.kernels.kernel import Kernel, Random, describe
from llmbench.kernels.proof.check import check, compare
from llmbench.kernels.registry import KERNELS, load_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEEDS = 1 if DEVICE.type == "cpu" else 8
CPU = torch.device("cpu")


CASES = [
    pytest.param(load_kernel(name), case, id=f"{name}-{'-'.join(map(str, case))}")
    for name in KERNELS
    for case in load_kernel(name).cases
]


@pytest.mark.parametrize(("kernel", "case"), CASES)
def test_results_and_gradients_are_within_budget(kernel: Kernel, case: Any) -> None:
    """Buffers start as NaN. The budget is twice the error of plain torch in the format, plus one rounding.

    Each format of a kernel has other seeds, so a case has several inputs in the interpreter too."""
    for index, dtype in enumerate(kernel.dtypes):
        for seed in range(index, index + SEEDS):
            for verdict in check(kernel, case, dtype, seed, DEVICE):
                assert verdict.passed, (dtype, seed, verdict)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_every_configuration_is_right(name: str) -> None:
    """Every candidate, and not only the one that ships."""
    kernel = load_kernel(name)
    longest = 8  # at least the length of any list; a greater index takes its last candidate
    for index in range(longest):
        with launching.preferring({}, others=index):
            for case in kernel.cases:
                for verdict in check(kernel, case, torch.bfloat16, 0, DEVICE):
                    assert verdict.passed, (index, case, verdict)


def test_a_choice_can_hold_for_all_kernels() -> None:
    first, second = (launching.Config(num_warps=warps) for warps in (4, 8))
    for others, expected in ((0, first), (1, second), (7, second)):
        with launching.preferring({"named": 0}, others=others):
            assert launching.choose("other", [first, second]) is expected
            assert launching.choose("named", [first, second]) is first
    assert launching.choose("other", [first, second]) is first


class Calls(TorchDispatchMode):
    """Record the first call of each of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "llmbench":
            self.calls.setdefault(func, (args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def run_with_gradients(kernel: Kernel, case: Any, dtype: torch.dtype, device: torch.device = DEVICE) -> None:
    """Run the forward pass, and the backward pass if there is one."""
    inputs = kernel.inputs(case, Random(0, dtype, device))
    tensors = [inputs[name] for name in kernel.differentiable if isinstance(inputs.get(name), torch.Tensor)]
    leaves = [tensor.requires_grad_() for tensor in tensors]
    outputs = kernel.run(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    dependent = [out for out in outputs if out.requires_grad]
    if dependent:
        torch.autograd.grad(dependent, leaves, [torch.randn_like(out) for out in dependent])


@pytest.mark.parametrize("name", KERNELS)
def test_ops_are_complete(name: str) -> None:
    """torch's opcheck: schema, fake tensors, autograd, and compilation."""
    kernel = load_kernel(name)
    with Calls() as calls:
        run_with_gradients(kernel, kernel.cases[0], torch.float32)
    assert calls.calls, "no custom op was called"
    for op, (args, kwargs) in calls.calls.items():
        if "backward" in op.name():  # backward ops have no gradients
            args = tuple(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args)
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("name", KERNELS)
def test_counted_flops_equal_the_cost(name: str) -> None:
    """The FLOPs of FlopCounterMode equal those of the kernel's cost, forward and backward. The ops count them by a
    formula, so no kernel needs to run."""
    kernel = load_kernel(name)
    for case in kernel.cases:
        cost = kernel.cost(case, torch.float32)
        with FlopCounterMode(display=False) as counter, launching.captured(90):
            run_with_gradients(kernel, case, torch.float32, CPU)
        assert counter.get_total_flops() == cost.flops + cost.backward_flops, case


def test_a_wrong_kernel_is_caught() -> None:
    """Rounding errors pass; a wrong, an unwritten or a missing element does not."""
    exact = torch.randn(1000, dtype=torch.float64)
    plain = exact.bfloat16()
    assert compare("out", plain.clone(), plain, exact).passed
    wrong = plain.clone()
    wrong[17] += 0.1
    assert not compare("out", wrong, plain, exact).passed
    wrong[17] = float("nan")
    assert not compare("out", wrong, plain, exact).passed
    assert not compare("out", plain[:999], plain, exact).passed


@pytest.mark.parametrize("infinity", [float("inf"), -float("inf")])
def test_equal_infinities_are_right(infinity: float) -> None:
    """A query that sees no key has the log-sum-exp -∞. The errors of the other elements still count."""
    exact = torch.randn(1000, dtype=torch.float64)
    exact[17] = infinity
    plain = exact.bfloat16()
    assert compare("out", plain.clone(), plain, exact).passed
    for index, value in ((17, 0.0), (17, -infinity), (17, float("nan")), (18, infinity), (18, plain[18] + 0.1)):
        wrong = plain.clone()
        wrong[index] = value
        assert not compare("out", wrong, plain, exact).passed, (index, value)
    overflowed = plain.clone()
    overflowed[18] = infinity  # an infinity of plain torch permits no other error
    assert compare("out", plain, overflowed, exact).passed
    assert not compare("out", overflowed, overflowed, exact).passed


def test_buffers_are_poisoned() -> None:
    like = torch.zeros(1)
    with launching.poisoned():
        assert launching.empty(3, like=like).isnan().all()
        assert (launching.empty(3, like=like, dtype=torch.int32) == -1).all()


@pytest.mark.parametrize("at", [-1, 8])
def test_a_write_past_an_end_of_a_buffer_is_found(at: int) -> None:
    def write() -> None:
        with launching.poisoned():
            launching.empty(2, 4, like=torch.zeros(1)).as_strided((1,), (1,), launching.MARGIN + at).zero_()

    with pytest.raises(launching.OutsideBufferError, match=r"buffer of 8 torch\.float32"):
        write()
    with launching.poisoned():
        launching.empty(2, 4, like=torch.zeros(1)).zero_()


def test_cases_as_text() -> None:
    """A text has the fields that differ from their defaults, and a repeated value as count × value."""
    lengths = load_kernel("decode_attention").shapes[0]
    assert describe(lengths) == "lengths=32 × 4096, heads=32, kv_heads=8, head_dim=128"
    assert describe(lengths._replace(lengths=(7, 9), page=16)).startswith("lengths=(7, 9), ")


def test_a_kernel_without_the_requested_formats_uses_its_own() -> None:
    assert load_kernel("rope").formats([torch.float32, torch.float64]) == (torch.float32,)
    assert load_kernel("moe_routing").formats([torch.bfloat16]) == (torch.float32,)


HEADINGS = [
    "Kernels",
    "Configurations and launcher",
    "Torch op",
    "Public op",
    "Reference",
    "Cases and cost",
]
"""The headings of a kernel file, in their order; kernels/README.md says what each has."""


@pytest.mark.parametrize("module", sorted({place.partition(":")[0] for place in KERNELS.values()}))
def test_a_kernel_file_has_its_headings_in_order(module: str) -> None:
    text = Path(llmbench.__file__).parent.joinpath("kernels", *module.split(".")).with_suffix(".py").read_text("utf-8")
    headings = re.findall(r"^# == (.*) ==$", text, re.MULTILINE)
    assert headings == [heading for heading in HEADINGS if heading in headings]
    assert headings[-4:] == HEADINGS[-4:]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_convert_no_integer_argument_by_a_method(name: str) -> None:
    """Triton compiles an argument of value 1 as a Python integer, which has no method `to`. `tl.cast` takes both."""
    kernel = load_kernel(name)
    with launching.captured(90) as capture:
        for case in kernel.cases:
            run_with_gradients(kernel, case, kernel.dtypes[-1], CPU)
    for function in {launch.kernel.fn for launch in capture.launches}:
        source, arguments = inspect.getsource(function), inspect.signature(function).parameters
        converted = [name for name in arguments if re.search(rf"\b{name}\.to\(", source)]
        assert not converted, function.__name__
