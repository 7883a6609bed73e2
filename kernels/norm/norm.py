"""RMSNorm and LayerNorm, with and without a fused residual add, forward and backward.

    out = x̂ · w + bias      x̂ = (x − μ) · r      r = 1/√(mean((x − μ)²) + ε)      μ = mean(x), or 0 for RMSNorm
    w = weight, or 1 + weight (unit_offset, Gemma), or 1
    with a residual: summed = x + residual replaces x; it is rounded to its format first, as in plain torch

The forward pass saves x (or summed), and r and μ of each row. With g = dout · w:
    dx = r · (g − x̂ · mean(g · x̂) − mean(g)) + dsummed        (mean(g) for LayerNorm only; dresidual = dx)
    dweight = Σ dout · x̂        dbias = Σ dout        over rows

Statistics are in fp32. Each program first sums dweight and dbias over its rows. A second kernel then adds the sums of
the programs in a fixed order, so equal inputs give equal bits. The kernels for rows that fit in registers are in
row.py, and the kernels for wider rows are in long.py.

N heads, W width, O product of the other dimensions. Shapes: x [..., N, W] is read as [O, N, W] with one stride for O
and one for N, so that heads can be a slice of a projection's result. weight and bias are [W], or [N, W] for a weight
per head. RMSNorm: Zhang and Sennrich, arXiv 1910.07467; LayerNorm: Ba, Kiros and Hinton, arXiv 1607.06450.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
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

__all__ = ["LAYER_NORM", "RMS_NORM", "Case", "add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]

MAX_FORWARD_WIDTH = 32768
"""The widest row that a forward program keeps in registers: 64 values per thread of 16 warps."""

MAX_BACKWARD_BYTES, MAX_TWO_SUMS_WIDTH = 32768, 8192
"""The widest row that a backward program keeps in registers. With one sum over rows (dweight or dbias), the limit is in
bytes. With both sums, the limit is in values."""


# == Configurations and launcher ==


def _row_views(tensors: list[Tensor | None], per_head: bool) -> list[Tensor | None]:
    """Return the tensors as [O, N, W] with unit stride along a row, copied only if there is no such view.

    N is 1 if no weight is per head and the rows of every tensor have one stride. Otherwise N is the last but one
    dimension.
    """
    tensors = [x if x is None or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]
    if not per_head and all(x is None or _one_stride(x) for x in tensors):
        return [x if x is None else x.reshape(-1, 1, x.shape[-1]) for x in tensors]
    return [x if x is None else x.reshape(-1, *x.shape[-2:]) for x in tensors]


def _one_stride(x: Tensor) -> bool:
    """Whether all dimensions but the last can be merged into one dimension with one stride."""
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
    """Launch the forward kernel. Return out, summed, and stats [1 or 2, rows]. Without a residual, summed is out."""
    per_head = _per_head(weight, bias)
    rows, added = _row_views([x, residual], per_head)
    assert rows is not None
    outer, inner, width = rows.shape
    weight, bias = (None if part is None else part.contiguous() for part in (weight, bias))
    out = empty(*x.shape, like=x)
    summed = None if residual is None else empty(*x.shape, like=x)
    stats = empty(1 + centred, outer * inner, like=x, dtype=torch.float32)
    tensors = rows, added, weight, bias, out, summed, stats
    sizes = *_strides(rows), *_strides(added), outer, inner, width, eps
    flags = {"CENTRED": centred, "UNIT_OFFSET": unit_offset, "PER_HEAD": per_head}
    if width > MAX_FORWARD_WIDTH:
        config = choose("norm_forward_long", long.configurations())
        launch(long.norm_forward_long, (outer * inner,), config, *tensors, *sizes, **flags)
    else:
        config = choose("norm_forward", forward_configurations(width))
        tiles = inner * triton.cdiv(outer, config["ROWS"]) if per_head else triton.cdiv(outer * inner, config["ROWS"])
        launch(norm_forward, (tiles,), config, *tensors, *sizes, **flags)
    return out, out if summed is None else summed, stats


def _sum_partials(partial: Tensor, *sums: Tensor) -> None:
    """Launch the kernel that adds the sums of all programs. It writes the tensors of `sums` that are not empty."""
    wanted = [x for x in sums if x.numel()]
    _, programs, columns = partial.shape
    block = 32 if columns <= 4096 else 128
    config = Config(ROWS=32, BLOCK=block, num_warps=4, note="whole lines, which hold 32 sums each; many programs")
    grid = triton.cdiv(columns, block), len(wanted)
    if wanted:
        second = wanted[1] if len(wanted) > 1 else None
        launch(norm_column_sums, grid, config, partial, wanted[0], second, programs, columns)


# == Torch op ==


@torch.library.custom_op("llmbench::norm", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, unit_offset: bool, centred: bool
) -> tuple[Tensor, Tensor]:
    """Return out [..., W] and stats [1 or 2, rows]."""
    out, _, stats = _forward(x, None, weight, bias, eps, unit_offset, centred)
    return out, stats


@torch.library.custom_op("llmbench::add_norm", mutates_args=())
def _add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    unit_offset: bool,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out and summed [..., W], and stats [1 or 2, rows]."""
    return _forward(x, residual, weight, bias, eps, unit_offset, centred)


