"""Flash attention, forward and backward: softmax(scale · q kᵀ) v without a matrix of scores in memory.

    full · causal · sliding window · ALiBi · soft cap · sinks · grouped heads · unequal widths · packed batches

B batch, N query heads, K key heads, S queries, T keys, H width of queries and keys, V width of values. Shapes: q [B, N,
S, H], k [B, K, T, H], v [B, K, T, V], out [B, N, S, V], log-sum-exp [B, N, S] in fp32. N is a multiple of K, and N/K
query heads share a key head. The last stride must be 1. The other strides are free, so a transposed view of [B, S, N,
H] needs no copy. out and the gradients are stored as [B, S, N, width], so their transpose to [B, S, N·V] needs no copy.
A packed batch stores its sequences end to end: q [tokens, N, H], k [tokens, K, H], v [tokens, K, V], log-sum-exp [N,
tokens].

Queries are aligned to the end of the keys: query i has position i + T - S. Scores are computed in this order: scale,
soft cap c·tanh(s / c), ALiBi slope · (key - position) (Press et al., arXiv 2108.12409), mask. A sink is a learned score
of a key without a value (Xiao et al., arXiv 2309.17453). The log-sum-exp includes the sink. For a query that sees no
key, out is 0 and the log-sum-exp is -∞.

The softmax and all sums are computed in fp32. Matrix products take operands in the format of the inputs. A GPU
multiplies fp32 operands in tf32. The kernels are in forward.py and backward.py, and their shared functions are in
tiles.py. Flash attention: Dao et al., arXiv 2205.14135, 2307.08691.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.attention.backward import TALLEST, backward
from llmbench.kernels.attention.forward import forward
from llmbench.kernels.attention.tiles import FAR, WIDEST_ROW, Problem, Reach, aligned, seen_pairs
from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import empty

__all__ = ["KERNEL", "attention", "flash_product", "reference", "softmax_product"]

MAX_WIDTH = 512  # largest head width of queries, keys and values


# == Torch op ==


class Options(NamedTuple):
    """The arguments of the attention ops that are plain values and not tensors."""

    queries: int
    keys: int
    scale: float
    causal: bool
    window: int | None
    soft_cap: float | None

    def problem(
        self, q: Tensor, sinks: Tensor | None, slopes: Tensor | None, starts: tuple[Tensor | None, Tensor | None]
    ) -> Problem:
        """Return the kernels' arguments for these options and tensors as a `Problem`."""
        batch = q.shape[0] if starts[0] is None else starts[0].shape[0] - 1
        reach = Reach.from_mask(self.causal, self.window)
        return Problem(batch, self.queries, self.keys, reach, self.scale, self.soft_cap, sinks, slopes, *starts)


def _empty_rows(x: Tensor, width: int, *, allocate: Any) -> Tensor:
    """Return an unwritten tensor of shape [..., heads, rows, width] whose order in memory is [..., rows, heads, width].

    For packed x, the shape and the order in memory are [tokens, heads, width]. `allocate` creates a tensor from a
    shape.
    """
    if x.dim() == 3:
        return allocate(x.shape[0], x.shape[1], width)
    batch, heads, rows, _ = x.shape
    return allocate(batch, rows, heads, width).transpose(1, 2)


@torch.library.custom_op("llmbench::attention", mutates_args=())
def _attention(
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
    """Return out, the log-sum-exp with base e for the caller, and the log-sum-exp with base 2 for the backward pass."""
    options = Options(queries, keys, scale, causal, window, soft_cap)
    out = _empty_rows(q, v.shape[-1], allocate=lambda *shape: empty(*shape, like=q))
    problem = options.problem(q, sinks, slopes, (query_starts, key_starts))
    return out, *forward(aligned(q), aligned(k), aligned(v), out, problem)


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    out = _empty_rows(q, v.shape[-1], allocate=lambda *shape: q.new_empty(shape))
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
    """Return dq, dk, dv and the gradient of the sinks. Without sinks, the last tensor is empty."""
    options = Options(queries, keys, scale, causal, window, soft_cap)
    dq, dk, dv = (_empty_rows(x, x.shape[-1], allocate=lambda *shape: empty(*shape, like=q)) for x in (q, k, v))
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
    dout: Any, dlse: Any, q: Tensor, k: Tensor, v: Tensor, out: Any, lse: Any, sinks: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (_empty_rows(x, x.shape[-1], allocate=lambda *shape: q.new_empty(shape)) for x in (q, k, v))
    return dq, dk, dv, q.new_empty(0) if sinks is None else torch.empty_like(sinks)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], output[0], output[2], *inputs[3:7])
    ctx.options = inputs[7:]


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, *others = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    dq, dk, dv, dsinks = _attention_backward(dout, dlse, q, k, v, out, lse, *others, *ctx.options)
    return dq, dk, dv, None if others[0] is None else dsinks, *(None,) * 9


