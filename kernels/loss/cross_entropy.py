"""Cross-entropy over logits, forward and backward.

    l = cap · tanh(scale · logits / cap)      (l = scale · logits without a cap)      z = log Σ exp(l)
    loss = z - (1 - ε) · l[target] - ε · mean(l) + ζ · z²      0 where target = ignore_index
    dloss/dl = (1 + 2ζz) · softmax(l) - (1 - ε) · [target] - ε / V

ε is label smoothing, ζ the weight of the z-loss. Backward reads the logits again, with two numbers a row kept.
A target outside [0, V) that is not ignore_index gives NaN, in the loss and in its gradients.

Shapes: t tokens, V vocabulary; logits [t, V]. Arithmetic and losses in fp32.
Smoothing: Szegedy et al., arXiv 1512.00567; z-loss: Chowdhery et al. (PaLM), 2204.02311, section 5; the soft cap:
Gemma 2, 2408.00118.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import empty
from llmbench.kernels.loss.rows import Options, rows_of_loss

__all__ = ["KERNEL", "checked_targets", "counted", "cross_entropy", "random_targets", "reduced", "reference"]


def _rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 else logits.contiguous()


@torch.library.custom_op("llmbench::cross_entropy", mutates_args=())
def _cross_entropy(
    logits: Tensor,
    targets: Tensor,
    logit_scale: float,
    soft_cap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """losses [t] and stats [2, t], in fp32."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    losses = empty(len(logits), like=logits, dtype=torch.float32)
    stats = empty(2, len(logits), like=logits, dtype=torch.float32)
    rows_of_loss(_rows(logits), targets.contiguous(), options, losses=losses, stats=stats)
    return losses, stats


@_cross_entropy.register_fake
def _(logits: Tensor, targets: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    tokens = logits.shape[0]
    return logits.new_empty(tokens, dtype=torch.float32), logits.new_empty(2, tokens, dtype=torch.float32)


@torch.library.custom_op("llmbench::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(
    dlosses: Tensor,
    logits: Tensor,
    targets: Tensor,
    stats: Tensor,
    logit_scale: float,
    soft_cap: float | None,
    z_loss: float,
    label_smoothing: float,
    ignore_index: int,
) -> Tensor:
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    gradient = empty(*logits.shape, like=logits)
    given, wanted = _rows(logits), targets.contiguous()
    rows_of_loss(given, wanted, options, stats=stats, known=True, weights=dlosses, gradient=gradient)
    return gradient


@_cross_entropy_backward.register_fake
def _(dlosses: Tensor, logits: Tensor, targets: Tensor, stats: Tensor, *options: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, *ctx.options = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dlosses: Tensor, dstats: None) -> tuple[Tensor | None, ...]:
    return _cross_entropy_backward(dlosses, *ctx.saved_tensors, *ctx.options), None, *[None] * len(ctx.options)


_cross_entropy.register_autograd(_backward, setup_context=_keep)


def counted(targets: Tensor, ignore_index: int) -> Tensor:
    """How many tokens have a loss, as a tensor without dimensions in fp32."""
    return (targets != ignore_index).sum().to(torch.float32)


def reduced(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """losses [t] as they are, their sum, or their sum by the number of tokens that are not ignored (NaN for none)."""
    if reduction == "none":
        return losses.view(targets.shape)
    return losses.sum() / counted(targets, ignore_index) if reduction == "mean" else losses.sum()


def checked_targets(targets: Tensor, shape: torch.Size) -> Tensor:
    """targets as [t]. Raises ValueError where they are not one integer a token."""
    if targets.shape != shape or targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"targets {tuple(targets.shape)} {targets.dtype}: {tuple(shape)} in int64 or int32 is needed")
    return targets.reshape(-1)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The loss in fp32 of logits [..., V] in fp16, bf16 or fp32 and targets [...] in int64 or int32.

    Raises ValueError for shapes, dtypes and options that do not fit. A target outside [0, V) that is not ignore_index
    gives NaN: to look would wait for the GPU.
    """
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    options.check(reduction)
    if logits.dim() < 1 or not logits.shape[-1] or logits.dtype not in KERNEL.dtypes:
        raise ValueError(f"logits {tuple(logits.shape)} {logits.dtype}: [..., V] in fp16, bf16 or fp32 is needed")
    flat = checked_targets(targets, logits.shape[:-1])
    losses, _ = _cross_entropy(logits.reshape(-1, logits.shape[-1]), flat, *options)
    return reduced(losses, targets, ignore_index, reduction)


def reference(
    logits: Tensor,
    targets: Tensor,
    *,
    logit_scale: float = 1.0,
    soft_cap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The same in plain torch, from logits widened to fp32."""
    flat = targets.reshape(-1).long()
    logits = logits.reshape(-1, logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    smoothed = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    losses = F.cross_entropy(logits, flat, reduction="none", **smoothed)  # type: ignore[arg-type]
    losses = losses + z_loss * logits.logsumexp(-1).square() * (flat != ignore_index)
    if reduction == "none":
        return losses.view(targets.shape)
    return losses.sum() / (flat != ignore_index).sum() if reduction == "mean" else losses.sum()


class Case(NamedTuple):
    """`ignored` of the tokens have no loss; the rest are the options' names."""

    tokens: int
    vocabulary: int
    ignored: int = 0
    reduction: str = "mean"
    logit_scale: float = 1.0
    soft_cap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def random_targets(tokens: int, vocabulary: int, ignored: int, random: Random) -> Tensor:
    """Among them the first and the last token of the vocabulary; `ignored` of them are -100."""
    targets = random.integers(0, vocabulary, tokens)
    targets[:1], targets[1:2] = vocabulary - 1, 0
    targets[tokens - ignored :] = -100
    return targets


def inputs(case: Case, random: Random) -> Inputs:
    """Logits that spread over a few units, as a model's do."""
    return {
        "logits": random.normal(case.tokens, case.vocabulary, scale=3.0),
        "targets": random_targets(case.tokens, case.vocabulary, case.ignored, random),
        **{name: getattr(case, name) for name in ("reduction", *Options._fields[:-1])},
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """No matrix product. Logits are read in each pass and their gradient is written; targets are int64."""
    logits = case.tokens * case.vocabulary * dtype.itemsize
    out = 4 * case.tokens if case.reduction == "none" else 4
    targets = 8 * case.tokens
    return Cost(flops=0, bytes=logits + targets + out, backward_bytes=2 * logits + targets + out)


KERNEL = Kernel(
    name="cross_entropy",
    summary="loss of given logits: soft-cap, z-loss, smoothing",
    run=cross_entropy,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 37, ignored=2),
        Case(3, 300, reduction="none", soft_cap=5.0, logit_scale=0.5),
        Case(4, 1000, ignored=1, reduction="sum", z_loss=1e-2, label_smoothing=0.1),
    ],
    shapes=[Case(16384, 128256), Case(16384, 256000, soft_cap=30.0)],  # Llama 3, Gemma 2
    differentiable=("logits",),
)
