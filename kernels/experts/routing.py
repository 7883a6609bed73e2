"""Routing: select the experts of each token, and compute their weights, in one pass over the logits.

    scores        softmax(l)                    "softmax"
                  σ(l)                          "sigmoid"
                  l, then softmax over the k chosen experts, "softmax_topk"
    ranked        scores + correction, if there is one; it changes the choice but no weight
    groups        only experts of the best `topk_group` of `n_group` equal groups may be chosen. A group ranks by its
                  best expert, or with a correction by the sum of its two best
    weights       the scores of the k best, divided by their sum if `normalize`, times `scale`

The backward pass recomputes the scores s. With c = `scale`, N = Σ s over the chosen experts, and w = c·s/N (or c·s):
    ds = c/N · (dw − Σ dw·s / N)      dl = s·(ds − Σ ds·s)  for softmax,   ds·s·(1 − s)  for σ

Shapes: logits [t, E] in fp32, t tokens, E experts, k chosen; weights [t, k] in fp32, chosen [t, k] in int64, best
first; the first of equal experts wins. Groups and corrections: DeepSeek-V2, arXiv 2405.04434, and V3, arXiv 2412.19437.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, choose, empty, launch

__all__ = ["KERNEL", "SCORES", "moe_routing", "reference"]

SCORES = {"softmax": 0, "softmax_topk": 1, "sigmoid": 2}
"""The supported scores, and their numbers in the kernels."""

SOFTMAX, SOFTMAX_TOPK, SIGMOID = (tl.constexpr(number) for number in SCORES.values())
NO_EXPERT = tl.constexpr(1 << 30)  # greater than the index of any expert
TINY = tl.constexpr(1e-20)  # avoids a division by zero if all chosen scores underflow


# == Kernels ==


@triton.jit
def _scores(x, inside, KIND: tl.constexpr):
    """Return the scores of logits [T, P] in fp32. Entries without an expert (not `inside`) get the score 0 or -inf."""
    if KIND == SIGMOID:
        score = tl.where(inside, 1.0 / (1.0 + tl.exp(-x)), 0.0)
    elif KIND == SOFTMAX:
        score = tl.exp(x - tl.max(x, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    else:
        score = x
    return score


@triton.jit
def _best(ranked, index):
    """Return two tensors: for each row of `ranked` [T, P], the lowest `index` that has the greatest value, and this
    value."""
    value = tl.max(ranked, axis=1)
    best = tl.min(tl.where(ranked == value[:, None], index, NO_EXPERT), axis=1)
    return best, value


@triton.jit
def _centred(values, share):
    """Return `values` [T, P] minus their weighted mean. Each row of the weights `share` sums to 1.

    The value with the largest share is first subtracted from all values. If this share is near 1, the value is nearly
    equal to the mean. A direct subtraction of the mean would then lose digits.
    """
    largest = share == tl.max(share, axis=1)[:, None]
    count = tl.sum(tl.where(largest, 1.0, 0.0), axis=1)
    values = values - (tl.sum(tl.where(largest, values, 0.0), axis=1) / count)[:, None]
    return values - tl.sum(values * share, axis=1)[:, None]


@triton.jit
def _in_groups(
    ranked,
    inside,
    place,
    groups,
    CORRECTED: tl.constexpr,
    KEPT: tl.constexpr,
    T: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr,
):
    """Return `ranked` [T, GROUPS · GROUP_BLOCK], where experts outside the KEPT best groups get a value that is never
    chosen."""
    by_group = tl.reshape(ranked, (T, GROUPS, GROUP_BLOCK))
    first = tl.max(by_group, axis=2)
    if CORRECTED:
        index = tl.arange(0, GROUP_BLOCK)[None, None, :]
        at = tl.min(tl.where(by_group == first[:, :, None], index, GROUP_BLOCK), axis=2)
        second = tl.max(tl.where(index == at[:, :, None], float("-inf"), by_group), axis=2)
        value = first + second
    else:
        value = first
    group = tl.arange(0, GROUPS)[None, :]
    value = tl.where(group < groups, value, float("-inf"))
    in_best = tl.zeros([T, GROUPS], tl.int32)
    for _ in tl.static_range(KEPT):
        best, _best_value = _best(value, group)
        hit = group == best[:, None]
        in_best = tl.where(hit, 1, in_best)
        value = tl.where(hit, float("-inf"), value)
    allowed = tl.reshape(tl.broadcast_to(in_best[:, :, None], (T, GROUPS, GROUP_BLOCK)), (T, GROUPS * GROUP_BLOCK)) != 0
    return tl.where(allowed & inside, ranked, float("-inf") if CORRECTED else tl.where(inside, 0.0, float("-inf")))


@triton.jit
def route_forward(
    logits, correction, weights, chosen, tokens, experts, groups, group_size, scale,
    KIND: tl.constexpr, NORMALIZE: tl.constexpr, KEPT: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr,
    GROUPS: tl.constexpr, GROUP_BLOCK: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """One program routes T tokens. It reads the logits of all experts, and picks the best remaining expert in each of K
    rounds.

    Each group takes GROUP_BLOCK entries of a row, of which `group_size` are experts.
    """
    token = tl.program_id(0) * T + tl.arange(0, T)
    place = tl.arange(0, GROUPS * GROUP_BLOCK)
    inside = ((place // GROUP_BLOCK < groups) & (place % GROUP_BLOCK < group_size))[None, :]
    expert = tl.where(inside, (place // GROUP_BLOCK * group_size + place % GROUP_BLOCK)[None, :], NO_EXPERT)
    row = token.to(tl.int64)[:, None] * experts
    exists = (token < tokens)[:, None]
    x = tl.load(logits + row + expert, mask=exists & inside, other=float("-inf"))
    # Rows past the last token get logits of 0. With -inf in all entries, their softmax would be NaN.
    x = tl.where(exists, x, tl.where(inside, 0.0, float("-inf")))
    scores = _scores(x, inside, KIND)
    ranked = scores
    if correction is not None:
        ranked = scores + tl.load(correction + expert, mask=inside, other=0.0)
    ranked = tl.where(inside, ranked, float("-inf"))
    if KEPT < GROUPS:
        ranked = _in_groups(ranked, inside, place, groups, correction is not None, KEPT, T, GROUPS, GROUP_BLOCK)
    slot = tl.arange(0, SLOTS)[None, :]
    selected = tl.zeros([T, SLOTS], tl.float32)
    for j in tl.static_range(K):
        best, _best_value = _best(ranked, expert)
        best = tl.minimum(best, experts - 1)  # a row of NaN has no best expert; its index must not become an address
        hit = expert == best[:, None]
        score = tl.sum(tl.where(hit, scores, 0.0), axis=1)
        selected = tl.where(slot == j, score[:, None], selected)
        ranked = tl.where(hit, float("-inf"), ranked)
        tl.store(chosen + token.to(tl.int64) * K + j, best.to(tl.int64), mask=token < tokens)
    used = slot < K
    if KIND == SOFTMAX_TOPK:
        selected = tl.where(used, selected, float("-inf"))
        selected = tl.exp(selected - tl.max(selected, axis=1)[:, None])
        selected = selected / tl.sum(selected, axis=1)[:, None]
    elif NORMALIZE:
        selected = selected / (tl.sum(tl.where(used, selected, 0.0), axis=1)[:, None] + TINY)
    tl.store(weights + token.to(tl.int64)[:, None] * K + slot, selected * scale, mask=exists & used)


@triton.jit
def route_backward(
    dweights, chosen, logits, dlogits, tokens, experts, scale,
    KIND: tl.constexpr, NORMALIZE: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr, EXPERTS: tl.constexpr,
    T: tl.constexpr,
):  # fmt: skip
    """One program computes dlogits of T tokens. With a softmax over all experts, all dlogits can be nonzero. Otherwise
    only those of the chosen experts can be nonzero."""
    token = tl.program_id(0) * T + tl.arange(0, T)
    expert = tl.arange(0, EXPERTS)[None, :]
    exists = (token < tokens)[:, None]
    inside = expert < experts
    at = token.to(tl.int64)[:, None] * experts + expert
    x = tl.load(logits + at, mask=exists & inside, other=0.0)
    x = tl.where(inside, x, float("-inf"))
    scores = _scores(x, inside, KIND)
    dscores = tl.zeros([T, EXPERTS], tl.float32)  # dweights of the chosen experts, 0 for the other experts
    hits = tl.zeros([T, EXPERTS], tl.int32)
    pair = token.to(tl.int64) * K
    for j in tl.static_range(K):
        picked = tl.load(chosen + pair + j, mask=token < tokens, other=0).to(tl.int32)
        dw = tl.load(dweights + pair + j, mask=token < tokens, other=0.0).to(tl.float32)
        hit = expert == picked[:, None]
        dscores += tl.where(hit, dw[:, None], 0.0)
        hits = tl.where(hit, 1, hits)
    dscores = dscores * scale
    if KIND == SOFTMAX_TOPK:
        top = tl.where(hits != 0, x, float("-inf"))
        p = tl.exp(top - tl.max(top, axis=1)[:, None])
        p = p / tl.sum(p, axis=1)[:, None]
        dx = p * _centred(dscores, p)
    else:
        if NORMALIZE:
            top = tl.where(hits != 0, scores, 0.0)
            total = tl.sum(top, axis=1)[:, None] + TINY
            dscores = tl.where(hits != 0, _centred(dscores, top / total) / total, 0.0)
        dx = scores * _centred(dscores, scores) if KIND == SOFTMAX else dscores * scores * (1.0 - scores)
    tl.store(dlogits + at, dx, mask=exists & inside)


# == Configurations and launcher ==


def configurations(places: int) -> list[Config]:
    """Return the candidate configurations. One warp processes all experts of a token, so each of the K maxima needs
    only warp shuffles. A thread has 8 to 16 values."""
    tokens = max(1, min(16, 2048 // places))
    return [
        Config(
            T=tokens, num_warps=4, note="2048 logits per program: 16 per thread and tensor, one or more rows per warp"
        ),
        Config(T=max(1, tokens // 2), num_warps=2, note="equal number of values per thread, twice as many programs"),
    ]


# == Torch op ==


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
    """Return weights [t, k] and chosen [t, k]. `moe_routing` has checked the arguments."""
    logits = logits.contiguous()
    tokens, experts = logits.shape
    weights = empty(tokens, k, like=logits)
    chosen = empty(tokens, k, like=logits, dtype=torch.int64)
    group_size = experts // n_group
    padded_groups, padded_group_size = triton.next_power_of_2(n_group), triton.next_power_of_2(group_size)
    config = choose("route_forward", configurations(padded_groups * padded_group_size))
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
        group_size,
        float(scale),
        KIND=SCORES[scores],
        NORMALIZE=normalize,
        KEPT=padded_groups if topk_group == n_group else topk_group,
        K=k,
        SLOTS=triton.next_power_of_2(k),
        GROUPS=padded_groups,
        GROUP_BLOCK=padded_group_size,
    )
    return weights, chosen


@_route.register_fake
def _(logits: Tensor, correction: Any, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0], k), logits.new_empty(logits.shape[0], k, dtype=torch.int64)


@torch.library.custom_op("llmbench::moe_routing_backward", mutates_args=())
def _route_backward(
    dweights: Tensor, chosen: Tensor, logits: Tensor, scores: str, normalize: bool, scale: float
) -> Tensor:
    """Return the gradient of the logits [t, E]."""
    dweights, logits = dweights.contiguous(), logits.contiguous()
    (tokens, experts), k = logits.shape, chosen.shape[1]
    dlogits = empty(tokens, experts, like=logits)
    block = triton.next_power_of_2(experts)
    config = choose("route_backward", configurations(block))
    arguments = dweights, chosen, logits, dlogits, tokens, experts, float(scale)
    constants = {"KIND": SCORES[scores], "NORMALIZE": normalize, "K": k}
    constants |= {"SLOTS": triton.next_power_of_2(k), "EXPERTS": block}
    launch(route_backward, (triton.cdiv(tokens, config["T"]),), config, *arguments, **constants)
    return dlogits


@_route_backward.register_fake
def _(dweights: Any, chosen: Any, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, _, _, ctx.scores, ctx.normalize, ctx.scale, _, _ = inputs
    ctx.save_for_backward(output[1], logits)


def _backward(ctx: Any, dweights: Tensor, dchosen: Tensor | None) -> tuple[Tensor | None, ...]:
    dlogits = _route_backward(dweights, *ctx.saved_tensors, ctx.scores, ctx.normalize, ctx.scale)
    return dlogits, *[None] * 7


_route.register_autograd(_backward, setup_context=_save)


# == Public op ==


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
    """Return weights [t, k] in fp32 and chosen experts [t, k] in int64, from logits [t, E] in fp32.

    `softmax_topk` takes neither a correction nor groups, because no model combines them. Raises KeyError for scores
    that are not in SCORES, and ValueError for shapes, dtypes and options that do not match.
    """
    kind = SCORES[scores]
    if logits.dim() != 2 or logits.dtype != torch.float32:
        raise ValueError(f"logits must be [t, E] in fp32, not {tuple(logits.shape)} {logits.dtype}")
    experts = logits.shape[1]
    if not 0 < k <= min(experts, 64):
        raise ValueError(f"k={k}: a token can choose 1 to {min(experts, 64)} of {experts} experts")
    if experts > 2048:
        raise ValueError(f"{experts} experts: at most 2048 are supported")
    if n_group < 1 or experts % n_group or not 0 < topk_group <= n_group:
        raise ValueError(
            f"topk_group={topk_group} n_group={n_group}: n_group must divide {experts}, topk_group must be 1 to n_group"
        )
    if kind == SCORES["softmax_topk"] and (correction is not None or n_group > 1):
        raise ValueError("softmax_topk takes neither a correction nor groups")
    if correction is not None and (correction.shape != (experts,) or correction.dtype != torch.float32):
        raise ValueError(f"correction {tuple(correction.shape)} {correction.dtype}: it must be ({experts},) in fp32")
    if topk_group < n_group and correction is not None and experts // n_group < 2:
        raise ValueError("with a correction, groups rank by their two best experts, so each group needs two experts")
    if correction is not None:
        correction = correction.detach().contiguous()
    weights, chosen = _route(logits, correction, k, scores, normalize, scale, n_group, topk_group)
    return weights, chosen


# == Reference ==


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
    """Compute the routing in plain torch."""
    if scores == "softmax_topk":
        top, chosen = logits.topk(k, dim=-1)
        return top.softmax(-1) * scale, chosen
    value = logits.sigmoid() if scores == "sigmoid" else logits.softmax(-1)
    ranked = value if correction is None else value + correction
    if n_group > 1:
        groups = ranked.unflatten(-1, (n_group, -1))
        strength = groups.amax(-1) if correction is None else groups.topk(2, dim=-1).values.sum(-1)
        in_best = torch.zeros_like(strength).scatter(-1, strength.topk(topk_group, dim=-1).indices, 1.0)
        ranked = groups.masked_fill(in_best[..., None] == 0, 0.0 if correction is None else float("-inf")).flatten(-2)
    chosen = ranked.topk(k, dim=-1).indices
    weights = value.gather(-1, chosen)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return weights * scale, chosen


# == Cases and cost ==


class Case(NamedTuple):
    """Tokens, experts and options. `groups` is (n_group, topk_group)."""

    tokens: int
    experts: int
    k: int
    scores: str = "softmax"
    normalize: bool = False
    scale: float = 1.0
    corrected: bool = False
    groups: tuple[int, int] = (1, 1)


def inputs(case: Case, random: Random) -> Inputs:
    """Return logits with a standard deviation of 2, and a correction that is large enough to change the chosen
    experts."""
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
    """Return the bytes of both passes, and 0 FLOPs, because there is no matrix product. The forward pass reads the
    logits. The backward pass reads them again and writes their gradient.

    A chosen expert takes 12 bytes: its weight and its index.
    """
    logit_bytes, chosen_bytes = 4 * case.tokens * case.experts, 12 * case.tokens * case.k
    correction_bytes = 4 * case.experts if case.corrected else 0
    return Cost(
        flops=0, bytes=logit_bytes + correction_bytes + chosen_bytes, backward_bytes=2 * logit_bytes + chosen_bytes
    )


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    scores = draw.choice(list(SCORES))
    plain = scores == "softmax_topk"
    groups = 1 if plain or draw.chance() else draw.size(6)
    experts = groups * draw.size(120 // groups, least=2)
    best_groups = draw.size(groups)
    return Case(
        tokens=draw.size(60, least=0),
        experts=experts,
        k=draw.size(min(16, experts // groups * best_groups)),
        scores=scores,
        normalize=draw.chance(),
        scale=draw.choice((1.0, 2.5)),
        corrected=not plain and draw.chance(0.4),
        groups=(groups, best_groups),
    )


KERNEL = Kernel(
    name="moe_routing",
    summary="experts of a token and their weights: softmax, sigmoid, groups, corrections",
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
    random_case=random_case,
    shapes=[
        Case(16384, 256, 8, "sigmoid", True, 2.5, True, (8, 4)),  # DeepSeek-V3
        Case(16384, 128, 8, "softmax", True),  # Qwen3-MoE
    ],
    differentiable=("logits",),
    dtypes=(torch.float32,),
)