_attention.register_autograd(_backward, setup_context=_save)


def _scored_pairs(q: Tensor, query_starts: Tensor | None, key_starts: Tensor | None, options: Options) -> int:
    """Return the number of (query, key) pairs that one head scores in the whole batch. Packed sequences on fake tensors
    have no lengths, so the greatest length is used for each sequence."""
    reach = Reach.from_mask(options.causal, options.window)
    if query_starts is None or key_starts is None:
        return q.shape[0] * seen_pairs(options.queries, options.keys, reach)
    if isinstance(query_starts, torch._subclasses.FakeTensor) or query_starts.is_meta:
        batch = query_starts.shape[0] - 1
        return batch * seen_pairs(options.queries, options.keys, reach)
    lengths = zip(query_starts.diff().tolist(), key_starts.diff().tolist(), strict=True)
    return sum(seen_pairs(s, t, reach) for s, t in lengths)


@register_flop_formula(torch.ops.llmbench.attention, get_raw=True)
def _forward_flops(
    q: Tensor, k: Any, v: Tensor, sinks: Any, slopes: Any, query_starts: Any, key_starts: Any, *options: Any, **_: Any
) -> int:
    """Return 2·(H + V) FLOPs per scored pair and head. H is the width of queries and keys, V that of values."""
    pairs = _scored_pairs(q, query_starts, key_starts, Options(*options))
    return 2 * q.shape[1] * pairs * (q.shape[-1] + v.shape[-1])


@register_flop_formula(torch.ops.llmbench.attention_backward, get_raw=True)
def _backward_flops(dout: Any, dlse: Any, q: Tensor, k: Any, v: Tensor, *rest: Any, **_: Any) -> int:
    """Return 2·(3 H + 2 V) FLOPs per scored pair and head. The scores, dq and dk take 2·H each; dv and dp take 2·V
    each. If H = V, this is 2.5 times the forward pass."""
    _, _, _, _, query_starts, key_starts, *options = rest
    pairs = _scored_pairs(q, query_starts, key_starts, Options(*options))
    return 2 * q.shape[1] * pairs * (3 * q.shape[-1] + 2 * v.shape[-1])


