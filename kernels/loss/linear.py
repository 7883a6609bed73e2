"""The loss of a model's head without its logits: cross-entropy of x·Wᵀ + bias, forward and backward.

Options and their formulas are those of `cross_entropy`. There are two ways:
    a mean or a sum with gradients (`linear_gradients`): three products, all in the forward pass, and a buffer of an
    eighth of the logits. Backward multiplies the gradients by what comes in, in place, and leaves them where that is 1:
    it can run once only.
    losses alone (`linear_losses`): one product, whose tiles never leave the multiprocessor. Unreduced losses have
    gradients too: the logits are made again in the backward pass, a fourth product.

fp32 operands: tf32 on a GPU in `linear_losses`; by torch's library as its float32_matmul_precision says.
Shapes: t tokens, D hidden, V vocabulary; x [t, D], W [V, D], bias [V], targets [t].
Liger Kernel: Hsu et al., arXiv 2410.10989; Cut Your Losses: Wijmans et al., arXiv 2411.09009.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import empty
from llmbench.kernels.loss.cross_entropy import checked_targets, counted, random_targets, reduced
from llmbench.kernels.loss.cross_entropy import reference as cross_entropy_reference
from llmbench.kernels.loss.linear_backward import Wanted, gradients, lifts, rescale
from llmbench.kernels.loss.linear_forward import linear_losses
from llmbench.kernels.loss.rows import Options

__all__ = ["KERNEL", "linear_cross_entropy", "reference"]


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
    """losses [t] in fp32, without logits."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    return linear_losses(x, weight, targets.contiguous(), bias, options)


@_losses.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
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
    """dx, dweight and dbias, empty where not wanted."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    return gradients(dlosses, x, weight, targets.contiguous(), bias, options, Wanted(for_x, for_weight, for_bias))


@_losses_backward.register_fake
def _(
    dlosses: Tensor, x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _held(x, weight, options)


def _held(x: Tensor, weight: Tensor, options: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients as they are held: `options` ends with which are wanted."""
    tokens, (vocabulary, hidden) = x.shape[0], weight.shape
    wanted = Wanted(*options[-3:])
    return (
        x.new_empty(tokens if wanted.x else 0, hidden),
        weight.new_empty(vocabulary if wanted.weight else 0, hidden),
        weight.new_empty(vocabulary if wanted.bias else 0),
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
    """Σ losses / divisor [], and its gradients as `lifts` holds them; `divisor` [] is 1, or a `mean`'s tokens."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    tokens = len(x)
    losses = empty(tokens, like=x, dtype=torch.float32)
    lift, damp = lifts(x.dtype, tokens, mean=mean)
    held = gradients(
        divisor.reciprocal().expand(tokens),
        x,
        weight,
        targets.contiguous(),
        bias,
        options,
        Wanted(for_x, for_weight, for_bias),
        losses=losses,
        lift=lift,
        damp=damp,
    )
    return losses.sum() / divisor, *held


@_linear_cross_entropy.register_fake
def _(
    divisor: Tensor, x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return divisor.new_empty(()), *_held(x, weight, options)


@torch.library.custom_op("llmbench::linear_cross_entropy_backward", mutates_args=("dx", "dweight", "dbias"))
def _linear_cross_entropy_backward(
    dloss: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor, tokens: int, vocabulary: int, mean: bool
) -> None:
    """Multiply the held gradients by `dloss` [], and take their lift away."""
    rescale((dx, dweight, dbias), dloss, *lifts(dx.dtype, tokens, mean=mean))


@_linear_cross_entropy_backward.register_fake
def _(dloss: Tensor, dx: Tensor, dweight: Tensor, dbias: Tensor, tokens: int, vocabulary: int, mean: bool) -> None:
    return None


@register_flop_formula(torch.ops.llmbench.linear_losses)
def _losses_flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.llmbench.linear_losses_backward)
def _losses_backward_flops(dlosses: torch.Size, x: torch.Size, weight: torch.Size, *rest: Any, **_: Any) -> int:
    """The logits that are made again are no work of the loss."""
    wanted = Wanted(*rest[-3:])
    return 2 * x[0] * weight[0] * weight[1] * (wanted.x + wanted.weight)


@register_flop_formula(torch.ops.llmbench.linear_cross_entropy)
def _flops(divisor: torch.Size, x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    """The products of the gradients are counted with the backward pass, where autograd looks for them."""
    return 2 * x[0] * weight[0] * weight[1]


@register_flop_formula(torch.ops.llmbench.linear_cross_entropy_backward)
def _backward_flops(
    dloss: torch.Size,
    dx: torch.Size,
    dweight: torch.Size,
    dbias: torch.Size,
    tokens: int,
    vocabulary: int,
    *_: Any,
    **__: Any,
) -> int:
    return 2 * (dx.numel() * vocabulary + dweight.numel() * tokens)


def _keep_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.cap, ctx.z, ctx.smoothing, ctx.ignored = inputs
    ctx.save_for_backward(*tensors)


def _backward_of_losses(ctx: Any, dlosses: Tensor) -> tuple[Tensor | None, ...]:
    options = ctx.scale, ctx.cap, ctx.z, ctx.smoothing, ctx.ignored
    for_x, for_weight, _, for_bias = ctx.needs_input_grad[:4]
    wanted = Wanted(for_x, for_weight, for_bias)
    held = _losses_backward(dlosses, *ctx.saved_tensors, *options, *wanted)
    dx, dweight, dbias = (grad if want else None for grad, want in zip(held, wanted, strict=True))
    return dx, dweight, None, dbias, *[None] * len(options)


_losses.register_autograd(_backward_of_losses, setup_context=_keep_operands)


class _Reduced(torch.autograd.Function):
    """What joins `_linear_cross_entropy` to its backward op. Held gradients are no results of it, as they would be by
    register_autograd: nobody may keep what the backward pass multiplies in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rest: tuple[Any, ...]) -> Tensor:
        divisor, targets, options, mean, wanted = rest
        ctx.tokens, ctx.vocabulary, ctx.mean, ctx.wanted = x.shape[0], weight.shape[0], mean, wanted
        bias = None if bias is None else bias.detach()
        loss, *held = _linear_cross_entropy(
            divisor, x.detach(), weight.detach(), targets, bias, *options, mean, *wanted
        )
        ctx.save_for_backward(*held)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors
        _linear_cross_entropy_backward(dloss, *held, ctx.tokens, ctx.vocabulary, ctx.mean)
        return *(grad if want else None for grad, want in zip(held, ctx.wanted, strict=True)), None


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
    """The loss in fp32 of x [..., D] times weight [V, D], with bias [V] before the scale and the cap.

    All of one dtype, fp16, bf16 or fp32; targets [...] in int64 or int32, each in [0, V) or ignore_index: another
    gives NaN, for to look would wait for the GPU. reduction "mean" (over what is not ignored), "sum" or "none".
    A mean or a sum that has gradients can go backward once: its second pass raises torch's RuntimeError.

    Raises ValueError for shapes, dtypes and options that do not fit.
    """
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    options.check(reduction)
    if x.dim() < 1 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or not weight.numel():
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: [..., D] and [V, D] are needed")
    if x.dtype != weight.dtype or x.dtype not in KERNEL.dtypes:
        raise ValueError(f"x {x.dtype} and weight {weight.dtype}: fp16, bf16 or fp32 alike are needed")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(f"bias {tuple(bias.shape)} {bias.dtype}: ({weight.shape[0]},) {weight.dtype} is needed")
    flat = checked_targets(targets, x.shape[:-1])
    rows = x.reshape(-1, x.shape[-1])
    wanted = Wanted(x.requires_grad, weight.requires_grad, bias is not None and bias.requires_grad)
    if reduction == "none" or not (torch.is_grad_enabled() and any(wanted)):
        losses = _losses(rows, weight, flat, bias, *options)
        return reduced(losses, targets, ignore_index, reduction)
    mean = reduction == "mean"
    tokens = counted(flat, ignore_index)
    divisor = tokens if mean else torch.ones_like(tokens)
    loss: Tensor = _Reduced.apply(rows, weight, bias, (divisor, flat, options, mean, wanted))
    return loss


