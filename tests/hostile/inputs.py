"""Hostile input, and the check that it gives an answer or an LLMBenchError within a time limit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from llmbench.errors import LLMBenchError
from llmbench.sizing.params import count_parameters
from llmbench.spec.files import write_spec
from llmbench.spec.model import ModelSpec

common = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
QUICK_S = 5.0
"""The time limit per input: far less than a hang, far more than a loaded machine needs."""

JUNK: tuple[Any, ...] = (
    None,
    -1,
    0,
    3,
    0.5,
    2**70,
    -(2**70),
    math.inf,
    math.nan,
    "x",
    "",
    "\ud800",
    "🦙" * 100,
    [],
    {},
    True,
    False,
    [None],
    [2**70, "x", {}],
    {"": []},
    {"model_type": "llama", "text_config": {"x": [1]}},
    [[[[1]]]],
)

anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-(2**80), 2**80),
        st.floats(),
        st.text(max_size=20),
        st.sampled_from(JUNK),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)),
    max_leaves=8,
)


@contextmanager
def quickly() -> Iterator[None]:
    """Fails where the body takes longer than any input may."""
    start = time.process_time()
    yield
    assert time.process_time() - start < QUICK_S


def survives(call: Callable[[], Any]) -> Any:
    """The result, or None where it was refused as input is: with a message for people."""
    with quickly():
        try:
            return call()
        except LLMBenchError as problem:
            text = str(problem)
            assert text.strip()
            assert len(text) < 2000
            assert "Traceback" not in text
            return None


def sized(spec: ModelSpec | None) -> None:
    """What was accepted can be sized, and written."""
    if spec is not None:
        assert survives(lambda: count_parameters(spec).total + 1) is not None
        write_spec(spec).encode()
