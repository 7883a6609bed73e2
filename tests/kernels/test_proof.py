"""The error budget of a check, and the inspection of compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.kernels.proof.accuracy import Weights, check_against, compare

BF16, FP32 = torch.bfloat16, torch.float32


def normal(*shape: int, seed: int, dtype: torch.dtype = FP32) -> Tensor:
    """Normally distributed values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moved(x: Tensor, factor: float) -> Tensor:
    """x, whose gradient is multiplied by `factor`."""
    y = x.clone()
    if y.requires_grad:
        y.register_hook(lambda grad: grad * factor)
    return y


def linear(weights: dict[torch.dtype, Tensor], factor: float = 1.0) -> Callable[..., Tensor]:
    """A product with a weight that is not an input."""
    return lambda x: x @ moved(weights[x.dtype], factor).T


def weights_of(by_format: dict[torch.dtype, Tensor]) -> Weights:
    """The weight by its name, in fp32 and in fp64."""
    return Weights({"proj.weight": by_format[FP32]}, {"proj.weight": by_format[torch.float64]})


def test_gradients_of_weights_are_checked() -> None:
    weight = normal(8, 16, seed=0).requires_grad_()
    weights = {FP32: weight, torch.float64: weight.detach().double().requires_grad_()}
    inputs = {"x": normal(5, 16, seed=1)}

    def verdicts(factor: float) -> dict[str, bool]:
        run, reference = linear(weights, factor), linear(weights)
        results = check_against(run, reference, inputs, differentiable=("x",), weights=weights_of(weights))
        return {verdict.tensor: verdict.passed for verdict in results}

    assert verdicts(1.0) == {"out": True, "dx": True, "d proj.weight": True}
    assert verdicts(3.0) == {"out": True, "dx": True, "d proj.weight": False}
    assert verdicts(0.0)["d proj.weight"] is False


def test_a_missing_gradient_is_wrong() -> None:
    inputs = {"x": normal(5, 16, seed=0)}
    out, dx = check_against(lambda x: x.detach() * 2, lambda x: x * 2, inputs, differentiable=("x",))
    assert (out.passed, dx.passed, dx.error) == (True, False, 1.0)


def test_an_unused_input_has_the_gradient_0() -> None:
    inputs = {"x": normal(5, seed=0), "y": normal(5, seed=1)}
    verdicts = check_against(lambda x, y: x * 2, lambda x, y: x * 2, inputs, differentiable=("x", "y"))
    assert [(verdict.tensor, verdict.error, verdict.passed) for verdict in verdicts] == [
        ("out", 0.0, True),
        ("dx", 0.0, True),
        ("dy", 0.0, True),
    ]


# Gradients that are 0 because their terms cancel


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in plain torch."""
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's flash attention, which computes Σ dout·out in place of Σ p·dp."""
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(("dtype", "wrong"), [(FP32, 1e-3), (BF16, 0.1)])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_the_gradient_of_one_key_is_0_within_roundings(dtype: torch.dtype, wrong: float, width: int) -> None:
    inputs = {name: normal(2, 8, 1, width, seed=seed, dtype=dtype) for seed, name in enumerate("qkv")}
    names = tuple(inputs)
    right = check_against(flash, attention, inputs, differentiable=names)
    assert all(verdict.passed for verdict in right)
    if dtype == FP32:
        assert right[1].error > 0  # 0 in plain torch

    def biased(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v) + wrong * (q - q.detach())

    wrong_verdicts = check_against(biased, attention, inputs, differentiable=names)
    assert {verdict.tensor: verdict.passed for verdict in wrong_verdicts} == {
        "out": True,
        "dq": False,
        "dk": True,
        "dv": True,
    }