# == Public op ==


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
    """Return the attention output and its log-sum-exp, both differentiable. The module's docstring gives the shapes and
    the order in which the options apply.

    `scale` is 1/√H by default. `window` is the number of keys that a query sees, including the key at its own position.
    Without `causal`, half of these keys are before the query and half after it. `slopes` [N] are the slopes of ALiBi,
    which get no gradient. `sinks` [N] get a gradient. For a packed batch, `query_starts` and `key_starts` [B + 1] in
    int32 contain the first token of each sequence, and end with the number of tokens. `max_queries` and `max_keys` are
    at least the length of the longest sequence.

    Raises ValueError for shapes, formats or options that do not match.
    """
    _check_shapes(q, k, v, slopes, sinks, query_starts is not None)
    if scale is None:
        scale = 1 / math.sqrt(q.shape[-1])
    if scale <= 0 or (window is not None and window < 1) or (soft_cap is not None and soft_cap <= 0):
        raise ValueError(f"scale {scale}, window {window} and soft cap {soft_cap} must be positive")
    if query_starts is not None:
        if key_starts is None or max_queries is None or max_keys is None:
            raise ValueError("a packed batch needs query_starts, key_starts, max_queries and max_keys")
        for starts in (query_starts, key_starts):
            if starts.dtype != torch.int32 or starts.dim() != 1 or starts.shape != key_starts.shape:
                raise ValueError("query_starts and key_starts must be int32 tensors of shape [B + 1]")
        queries, keys = max_queries, max_keys
    else:
        if key_starts is not None or max_queries is not None or max_keys is not None:
            raise ValueError(
                "key_starts, max_queries and max_keys are for a packed batch, which needs query_starts too"
            )
        queries, keys = q.shape[2], k.shape[2]
    if max(queries, keys) > FAR:
        raise ValueError(f"{queries} queries and {keys} keys: a sequence has at most {FAR:,} of each")
    # The backward pass addresses the log-sum-exps of the heads that share a key head with 32-bit offsets.
    rows = queries + TALLEST.value if query_starts is None else q.shape[0] + TALLEST.value * len(query_starts)
    if q.shape[1] // k.shape[1] * rows >= 1 << 31:
        raise ValueError(f"q {tuple(q.shape)}: the heads that share a key head must have fewer than 2³¹ queries in all")
    slopes, sinks, query_starts, key_starts = (
        None if x is None else x.contiguous() for x in (slopes, sinks, query_starts, key_starts)
    )
    out, lse, _ = _attention(
        q, k, v, sinks, slopes, query_starts, key_starts, queries, keys, float(scale), causal, window, soft_cap
    )
    return out, lse


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, sinks: Tensor | None, packed: bool) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    dims = 3 if packed else 4
    if not q.dim() == k.dim() == v.dim() == dims:
        raise ValueError(f"{shapes}: each needs {dims} dimensions")
    if k.shape[:-1] != v.shape[:-1] or q.shape[-1] != k.shape[-1] or (not packed and q.shape[0] != k.shape[0]):
        raise ValueError(f"{shapes}: these shapes do not match")
    if not k.shape[1] or q.shape[1] % k.shape[1]:
        raise ValueError(f"{shapes}: the number of query heads must be a multiple of the number of key heads")
    for width in (q.shape[-1], v.shape[-1]):
        if width % 8 or not 0 < width <= MAX_WIDTH:
            raise ValueError(f"{shapes}: head widths must be multiples of 8 up to {MAX_WIDTH}")
        if q.shape[1] * width >= WIDEST_ROW:
            raise ValueError(f"{shapes}: the heads of a token must have fewer than {WIDEST_ROW:,} elements")
    if not q.dtype == k.dtype == v.dtype or q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise ValueError(f"q {q.dtype}, k {k.dtype}, v {v.dtype}: all three must have one dtype: fp16, bf16 or fp32")
    for name, x in (("slopes", slopes), ("sinks", sinks)):
        if x is not None and (x.shape != (q.shape[1],) or not x.is_floating_point()):
            raise ValueError(f"{name} {tuple(x.shape)} {x.dtype} must be one floating-point number per query head")


# == Reference ==


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
    finish: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute attention in plain torch, with all scores in memory and the softmax in fp32 or wider.

    `finish(scores, seen, v)` computes the output and the log-sum-exp from the scores. The default is `softmax_product`.
    """
    options: dict[str, Any] = {"scale": scale, "causal": causal, "window": window, "soft_cap": soft_cap}
    options |= {"slopes": slopes, "sinks": sinks, "finish": finish}
    if query_starts is not None and key_starts is not None:
        sequences = (
            x.transpose(0, 1)[None].split(starts.diff().tolist(), dim=2)
            for x, starts in ((q, query_starts), (k, key_starts), (v, key_starts))
        )
        parts = [reference(*qkv, **options) for qkv in zip(*sequences, strict=True)]
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
    before, after = Reach.from_mask(causal, window)
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen &= True if before is None else distance >= -before
    seen &= True if after is None else distance <= after
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~seen, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:3], 1)), dim=-1)
    return (finish or softmax_product)(scores, seen, v)


def softmax_product(scores: Tensor, seen: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax(scores) @ v and the log-sum-exp of the scores.

    scores [B, N, S, T], or [B, N, S, T + 1] with the sink in the last column. seen [S, T] says which keys a query sees.
    """
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse[..., None])[..., : v.shape[2]].masked_fill(~seen, 0.0)
    return weights.to(v.dtype) @ v, lse


