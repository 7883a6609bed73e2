"""Cross-entropy of given logits, forward and backward.

    l = cap · tanh(scale · logits / cap)      (l = scale · logits without a cap)      z = log Σ exp(l)
    loss = z - (1 - ε) · l[target] - ε · mean(l) + ζ · z²      0 if target = ignore_index
    dloss/dl = (1 + 2ζz) · softmax(l) - (1 - ε) · [target] - ε / V

ε is label smoothing, ζ the weight of the z-loss. A target that is outside [0, V) and is not ignore_index gives NaN in
the loss and in its gradients.

A program reads one row of logits. Its first loop computes the maximum and the sum. Each lane keeps its own maximum and
sum, so that no iteration waits for another warp. For the gradient, a second loop reads the row from its end to its
start, because the end is still in the cache. The gradient may overwrite the logits. The backward pass of the op reads
the logits again, and two saved numbers per row. loss/linear.py uses the same kernel, and computes the loss and the
gradient in one launch.

Shapes: t tokens, V vocabulary; logits [t, V]. Arithmetic and losses in fp32. Smoothing: Szegedy et al., arXiv
1512.00567; z-loss: Chowdhery et al. (PaLM), 2204.02311, section 5; the soft cap: Gemma 2, 2408.00118; online softmax:
Milakov and Gimelshein, 1805.02867.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch
from llmbench.kernels.numeric import LOG2E, narrowed, quick_tanh

__all__ = [
    "KERNEL",
    "LOWEST",
    "Options",
    "check_targets",
    "compute_rows",
    "count_targets",
    "cross_entropy",
    "logit",
    "random_options",
    "random_targets",
    "reduce_losses",
    "reference",
    "token_loss",
]

REDUCTIONS = ("mean", "sum", "none")
LOWEST = tl.constexpr(-1e30)  # below every finite logit, but finite, because -∞ - (-∞) is NaN


class Options(NamedTuple):
    """The options of a loss: changes of the logits before the loss, and terms that are added to it."""

    logit_scale: float = 1.0
    soft_cap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_index: int = -100

    @property
    def arguments(self) -> tuple[float, float, float, float, int]:
        """Return the options as kernel arguments. Without a cap, the cap is passed as 1, and CAPPED is false."""
        return self.logit_scale, self.soft_cap or 1.0, self.z_loss, self.label_smoothing, self.ignore_index

    @property
    def constants(self) -> dict[str, bool]:
        """Return the constexpr arguments of the kernels."""
        return {"CAPPED": self.soft_cap is not None, "SMOOTHED": self.label_smoothing > 0}

    def check(self, reduction: str) -> None:
        """Raise ValueError for an unknown reduction or an option outside its range."""
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction {reduction!r} is unknown; choose from {', '.join(REDUCTIONS)}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap {self.soft_cap} must be positive")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} must be from 0 to 1")


# == Kernels ==


@triton.jit
def logit_and_slope(raw, scale, cap, CAPPED: tl.constexpr, EXACT: tl.constexpr):
    """Return the scaled and capped logit l in fp32, and its derivative with respect to the raw logit. The compiler
    drops the derivative if it is not used."""
    value = raw.to(tl.float32) * scale
    slope = scale
    if CAPPED:
        bend = quick_tanh(value / cap, EXACT)
        value = bend * cap
        slope = (1.0 - bend * bend) * scale
    return value, slope


@triton.jit
def logit(raw, scale, cap, CAPPED: tl.constexpr, EXACT: tl.constexpr):
    """Return the scaled and capped logit l in fp32."""
    value, _ = logit_and_slope(raw, scale, cap, CAPPED, EXACT)
    return value


@triton.jit
def token_loss(target, top, log_sum, at_target, mean, z_loss, smoothing, ignored, SMOOTHED: tl.constexpr):
    """Return the loss of a token: z - l[target] with z = top + log_sum, and the terms of the options.

    z - l[target] is computed as (top - l[target]) + log_sum, because z itself is rounded and loses digits.
    """
    loss = (top - at_target) + log_sum
    if SMOOTHED:
        loss += (at_target - mean) * smoothing
    z = top + log_sum
    return tl.where(target == ignored, 0.0, loss + z * z * z_loss)


@triton.jit
def cross_entropy_rows(
    logits, targets, losses, stats, weights, gradient, logits_row, gradient_row, weights_step, tokens, vocabulary,
    width, lift, scale, cap, z_loss, smoothing, ignored,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, KNOWN: tl.constexpr, EXACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes one row: its loss, its stats, and its gradient, multiplied by the token's weight and by
    `lift`. The program writes each of these only if its tensor is given.

    stats [2, t] are the largest logit and log Σ exp(l - largest). KNOWN: the stats are read and not computed.
    `gradient` may be the same tensor as `logits`. The program reads and writes `width` columns. The first V columns are
    logits, and the other columns are padding, so that every load reads a whole vector.
    """
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
        # The target's logit is loaded here, because the gradient may overwrite it later.
        chosen = tl.load(logits + target, mask=valid, other=float("nan"))
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
        # The loop above reads no logits of an ignored token, so both stats are set to 0.
        top = tl.where(target == ignored, 0.0, top)
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
            # 0 for an ignored token, even if the row contains NaN
            slant = tl.where(target == ignored, 0.0, slant * slope * weight)
            tl.store(gradient + column, narrowed(slant, gradient.dtype.element_ty), mask=column < width)


