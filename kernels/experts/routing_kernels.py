"""The kernels of a mixture's routing, forward and backward; the maths stands in `moe_routing`."""

from __future__ import annotations

import triton
import triton.language as tl

from llmbench.kernels.launching import Config

__all__ = ["SCORES", "configurations", "route_backward", "route_forward"]

SCORES = {"softmax": 0, "softmax_topk": 1, "sigmoid": 2}
"""The scores that are built, with the number that the kernels know them by."""

SOFTMAX, SOFTMAX_TOPK, SIGMOID = (tl.constexpr(number) for number in SCORES.values())
NOWHERE = tl.constexpr(1 << 30)  # a number that no expert has
TINY = tl.constexpr(1e-20)  # keeps a sum of vanished weights from dividing by zero


@triton.jit
def _scores(x, inside, OF: tl.constexpr):
    """Scores of logits [T, P] in fp32, and 0 (or -inf) where there is no expert."""
    if OF == SIGMOID:
        score = tl.where(inside, 1.0 / (1.0 + tl.exp(-x)), 0.0)
    elif OF == SOFTMAX:
        score = tl.exp(x - tl.max(x, axis=1)[:, None])
        score = score / tl.sum(score, axis=1)[:, None]
    else:
        score = x
    return score


@triton.jit
def _best(ranked, number):
    """The lowest `number` among the largest of each row of `ranked` [T, P], and that value."""
    value = tl.max(ranked, axis=1)
    found = tl.min(tl.where(ranked == value[:, None], number, NOWHERE), axis=1)
    return found, value


@triton.jit
def _centred(values, share):
    """`values` [T, P] less their mean by `share`, whose rows sum to 1. First they are taken from the value with the
    largest share: near 1 it is nearly the mean itself, and the difference would keep no digits."""
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
    EACH: tl.constexpr,
):
    """`ranked` [T, GROUPS · EACH] with what is not in one of the KEPT best groups put out of reach."""
    apart = tl.reshape(ranked, (T, GROUPS, EACH))
    first = tl.max(apart, axis=2)
    if CORRECTED:
        number = tl.arange(0, EACH)[None, None, :]
        at = tl.min(tl.where(apart == first[:, :, None], number, EACH), axis=2)
        second = tl.max(tl.where(number == at[:, :, None], float("-inf"), apart), axis=2)
        value = first + second
    else:
        value = first
    group = tl.arange(0, GROUPS)[None, :]
    value = tl.where(group < groups, value, float("-inf"))
    kept = tl.zeros([T, GROUPS], tl.int32)
    for _ in tl.static_range(KEPT):
        found, _value = _best(value, group)
        hit = group == found[:, None]
        kept = tl.where(hit, 1, kept)
        value = tl.where(hit, float("-inf"), value)
    allowed = tl.reshape(tl.broadcast_to(kept[:, :, None], (T, GROUPS, EACH)), (T, GROUPS * EACH)) != 0
    return tl.where(allowed & inside, ranked, float("-inf") if CORRECTED else tl.where(inside, 0.0, float("-inf")))


