"""How a checkpoint stores its weights: `quantization_config` and hf_quant_config.json of real kinds."""

from __future__ import annotations

import fnmatch
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llmbench.errors import LLMBenchError, SpecError
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.weights import stored_weights
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import parse_spec, write_spec
from llmbench.spec.huggingface import from_config, load_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.formats import chosen
from llmbench.spec.weights.patterns import Patterns, _literal, cost, faulty_pattern

DENSE = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "torch_dtype": "bfloat16",
}
MOE = {
    "model_type": "qwen3_moe",
    "vocab_size": 1000,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "moe_intermediate_size": 128,
    "intermediate_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*mlp\\.gate$"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True},
            "input_activations": None,
            "output_activations": None,
        }
    },
}
FLOAT = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        }
    },
}


def block_float(structure: str) -> dict[str, Any]:
    """A compressed-tensors config with fp8 blocks. Some versions write their sizes as a text."""
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": structure}
    return {**FLOAT, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def spec_of(config: dict[str, Any], key: str = "quantization_config", **quantization: Any) -> ModelSpec:
    return from_config(config | {key: quantization}, name="test")


def formats(spec: ModelSpec, *ops: tuple[str, int]) -> list[str]:
    """The format of each op in a layer, or an empty text if the op is not quantised."""
    from llmbench.sizing.lower import lower
    from llmbench.sizing.stored_tensors import ONE_TOKEN

    recipe = WeightRecipe(spec)
    table = {op.name.replace("layers.{}.", ""): op for op in lower(spec, ONE_TOKEN)}
    stored = [recipe.storage(table[name], layer) for name, layer in ops]
    return ["" if storage is None else storage.name for storage in stored]


def test_methods_without_patterns() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, "fp8-block,block_outputs=64"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8-tensor,static=1"),
        ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "fbgemm-fp8"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}, "awq,group=64"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "checkpoint_format": "gptq"}, "gptq,bits=8,group=0"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "model_file_base_name": "model"}, "gptq,zero_bias=1"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}, "nf4,double=1"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb-int8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "producer": {"name": "modelopt"}}, "fp8-tensor,static=1"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, "nvfp4"),
        ({"group_size": 64, "bits": 6}, "mlx,bits=6,predicate=0"),
        ({"group_size": 16, "bits": 4, "mode": "nvfp4"}, "mlx-nvfp4"),
        (FLOAT, "fp8-channel"),
        (block_float("128x128"), "fp8-block,scale_bits=16"),
        (block_float("64x128"), "fp8-block,block_outputs=64,scale_bits=16"),
        (W4A16, "w4a16,group=32"),
    ]
    for quantization, text in cases:
        spec = spec_of(DENSE, **quantization)
        assert spec.weights.format == text, quantization
        assert (spec.weights.source, spec.weights.dtype) == ("quantization_config", "bf16")
        assert not spec.approximate
        assert not spec.weights.doubts, quantization
        assert stored_weights(spec).format == text
        assert parse_spec(write_spec(spec), "spec").weights == spec.weights


def test_a_list_without_the_head_is_marked() -> None:
    """compressed-tensors and Model Optimizer quantise every matrix that the list does not name."""
    optimizer = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    for quantization in ({**FLOAT, "ignore": []}, {**optimizer, "exclude_modules": ["*.self_attn*"]}):
        assert "does not name lm_head" in str(spec_of(DENSE, **quantization).weights.doubts)
    for quantization in (FLOAT, optimizer, {**optimizer, "exclude_modules": ["lm_head*"]}):
        assert not spec_of(DENSE, **quantization).weights.doubts


def test_block_scales_of_qwen3_are_bf16() -> None:
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    assert spec_of(MOE, **quantization).weights.format == "fp8-block,scale_bits=16"


