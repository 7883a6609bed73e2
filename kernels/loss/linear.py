"""Cross-entropy of a model's head, x·Wᵀ + bias, without all of its logits in memory; forward and backward.

Options and their formulas are those of loss/cross_entropy.py. There are two methods:

Losses without gradients (`linear_losses`): one matrix product; its tiles of logits stay in registers. See
loss/tiles.py.

A mean or a sum with gradients (`chunked_gradients`): three matrix products, all in the forward pass, for one chunk of
tokens after another. One buffer stores the logits of a chunk: at most an eighth of all logits, or 256 rows.
    logits  c = x[chunk]·Wᵀ + bias, by torch's library
    rows    `cross_entropy_rows` computes the loss of each row of c and overwrites the row with its gradient g
    sums    dx[chunk] = g·W,  dW += gᵀ·x[chunk],  dbias += Σ g, by torch's library
    dW and dbias are rounded to their format once per chunk, about ten times. The backward pass multiplies the gradients
    in place by the incoming gradient, or leaves them as they are if it is 1. The backward pass can therefore run only
    once.

Losses without a reduction use the first method in the forward pass and the second in the backward pass, where a fourth
product computes the logits again.

On a GPU, `linear_losses` multiplies fp32 operands in tf32. torch's library follows float32_matmul_precision. Sums are
in fp32. There are no atomic additions, so results repeat exactly.
Shapes: t tokens, D hidden, V vocabulary; x [t, D], W [V, D], bias [V], targets [t].
Gradients in the forward pass: Hsu et al., Liger Kernel, arXiv 2410.10989.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch
from llmbench.kernels.loss.cross_entropy import (
    Options,
    check_targets,
    compute_rows,
    count_targets,
    random_options,
    random_targets,
    reduce_losses,
)
from llmbench.kernels.loss.cross_entropy import reference as cross_entropy_reference
from llmbench.kernels.loss.tiles import linear_losses
from llmbench.kernels.numeric import narrowed
from llmbench.kernels.products import multiply_into

__all__ = ["KERNEL", "linear_cross_entropy", "reference"]


# == Kernels ==


@triton.jit
def scaled_in_place(values, by, factor, count, BLOCK: tl.constexpr):
    """Multiply `values` by `by` · factor in place. If this product is 1, no values are read."""
    scale = tl.load(by) * factor
    if scale != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + at, mask=at < count, other=0.0).to(tl.float32) * scale
        tl.store(values + at, narrowed(value, values.dtype.element_ty), mask=at < count)


# == Configurations and launcher ==


def scaling_configurations() -> list[Config]:
    """Return the candidate configurations. Memory bandwidth is the limit. A thread has 16 values, which are two 16-byte
    loads in bf16, and about 40 registers."""
    return [
        Config(BLOCK=4096, num_warps=8, note="16 values per thread"),
        Config(BLOCK=2048, num_warps=8, note="8 values per thread"),
    ]


class Gradients(NamedTuple):
    """Whether the gradients of x, weight and bias are needed."""

    x: bool
    weight: bool
    bias: bool


def rows_per_chunk(tokens: int) -> int:
    """Return the rows of a chunk: whole tiles of 128 rows, less than an eighth of the tokens, but at least 256 rows.

    The chunk and the other memory per token then take at most an eighth of the memory of all logits. For each chunk,
    the products read W twice, read dW once, and write dW once. In bf16, this traffic is 8·V·D bytes. The products have
    6·V·D FLOPs per row. So 256 rows have 192 FLOPs per byte, the ridge point of an H200.
    """
    return max(256, (tokens - 1) // 1024 * 128)


def chunked_gradients(
    weights: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    options: Options,
    needed: Gradients,
    *,
    losses: Tensor | None = None,
    lift: float = 1.0,
    damp: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of Σ weights [t] · losses, one chunk after another. Return dx · lift, dweight · lift · damp
    and dbias · lift · damp. `gradient_scales` explains these factors.

    A gradient that is not needed is empty. `losses` [t] are filled if given.
    """
    (tokens, hidden), vocabulary = x.shape, weight.shape[0]
    rows = min(tokens, rows_per_chunk(tokens))
    padded = triton.cdiv(vocabulary, 64) * 64  # every row begins at a multiple of 128 bytes
    dx = empty(tokens if needed.x else 0, hidden, like=x)
    dweight = empty(vocabulary if needed.weight else 0, hidden, like=weight)
    dbias = empty(1, vocabulary if needed.bias else 0, like=weight)
    if not tokens:
        return dx, dweight.zero_(), dbias[0].zero_()
    buffer = empty(rows, padded, like=x)
    buffer[:, vocabulary:].zero_()  # kernels load the padding too, so it must not be uninitialised
    ones = x.new_ones(1, rows) if needed.bias else None
    for start in range(0, tokens, rows):
        part = slice(start, min(tokens, start + rows))
        size = part.stop - start
        logits = buffer[:size, :vocabulary]
        multiply_into(logits, x[part], weight.T, plus=bias)
        compute_rows(
            logits,
            targets[part],
            options,
            losses=None if losses is None else losses[part],
            weights=weights[part],
            gradient=logits,
            lift=lift,
            padded=padded,
        )
        if needed.x:
            multiply_into(dx[part], logits, weight)
        if needed.weight:
            multiply_into(dweight, logits.T, x[part], plus=dweight if start else None, alpha=damp)
        if ones is not None:
            multiply_into(dbias, ones[:, :size], logits, plus=dbias if start else None, alpha=damp)
    return dx, dweight, dbias[0]


