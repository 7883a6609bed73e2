"""Every kernel, whatever it computes: right in every case and format, complete as a torch op, and priced rightly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from llmbench.kernels import launching
from llmbench.kernels.kernel import Kernel, Random, described
from llmbench.kernels.proof.check import check, compare
from llmbench.kernels.registry import KERNELS, kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEEDS = (0, 1) if DEVICE.type == "cpu" else range(8)
CPU = torch.device("cpu")


CASES = [
    pytest.param(kernel(name), case, id=f"{name}-{'-'.join(map(str, case))}")
    for name in KERNELS
    for case in kernel(name).cases
]


@pytest.mark.parametrize(("of", "case"), CASES)
def test_results_and_gradients_are_within_budget(of: Kernel, case: Any) -> None:
    """Buffers start as NaN; the budget is twice plain torch's error in the format, and one rounding."""
    for dtype in of.dtypes:
        for seed in SEEDS:
            for verdict in check(of, case, dtype, seed, DEVICE):
                assert verdict.passed, (dtype, seed, verdict)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_every_configuration_is_right(name: str) -> None:
    """Not only the one that is shipped, at real sizes too."""
    of = kernel(name)
    most = 8  # more than any list has: the last stands for those beyond it
    for index in range(most):
        with launching.preferring(_Always(index)):
            for case in of.cases:
                for verdict in check(of, case, torch.bfloat16, 0, DEVICE):
                    assert verdict.passed, (index, case, verdict)


class _Always(dict[str, int]):
    """The same choice for every kernel."""

    def __init__(self, index: int) -> None:
        self.index = index

    def get(self, name: str, default: Any = None) -> int:
        return self.index


class Calls(TorchDispatchMode):
    """Note the first call of each of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, tuple[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "llmbench":
            self.found.setdefault(func, (args, dict(kwargs or {})))
        return func(*args, **(kwargs or {}))


def run_with_gradients(of: Kernel, case: Any, dtype: torch.dtype, device: torch.device = DEVICE) -> None:
    """Forward and, where there is one, backward."""
    inputs = of.inputs(case, Random(0, dtype, device))
    leaves = [inputs[name].requires_grad_() for name in of.differentiable if isinstance(inputs.get(name), torch.Tensor)]
    outputs = of.run(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    moving = [out for out in outputs if out.requires_grad]
    if moving:
        torch.autograd.grad(moving, leaves, [torch.randn_like(out) for out in moving])


@pytest.mark.parametrize("name", KERNELS)
def test_ops_are_complete(name: str) -> None:
    """torch's own check of a custom op: schema, fake tensors, autograd, and both together under compilation."""
    of = kernel(name)
    with Calls() as calls:
        run_with_gradients(of, of.cases[0], torch.float32)
    assert calls.found, "no custom op was called"
    for op, (args, kwargs) in calls.found.items():
        if "backward" in op.name():  # no gradients of gradients
            args = tuple(arg.detach() if isinstance(arg, torch.Tensor) else arg for arg in args)
        torch.library.opcheck(op, args, kwargs)


@pytest.mark.parametrize("name", KERNELS)
def test_flops_are_the_cost(name: str) -> None:
    """What the counter counts is what the kernel's cost says, forward and backward."""
    of = kernel(name)
    for case in of.cases:
        cost = of.cost(case, torch.float32)
        with FlopCounterMode(display=False) as counter:
            run_with_gradients(of, case, torch.float32)
        assert counter.get_total_flops() == cost.flops + cost.backward_flops, case


def test_a_wrong_kernel_is_caught() -> None:
    """An error of a few roundings passes, an unwritten or a wrong element does not."""
    exact = torch.randn(1000, dtype=torch.float64)
    plain = exact.bfloat16()
    assert compare("out", plain.clone(), plain, exact).passed
    wrong = plain.clone()
    wrong[17] += 0.1
    assert not compare("out", wrong, plain, exact).passed
    wrong[17] = float("nan")
    assert not compare("out", wrong, plain, exact).passed
    assert not compare("out", plain[:999], plain, exact).passed


def test_buffers_are_poisoned() -> None:
    like = torch.zeros(1)
    with launching.poisoned():
        assert launching.empty(3, like=like).isnan().all()
        assert (launching.empty(3, like=like, dtype=torch.int32) == -1).all()


def test_cases_in_words() -> None:
    """What differs from the defaults, and a number of equal values as such."""
    lengths = kernel("decode_attention").shapes[0]
    assert described(lengths) == "lengths=32 × 4096, heads=32, kv_heads=8, head_dim=128"
    assert described(lengths._replace(lengths=(7, 9), page=16)).startswith("lengths=(7, 9), ")


def test_a_kernel_without_the_asked_formats_is_taken_in_its_own() -> None:
    assert kernel("rope").formats([torch.float32, torch.float64]) == (torch.float32,)
    assert kernel("moe_routing").formats([torch.bfloat16]) == (torch.float32,)