class FlashProduct(torch.autograd.Function):
    """`softmax_product` with the gradient that flash attention computes.

    Plain torch computes the gradient of the scores as p ∘ (dp - Σ p ∘ dp). Flash attention has no row of p, so it
    computes p ∘ (dp - Σ do ∘ o) (arXiv 2205.14135, appendix B.2). Both are equal in exact arithmetic. But o was rounded
    to the format of the inputs, and dp and Σ do ∘ o are rounded apart. If nearly all weight lies on one key, these
    terms cancel, and their roundings become most of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, seen: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results of `softmax_product`."""
        out, lse = softmax_product(scores, seen, v)
        ctx.save_for_backward(scores, seen, v, out, lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor, None, Tensor]:
        """Return the gradients of the scores and of v."""
        scores, seen, v, out, lse = ctx.saved_tensors
        wide, keys = scores.dtype, v.shape[2]
        weights = torch.exp(scores - lse[..., None])
        p = weights[..., :keys].masked_fill(~seen, 0.0)
        delta = (dout.to(wide) * out.to(wide)).sum(-1, keepdim=True) - dlse[..., None]
        dscores = p * (dout.to(wide) @ v.to(wide).transpose(-1, -2) - delta)
        if scores.shape[-1] > keys:
            dscores = torch.cat((dscores, -weights[..., keys:] * delta), dim=-1)  # a sink has no value
        return dscores, None, p.to(v.dtype).transpose(-1, -2) @ dout