def _empty_results(x: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """Return an unwritten out and unwritten stats for fake tensors."""
    return x.new_empty(x.shape), x.new_empty((1 + centred, math.prod(x.shape[:-1])), dtype=torch.float32)


@_norm.register_fake
def _(x: Tensor, weight: Any, bias: Any, eps: Any, unit_offset: Any, centred: bool) -> tuple[Tensor, Tensor]:
    return _empty_results(x, centred)


@_add_norm.register_fake
def _(
    x: Tensor, residual: Any, weight: Any, bias: Any, eps: Any, unit_offset: Any, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out, stats = _empty_results(x, centred)
    return out, x.new_empty(x.shape), stats


@torch.library.custom_op("llmbench::norm_backward", mutates_args=())
def _norm_backward(
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
    """Return dx, dweight and dbias. dweight and dbias are empty if they are not wanted."""
    per_head = _per_head(weight, bias)
    rows, dy, added = _row_views([x, dout, dsummed], per_head)
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
    if block * x.element_size() > MAX_BACKWARD_BYTES:
        config = choose("norm_backward_long", long.configurations())
        tensors = dy, added, rows, weight, stats, dx
        launch(long.norm_backward_long, (outer * inner,), config, *tensors, *strides, outer, inner, width, **flags)
        if weight_grad or bias_grad:
            _sum_partials(long.row_sums(dy, rows, stats, heads, weight_grad, bias_grad), dweight, dbias)
        return dx, dweight, dbias
    # If a row is wide, no registers are left for dbias. A separate kernel then computes dbias, and reads dout again.
    separate = weight_grad and bias_grad and block > MAX_TWO_SUMS_WIDTH
    config = choose("norm_backward", candidates)
    tiles = triton.cdiv(outer if per_head else outer * inner, config["ROWS"])
    resident = multiprocessors(x.device) * max(1, RESIDENT // config.num_warps)
    programs = max(1, min(tiles, triton.cdiv(resident, heads)))
    wanted = {"WEIGHT_GRAD": weight_grad, "BIAS_GRAD": bias_grad and not separate}
    partial = empty(sum(wanted.values()), programs, heads * width, like=x, dtype=torch.float32)
    arguments = dy, added, rows, weight, stats, dx, partial, *strides, outer, inner, width, tiles, programs
    launch(norm_backward, (programs * heads,), config, *arguments, **flags, **wanted)
    if separate:
        _sum_partials(long.row_sums(dy, rows, stats, heads, False, True), dbias)
        _sum_partials(partial, dweight)
    else:
        _sum_partials(partial, dweight, dbias)
    return dx, dweight, dbias


@_norm_backward.register_fake
def _(
    dout: Any,
    dsummed: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Any,
    unit_offset: Any,
    weight_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dweight = weight.new_empty(weight.shape) if weight_grad and weight is not None else x.new_empty(0)
    dbias = bias.new_empty(bias.shape) if bias_grad and bias is not None else x.new_empty(0)
    return x.new_empty(x.shape), dweight, dbias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the input of the norm (x or summed), the weights, and stats."""
    *_, weight, bias, _eps, ctx.unit_offset, _centred = inputs
    normed = output[1] if len(output) > 2 else inputs[0]
    ctx.save_for_backward(normed, weight, bias, output[-1])
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)  # autograd must not allocate zero gradients for unused results


def _backward(ctx: Any, dout: Tensor | None, dsummed: Tensor | None) -> tuple[Tensor | None, ...]:
    normed, weight, bias, stats = ctx.saved_tensors
    weight_grad, bias_grad = ctx.needs_input_grad[-5:-3]
    if dout is None:
        return dsummed, None, None
    dx, dweight, dbias = _norm_backward(
        dout, dsummed, normed, weight, bias, stats, ctx.unit_offset, weight_grad, bias_grad
    )
    return dx, dweight if weight_grad else None, dbias if bias_grad else None


def _backward_of_norm(ctx: Any, dout: Tensor | None, dstats: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, dout, None), None, None, None


def _backward_of_add_norm(
    ctx: Any, dout: Tensor | None, dsummed: Tensor | None, dstats: Tensor | None
) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = _backward(ctx, dout, dsummed)
    return dx, dx, dweight, dbias, None, None, None


_norm.register_autograd(_backward_of_norm, setup_context=_save)
_add_norm.register_autograd(_backward_of_add_norm, setup_context=_save)


# == Public op ==


def rms_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-6, unit_offset: bool = False
) -> Tensor:
    """Return the RMSNorm of x [..., W] over the last dimension, in contiguous memory.

    weight and bias are [W], or [N, W] for x [..., N, W]. With `unit_offset`, the factor is 1 + weight. Raises
    ValueError for shapes and dtypes that do not match."""
    _check(x, None, weight, bias)
    return _norm(x, weight, bias, eps, unit_offset, False)[0]


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-6,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the RMSNorm of summed = x + residual, and `summed`, to which the next layer adds its output. The other
    arguments are those of `rms_norm`."""
    _check(x, residual, weight, bias)
    out, summed, _ = _add_norm(x, residual, weight, bias, eps, unit_offset, False)
    return out, summed


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5, unit_offset: bool = False
) -> Tensor:
    """Return the LayerNorm of x [..., W] over the last dimension, in contiguous memory. The arguments and errors are
    those of `rms_norm`."""
    _check(x, None, weight, bias)
    return _norm(x, weight, bias, eps, unit_offset, True)[0]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the LayerNorm of summed = x + residual, and `summed`, to which the next layer adds its output. The other
    arguments are those of `rms_norm`."""
    _check(x, residual, weight, bias)
    out, summed, _ = _add_norm(x, residual, weight, bias, eps, unit_offset, True)
    return out, summed


def _check(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raise ValueError for shapes and dtypes that the kernels do not support."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"x is {x.dtype}; norms support float16, bfloat16 and float32")
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x {tuple(x.shape)} needs a last dimension that is not empty")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"x {tuple(x.shape)} {x.dtype} and residual {tuple(residual.shape)} {residual.dtype} must not differ"
        )
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and (part.shape not in (x.shape[-1:], x.shape[-2:]) or not part.is_floating_point()):
            raise ValueError(
                f"{name} {tuple(part.shape)} {part.dtype} does not match x {tuple(x.shape)}: it must be [W] or [N, W]"
            )
    if weight is not None and bias is not None and weight.shape != bias.shape:
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must have the same shape")


# == Reference ==


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
    """Compute either norm in plain torch, with statistics in fp32 or wider."""
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


# == Cases and cost ==


class Case(NamedTuple):
    """Sizes and options. x is [rows, heads, width], or [rows, width] if heads is 0.

    `weights` contains letters. "w": there is a weight; "b": there is a bias; "h": weight and bias are per head; "o":
    the factor is 1 + weight; "f": weight and bias are in fp32. `sliced`: x is a slice of a tensor with more heads.
    """

    rows: int
    width: int
    weights: str = "w"
    residual: bool = False
    heads: int = 0
    sliced: bool = False


def inputs(case: Case, random: Random) -> Inputs:
    """Return a normally distributed x (standard deviation 2), residual, weight and bias."""
    shape = (case.rows, case.heads, case.width) if case.heads else (case.rows, case.width)
    x = random.normal(*shape[:-2], shape[-2] + 2 * case.sliced, case.width, scale=2.0)[..., : shape[-2], :]
    dtype = torch.float32 if "f" in case.weights else None
    parts = shape[1:] if "h" in case.weights else shape[-1:]
    arguments: Inputs = {"x": x, "unit_offset": "o" in case.weights}
    if case.residual:
        arguments["residual"] = random.normal(*shape)
    for letter, name in (("w", "weight"), ("b", "bias")):
        if letter in case.weights:
            arguments[name] = random.normal(*parts, dtype=dtype)
    return arguments


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return the bytes of both passes, and 0 FLOPs, because there is no matrix product. The forward pass reads x and
    the weights, and writes out. With a residual, it reads and writes one tensor more.

    The backward pass reads dout and x, and writes dx. With a residual, it also reads dsummed.
    """
    count = case.rows * max(1, case.heads) * case.width
    parts = case.width * (case.heads if "h" in case.weights else 1)
    parts *= 4 if "f" in case.weights else dtype.itemsize
    weight, bias = parts * ("w" in case.weights), parts * ("b" in case.weights)
    forward = (2 + 2 * case.residual) * count * dtype.itemsize + weight + bias
    backward = (3 + case.residual) * count * dtype.itemsize + 2 * weight + bias
    return Cost(flops=0, bytes=forward, backward_bytes=backward)


def random_case(draw: Draw) -> Case:
    """Return a random case. Few rows are long, because the interpreter needs more time for them."""
    width = draw.size(40000 if draw.chance(0.05) else 1200)
    heads = draw.size(5) if draw.chance(0.4) and width < 3000 else 0
    options = "wb" + ("h" if heads else "") + "of"
    weights = "".join(option for option in options if draw.chance(0.5))
    rows = draw.size(max(1, min(60, 12000 // width)), least=0)
    return Case(rows, width, weights, residual=draw.chance(), heads=heads, sliced=draw.chance(0.3))


def _run_rms_norm(residual: Tensor | None = None, **others: Any) -> Tensor | tuple[Tensor, Tensor]:
    return rms_norm(**others) if residual is None else add_rms_norm(residual=residual, **others)


def _run_layer_norm(residual: Tensor | None = None, **others: Any) -> Tensor | tuple[Tensor, Tensor]:
    return layer_norm(**others) if residual is None else add_layer_norm(residual=residual, **others)


RMS_NORM = Kernel(
    name="rms_norm",
    summary="RMSNorm over the last dimension, with and without a residual added first",
    run=_run_rms_norm,
    reference=partial(reference, eps=1e-6, centred=False),
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 37, "w", residual=True),
        Case(7, 130, "wo"),
        Case(3, 3, ""),
        Case(2, 300, "wbf", residual=True),
        Case(37, 64, "w", heads=3, sliced=True),
        Case(9, 24, "whf", heads=5, sliced=True),
        Case(5, 1000, "b", residual=True, heads=2, sliced=True),
    ],
    random_case=random_case,
    shapes=[
        Case(16384, 4096, "w"),
        Case(16384, 4096, "w", residual=True),
        Case(16384, 128, "w", heads=32),
        Case(8192, 16384, "w", residual=True),
    ],
    differentiable=("x", "residual", "weight", "bias"),
)

LAYER_NORM = Kernel(
    name="layer_norm",
    summary="LayerNorm over the last dimension, with and without a residual added first",
    run=_run_layer_norm,
    reference=partial(reference, eps=1e-5, centred=True),
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 37, "wb"),
        Case(7, 130, "wo", residual=True),
        Case(4, 5, ""),
        Case(9, 24, "wbhf", heads=5, sliced=True),
        Case(2, 5000, "wb", residual=True),
        Case(1, 33000, "wbo", residual=True),
    ],
    random_case=random_case,
    shapes=[
        Case(16384, 4096, "wb"),
        Case(16384, 8192, "wb", residual=True),
        Case(8192, 12288, "wb"),
    ],
    differentiable=("x", "residual", "weight", "bias"),
)
