"""What each kind of mixer says about itself, against the ops that its lowering gives."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli import run
from llmbench.sizing.formula import numbers_of, with_numbers
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Cache
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec

UNBUNDLED: dict[str, dict[str, Any]] = {
    "deepseek_v4": {"partial_rotary_factor": 0.125},
    "kimi_linear": {},
    "rwkv": {},
    "falcon_h1": {},
    "gemma3n_text": {},
}
"""Model types whose mixers no bundled model has, with what their configs set beside transformers' defaults."""

MODELS = (*bundled_models(), *UNBUNDLED)


def model(name: str) -> ModelSpec:
    """A bundled model, or one of a model type."""
    return from_config({"model_type": name, **UNBUNDLED[name]}, name=name) if name in UNBUNDLED else load_bundled(name)


def caches(spec: ModelSpec, layer: str) -> list[Cache]:
    """The caches of the ops of one kind of layer of the decoder, without cross-attention."""
    ops = [op for op in lower(spec, Workload.prefill(1)) if op.layer == layer and op.stack == "decoder"]
    return [op.cache for op in ops if op.cache is not None and not op.cache.cross_per_token]


def a_layer_caches_what_its_mixers_say(name: str) -> None:
    """Elements per token, of indexers and of states."""
    spec = model(name)
    for layer, part in spec.layers.items():
        mixers = branches(part.mixer)
        layer_caches = caches(spec, layer)
        assert sum(cache.per_token for cache in layer_caches) == sum(
            row.elements for m in mixers for row in m.cache_rows
        )
        indexers = [mixer.indexer_row.elements for mixer in mixers if mixer.indexer_row is not None]
        assert sum(cache.indexer_per_token for cache in layer_caches) == sum(indexers)
        states = [mixer.fixed_state for mixer in mixers if mixer.fixed_state is not None]
        assert sum(cache.state for cache in layer_caches) == sum(state.scan_elements for state in states)
        conv = [state.conv[0] * state.conv[1] if state.conv else 0 for state in states]
        shifted = [state.stream_tokens * spec.hidden_size for state in states]
        assert sum(cache.conv_state for cache in layer_caches) == sum(conv) + sum(shifted)


def formulas_of_cache_rows_give_their_elements(name: str) -> None:
    """The formula is a text, which is computed here."""
    for mixer in model(name).mixers:
        for row in mixer.cache_rows:
            numbers = with_numbers(row.formula, numbers_of(mixer)).replace("×", "*")
            assert ceil(eval(numbers, {"__builtins__": {}})) == row.elements, row.formula


def widths_of_heads_agree_with_the_ops(name: str) -> None:
    """The score op's FLOPs are 2 · (key_dim + value_dim) per pair and query head: one token sees itself alone."""
    spec = model(name)
    for layer in spec.layers:
        ops = [op for op in lower(spec, Workload.prefill(1)) if op.layer == layer and op.stack == "decoder"]
        scored = [op for op in ops if op.role == "core"]
        attending = [m for m in branches(spec.layers[layer].mixer) if isinstance(m, AttentionKind)]
        assert len(scored) == len(attending)
        for op, mixer in zip(scored, attending, strict=True):
            assert op.forward_flops == 2 * mixer.num_attention_heads * (mixer.key_dim + mixer.value_dim)


def a_narrowed_attention_has_a_narrow_span(name: str) -> None:
    """Its groups of query heads stay as they are."""
    for mixer in model(name).attentions:
        narrowed = mixer.narrowed(kv_heads=2, span=3)
        assert (narrowed.span is None) == (mixer.span is None)
        assert narrowed.span is None or narrowed.span == min(mixer.span or 3, 3)
        assert narrowed.num_key_value_heads == min(2, mixer.num_key_value_heads)
        shared = mixer.num_attention_heads // mixer.num_key_value_heads
        assert narrowed.num_attention_heads == narrowed.num_key_value_heads * shared
        assert narrowed.cache_row.span == narrowed.span


def ops_have_the_last_names_of_their_roles(name: str) -> None:
    """Traces and profiles find the ops that functions of an implementation compute by these names."""
    for op in lower(model(name), Workload.train(8)):
        if op.role in ("act", "rope", "core", "indexer_core", "cross_core"):
            assert op.name.rpartition(".")[2] == op.role.rpartition("_")[2]


CHECKS = (
    a_layer_caches_what_its_mixers_say,
    formulas_of_cache_rows_give_their_elements,
    widths_of_heads_agree_with_the_ops,
    a_narrowed_attention_has_a_narrow_span,
    ops_have_the_last_names_of_their_roles,
)


@pytest.mark.parametrize("name", MODELS)
def test_kinds_say_what_their_ops_have(name: str) -> None:
    for check in CHECKS:
        check(name)


def test_compare_describes_compressed_attention(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "deepseek_v4", **UNBUNDLED["deepseek_v4"]}), encoding="utf-8")
    assert run(["compare", str(config), "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    spec = model("deepseek_v4")
    (width,) = {mixer.head_dim for mixer in spec.mixers}
    assert row["head_dim"] == row["v_head_dim"] == [width]
    assert row["window"] == [128]
    assert all(text.startswith("RoPE") for text in row["positions"])
    assert row["attention"] == ["64 heads (compressed attention)"]
