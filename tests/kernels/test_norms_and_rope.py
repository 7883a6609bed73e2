"""Norms, rotation and gates beyond their cases: as the model computes them, wide rows, gradients of a single result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.kernels.norm import norm as norms
from llmbench.kernels.norm.layer_norm import KERNEL as LAYER_NORM
from llmbench.kernels.norm.layer_norm import add_layer_norm, layer_norm
from llmbench.kernels.norm.rms_norm import KERNEL as RMS_NORM
from llmbench.kernels.norm.rms_norm import Case, add_rms_norm, rms_norm
from llmbench.kernels.pointwise.glu import configurations, glu
from llmbench.kernels.pointwise.rope import rope
from llmbench.kernels.proof.check import check, compare
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.norms import NormLayer
from llmbench.model.positions import rotate
from llmbench.spec.model import Norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def made(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


@pytest.mark.parametrize(("per_head", "offset"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_norms_are_the_models(kind: Any, per_head: bool, offset: bool) -> None:
    shape = (2, 12) if per_head else (12,)
    layer = NormLayer(12, Norm(kind=kind, unit_offset=offset, bias=kind == "layernorm"), weight_shape=shape)
    layer = layer.to(DEVICE, torch.bfloat16)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(made(*shape, seed=seed))
    x = made(3, 5, 2, 12, seed=9)
    ours = layer_norm if kind == "layernorm" else rms_norm
    found = ours(x, layer.weight, layer.bias, eps=layer.norm.eps, unit_offset=offset)
    plain = layer(x, STANDARD)
    exact = layer.double()(x.double(), STANDARD)
    assert compare("out", found.detach(), plain.detach(), exact.detach()).passed


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_the_models(interleaved: bool) -> None:
    q, k = made(2, 3, 4, 16), made(2, 3, 2, 16, seed=1)
    angles = made(2, 3, 6, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    found = rope(q, k, cos, sin, interleaved=interleaved)
    for out, x in zip(found, (q, k), strict=True):
        tables = cos[:, None], sin[:, None]
        exact = rotate(x.float().transpose(1, 2), tables, interleaved=interleaved).transpose(1, 2)
        assert compare("out", out, exact.bfloat16(), exact.double()).passed


@pytest.mark.parametrize("case", [Case(3, 70, "wo", residual=True), Case(3, 20, "wbh", heads=2), Case(2, 33, "b")])
@pytest.mark.parametrize("of", [RMS_NORM, LAYER_NORM], ids=lambda of: of.name)
@pytest.mark.parametrize("limits", [(0, 0, 0), (32768, 32768, 0)], ids=["long", "bias apart"])
def test_rows_wider_than_registers(
    monkeypatch: pytest.MonkeyPatch, of: Any, case: Case, limits: tuple[int, int, int]
) -> None:
    """The ways that rows beyond 32768 and 8192 take, on narrow ones."""
    for name, limit in zip(("FORWARD_MOST", "BACKWARD_MOST", "BESIDE_MOST"), limits, strict=True):
        monkeypatch.setattr(norms, name, limit)
    for verdict in check(of, case, torch.float32, 0, DEVICE):
        assert verdict.passed, verdict


@pytest.mark.parametrize("norm", [add_rms_norm, add_layer_norm])
def test_each_result_alone_has_gradients(norm: Any) -> None:
    """What is not used brings no gradient, and none is needed for it; frozen weights get none."""
    x, residual = (made(3, 10, dtype=torch.float32, seed=seed).requires_grad_() for seed in (0, 1))
    weight = made(10, dtype=torch.float32, seed=2).requires_grad_()
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


def test_sums_over_rows_are_the_same_bits_every_time() -> None:
    x, weight = made(300, 24).requires_grad_(), made(24, seed=1).requires_grad_()
    grads = [torch.autograd.grad(layer_norm(x, weight, weight).square().sum(), weight)[0] for _ in range(2)]
    assert torch.equal(*grads)


def test_any_strides_are_read() -> None:
    """Columns apart, rows repeated, dimensions swapped: a copy where no view does it, the right result always."""
    for x in (made(4, 6).t(), made(1, 6).expand(4, 6), made(4, 2, 3, 6).permute(2, 0, 1, 3), made(2, 6, 3).mT):
        torch.testing.assert_close(rms_norm(x, eps=1e-6), rms_norm(x.contiguous(), eps=1e-6))
    q = made(2, 4, 3, 8).transpose(1, 2)  # [B, N, S, H] in memory
    cos = made(1, 3, 4, dtype=torch.float32)
    for out, same in zip(rope(q, q, cos, cos), rope(q.contiguous(), q.contiguous(), cos, cos), strict=True):
        assert torch.equal(out, same)
    apart = rope(q[..., ::2], q[..., ::2], cos[..., :2], cos[..., :2])[0]
    assert torch.equal(apart, rope(q[..., ::2].contiguous(), q[..., ::2], cos[..., :2], cos[..., :2])[1])
    wide = made(2, 8, 3).mT
    assert torch.equal(glu(wide, wide), glu(wide.contiguous(), wide.contiguous()))


def test_they_compile_without_breaks() -> None:
    x, weight = made(3, 2, 8, dtype=torch.float32).requires_grad_(), made(8, dtype=torch.float32).requires_grad_()
    cos = made(1, 3, 4, dtype=torch.float32)

    def block(x: Tensor, weight: Tensor) -> Tensor:
        out, summed = add_rms_norm(x, x * 2, weight)
        q, k = rope(out[None], summed[None], cos, cos)
        return glu(layer_norm(q, weight), k)

    outs = [run(x, weight) for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager"))]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), (x, weight)) for out in outs))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rms_norm(made(3, 4, dtype=torch.float64)), "float64"),
        (lambda: rms_norm(made(3, 4), made(3)), "does not fit"),
        (lambda: layer_norm(made(3, 2, 4), made(4), made(2, 4)), "differ"),
        (lambda: add_rms_norm(made(3, 4), made(3, 4, dtype=torch.float32)), "differ"),
        (lambda: rms_norm(made(3, 0)), "last dimension"),
        (lambda: rope(made(1, 2, 3, 8), made(1, 2, 3, 6), made(1, 2, 4), made(1, 2, 4)), "not"),
        (lambda: rope(made(1, 2, 3, 8), made(1, 2, 3, 8), made(1, 2, 5), made(1, 2, 5)), "turns 10 dims"),
        (lambda: rope(made(1, 2, 3, 8), made(1, 2, 3, 8), made(1, 3, 4), made(1, 3, 4)), "R/2"),
        (lambda: glu(made(3, 4), made(3, 5)), "differ"),
    ],
)
def test_what_does_not_fit_is_refused(call: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_empty_inputs_have_empty_results() -> None:
    x, weight = made(0, 8).requires_grad_(), made(8).requires_grad_()
    out = rms_norm(x, weight)
    assert out.shape == (0, 8)
    dx, dweight = torch.autograd.grad(out.sum(), (x, weight))
    assert dx.shape == (0, 8)
    assert not dweight.any()


@pytest.mark.parametrize("width", [1, 37, 768, 1408, 2880, 8192, 11008, 13824, 14336])
def test_gates_waste_few_threads(width: int) -> None:
    """At most a tenth of a row's threads idle, or a quarter of a short row's."""
    block = configurations(width)[0]["BLOCK"]
    used = width / (-(-width // block) * block)
    assert used >= (0.9 if width > 2048 else 0.75 if width >= 512 else 0.0)
