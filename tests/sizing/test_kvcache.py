"""The cache: figures by hand from each report, and the bytes of the caches that transformers fills."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import KVDType
from llmbench.sizing.kvcache import as_heads, kv_cache
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override


def test_llama2_7b() -> None:
    cache = kv_cache(load_bundled("llama2-7b"), 4096)
    assert cache.bytes_per_token == 2 * 32 * 32 * 128 * 2 == 512 * 1024
    assert cache.bytes_per_sequence == cache.bytes_total == 2 * 2**30
    assert cache.state_bytes_per_sequence == cache.indexer_bytes_per_sequence == 0
    assert kv_cache(load_bundled("llama2-7b"), 4096, batch=7).bytes_total == 14 * 2**30


def test_mistral_stops_growing_at_its_window() -> None:
    spec = load_bundled("mistral-7b-v0.1")
    token_bytes = 2 * 32 * 8 * 128 * 2
    for seq, stored in ((1, 1), (4095, 4095), (4096, 4096), (4097, 4096), (32768, 4096)):
        cache = kv_cache(spec, seq)
        assert cache.bytes_per_token == token_bytes == 131_072
        assert cache.bytes_per_sequence == stored * token_bytes
        assert cache.reserved_bytes == -(-seq // 16) * 16 * token_bytes  # an engine sets aside all of it


def test_deepseek_caches_a_latent() -> None:
    v3 = kv_cache(load_bundled("deepseek-v3"), 1000)
    assert v3.bytes_per_token == 61 * (512 + 64) * 2 == 70_272
    assert v3.bytes_per_sequence == 70_272_000
    v32 = kv_cache(load_bundled("deepseek-v3.2"), 1000)
    assert v32.bytes_per_token == 70_272 + 61 * 128 * 2  # the latent, and the key of the indexer
    assert v32.indexer_bytes_per_sequence == 61 * 128 * 2 * 1000 == 15_616_000
    assert v32.bytes_total == 70_272_000 + 15_616_000
    split = kv_cache(load_bundled("deepseek-v3"), 1000, layout=Layout(tp=8))
    assert split.bytes_per_token == 70_272  # a latent for all heads cannot be split over them


def test_gemma3_keeps_five_windows_for_every_whole_layer() -> None:
    spec = load_bundled("gemma3-27b")
    token_bytes = 2 * 16 * 128 * 2
    cache = kv_cache(spec, 32768)
    assert cache.bytes_per_token == 62 * token_bytes
    assert cache.bytes_per_sequence == token_bytes * (10 * 32768 + 52 * 1024)
    assert kv_cache(spec, 1024).bytes_per_sequence == 62 * 1024 * token_bytes
    assert cache.layers == {"local": 52 * 1024 * token_bytes, "global": 10 * 32768 * token_bytes}


def test_qwen3_next_keeps_a_state() -> None:
    """36 of 48 layers: 32 value heads of 128 × 128 in fp32, and 3 inputs of 8192 channels."""
    cache = kv_cache(load_bundled("qwen3-next-80b-a3b"), 4096)
    assert cache.bytes_per_token == 12 * 2 * 2 * 256 * 2
    assert cache.state_bytes_per_sequence == 36 * (4 * 32 * 128 * 128 + 2 * 3 * (2 * 16 * 128 + 32 * 128))
    assert cache.bytes_total == 4096 * cache.bytes_per_token + cache.state_bytes_per_sequence
    assert kv_cache(load_bundled("qwen3-next-80b-a3b"), 1).state_bytes_per_sequence == cache.state_bytes_per_sequence


def test_jamba_has_a_cache_and_states() -> None:
    """4 of 32 layers attend with 8 key-value heads; 28 keep 8192 × 16 in fp32 and 3 inputs of 8192."""
    cache = kv_cache(load_bundled("jamba-v0.1"), 262_144)
    assert cache.bytes_per_token == 4 * 2 * 8 * 128 * 2
    assert cache.bytes_per_sequence == 4 * 2**30  # the report: 4 GB at 256K tokens
    assert cache.state_bytes_per_sequence == 28 * (8192 * 16 * 4 + 8192 * 3 * 2)


def test_mamba_never_grows() -> None:
    short, long = (kv_cache(load_bundled("mamba-130m"), seq) for seq in (1, 10**6))
    assert short.bytes_per_token == 0
    assert short.bytes_total == long.bytes_total == 24 * (1536 * 16 * 4 + 1536 * 3 * 2)


def test_cross_attention_is_counted_separately() -> None:
    cache = kv_cache(load_bundled("t5-base"), 512, batch=2)
    assert cache.bytes_per_token == 12 * 2 * 768 * 2
    assert cache.cross_bytes_per_sequence == cache.bytes_per_sequence == 512 * cache.bytes_per_token
    assert cache.bytes_total == 4 * cache.bytes_per_sequence


def test_an_encoder_has_no_cache() -> None:
    assert kv_cache(load_bundled("bert-base"), 512).bytes_total == 0


# Formats, blocks, heads


@pytest.mark.parametrize("name", bundled_models())
def test_formats(name: str) -> None:
    spec = load_bundled(name)
    bf16, fp8, int8, int4, fp32 = (
        kv_cache(spec, 100, kv_dtype=kind) for kind in ("bf16", "fp8", "int8", "int4", "fp32")
    )
    assert fp8.bytes_per_sequence == int8.bytes_per_sequence
    assert fp8.bytes_per_token * 2 == bf16.bytes_per_token == fp32.bytes_per_token // 2
    assert fp8.bytes_per_sequence * 2 == int4.bytes_per_sequence * 4 == bf16.bytes_per_sequence
    assert fp8.cross_bytes_per_sequence * 2 == bf16.cross_bytes_per_sequence
    assert fp8.reserved_bytes >= fp8.bytes_total


@pytest.mark.parametrize(
    ("block", "seq", "reserved_tokens"), [(16, 1, 16), (16, 16, 16), (16, 17, 32), (1, 17, 17), (64, 65, 128)]
)
def test_blocks_are_whole(block: int, seq: int, reserved_tokens: int) -> None:
    cache = kv_cache(load_bundled("llama3-8b"), seq, batch=3, block_size=block)
    assert cache.reserved_bytes == 3 * reserved_tokens * 131_072
    assert cache.bytes_total == 3 * seq * 131_072


@pytest.mark.parametrize("seq", [1, 15, 16, 17, 4096])
def test_odd_bits_are_rounded_up_per_layer(seq: int) -> None:
    spec = override(
        load_bundled("gpt2"),
        {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 3, "v_head_dim": 4},
    )
    assert kv_cache(spec, seq, kv_dtype="int4").bytes_per_sequence == 12 * -(-7 * seq // 2)


def test_formats_of_engines_by_hand() -> None:
    """Bytes per token of all layers: Llama-3.2-3B has 28 layers with 8 heads of 128, DeepSeek-V3.2 61 latents."""
    llama, deepseek = load_bundled("llama3.2-3b"), load_bundled("deepseek-v3.2")
    expected: list[tuple[KVDType, int]] = [
        ("q8_0", 28 * 2 * 8 * 128 // 32 * 34),
        ("q4_1", 28 * 2 * 8 * 128 // 32 * 20),
        ("int8_per_token_head", 28 * 2 * 8 * (128 + 4)),
        ("nvfp4", 28 * 2 * 8 * 72),
        ("turbomind_int4", 28 * 2 * 8 * (64 + 4)),
    ]
    for name, size in expected:
        cache = kv_cache(llama, 1001, batch=2, kv_dtype=name)
        assert cache.bytes_per_token == size
        assert cache.bytes_total == 2 * 1001 * size
        assert cache.reserved_bytes == 2 * 1008 * size
        split = kv_cache(llama, 1001, kv_dtype=name, layout=Layout(tp=4))
        assert 4 * split.bytes_per_token == size
    latent = kv_cache(deepseek, 10, kv_dtype="fp8_ds_mla")
    assert (latent.bytes_per_token, latent.indexer_bytes_per_sequence) == (61 * (656 + 132), 10 * 61 * 132)
    with pytest.raises(SpecError, match="latent attention"):
        kv_cache(llama, 10, kv_dtype="fp8_ds_mla")


def test_one_more_token_adds_the_bytes_per_token() -> None:
    """All bundled models: the first tokens add the figure below the windows, tokens after 2²⁰ the one beyond them."""

    def added(spec: ModelSpec, seq: int) -> int:
        short, long = kv_cache(spec, seq), kv_cache(spec, seq + 1)
        encoder = long.cross_bytes_per_sequence - short.cross_bytes_per_sequence
        return long.bytes_total - short.bytes_total - encoder

    for name in bundled_models():
        spec = load_bundled(name)
        cache = kv_cache(spec, 1)
        assert added(spec, 1) == cache.bytes_per_token, name
        assert added(spec, 2**20) == cache.bytes_per_token_beyond_windows, name


def test_other_key_value_heads() -> None:
    spec = load_bundled("llama3-8b")
    bytes_of_kind = {kind: kv_cache(as_heads(spec, kind), 128).bytes_per_token for kind in ("mha", "gqa", "mqa")}
    assert bytes_of_kind["gqa"] == kv_cache(spec, 128).bytes_per_token
    assert bytes_of_kind["mha"] == 4 * bytes_of_kind["gqa"]
    assert bytes_of_kind["mqa"] * 8 == bytes_of_kind["gqa"]
    expanded = as_heads(load_bundled("deepseek-v3"), "mha")
    assert expanded is not None
    assert kv_cache(expanded, 128).bytes_per_token == 61 * 128 * (192 + 128) * 2
    assert as_heads(load_bundled("mamba-130m"), "mqa") is None
    assert as_heads(load_bundled("falcon-7b"), "gqa") is None  # 8 does not divide 71 heads
    nemo = as_heads(load_bundled("jamba-v0.1"), "mqa")
    assert nemo is not None
    assert (
        kv_cache(nemo, 128).state_bytes_per_sequence
        == kv_cache(load_bundled("jamba-v0.1"), 128).state_bytes_per_sequence
    )


@pytest.mark.parametrize(("tp", "parts"), [(1, 1), (4, 4), (8, 8), (16, 8), (32, 8)])
def test_heads_are_split_until_there_is_one(tp: int, parts: int) -> None:
    cache = kv_cache(load_bundled("llama3-8b"), 128, layout=Layout(tp=tp))
    assert cache.bytes_per_token == 131_072 // parts


@pytest.mark.parametrize("wrong", [{"seq_len": 0}, {"seq_len": -5}, {"batch": 0}, {"block_size": 0}])
def test_impossible_sizes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        kv_cache(load_bundled("gpt2"), **{"seq_len": 1, **wrong})


# transformers' own caches

COMMON = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": COMMON,
    "qwen3": COMMON | {"head_dim": 24},
    "gpt2": {"n_embd": 64, "n_head": 4, "n_layer": 3, "vocab_size": 100},
    "falcon": {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 100},
    "mistral": COMMON | {"sliding_window": 12},
    "gemma2": COMMON | {"head_dim": 16, "sliding_window": 12},
    "gemma3_text": COMMON | {"head_dim": 16, "sliding_window": 12, "num_hidden_layers": 7},
}


def filled(config: dict[str, Any], seq: int, batch: int) -> int:
    """Bytes of keys and values in transformers' cache after a prefill of `seq` tokens and a decoding step."""
    from transformers import AutoConfig, AutoModelForCausalLM

    hf_config = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.bfloat16).eval()
    tokens = torch.zeros((batch, seq), dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=tokens, use_cache=True).past_key_values
        cache = model(input_ids=tokens[:, :1], past_key_values=cache, use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("seq", [4, 10])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_below_the_window_as_transformers_fills_it(model_type: str, seq: int) -> None:
    config = {"model_type": model_type, **FAMILIES[model_type]}
    spec = from_config(config, name=model_type)
    assert spec.approximate == ()
    assert kv_cache(spec, seq + 1, batch=2).bytes_total == filled(config, seq, 2)


@pytest.mark.parametrize("model_type", ["mistral", "gemma2", "gemma3_text"])
def test_beyond_the_window_as_transformers_fills_it(model_type: str) -> None:
    """transformers keeps the window less the token that is being made; ours counts that token too."""
    config = {"model_type": model_type, **FAMILIES[model_type]}
    spec = from_config(config, name=model_type)
    windowed = sum(spec.order.count(name) for name, layer in spec.layers.items() if layer.mixer.sliding_window)
    mixer = spec.layers[spec.order[0]].mixer
    one_token = 2 * 2 * mixer.num_key_value_heads * mixer.head_dim * 2
    assert kv_cache(spec, 41, batch=2).bytes_total - windowed * one_token == filled(config, 40, 2)
