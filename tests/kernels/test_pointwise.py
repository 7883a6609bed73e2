"""Rotation and gates beyond their cases: the model's rotation, strides, compilation with norms, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.kernels.norm.norm import add_rms_norm, layer_norm
from llmbench.kernels.pointwise.glu import configurations, glu
from llmbench.kernels.pointwise.rope import rope
from llmbench.kernels.proof.check import compare
from llmbench.model.positions import rotate

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Normally distributed values, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_equals_that_of_the_model(interleaved: bool) -> None:
    q, k = normal(2, 3, 4, 16), normal(2, 3, 2, 16, seed=1)
    angles = normal(2, 3, 6, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    outputs = rope(q, k, cos, sin, interleaved=interleaved)
    for out, x in zip(outputs, (q, k), strict=True):
        tables = cos[:, None], sin[:, None]
        exact = rotate(x.float().transpose(1, 2), tables, interleaved=interleaved).transpose(1, 2)
        assert compare("out", out, exact.bfloat16(), exact.double()).passed


def test_any_strides_are_read() -> None:
    """Strided heads, columns and rows give the result of a contiguous copy."""
    q = normal(2, 4, 3, 8).transpose(1, 2)  # [B, N, S, H] in memory
    cos = normal(1, 3, 4, dtype=torch.float32)
    for out, same in zip(rope(q, q, cos, cos), rope(q.contiguous(), q.contiguous(), cos, cos), strict=True):
        assert torch.equal(out, same)
    strided = rope(q[..., ::2], q[..., ::2], cos[..., :2], cos[..., :2])[0]
    assert torch.equal(strided, rope(q[..., ::2].contiguous(), q[..., ::2], cos[..., :2], cos[..., :2])[1])
    wide = normal(2, 8, 3).mT
    assert torch.equal(glu(wide, wide), glu(wide.contiguous(), wide.contiguous()))


def test_a_block_compiles_without_graph_breaks() -> None:
    """Norms, rotation and a gate in one graph, with gradients."""
    x, weight = normal(3, 2, 8, dtype=torch.float32).requires_grad_(), normal(8, dtype=torch.float32).requires_grad_()
    cos = normal(1, 3, 4, dtype=torch.float32)

    def block(x: Tensor, weight: Tensor) -> Tensor:
        out, summed = add_rms_norm(x, x * 2, weight)
        q, k = rope(out[None], summed[None], cos, cos)
        return glu(layer_norm(q, weight), k)

    outs = [run(x, weight) for run in (block, torch.compile(block, fullgraph=True, backend="aot_eager"))]
    torch.testing.assert_close(*outs)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), (x, weight)) for out in outs))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rope(normal(1, 2, 3, 8), normal(1, 2, 3, 6), normal(1, 2, 4), normal(1, 2, 4)), "must be"),
        (lambda: rope(normal(1, 2, 3, 8), normal(1, 2, 3, 8), normal(1, 2, 5), normal(1, 2, 5)), "rotates 10 dim"),
        (lambda: rope(normal(1, 2, 3, 8), normal(1, 2, 3, 8), normal(1, 3, 4), normal(1, 3, 4)), "R/2"),
        (lambda: glu(normal(3, 4), normal(3, 5)), "must not differ"),
    ],
)
def test_invalid_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("width", [1, 37, 768, 1408, 2880, 8192, 11008, 13824, 14336])
def test_few_threads_of_a_gate_are_idle(width: int) -> None:
    """At most a tenth of the threads of a row are idle, or a quarter for a short row."""
    block = configurations(width)[0]["BLOCK"]
    used = width / (-(-width // block) * block)
    assert used >= (0.9 if width > 2048 else 0.75 if width >= 512 else 0.0)