def test_a_nonzero_gradient_is_not_measured_by_its_terms() -> None:
    """With more than one key, the budget is that of the gradient itself."""
    inputs = {name: normal(2, 4, 32, 16, seed=seed) for seed, name in enumerate("qkv")}

    def slightly_off(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(moved(q, 1 + 1e-5), k, v)

    dq = check_against(slightly_off, attention, inputs, differentiable=("q",))[1]
    assert not dq.passed
    assert dq.error == pytest.approx(1e-5, rel=0.1)


# A mean loss, whose errors may cancel in plain torch by chance


def loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean of the tokens' losses."""
    return loss_of(x @ weight.T, targets)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean loss of logits in fp32 or wider."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, FP32)), targets)


def in_halves(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same loss from products that round differently."""
    half = x.shape[1] // 2
    return loss_of(x[:, :half] @ weight[:, :half].T + x[:, half:] @ weight[:, half:].T, targets)


def test_a_loss_need_not_be_as_exact_as_one_whose_errors_cancel() -> None:
    lucky = 0
    for seed in range(40):
        inputs = {
            "x": normal(64, 128, seed=2 * seed, dtype=BF16),
            "weight": (normal(500, 128, seed=2 * seed + 1) / 10).to(BF16),
            "targets": torch.randint(500, (64,), generator=torch.Generator().manual_seed(seed)),
        }
        wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        lucky += not compare("", in_halves(**inputs), loss(**inputs), loss(**wide), factor=2.0).passed
        assert check_against(in_halves, loss, inputs)[0].passed
        assert not check_against(lambda **arguments: in_halves(**arguments) * 1.005, loss, inputs)[0].passed
    assert lucky  # otherwise nothing was tested


# A sum whose roundings cancel in plain torch by chance


def test_a_sum_need_not_be_as_exact_as_one_whose_roundings_cancel() -> None:
    lucky = 0
    for seed in range(40):
        inputs = {"x": normal(20, 1, seed=seed) * 3 + 1}

        def one_by_one(x: Tensor) -> Tensor:
            total = torch.zeros_like(x[0])
            for row in x:
                total = total + row
            return total

        def at_once(x: Tensor) -> Tensor:
            return x.sum(0)

        def slightly_off(x: Tensor) -> Tensor:
            return at_once(x) + 3e-5

        first = compare("", one_by_one(**inputs), at_once(**inputs), at_once(inputs["x"].double()))
        lucky += not first.passed
        assert check_against(one_by_one, at_once, inputs)[0].passed
        assert not check_against(slightly_off, at_once, inputs)[0].passed
    assert lucky  # otherwise nothing was tested


def test_infinite_results_and_nan_must_be_the_same() -> None:
    exact = torch.tensor([1.0, torch.inf, -torch.inf, torch.nan], dtype=torch.float64)
    right = exact.float()
    assert compare("", right, right, exact).passed
    for place, value in ((1, 1e30), (2, torch.inf), (2, torch.nan), (3, 0.0), (0, torch.inf), (0, torch.nan), (0, 1.1)):
        wrong = right.clone()
        wrong[place] = value
        assert not compare("", wrong, right, exact).passed


def test_a_number_too_large_for_its_format_must_be_infinite() -> None:
    exact = torch.tensor([70000.0, 1.0], dtype=torch.float64)
    assert compare("", exact.half(), exact.half(), exact).passed
    assert not compare("", torch.tensor([65504.0, 1.0]).half(), exact.half(), exact).passed


# Inspection, in a process of its own, where kernels are not interpreted

FAULTY = """
import torch, triton, triton.language as tl
from typing import NamedTuple
from llmbench.errors import CannotRunError
from llmbench.kernels.proof import inspect as inspection
from llmbench.kernels.kernel import Cost, Kernel
from llmbench.kernels.launching import Config, architecture, choose, launch

@triton.jit
def product(a, b, c, turns, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    total = tl.zeros([M, N], tl.float32)
    for _ in range(turns):
        total = tl.dot(x, y, total)
    tl.store(c + m[:, None] * N + n[None, :], total)

class Case(NamedTuple):
    size: int

def run(x, size):
    if architecture(x.device) < 90:
        raise CannotRunError("needs more")
    config = choose("product", [
        Config(M=64, N=64, K=64, num_warps=4),
        Config(M=16, N=64, K=64, num_warps=4, note="too few rows for wgmma"),
        Config(M=128, N=256, K=64, num_warps=4, note="more accumulators than registers"),
        Config(M=128, N=128, K=1024, num_warps=8, note="more than a block's shared memory"),
    ])
    out = torch.empty(128, 256)
    launch(product, (1,), config, x, x, out, 5)
    return out

allowances = {"product: mma.sync": "few rows", "product: spills in fp32": "for another format"}
kernel = Kernel(name="product", summary="", run=run, reference=run, cost=lambda *_: Cost(0, 0), cases=[],
                random_case=Case, shapes=[Case(1)], allowances=allowances,
                inputs=lambda case, random: {"x": random.normal(256, 256), "size": case.size})
inspection.load_kernel = lambda name: kernel
for row in inspection.inspect(["product"], [90, 80], [torch.bfloat16]):
    print(row.instruction, row.spilled_bytes > 0, "|".join(row.faults), "|".join(row.allowed), sep=";")
rows = inspection.inspect(["product"], [90, 100], [torch.bfloat16], shipped=True)
print([(row.arch, len(row.loops) > 0) for row in rows])
"""


def test_faults_are_found(tmp_path: Path) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    good, narrow, spilling, large, refused, loops = done.stdout.splitlines()
    assert good == "wgmma;False;;"
    assert narrow == "mma.sync;False;;uses mma.sync instead of wgmma: few rows"
    assert spilling.startswith("wgmma;True;spills ")
    assert "shared memory" in large
    assert refused == "None;False;;refused: needs more"
    assert loops == "[(90, True), (100, False)]"


def test_the_page_of_configurations_is_up_to_date() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    tool = Path(__file__).parents[2] / "tools" / "kernel_reference.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
