"""Gated activations: y = act(gate) · up, forward and backward, each in one pass.

    SwiGLU: act = x·σ(x)      GEGLU: GELU (exact or tanh)      ReGLU: max(x, 0)      GLU: σ(x)
    gpt-oss: gate ≤ 7, |up| ≤ 7; y = (up + 1) · gate · σ(1.702 gate)

The backward pass recomputes act from gate, so only gate and up are saved:
    dup = dy · act(gate),  dgate = dy · up · act'(gate)

Shapes: gate, up [..., F], each with its own row stride, so that they can be halves of one projection's result.
Arithmetic in fp32. GLU variants: Shazeer, arXiv 2002.05202; GELU: Hendrycks and Gimpel, arXiv 1606.08415.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch

__all__ = ["ACTIVATIONS", "KERNEL", "glu", "reference"]

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "sigmoid": 4, "swiglu_oai": 5}
"""The supported activations, and their numbers in the kernels."""

SILU, GELU, GELU_TANH, RELU, SIGMOID, OAI = (tl.constexpr(number) for number in ACTIVATIONS.values())
LIMIT, SHARPNESS = tl.constexpr(7.0), tl.constexpr(1.702)
INV_SQRT2, INV_SQRT_2PI = tl.constexpr(1 / math.sqrt(2)), tl.constexpr(1 / math.sqrt(2 * math.pi))
TWICE_SQRT_2_PI, CUBIC = tl.constexpr(2 * math.sqrt(2 / math.pi)), tl.constexpr(0.044715)


# == Kernels ==


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def gate_and_slope(x, ACT: tl.constexpr):
    """Return act(x) and its derivative in fp32. The compiler drops the derivative if it is not used."""
    if ACT == SILU:
        s = _sigmoid(x)
        value = x * s
        slope = s * (1.0 + x * (1.0 - s))
    elif ACT == GELU:
        below = 0.5 * (1.0 + tl.erf(x * INV_SQRT2))
        value = x * below
        slope = below + x * INV_SQRT_2PI * tl.exp(-0.5 * x * x)
    elif ACT == GELU_TANH:  # (1 + tanh(z)) / 2 = σ(2z); σ keeps its digits where the tanh is near -1
        e = tl.exp(tl.minimum((x + x * x * x * CUBIC) * -TWICE_SQRT_2_PI, 80.0))
        s = 1.0 / (1.0 + e)  # 1 - s is computed as e · s, which keeps its digits for s near 1
        value = x * s
        slope = s + x * s * s * e * (1.0 + x * x * 3.0 * CUBIC) * TWICE_SQRT_2_PI
    elif ACT == RELU:
        value = tl.maximum(x, 0.0)
        slope = tl.where(x > 0.0, 1.0, 0.0)
    elif ACT == SIGMOID:
        value = _sigmoid(x)
        slope = value * (1.0 - value)
    else:
        clamped = tl.minimum(x, LIMIT)
        s = _sigmoid(clamped * SHARPNESS)
        value = clamped * s
        slope = tl.where(x <= LIMIT, s * (1.0 + clamped * SHARPNESS * (1.0 - s)), 0.0)
    return value, slope


@triton.jit
def _place(blocks, BLOCK: tl.constexpr):
    """Return the row and the columns of this program. Neighbouring programs have neighbouring columns, so that reads
    are contiguous."""
    program = tl.program_id(0)
    return (program // blocks).to(tl.int64), program % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def glu_forward(gate, up, out, gate_row, up_row, width, blocks, ACT: tl.constexpr, BLOCK: tl.constexpr):
    """One program computes BLOCK columns of one row. Parameters that end in `_row` are strides in elements."""
    row, column = _place(blocks, BLOCK)
    inside = column < width
    g = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    value, _ = gate_and_slope(g, ACT)
    if ACT == OAI:
        u = tl.minimum(tl.maximum(u, -LIMIT), LIMIT) + 1.0
    tl.store(out + row * width + column, (value * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def glu_backward(
    dout, gate, up, dgate, dup, dout_row, gate_row, up_row, width, blocks,
    ACT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes dgate and dup of BLOCK columns of one row."""
    row, column = _place(blocks, BLOCK)
    inside = column < width
    dy = tl.load(dout + row * dout_row + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + row * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * up_row + column, mask=inside, other=0.0).to(tl.float32)
    value, slope = gate_and_slope(g, ACT)
    du = dy * value
    if ACT == OAI:
        du = tl.where((u >= -LIMIT) & (u <= LIMIT), du, 0.0)
        u = tl.minimum(tl.maximum(u, -LIMIT), LIMIT) + 1.0
    tl.store(dup + row * width + column, du.to(dup.dtype.element_ty), mask=inside)
    tl.store(dgate + row * width + column, (dy * u * slope).to(dgate.dtype.element_ty), mask=inside)


# == Configurations and launcher ==


