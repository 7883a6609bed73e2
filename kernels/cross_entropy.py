"""Cross-entropy over logits, forward and backward; and the rows of logits that `linear_cross_entropy` makes.

    l = cap · tanh(scale · logits / cap)      (l = scale · logits without a cap)      z = log Σ exp(l)
    loss = z - (1 - ε) · l[target] - ε · mean(l) + ζ · z²      0 where target = ignore_index
    dloss/dl = (1 + 2ζz) · softmax(l) - (1 - ε) · [target] - ε / V

ε is label smoothing, ζ the weight of the z-loss. A program reads one row, once for max and sum (each lane its own, so
that no step waits for another warp) and, for the gradient, once more from its end, where the cache still holds it.
A target outside [0, V) that is not ignore_index gives NaN, in the loss and in its gradients.

Shapes: t tokens, V vocabulary; logits [t, V]. Arithmetic and losses in fp32.
Online softmax: Milakov and Gimelshein, arXiv 1805.02867; smoothing: Szegedy et al., 1512.00567; z-loss: Chowdhery et
al. (PaLM), 2204.02311, section 5; the soft cap: Gemma 2, 2408.00118.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from llmbench.kernels.attention_tiles import capped
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch
from llmbench.kernels.products import narrowed

__all__ = [
    "KERNEL",
    "REDUCTIONS",
    "Options",
    "cross_entropy",
    "logit",
    "reduced",
    "reference",
    "rows_of_loss",
    "token_loss",
]

REDUCTIONS = ("mean", "sum", "none")
LOG2E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(-1e30)  # below every finite logit, and no infinity, whose difference from itself is NaN


class Options(NamedTuple):
    """What is done to logits before the loss, and added to it."""

    logit_scale: float = 1.0
    soft_cap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_index: int = -100

    @property
    def arguments(self) -> tuple[float, float, float, float, int]:
        """As the kernels take them: the cap a number, which CAPPED says to heed."""
        return self.logit_scale, self.soft_cap or 1.0, self.z_loss, self.label_smoothing, self.ignore_index

    @property
    def constants(self) -> dict[str, bool]:
        """What the kernels are compiled for."""
        return {"CAPPED": self.soft_cap is not None, "SMOOTHED": self.label_smoothing > 0}

    def check(self, reduction: str) -> None:
        """Raise ValueError for what has no meaning."""
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction {reduction!r}: there is {', '.join(REDUCTIONS)}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap {self.soft_cap} is not above 0")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} is outside 0 to 1")


@triton.jit
def logit_and_slope(raw, scale, cap, CAPPED: tl.constexpr, EXACT: tl.constexpr):
    """l in fp32 and dl/draw; the slope costs nothing where it is not used."""
    value = raw.to(tl.float32) * scale
    slope = scale
    if CAPPED:
        bend = capped(value / cap, EXACT)
        value = bend * cap
        slope = (1.0 - bend * bend) * scale
    return value, slope


@triton.jit
def logit(raw, scale, cap, CAPPED: tl.constexpr, EXACT: tl.constexpr):
    """l alone."""
    value, _ = logit_and_slope(raw, scale, cap, CAPPED, EXACT)
    return value


@triton.jit
def token_loss(target, top, log_sum, at_target, mean, z_loss, smoothing, ignored, SMOOTHED: tl.constexpr):
    """The loss, with z = top + log_sum in two parts: top - l[target] loses no digits."""
    loss = (top - at_target) + log_sum
    if SMOOTHED:
        loss += (at_target - mean) * smoothing
    z = top + log_sum
    return tl.where(target == ignored, 0.0, loss + z * z * z_loss)


@triton.jit
def cross_entropy_rows(
    logits,
    targets,
    losses,
    stats,
    weights,
    gradient,
    logits_row,
    gradient_row,
    weights_step,
    tokens,
    vocabulary,
    width,
    lift,
    scale,
    cap,
    z_loss,
    smoothing,
    ignored,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    KNOWN: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its loss, its stats [2, t] (the largest logit; the log of the sum of exp(l - largest)) and its gradient
    times weight · lift, each where it is given; KNOWN: stats are read. `gradient` may be `logits`.

    `width` columns can be read and written, V of them are logits: a padded row is loaded in whole vectors."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    logits += row * logits_row
    target = tl.load(targets + row)
    valid = (target >= 0) & (target < vocabulary)
    lane = tl.arange(0, BLOCK)
    if KNOWN:
        top = tl.load(stats + row)
        log_sum = tl.load(stats + tokens + row)
    else:
        chosen = tl.load(logits + target, mask=valid, other=float("nan"))  # before the gradient may overwrite it
        at_target = logit(chosen, scale, cap, CAPPED, EXACT)
        tops = tl.full([BLOCK], LOWEST, tl.float32)
        sums = tl.zeros([BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, tl.where(target == ignored, 0, width), BLOCK):
            column = start + lane
            raw = tl.load(logits + column, mask=column < width, other=0.0)
            value = logit(raw, scale, cap, CAPPED, EXACT)
            value = tl.where(column < vocabulary, value, float("-inf"))
            higher = tl.maximum(tops, value)
            sums = sums * tl.exp2((tops - higher) * LOG2E) + tl.exp2((value - higher) * LOG2E)
            tops = higher
            if SMOOTHED:
                total += tl.where(column < vocabulary, value, 0.0)
        top = tl.max(tops, 0)
        sum_exp = tl.sum(sums * tl.exp2((tops - top) * LOG2E), 0)
        top = tl.where(target == ignored, 0.0, top)  # nothing was read there
        log_sum = tl.log(tl.where(target == ignored, 1.0, sum_exp))
        if losses is not None:
            mean = tl.sum(total, 0) / vocabulary
            loss = token_loss(target, top, log_sum, at_target, mean, z_loss, smoothing, ignored, SMOOTHED)
            tl.store(losses + row, loss)
        if stats is not None:
            tl.store(stats + row, top)
            tl.store(stats + tokens + row, log_sum)
    if gradient is not None:
        gradient += row * gradient_row
        weight = tl.load(weights + row * weights_step) * lift
        weight = tl.where(valid, weight, float("nan"))
        pull = (top + log_sum) * z_loss * 2.0 + 1.0
        blocks = tl.cdiv(width, BLOCK)
        for step in range(blocks):
            column = (blocks - 1 - step) * BLOCK + lane
            raw = tl.load(logits + column, mask=column < width, other=0.0)
            value, slope = logit_and_slope(raw, scale, cap, CAPPED, EXACT)
            slant = tl.exp2(((value - top) - log_sum) * LOG2E) * pull - tl.where(column == target, 1.0 - smoothing, 0.0)
            if SMOOTHED:
                slant -= smoothing / vocabulary
            slant = tl.where(target == ignored, 0.0, slant * slope * weight)  # 0 whatever is in the row
            tl.store(gradient + column, narrowed(slant, gradient.dtype.element_ty), mask=column < width)


def configurations(vocabulary: int) -> list[Config]:
    """A row of 128k logits is 256 KB: 132 of them stay in the second-level cache for their second reading, the 264 of
    two blocks a multiprocessor would not. 1024 threads of 33 registers or more are one block; 32 B a thread and step
    are 32 KB on their way, and a multiprocessor's share of the bandwidth asks for 23."""
    if vocabulary <= 8192:
        block = max(256, triton.next_power_of_2(vocabulary) // 2)
        return [Config(BLOCK=block, num_warps=max(1, block // 512), note="short rows: two steps of 16 a thread")]
    return [
        Config(BLOCK=16384, num_warps=32, note="one row a multiprocessor: the second reading is of the cache"),
        Config(BLOCK=8192, num_warps=16, note="two or more rows a multiprocessor"),
        Config(BLOCK=4096, num_warps=8, note="four or more, each with fewer warps"),
    ]


def rows_of_loss(
    logits: Tensor,
    targets: Tensor,
    options: Options,
    *,
    losses: Tensor | None = None,
    stats: Tensor | None = None,
    known: bool = False,
    weights: Tensor | None = None,
    gradient: Tensor | None = None,
    lift: float = 1.0,
    padded: int | None = None,
) -> None:
    """Fill what is given of losses [t], stats [2, t] and gradient [t, V], which is times weights [t] · lift (a
    launcher). `padded`: so many columns of a row may be read, and written in its gradient."""
    tokens, vocabulary = logits.shape
    config = choose("cross_entropy_rows", configurations(vocabulary))
    launch(
        cross_entropy_rows,
        (tokens,),
        config,
        *(logits, targets, losses, stats, weights, gradient, logits.stride(0)),
        *(0 if gradient is None else gradient.stride(0), 0 if weights is None else weights.stride(0)),
        *(tokens, vocabulary, padded or vocabulary, lift, *options.arguments),
        KNOWN=known,
        EXACT=logits.dtype == torch.float32,
        **options.constants,
    )


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
