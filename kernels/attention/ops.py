"""Attention as torch ops: buffers, fake tensors, gradients and FLOPs. Shapes and meaning stand in `attention`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.attention.backward import backward
from llmbench.kernels.attention.forward import forward
from llmbench.kernels.attention.tiles import Problem, Reach, aligned, seen_pairs
from llmbench.kernels.launching import empty

__all__ = ["attention_op"]


class Options(NamedTuple):
    """What the ops take besides tensors."""

    queries: int
    keys: int
    scale: float
    causal: bool
    window: int | None
    soft_cap: float | None

    def problem(
        self, q: Tensor, sinks: Tensor | None, slopes: Tensor | None, starts: tuple[Tensor | None, Tensor | None]
    ) -> Problem:
        batch = q.shape[0] if starts[0] is None else starts[0].shape[0] - 1
        reach = Reach.of(self.causal, self.window)
        return Problem(batch, self.queries, self.keys, reach, self.scale, self.soft_cap, sinks, slopes, *starts)


def _like_rows(x: Tensor, width: int, *, new: Any) -> Tensor:
    """Room for [..., heads, rows, width] laid out as [..., rows, heads, width], or just packed [tokens, heads, width].
    `new` makes it from a shape."""
    if x.dim() == 3:
        return new(x.shape[0], x.shape[1], width)
    batch, heads, rows, _ = x.shape
    return new(batch, rows, heads, width).transpose(1, 2)


@torch.library.custom_op("llmbench::attention", mutates_args=())
def attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    slopes: Tensor | None,
    query_starts: Tensor | None,
    key_starts: Tensor | None,
    queries: int,
    keys: int,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """out, and its log-sum-exp twice: in units of e for the caller, of 2 for backward."""
    options = Options(queries, keys, scale, causal, window, soft_cap)
    out = _like_rows(q, v.shape[-1], new=lambda *shape: empty(*shape, like=q))
    problem = options.problem(q, sinks, slopes, (query_starts, key_starts))
    return out, *forward(aligned(q), aligned(k), aligned(v), out, problem)


@attention_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    slopes: Tensor | None,
    query_starts: Tensor | None,
    key_starts: Tensor | None,
    queries: int,
    keys: int,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    out = _like_rows(q, v.shape[-1], new=lambda *shape: q.new_empty(shape))
    rows = (q.shape[1], q.shape[0]) if q.dim() == 3 else q.shape[:3]
    return out, q.new_empty(rows, dtype=torch.float32), q.new_empty(rows, dtype=torch.float32)


@torch.library.custom_op("llmbench::attention_backward", mutates_args=())
def _attention_backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    slopes: Tensor | None,
    query_starts: Tensor | None,
    key_starts: Tensor | None,
    queries: int,
    keys: int,
    scale: float,
    causal: bool,
    window: int | None,
    soft_cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = Options(queries, keys, scale, causal, window, soft_cap)
    dq, dk, dv = (_like_rows(x, x.shape[-1], new=lambda *shape: empty(*shape, like=q)) for x in (q, k, v))
    problem = options.problem(q, sinks, slopes, (query_starts, key_starts))
    dlse = None if dlse is None else dlse.contiguous()
    dsinks = backward(
        aligned(dout), dlse, aligned(q), aligned(k), aligned(v), aligned(out), lse.contiguous(), (dq, dk, dv), problem
    )
    if sinks is None or dsinks is None:
        return dq, dk, dv, empty(0, like=q)
    return dq, dk, dv, dsinks.to(sinks.dtype)


@_attention_backward.register_fake
def _(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sinks: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (_like_rows(x, x.shape[-1], new=lambda *shape: q.new_empty(shape)) for x in (q, k, v))
    return dq, dk, dv, q.new_empty(0) if sinks is None else torch.empty_like(sinks)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], output[0], output[2], *inputs[3:7])
    ctx.options = inputs[7:]


def _gradients(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *others = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    dq, dk, dv, dsinks = _attention_backward(dout, dlse, q, k, v, out, lse, *others, *ctx.options)
    return dq, dk, dv, None if others[0] is None else dsinks, *(None,) * 9


attention_op.register_autograd(_gradients, setup_context=_keep)


def _pairs(q: Tensor, query_starts: Tensor | None, key_starts: Tensor | None, options: Options) -> int:
    """Scored pairs of one head over the batch. Packed sequences without data (fake tensors) count as equally long."""
    reach = Reach.of(options.causal, options.window)
    if query_starts is None or key_starts is None:
        return q.shape[0] * seen_pairs(options.queries, options.keys, reach)
    if isinstance(query_starts, torch._subclasses.FakeTensor) or query_starts.is_meta:
        batch = query_starts.shape[0] - 1
        return batch * seen_pairs(options.queries, options.keys, reach)
    lengths = zip(query_starts.diff().tolist(), key_starts.diff().tolist(), strict=True)
    return sum(seen_pairs(s, t, reach) for s, t in lengths)


@register_flop_formula(torch.ops.llmbench.attention, get_raw=True)
def _forward_flops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Any,
    slopes: Any,
    query_starts: Any,
    key_starts: Any,
    *options: Any,
    out_val: Any = None,
    **_: Any,
) -> int:
    """2·(H + V) a pair and head."""
    pairs = _pairs(q, query_starts, key_starts, Options(*options))
    return 2 * q.shape[1] * pairs * (q.shape[-1] + v.shape[-1])


@register_flop_formula(torch.ops.llmbench.attention_backward, get_raw=True)
def _backward_flops(
    dout: Tensor,
    dlse: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Any,
    lse: Any,
    sinks: Any,
    slopes: Any,
    query_starts: Any,
    key_starts: Any,
    *options: Any,
    out_val: Any = None,
    **_: Any,
) -> int:
    """2·(3 H + 2 V) a pair and head: scores again, dv, dp, dq, dk. 2.5 times the forward where H = V."""
    pairs = _pairs(q, query_starts, key_starts, Options(*options))
    return 2 * q.shape[1] * pairs * (3 * q.shape[-1] + 2 * v.shape[-1])
