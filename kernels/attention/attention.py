"""Attention that never holds its scores: softmax(scale · q kᵀ) v, forward and backward.

    full · causal · sliding window · ALiBi · soft cap · sinks · grouped heads · unequal widths · packed batches

Shapes: q [B, N, S, H], k [B, K, T, H], v [B, K, T, V], out [B, N, S, V], log-sum-exp [B, N, S] in fp32; N a multiple
of K, N/K heads to a key head. Any strides with a unit last one: views of [B, S, N, H] are read as they are, and out
and the gradients are such views, whose transpose to [B, S, N·V] is free. Packed batches lie end to end: q
[tokens, N, H], k and v alike, log-sum-exp [N, tokens].

Queries are aligned to the end of the keys: query i stands at position i + T - S. Scores, in this order: scale, soft
cap c·tanh(s / c), ALiBi slope · (key - position) (Press et al., arXiv 2108.12409), mask. A sink is a learned score of a
key without a value (Xiao et al., arXiv 2309.17453); it counts in the log-sum-exp. A query that sees no key gets 0 and
-∞.

Softmax and sums in fp32; products in the inputs' format, fp32 ones as tf32 on a GPU. The kernels stand in
attention_forward.py and attention_backward.py, the ops in attention_ops.py. Flash attention: Dao et al., arXiv
2205.14135, 2307.08691.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.kernels.attention.ops import attention_op
from llmbench.kernels.attention.tiles import Reach, seen_pairs
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random

__all__ = ["KERNEL", "attention", "reference"]

WIDEST = 256  # of queries and keys, and of values


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    soft_cap: float | None = None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    query_starts: Tensor | None = None,
    key_starts: Tensor | None = None,
    max_queries: int | None = None,
    max_keys: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp, both differentiable; shapes and meaning as in the module's docstring.

    `scale`: 1/√H if not given. `window`: keys seen, the query's own included; not causal, half of it to either side.
    `slopes` [N] of ALiBi, without a gradient; `sinks` [N]. Packed: `query_starts` and `key_starts` [B + 1] in int32
    begin with 0 and end with the number of tokens; no sequence is longer than `max_queries` and `max_keys`.

    Raises ValueError for shapes, formats or options that do not go together.
    """
    _check(q, k, v, slopes, sinks, query_starts is not None)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    if scale <= 0 or (window is not None and window < 1) or (soft_cap is not None and soft_cap <= 0):
        raise ValueError(f"scale {scale}, window {window} and soft cap {soft_cap} must be positive")
    if query_starts is not None:
        if key_starts is None or max_queries is None or max_keys is None:
            raise ValueError("a packed batch needs query_starts, key_starts, max_queries and max_keys")
        for starts in (query_starts, key_starts):
            if starts.dtype != torch.int32 or starts.dim() != 1 or starts.shape != key_starts.shape:
                raise ValueError("query_starts and key_starts are int32 [B + 1]")
        queries, keys = max_queries, max_keys
    else:
        if key_starts is not None or max_queries is not None or max_keys is not None:
            raise ValueError("key_starts, max_queries and max_keys belong to a packed batch, with query_starts")
        queries, keys = q.shape[2], k.shape[2]
    out, lse, _ = attention_op(
        q, k, v, sinks, slopes, query_starts, key_starts, queries, keys, float(scale), causal, window, soft_cap
    )
    return out, lse


