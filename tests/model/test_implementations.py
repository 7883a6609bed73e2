"""Ways to attend: every mask in every implementation, and what one cannot do it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.errors import CannotRunError
from llmbench.model.implementations import IMPLEMENTATIONS, implementation
from llmbench.model.implementations.kinds import Given, Mask, Scores
from llmbench.model.implementations.plain import attend as standard

MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 5},
    "chunks": {"chunk": 4},
    "both ways": {"causal": False},
    "both ways, window": {"causal": False, "window": 5},
}


def inputs(mask: dict[str, Any], ragged: bool) -> tuple[Tensor, Tensor, Tensor, Mask]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 11, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 11, 16, generator=generator)
    positions = torch.arange(11).expand(2, -1)
    keys = positions if not ragged else positions.masked_fill(positions >= torch.tensor([[11], [7]]), -1)
    fields = {"causal": True, "window": None, "chunk": None, **mask}
    return q, k, v, Mask(positions, keys, plain=not ragged, **fields)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("impl", ["sdpa", "flex", "flash"])
def test_every_mask_in_every_implementation(impl: str, name: str, ragged: bool) -> None:
    """Against `standard`; queries without any key are nobody's."""
    q, k, v, mask = inputs(MASKS[name], ragged)
    bias = torch.randn(2, 4, 11, 11, generator=torch.Generator().manual_seed(1))
    for scores in (Scores(0.25), Scores(0.25, bias=bias)):
        wanted = standard(q, Given(k, v, mask), scores)
        some = mask.allowed().any(-1).squeeze(1)[:, None, :, None].expand_as(wanted)
        found = implementation(impl).attend(q, Given(k, v, mask), scores)
        torch.testing.assert_close(found[some], wanted[some], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MASKS)
def test_the_mask_is_the_loop(name: str) -> None:
    mask = inputs(MASKS[name], True)[3]
    allowed = mask.allowed().expand(2, 1, 11, 11)
    for b in range(2):
        for s in range(11):
            for t in range(11):
                wanted = t < (11, 7)[b]
                if mask.causal:
                    wanted = (
                        wanted
                        and t <= s
                        and (mask.window is None or s - t < 5)
                        and (mask.chunk is None or s // 4 == t // 4)
                    )
                elif mask.window is not None:
                    wanted = wanted and abs(s - t) <= 2
                assert bool(allowed[b, 0, s, t]) == wanted


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_soft_caps_and_sinks_in_flex() -> None:
    q, k, v, mask = inputs({"window": 5}, True)
    for scores in (Scores(0.25, soft_cap=1.5), Scores(0.25, sinks=torch.randn(4)), Scores(0.25, 1.5, torch.randn(4))):
        wanted = standard(q, Given(k, v, mask), scores)
        some = mask.allowed().any(-1).squeeze(1)[:, None, :, None].expand_as(wanted)
        found = implementation("flex").attend(q, Given(k, v, mask), scores)
        torch.testing.assert_close(found[some], wanted[some], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_on_a_cpu_an_implementation_runs_or_says_why_not(impl: str) -> None:
    q, k, v, mask = inputs({}, False)
    if impl in ("sdpa-cudnn", "sdpa-efficient"):
        with pytest.raises(CannotRunError, match=f"impl {impl} cannot run"):
            implementation(impl).attend(q, Given(k, v, mask), Scores(0.25))
    else:
        found = implementation(impl).attend(q, Given(k, v, mask), Scores(0.25))
        torch.testing.assert_close(found, standard(q, Given(k, v, mask), Scores(0.25)), rtol=1e-4, atol=1e-5)
    if impl not in ("standard", "flex"):
        for scores in (Scores(0.25, soft_cap=1.0), Scores(0.25, sinks=torch.zeros(4))):
            with pytest.raises(CannotRunError, match=f"impl {impl} has no"):
                implementation(impl).attend(q, Given(k, v, mask), scores)
