"""Norms beyond their cases: the model's norms, wide rows, the gradient of a single result, strides, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.kernels.norm import norm as norm_file
from llmbench.kernels.norm.norm import LAYER_NORM, RMS_NORM, Case, add_layer_norm, add_rms_norm, layer_norm, rms_norm
from llmbench.kernels.proof.check import check, compare
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.norms import NormLayer
from llmbench.spec.model import Norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Normally distributed values, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


@pytest.mark.parametrize(("per_head", "offset"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms_equal_those_of_the_model(kind: Any, per_head: bool, offset: bool) -> None:
    shape = (2, 12) if per_head else (12,)
    layer = NormLayer(12, Norm(kind=kind, unit_offset=offset, bias=kind == "layernorm"), weight_shape=shape)
    layer = layer.to(DEVICE, torch.bfloat16)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*shape, seed=seed))
    x = normal(3, 5, 2, 12, seed=9)
    ours = layer_norm if kind == "layernorm" else rms_norm
    out = ours(x, layer.weight, layer.bias, eps=layer.norm.eps, unit_offset=offset)
    plain = layer(x, STANDARD)
    exact = layer.double()(x.double(), STANDARD)
    assert compare("out", out.detach(), plain.detach(), exact.detach()).passed


@pytest.mark.parametrize("case", [Case(3, 70, "wo", residual=True), Case(3, 20, "wbh", heads=2), Case(2, 33, "b")])
@pytest.mark.parametrize("kernel", [RMS_NORM, LAYER_NORM], ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("limits", [(0, 0, 0), (32768, 32768, 0)], ids=["long", "bias in a kernel of its own"])
def test_rows_wider_than_registers(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, case: Case, limits: tuple[int, int, int]
) -> None:
    """Narrow rows on the paths of rows wider than 32768 and than 8192, by lower limits."""
    for name, limit in zip(("MAX_FORWARD_WIDTH", "MAX_BACKWARD_BYTES", "MAX_TWO_SUMS_WIDTH"), limits, strict=True):
        monkeypatch.setattr(norm_file, name, limit)
    for verdict in check(kernel, case, torch.float32, 0, DEVICE):
        assert verdict.passed, verdict


@pytest.mark.parametrize("norm", [add_rms_norm, add_layer_norm])
def test_a_single_result_has_gradients(norm: Any) -> None:
    """A result that is not used contributes no gradient; frozen weights get none."""
    x, residual = (normal(3, 10, dtype=torch.float32, seed=seed).requires_grad_() for seed in (0, 1))
    weight = normal(10, dtype=torch.float32, seed=2).requires_grad_()
    normed, summed = norm(x, residual, weight)
    dx, dresidual = torch.autograd.grad(summed.sum(), (x, residual), retain_graph=True)
    assert torch.equal(dx, torch.ones_like(x))
    assert torch.equal(dresidual, dx)
    both = torch.autograd.grad((normed * 2 + summed).sum(), (x, weight), retain_graph=True)
    alone = torch.autograd.grad((normed * 2).sum(), (x, weight))
    torch.testing.assert_close(both[0], alone[0] + 1)
    torch.testing.assert_close(both[1], alone[1])
    normed, _ = norm(x, residual, weight.detach())
    assert torch.autograd.grad(normed.sum(), x)[0].isfinite().all()


def test_sums_over_rows_repeat_exactly() -> None:
    x, weight = normal(300, 24).requires_grad_(), normal(24, seed=1).requires_grad_()
    grads = [torch.autograd.grad(layer_norm(x, weight, weight).square().sum(), weight)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_any_strides_are_read() -> None:
    """Columns with strides, repeated rows, exchanged dimensions: the result is that of a contiguous copy."""
    for x in (normal(4, 6).t(), normal(1, 6).expand(4, 6), normal(4, 2, 3, 6).permute(2, 0, 1, 3), normal(2, 6, 3).mT):
        torch.testing.assert_close(rms_norm(x, eps=1e-6), rms_norm(x.contiguous(), eps=1e-6))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rms_norm(normal(3, 4, dtype=torch.float64)), "float64"),
        (lambda: rms_norm(normal(3, 4), normal(3)), "does not match"),
        (lambda: layer_norm(normal(3, 2, 4), normal(4), normal(2, 4)), "same shape"),
        (lambda: add_rms_norm(normal(3, 4), normal(3, 4, dtype=torch.float32)), "must not differ"),
        (lambda: rms_norm(normal(3, 0)), "last dimension"),
    ],
)
def test_invalid_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_inputs_have_empty_results() -> None:
    x, weight = normal(0, 8).requires_grad_(), normal(8).requires_grad_()
    out = rms_norm(x, weight)
    assert out.shape == (0, 8)
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.shape == (0, 8)
    assert not dweight.any()