def flash_product(scores: Tensor, seen: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of `softmax_product`, with the gradients of `FlashProduct`."""
    out, lse = FlashProduct.apply(scores, seen, v)
    return out, lse


# == Cases and cost ==


class Case(NamedTuple):
    """Lengths, heads, widths and options of a call.

    `packed`: the query and key length of each sequence, in place of `batch`, `queries` and `keys`. `v_dim`: the width
    of values; 0 means `head_dim`.
    """

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
    """Return random inputs. q, k and v are transposed views of [B, S, heads, width], as a model's projections produce
    them. The scores are so large that the soft cap changes them."""
    v_dim = case.v_dim or case.head_dim
    arguments: Inputs = {"causal": case.causal, "window": case.window, "soft_cap": case.soft_cap}
    tokens = [sum(lengths) for lengths in zip(*case.packed, strict=True)] if case.packed else [case.queries, case.keys]
    for name, rows, heads, width in (
        ("q", tokens[0], case.heads, case.head_dim),
        ("k", tokens[1], case.kv_heads, case.head_dim),
        ("v", tokens[1], case.kv_heads, v_dim),
    ):
        if case.packed:
            arguments[name] = random.normal(rows, heads, width)
        else:
            arguments[name] = random.normal(case.batch, rows, heads, width).transpose(1, 2)
    if case.alibi:
        slopes = [2.0 ** (-8 * (head + 1) / case.heads) for head in range(case.heads)]
        arguments["slopes"] = torch.tensor(slopes, dtype=torch.float32, device=random.device)
    if case.sinks:
        arguments["sinks"] = random.normal(case.heads)
    if case.packed:
        for index, name in enumerate(("query_starts", "key_starts")):
            lengths = torch.tensor([0, *(pair[index] for pair in case.packed)])
            arguments[name] = lengths.cumsum(0).to(torch.int32).to(random.device)
        arguments["max_queries"], arguments["max_keys"] = (max(lengths) for lengths in zip(*case.packed, strict=True))
    return arguments


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return 2·(H + V) FLOPs per scored pair and head for the forward pass, and 2·(3 H + 2 V) for the backward pass.

    H is the width of queries and keys, V that of values. The forward pass reads q, k and v, and writes out and the
    log-sum-exp. The backward pass reads these five tensors and dout, and writes three gradients.
    """
    lengths = case.packed or ((case.queries, case.keys),) * case.batch
    width, v_dim = case.head_dim, case.v_dim or case.head_dim
    reach = Reach.from_mask(case.causal, case.window)
    pairs = case.heads * sum(seen_pairs(s, t, reach) for s, t in lengths)
    rows, columns = case.heads * sum(s for s, _ in lengths), case.kv_heads * sum(t for _, t in lengths)
    q, kv, out, lse = rows * width, columns * (width + v_dim), rows * v_dim, 4 * rows
    return Cost(
        flops=2 * pairs * (width + v_dim),
        bytes=(q + kv + out) * dtype.itemsize + lse,
        backward_flops=2 * pairs * (3 * width + 2 * v_dim),
        backward_bytes=(2 * q + 2 * kv + 2 * out) * dtype.itemsize + lse,
    )


def random_case(draw: Draw) -> Case:
    """Return a random case. In a packed batch, any sequence may have no queries, no keys, or neither."""
    kv_heads = draw.size(3)
    head_dim = 8 * draw.size(draw.choice((10, 10, 10, 32, 64)))
    packed = draw.chance(0.3)
    return Case(
        batch=1 if packed else draw.size(2),
        heads=kv_heads * draw.size(3),
        kv_heads=kv_heads,
        queries=1 if packed else draw.size(170),
        keys=1 if packed else draw.size(220),
        head_dim=head_dim,
        v_dim=8 * draw.size(32 if draw.chance(0.2) else 10) if draw.chance() else 0,
        causal=draw.chance(0.7),
        window=draw.maybe(draw.size(150)),
        soft_cap=draw.maybe(draw.choice((1.0, 5.0, 30.0))),
        alibi=draw.chance(0.3),
        sinks=draw.chance(0.3),
        packed=tuple((draw.size(90, least=0), draw.size(140, least=0)) for _ in range(draw.size(4))) if packed else (),
    )


KERNEL = Kernel(
    name="attention",
    summary="flash attention: causal, window, ALiBi, soft cap, sinks, grouped heads, packed batches",
    run=attention,
    reference=reference,
    same_steps=partial(reference, finish=flash_product),
    inputs=inputs,
    cost=cost,
    cases=[
        Case(2, 4, 2, 37, 37, 64, sinks=True),
        Case(1, 2, 1, 40, 166, 16),  # the first query sees all keys of a tile but the last
        Case(1, 2, 1, 3, 263, 16, window=134),  # the last query sees all keys of a tile but the first
        Case(1, 2, 1, 150, 150, 16),  # some tiles need no mask, and some lie on the diagonal
        Case(1, 1, 1, 70, 150, 64, causal=False),
        Case(1, 2, 2, 150, 203, 32, window=60),
        Case(1, 2, 1, 200, 200, 16, causal=False, window=101),
        Case(1, 3, 1, 33, 65, 80, soft_cap=2.0, window=40),
        Case(1, 2, 1, 50, 40, 40, alibi=True, sinks=True),  # the first queries see no key
        Case(1, 2, 1, 50, 40, 16, window=9),  # the same, without a sink
        Case(2, 2, 1, 33, 45, 192, 128),
        Case(1, 1, 1, 30, 30, 96, 256, causal=False, alibi=True, soft_cap=30.0),
        Case(1, 2, 1, 40, 70, 512, window=33),  # Gemma 4's global layers have heads of 512
        Case(heads=2, kv_heads=1, head_dim=24, packed=((5, 5), (67, 80), (1, 33))),
        Case(heads=3, kv_heads=3, head_dim=16, causal=False, packed=((3, 70), (45, 9))),
        # sequences without queries, without keys, and with more queries than keys
        Case(heads=2, kv_heads=1, head_dim=16, packed=((0, 5), (7, 0), (20, 9), (0, 0))),
        Case(heads=2, kv_heads=2, head_dim=16, causal=False, sinks=True, packed=((7, 0), (0, 4), (3, 9))),
    ],
    random_case=random_case,
    shapes=[
        Case(1, 32, 8, 8192, 8192, 128),
        Case(1, 32, 32, 8192, 8192, 128),
        Case(1, 32, 8, 8192, 8192, 128, causal=False),
        Case(1, 32, 32, 8192, 8192, 128, alibi=True),
        # the window, the soft cap and ALiBi together need the most registers
        Case(1, 32, 8, 8192, 8192, 128, window=4096, soft_cap=30.0, alibi=True),
        Case(1, 64, 8, 8192, 8192, 64, window=128, sinks=True),
        Case(1, 128, 128, 8192, 8192, 192, 128),
        Case(1, 16, 8, 8192, 8192, 256, soft_cap=50.0),
    ],
    differentiable=("q", "k", "v", "sinks"),
    allowances={
        "attention_backward_keys: spills at most 64 B": "with ptxas 12.8 (Triton 3.6), two loops would be serialised",
        "attention_backward_keys: spills in fp32": "width 256: the smallest tile of wgmma needs too many registers",
    },
)
