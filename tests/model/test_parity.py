"""Logits of models that transformers saved equal those of transformers. This tests every table of weights.

Every family has at least one tiny config below. All weights are random, biases and norms too, so that none is the
identity.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmbench import model as models
from llmbench.errors import CannotRunError
from llmbench.model.mixers import new_cache
from llmbench.model.trace import trace
from llmbench.sizing.flops import count_flops
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.huggingface import load_config

LENGTH = 20
SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "sliding_window": 6,  # shorter than the sequence
    "attention_chunk_size": 6,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
"""The keys of every config, where its class knows them."""

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_key_value_heads": 4}
ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 16}
SHORT = [1.0, 1.1, 1.3, 1.6]
LONG = [1.5, 2.0, 3.0, 5.0]
GEMMA4 = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "global_head_dim": 16,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "use_double_wide_mlp": True,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "big_bird, full attention": ("big_bird", {"attention_type": "original_full", "rescale_embeddings": True}),
    "ctrl": ("ctrl", {}),  # one key of it may change, no pair
    "rembert": ("rembert", {}),  # with another activation, it is refused
    "gpt2 inner width": ("gpt2", {"n_inner": 40, "activation_function": "gelu"}),
    "llama MHA": ("llama", HEADS),
    "llama tied, biases": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama one key head": ("llama", {"num_key_value_heads": 1}),
    "llama3 rope": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ),
    "llama linear rope": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "llama yarn rope": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "qwen2 windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}),
    "gemma wide heads": ("gemma", {"head_dim": 16}),
    "gemma2 other scalar": ("gemma2", {"query_pre_attn_scalar": 100}),
    "phi3 longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG},
        },
    ),
    "gemma4 keys as values": (
        "gemma4_text",
        {
            **GEMMA4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 2,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "gemma4 experts": (
        "gemma4_text",
        {
            **GEMMA4,
            "enable_moe_block": True,
            "top_k_experts": 2,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
        },
    ),
    "falcon 40B": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon rw": ("falcon", {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True}),
    "falcon 7B with biases": ("falcon", {"bias": True}),
    "neox in turn": ("gpt_neox", {"use_parallel_residual": False, "rotary_pct": 1.0}),
    "command-r+": ("cohere", {"use_qk_norm": True, "logit_scale": 0.25}),
    "opt post-norm": ("opt", {"do_layer_norm_before": False}),
    "stablelm 12B": ("stablelm", {"qk_layernorm": True, "use_parallel_residual": True, "use_qkv_bias": True}),
    "granite": (
        "granite",
        {
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.3,
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
        },
    ),
    "bloom residual from norm": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "bloom odd heads": ("bloom", {"num_attention_heads": 6, "hidden_size": 48}),
    "phi qk norm": ("phi", {"qk_layernorm": True, "hidden_size": 64}),
    "llama dynamic rope": (
        "llama",
        {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 3.0}},
    ),
    "gpt2 unscaled": ("gpt2", {"scale_attn_weights": False}),
    "olmo clipped": ("olmo", {"clip_qkv": 0.3}),
    "olmoe clipped": ("olmoe", {"clip_qkv": 0.3, "norm_topk_prob": True}),
    "mpt clipped": ("mpt", {"attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.2}}),
    "ministral3 far": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.1,
            }
        },
    ),
    "phi3 part of the head": ("phi3", {"partial_rotary_factor": 0.5}),
    "granite bases by layer": ("granite_swa", {"layer_rope_theta": [0, 250.0, 500.0, 10000.0]}),
    "granite moe bases by layer": ("granitemoe_swa", {"layer_rope_theta": [0, 250.0, 500.0, 10000.0]}),
    "hunyuan stretched": (
        "hunyuan_v1_dense",
        {"rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0}},
    ),
    "laguna far, gates by channel": (
        "laguna",
        {
            "gating": "per-element",
            "num_attention_heads_per_layer": None,
            "rope_parameters": {
                "full_attention": {**ROPE, "rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "mimo, values as they are, other groups": (
        "mimo_v2_flash",
        {"attention_value_scale": None, "n_group": 2, "attention_bias": True},
    ),
    "kolibri, weights that sum to one": ("kolibri1", {"norm_topk_prob": True}),
    "mellum far": (
        "mellum",
        {
            "rope_parameters": {
                "full_attention": {**ROPE, "rope_type": "yarn", "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
    ),
    "olmo3 far": (
        "olmo3",
        {
            "rope_parameters": {
                "full_attention": {**ROPE, "rope_type": "yarn", "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        },
    ),
}
"""Settings of a family other than its defaults."""

BART = {"decoder_layers": 3, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "scale_embedding": True}
EXTRA: dict[str, dict[str, Any]] = {
    "aria_text": {"moe_num_experts": 4, "intermediate_size": 24},
    "bart": BART,
    "bert-generation": {"is_decoder": True},
    "big_bird": {"is_decoder": True},
    "bigbird_pegasus": BART,
    "blenderbot": BART,
    "blenderbot-small": {**BART, "scale_embedding": False},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": None,
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        }
    },
    "ctrl": {"dff": 48},
    "dots1": {"n_shared_experts": 1},
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": {"layer_types": GEMMA4["layer_types"], "global_head_dim": 8},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 6},
    "laguna": {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "num_attention_heads_per_layer": [4, 6, 4, 2],
        "moe_routed_scaling_factor": 1.7,
    },
    "marian": {**BART, "decoder_vocab_size": 96},
    "mbart": BART,
    "mimo_v2_flash": {"head_dim": 12, "v_head_dim": 6},
    "minimax_m3_vl_text": {"dense_intermediate_size": 40, "mlp_layer_types": ["dense", "sparse"] * 2},
    "modernbert-decoder": {"local_attention": 12},
    "mvp": BART,
    "pegasus": BART,
    "plbart": BART,
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24, "is_decoder": True},
    "roformer": {"embedding_size": 16, "is_decoder": True},
    "trocr": {"decoder_ffn_dim": 48, "cross_attention_hidden_size": 24},
    "whisper": {**BART, "max_target_positions": 64},
    "xglm": {"ffn_dim": 48},
    "llama4_text": {"intermediate_size_mlp": 40, "floor_scale": 4, "interleave_moe_layer_step": 2},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 5000.0, "clip_qkv": 0.5},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
}
"""Keys that a family needs in addition to the small ones."""

# fmt: off
FAMILIES = [
    "afmoe", "apertus", "arcee", "aria_text", "bart", "bert-generation", "bigbird_pegasus", "biogpt", "bitnet",
    "blenderbot", "blenderbot-small", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "cohere_compass_text",
    "cwm", "dbrx", "diffllama", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "falcon", "flex_olmo",
    "flint", "gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4", "glm4_moe",
    "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite",
    "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe",
    "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe", "kolibri1", "laguna", "lfm3", "llama",
    "llama4_text", "marian", "mbart", "mellum", "mimo_v2_flash", "minimax_m2", "minimax_m3_vl_text", "ministral",
    "ministral3", "mistral", "mixtral", "modernbert-decoder", "mpt", "mvp", "nanochat", "nemotron", "olmo", "olmo2",
    "olmo3", "olmoe", "openai-gpt", "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "roformer", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2",
    "trocr", "vaultgemma", "whisper", "xglm", "xlm",
]
# fmt: on
"""The families of softmax attention. The tests of other mixers compare their families with transformers."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {**{family: (family, {}) for family in FAMILIES}, **VARIANTS}


