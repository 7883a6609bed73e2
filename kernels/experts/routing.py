"""Which experts a token visits, and with what weight: scores, choice, normalisation, in one pass over the logits.

    scores        softmax(l)                    "softmax"
                  σ(l)                          "sigmoid"
                  l, and softmax over the k chosen afterwards, "softmax_topk"
    ranked        scores + correction, where there is one; it moves the choice, never a weight
    groups        only the experts of the best `topk_group` of `n_group` equal groups may be chosen. A group counts by
                  its best, or with a correction by the sum of its two best
    weights       the scores of the k best, divided by their sum if `normalize`, times `scale`

Backward recomputes the scores. With N = Σ over the chosen of s, and w = c·s/N (or c·s):
    ds = c/N · (dw − Σ dw·s / N)      dl = s·(ds − Σ ds·s)  for softmax,   ds·s·(1 − s)  for σ

Shapes: logits [t, E] in fp32, t tokens, E experts, k chosen; weights [t, k] fp32, chosen [t, k] int64, best first; of
equal experts the first. Groups and corrections: DeepSeek-V2, arXiv 2405.04434, and V3, arXiv 2412.19437. The kernels
stand in routing.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from llmbench.kernels.experts.routing_kernels import SCORES, configurations, route_backward, route_forward
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import choose, empty, launch

__all__ = ["KERNEL", "SCORES", "moe_routing", "reference"]


@torch.library.custom_op("llmbench::moe_routing", mutates_args=())
def _route(
    logits: Tensor,
    correction: Tensor | None,
    k: int,
    scores: str,
    normalize: bool,
    scale: float,
    n_group: int,
    topk_group: int,
) -> tuple[Tensor, Tensor]:
    logits = logits.contiguous()
    tokens, experts = logits.shape
    weights = empty(tokens, k, like=logits)
    chosen = empty(tokens, k, like=logits, dtype=torch.int64)
    each = experts // n_group
    groups_block, each_block = triton.next_power_of_2(n_group), triton.next_power_of_2(each)
    config = choose("route_forward", configurations(groups_block * each_block))
    launch(
        route_forward,
        (triton.cdiv(tokens, config["T"]),),
        config,
        logits,
        correction,
        weights,
        chosen,
        tokens,
        experts,
        n_group,
        each,
        float(scale),
        OF=SCORES[scores],
        NORMALIZE=normalize,
        KEPT=groups_block if topk_group == n_group else topk_group,
        K=k,
        SLOTS=triton.next_power_of_2(k),
        GROUPS=groups_block,
        EACH=each_block,
    )
    return weights, chosen


@_route.register_fake
def _(
    logits: Tensor,
    correction: Tensor | None,
    k: int,
    scores: str,
    normalize: bool,
    scale: float,
    n_group: int,
    topk_group: int,
) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], k), logits.new_empty(logits.shape[0], k, dtype=torch.int64)


@torch.library.custom_op("llmbench::moe_routing_backward", mutates_args=())
def _route_backward(
    dweights: Tensor, chosen: Tensor, logits: Tensor, scores: str, normalize: bool, scale: float
) -> Tensor:
    dweights, logits = dweights.contiguous(), logits.contiguous()
    (tokens, experts), k = logits.shape, chosen.shape[1]
    dlogits = empty(tokens, experts, like=logits)
    block = triton.next_power_of_2(experts)
    config = choose("route_backward", configurations(block))
    arguments = dweights, chosen, logits, dlogits, tokens, experts, float(scale)
    constants = {"OF": SCORES[scores], "NORMALIZE": normalize, "K": k}
    constants |= {"SLOTS": triton.next_power_of_2(k), "EXPERTS": block}
    launch(route_backward, (triton.cdiv(tokens, config["T"]),), config, *arguments, **constants)
    return dlogits


@_route_backward.register_fake
def _(dweights: Tensor, chosen: Tensor, logits: Tensor, scores: str, normalize: bool, scale: float) -> Tensor:
    return logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, _, _, ctx.scores, ctx.normalize, ctx.scale, _, _ = inputs
    ctx.save_for_backward(output[1], logits)


def _backward(ctx: Any, dweights: Tensor, dchosen: Tensor | None) -> tuple[Tensor | None, ...]:
    dlogits = _route_backward(dweights, *ctx.saved_tensors, ctx.scores, ctx.normalize, ctx.scale)
    return dlogits, *[None] * 7


_route.register_autograd(_backward, setup_context=_keep)


def moe_routing(
    logits: Tensor,
    k: int,
    correction: Tensor | None = None,
    *,
    scores: str = "softmax",
    normalize: bool = False,
    scale: float = 1.0,
    n_group: int = 1,
    topk_group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Weights [t, k] in fp32 and chosen experts [t, k] in int64 of logits [t, E], which must be fp32.

    `softmax_topk` knows neither correction nor groups, as no model has them together. Raises KeyError for scores that
    are not in SCORES, ValueError for what does not fit together.
    """
    of = SCORES[scores]
    if logits.dim() != 2 or logits.dtype != torch.float32:
        raise ValueError(f"logits must be [t, E] in fp32, not {tuple(logits.shape)} {logits.dtype}")
    experts = logits.shape[1]
    if not 0 < k <= min(experts, 64):
        raise ValueError(f"k={k}: of {experts} experts 1 to {min(experts, 64)} can be chosen")
    if experts > 2048:
        raise ValueError(f"{experts} experts: at most 2048 stand side by side")
    if n_group < 1 or experts % n_group or not 0 < topk_group <= n_group:
        raise ValueError(f"{topk_group} of {n_group} groups of {experts} experts: no such division")
    if of == SCORES["softmax_topk"] and (correction is not None or n_group > 1):
        raise ValueError("softmax_topk takes neither a correction nor groups")
    if correction is not None and (correction.shape != (experts,) or correction.dtype != torch.float32):
        raise ValueError(f"correction {tuple(correction.shape)} {correction.dtype}: ({experts},) in fp32 is needed")
    if topk_group < n_group and correction is not None and experts // n_group < 2:
        raise ValueError("groups count by their two best: groups of one expert have none")
    if correction is not None:
        correction = correction.detach().contiguous()
    weights, chosen = _route(logits, correction, k, scores, normalize, scale, n_group, topk_group)
    return weights, chosen