def _check(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, sinks: Tensor | None, packed: bool) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    dims = 3 if packed else 4
    if not q.dim() == k.dim() == v.dim() == dims:
        raise ValueError(f"{shapes}: {dims} dimensions are needed")
    if k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or (not packed and q.shape[0] != k.shape[0]):
        raise ValueError(f"{shapes} do not go together")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{shapes}: query heads must be a multiple of key heads")
    for width in (q.shape[-1], v.shape[-1]):
        if width % 8 or not 0 < width <= WIDEST:
            raise ValueError(f"{shapes}: head widths must be multiples of 8 up to {WIDEST}")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: one of fp16, bf16, fp32 is needed for all")
    for name, x in (("slopes", slopes), ("sinks", sinks)):
        if x is not None and (x.shape != (q.shape[1],) or not x.is_floating_point()):
            raise ValueError(f"{name} {tuple(x.shape)} {x.dtype} must be one floating-point number a query head")


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    soft_cap: float | None = None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    query_starts: Tensor | None = None,
    key_starts: Tensor | None = None,
    max_queries: int | None = None,
    max_keys: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in plain torch, which holds all scores; softmax in fp32 or better."""
    options: dict[str, Any] = {"scale": scale, "causal": causal, "window": window, "soft_cap": soft_cap}
    options |= {"slopes": slopes, "sinks": sinks}
    if query_starts is not None and key_starts is not None:
        each = (
            x.transpose(0, 1)[None].split(starts.diff().tolist(), dim=2)
            for x, starts in ((q, query_starts), (k, key_starts), (v, key_starts))
        )
        parts = [reference(*qkv, **options) for qkv in zip(*each, strict=True)]
        out = torch.cat([out[0].transpose(0, 1) for out, _ in parts])
        return out, torch.cat([lse[0] for _, lse in parts], dim=-1)
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    scores = q @ k.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    position = torch.arange(q.shape[2], device=q.device)[:, None] + k.shape[2] - q.shape[2]
    distance = torch.arange(k.shape[2], device=q.device) - position
    if slopes is not None:
        scores = scores + slopes[:, None, None] * distance
    before, after = Reach.of(causal, window)
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen &= True if before is None else distance >= -before
    seen &= True if after is None else distance <= after
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)), dim=-1)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None])[..., : k.shape[2]].masked_fill(~seen, 0.0)
    return weights.to(v.dtype) @ v, lse


class Case(NamedTuple):
    """`packed`: lengths of queries and keys of each sequence, in place of batch, queries and keys. `v_dim` 0: as
    head_dim."""

    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    queries: int = 1
    keys: int = 1
    head_dim: int = 64
    v_dim: int = 0
    causal: bool = True
    window: int | None = None
    soft_cap: float | None = None
    alibi: bool = False
    sinks: bool = False
    packed: tuple[tuple[int, int], ...] = ()


def inputs(case: Case, random: Random) -> Inputs:
    """Views of [B, S, heads, width], as a model's projections make them; logits wide enough for a cap to matter."""
    v_dim = case.v_dim or case.head_dim
    found: Inputs = {"causal": case.causal, "window": case.window, "soft_cap": case.soft_cap}
    tokens = [sum(lengths) for lengths in zip(*case.packed, strict=True)] if case.packed else [case.queries, case.keys]
    for name, rows, heads, width in (
        ("q", tokens[0], case.heads, case.head_dim),
        ("k", tokens[1], case.kv_heads, case.head_dim),
        ("v", tokens[1], case.kv_heads, v_dim),
    ):
        if case.packed:
            found[name] = random.normal(rows, heads, width)
        else:
            found[name] = random.normal(case.batch, rows, heads, width).transpose(1, 2)
    if case.alibi:
        slopes = [2.0 ** (-8 * (head + 1) / case.heads) for head in range(case.heads)]
        found["slopes"] = torch.tensor(slopes, dtype=torch.float32, device=random.device)
    if case.sinks:
        found["sinks"] = random.normal(case.heads)
    if case.packed:
        for index, name in enumerate(("query_starts", "key_starts")):
            lengths = torch.tensor([0, *(each[index] for each in case.packed)])
            found[name] = lengths.cumsum(0).to(torch.int32).to(random.device)
        found["max_queries"], found["max_keys"] = (max(lengths) for lengths in zip(*case.packed, strict=True))
    return found


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """2·(H + V) FLOPs a scored pair and head; backward 2·(3 H + 2 V). Forward reads q, k, v and writes out and the
    log-sum-exp; backward reads all these and dout, and writes three gradients."""
    lengths = case.packed or ((case.queries, case.keys),) * case.batch
    width, v_dim = case.head_dim, case.v_dim or case.head_dim
    reach = Reach.of(case.causal, case.window)
    pairs = case.heads * sum(seen_pairs(s, t, reach) for s, t in lengths)
    rows, columns = case.heads * sum(s for s, _ in lengths), case.kv_heads * sum(t for _, t in lengths)
    q, kv, out, lse = rows * width, columns * (width + v_dim), rows * v_dim, 4 * rows
    return Cost(
        flops=2 * pairs * (width + v_dim),
        bytes=(q + kv + out) * dtype.itemsize + lse,
        backward_flops=2 * pairs * (3 * width + 2 * v_dim),
        backward_bytes=(2 * q + 2 * kv + 2 * out) * dtype.itemsize + lse,
    )


KERNEL = Kernel(
    name="attention",
    summary="flash attention: causal, window, ALiBi, soft cap, sinks, grouped heads, packed batches",
    run=attention,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(2, 4, 2, 37, 37, 64, sinks=True),
        Case(1, 2, 1, 150, 150, 16),  # whole tiles, and some on the diagonal
        Case(1, 1, 1, 70, 150, 64, causal=False),
        Case(1, 2, 2, 150, 203, 32, window=60),
        Case(1, 2, 1, 200, 200, 16, causal=False, window=101),
        Case(1, 3, 1, 33, 65, 80, soft_cap=2.0, window=40),
        Case(1, 2, 1, 50, 40, 40, alibi=True, sinks=True),  # the first queries see no key
        Case(1, 2, 2, 45, 45, 192, 128),
        Case(1, 1, 1, 30, 30, 96, 256, causal=False, alibi=True, soft_cap=30.0),
        Case(heads=2, kv_heads=1, head_dim=24, packed=((5, 5), (67, 80), (1, 33))),
        Case(heads=3, kv_heads=3, head_dim=16, causal=False, packed=((3, 70), (45, 9))),
    ],
    shapes=[
        Case(1, 32, 8, 8192, 8192, 128),
        Case(1, 32, 8, 8192, 8192, 128, window=4096, soft_cap=30.0, alibi=True),  # all that takes registers
        Case(1, 64, 8, 8192, 8192, 64, window=128, sinks=True),
        Case(1, 128, 128, 8192, 8192, 192, 128),
        Case(1, 16, 8, 8192, 8192, 256, soft_cap=50.0),
    ],
    differentiable=("q", "k", "v", "sinks"),
    allowances={
        "attention_backward_keys: spills in fp32": "256 wide: half a tile of 16 bits, and no smaller one has wgmma",
    },
)
