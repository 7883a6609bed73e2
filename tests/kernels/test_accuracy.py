"""The budget itself: what it lets through, and what it does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.kernels.proof.accuracy import Weights, compare, held

BF16, FP32 = torch.bfloat16, torch.float32


def normal(*shape: int, seed: int, dtype: torch.dtype = FP32) -> Tensor:
    """Random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moved(x: Tensor, factor: float) -> Tensor:
    """x, through which gradients come `factor` times as large."""
    y = x.clone()
    if y.requires_grad:
        y.register_hook(lambda grad: grad * factor)
    return y


def linear(weights: dict[torch.dtype, Tensor], factor: float = 1.0) -> Callable[..., Tensor]:
    """A product with a weight that is no input."""
    return lambda x: x @ moved(weights[x.dtype], factor).T


def weights_of(by_format: dict[torch.dtype, Tensor]) -> Weights:
    """Under a name, in fp32 and in fp64."""
    return Weights({"proj.weight": by_format[FP32]}, {"proj.weight": by_format[torch.float64]})


def test_gradients_of_weights_are_held_too() -> None:
    given = normal(8, 16, seed=0).requires_grad_()
    weights = {FP32: given, torch.float64: given.detach().double().requires_grad_()}
    inputs = {"x": normal(5, 16, seed=1)}

    def verdicts(factor: float) -> dict[str, bool]:
        run, reference = linear(weights, factor), linear(weights)
        found = held(run, reference, inputs, differentiable=("x",), weights=weights_of(weights))
        return {each.tensor: each.passed for each in found}

    assert verdicts(1.0) == {"out": True, "dx": True, "d proj.weight": True}
    assert verdicts(3.0) == {"out": True, "dx": True, "d proj.weight": False}
    assert verdicts(0.0)["d proj.weight"] is False


def test_what_gives_no_gradient_at_all_is_wrong() -> None:
    inputs = {"x": normal(5, 16, seed=0)}
    out, dx = held(lambda x: x.detach() * 2, lambda x: x * 2, inputs, differentiable=("x",))
    assert (out.passed, dx.passed, dx.error) == (True, False, 1.0)


def test_an_input_that_does_not_count_has_the_gradient_0() -> None:
    inputs = {"x": normal(5, seed=0), "y": normal(5, seed=1)}
    verdicts = held(lambda x, y: x * 2, lambda x, y: x * 2, inputs, differentiable=("x", "y"))
    assert [(each.tensor, each.error, each.passed) for each in verdicts] == [
        ("out", 0.0, True),
        ("dx", 0.0, True),
        ("dy", 0.0, True),
    ]


# Gradients that are 0 because their terms cancel


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain torch's."""
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v


def another(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's flash attention, which takes Σ dout·out where plain torch takes Σ p·dp."""
    return F.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize(("dtype", "wrong"), [(FP32, 1e-3), (BF16, 0.1)])
@pytest.mark.parametrize("width", [16, 64, 128])
def test_one_key_has_no_gradient_but_for_roundings(dtype: torch.dtype, wrong: float, width: int) -> None:
    inputs = {name: normal(2, 8, 1, width, seed=seed, dtype=dtype) for seed, name in enumerate("qkv")}
    names = tuple(inputs)
    right = held(another, attention, inputs, differentiable=names)
    assert all(each.passed for each in right)
    if dtype == FP32:
        assert right[1].error > 0  # not 0 as plain torch has it

    def leaning(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v) + wrong * (q - q.detach())

    found = held(leaning, attention, inputs, differentiable=names)
    assert {each.tensor: each.passed for each in found} == {"out": True, "dq": False, "dk": True, "dv": True}


def test_a_gradient_that_is_there_is_not_measured_by_its_terms() -> None:
    """With more keys the budget is that of the gradient itself."""
    inputs = {name: normal(2, 4, 32, 16, seed=seed) for seed, name in enumerate("qkv")}

    def slightly_off(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(moved(q, 1 + 1e-5), k, v)

    dq = held(slightly_off, attention, inputs, differentiable=("q",))[1]
    assert not dq.passed
    assert dq.error == pytest.approx(1e-5, rel=0.1)


# A mean loss, of which plain torch may be right by luck


def loss(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean of the tokens' losses."""
    return loss_of(x @ weight.T, targets)


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    """In fp32 or wider."""
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, FP32)), targets)


def in_halves(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same, its products rounded elsewhere."""
    half = x.shape[1] // 2
    return loss_of(x[:, :half] @ weight[:, :half].T + x[:, half:] @ weight[:, half:].T, targets)


def test_luck_with_a_loss_is_not_asked_of_others() -> None:
    lucky = 0
    for seed in range(40):
        inputs = {
            "x": normal(64, 128, seed=2 * seed, dtype=BF16),
            "weight": (normal(500, 128, seed=2 * seed + 1) / 10).to(BF16),
            "targets": torch.randint(500, (64,), generator=torch.Generator().manual_seed(seed)),
        }
        wide = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        lucky += not compare("", in_halves(**inputs), loss(**inputs), loss(**wide), factor=2.0).passed
        assert held(in_halves, loss, inputs)[0].passed
        assert not held(lambda **given: in_halves(**given) * 1.005, loss, inputs)[0].passed
    assert lucky  # else nothing was tested
