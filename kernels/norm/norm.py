"""RMSNorm and LayerNorm with and without a fused residual add, forward and backward: what both kinds share.

    out = x̂ · w + bias      x̂ = (x − μ) · r      r = 1/√(mean((x − μ)²) + ε)      μ = mean(x), or 0 for RMSNorm
    w = weight, or 1 + weight (unit_offset, Gemma), or 1
    with a residual: summed = x + residual, rounded to its format as plain torch rounds it, is normed in x's place

Kept are x (or summed), and r and μ of each row. With g = dout · w:
    dx = r · (g − x̂ · mean(g · x̂) − mean(g)) + dsummed        (the last mean only where μ is; dresidual = dx)
    dweight = Σ dout · x̂        dbias = Σ dout        over rows

Statistics in fp32. dweight and dbias are first summed by each program over its rows, then over programs in a fixed
order: the same bits every time. Rows that registers hold are in `norms_row`, wider ones in `norms_long`.

Shapes: x [..., N, W] as [O, N, W] with a stride for O and one for N, so that heads may be a slice of a projection's
result; weight and bias [W], or [N, W] for a weight per head. RMSNorm: Zhang and Sennrich, arXiv 1910.07467;
LayerNorm: Ba, Kiros and Hinton, arXiv 1607.06450.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from llmbench.kernels.launching import Config, choose, empty, launch, multiprocessors
from llmbench.kernels.norm import long
from llmbench.kernels.norm.row import (
    RESIDENT,
    backward_configurations,
    forward_configurations,
    norm_backward,
    norm_column_sums,
    norm_forward,
)

__all__ = ["add_norm", "norm", "reference", "refuse"]

FORWARD_MOST = 32768
"""The widest row that a forward program holds: 64 values a thread of 16 warps."""

BACKWARD_MOST, BESIDE_MOST = 32768, 8192
"""Bytes of the widest row that a backward program holds beside one sum over rows, and values of it beside two."""


def _as_rows(tensors: list[Tensor | None], per_head: bool) -> list[Tensor | None]:
    """Each as [O, N, W] with unit stride along a row: N is 1 where one stride leads through all rows of all of them
    and no weight is per head, and x's last but one dimension elsewhere. A copy only where no view does it."""
    tensors = [x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]
    if not per_head and all(x is None or _one_stride(x) for x in tensors):
        return [x if x is None else x.reshape(-1, 1, x.shape[-1]) for x in tensors]
    return [x if x is None else x.reshape(-1, *x.shape[-2:]) for x in tensors]


def _one_stride(x: Tensor) -> bool:
    """Whether all dimensions but the last can be seen as one."""
    dims = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size != 1]
    return all(outer == size * inner for (_, outer), (size, inner) in pairwise(dims))


def _per_head(weight: Tensor | None, bias: Tensor | None) -> bool:
    return any(part is not None and part.dim() > 1 for part in (weight, bias))


def _strides(x: Tensor | None) -> tuple[int, int]:
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    unit_offset: bool,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, summed (out again where there is no residual), stats."""
    per_head = _per_head(weight, bias)
    rows, added = _as_rows([x, residual], per_head)
    assert rows is not None
    outer, inner, width = rows.shape
    weight, bias = (None if part is None else part.contiguous() for part in (weight, bias))
    out = empty(*x.shape, like=x)
    summed = None if residual is None else empty(*x.shape, like=x)
    stats = empty(1 + centred, outer * inner, like=x, dtype=torch.float32)
    tensors = rows, added, weight, bias, out, summed, stats
    sizes = *_strides(rows), *_strides(added), outer, inner, width, eps
    flags = {"CENTRED": centred, "UNIT_OFFSET": unit_offset, "PER_HEAD": per_head}
    if width > FORWARD_MOST:
        config = choose("norm_forward_long", long.configurations())
        launch(long.norm_forward_long, (outer * inner,), config, *tensors, *sizes, **flags)
    else:
        config = choose("norm_forward", forward_configurations(width))
        programs = (
            inner * triton.cdiv(outer, config["ROWS"]) if per_head else triton.cdiv(outer * inner, config["ROWS"])
        )
        launch(norm_forward, (programs,), config, *tensors, *sizes, **flags)
    return out, out if summed is None else summed, stats


@torch.library.custom_op("llmbench::norm", mutates_args=())
def norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, unit_offset: bool, centred: bool
) -> tuple[Tensor, Tensor]:
    """out [..., W], and stats [1 or 2, rows]."""
    out, _, stats = _forward(x, None, weight, bias, eps, unit_offset, centred)
    return out, stats


@torch.library.custom_op("llmbench::add_norm", mutates_args=())
def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    unit_offset: bool,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """out and summed [..., W], and stats [1 or 2, rows]."""
    return _forward(x, residual, weight, bias, eps, unit_offset, centred)


def _like(x: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((1 + centred, math.prod(x.shape[:-1])), dtype=torch.float32)


@norm.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, unit_offset: bool, centred: bool
) -> tuple[Tensor, Tensor]:
    return _like(x, centred)


@add_norm.register_fake
def _(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    unit_offset: bool,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    out, stats = _like(x, centred)
    return out, x.new_empty(x.shape), stats


def _add_up(partial: Tensor, *sums: Tensor) -> None:
    """Write those of `sums` that are wanted, which are not empty, from the programs' shares."""
    found = [each for each in sums if each.numel()]
    _, programs, columns = partial.shape
    block = 32 if columns <= 4096 else 128
    config = Config(ROWS=32, BLOCK=block, num_warps=4, note="whole lines of 32 shares at once; many programs")
    grid = triton.cdiv(columns, block), len(found)
    if found:
        second = found[1] if len(found) > 1 else None
        launch(norm_column_sums, grid, config, partial, found[0], second, programs, columns)


