"""The RoPE that a config states, against the `rope_parameters` of its class in transformers."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from llmbench.errors import SpecError
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 54321.0}
FORMS: dict[str, dict[str, Any]] = {
    "base in rope_scaling": {"rope_scaling": {**LINEAR, "rope_theta": 54321.0}},
    "base in rope_scaling and beside it": {"rope_scaling": {**LINEAR, "rope_theta": 54321.0}, "rope_theta": 777.0},
    "base beside rope_scaling": {"rope_scaling": LINEAR, "rope_theta": 777.0},
    "older key of the type": {"rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 54321.0}},
    "base without scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": 54321.0}},
    "rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}, "rope_theta": 777.0},
    "both": {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 54321.0}},
    "two lengths": {
        "rope_scaling": {**YARN, "original_max_position_embeddings": 64},
        "original_max_position_embeddings": 128,
    },
    "length beside rope_scaling": {"rope_scaling": YARN, "original_max_position_embeddings": 128},
}
MODEL_TYPES = (
    *("llama", "qwen2", "deepseek_v3", "gemma3_text", "gemma3n_text", "olmo3", "modernbert", "gpt_neox", "gptj"),
    *("glm4", "cohere"),
)


def read(spec: ModelSpec) -> set[Any]:
    """The base, the kind, the factor and the length of the training, of each RoPE of a spec."""
    own = [getattr(layer.mixer, "positions", None) for layer in spec.layers.values()]
    found = set()
    for rope in (spec.positions, *own):
        if isinstance(rope, Rope):
            scaling = rope.scaling
            length = scaling and (scaling.original_max_position_embeddings or spec.max_position_embeddings)
            found.add(summary(rope.theta, scaling.kind if scaling else "default", scaling and scaling.factor, length))
    return found


def of_class(model_type: str, values: dict[str, Any]) -> set[Any]:
    """The same of the class in transformers."""
    stated = CONFIG_MAPPING[model_type](**values).rope_parameters
    each = [value for value in stated.values() if isinstance(value, dict)] or [stated]
    lengths = "original_max_position_embeddings"
    return {summary(own["rope_theta"], own["rope_type"], own.get("factor"), own.get(lengths)) for own in each}


def summary(theta: float, kind: str, factor: float | None, length: int | None) -> tuple[Any, ...]:
    return float(theta), kind, None if kind == "default" else factor, length if kind == "yarn" else None


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_rope_of_a_config_is_that_of_its_class_or_marked(model_type: str) -> None:
    exact = 0
    for name, values in FORMS.items():
        spec = from_config({"model_type": model_type, **values}, name="x")
        if not any("rope" in reason.lower() for reason in spec.undescribed):
            assert read(spec) == of_class(model_type, values), name
            exact += 1
    assert exact >= {"gptj": 0, "olmo3": 0}.get(model_type, 4)


def test_the_key_that_the_class_has_precedes_that_of_rope_scaling() -> None:
    """The class of Phi-3 has the length of the training, 4096, beside rope_scaling."""
    factors = [1.0] * 48
    scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    values = {"rope_scaling": {**scaling, "original_max_position_embeddings": 64}}
    positions = from_config({"model_type": "phi3", **values}, name="x").positions
    own = CONFIG_MAPPING["phi3"](**values).rope_parameters
    assert isinstance(positions, Rope)
    assert positions.scaling is not None
    assert positions.scaling.original_max_position_embeddings == own["original_max_position_embeddings"] == 4096


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize(
    "inner",
    [
        {"rope_theta": "1e6"},
        {"rope_theta": [1e6]},
        {"rope_type": 5},
        {"type": 5},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": -1},
    ],
    ids=str,
)
def test_a_wrong_value_of_rope_is_refused(key: str, inner: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=rf"{key}\.{list(inner)[-1]}: must be"):
        from_config({"model_type": "llama", key: inner}, name="x")


@pytest.mark.parametrize("key", ["head_dim", "original_max_position_embeddings", "max_position_embeddings"])
@pytest.mark.parametrize("size", [-1, 0])
def test_an_impossible_size_is_refused(key: str, size: int) -> None:
    with pytest.raises(SpecError, match=f"{key}: must be a whole number"):
        from_config({"model_type": "llama", "rope_scaling": YARN, key: size}, name="x")


@pytest.mark.parametrize("value", [True, 5, [], "x"])
def test_the_rope_of_a_layer_type_is_an_object(value: Any) -> None:
    with pytest.raises(SpecError, match=r"rope_parameters.sliding_attention: must be an object"):
        from_config({"model_type": "gemma3_text", "rope_parameters": {"sliding_attention": value}}, name="x")


@pytest.mark.parametrize(("model_type", "key"), [("mamba", "time_step_rank"), ("jamba", "mamba_dt_rank")])
def test_a_rank_is_a_number_or_auto(model_type: str, key: str) -> None:
    assert from_config({"model_type": model_type, key: "auto"}, name="x") == from_config(
        {"model_type": model_type}, name="x"
    )
    for wrong in ("x", True, 0, -1, []):
        with pytest.raises(SpecError, match=f"{key}: must be"):
            from_config({"model_type": model_type, key: wrong}, name="x")
