"""Attention's backward kernels (Dao, arXiv 2307.08691, section 3.1.2): probabilities are made again from the
log-sum-exp, p = exp(s - lse), never stored.

    dv = pᵀ do        dp = do vᵀ        ds = p ∘ (dp - delta)        dq = scale · ds k        dk = scale · dsᵀ q

with delta = Σ do ∘ o - dlse, a number a row. Two kernels, one over tiles of keys (dk and dv), one over tiles of
queries (dq): 7 products where one kernel would need 5. The one kernel has to add dq up by atomic additions in fp32,
whose order changes from run to run, or to let the tiles wait for each other; two need neither, write each gradient
once in its own format, and their accumulators fit in registers. Gradients of grouped heads are added up inside one
program. So results are the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.attention import gradients as gradient_kernels
from llmbench.kernels.attention.gradients import TALLEST, attention_backward_keys, attention_backward_queries
from llmbench.kernels.attention.tiles import LOG2E, Problem, heads_together, padded, split_width
from llmbench.kernels.launching import Config, architecture, choose, empty, launch

__all__ = ["backward"]

LOG2_E = tl.constexpr(LOG2E)


@triton.jit
def attention_delta(
    dout, out, lse, dlse, sinks, level, delta, dsinks, query_starts,
    d_batch, d_head, d_row, o_batch, o_head, o_row, lse_batch, lse_head, level_batch, level_head, queries, heads,
    PACKED: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """For BLOCK_M rows of one head: delta; `level`, the log-sum-exp, ∞ where there is nothing to do; and what they give
    to the gradient of a sink, a key with value 0: ds = -p · delta."""
    first = tl.program_id(1) * BLOCK_M
    which = tl.cast(tl.program_id(0), tl.int64)
    batch = which // heads
    head = which % heads
    dout += head * d_head
    out += head * o_head
    level += head * level_head
    delta += head * level_head
    at_lse = head * lse_head
    if PACKED:
        start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - start
        dout += tl.cast(start, tl.int64) * d_row
        out += tl.cast(start, tl.int64) * o_row
        at_lse += start
        level += (start // TALLEST + batch) * TALLEST
        delta += (start // TALLEST + batch) * TALLEST
    else:
        dout += batch * d_batch
        out += batch * o_batch
        at_lse += batch * lse_batch
        level += batch * level_batch
        delta += batch * level_batch
    r = first + tl.arange(0, BLOCK_M)
    c = tl.arange(0, PADDED_VALUES)
    exists = r < queries
    inside = exists[:, None] & (c[None, :] < VALUES)
    d = tl.load(dout + r[:, None] * tl.cast(d_row, tl.int64) + c[None, :], mask=inside, other=0.0).to(tl.float32)
    o = tl.load(out + r[:, None] * tl.cast(o_row, tl.int64) + c[None, :], mask=inside, other=0.0).to(tl.float32)
    value = tl.sum(d * o, 1)
    if dlse is not None:
        value -= tl.load(dlse + at_lse + r, mask=exists, other=0.0)
    high = tl.load(lse + at_lse + r, mask=exists, other=float("inf"))
    high = tl.where(high == float("-inf"), float("inf"), high)  # a query that sees no key: p is 0
    kept = r < (queries + TALLEST - 1) // TALLEST * TALLEST  # all that a tile may read
    tl.store(delta + r, value, mask=kept)
    tl.store(level + r, high, mask=kept)
    if sinks is not None:
        p = tl.exp2(tl.load(sinks + head).to(tl.float32) * LOG2_E - high)
        tl.store(dsinks + which * tl.num_programs(1) + tl.program_id(1), -tl.sum(p * value, 0))


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    problem: Problem,
) -> Tensor | None:
    """Write dq, dk and dv; returns the gradient of the sinks, [N] in fp32. `lse` is in units of log 2, dlse of e."""
    dq, dk, dv = gradients
    heads, kv_heads = q.shape[1], k.shape[1]
    batch, queries, keys = problem[:3]
    group, width, v_width, element = heads // kv_heads, q.shape[-1], v.shape[-1], q.element_size()
    strides, starts = problem.strides, (problem.query_starts, problem.key_starts)
    sizes = sum(split_width(width)), padded(v_width), element, architecture(q.device)

    tallest = TALLEST.value
    if problem.packed:
        shape: tuple[int, ...] = heads, (q.shape[0] // tallest + batch) * tallest
    else:
        shape = batch, heads, triton.cdiv(queries, tallest) * tallest
    level, delta = empty(*shape, like=lse), empty(*shape, like=lse)
    level_strides = problem.row_strides(level)
    rows = max(16, min(128, 4096 // padded(v_width)))
    config = choose("attention_delta", [Config(BLOCK_M=rows, num_warps=4, note="32 numbers a thread and tensor")])
    blocks = triton.cdiv(queries, tallest) * (tallest // config["BLOCK_M"])
    dsinks = None if problem.sinks is None else empty(batch, heads, blocks, like=lse)
    launch(
        attention_delta,
        (batch * heads, blocks),
        config,
        *(dout, out, lse, dlse, problem.sinks, level, delta, dsinks, problem.query_starts),
        *(*strides(dout, out), *problem.row_strides(lse), *level_strides, queries, heads),
        PACKED=problem.packed,
        VALUES=v_width,
        PADDED_VALUES=padded(v_width),
    )
    options = (*problem.reach.as_arguments(), *problem.factors(), problem.scale)
    constants = {"GROUP": group, **problem.constants(width, v_width)}

    config = choose("attention_backward_keys", gradient_kernels.configurations_keys(*sizes, problem.plain))
    tiles = triton.cdiv(keys, config["BLOCK_N"])
    together = heads_together(queries * group * (width + v_width) * element, batch * kv_heads)
    for number in range(config["PASSES"]):
        launch(
            attention_backward_keys,
            (tiles * batch * kv_heads,),
            config,
            *(q, k, v, dout, dk, dv, level, delta, problem.slopes, *starts),
            *strides(q, k, v, dout, dk, dv),
            *level_strides,
            *(queries, keys, kv_heads, batch * kv_heads, tiles, together, *options),
            PASS=number,
            **constants,
        )
    config = choose("attention_backward_queries", gradient_kernels.configurations_queries(*sizes))
    tiles = triton.cdiv(queries, config["BLOCK_M"])
    together = group * heads_together(keys * (width + v_width) * element, batch * kv_heads)
    launch(
        attention_backward_queries,
        (tiles * batch * heads,),
        config,
        *(q, k, v, dout, dq, level, delta, problem.slopes, *starts),
        *strides(q, k, v, dout, dq),
        *level_strides,
        *(queries, keys, heads, batch * heads, tiles, together, *options),
        **constants,
    )
    return None if dsinks is None else dsinks.sum(dim=(0, 2))