def test_patterns_of_every_dialect() -> None:
    experts, attention, head = ("ffn.experts.up_proj", 1), ("attention.q_proj", 1), ("lm_head", 0)
    assert formats(spec_of(MOE, **W4A16), experts, attention, ("ffn.router", 1)) == ["w4a16", "", ""]
    dynamic = {"-:.*attn.*": {}, "+:.*layers\\.1\\..*": {"bits": 8}, "-:.*visual.*": {}}
    gptq = spec_of(MOE, quant_method="gptq", bits=4, group_size=128, checkpoint_format="gptq", dynamic=dynamic)
    assert formats(gptq, experts, attention) == ["gptq", ""]
    assert gptq.weights.overrides[0].format == "gptq,bits=8"
    excluded = ["lm_head", "model.layers.1*", "model.layers.2.self_attn*", "model.layers.*.mlp.gate"]
    nvfp4 = spec_of(MOE, quant_method="modelopt", quant_algo="NVFP4", exclude_modules=excluded)
    assert formats(nvfp4, experts, ("ffn.experts.up_proj", 2), ("attention.q_proj", 2)) == ["", "nvfp4", ""]
    layers = {
        "model.layers.1.self_attn.q_proj": {"quant_algo": "FP8"},
        "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    }
    mixed = spec_of(MOE, quant_method="modelopt", quant_algo="MIXED_PRECISION", quantized_layers=layers)
    assert formats(mixed, attention, ("attention.q_proj", 2), head, experts) == ["fp8-tensor", "", "nvfp4", ""]
    own = {"model.layers.1.mlp.gate": {"bits": 8, "group_size": 64}, "lm_head": False}
    mlx = from_config(MOE | {"quantization": {"bits": 4, "group_size": 64, **own}}, name="test")
    assert formats(mlx, ("ffn.router", 1), head, ("embedding", 0)) == ["mlx", "", "mlx"]
    by_hand = 8 * 256 * (8 - 4) // 8  # one router of four has 8 bits instead of 4
    plain = from_config(MOE | {"quantization": {"bits": 4, "group_size": 64, "lm_head": False}}, name="test")
    assert stored_weights(mlx).total_bytes - stored_weights(plain).total_bytes == by_hand
    meta = spec_of(DENSE, quant_method="fbgemm_fp8", modules_to_not_convert=["model.layers.0.mlp.up_proj"])
    assert formats(meta, ("ffn.up_proj", 0), ("ffn.up_proj", 1), ("ffn.down_proj", 0)) == [
        "",
        "fbgemm-fp8",
        "fbgemm-fp8",
    ]
    bnb = spec_of(DENSE, quant_method="bitsandbytes", load_in_4bit=True, llm_int8_skip_modules=["lm_head", "o_proj"])
    assert formats(bnb, attention, ("attention.o_proj", 1), head) == ["nf4", "", ""]


def test_names_inside_a_multimodal_checkpoint() -> None:
    for name in ("language_model.model.layers.1.mlp", "model.language_model.layers.1.mlp"):
        spec = spec_of(DENSE, quant_method="awq", bits=4, group_size=128, modules_to_not_convert=[name, "vision_tower"])
        assert formats(spec, ("ffn.up_proj", 1), ("ffn.up_proj", 2)) == ["", "awq"]
        assert not stored_weights(spec).doubts


def test_what_is_not_understood_is_never_ignored() -> None:
    unknown: list[tuple[dict[str, Any], str]] = [
        ({"quant_method": "quark"}, "quant_method = 'quark'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo = 'W4A8_AWQ'"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format = 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "is_marlin_format": True}, "is_marlin_format = True"),
        (block_float("128"), "block_structure = '128'"),
        (block_float("0x128"), "block_structure = '0x128'"),
        ({**FLOAT, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24-bitmask"),
        ({**W4A16, "format": "naive-quantized"}, "naive-quantized"),
        ({"bits": 4, "group_size": 32, "mode": "new"}, "mode = 'new'"),
    ]
    for quantization, said in unknown:
        spec = spec_of(DENSE, **quantization)
        assert said in spec.weights.unknown
        assert not spec.approximate  # the numbers of parameters stay exact
        with pytest.raises(LLMBenchError, match="bytes of the weights are not known") as problem:
            stored_weights(spec)
        assert "--weights" in str(problem.value.hint)
        assert stored_weights(spec, "bf16").total_bytes
    new_key = spec_of(DENSE, quant_method="awq", bits=4, group_size=128, scales_in="fp32")
    assert stored_weights(new_key).doubts == ("config key quantization_config.scales_in = 'fp32' is not understood",)
    lost = spec_of(DENSE, quant_method="awq", bits=4, group_size=128, modules_to_not_convert=["model.layers.1.attn"])
    assert "model.layers.1.attn" in stored_weights(lost).doubts[0]
    for wrong in (
        {"quant_method": "awq", "bits": "four"},
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": [1]},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:(": {}}},
        {"quant_method": "gptq", "bits": 4, "dynamic": {"-:(a+)+b": {}}},
        {"quant_method": "fp8", "modules_to_not_convert": [f"re:{i}.*.*.*.*x" for i in range(10)]},
    ):
        with pytest.raises(LLMBenchError):
            spec_of(DENSE, **wrong)


def test_hf_quant_config_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MOE), encoding="utf-8")
    quantization = {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head"],
    }
    beside = {"producer": {"name": "modelopt", "version": "0.33"}, "quantization": quantization}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside), encoding="utf-8")
    spec = load_config(tmp_path)
    assert (spec.weights.format, spec.weights.source) == ("nvfp4", "hf_quant_config.json")
    assert not stored_weights(spec).doubts


