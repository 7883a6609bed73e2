"""A mixture of experts: out[i] = Σ over the k experts e of token i of w · down[e]·(act(gate[e]·x[i]) ∘ up[e]·x[i]).

The forward pass sorts the pairs (token, slot) by expert (sorting.py). Then it makes three launches:
    gated     a, b = rows of x times gate[e] and up[e], gathered as they are loaded; h = act(a) ∘ b from sums in fp32
              (gated.py)
    down      w · down[e]·h, each row written to the place of its pair (grouped.py)
    combine   out[i] = the sum of token i's k rows, which are adjacent; no atomics, so it repeats exactly (sums.py)
The forward pass saves a and b (2·R·F values), but not h and not the outputs of the experts. In the backward pass, y is
down[e]·h, and dy is the token's row of dout, not yet multiplied by w:
    dh = down[e]ᵀ·dy        dw = dy·y = dh·h, which needs no y        ddown[e] = Σ dy ⊗ w·h
    db = w·dh ∘ act(a),  da = w·dh ∘ b ∘ act'(a)        dgate[e] = Σ da ⊗ x,  dup[e] = Σ db ⊗ x
    dx[i] = the sum over its k pairs of gate[e]ᵀ·da + up[e]ᵀ·db
Without gate, h = act(up[e]·x). An expert index of E or more means a zero-computation expert: its output is w · x[i].

Shapes: t tokens, k experts per token, R = t·k pairs, D hidden, F intermediate, E experts; x [t, D], weights [t, k] in
any floating-point dtype, chosen [t, k]; gate and up [E, F, D], down [E, D, F], biases [E, F], [E, F], [E, D]. fp32
operands are multiplied in tf32 on a GPU; sums and activations are in fp32. Mixtures: Shazeer et al., arXiv 1701.06538;
dw from dh·h, and fused gathers: Guo et al., SonicMoE, arXiv 2512.14080.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.experts.gated import gated, gated_gradient
from llmbench.kernels.experts.grouped import MAX_WIDTH, product, weight_gradient
from llmbench.kernels.experts.sorting import rows_per_tile, sort_by_expert
from llmbench.kernels.experts.sums import bias_gradient, combine_rows, pair_gradient
from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.pointwise.glu import ACTIVATIONS
from llmbench.kernels.pointwise.glu import reference as glu_reference

__all__ = ["KERNEL", "moe", "reference"]


# == Torch op ==


@torch.library.custom_op("llmbench::moe", mutates_args=())
def _moe(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    activation: str,
    tile: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out [t, D], and a and b: [R, F] if `keep`, else two empty tensors. Without gate, a is up·x and b is
    empty."""
    x, weights, chosen = x.contiguous(), weights.contiguous(), chosen.contiguous()
    gate, up, down, gate_bias, up_bias, bias = _contiguous(gate, up, down, gate_bias, up_bias, down_bias)
    matrices = (up, None, up_bias, None) if gate is None else (gate, up, gate_bias, up_bias)
    h, a, b = gated(x, matrices, order, offsets, tiles, tile, chosen.shape[1], activation, keep)
    rows = product(h, down, offsets, tiles, tile, bias=bias, order=order, scale=weights)
    return combine_rows(rows, x, weights, chosen, down.shape[0]), a, b