def config_of(model_type: str, changes: dict[str, Any]) -> transformers.PreTrainedConfig:
    """The config of the class: the small keys that it knows, and the changes."""
    kind = CONFIG_MAPPING[model_type]
    extra = copy.deepcopy(EXTRA.get(model_type, {}))  # a class may change its arguments
    nested = {key: value for key, value in extra.items() if isinstance(value, dict)}
    known = {*kind(**nested).to_dict(), *kind.attribute_map, "vocab_size"}
    values = {key: value for key, value in SMALL.items() if key in known}
    if "multi_query" in known:  # heads by that alone
        values.pop("num_key_value_heads", None)
    values |= {**TOKENS, **copy.deepcopy({**EXTRA.get(model_type, {}), **changes})}
    scaling = values.get("rope_parameters")
    if scaling is not None and "rope_type" in scaling:
        values["rope_parameters"] = {**ROPE, **scaling}
    return kind(**values)


def saved(config: transformers.PreTrainedConfig, folder: Path) -> torch.nn.Module:
    """A model of transformers with random weights, saved in the folder."""
    torch.manual_seed(0)
    # Falcon's eager path adds ALiBi twice, to the scores and in the mask; soft caps and sinks have no other path.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if config.model_type == "marian" and not parameter.requires_grad:  # some files lack its table
                continue
            centre = 1.0 if parameter.dim() == 1 and "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(centre, 0.2, generator=generator)
        for name, buffer in theirs.named_buffers():
            if "correction" in name:
                buffer.normal_(0.0, 0.2, generator=generator)
            elif name.endswith("layer_scalar"):
                buffer.normal_(1.0, 0.2, generator=generator)
    theirs.save_pretrained(folder)
    return theirs


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    model_type, changes = CASES[case]
    theirs = saved(config_of(model_type, changes), tmp_path)
    tokens = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(tokens, use_cache=False).logits
        assert torch.isfinite(expected).all()
        assert error(models.load(tmp_path, impl="standard")(tokens), expected) <= 1e-5
        chosen = models.load(tmp_path)
        assert count_parameters(chosen.spec).total == sum(parameter.numel() for parameter in theirs.parameters())
        assert error(chosen(tokens), expected) <= 1e-5
        if chosen.implementation.name != "sdpa":
            with pytest.raises(CannotRunError, match="impl sdpa does not support"):
                models.load(tmp_path, impl="sdpa")(tokens)