@triton.jit
def route_forward(
    logits,
    correction,
    weights,
    chosen,
    tokens,
    experts,
    groups,
    each,
    scale,
    OF: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEPT: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUPS: tl.constexpr,
    EACH: tl.constexpr,
    T: tl.constexpr,
):
    """A program: T tokens, all experts of each side by side; `each` of a group of EACH places. K rounds of the best."""
    token = tl.program_id(0) * T + tl.arange(0, T)
    place = tl.arange(0, GROUPS * EACH)
    inside = ((place // EACH < groups) & (place % EACH < each))[None, :]
    expert = tl.where(inside, (place // EACH * each + place % EACH)[None, :], NOWHERE)
    row = token.to(tl.int64)[:, None] * experts
    here = (token < tokens)[:, None]
    x = tl.load(logits + row + expert, mask=here & inside, other=float("-inf"))
    x = tl.where(here, x, tl.where(inside, 0.0, float("-inf")))  # rows past the last stay finite
    scores = _scores(x, inside, OF)
    ranked = scores
    if correction is not None:
        ranked = scores + tl.load(correction + expert, mask=inside, other=0.0)
    ranked = tl.where(inside, ranked, float("-inf"))
    if KEPT < GROUPS:
        ranked = _in_groups(ranked, inside, place, groups, correction is not None, KEPT, T, GROUPS, EACH)
    slot = tl.arange(0, SLOTS)[None, :]
    found = tl.zeros([T, SLOTS], tl.float32)
    for j in tl.static_range(K):
        best, _value = _best(ranked, expert)
        best = tl.minimum(best, experts - 1)  # a row of NaN has no best, and must not become an address
        hit = expert == best[:, None]
        score = tl.sum(tl.where(hit, scores, 0.0), axis=1)
        found = tl.where(slot == j, score[:, None], found)
        ranked = tl.where(hit, float("-inf"), ranked)
        tl.store(chosen + token.to(tl.int64) * K + j, best.to(tl.int64), mask=token < tokens)
    real = slot < K
    if OF == SOFTMAX_TOPK:
        found = tl.where(real, found, float("-inf"))
        found = tl.exp(found - tl.max(found, axis=1)[:, None])
        found = found / tl.sum(found, axis=1)[:, None]
    elif NORMALIZE:
        found = found / (tl.sum(tl.where(real, found, 0.0), axis=1)[:, None] + TINY)
    tl.store(weights + token.to(tl.int64)[:, None] * K + slot, found * scale, mask=here & real)


@triton.jit
def route_backward(
    dweights,
    chosen,
    logits,
    dlogits,
    tokens,
    experts,
    scale,
    OF: tl.constexpr,
    NORMALIZE: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    EXPERTS: tl.constexpr,
    T: tl.constexpr,
):
    """dlogits of T tokens, all experts of each: zero but at the chosen, or through the softmax's sum everywhere."""
    token = tl.program_id(0) * T + tl.arange(0, T)
    expert = tl.arange(0, EXPERTS)[None, :]
    here = (token < tokens)[:, None]
    inside = expert < experts
    at = token.to(tl.int64)[:, None] * experts + expert
    x = tl.load(logits + at, mask=here & inside, other=0.0)
    x = tl.where(inside, x, float("-inf"))
    scores = _scores(x, inside, OF)
    took = tl.zeros([T, EXPERTS], tl.float32)  # dweights at the chosen experts
    hits = tl.zeros([T, EXPERTS], tl.int32)
    pair = token.to(tl.int64) * K
    for j in tl.static_range(K):
        picked = tl.load(chosen + pair + j, mask=token < tokens, other=0).to(tl.int32)
        dw = tl.load(dweights + pair + j, mask=token < tokens, other=0.0).to(tl.float32)
        hit = expert == picked[:, None]
        took += tl.where(hit, dw[:, None], 0.0)
        hits = tl.where(hit, 1, hits)
    took = took * scale
    if OF == SOFTMAX_TOPK:
        top = tl.where(hits != 0, x, float("-inf"))
        p = tl.exp(top - tl.max(top, axis=1)[:, None])
        p = p / tl.sum(p, axis=1)[:, None]
        dx = p * _centred(took, p)
    else:
        if NORMALIZE:
            top = tl.where(hits != 0, scores, 0.0)
            total = tl.sum(top, axis=1)[:, None] + TINY
            took = tl.where(hits != 0, _centred(took, top / total) / total, 0.0)
        dx = scores * _centred(took, scores) if OF == SOFTMAX else took * scores * (1.0 - scores)
    tl.store(dlogits + at, dx, mask=here & inside)


def configurations(places: int) -> list[Config]:
    """A row of experts lies in one warp, so that the K rounds of maxima are shuffles; 8 to 16 values a thread."""
    tokens = max(1, min(16, 2048 // places))
    return [
        Config(T=tokens, num_warps=4, note="2048 logits a program: 16 a thread and tensor, one or more rows a warp"),
        Config(T=max(1, tokens // 2), num_warps=2, note="the same a thread, twice the programs"),
    ]