def test_dtype_of_the_config_decides_the_plain_tensors() -> None:
    sizes = {
        name: stored_weights(from_config(DENSE | {"torch_dtype": name}, name="t")) for name in ("float32", "float16")
    }
    assert sizes["float32"].total_bytes == 2 * sizes["float16"].total_bytes
    assert (sizes["float32"].title, sizes["float16"].title) == ("fp32", "fp16")


def test_a_pattern_matches_whole_parts_of_a_name() -> None:
    patterns = Patterns(["gate", "model.layers.*.self_attn", "re:.*shared.*", "lost"])
    assert patterns.match(["model.layers.3.mlp.gate"])
    assert not patterns.match(["model.layers.3.mlp.gate_proj"])
    assert patterns.match(["model.layers.3.self_attn.q_proj"])
    assert patterns.match(["model.layers.3.mlp.shared_expert.up_proj"])
    assert patterns.unmatched == ["lost"]
    assert faulty_pattern("re:(") is not None
    assert faulty_pattern(" ") is not None
    assert faulty_pattern("re:.*attn.*") is None


@pytest.mark.parametrize(
    ("pattern", "costs"),
    [
        ("lm_head", 0),
        ("model.layers.*.self_attn", 1),
        (r"re:.*mlp\.(gate|up)_proj.*", 1),
        (r"re:^(?!.*(?:mtp|stages)\.\d+\.).*experts\.\d+\.w[123]$", 32),
        ("re:.*.*x", 8),
        ("re:.*.*.*x", 200),
        ("re:.*?.*.*x", 400),
        ("re:" + "(.|.)" * 10, 2**10),
        ("re:" + ".?" * 10 + "x", 2**10),
        ("re:(a+)+", math.inf),
        ("re:((a)+)+", math.inf),
        ("re:(a|aa)+", math.inf),
    ],
)
def test_a_pattern_with_many_ways_to_match_costs_more(pattern: str, costs: float) -> None:
    assert cost(pattern) == costs
    assert (faulty_pattern(pattern) is not None) == math.isinf(costs)


@pytest.mark.parametrize(
    ("expression", "literal"),
    [
        (r".*\.18\..*gate.*", ".18."),
        (r"model\.layers\.\d+\.mlp$", "model.layers."),
        ("abc?d", "ab"),
        ("abc|d", ""),
        ("(abc)?d", "d"),
        (r"\x61bc", ""),
        ("(?i)abc", ""),
    ],
)
def test_a_name_without_the_text_that_a_pattern_needs_is_not_searched(expression: str, literal: str) -> None:
    assert _literal(expression) == literal


def test_a_pattern_with_many_stars_is_matched_in_linear_time() -> None:
    """A search that tries every way to divide the name among 300 stars would never end."""
    assert not Patterns(["*".join("a" * 300) + "x"]).match(["a." * 300])
    assert Patterns(["*".join("a" * 300)]).match(["b." + "a." * 300 + "c"])


@given(pattern=st.text("ab.*", max_size=7), name=st.text("ab.", min_size=1, max_size=12))
def test_a_pattern_with_stars_matches_as_a_plain_search_does(pattern: str, name: str) -> None:
    inner = pattern.strip(".")
    places = [name[i:j] for i in range(len(name)) for j in range(i, len(name) + 1) if _whole(name, i, j)]
    expected = any(fnmatch.fnmatchcase(place, inner) for place in places)
    assume("*" in inner)
    assert Patterns([pattern]).match([name]) == expected


def _whole(name: str, start: int, end: int) -> bool:
    """Whether a part of a dotted name begins and ends beside a dot or at an end of the name."""
    return (start == 0 or name[start - 1] == ".") and (end == len(name) or name[end] == ".")


@pytest.mark.parametrize(
    "text", ["nf4,double=7", "gptq,zero_bias=99999", "gptq,group=999999999", "fp8-block,scale_bits=65", "mlx,bits=0"]
)
def test_a_parameter_of_a_format_has_a_range(text: str) -> None:
    with pytest.raises(SpecError, match="must be from"):
        chosen(text)


def test_two_spellings_of_a_key_are_named() -> None:
    config = {"model_type": "gpt2", "n_layer": 2, "num_hidden_layers": 3}
    for values in (config, dict(reversed(config.items()))):
        (doubt,) = [text for text in from_config(values, name="t").approximate if "mean the same" in text]
        assert "n_layer" in doubt
        assert "num_hidden_layers" in doubt


def test_the_origin_of_the_number_format() -> None:
    said, silent = from_config(DENSE, name="x"), from_config({**DENSE, "torch_dtype": None}, name="x")
    assert WeightRecipe(said).origin == "the config"
    assert WeightRecipe(parse_spec(write_spec(said), "spec")).origin == "the config"
    assert WeightRecipe(silent).origin == "assumed"
    assert WeightRecipe(load_bundled("gpt2")).origin == "the spec"
