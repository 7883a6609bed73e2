"""Inputs that ask for much work: layouts, patterns of modules, sweeps, and headers with many tensors."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.cli.application import run
from llmbench.errors import LayoutError, LLMBenchError, SpecError
from llmbench.sizing.peak import stage_peak
from llmbench.sizing.stages import chunks_in_flight
from llmbench.sizing.training import training_run
from llmbench.sizing.weights import stored_weights
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import find_model
from llmbench.spec.files import parse_spec, write_spec
from llmbench.spec.huggingface import from_config, load_config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override, parse_assignments
from llmbench.spec.weights import patterns, safetensors
from llmbench.spec.weights.patterns import Patterns, faulty_pattern
from llmbench.spec.weights.safetensors import checked_header, merged
from llmbench.spec.weights.stored import ModuleFormat, Weights

from .inputs import quickly, survives

Capture = pytest.CaptureFixture[str]
LLAMA = find_model("llama2-7b")
CONFIG = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}


def with_weights(spec: ModelSpec, weights: Weights) -> ModelSpec:
    return msgspec.structs.replace(spec, weights=weights)


@pytest.mark.parametrize(
    "stages",
    [
        "E(t*99999)*99999L",
        "(" * 50_000 + "t" * 9 + ")*99999" * 50_000,
        "E" + "(" * 50_000,
        "t" * 100_000,
        "((t*9)*9)*9)",
    ],
)
def test_a_notation_of_stages_is_counted_before_it_is_written(stages: str) -> None:
    with quickly(), pytest.raises(LayoutError):
        training_run(LLAMA, 64, layout=Layout(pp=2, stages=stages))


def test_the_memory_of_many_interleaved_stages_is_computed_at_once() -> None:
    deep = override(LLAMA, {"num_hidden_layers": 10_000})
    with quickly():
        run = training_run(deep, 64, layout=Layout(pp=100, interleave=100), micro_batches=400)
        assert len(run.stages) == 100
        stage_peak(run, run.stages[0])
    with quickly():
        for interleave in (100, 1000):
            chunks_in_flight(0, Layout(pp=10, interleave=interleave), 10**6, range(interleave))
    with pytest.raises(LayoutError, match="interleave: must be from 1 to 1,000"):
        Layout(pp=2, interleave=1001)


def test_the_chunks_in_flight_are_those_of_a_plain_simulation() -> None:
    rng = random.Random(5)
    for _ in range(60):
        layout = Layout(pp=rng.randint(2, 5), interleave=rng.randint(2, 5))
        micro_batches, stage = rng.randint(1, 24), rng.randrange(layout.pp)
        saved = [rng.choice([0, 1, 5, 5, 100]) for _ in range(layout.interleave)]
        ours = chunks_in_flight(stage, layout, micro_batches, saved)
        weights = [sum(count * size for count, size in zip(each, saved, strict=True)) for each in ours]
        assert weights == _simulated(stage, layout, micro_batches, saved)


def _simulated(stage: int, layout: Layout, micro_batches: int, saved: list[int]) -> list[int]:
    """The most bytes of the other chunks in flight at a backward pass of each chunk, one pass after another."""
    pp, kinds = layout.pp, layout.interleave
    group = next((g for g in range(pp, micro_batches + 1) if micro_batches % g == 0 or micro_batches % g >= pp), pp)
    order = [
        chunk
        for start in range(0, micro_batches, group)
        for chunk in range(kinds)
        for _ in range(min(group, micro_batches - start))
    ]
    first = min(len(order), 2 * (pp - stage - 1) + (kinds - 1) * group + 1)
    now, most = [0] * kinds, [0] * kinds
    waiting = list(order)
    for unit in order:
        while waiting and sum(now) < first:
            now[waiting.pop(0)] += 1
        chunk = kinds - 1 - unit
        now[chunk] -= 1
        most[chunk] = max(most[chunk], sum(count * size for count, size in zip(now, saved, strict=True)))
    return most


@pytest.mark.parametrize(
    ("model_type", "many"),
    [
        ("gemma4_text", {f"key{index}": 0 for index in range(20_000)}),
        ("dots3_note_text", {"per_layer_config": {str(index): {} for index in range(40_000)}}),
    ],
)
def test_the_work_is_not_layers_times_keys(model_type: str, many: dict[str, object]) -> None:
    config = facts()[model_type]["defaults"] | {"model_type": model_type, "num_hidden_layers": 10_000} | many
    del config["layer_types"]
    with quickly():
        assert len(from_config(config, name="x").order) == 10_000


@pytest.mark.parametrize(
    "pattern",
    ["(", "(a|a)*(\\w+\\.?)+(\\w+)+Q", "(?x). * . * . * . * . * .Q", "(.)(?(1)a|b)", "a(?#x)*", ".*.*.*.*Q", "[[a]"],
)
def test_every_path_to_the_patterns_of_modules_refuses_a_slow_or_wrong_one(pattern: str) -> None:
    assert faulty_pattern(f"re:{pattern}")
    config = {**CONFIG, "quantization_config": {"quant_method": "fp8", "ignored_layers": [f"re:{pattern}"]}}
    weights = Weights(format="fp8-tensor", keeps=(f"re:{pattern}",))
    for call in (
        lambda: Patterns([f"re:{pattern}"]),
        lambda: from_config(config, name="x"),
        lambda: stored_weights(with_weights(LLAMA, weights)),
    ):
        with quickly(), pytest.raises(SpecError, match=r"pattern|expression|repetitions|flag"):
            call()


def test_the_limit_of_patterns_holds_for_all_layers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "MOST_WORK", patterns.MOST_WORK / 20)
    deep = override(LLAMA, {"num_hidden_layers": 250})
    slow = [f"re:.*.*.*[Q{letter}]" for letter in "ABCDEFGHI"]
    one = Weights(format="fp8-tensor", keeps=tuple(slow))
    several = Weights(overrides=tuple(ModuleFormat(modules=(pattern,), format="fp8-tensor") for pattern in slow))
    for weights in (one, several):
        with quickly(), pytest.raises(SpecError, match="too many repetitions for a model with so many modules"):
            stored_weights(with_weights(deep, weights))
    usual = Weights(format="fp8-tensor", keeps=tuple(f"model.layers.{i}.self_attn*" for i in range(80)))
    assert survives(lambda: stored_weights(with_weights(LLAMA, usual))) is not None


@pytest.mark.parametrize("piece", ["*", "*a", "re:(?:a)"])
def test_the_limit_of_patterns_holds_for_their_length(piece: str) -> None:
    kind, text = ("re:", piece[3:]) if piece.startswith("re:") else ("", piece)
    long = [f"{kind}{text * (990 // len(text))}q{index}" for index in range(1999)]
    with quickly(), pytest.raises(SpecError, match="too many patterns"):
        from_config(CONFIG | {"quantization_config": {"quant_method": "fp8", "ignored_layers": long}}, name="x")
    usual = [rf"re:model\.layers\.{index}\.self_attn\.q_proj" for index in range(1999)]
    assert from_config(CONFIG | {"quantization_config": {"quant_method": "fp8", "ignored_layers": usual}}, name="x")


def test_many_notes_are_compared_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = tuple(f"note {index}" for index in range(40_000))
    for name in ("a", "b"):
        text = write_spec(msgspec.structs.replace(LLAMA, name=name, notes=many, approximate=many))
        (tmp_path / f"{name}.toml").write_text(text)
    with quickly():
        assert run(["compare", str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), "gpt2"]) == 0
    assert "note 39999" in capsys.readouterr().out


def test_a_text_from_outside_does_not_decide_which_files_are_read() -> None:
    for place in ("hf:org/x", "hf:org/x@main", "/etc", "x.gguf"):
        text = write_spec(LLAMA).replace("dtype =", f"tensors_in = {place!r}, dtype =")
        with pytest.raises(LLMBenchError, match="tensors_in"):
            parse_spec(text, "a spec")
        with pytest.raises(LLMBenchError, match="tensors_in"):
            override(LLAMA, {"weights.tensors_in": place})


def test_a_sweep_has_a_limit_of_cases(capsys: pytest.CaptureFixture[str]) -> None:
    lengths, batches = (",".join(map(str, range(1, count))) for count in (41, 27))
    for command in ("kvcache", "flops", "memory"):
        assert run([command, "llama2-7b", "--seq", lengths, "--batch", batches]) == 2
        assert "1,040 cases, and a command computes at most 1,000: 40 of seq × 26 of batch" in capsys.readouterr().err
    for command in ("compare", "params"):
        assert run([command, *["llama2-7b"] * 1001]) == 2
        assert "1,001 of models" in capsys.readouterr().err


def header_of(names: Iterable[str], extra: str = "") -> bytes:
    entries = [
        f'"{name}":{{"dtype":"F16","shape":[1],"data_offsets":[{2 * place},{2 * place + 2}]{extra}}}'
        for place, name in enumerate(names)
    ]
    return f"{{{','.join(entries)}}}".encode()


def test_the_tensors_of_a_checkpoint_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    header = header_of(map(str, range(30_000)))
    with quickly():
        assert len(checked_header(header, 8 + len(header) + 60_000, "x")) == 30_000
    monkeypatch.setattr(safetensors.json, "loads", None)  # the slow decoder, which only a damaged header needs
    escaped = header_of([f"\\u0061:{index}" for index in range(1000)])
    assert "a:7" in checked_header(escaped, 8 + len(escaped) + 2000, "x")
    monkeypatch.setattr(safetensors, "MOST_TENSORS", 3)
    header = header_of("abcd")
    with pytest.raises(SpecError, match="4 tensors, more than 3"):
        checked_header(header, 8 + len(header) + 8, "x")
    files = [(file, checked_header(header_of(names), 8 + len(header_of(names)) + 4, file)) for file, names in FILES]
    with pytest.raises(SpecError, match="more than 3 tensors"):
        merged(files)


FILES = (("one", "ab"), ("two", "cd"))


@pytest.mark.parametrize(
    "header",
    [
        header_of(["a", "a"]),
        header_of(["a", "\\u0061"]),
        header_of("a", ',"dtype":"F16"'),
        header_of("a", ',"shape":[1]'),
        header_of(["a", "a"]).replace(b'"data_offsets"', b'"data\\u005foffsets"', 1),
        b'{"__metadata__":{"data_offsets":"x","dtype":"x","shape":"x"},' + header_of(["a", "a"])[1:],
    ],
)
def test_a_name_that_occurs_twice_in_a_header_is_found(header: bytes) -> None:
    with pytest.raises(SpecError, match="twice"):
        checked_header(header, 8 + len(header) + 4, "x")


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": 4, "dynamic": {f"+:a{i}": {"bits": 8} for i in range(50_000)}},
        {"bits": 4, "group_size": 64, **{f"a{i}.b": {"bits": 4, "group_size": i + 1} for i in range(20_000)}},
        {"quant_method": "compressed-tensors", "config_groups": {str(i): {} for i in range(50_000)}},
    ],
)
def test_the_modules_with_another_format_have_a_limit(quantization: dict[str, object]) -> None:
    with quickly(), pytest.raises(SpecError, match="more than 2,000"):
        from_config(CONFIG | {"quantization_config": quantization}, name="x")


def test_many_plain_names_of_modules_are_matched_at_once() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.up_proj" for i in range(90) for j in range(256)]
    layers = {name: {"quant_algo": "FP8"} for name in names}
    mixed = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    for quantization in (mixed, {"quant_method": "fp8", "ignored_layers": names}):
        with quickly():
            stored_weights(from_config(CONFIG | {"quantization_config": quantization}, name="x"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({f"k{number}": 1 for number in range(100_001)}, "keys, more than 100,000"),
        ({"a" + 20_000 * "_a": 3}, "a key has 40,001 characters, more than 500"),
        ({"zzz": functools.reduce(lambda inner, _: {"a": inner}, range(330), 1)}, "more than 50 levels"),
        ({"layer_types": functools.reduce(lambda inner, _: [inner], range(90), 1)}, "more than 50 levels"),
        (
            {"quantization_config": {"quant_method": "awq", "modules_to_not_convert": ["x"] * 100_001}},
            "modules_to_not_convert: has 100,001 names, more than 100,000",
        ),
    ],
)
def test_configs_of_unusual_size_are_refused(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64} | more))
    with quickly(), pytest.raises(SpecError, match=says):
        load_config(tmp_path)


def test_keys_of_many_parts_are_refused_before_they_are_parsed(tmp_path: Path, capsys: Capture) -> None:
    deep = ".".join("a" * 100_000)
    with pytest.raises(SpecError, match="a key in the value has more than 30 parts"):
        parse_assignments([f"hidden_size={{{deep}=1}}"])
    (tmp_path / "s.toml").write_text(f"[{deep}]\n")
    with quickly():
        assert run(["specs", "check", str(tmp_path / "s.toml")]) == 2
    assert "a key has more than 30 parts" in capsys.readouterr().err
