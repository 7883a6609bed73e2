"""The format of stored weights that a config states: found by name, and refused if it is impossible."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbench.errors import SpecError, UnsupportedError
from llmbench.sizing.weights import stored_weights
from llmbench.spec.huggingface import from_config
from llmbench.spec.weights.stored import Weights

LLAMA = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**LLAMA, "dtype": "float32", "quantization_config": {"quant_method": "fp8"}}
VISION = {"model_type": "siglip_vision_model", "hidden_size": 64, "dtype": "float16"}
VISION |= {"quantization_config": {"quant_method": "awq"}}


def weights(**values: Any) -> Weights:
    return from_config({**LLAMA, **values}, name="x").weights


def test_the_order_of_keys_does_not_decide_the_format() -> None:
    parts = {"vision_config": VISION, "text_config": TEXT}
    for order in (list(parts), list(parts)[::-1]):
        whole = {"model_type": "gemma3", **{key: parts[key] for key in order}}
        found = from_config(json.loads(json.dumps(whole)), name="x").weights
        assert (found.dtype, found.format, found.source) == ("fp32", "fp8-tensor", "quantization_config")


def test_the_outer_config_precedes_its_text_part() -> None:
    inner = {"model_type": "qwen2_5_omni_thinker", "text_config": {"model_type": "qwen2_5_omni_text"}}
    inner |= {"dtype": "float32"}
    assert from_config({"model_type": "qwen2_5_omni", "thinker_config": inner}, name="x").weights.dtype == "fp32"
    assert (
        from_config({"model_type": "qwen2_5_omni", "dtype": "float16", "thinker_config": inner}, name="x").weights.dtype
        == "fp16"
    )


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("float32", "fp32"), ("torch.float16", "fp16"), ("half", "fp16"), ("auto", None), (None, None), ("", None)],
)
def test_number_formats(key: str, name: str | None, dtype: str | None) -> None:
    assert weights(**{key: name}).dtype == dtype


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("wrong", [5, {"text_config": "float32"}, ["float32"], True, 0, {}])
def test_a_number_format_of_a_wrong_type_is_refused(key: str, wrong: Any) -> None:
    with pytest.raises(SpecError, match=f"config {key}: must be the name of a number format"):
        weights(**{key: wrong})


@pytest.mark.parametrize("name", ["float64", "float8_e4m3fn", "x"])
def test_the_bytes_of_an_unknown_number_format_are_refused(name: str) -> None:
    spec = from_config({**LLAMA, "torch_dtype": name}, name="x")
    with pytest.raises(UnsupportedError, match=f"llmbench does not know torch_dtype = '{name}'"):
        stored_weights(spec)
    assert stored_weights(spec, "bf16").total_bytes


def test_two_number_formats() -> None:
    """transformers reads `dtype`."""
    both = weights(dtype="float32", torch_dtype="float16")
    assert both.dtype == "fp32"
    assert "dtype = 'float32' and torch_dtype = 'float16' differ" in both.doubts[0]
    assert not weights(dtype="float16", torch_dtype="torch.float16").doubts


GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "gptq", "dynamic": {"+:a": "x"}}, "dynamic.+:a: must be an object"),
    ({"quant_method": "gptq", "dynamic": {"-:a": []}}, "dynamic.-:a: must be an object"),
    ({"quant_method": "gptq", "modules_in_block_to_quantize": 5}, "modules_in_block_to_quantize: must be a list"),
    ({"quant_method": "gptq", "modules_in_block_to_quantize": [["a", None]]}, "modules_in_block_to_quantize: must be"),
    (PACKED, "config_groups: is missing"),
    (
        {**PACKED, "config_groups": {"a": {**GROUP, "weights": {**GROUP["weights"], "actorder": 5}}}},  # type: ignore[dict-item]
        "weights.actorder: must be a string",
    ),
    ({**PACKED, "config_groups": {"a": {**GROUP, "input_activations": {"dynamic": 5}}}}, "dynamic: must be true"),
    ({**PACKED, "config_groups": {"a": 5}}, "config_groups.a: must be an object"),
    ({**PACKED, "config_groups": {"a": {**GROUP, "targets": []}}}, "config_groups.a.targets: is missing"),
    ({"quant_method": "gptq", "group_size": 0}, "group_size: must be -1 or at least 1"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "quantized_layers: is missing"),
    ({"quant_method": "fp8", "activation_scheme": "x"}, "activation_scheme: must be one of dynamic, static"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "x"}, "bnb_4bit_quant_type: must"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True}, "cannot both be true"),
    ({"quant_method": "awq", "bits": 4, "w_bit": 8}, "bits = 4 and w_bit = 8 mean the same but differ"),
    ({"quant_method": "awq", "group_size": 64, "q_group_size": 128}, "group_size = 64 and q_group_size = 128"),
    (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": 5}},
        "quantized_layers.a: must be an object",
    ),
]


@pytest.mark.parametrize(("config", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_wrong_value_of_a_quantization_config_is_refused_with_its_key(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as refused:
        weights(quantization_config=config)
    assert str(refused.value).startswith("config quantization_config")
    assert said in str(refused.value)


def test_older_names_are_read() -> None:
    assert weights(quantization_config={"quant_method": "awq", "w_bit": 8}).format == "awq,bits=8"
