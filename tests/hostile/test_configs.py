"""Hugging Face configs with arbitrary values: each is sized, or refused with a reason, within the time limit."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import LLMBenchError
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import read_spec
from llmbench.spec.huggingface import from_config, load_config, supported_model_types
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.model import ModelSpec

from ..oracles.huggingface_export import to_config
from .inputs import JUNK, QUICK_S, anything, common, quickly, sized, survives


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
    problems: list[str] = []
    for name, config in configs:
        start = time.process_time()
        try:
            sized(from_config(config, name="mutated"))
        except LLMBenchError as problem:
            if not str(problem).strip():
                problems.append(f"{name}: no message")
        except Exception as problem:
            problems.append(f"{name}: {type(problem).__name__}: {str(problem)[:100]}")
        if time.process_time() - start > QUICK_S:
            problems.append(f"{name}: took {time.process_time() - start:.1f} s")
    return problems


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


def without_texts(spec: ModelSpec) -> ModelSpec:
    return msgspec.structs.replace(spec, notes=(), approximate=(), undescribed=())


@pytest.mark.parametrize("name", [*FULL, "gemma2-2b", "falcon-40b", "dbrx"])
def test_a_value_of_another_type_never_changes_the_spec_silently(name: str) -> None:
    config = plain(to_config(load_bundled(name)))
    spec = from_config(config, name="x")
    for key, value in config.items():
        for wrong in ("1e-6", [[1]], {"a": 1}):
            if isinstance(value, type(wrong)):
                continue
            try:
                changed = from_config({**config, key: wrong}, name="x")
            except LLMBenchError:
                continue
            marked = changed.approximate != spec.approximate or changed.undescribed != spec.undescribed
            assert marked or without_texts(changed) == without_texts(spec), (key, wrong)


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
def test_hostile_files(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert survives(lambda: load_config(file)) is None
    assert survives(lambda: load_config(tmp_path)) is None


def test_missing_files_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.json", tmp_path / "x\x00y"):
        with pytest.raises(LLMBenchError, match="cannot read"):
            load_config(path)
    with pytest.raises(LLMBenchError, match="cannot read"):
        read_spec(tmp_path / "nothing.toml")


def test_infinity_and_nan_are_json_here(tmp_path: Path) -> None:
    config = to_config(load_bundled("llama2-7b")) | {"attention_dropout": math.inf, "initializer_range": math.nan}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert count_parameters(load_config(file)).total == 6_738_415_616


def test_a_config_of_many_or_long_unknown_keys_has_few_short_reasons(tmp_path: Path) -> None:
    config = {"model_type": "llama", "x" * 100_000: 1, "hidden_act": "y" * 100_000}
    config |= {f"unknown{index}": 1 for index in range(100_000)}
    with quickly():
        spec = from_config(config, name="x")
    texts = [*spec.approximate, *spec.undescribed, *spec.notes]
    assert spec.approximate[-1] == "there are more, which are not listed"
    assert len(texts) < 300
    assert max(map(len, texts)) < 1000
