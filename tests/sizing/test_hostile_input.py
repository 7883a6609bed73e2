"""Random, huge, ill-typed and malicious input: an LLMBenchError with a message, quickly, or an answer."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmbench.errors import LLMBenchError
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import parse_spec, read_spec, write_spec
from llmbench.spec.huggingface import from_config, load_config, supported_model_types
from llmbench.spec.huggingface.export import to_config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override, parse_assignments
from llmbench.spec.pattern import format_pattern, parse_pattern

common = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
QUICK_S = 5.0
"""No input takes longer; a hang takes minutes, a loaded machine does not reach this."""

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
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
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


# Specs


@common
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda b: b.decode("latin-1"))))
def test_random_text_as_a_spec(text: str) -> None:
    assert survives(lambda: parse_spec(text, "text")) is None


@common
@given(st.binary(max_size=300))
def test_random_bytes_as_a_file(tmp_path: Path, content: bytes) -> None:
    for name, read in (("x.toml", read_spec), ("x.json", load_config)):
        file = tmp_path / name
        file.write_bytes(content)
        assert survives(lambda read=read, file=file: read(file)) is None


WORDS = write_spec(load_bundled("deepseek-v3.2")).split()


@common
@given(st.integers(0, len(WORDS) - 1), st.one_of(st.text(max_size=30), st.sampled_from(WORDS)))
def test_a_spec_with_one_word_replaced(position: int, word: str) -> None:
    text = write_spec(load_bundled("deepseek-v3.2"))
    sized(survives(lambda: parse_spec(text.replace(WORDS[position], word), "spec")))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "x = " + "[" * 5_000 + "]" * 5_000,
        "x = " + "{a = " * 5_000,
        "a" + ".a" * 5_000 + " = 1",
        "name = " + "9" * 100_000,
        "hidden_size = 1e400",
        "\ufeffname = 'x'",
        "name = '\x00'",
    ],
    ids=lambda text: text[:12],
)
def test_toml_that_is_meant_to_hurt(text: str) -> None:
    assert survives(lambda: parse_spec(text, "text")) is None


@pytest.mark.parametrize(
    "value", ["-1", "0", "2147483649", "1e400", "nan", '"x"', "[]", "{}", "true", "9" * 5000]
)
@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "layers", "pattern", "norm", "name"])
def test_a_field_that_cannot_be(field: str, value: str) -> None:
    if (field, value) in (("name", '"x"'), ("norm", "{}")):
        return
    lines = write_spec(load_bundled("llama2-7b")).splitlines()
    head = [line for line in lines if not line.startswith((f"{field} =", f"[{field}"))]
    assert survives(lambda: parse_spec("\n".join([f"{field} = {value}", *head]), "spec")) is None


# Patterns


@common
@given(st.one_of(st.text(max_size=60), st.text("ab()*,0123456789 ", max_size=60)))
def test_random_patterns(text: str) -> None:
    survives(lambda: parse_pattern(text))


@pytest.mark.parametrize(
    "text",
    [
        "99999*(99999*(99999*a))",
        "(" * 100_000,
        "(" * 49 + "a" + ")" * 49,
        "999999999999999999999*a",
        "," * 1_000_000,
        " " * 1_000_000,
        "a " * 200_000,
        "0*(10000*a) " * 20_000,
        "9" * 1_000_000 + "*a",
        "2*" * 100_000 + "a",
        "١*a",
    ],
    ids=lambda text: f"{text[:12]}…{len(text)}",
)
def test_patterns_that_are_meant_to_hurt(text: str) -> None:
    survives(lambda: parse_pattern(text))


@pytest.mark.parametrize("seed", range(3))
def test_ten_thousand_layers_without_order(seed: int) -> None:
    order = [("a", "b", "c")[(n * n + seed * n // 3 + n // 7) % 3] for n in range(10_000)]
    with quickly():
        assert parse_pattern(format_pattern(order)) == tuple(order)


# Overrides and layouts


@common
@given(st.lists(st.one_of(st.text(max_size=30), st.text("ab.*=_0123456789{}[]\"'", max_size=30)), max_size=3))
def test_random_assignments(items: list[str]) -> None:
    spec = load_bundled("mixtral-8x7b")
    assignments = survives(lambda: parse_assignments(items))
    if assignments is not None:
        sized(survives(lambda: override(spec, assignments)))


PATHS = (
    "hidden_size",
    "layers",
    "layers.block",
    "layers.block.mixer",
    "layers.block.mixer.kind",
    "layers.*.ffn.num_experts",
    "layers.*.*",
    "*",
    "*.*.*",
    "pattern",
    "num_hidden_layers",
    "num_key_value_heads",
    "encoder.layers.x",
    "extra.0.shape",
    "extra",
    "norm.eps",
    "positions",
    "name",
    "",
    ".",
    "layers..mixer",
    "layers.block.mixer.",
)


@common
@given(st.sampled_from(PATHS), anything)
def test_any_value_at_any_path(path: str, value: Any) -> None:
    sized(survives(lambda: override(load_bundled("mixtral-8x7b"), {path: value})))


@pytest.mark.parametrize(
    "item",
    [
        "hidden_size=" + "9" * 100_000,
        "hidden_size=1e999",
        "hidden_size=" + "[" * 100_000,
        "a" + ".a" * 100_000 + "=1",
        "*" + ".*" * 1000 + "=1",
        "name=\x00\ud800",
        "hidden_size=1\nname='y'",
        "pattern=" + "9999*(" * 40 + "block" + ")" * 40,
        "vocab_size=0x7fffffff",
        "vocab_size=-0",
        "=",
        "hidden_size==1",
    ],
    ids=lambda item: item[:16],
)
def test_assignments_that_are_meant_to_hurt(item: str) -> None:
    assignments = survives(lambda: parse_assignments([item]))
    if assignments is not None:
        sized(survives(lambda: override(load_bundled("llama2-7b"), assignments)))


@common
@given(st.one_of(st.text(max_size=40), st.text("tpcdezrosilav=,0123456789- ", max_size=40)))
def test_random_layouts(text: str) -> None:
    survives(lambda: Layout.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "tp=" + "9" * 10_000,
        "tp=-1",
        "tp=0",
        "tp=1.5",
        "tp=٣",
        "zero=4",
        "sp=2",
        "tp=²",
        "," * 10**6,
        "tp=1,tp=1",
    ],
)
def test_layouts_that_are_meant_to_hurt(text: str) -> None:
    result = survives(lambda: Layout.parse(text))
    assert result is None or not text.strip(",")


# Configs


def plain(values: Any) -> Any:
    """A config as JSON brings it."""
    return json.loads(json.dumps(values))


def mutated(config: dict[str, Any], *, stride: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The config with one value replaced by one of JUNK, for each `stride`-th pair of key and junk."""
    pairs = [(key, junk) for key in config for junk in JUNK]
    for key, junk in pairs[:: max(1, stride)]:
        yield f"{key}={str(junk)[:30]!r}", {**config, key: junk}
        if isinstance(config[key], dict) and config[key]:
            inner = next(iter(config[key]))
            yield f"{key}.{inner}", {**config, key: {**config[key], inner: junk}}
        if isinstance(config[key], list) and config[key]:
            yield f"{key}[0]", {**config, key: [junk, *config[key][1:]]}


