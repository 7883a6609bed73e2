"""Written specs (TOML, Hugging Face configs), layouts and patterns are read back unchanged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from llmbench.errors import LayoutError, SpecError, UnsupportedError
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.files import parse_spec, read_spec, write_spec
from llmbench.spec.huggingface import load_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override
from llmbench.spec.pattern import format_pattern, parse_pattern
from llmbench.spec.position import LearnedPositions

from ..oracles.huggingface_export import same_model, to_config
from . import strategies

common = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@common
@given(strategies.models(encoder=None))
def test_a_spec_is_read_back_from_toml(spec: ModelSpec) -> None:
    text = write_spec(spec)
    assert parse_spec(text, "generated") == spec
    assert write_spec(parse_spec(text, "generated")) == text


def test_a_spec_is_read_back_from_a_file(tmp_path: Path) -> None:
    spec = override(load_bundled("gemma3-4b"), {"source": "größe – ≤ 漢字 \t\n\"'\\ \x7f\x00"})
    file = tmp_path / "a spec.toml"
    file.write_text(write_spec(spec), encoding="utf-8")
    assert read_spec(file) == spec


# Hugging Face

EXPORTED = (
    "llama2-7b",
    "mistral-7b-v0.1",
    "qwen2-7b",
    "qwen3-8b",
    "gemma2-2b",
    "gemma3-4b",
    "gpt2",
    "gpt-neox-20b",
    "bloom-560m",
    "opt-125m",
    "falcon-7b",
    "falcon-40b",
    "phi-2",
    "starcoder2-3b",
    "mixtral-8x7b",
    "qwen3-30b-a3b",
    "deepseek-moe-16b",
    "deepseek-v2-lite",
    "deepseek-v3",
    "deepseek-v3.2",
    "gpt-oss-20b",
    "llama4-scout",
    "mamba-130m",
    "mamba2-2.7b",
    "jamba-v0.1",
    "recurrentgemma-2b",
    "bert-base",
    "t5-small",
)
"""One model of every family whose sizes can be changed freely."""

FREE = {
    "vocab_size": st.integers(1, 300_000),
    "tie_word_embeddings": st.booleans(),
    "max_position_embeddings": st.integers(1, 2**20),
    "intermediate_size": st.integers(1, 4096).map(lambda n: 8 * n),
    "attention_chunk_size": st.integers(1, 2**17),
    "sliding_window": st.integers(1, 2**17),
    "num_experts_per_tok": st.integers(1, 8),
    "norm.eps": st.floats(1e-9, 1e-3),
    "positions.theta": st.floats(1.5, 1e9),
}

EVERYWHERE = {
    "intermediate_size": "layers.*.ffn.intermediate_size",
    "attention_chunk_size": "layers.*.mixer.attention_chunk_size",
    "sliding_window": "layers.*.mixer.sliding_window",
}
"""The paths of fields that differ between the layers of some models."""


def path_of(spec: ModelSpec, key: str, value: Any) -> str:
    """Return the key, or the path of the field in all layers if the key alone is ambiguous."""
    try:
        override(spec, {key: value})
    except SpecError as problem:
        return EVERYWHERE[key] if "which differ" in str(problem) else key
    return key


@st.composite
def changed(draw: st.DrawFn, name: str) -> ModelSpec:
    """A bundled model with some of its sizes changed: those that it has."""
    spec = load_bundled(name)
    text = write_spec(spec)
    usable = [key for key in sorted(FREE) if re.search(rf"\b{key.split('.')[-1]} = ", text)]
    wanted = draw(st.lists(st.sampled_from(usable), unique=True, min_size=1, max_size=3))
    values = {key: draw(FREE[key]) for key in wanted}
    changes: dict[str, Any] = {path_of(spec, key, value): value for key, value in values.items()}
    if len(set(spec.order)) == 1:
        changes["num_hidden_layers"] = draw(st.integers(1, 100))
    if isinstance(spec.positions, LearnedPositions) and "max_position_embeddings" in changes:
        rows = changes["max_position_embeddings"] + spec.positions.offset
        changes["positions.num_positions"] = rows
    return override(spec, changes)


def read_back(config: dict[str, Any], folder: Path) -> ModelSpec:
    """The config through a file, as a user has it."""
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return load_config(file)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_changed_model_is_read_back_from_its_config(name: str, tmp_path_factory) -> None:
    folder = tmp_path_factory.mktemp("config")
    written = 0

    @settings(common, max_examples=25, derandomize=True)
    @given(changed(name))
    def check(spec: ModelSpec) -> None:
        nonlocal written
        try:
            config = to_config(spec)
        except UnsupportedError:
            assume(False)
        written += 1
        again = read_back(config, folder)
        assert same_model(again) == same_model(spec)
        assert again.approximate == ()
        assert count_parameters(again).total == count_parameters(spec).total

    check()
    assert written >= 5, "hardly any change of this model could be written"


# Layouts and patterns

layouts = st.builds(
    dict,
    tp=st.integers(1, 10**6),
    sp=st.booleans(),
    pp=st.integers(1, 64),
    interleave=st.integers(1, 8),
    dp=st.integers(1, 512),
    ep=st.integers(1, 64),
    cp=st.integers(1, 16),
    zero=st.integers(0, 3),
)


@common
@given(layouts)
def test_a_layout_is_read_back(fields: dict[str, Any]) -> None:
    try:
        layout = Layout(**fields)
    except LayoutError:
        assume(False)
    text = str(layout)
    assert Layout.parse(text) == layout
    assert layout.num_gpus == fields["tp"] * fields["pp"] * fields["dp"] * fields["cp"]


@pytest.mark.parametrize("text", ["", " ", "one GPU"])
def test_one_gpu_is_a_layout(text: str) -> None:
    assert Layout.parse(text) == Layout()
    assert str(Layout()) == "one GPU"


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("tp=8,sp,pp=8,interleave=3,dp=2,ep=2", Layout(tp=8, sp=True, pp=8, interleave=3, dp=2, ep=2)),
        (" tp = 2 , sp=false , dp=2, zero=3", Layout(tp=2, dp=2, zero=3)),
        ("sp=1,tp=2", Layout(sp=True, tp=2)),
        ("cp=4,,", Layout(cp=4)),
    ],
)
def test_layouts_as_people_type_them(text: str, layout: Layout) -> None:
    assert Layout.parse(text) == layout


@pytest.mark.parametrize("text", ["zero=1", "zero=3", "tp=2,sp,zero=2", "pp=2,zero=3", "dp=1,cp=1,zero=1"])
def test_zero_needs_gpus_that_share_the_states(text: str) -> None:
    with pytest.raises(LayoutError, match=r"zero=[123]: needs dp or cp of at least 2") as raised:
        Layout.parse(text)
    assert raised.value.hint in [f"--layout dp=8,zero={stage}" for stage in (1, 2, 3)]
    assert Layout.parse("zero=0") == Layout()
    assert Layout.parse("cp=2,zero=3").zero == 3


layer_names = st.sampled_from(("a", "b", "long_name", "x-1"))


@settings(common, max_examples=400)
@given(
    st.one_of(
        st.lists(layer_names, min_size=1, max_size=60),
        st.tuples(
            st.lists(layer_names, max_size=3),
            st.lists(layer_names, min_size=1, max_size=5),
            st.integers(2, 20),
            st.lists(layer_names, max_size=3),
        ).map(lambda parts: [*parts[0], *parts[1] * parts[2], *parts[3]]),
    )
)
def test_a_pattern_is_read_back(order: list[str]) -> None:
    text = format_pattern(order)
    assert parse_pattern(text) == tuple(order)
    assert len(text) <= len(" ".join(order))


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("3*a", "aaa"),
        ("2*(a b) c", "ababc"),
        ("2*(2*(a b) c)", "ababcababc"),
        ("a, b,, 2 * c", "abcc"),
        ("0*a b", "b"),
    ],
)
def test_patterns_by_hand(text: str, order: str) -> None:
    assert parse_pattern(text) == tuple(order)


def test_the_pattern_of_every_bundled_model() -> None:
    for name in bundled_models():
        order = load_bundled(name).order
        assert parse_pattern(format_pattern(order)) == order, name
        assert len(format_pattern(order)) <= 140, name
