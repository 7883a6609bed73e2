"""The number of experts that a step reads, against every possible choice of its tokens."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest

from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import find_model
from llmbench.spec.override import override


def experts(tokens: int, *, layout: str = "", phase: str = "decode", **changes: Any) -> Op:
    """The experts' first matrix of Mixtral, changed, for a step of so many tokens."""
    spec = override(find_model("mixtral-8x7b"), {"num_experts": 4, **changes})
    many: dict[str, Any] = {"decode": (64, tokens), "prefill": (tokens,), "train": (tokens,)}
    workload = getattr(Workload, phase)(*many[phase])
    return next(op for op in lower(spec, workload, Layout.parse(layout or "one GPU")) if op.name.endswith("gate_proj"))


def by_counting(experts: int, k: int, tokens: int) -> float:
    """Different experts in all equally likely choices of all tokens, on average."""
    outcomes = [set().union(*chosen) for chosen in product(list(combinations(range(experts), k)), repeat=tokens)]
    return sum(map(len, outcomes)) / len(outcomes)


@pytest.mark.parametrize("phase", ["decode", "prefill", "train"])
@pytest.mark.parametrize(("k", "tokens"), [(1, 1), (1, 4), (2, 1), (2, 3), (3, 2), (4, 2)])
def test_the_experts_that_tokens_choose(phase: str, k: int, tokens: int) -> None:
    op = experts(tokens, phase=phase, num_experts_per_tok=k)
    one = 2 * 4096 * 14336
    assert op.weight_bytes == round(by_counting(4, k, tokens) * one)
    assert op.parameters * 2 == 4 * one  # all of them have a place in memory


def test_a_rank_reads_experts_for_the_tokens_of_all_ranks() -> None:
    """Two ranks with three tokens each and two experts each: half of what six tokens meet of four."""
    assert experts(3, layout="dp=2,ep=2").weight_bytes == experts(6).weight_bytes // 2


def test_buffers_of_a_capacity_are_computed_whole() -> None:
    assert experts(1, capacity_factor=1.5).weight_bytes == 4 * 2 * 4096 * 14336


def test_zero_experts_are_not_read() -> None:
    """With as many that compute nothing, a token's choice falls on each with half the chance."""
    one = 2 * 4096 * 14336
    assert experts(1, num_experts_per_tok=2, zero_experts=4).weight_bytes == one