def gradient_scales(dtype: torch.dtype, tokens: int, *, mean: bool) -> tuple[float, float]:
    """Return `lift` and `damp`, the factors by which the stored gradients are multiplied. Outside fp16, both are 1.

    In fp16, both are powers of two:

    - `lift` multiplies all gradients. For a mean, it is about t, because a mean divides the gradients by t and they
      would underflow. For a sum, it is 1.
    - `damp` also multiplies dweight and dbias. It is about 1/√t, because both are sums over t tokens and could
      overflow.
    """
    if dtype != torch.float16:
        return 1.0, 1.0
    power = math.ceil(math.log2(max(1, tokens)))
    return (2.0**power if mean else 1.0), 2.0 ** -(power // 2)


def rescale(gradients: tuple[Tensor, Tensor, Tensor], by: Tensor, lift: float, damp: float) -> None:
    """Multiply dx, dweight and dbias in place by `by` [], and divide them by the factors of `gradient_scales`."""
    config = choose("scaled_in_place", scaling_configurations())
    for gradient, factor in zip(gradients, (1 / lift, 1 / (lift * damp), 1 / (lift * damp)), strict=True):
        count = gradient.numel()
        if count:
            launch(scaled_in_place, (triton.cdiv(count, config["BLOCK"]),), config, gradient, by, factor, count)


# == Torch op ==


@torch.library.custom_op("llmbench::linear_losses", mutates_args=())
def _losses(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    logit_scale: float,
    soft_cap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    """Return the losses [t] in fp32, without logits in memory."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    return linear_losses(x, weight, targets.contiguous(), bias, options)


@_losses.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.float32)


@torch.library.custom_op("llmbench::linear_losses_backward", mutates_args=())
def _losses_backward(
    dlosses: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    logit_scale: float,
    soft_cap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
    for_x: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dweight and dbias; a gradient that is not needed is empty."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    return chunked_gradients(
        dlosses, x, weight, targets.contiguous(), bias, options, Gradients(for_x, for_weight, for_bias)
    )


@_losses_backward.register_fake
def _(dlosses: Any, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(x, weight, options)


def _empty_gradients(x: Tensor, weight: Tensor, options: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return unwritten gradients for fake tensors. `options` ends with the three flags of `Gradients`."""
    tokens, (vocabulary, hidden) = x.shape[0], weight.shape
    needed = Gradients(*options[-3:])
    return (
        x.new_empty(tokens if needed.x else 0, hidden),
        weight.new_empty(vocabulary if needed.weight else 0, hidden),
        weight.new_empty(vocabulary if needed.bias else 0),
    )


@torch.library.custom_op("llmbench::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    divisor: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    logit_scale: float,
    soft_cap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
    mean: bool,
    for_x: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Σ losses / divisor, and its gradients times `gradient_scales`. `divisor` [] is the number of tokens that
    are not ignored for a mean, and 1 for a sum."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    tokens = len(x)
    losses = empty(tokens, like=x, dtype=torch.float32)
    lift, damp = gradient_scales(x.dtype, tokens, mean=mean)
    gradients = chunked_gradients(
        divisor.reciprocal().expand(tokens),
        x,
        weight,
        targets.contiguous(),
        bias,
        options,
        Gradients(for_x, for_weight, for_bias),
        losses=losses,
        lift=lift,
        damp=damp,
    )
    return losses.sum() / divisor, *gradients


@_linear_cross_entropy.register_fake
def _(divisor: Tensor, x: Tensor, weight: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return divisor.new_empty(()), *_empty_gradients(x, weight, options)


@torch.library.custom_op("llmbench::linear_cross_entropy_backward", mutates_args=("dx", "dweight", "dbias"))
def _linear_cross_entropy_backward(
    dloss: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor, tokens: int, vocabulary: int, mean: bool
) -> None:
    """Multiply the stored gradients by `dloss` [] in place, and divide them by their scales."""
    rescale((dx, dweight, dbias), dloss, *gradient_scales(dx.dtype, tokens, mean=mean))


@_linear_cross_entropy_backward.register_fake
def _(*_: Any) -> None:
    return None


@register_flop_formula(torch.ops.llmbench.linear_losses)
def _losses_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.llmbench.linear_losses_backward)
def _losses_backward_flops(dlosses: Any, x: torch.Size, weight: torch.Size, *rest: Any, **_: Any) -> int:
    """Count the products of the gradients. The second computation of the logits does not count."""
    needed = Gradients(*rest[-3:])
    return 2 * x[0] * weight[0] * weight[1] * (needed.x + needed.weight)


@register_flop_formula(torch.ops.llmbench.linear_cross_entropy)
def _flops(divisor: Any, x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """Count the product of the logits. The products of the gradients count in the backward pass, as in other ops."""
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.llmbench.linear_cross_entropy_backward)
def _backward_flops(
    dloss: Any, dx: torch.Size, dweight: torch.Size, dbias: Any, tokens: int, vocabulary: int, *_: Any, **__: Any
) -> int:
    return 2 * (dx.numel() * vocabulary + dweight.numel() * tokens)


def _save_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.cap, ctx.z, ctx.smoothing, ctx.ignored = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_losses(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
    options = ctx.scale, ctx.cap, ctx.z, ctx.smoothing, ctx.ignored
    for_x, for_weight, _, for_bias = ctx.needs_input_grad[:4]
    needed = Gradients(for_x, for_weight, for_bias)
    gradients = _losses_backward(dlosses, *ctx.saved_tensors, *options, *needed)
    dx, dweight, dbias = (grad if need else None for grad, need in zip(gradients, needed, strict=True))
    return dx, dweight, None, dbias, *[None] * len(options)


_losses.register_autograd(_backward_of_losses, setup_context=_save_operands)


class _ReducedLoss(torch.autograd.Function):
    """The autograd function of `_linear_cross_entropy`.

    With register_autograd, the stored gradients would be results of the op, and a caller could keep them. No caller may
    keep them, because the backward pass multiplies the stored gradients in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rest: tuple[Any, ...]) -> Tensor:
        divisor, targets, options, mean, needed = rest
        ctx.tokens, ctx.vocabulary, ctx.mean, ctx.needed = x.shape[0], weight.shape[0], mean, needed
        bias = None if bias is None else bias.detach()
        loss, *gradients = _linear_cross_entropy(
            divisor, x.detach(), weight.detach(), targets, bias, *options, mean, *needed
        )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        _linear_cross_entropy_backward(dloss, *gradients, ctx.tokens, ctx.vocabulary, ctx.mean)
        return *(grad if need else None for grad, need in zip(gradients, ctx.needed, strict=True)), None


# == Public op ==


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy in fp32 of the logits x·Wᵀ + bias, from x [..., D], weight [V, D] and bias [V].

    x, weight and bias have the same dtype: fp16, bf16 or fp32. Scale and cap apply after the bias. targets [...] are
    int64 or int32, each in [0, V) or ignore_index. Other targets give NaN, because a check on the host would wait for
    the GPU. `reduction` is "mean" over the tokens that are not ignored, "sum" or "none". The backward pass of a mean or
    a sum can run once; a second one raises torch's RuntimeError.

    Raises ValueError for shapes, dtypes and options that do not match.
    """
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    options.check(reduction)
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or not weight.numel():
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: they must be [..., D] and [V, D]")
    if x.dtype != weight.dtype or x.dtype not in KERNEL.dtypes:
        raise ValueError(f"x {x.dtype} and weight {weight.dtype}: both must have one dtype: fp16, bf16 or fp32")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias {tuple(bias.shape)} {bias.dtype}: it must be ({weight.shape[0]},) {weight.dtype}")
    flat = check_targets(targets, x.shape[:-1])
    rows = x.reshape(-1, x.shape[-1])
    needed = Gradients(x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
    if reduction == "none" or not (torch.is_grad_enabled() and any(needed)):
        losses = _losses(rows, weight, flat, bias, *options)
        return reduce_losses(losses, targets, ignore_index, reduction)
    mean = reduction == "mean"
    tokens = count_targets(flat, ignore_index)
    divisor = tokens if mean else torch.ones_like(tokens)
    loss: Tensor = _ReducedLoss.apply(rows, weight, bias, (divisor, flat, options, mean, needed))
    return loss


# == Reference ==


def reference(x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """Compute the loss of a head in plain torch, with all logits in memory."""
    return cross_entropy_reference(F.linear(x, weight, bias), targets, **options)


# == Cases and cost ==


class Case(NamedTuple):
    """The number of tokens, the widths, and the options by name. `ignored`: the number of tokens without a loss."""

    tokens: int
    hidden: int
    vocabulary: int
    reduction: str = "mean"
    bias: bool = False
    ignored: int = 0
    logit_scale: float = 1.0
    soft_cap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def inputs(case: Case, random: Random) -> Inputs:
    """Return x, weight and targets. The logits have a standard deviation of 3, like those of a model."""
    return {
        "x": random.normal(case.tokens, case.hidden),
        "weight": random.normal(case.vocabulary, case.hidden, scale=3 * case.hidden**-0.5),
        "targets": random_targets(case.tokens, case.vocabulary, case.ignored, random),
        "bias": random.normal(case.vocabulary) if case.bias else None,
        **{name: getattr(case, name) for name in ("reduction", *Options._fields[:-1])},
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return 2·t·D·V FLOPs for the forward pass, and twice as many for the backward pass. The bytes include each
    operand once, and each loss or gradient once. Targets are int64."""
    flops = 2 * case.tokens * case.hidden * case.vocabulary
    weights = (case.hidden + case.bias) * case.vocabulary
    operands = (case.tokens * case.hidden + weights) * dtype.itemsize
    losses = 4 * case.tokens if case.reduction == "none" else 4
    targets = 8 * case.tokens
    return Cost(flops, operands + targets + losses, 2 * flops, 2 * operands + targets + losses)


def random_case(draw: Draw) -> Case:
    """Return a random case. Some cases have more tokens than a chunk has rows."""
    tokens = 300 if draw.chance(0.05) else draw.size(40, least=0)
    options = random_options(draw, tokens)
    return Case(tokens, hidden=draw.size(100), vocabulary=draw.size(600), bias=draw.chance(), **options)


KERNEL = Kernel(
    name="linear_cross_entropy",
    summary="loss and gradients of a head without its logits in memory",
    run=linear_cross_entropy,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(7, 40, 300, ignored=2),
        Case(5, 37, 70, bias=True, logit_scale=0.5, soft_cap=5.0),
        Case(8, 16, 33, "sum", z_loss=1e-2, label_smoothing=0.1, bias=True),
        Case(9, 64, 290, "none", ignored=1, soft_cap=5.0),
        Case(6, 21, 40, "none", bias=True, logit_scale=2.0, z_loss=1e-2, label_smoothing=0.1),
        Case(3, 16, 40, ignored=3, bias=True),
        Case(4, 54, 1, "none"),  # the loss is 0, the difference of two equal terms
    ],
    random_case=random_case,
    shapes=[Case(16384, 4096, 128256), Case(16384, 3584, 256000, "none", soft_cap=30.0)],  # Llama 3 8B, Gemma 2 9B
    differentiable=("x", "weight", "bias"),
)