def reference(
    logits: Tensor,
    k: int,
    correction: Tensor | None = None,
    *,
    scores: str = "softmax",
    normalize: bool = False,
    scale: float = 1.0,
    n_group: int = 1,
    topk_group: int = 1,
) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    if scores == "softmax_topk":
        top, chosen = logits.topk(k, dim=-1)
        return top.softmax(-1) * scale, chosen
    value = logits.sigmoid() if scores == "sigmoid" else logits.softmax(-1)
    ranked = value if correction is None else value + correction
    if n_group > 1:
        groups = ranked.unflatten(-1, (n_group, -1))
        strength = groups.amax(-1) if correction is None else groups.topk(2, dim=-1).values.sum(-1)
        kept = torch.zeros_like(strength).scatter(-1, strength.topk(topk_group, dim=-1).indices, 1.0)
        ranked = groups.masked_fill(kept[..., None] == 0, 0.0 if correction is None else float("-inf")).flatten(-2)
    chosen = ranked.topk(k, dim=-1).indices
    weights = value.gather(-1, chosen)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, chosen


class Case(NamedTuple):
    """`groups`: (n_group, topk_group)."""

    tokens: int
    experts: int
    k: int
    scores: str = "softmax"
    normalize: bool = False
    scale: float = 1.0
    corrected: bool = False
    groups: tuple[int, int] = (1, 1)


def inputs(case: Case, random: Random) -> Inputs:
    """Logits wide enough that weights differ, and a correction that changes choices."""
    return {
        "logits": random.normal(case.tokens, case.experts, scale=2.0, dtype=torch.float32),
        "k": case.k,
        "correction": random.normal(case.experts, scale=0.2, dtype=torch.float32) if case.corrected else None,
        "scores": case.scores,
        "normalize": case.normalize,
        "scale": case.scale,
        "n_group": case.groups[0],
        "topk_group": case.groups[1],
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """No matrix product. Forward reads the logits; backward reads them again and writes as many. The choices are 12
    bytes each: a weight and an index."""
    all_bytes, chosen_bytes = 4 * case.tokens * case.experts, 12 * case.tokens * case.k
    correction_bytes = 4 * case.experts if case.corrected else 0
    return Cost(flops=0, bytes=all_bytes + correction_bytes + chosen_bytes, backward_bytes=2 * all_bytes + chosen_bytes)


KERNEL = Kernel(
    name="moe_routing",
    summary="the experts of a token and their weights: softmax, sigmoid, groups, corrections",
    run=moe_routing,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 8, 2, "softmax_topk"),
        Case(7, 12, 4, normalize=True),
        Case(40, 33, 1),
        Case(6, 24, 5, scale=2.5, groups=(3, 2)),
        Case(9, 40, 6, "sigmoid", True, 2.5, True, (8, 3)),
        Case(4, 6, 6, "sigmoid", corrected=True),
        Case(33, 128, 3, "softmax_topk", scale=0.5),
    ],
    shapes=[
        Case(16384, 256, 8, "sigmoid", True, 2.5, True, (8, 4)),  # DeepSeek-V3
        Case(16384, 128, 8, "softmax", True),  # Qwen3-MoE
    ],
    differentiable=("logits",),
    dtypes=(torch.float32,),
)
