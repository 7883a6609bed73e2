"""Random, huge, ill-typed and malicious input: each gives an answer, or an LLMBenchError with a message, in time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmbench.errors import LLMBenchError
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import parse_spec, read_spec, write_spec
from llmbench.spec.huggingface import load_config
from llmbench.spec.override import override, parse_assignments
from llmbench.spec.pattern import format_pattern, parse_pattern

from .inputs import anything, common, quickly, sized, survives

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
def test_hostile_toml(text: str) -> None:
    assert survives(lambda: parse_spec(text, "text")) is None


@pytest.mark.parametrize(
    "text", ["a." * 1_000_000 + "b = 1", "[" + "a . " * 500_000 + "b]", "x = {" + '"a".' * 500 + "b = 1}"]
)
def test_a_key_of_many_parts(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f"name = 'x'\n{text}\n")
    with quickly(), pytest.raises(LLMBenchError, match=r"a key has more than 30 parts|more than 2,097,152 bytes"):
        read_spec(tmp_path / "x.toml")


@pytest.mark.parametrize("value", ["-1", "0", "2147483649", "1e400", "nan", '"x"', "[]", "{}", "true", "9" * 5000])
@pytest.mark.parametrize("field", ["vocab_size", "hidden_size", "layers", "pattern", "norm", "name"])
def test_an_impossible_field(field: str, value: str) -> None:
    if (field, value) in (("name", '"x"'), ("norm", "{}")):
        return
    lines = write_spec(load_bundled("llama2-7b")).splitlines()
    head = [line for line in lines if not line.startswith((f"{field} =", f"[{field}"))]
    assert survives(lambda: parse_spec("\n".join([f"{field} = {value}", *head]), "spec")) is None


def test_a_weight_has_fewer_elements_than_a_file_can_have() -> None:
    text = "extra = [{ name = 'w', shape = [%s], role = 'matmul' }]\n" + write_spec(load_bundled("llama2-7b"))
    sized(parse_spec(text % "2147483647, 2147483647", "spec"))
    with pytest.raises(LLMBenchError, match=r"extra.*shape: has 2\^63 elements or more"):
        parse_spec(text % ", ".join(["2147483647"] * 40), "spec")


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
def test_hostile_patterns(text: str) -> None:
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
    assume("\\ud" not in json.dumps(value))  # halves of characters: `parse_assignments` refuses them
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
def test_hostile_assignments(item: str) -> None:
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
def test_hostile_layouts(text: str) -> None:
    result = survives(lambda: Layout.parse(text))
    assert result is None or not text.strip(",")