# == Configurations and launcher ==


def configurations(vocabulary: int, itemsize: int) -> list[Config]:
    """Return the candidate configurations. A row of 128k logits in bf16 has 256 KB. With one row per multiprocessor,
    132 rows stay in the L2 cache until they are read again. With two blocks per multiprocessor, 264 rows would not.
    With 16 values per thread, a thread takes about 55 registers, so a block of 1024 threads fills a multiprocessor.
    This block has 32 KB in flight; a multiprocessor needs 23 KB in flight for its share of the bandwidth. In fp32, a
    block has half as many values and the same number of bytes."""
    if vocabulary <= 8192:
        block = max(256, triton.next_power_of_2(vocabulary) // 2)
        return [
            Config(
                BLOCK=block, num_warps=max(1, block // 512), note="short rows: two iterations of 16 values per thread"
            )
        ]
    whole = 32768 // itemsize
    return [
        Config(
            BLOCK=whole,
            num_warps=whole // 512,
            note="one row per multiprocessor, which is read again from the L2 cache",
        ),
        Config(BLOCK=whole // 2, num_warps=whole // 1024, note="two or more rows per multiprocessor"),
        Config(
            BLOCK=whole // 4,
            num_warps=whole // 2048,
            note="four or more rows per multiprocessor, with fewer warps each",
        ),
    ]


def compute_rows(
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
    """Launch `cross_entropy_rows`, which fills losses [t], stats [2, t] and gradient [t, V] if they are given.

    The gradient is multiplied by weights [t] · lift. `known`: the stats are read and not computed. `padded`: the number
    of columns that the kernel may read in a row of logits and write in a row of the gradient.
    """
    tokens, vocabulary = logits.shape
    config = choose("cross_entropy_rows", configurations(vocabulary, logits.element_size()))
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


# == Torch op ==


def _rows(logits: Tensor) -> Tensor:
    """Return the logits with unit stride along a row, copied if necessary."""
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
    """Return losses [t] and stats [2, t], in fp32."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    losses = empty(len(logits), like=logits, dtype=torch.float32)
    stats = empty(2, len(logits), like=logits, dtype=torch.float32)
    compute_rows(_rows(logits), targets.contiguous(), options, losses=losses, stats=stats)
    return losses, stats


@_cross_entropy.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
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
    """Return the gradient of the logits [t, V]."""
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    gradient = empty(*logits.shape, like=logits)
    compute_rows(
        _rows(logits), targets.contiguous(), options, stats=stats, known=True, weights=dlosses, gradient=gradient
    )
    return gradient


@_cross_entropy_backward.register_fake
def _(dlosses: Any, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, targets, *ctx.options = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dlosses: Tensor, dstats: None) -> tuple[Tensor | None, ...]:
    return _cross_entropy_backward(dlosses, *ctx.saved_tensors, *ctx.options), None, *[None] * len(ctx.options)


_cross_entropy.register_autograd(_backward, setup_context=_save)


# == Public op ==


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
    """Return the cross-entropy in fp32 of logits [..., V] in fp16, bf16 or fp32 and targets [...] in int64 or int32.

    `reduction` is "mean" over the tokens that are not ignored, "sum" or "none". Raises ValueError for shapes, dtypes
    and options that do not match. A target that is outside [0, V) and is not ignore_index gives NaN and no error,
    because a check on the host would wait for the GPU.
    """
    options = Options(logit_scale, soft_cap, z_loss, label_smoothing, ignore_index)
    options.check(reduction)
    if logits.dim() < 1 or not logits.shape[-1] or logits.dtype not in KERNEL.dtypes:
        raise ValueError(f"logits {tuple(logits.shape)} {logits.dtype}: they must be [..., V] in fp16, bf16 or fp32")
    flat = check_targets(targets, logits.shape[:-1])
    losses, _ = _cross_entropy(logits.reshape(-1, logits.shape[-1]), flat, *options)
    return reduce_losses(losses, targets, ignore_index, reduction)


def count_targets(targets: Tensor, ignore_index: int) -> Tensor:
    """Return the number of targets that are not ignored, as an fp32 tensor without dimensions."""
    return (targets != ignore_index).sum().to(torch.float32)


def reduce_losses(losses: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """Reduce losses [t]. "none" returns them, "sum" their sum, and "mean" their mean over the targets that are not
    ignored. The mean is NaN if all targets are ignored."""
    if reduction == "none":
        return losses.view(targets.shape)
    return losses.sum() / count_targets(targets, ignore_index) if reduction == "mean" else losses.sum()


def check_targets(targets: Tensor, shape: torch.Size) -> Tensor:
    """Return targets as [t]. Raises ValueError unless they are one integer per token."""
    if targets.shape != shape or targets.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"targets {tuple(targets.shape)} {targets.dtype}: they must be {tuple(shape)} in int64 or int32"
        )
    return targets.reshape(-1)


# == Reference ==


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
    """Compute the cross-entropy in plain torch, from logits in fp32 or wider."""
    flat = targets.reshape(-1).long()
    logits = logits.reshape(-1, logits.shape[-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * logit_scale
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    smoothed = {"label_smoothing": label_smoothing, "ignore_index": ignore_index}
    losses = F.cross_entropy(logits, flat, reduction="none", **smoothed)  # type: ignore[arg-type]
    # masked, because 0 times the infinite gradient of a mean over no token would be NaN
    losses = losses + (z_loss * logits.logsumexp(-1).square()).masked_fill(flat == ignore_index, 0.0)
    if reduction == "none":
        return losses.view(targets.shape)
    return losses.sum() / (flat != ignore_index).sum() if reduction == "mean" else losses.sum()


# == Cases and cost ==


class Case(NamedTuple):
    """The number of tokens, the vocabulary, and the options by name. `ignored`: the number of tokens without a loss."""

    tokens: int
    vocabulary: int
    ignored: int = 0
    reduction: str = "mean"
    logit_scale: float = 1.0
    soft_cap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def random_targets(tokens: int, vocabulary: int, ignored: int, random: Random) -> Tensor:
    """Return random targets, of which `ignored` are -100. The first two are the last and the first token of the
    vocabulary, unless they are ignored."""
    targets = random.integers(0, vocabulary, tokens)
    targets[:1], targets[1:2] = vocabulary - 1, 0
    targets[random.permutation(tokens)[:ignored]] = -100
    return targets


def inputs(case: Case, random: Random) -> Inputs:
    """Return logits and targets. The logits have a standard deviation of 3, like those of a model."""
    return {
        "logits": random.normal(case.tokens, case.vocabulary, scale=3.0),
        "targets": random_targets(case.tokens, case.vocabulary, case.ignored, random),
        **{name: getattr(case, name) for name in ("reduction", *Options._fields[:-1])},
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return the bytes of both passes, and 0 FLOPs, because there is no matrix product. Each pass reads the logits, and
    the backward pass writes their gradient. Targets are int64."""
    logits = case.tokens * case.vocabulary * dtype.itemsize
    out = 4 * case.tokens if case.reduction == "none" else 4
    targets = 8 * case.tokens
    return Cost(flops=0, bytes=logits + targets + out, backward_bytes=2 * logits + targets + out)


def random_options(draw: Draw, tokens: int) -> dict[str, Any]:
    """Return random values for the fields that the cases of both losses share. Sometimes all tokens are ignored."""
    return {
        "ignored": draw.choice((0, 0, draw.randint(0, tokens), tokens)),
        "reduction": draw.choice(REDUCTIONS),
        "logit_scale": draw.choice((1.0, 1.0, 0.5, 2.0)),
        "soft_cap": draw.maybe(draw.choice((1.0, 5.0, 30.0))),
        "z_loss": 1e-2 if draw.chance(0.3) else 0.0,
        "label_smoothing": draw.choice((0.1, 1.0)) if draw.chance(0.3) else 0.0,
    }


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    tokens = draw.size(30, least=0)
    return Case(tokens, draw.size(20000 if draw.chance(0.1) else 1200), **random_options(draw, tokens))


KERNEL = Kernel(
    name="cross_entropy",
    summary="cross-entropy of given logits: soft cap, z-loss, label smoothing",
    run=cross_entropy,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 37, ignored=2),
        Case(3, 300, reduction="none", soft_cap=5.0, logit_scale=0.5),
        Case(4, 1000, ignored=1, reduction="sum", z_loss=1e-2, label_smoothing=0.1),
        Case(3, 40, ignored=3, z_loss=1e-2),  # the mean over no token is NaN, and its gradient is 0, as in torch
    ],
    random_case=random_case,
    shapes=[Case(16384, 128256), Case(16384, 256000, soft_cap=30.0)],  # Llama 3, Gemma 2
    differentiable=("logits",),
)
