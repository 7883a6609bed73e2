"""Rotary positions: queries and keys turned by their positions' angles, both in one launch, forward and backward.

    (first, second) -> (first · cos − second · sin, second · cos + first · sin)

over pairs of the first R dims of each head: the two halves, (i, i + R/2), or neighbours, (2i, 2i + 1) (interleaved).
The other H − R dims pass through. A rotation's transpose turns back: backward is the same kernel with −sin, and keeps
only the tables. The result is new, not in place: what is read and written is the same, no input changes under
autograd, and heads that were slices of one projection come out contiguous.

Shapes: q [B, S, N, H], k [B, S, K, H] with any strides but that of H; cos, sin [B or 1, S, R/2], which the caller
computes once for all layers. Arithmetic in fp32. Su et al., arXiv 2104.09864.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch

__all__ = ["KERNEL", "reference", "rope"]


@triton.jit
def _turn(
    x,
    out,
    cos,
    sin,
    head_stride,
    first_head,
    heads,
    head_dim: tl.constexpr,
    turned: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    """HEADS heads of one token: x and out are its first head's, cos and sin [1, PAIRS] its angles'."""
    head = (first_head + tl.arange(0, HEADS))[:, None]
    there = head < heads
    x += head * head_stride
    out += head * head_dim
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)[None, :]
        inside = there & (column < turned)
        both = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, [HEADS, PAIRS, 2]))
        both = tl.join(first * cos - second * sin, second * cos + first * sin)
        both = tl.reshape(both, [HEADS, 2 * PAIRS]).to(out.dtype.element_ty)
        tl.store(out + column, both, mask=inside)
    else:
        column = tl.arange(0, PAIRS)[None, :]
        inside = there & (column < turned // 2)
        first = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + turned // 2 + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + column, (first * cos - second * sin).to(out.dtype.element_ty), mask=inside)
        tl.store(out + turned // 2 + column, (second * cos + first * sin).to(out.dtype.element_ty), mask=inside)
    if REST:
        column = turned + tl.arange(0, REST)[None, :]
        inside = there & (column < head_dim)
        tl.store(out + column, tl.load(x + column, mask=inside, other=0.0), mask=inside)


@triton.jit
def rope_turn(
    q,
    k,
    q_out,
    k_out,
    cos,
    sin,
    q_batch,
    q_token,
    q_head,
    k_batch,
    k_token,
    k_head,
    table_batch,
    table_token,
    length,
    q_heads,
    k_heads,
    groups,
    sign,
    HEAD_DIM: tl.constexpr,
    TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
):
    """A program: a group of one token's query heads and the same group of its key heads. `sign` is −1 backward."""
    token, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    batch, at = (token // length).to(tl.int64), (token % length).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    angle = batch * table_batch + at * table_token + pair
    c = tl.load(cos + angle, mask=pair < TURNED // 2, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=pair < TURNED // 2, other=0.0).to(tl.float32) * sign
    token = token.to(tl.int64) * HEAD_DIM
    _turn(
        q + batch * q_batch + at * q_token,
        q_out + token * q_heads,
        c,
        s,
        q_head,
        group * Q_HEADS,
        q_heads,
        HEAD_DIM,
        TURNED,
        INTERLEAVED,
        Q_HEADS,
        PAIRS,
        REST,
    )
    _turn(
        k + batch * k_batch + at * k_token,
        k_out + token * k_heads,
        c,
        s,
        k_head,
        group * K_HEADS,
        k_heads,
        HEAD_DIM,
        TURNED,
        INTERLEAVED,
        K_HEADS,
        PAIRS,
        REST,
    )


def configurations(q_heads: int, k_heads: int, head_dim: int) -> list[Config]:
    """A token's heads up to 4096 values of q, at 32 a thread: 4 or 5 16-byte loads under way in bf16, and the angles
    are read once for them all. About 64 registers leave 32 warps a multiprocessor and 40 KiB or more under way."""

    def of(most: int, a_thread: int, note: str) -> Config:
        heads = max(1, min(triton.next_power_of_2(q_heads), most // triton.next_power_of_2(head_dim)))
        groups = triton.cdiv(q_heads, heads)
        k_group = triton.next_power_of_2(triton.cdiv(k_heads, groups))
        warps = triton.next_power_of_2(max(1, heads * head_dim // (32 * a_thread)))
        return Config(Q_HEADS=heads, K_HEADS=k_group, num_warps=min(8, warps), note=note)

    return [
        of(4096, 32, "a whole token of most models; 32 values of q a thread"),
        of(4096, 16, "more warps, fewer values a thread"),
        of(2048, 32, "smaller programs, angles read twice"),
    ]


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("llmbench::rope", mutates_args=())
def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backward: bool) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = _unit(q), _unit(k), cos.contiguous(), sin.contiguous()
    batch, length, q_heads, head_dim = q.shape
    k_heads, pairs = k.shape[2], cos.shape[2]
    q_out, k_out = empty(*q.shape, like=q), empty(*k.shape, like=k)
    config = choose("rope", configurations(q_heads, k_heads, head_dim))
    groups = max(triton.cdiv(q_heads, config["Q_HEADS"]), triton.cdiv(k_heads, config["K_HEADS"]))
    tables = cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1)
    rest = head_dim - 2 * pairs
    launch(
        rope_turn,
        (batch * length * groups,),
        config,
        *(q, k, q_out, k_out, cos, sin),
        *(*q.stride()[:3], *k.stride()[:3], *tables, length, q_heads, k_heads, groups, -1.0 if backward else 1.0),
        HEAD_DIM=head_dim,
        TURNED=2 * pairs,
        INTERLEAVED=interleaved,
        PAIRS=triton.next_power_of_2(pairs),
        REST=triton.next_power_of_2(rest) if rest else 0,
    )
    return q_out, k_out


@_rope.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backward: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.interleaved, ctx.backward = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    return *_rope(dq, dk, *ctx.saved_tensors, ctx.interleaved, not ctx.backward), None, None, None, None


_rope.register_autograd(_backward, setup_context=_keep)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """q [B, S, N, H] and k [B, S, K, H] turned by cos, sin [B or 1, S, R/2], contiguous, in their formats. The tables
    get no gradients. Raises ValueError for shapes and formats that do not fit."""
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32) or k.dtype != q.dtype:
        raise ValueError(f"q is {q.dtype} and k {k.dtype}; rope takes one of float16, bfloat16 and float32 for both")
    if q.dim() != 4 or k.dim() != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} are not [B, S, N, H] and [B, S, K, H]")
    pairs = cos.shape[-1]
    if cos.shape != sin.shape or cos.shape not in ((1, q.shape[1], pairs), (*q.shape[:2], pairs)):
        raise ValueError(f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} are not [B or 1, S, R/2] for {q.shape}")
    if not 0 < 2 * pairs <= q.shape[-1]:
        raise ValueError(f"cos turns {2 * pairs} dims of heads of {q.shape[-1]}")
    turned: tuple[Tensor, Tensor] = _rope(q, k, cos, sin, interleaved, False)
    return turned


def reference(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """The same in plain torch, in the tables' format."""
    return _reference(q, cos[:, :, None], sin[:, :, None], interleaved), _reference(
        k, cos[:, :, None], sin[:, :, None], interleaved
    )


def _reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    turned = 2 * cos.shape[-1]
    head, rest = x[..., :turned], x[..., turned:]
    first, second = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, dim=-1)
    parts = first * cos - second * sin, second * cos + first * sin
    out = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return torch.cat((out.to(x.dtype), rest), dim=-1)


class Case(NamedTuple):
    """`rotary_dim`: dims that turn, 0 for all. `merged`: q and k are slices of one projection's result. `own`: each
    sequence has positions of its own."""

    batch: int
    length: int
    q_heads: int
    k_heads: int
    head_dim: int
    rotary_dim: int = 0
    interleaved: bool = False
    merged: bool = False
    own: bool = False


def inputs(case: Case, random: Random) -> Inputs:
    """q, k and the tables of positions from 0, or random ones."""
    shape = case.batch, case.length
    if case.merged:
        heads = random.normal(*shape, case.q_heads + 2 * case.k_heads, case.head_dim)
        q, k, _ = heads.split((case.q_heads, case.k_heads, case.k_heads), dim=2)
    else:
        q, k = (random.normal(*shape, heads, case.head_dim) for heads in (case.q_heads, case.k_heads))
    pairs = (case.rotary_dim or case.head_dim) // 2
    positions = random.integers(0, 4096, *shape) if case.own else torch.arange(case.length, device=random.device)[None]
    steps = torch.arange(pairs, device=random.device, dtype=torch.float32) / pairs
    angles = positions[..., None].float() * 10000.0**-steps
    return {"q": q, "k": k, "cos": angles.cos(), "sin": angles.sin(), "interleaved": case.interleaved}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """No matrix product. Each way reads and writes q and k, and reads the tables."""
    count = case.batch * case.length * (case.q_heads + case.k_heads) * case.head_dim
    tables = (case.batch if case.own else 1) * case.length * (case.rotary_dim or case.head_dim) * 4
    total = 2 * count * dtype.itemsize + tables
    return Cost(flops=0, bytes=total, backward_bytes=total)


KERNEL = Kernel(
    name="rope",
    summary="rotary positions of queries and keys in one launch: halves or neighbours, all dims or the first",
    run=rope,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(2, 5, 3, 1, 16, merged=True),
        Case(1, 3, 5, 2, 20, interleaved=True, own=True),
        Case(2, 3, 4, 4, 80, rotary_dim=32),
        Case(2, 3, 71, 1, 64, rotary_dim=24, interleaved=True, merged=True, own=True),
        Case(1, 2, 6, 9, 128),
    ],
    shapes=[
        Case(2, 8192, 32, 8, 128, merged=True),
        Case(2, 8192, 128, 1, 64, interleaved=True),
        Case(2, 8192, 32, 2, 128, rotary_dim=64, interleaved=True),
        Case(2, 8192, 32, 32, 96, rotary_dim=24),
    ],
    differentiable=("q", "k"),
)
