"""Specs with many kinds of layers: the work grows linearly with the number of kinds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import llmbench
from llmbench.errors import LLMBenchError
from llmbench.spec.catalog import load_bundled
from llmbench.spec.check import MOST_KINDS
from llmbench.spec.files import parse_spec, write_spec
from llmbench.spec.model import ModelSpec

from .inputs import quickly


def with_kinds(count: int) -> ModelSpec:
    """A model whose layers all differ: each has its own width and its own set of shared weights."""
    spec = load_bundled("llama2-7b")
    layer = spec.layers["block"]
    layers = {
        f"kind{index}": msgspec.structs.replace(
            layer, ffn=msgspec.structs.replace(layer.ffn, intermediate_size=index + 64), shared_weights=f"tag{index}"
        )
        for index in range(count)
    }
    return msgspec.structs.replace(spec, layers=layers, pattern=" ".join(layers))


def calls(body: Callable[[], Any]) -> int:
    """The number of calls of Python and C functions in the body."""
    count = 0

    def notice(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(notice)
    try:
        body()
    finally:
        sys.setprofile(before)
    return count


STEPS: dict[str, Callable[[ModelSpec], Any]] = {
    "read and check": lambda spec: parse_spec(write_spec(spec), "spec"),
    "params": lambda spec: repr(llmbench.params(spec)),
    "params --by op": lambda spec: repr(llmbench.params(spec, by="op")),
    "kvcache": lambda spec: repr(llmbench.kv_cache(spec, seq=4096)),
    "memory": lambda spec: repr(llmbench.memory(spec, seq=4096)),
    "fit": lambda spec: repr(llmbench.fit(spec, device="h100")),
}


@pytest.mark.parametrize("step", STEPS)
def test_the_work_grows_linearly_with_the_kinds_of_layers(step: str) -> None:
    small, large = with_kinds(100), with_kinds(200)
    STEPS[step](small)  # fills caches
    assert calls(lambda: STEPS[step](large)) < 2.2 * calls(lambda: STEPS[step](small))


def test_the_kinds_of_layers_have_a_limit() -> None:
    text = write_spec(with_kinds(MOST_KINDS))
    with quickly():
        spec = parse_spec(text, "spec")
        assert len(llmbench.fit(spec, device="h100", layout="tp=8").rows) == 1
    with quickly(), pytest.raises(LLMBenchError, match="layers: has 5,000 kinds of layers, more than 1,000"):
        parse_spec(write_spec(with_kinds(5000)), "spec")