def reference(x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
    """The same in plain torch, which holds all logits and more."""
    return cross_entropy_reference(F.linear(x, weight, bias), targets, **options)


class Case(NamedTuple):
    """`ignored` of the tokens have no loss; the options by their names."""

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
    """Logits that spread over a few units, as a model's do."""
    return {
        "x": random.normal(case.tokens, case.hidden),
        "weight": random.normal(case.vocabulary, case.hidden, scale=3 * case.hidden**-0.5),
        "targets": random_targets(case.tokens, case.vocabulary, case.ignored, random),
        "bias": random.normal(case.vocabulary) if case.bias else None,
        **{name: getattr(case, name) for name in ("reduction", *Options._fields[:-1])},
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """2·t·D·V, and twice that backward. Bytes: operands in, losses or gradients out, each once; targets are int64."""
    flops = 2 * case.tokens * case.hidden * case.vocabulary
    weights = (case.hidden + case.bias) * case.vocabulary
    operands = (case.tokens * case.hidden + weights) * dtype.itemsize
    losses = 4 * case.tokens if case.reduction == "none" else 4
    targets = 8 * case.tokens
    return Cost(flops, operands + targets + losses, 2 * flops, 2 * operands + targets + losses)


KERNEL = Kernel(
    name="linear_cross_entropy",
    summary="a head's loss and gradients without its logits",
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
    ],
    shapes=[Case(16384, 4096, 128256), Case(16384, 3584, 256000, "none", soft_cap=30.0)],  # Llama 3 8B, Gemma 2 9B
    differentiable=("x", "weight", "bias"),
)