def failures(configs: Iterator[tuple[str, dict[str, Any]]]) -> list[str]:
    """What came out that should not have, a line each; all of them, because one key seldom fails alone."""
    found: list[str] = []
    for what, config in configs:
        start = time.process_time()
        try:
            sized(from_config(config, name="mutated"))
        except LLMBenchError as problem:
            if not str(problem).strip():
                found.append(f"{what}: no message")
        except Exception as problem:
            found.append(f"{what}: {type(problem).__name__}: {str(problem)[:100]}")
        if time.process_time() - start > QUICK_S:
            found.append(f"{what}: took {time.process_time() - start:.1f} s")
    return found


@pytest.mark.parametrize("model_type", supported_model_types())
def test_every_value_of_the_class_defaults_replaced(model_type: str) -> None:
    defaults = facts().get(model_type, {}).get("defaults", {})
    config = {"model_type": model_type} | {k: v for k, v in defaults.items() if v is not None}
    nothing = {"model_type": model_type} | {k: v for k, v in defaults.items() if v is None}
    stride = max(1, len(config) * len(JUNK) // 150)
    assert failures(mutated(config, stride=stride)) == []
    if len(nothing) > 1:
        assert failures(mutated({**config, **nothing}, stride=7 * stride)) == []


FULL = ("deepseek-v3.2", "gemma3-4b", "jamba-v0.1", "qwen3-next-80b-a3b", "gpt2", "llama4-scout", "t5-small")


@pytest.mark.parametrize("name", FULL)
def test_every_value_of_a_real_config_replaced(name: str) -> None:
    assert failures(mutated(plain(to_config(load_bundled(name))), stride=1)) == []


@pytest.mark.parametrize("model_type", supported_model_types())
def test_nearly_empty_configs(model_type: str) -> None:
    survives(lambda: from_config({"model_type": model_type}, name="x"))
    survives(lambda: from_config({"model_type": model_type, "text_config": {}}, name="x"))
    survives(lambda: from_config({"model_type": model_type, "num_hidden_layers": 10_000}, name="x"))


@common
@given(st.dictionaries(st.sampled_from(("model_type", "hidden_size", "text_config", "x")), anything))
def test_random_configs(config: dict[str, Any]) -> None:
    sized(survives(lambda: from_config(config, name="x")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"model_type": "llama"',
        b'{"model_type": 5}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"model_type": "llama", "hidden_size": ' + b"9" * 100_000 + b"}",
        b'{"model_type": "llama", "vocab_size": 1e400}',
        b'{"model_type": "\\ud800"}',
        b'{"model_type": "llama", "num_hidden_layers": 1000000000}',
        b"\xff\xfe\x00",
        b'{"text_config": ' * 50 + b"{}" + b"}" * 50,
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
def test_files_that_are_meant_to_hurt(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert survives(lambda: load_config(file)) is None
    assert survives(lambda: load_config(tmp_path)) is None


def test_missing_files_are_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json", tmp_path / "x\x00y"):
        with pytest.raises(LLMBenchError, match="cannot read"):
            load_config(path)
    with pytest.raises(LLMBenchError, match="cannot read"):
        read_spec(tmp_path / "nothing.toml")


def test_infinity_and_nan_are_json_here(tmp_path: Path) -> None:
    config = to_config(load_bundled("llama2-7b")) | {"rope_theta": math.inf, "initializer_range": math.nan}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert count_parameters(load_config(file)).total == 6_738_415_616
