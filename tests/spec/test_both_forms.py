"""A config of the hub, and what transformers 5 writes after it has read this config, give the same spec."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmbench.errors import LLMBenchError
from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config, supported_model_types
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.mixer import CompressedAttention
from llmbench.spec.position import Rope

from ..oracles.config_variations import REQUIRED
from ..oracles.transformers_meta import measure

TEXT_PARTS = ("text_config", "decoder", "encoder")

TIED_BY_CLASS = {
    model_type
    for model_type, record in facts().items()
    if (text := record.get("text_config")) is not None
    and record["defaults"]["tie_word_embeddings"]
    and not facts()[text["model_type"]]["defaults"].get("tie_word_embeddings", False)
}
"""Multimodal classes that tie the head by default although their text part does not. If a config lacks the key,
llmbench follows the text part: transformers ties only equal weights when it loads a checkpoint."""

SHORT = {"granitemoehybrid": 8, "lfm2": 8, "lfm2_moe": 8}
"""The number of layers of the lists in REQUIRED, if it is not the default of the class."""


def spec_of(config: dict[str, Any], *, tied: bool) -> tuple[Any, tuple[str, ...]] | None:
    """The fields of the spec of the text part, and why it is approximate. None: the config is refused.

    The format of recurrent states is left out: an engine follows a config only if the config states it.
    """
    try:
        spec = from_config(config, name="x", source="x")
    except LLMBenchError:
        return None
    shown = msgspec.structs.replace(spec, approximate=(), undescribed=(), notes=(), family="", towers=())
    if not tied:
        shown = msgspec.structs.replace(shown, tie_word_embeddings=False)
    return without(msgspec.to_builtins(shown), "state_dtype"), spec.approximate


def without(fields: Any, name: str) -> Any:
    """Nested fields without those of a certain name."""
    if isinstance(fields, dict):
        return {key: without(value, name) for key, value in fields.items() if key != name}
    return [without(field, name) for field in fields] if isinstance(fields, list) else fields


def as_written_before(config: dict[str, Any]) -> dict[str, Any]:
    """The keys of transformers 4: rope_theta and rope_scaling instead of rope_parameters, torch_dtype."""
    older = {key: as_written_before(value) if key in TEXT_PARTS and value else value for key, value in config.items()}
    rotation = older.get("rope_parameters") or {}
    if "rope_theta" in rotation:
        del older["rope_parameters"]
        rotation = dict(rotation)
        older["rope_theta"] = rotation.pop("rope_theta")
        if "partial_rotary_factor" in rotation:
            older["partial_rotary_factor"] = rotation.pop("partial_rotary_factor")
        older["rope_scaling"] = None if rotation == {"rope_type": "default"} else rotation
    older["torch_dtype"] = older.pop("dtype", None)
    return older


def written_by_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 writes for a config, with all keys."""
    read = CONFIG_MAPPING[config["model_type"]].from_dict(json.loads(json.dumps(config)))
    written: dict[str, Any] = json.loads(read.to_json_string(use_diff=False))
    return {"model_type": config["model_type"], **written}


@pytest.mark.parametrize(
    "model_type",
    sorted(
        {name for name in supported_model_types() if name in CONFIG_MAPPING}
        | {name for name, record in facts().items() if "text_config" in record}
    ),
)
def test_both_forms_of_a_family(model_type: str) -> None:
    config: dict[str, Any] = {"model_type": model_type, **REQUIRED.get(model_type, {})}
    if model_type in SHORT:
        config["num_hidden_layers"] = SHORT[model_type]
    written = written_by_transformers(config)
    tied = model_type not in TIED_BY_CLASS
    spec = spec_of(written, tied=tied)
    assert spec_of(as_written_before(written), tied=tied) == spec
    # transformers 5 writes that mT5 and UMT5 are tied, even if they are not, and how Inkling 2 is quantised
    if model_type not in ("mt5", "umt5", "inkling2"):
        assert spec_of(config, tied=tied) == spec_of(written, tied=tied)


def test_layers_with_other_sizes() -> None:
    """transformers 5 writes the sizes of single layers into `per_layer_config`."""
    config = {"model_type": "gemma4_text", "global_head_dim": 384, "num_hidden_layers": 8}
    config |= {"num_global_key_value_heads": 2, "attention_k_eq_v": True, "vocab_size": 1000}
    written = written_by_transformers(config)
    assert "global_head_dim" not in written
    spec = from_config(written, name="x")
    assert spec.approximate == ()
    assert count_parameters(spec).total == count_parameters(from_config(config, name="x")).total
    assert count_parameters(spec).total == measure(config).total
    written["per_layer_config"]["05"] = {"head_dim": 512, "use_memory": True}
    assert any("per_layer_config.use_memory" in reason for reason in from_config(written, name="x").approximate)


DEEPSEEK_V4 = {
    "model_type": "deepseek_v4",
    "compress_ratios": [0, 4, 128, 4, 0],
    "compress_rope_theta": 160000.0,
    "head_dim": 128,
    "hidden_size": 256,
    "index_head_dim": 64,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_attention_heads": 8,
    "num_hash_layers": 1,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "qk_rope_head_dim": 64,
    "rope_scaling": {"factor": 16, "original_max_position_embeddings": 65536, "type": "yarn"},
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 500,
}
"""The keys of the published configs of DeepSeek-V4, with smaller sizes."""


def test_deepseek_v4_as_published() -> None:
    spec = from_config(DEEPSEEK_V4, name="x")
    assert spec.approximate == ()
    assert count_parameters(spec).total == measure(DEEPSEEK_V4).total
    written = written_by_transformers(DEEPSEEK_V4)
    assert spec_of(written, tied=True) == spec_of(DEEPSEEK_V4, tied=True)
    assert spec.positions == Rope(rotary_dim=64, interleaved=True)
    for layer in spec.layers.values():
        mixer = layer.mixer
        assert isinstance(mixer, CompressedAttention)
        if mixer.compress_rate is None:
            assert mixer.positions is None
        else:
            assert isinstance(mixer.positions, Rope)
            assert (mixer.positions.theta, mixer.positions.rotary_dim) == (160000.0, 64)
            assert mixer.positions.scaling is not None