DECODERS_OF_ENCODERS = ("bart", "bert-generation", "bigbird_pegasus", "modernbert-decoder", "roformer", "trocr", "xlm")
"""Decoders from families of encoders and encoder-decoders, which no other test of FLOPs covers."""


@pytest.mark.parametrize("family", DECODERS_OF_ENCODERS)
def test_flops_equal_the_counter_in_transformers(family: str, tmp_path: Path) -> None:
    theirs = saved(config_of(family, {}), tmp_path)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(torch.zeros((1, LENGTH), dtype=torch.long), use_cache=False)
    workload = msgspec.structs.replace(Workload.prefill(LENGTH), masked_pairs=True)
    assert count_flops(load_config(tmp_path), workload).total == counter.get_total_flops()


SPECIAL = (
    "gemma4 keys as values",
    "gemma4_text",
    "apertus",
    "bart",
    "bitnet",
    "diffllama",
    "gpt_neox_japanese",
    "modernbert-decoder",
    "rembert",
)
"""Cases with layers that no bundled model has. test_trace.py compares the bundled models in the same way."""


@pytest.mark.parametrize("case", SPECIAL)
def test_parameters_flops_and_saved_bytes_equal_the_ops(case: str, tmp_path: Path) -> None:
    config_of(*CASES[case]).save_pretrained(tmp_path)
    spec = load_config(tmp_path)
    assert not spec.approximate
    model = models.build(spec, device="meta")
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total
    ops = trace(spec, seq_len=LENGTH, batch=2).ops
    for op in ops:
        assert op.traced_flops == (op.forward_flops or 0), op.name
    # The table has neither the rotary tables nor the mean of the loss, nor single numbers such as β.
    ops = [op for op in ops if not op.name.endswith((".rope", "loss"))]
    assert abs(sum(op.traced_saved_bytes - (op.saved_bytes or 0) for op in ops)) <= 8 * len(ops)


@pytest.mark.parametrize("kind", ["rolling", "paged"])
@pytest.mark.parametrize("family", ["diffllama", "gemma4_text", "jetmoe"])
def test_special_attention_over_a_cache_equals_one_pass(family: str, kind: str, tmp_path: Path) -> None:
    """Layers that combine values of two heads, read the cache of an earlier layer, or route to experts."""
    theirs = saved(config_of(family, {}), tmp_path)
    tokens = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = models.load(tmp_path)
        cache = new_cache(ours.spec, 2, LENGTH, kind=kind, dtype=torch.float32, device="cpu")
        steps = [ours(piece, cache=cache) for piece in tokens.split([8, 1, 1, 1, 1, 5, 1, 1, 1], dim=1)]
        assert error(torch.cat(steps, dim=1), theirs(tokens, use_cache=False).logits) <= 2e-5
