"""Implementations of attention: every mask in each of them, and refusals of what they cannot compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, UnknownNameError
from llmbench.model import build
from llmbench.model.implementations import IMPLEMENTATIONS, PREFERENCE, implementation, preferred
from llmbench.model.implementations.interface import Given, Implementation, Mask, Scores
from llmbench.model.implementations.plain import attend as standard
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.mixer import Attention, branches

from . import small

MASKS: dict[str, dict[str, Any]] = {
    "causal": {},
    "window": {"window": 5},
    "chunks": {"chunk": 4},
    "not causal": {"causal": False},
    "not causal, window": {"causal": False, "window": 5},
}


def inputs(mask: dict[str, Any], ragged: bool) -> tuple[Tensor, Tensor, Tensor, Mask]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 11, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 11, 16, generator=generator)
    positions = torch.arange(11).expand(2, -1)
    keys = positions if not ragged else positions.masked_fill(positions >= torch.tensor([[11], [7]]), -1)
    fields = {"causal": True, "window": None, "chunk": None, **mask}
    return q, k, v, Mask(positions, keys, plain=not ragged, **fields)


SCORES: dict[str, Scores] = {
    "plain": Scores(0.25),
    "slopes": Scores(0.25, slopes=torch.tensor([0.5, 0.25, 0.125, 0.0625])),
    "bias": Scores(0.25, bias=torch.randn(2, 4, 11, 11, generator=torch.Generator().manual_seed(1))),
    "cap": Scores(0.25, soft_cap=1.5),
    "sinks": Scores(0.25, sinks=torch.randn(4, generator=torch.Generator().manual_seed(2))),
    "all": Scores(0.25, 1.5, torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([0.5, 0.25, 0.125, 0.0625])),
}
TAKEN = {
    "sdpa": ("plain", "slopes", "bias"),
    "flex": ("plain", "slopes", "bias", "cap", "sinks", "all"),
    "flash": ("plain", "slopes", "cap", "sinks", "all"),
    "flash of a CPU": ("plain", "slopes", "bias"),
}


def named(impl: str, patch: pytest.MonkeyPatch) -> Implementation:
    """The implementation. `flash` runs in Triton's interpreter, `flash of a CPU` without it."""
    if impl == "flash of a CPU":
        patch.delenv("TRITON_INTERPRET", raising=False)
    return implementation(impl.split()[0])


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("impl", TAKEN)
def test_every_mask_in_every_implementation(impl: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to `standard`, with every change of scores. Results of padding and of queries without keys do not count.

    Every other change has sequences of different lengths: with the next mask, those that had equal lengths."""
    for number, score in enumerate(SCORES):
        q, k, v, mask = inputs(MASKS[name], ragged=(number + list(MASKS).index(name)) % 2 == 0)
        real = mask.queries <= mask.keys.amax(1, keepdim=True)
        some = (mask.allowed().any(-1) & real[:, None])[..., None]
        seen = Given(k, v, mask)
        if score not in TAKEN[impl]:
            with pytest.raises(CannotRunError, match=f"impl {impl.replace('of', 'on')} does not support"):
                named(impl, monkeypatch).attend(q, seen, SCORES[score])
            continue
        expected = standard(q, seen, SCORES[score])
        actual = named(impl, monkeypatch).attend(q, seen, SCORES[score])
        torch.testing.assert_close(
            actual.masked_fill(~some, 0), expected.masked_fill(~some, 0), rtol=1e-4, atol=1e-5, msg=score
        )


@pytest.mark.parametrize("mask", [{}, {"window": 11}, {"window": 10}, {"chunk": 11}, {"chunk": 10}])
def test_a_window_that_covers_all_keys_needs_no_mask(mask: dict[str, Any]) -> None:
    """torch's flash kernels take no mask, so they can run then."""
    seen = inputs(mask, False)[3]
    lower = torch.ones(11, 11, dtype=torch.bool).tril()
    assert seen.only_causal == bool((seen.allowed() == lower).all())


@pytest.mark.parametrize("name", MASKS)
def test_the_mask_equals_a_loop(name: str) -> None:
    mask = inputs(MASKS[name], True)[3]
    allowed = mask.allowed().expand(2, 1, 11, 11)
    for b in range(2):
        for s in range(11):
            for t in range(11):
                expected = t < (11, 7)[b]
                if mask.causal:
                    expected = (
                        expected
                        and t <= s
                        and (mask.window is None or s - t < 5)
                        and (mask.chunk is None or s // 4 == t // 4)
                    )
                elif mask.window is not None:
                    expected = expected and abs(s - t) <= 2
                assert bool(allowed[b, 0, s, t]) == expected


@pytest.mark.parametrize("impl", ["sdpa-cudnn", "sdpa-efficient"])
def test_a_backend_that_no_cpu_has_is_refused(impl: str) -> None:
    q, k, v, mask = inputs({}, False)
    with pytest.raises(CannotRunError, match=f"impl {impl} cannot compute"):
        implementation(impl).attend(q, Given(k, v, mask), Scores(0.25))


@pytest.mark.parametrize("name", bundled_models())
def test_every_bundled_model_gets_the_first_implementation_that_computes_it(name: str) -> None:
    """The attention functions themselves say what they compute."""
    spec = load_bundled(name)
    chosen, reason = preferred(spec)
    q, k, v, mask = inputs({}, False)
    scores = [
        Scores(0.25, soft_cap=mixer.logit_soft_cap, sinks=torch.zeros(4) if mixer.sinks else None)
        for layer in [*spec.layers.values(), *(spec.encoder.layers.values() if spec.encoder else ())]
        for mixer in (*branches(layer.mixer), layer.cross_attention)
        if isinstance(mixer, Attention)
    ]

    def refusal(impl: str) -> str:
        try:
            for score in scores:
                implementation(impl).attend(q, Given(k, v, mask), score)
        except CannotRunError as problem:
            return str(problem).removeprefix("impl ")
        return ""

    assert chosen == next(impl for impl in PREFERENCE if not refusal(impl))
    assert reason == refusal(PREFERENCE[0])


@pytest.mark.parametrize("name", ["soft cap", "sinks", "gqa"])
def test_a_named_implementation_is_never_replaced(name: str) -> None:
    spec, tokens = small.SPECS[name], small.prompt(1, 8)
    with torch.no_grad():
        assert torch.isfinite(build(spec)(tokens)).all()
        assert build(spec).implementation.name == ("sdpa" if name == "gqa" else "standard")
        for impl in ("sdpa", "standard", "flash"):
            assert build(spec, impl=impl).implementation.name == impl
        if name != "gqa":
            with pytest.raises(CannotRunError, match="impl sdpa does not support") as refused:
                build(spec, impl="sdpa")(tokens)
            assert "standard" in str(refused.value.hint)


def test_an_unknown_implementation_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown implementation `flahs`") as caught:
        implementation("flahs")
    assert "did you mean `flash`?" in str(caught.value.hint)
    for name in IMPLEMENTATIONS:
        assert implementation(name).name == name