@torch.library.custom_op("llmbench::norm_backward", mutates_args=())
def norm_backward_op(
    dout: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    unit_offset: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias; of the last two, one that is not wanted is empty."""
    per_head = _per_head(weight, bias)
    rows, dy, added = _as_rows([x, dout, dsummed], per_head)
    assert rows is not None
    assert dy is not None
    outer, inner, width = rows.shape
    weight = None if weight is None else weight.contiguous()
    heads = inner if per_head else 1
    dx = empty(*x.shape, like=x)
    dweight = empty(*weight.shape, like=weight) if weight_grad and weight is not None else x.new_empty(0)
    dbias = empty(*bias.shape, like=bias) if bias_grad and bias is not None else x.new_empty(0)
    flags = {"CENTRED": stats.shape[0] > 1, "UNIT_OFFSET": unit_offset, "PER_HEAD": per_head}
    strides = *_strides(dy), *_strides(added), *_strides(rows)
    candidates = backward_configurations(width, x.element_size(), 2 + (added is not None))
    block = candidates[0]["BLOCK"]
    if block * x.element_size() > BACKWARD_MOST:
        config = choose("norm_backward_long", long.configurations())
        tensors = dy, added, rows, weight, stats, dx
        launch(long.norm_backward_long, (outer * inner,), config, *tensors, *strides, outer, inner, width, **flags)
        if weight_grad or bias_grad:
            _add_up(long.sums(dy, rows, stats, heads, weight_grad, bias_grad), dweight, dbias)
        return dx, dweight, dbias
    apart = weight_grad and bias_grad and block > BESIDE_MOST  # dbias has no room, and reads dout once more
    config = choose("norm_backward", candidates)
    tiles = triton.cdiv(outer if per_head else outer * inner, config["ROWS"])
    resident = multiprocessors(x.device) * max(1, RESIDENT // config.num_warps)
    programs = max(1, min(tiles, triton.cdiv(resident, heads)))
    wanted = {"WEIGHT_GRAD": weight_grad, "BIAS_GRAD": bias_grad and not apart}
    partial = empty(sum(wanted.values()), programs, heads * width, like=x, dtype=torch.float32)
    arguments = dy, added, rows, weight, stats, dx, partial, *strides, outer, inner, width, tiles, programs
    launch(norm_backward, (programs * heads,), config, *arguments, **flags, **wanted)
    if apart:
        _add_up(long.sums(dy, rows, stats, heads, False, True), dbias)
        _add_up(partial, dweight)
    else:
        _add_up(partial, dweight, dbias)
    return dx, dweight, dbias


@norm_backward_op.register_fake
def _(
    dout: Tensor,
    dsummed: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    unit_offset: bool,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dweight = weight.new_empty(weight.shape) if weight_grad and weight is not None else x.new_empty(0)
    dbias = bias.new_empty(bias.shape) if bias_grad and bias is not None else x.new_empty(0)
    return x.new_empty(x.shape), dweight, dbias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """The normed tensor is x itself, or summed."""
    *_, weight, bias, _eps, ctx.unit_offset, _centred = inputs
    normed = output[1] if len(output) > 2 else inputs[0]
    ctx.save_for_backward(normed, weight, bias, output[-1])
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)  # no zeros are written where a result is not used


def _backward(ctx: Any, dout: Tensor | None, dsummed: Tensor | None) -> tuple[Tensor | None, ...]:
    normed, weight, bias, stats = ctx.saved_tensors
    weight_grad, bias_grad = ctx.needs_input_grad[-5:-3]
    if dout is None:
        return dsummed, None, None
    found = norm_backward_op(dout, dsummed, normed, weight, bias, stats, ctx.unit_offset, weight_grad, bias_grad)
    return found[0], found[1] if weight_grad else None, found[2] if bias_grad else None


def _norm_backward(ctx: Any, dout: Tensor | None, dstats: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, dout, None), None, None, None


def _add_norm_backward(
    ctx: Any, dout: Tensor | None, dsummed: Tensor | None, dstats: Tensor | None
) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = _backward(ctx, dout, dsummed)
    return dx, dx, dweight, dbias, None, None, None


norm.register_autograd(_norm_backward, setup_context=_keep)
add_norm.register_autograd(_add_norm_backward, setup_context=_keep)


def refuse(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise ValueError for what the kernels do not take."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"x is {x.dtype}; norms take float16, bfloat16 and float32")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x {tuple(x.shape)} has no last dimension to norm")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"x {tuple(x.shape)} {x.dtype} and residual {tuple(residual.shape)} {residual.dtype} differ")
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and (part.shape not in (x.shape[-1:], x.shape[-2:]) or not part.is_floating_point()):
            raise ValueError(f"{name} {tuple(part.shape)} {part.dtype} does not fit x {tuple(x.shape)}: [W] or [N, W]")
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} differ")


def reference(
    x: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float,
    unit_offset: bool = False,
    centred: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same in plain torch, statistics in fp32 or wider."""
    summed = x if residual is None else x + residual
    wide = summed if summed.dtype == torch.float64 else summed.float()
    if centred:
        wide = wide - wide.mean(-1, keepdim=True)
    out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if weight is not None:
        out = out * (1.0 + weight.to(out.dtype) if unit_offset else weight)
    if bias is not None:
        out = out + bias
    return out.to(x.dtype) if residual is None else (out.to(x.dtype), summed)