def _contiguous(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


@_moe.register_fake
def _(
    x: Tensor, weights: Any, chosen: Tensor, gate: Tensor | None, up: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    saved, nothing, keep = (chosen.numel(), up.shape[1]), (0,), rest[-1]
    a, b = saved if keep else nothing, saved if keep and gate is not None else nothing
    return x.new_empty(x.shape), x.new_empty(a), x.new_empty(b)


@torch.library.custom_op("llmbench::moe_backward", mutates_args=())
def _moe_backward(
    dout: Tensor,
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    a: Tensor,
    b: Tensor,
    activation: str,
    tile: int,
) -> list[Tensor]:
    """Return the gradients of x, weights, gate, up, down and the three biases; an empty tensor for each argument that
    is None."""
    dout, x, weights, chosen = dout.contiguous(), x.contiguous(), weights.contiguous(), chosen.contiguous()
    gate, up, down, down_bias = _contiguous(gate, up, down, down_bias)
    k = chosen.shape[1]
    da, db, scaled, sums = gated_gradient(
        dout, down, a, None if gate is None else b, weights, order, offsets, tiles, tile, k, activation
    )
    ddown = weight_gradient(dout, scaled, offsets, order, k, gathered="p")
    del scaled
    dweights = pair_gradient(sums, dout, x, weights, chosen, down_bias, down.shape[0])
    dfirst = weight_gradient(da, x, offsets, order, k, gathered="q")
    terms: tuple[Tensor | None, Tensor | None]
    if gate is None or db is None:  # without gate, `up` is the only matrix
        dgate, dup, terms, first, second = None, dfirst, (None, da), up, None
    else:
        dgate, dup = dfirst, weight_gradient(db, x, offsets, order, k, gathered="q")
        terms, first, second = (da, db), gate, (db, up)
    rows = product(da, first, offsets, tiles, tile, transposed=True, second=second, order=order)
    grads = [combine_rows(rows, dout, weights, chosen, down.shape[0]), dweights, dgate, dup, ddown]
    for bias, term in zip((gate_bias, up_bias), terms, strict=True):
        grads.append(None if bias is None or term is None else bias_gradient(term, offsets))
    grads.append(None if down_bias is None else bias_gradient(dout, offsets, order, weights, k))
    return [x.new_empty(0) if grad is None else grad for grad in grads]


@_moe_backward.register_fake
def _(
    dout: Any,
    x: Tensor,
    weights: Tensor,
    chosen: Any,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    *_: Any,
) -> list[Tensor]:
    arguments = (x, weights, gate, up, down, gate_bias, up_bias, down_bias)
    return [x.new_empty(0) if argument is None else argument.new_empty(argument.shape) for argument in arguments]


@register_flop_formula(torch.ops.llmbench.moe)
def _flops(x: Any, weights: Any, chosen: torch.Size, gate: Any, up: torch.Size, *_: Any, **__: Any) -> int:
    """Count the FLOPs of all pairs. Shapes do not show which pairs have zero-computation experts, so these pairs count
    too."""
    return 2 * chosen.numel() * up[1] * up[2] * (2 if gate is None else 3)


@register_flop_formula(torch.ops.llmbench.moe_backward)
def _backward_flops(
    dout: Any, x: Any, weights: Any, chosen: torch.Size, gate: Any, up: torch.Size, *_: Any, **__: Any
) -> int:
    return 4 * chosen.numel() * up[1] * up[2] * (2 if gate is None else 3)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.tile, _saved = inputs
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # autograd must not allocate zero gradients for a and b


def _backward(ctx: Any, dout: Tensor, da: None, db: None) -> tuple[Tensor | None, ...]:
    grads = _moe_backward(dout, *ctx.saved_tensors, ctx.activation, ctx.tile)
    arguments = [ctx.saved_tensors[i] for i in (0, 1, 3, 4, 5, 6, 7, 8)]
    dx, dweights, *rest = [None if argument is None else grad for grad, argument in zip(grads, arguments, strict=True)]
    return dx, dweights, None, *rest, *[None] * 6


_moe.register_autograd(_backward, setup_context=_save)


# == Public op ==


def moe(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str = "silu",
) -> Tensor:
    """Return the outputs of the chosen experts for x [t, D], weighted and summed: [t, D].

    `chosen` [t, k] are not negative, in int32 or int64. Raises KeyError for an activation that is not in ACTIVATIONS,
    and ValueError for shapes and dtypes that do not match. Some models with one expert per token apply the router
    weight to the expert's input. Multiply x by the router weights for such a model, and pass weights of 1.
    """
    ACTIVATIONS[activation]
    if up.dim() != 3 or x.dim() != 2 or x.shape[1] != up.shape[2]:
        raise ValueError(f"x {tuple(x.shape)} and up {tuple(up.shape)}: they must be [t, D] and [E, F, D]")
    experts, width, hidden = up.shape
    if max(width, hidden) > MAX_WIDTH:
        raise ValueError(f"up {tuple(up.shape)}: a matrix has at most {MAX_WIDTH:,} rows and columns")
    shapes = {
        "gate": (gate, (experts, width, hidden)),
        "down": (down, (experts, hidden, width)),
        "gate_bias": (gate_bias, (experts, width)),
        "up_bias": (up_bias, (experts, width)),
        "down_bias": (down_bias, (experts, hidden)),
    }
    for name, (matrix, shape) in shapes.items():
        if matrix is not None and (matrix.shape != shape or matrix.dtype != x.dtype):
            raise ValueError(f"{name} {tuple(matrix.shape)} {matrix.dtype} must be {shape} in x's dtype {x.dtype}")
    if x.dtype not in KERNEL.dtypes or up.dtype != x.dtype:
        raise ValueError(f"x {x.dtype} and up {up.dtype}: both must have one dtype: fp16, bf16 or fp32")
    if chosen.dim() != 2 or weights.shape != chosen.shape or chosen.shape[0] != x.shape[0]:
        raise ValueError(f"weights {tuple(weights.shape)} and chosen {tuple(chosen.shape)}: they must be [t, k]")
    if chosen.dtype not in (torch.int32, torch.int64) or not weights.is_floating_point():
        raise ValueError(
            f"weights {weights.dtype} must be floating-point, and chosen {chosen.dtype} must be int32 or int64"
        )
    if gate is None and (gate_bias is not None or activation == "swiglu_oai"):
        raise ValueError("gate_bias and swiglu_oai need gate")
    tile = rows_per_tile(chosen.numel(), experts)
    order, offsets, tiles = sort_by_expert(chosen, experts, tile)
    tensors = x, weights, chosen, gate, up, down, gate_bias, up_bias, down_bias
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    out, _, _ = _moe(*tensors, order, offsets, tiles, activation, tile, keep)
    return out


# == Reference ==


def reference(
    x: Tensor,
    weights: Tensor,
    chosen: Tensor,
    gate: Tensor | None,
    up: Tensor,
    down: Tensor,
    gate_bias: Tensor | None = None,
    up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    *,
    activation: str = "silu",
) -> Tensor:
    """Compute the mixture in plain torch: sort copies of the tokens by expert, compute one expert after another, and
    sort back."""
    choices = chosen.flatten()
    order = choices.argsort(stable=True)
    counts = torch.bincount(choices, minlength=len(up) + 1).tolist()
    *copies, zero_copies = x[order // chosen.shape[1]].split([*counts[: len(up)], sum(counts[len(up) :])])
    outputs = []
    for e, rows in enumerate(copies):
        b = rows @ up[e].T if up_bias is None else torch.addmm(up_bias[e], rows, up[e].T)
        if gate is None:
            h = glu_reference(b, torch.ones_like(b), activation)
        else:
            a = rows @ gate[e].T if gate_bias is None else torch.addmm(gate_bias[e], rows, gate[e].T)
            h = glu_reference(a, b, activation)
        outputs.append(h @ down[e].T if down_bias is None else torch.addmm(down_bias[e], h, down[e].T))
    outputs_by_pair = torch.cat([*outputs, zero_copies])[order.argsort()].view(*chosen.shape, x.shape[1])
    return (outputs_by_pair * weights[..., None].to(outputs_by_pair.dtype)).sum(1)


# == Cases and cost ==


class Case(NamedTuple):
    """Sizes and options. Each token chooses among `used` experts (None: all experts) and `zero_experts` experts that
    compute nothing."""

    tokens: int
    hidden: int
    width: int
    experts: int
    k: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    used: int | None = None
    zero_experts: int = 0


def inputs(case: Case, random: Random) -> Inputs:
    """Return k different experts per token, with weights that sum to about 1."""
    choices = (case.used or case.experts) + case.zero_experts
    if random.shapes_only:
        chosen = random.integers(0, case.experts, case.tokens, case.k)
    else:
        chosen = random.normal(case.tokens, choices, dtype=torch.float32).topk(case.k).indices
        if case.used is not None:
            chosen = torch.where(chosen < case.used, chosen, chosen - case.used + case.experts)
    inner, outer = (case.experts, case.width), (case.experts, case.hidden)

    def bias(wanted: bool, shape: tuple[int, int]) -> Tensor | None:
        return random.normal(*shape) if case.bias and wanted else None

    return {
        "x": random.normal(case.tokens, case.hidden),
        "weights": (random.normal(case.tokens, case.k, dtype=torch.float32) * 0.2 + 1.0) / case.k,
        "chosen": chosen,
        "gate": random.normal(*inner, case.hidden, scale=2 * case.hidden**-0.5) if case.gated else None,
        "up": random.normal(*inner, case.hidden, scale=case.hidden**-0.5),
        "down": random.normal(*outer, case.width, scale=case.width**-0.5),
        "gate_bias": bias(case.gated, inner),
        "up_bias": bias(True, inner),
        "down_bias": bias(True, outer),
        "activation": case.activation,
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return 2·D·F FLOPs per matrix and pair for the forward pass, and twice as many for the backward pass. Pairs with
    zero-computation experts count too.

    The forward pass reads and writes the tokens once, reads `chosen` and `weights` once, and reads the matrices of as
    many experts as the pairs can visit. The backward pass reads the same tensors and dout, and writes the gradients of
    all experts.
    """
    pairs = case.tokens * case.k
    matrices = 3 if case.gated else 2
    flops = 2 * pairs * matrices * case.hidden * case.width
    biases = (matrices - 1) * case.width + case.hidden if case.bias else 0
    expert = matrices * case.hidden * case.width + biases
    visited = min(case.used or case.experts, pairs)
    tokens, item = case.tokens * case.hidden, dtype.itemsize
    forward = (2 * tokens + visited * expert) * item + 12 * pairs
    backward = (3 * tokens + (visited + case.experts) * expert) * item + 16 * pairs
    return Cost(flops, forward, 2 * flops, backward)


def random_case(draw: Draw) -> Case:
    """Return a random case. Some experts get no token."""
    experts = draw.size(10)
    used = draw.maybe(draw.randrange(1, experts + 1))
    zero_experts = draw.size(3) if draw.chance(0.3) else 0
    gated = draw.chance(0.7)
    activations = [name for name in ACTIVATIONS if gated or name != "swiglu_oai"]
    return Case(
        tokens=draw.size(80, least=0),
        hidden=draw.size(120),
        width=draw.size(150),
        experts=experts,
        k=draw.size(min(4, (used or experts) + zero_experts)),
        activation=draw.choice(activations),
        gated=gated,
        bias=draw.chance(),
        used=used,
        zero_experts=zero_experts,
    )


KERNEL = Kernel(
    name="moe",
    summary="mixture of experts: outputs of the chosen experts, weighted and summed",
    run=moe,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(11, 37, 21, 4, 2),
        Case(34, 64, 136, 2, 2, "gelu_tanh"),
        Case(17, 24, 32, 2, 2, "relu", gated=False, bias=True),
        Case(7, 48, 33, 4, 3, "swiglu_oai", bias=True, used=3),
        Case(9, 20, 70, 3, 3, "gelu", used=2, zero_experts=2),
        Case(19, 40, 20, 3, 1, "sigmoid", used=1),
        Case(0, 24, 16, 3, 2),
    ],
    random_case=random_case,
    shapes=[
        Case(8192, 4096, 14336, 8, 2),  # Mixtral 8x7B, training
        Case(64, 2048, 768, 128, 8),  # Qwen3-30B-A3B, decoding: tiles of 16 rows
        Case(128, 2880, 2880, 32, 4, "swiglu_oai", bias=True),  # gpt-oss-20b, decoding: tiles of 32 rows, with biases
        Case(512, 2048, 768, 128, 8),  # a short prompt: tiles of 64 rows
    ],
    differentiable=("x", "weights", "gate", "up", "down", "gate_bias", "up_bias", "down_bias"),
)
