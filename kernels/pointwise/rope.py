"""Rotary position embeddings: rotate queries and keys by the angles of their positions, both in one launch.

    (first, second) -> (first · cos − second · sin, second · cos + first · sin)

A pair is two of the first R dimensions of a head: one of each half, (i, i + R/2), or two neighbours, (2i, 2i + 1), if
interleaved. The other H − R dimensions are copied. The transpose of a rotation is its inverse, so the backward pass is
the same kernel with −sin, and only the tables cos and sin are saved. The results are new tensors. A rotation in place
would move as many bytes, and would change inputs that autograd may have saved. New tensors also have contiguous heads,
even if q and k are slices of one projection.

B batch, S sequence length, N query heads, K key heads, H head width. Shapes: q [B, S, N, H] and k [B, S, K, H] with a
last stride of 1; cos and sin [B or 1, S, R/2], which the caller computes once for all layers. Arithmetic in fp32. Su et
al., arXiv 2104.09864.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch

__all__ = ["KERNEL", "reference", "rope"]


# == Kernels ==


@triton.jit
def _rotate(
    x, out, cos, sin, head_stride, first_head, heads,
    head_dim: tl.constexpr, rotary_dim: tl.constexpr, INTERLEAVED: tl.constexpr, HEADS: tl.constexpr,
    PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Rotate HEADS heads of one token. x and out point to the token's first head. cos and sin [1, PAIRS] belong to the
    token's position."""
    head = (first_head + tl.arange(0, HEADS))[:, None]
    exists = head < heads
    head = head.to(tl.int64)
    x += head * head_stride
    out += head * head_dim
    if INTERLEAVED:
        column = tl.arange(0, 2 * PAIRS)[None, :]
        inside = exists & (column < rotary_dim)
        both = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, [HEADS, PAIRS, 2]))
        both = tl.join(first * cos - second * sin, second * cos + first * sin)
        both = tl.reshape(both, [HEADS, 2 * PAIRS]).to(out.dtype.element_ty)
        tl.store(out + column, both, mask=inside)
    else:
        column = tl.arange(0, PAIRS)[None, :]
        inside = exists & (column < rotary_dim // 2)
        first = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + rotary_dim // 2 + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + column, (first * cos - second * sin).to(out.dtype.element_ty), mask=inside)
        tl.store(out + rotary_dim // 2 + column, (second * cos + first * sin).to(out.dtype.element_ty), mask=inside)
    if REST:
        column = rotary_dim + tl.arange(0, REST)[None, :]
        inside = exists & (column < head_dim)
        tl.store(out + column, tl.load(x + column, mask=inside, other=0.0), mask=inside)


@triton.jit
def rope_turn(
    q, k, q_out, k_out, cos, sin, q_batch, q_token, q_head, k_batch, k_token, k_head, table_batch, table_token, length,
    q_heads, k_heads, groups, sign,
    HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr, Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One program rotates one group of a token's query heads and one group of its key heads. `sign` is −1 in the
    backward pass."""
    token, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    batch, at = (token // length).to(tl.int64), (token % length).to(tl.int64)
    pair = tl.arange(0, PAIRS)[None, :]
    angle = batch * table_batch + at * table_token + pair
    c = tl.load(cos + angle, mask=pair < ROTARY_DIM // 2, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=pair < ROTARY_DIM // 2, other=0.0).to(tl.float32) * sign
    token = token.to(tl.int64) * HEAD_DIM
    _rotate(
        q + batch * q_batch + at * q_token, q_out + token * q_heads, c, s, q_head, group * Q_HEADS, q_heads, HEAD_DIM,
        ROTARY_DIM, INTERLEAVED, Q_HEADS, PAIRS, REST,
    )  # fmt: skip
    _rotate(
        k + batch * k_batch + at * k_token, k_out + token * k_heads, c, s, k_head, group * K_HEADS, k_heads, HEAD_DIM,
        ROTARY_DIM, INTERLEAVED, K_HEADS, PAIRS, REST,
    )  # fmt: skip


# == Configurations and launcher ==


def configurations(q_heads: int, k_heads: int, head_dim: int) -> list[Config]:
    """Return the candidate configurations. A program has heads of one token, with up to 4096 values of q. A thread has
    32 of these values: 4 or 5 16-byte loads in flight in bf16.

    A program reads the angles once for all its heads. About 64 registers per thread allow 32 warps per multiprocessor,
    with 40 KiB or more in flight.
    """

    def candidate(max_values: int, per_thread: int, note: str) -> Config:
        heads = max(1, min(triton.next_power_of_2(q_heads), max_values // triton.next_power_of_2(head_dim)))
        groups = triton.cdiv(q_heads, heads)
        k_group = triton.next_power_of_2(triton.cdiv(k_heads, groups))
        warps = triton.next_power_of_2(max(1, heads * head_dim // (32 * per_thread)))
        return Config(Q_HEADS=heads, K_HEADS=k_group, num_warps=min(8, warps), note=note)

    return [
        candidate(4096, 32, "all heads of a token in most models; 32 values of q per thread"),
        candidate(4096, 16, "more warps, fewer values per thread"),
        candidate(2048, 32, "smaller programs; the angles are read twice"),
    ]


def _unit_stride(x: Tensor) -> Tensor:
    """Return x with a last stride of 1, copied if necessary."""
    return x if x.stride(-1) == 1 else x.contiguous()


# == Torch op ==


@torch.library.custom_op("llmbench::rope", mutates_args=())
def _rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, backward: bool) -> tuple[Tensor, Tensor]:
    q, k, cos, sin = _unit_stride(q), _unit_stride(k), cos.contiguous(), sin.contiguous()
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
        ROTARY_DIM=2 * pairs,
        INTERLEAVED=interleaved,
        PAIRS=triton.next_power_of_2(pairs),
        REST=triton.next_power_of_2(rest) if rest else 0,
    )
    return q_out, k_out


@_rope.register_fake
def _(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.interleaved, ctx.backward = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    return *_rope(dq, dk, *ctx.saved_tensors, ctx.interleaved, not ctx.backward), None, None, None, None


_rope.register_autograd(_backward, setup_context=_save)


# == Public op ==


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """Return q [B, S, N, H] and k [B, S, K, H], rotated by the angles of the tables cos and sin [B or 1, S, R/2].

    The results are contiguous. The tables get no gradients. Raises ValueError for shapes and dtypes that do not match.
    """
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32) or k.dtype != q.dtype:
        raise ValueError(f"q is {q.dtype} and k is {k.dtype}; both must have one dtype: float16, bfloat16 or float32")
    if q.dim() != 4 or k.dim() != 4 or (*q.shape[:2], q.shape[3]) != (*k.shape[:2], k.shape[3]):
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must be [B, S, N, H] and [B, S, K, H]")
    pairs = cos.shape[-1]
    if cos.shape != sin.shape or cos.shape not in ((1, q.shape[1], pairs), (*q.shape[:2], pairs)):
        raise ValueError(
            f"cos {tuple(cos.shape)} and sin {tuple(sin.shape)} must be [B or 1, S, R/2] for q {tuple(q.shape)}"
        )
    if not 0 < 2 * pairs <= q.shape[-1]:
        raise ValueError(f"cos rotates {2 * pairs} dimensions, but heads have {q.shape[-1]}")
    rotated: tuple[Tensor, Tensor] = _rope(q, k, cos, sin, interleaved, False)
    return rotated


# == Reference ==


def reference(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """Rotate q and k in plain torch, in the dtype of the tables."""
    return _rotated(q, cos[:, :, None], sin[:, :, None], interleaved), _rotated(
        k, cos[:, :, None], sin[:, :, None], interleaved
    )


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    rotary_dim = 2 * cos.shape[-1]
    head, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    first, second = (head[..., 0::2], head[..., 1::2]) if interleaved else head.chunk(2, dim=-1)
    parts = first * cos - second * sin, second * cos + first * sin
    out = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return torch.cat((out.to(x.dtype), rest), dim=-1)


# == Cases and cost ==


class Case(NamedTuple):
    """Sizes and options. `rotary_dim`: the number of rotated dimensions; 0 rotates all.

    `merged`: q and k are slices of one projection's result. `own`: each sequence has its own positions."""

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
    """Return q, k and the tables of the positions from 0, or of random positions if `own`."""
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
    """Return the bytes of both passes, and 0 FLOPs, because there is no matrix product. Each pass reads and writes q
    and k, and reads the tables."""
    count = case.batch * case.length * (case.q_heads + case.k_heads) * case.head_dim
    tables = (case.batch if case.own else 1) * case.length * (case.rotary_dim or case.head_dim) * 4
    total = 2 * count * dtype.itemsize + tables
    return Cost(flops=0, bytes=total, backward_bytes=total)


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    head_dim = draw.size(200, least=2)
    return Case(
        batch=draw.size(3, least=0),
        length=draw.size(9, least=0),
        q_heads=draw.size(40),
        k_heads=draw.size(10),
        head_dim=head_dim,
        rotary_dim=2 * draw.size(head_dim // 2) if draw.chance() else 0,
        interleaved=draw.chance(),
        merged=draw.chance(0.3),
        own=draw.chance(),
    )


KERNEL = Kernel(
    name="rope",
    summary="rotary positions of queries and keys in one launch: halves or neighbours, all dimensions or the first",
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
    random_case=random_case,
    shapes=[
        Case(2, 8192, 32, 8, 128, merged=True),
        Case(2, 8192, 128, 1, 64, interleaved=True),
        Case(2, 8192, 32, 2, 128, rotary_dim=64, interleaved=True),
        Case(2, 8192, 32, 32, 96, rotary_dim=24),
    ],
    differentiable=("q", "k"),
)