def configurations(width: int) -> list[Config]:
    """Return the candidate configurations. A thread has 16 values per tensor, which are two 16-byte loads in bf16. A
    program of 1024 columns has 4 KiB in flight.

    A thread needs 40 to 64 registers, so 32 or more warps run per multiprocessor, with 64 KiB or more in flight. This
    is twice the amount that the latency of memory requires. The first candidate has the widest block that leaves at
    most a tenth of a row's threads idle.
    """

    def idle_share(block: int) -> float:
        return triton.cdiv(width, block) * block / width - 1

    fitting = [block for block in (2048, 1024, 512) if idle_share(block) <= 0.1]
    whole = fitting[0] if fitting else max(256, min(512, triton.next_power_of_2(width)))
    return [
        Config(BLOCK=whole, num_warps=max(1, whole // 512), note="16 values per thread and tensor"),
        Config(BLOCK=whole, num_warps=max(1, whole // 256), note="8 values per thread, more warps"),
        Config(
            BLOCK=2048, num_warps=4, note="the longest contiguous reads; most threads of a row's last block may be idle"
        ),
    ]


def _rows(x: Tensor) -> Tensor:
    """Return x as [rows, F] with unit stride along a row. x is copied only if there is no such view."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


# == Torch op ==


@torch.library.custom_op("llmbench::glu", mutates_args=())
def _glu(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    g, u = _rows(gate), _rows(up)
    rows, width = g.shape
    out = empty(rows, width, like=g)
    config = choose("glu_forward", configurations(width))
    blocks = triton.cdiv(width, config["BLOCK"])
    sizes = g.stride(0), u.stride(0), width, blocks
    launch(glu_forward, (rows * blocks,), config, g, u, out, *sizes, ACT=ACTIVATIONS[activation])
    return out.view(gate.shape)


@_glu.register_fake
def _(gate: Tensor, *_: Any) -> Tensor:
    return gate.new_empty(gate.shape)


@torch.library.custom_op("llmbench::glu_backward", mutates_args=())
def _glu_backward(dout: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    dy, g, u = _rows(dout), _rows(gate), _rows(up)
    rows, width = g.shape
    dgate, dup = empty(rows, width, like=g), empty(rows, width, like=g)
    config = choose("glu_backward", configurations(width))
    blocks = triton.cdiv(width, config["BLOCK"])
    sizes = dy.stride(0), g.stride(0), u.stride(0), width, blocks
    launch(glu_backward, (rows * blocks,), config, dy, g, u, dgate, dup, *sizes, ACT=ACTIVATIONS[activation])
    return dgate.view(gate.shape), dup.view(gate.shape)


@_glu_backward.register_fake
def _(dout: Any, gate: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.activation = inputs[2]


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_glu_backward(dout, *ctx.saved_tensors, ctx.activation), None


_glu.register_autograd(_backward, setup_context=_save)


# == Public op ==


def glu(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """Return act(gate) · up, in contiguous memory. gate and up have the same shape [..., F] and the same dtype.

    Raises KeyError for an activation that is not in ACTIVATIONS, and ValueError if shapes or dtypes differ.
    """
    if gate.shape != up.shape or gate.dtype != up.dtype:
        raise ValueError(f"gate {tuple(gate.shape)} {gate.dtype} and up {tuple(up.shape)} {up.dtype} must not differ")
    ACTIVATIONS[activation]
    return _glu(gate, up, activation)


# == Reference ==


def reference(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """Compute gated activations in plain torch."""
    if activation == "swiglu_oai":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate)
    acts: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "relu": F.relu,
        "sigmoid": torch.sigmoid,
    }
    return acts[activation](gate) * up


# == Cases and cost ==


class Case(NamedTuple):
    """Sizes and the activation. `merged`: gate and up are halves of one tensor."""

    rows: int
    width: int
    activation: str = "silu"
    merged: bool = False


def inputs(case: Case, random: Random) -> Inputs:
    """Return gate and up with a standard deviation of 4, so that some values exceed gpt-oss's limits."""
    if case.merged:
        gate, up = random.normal(case.rows, 2 * case.width, scale=4.0).chunk(2, dim=-1)
    else:
        gate, up = (random.normal(case.rows, case.width, scale=4.0) for _ in range(2))
    return {"gate": gate, "up": up, "activation": case.activation}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return the bytes of both passes, and 0 FLOPs, because there is no matrix product. The forward pass reads two
    tensors and writes one. The backward pass reads three and writes two."""
    one = case.rows * case.width * dtype.itemsize
    return Cost(flops=0, bytes=3 * one, backward_bytes=5 * one)


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    rows, width = draw.size(20, least=0), draw.size(2600)
    return Case(rows, width, draw.choice(list(ACTIVATIONS)), merged=draw.chance(0.3))


KERNEL = Kernel(
    name="glu",
    summary="act(gate) · up: SwiGLU, GEGLU, ReGLU, GLU and gpt-oss's",
    run=glu,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        *(Case(3, 37, activation) for activation in ACTIVATIONS),
        Case(2, 300, "silu", merged=True),
        Case(1, 1, "gelu_tanh"),
        Case(5, 256, "gelu"),
    ],
    random_case=random_case,
    shapes=[Case(16384, 11008, merged=True), Case(16384, 14336, "gelu"), Case(16384, 2880, "swiglu_oai")],
    differentiable=("gate", "up"),
)
