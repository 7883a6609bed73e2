"""Values of the right type that no model can have: the message names the field, and valid neighbours are accepted."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from llmbench.errors import SpecError
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.mixer import RGLRU, LatentAttention, Mamba2
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

from ..oracles.huggingface_export import to_config

DENSE, MIXTURE, LATENT, CHUNKED = "smollm2-135m", "mixtral-8x7b", "deepseek-v3", "llama4-scout"
MIXER, FFN = "layers.block.mixer", "layers.block.ffn"
MOE = "layers.moe.ffn"
SHARED_INDEXER = {"num_heads": 64, "head_dim": 128, "top_k": 2048, "shared": True}

REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # Rotations, and the heads they turn
    (DENSE, {"head_dim": 63}, f"{MIXER}.head_dim", "63 is odd"),
    (DENSE, {"head_dim": 1}, f"{MIXER}.head_dim", "1 is odd"),
    (DENSE, {"positions.rotary_dim": 3}, "positions.rotary_dim", "3 is odd"),
    (DENSE, {"positions.rotary_dim": 66}, "positions.rotary_dim", "66 is more than"),
    (DENSE, {f"{MIXER}.positions": {"kind": "rope", "rotary_dim": 66}}, f"{MIXER}.positions.rotary_dim", "66 is more"),
    (LATENT, {"qk_rope_head_dim": 3}, "layers.dense.mixer.qk_rope_head_dim", "3 is odd"),
    ("deepseek-v3.2", {"layers.*.mixer.indexer.head_dim": 32}, "layers.dense.mixer.indexer.head_dim", "less than"),
    *((DENSE, {"positions.theta": theta}, "positions.theta", str(theta)) for theta in (0, 1, -5, math.nan, math.inf)),
    ("llama3.1-8b", {"positions.scaling.factor": 0}, "positions.scaling.factor", "0.0 is not above 0"),
    ("llama3.1-8b", {"positions.scaling.high_freq_factor": 0.5}, "positions.scaling.high_freq_factor", "below"),
    (LATENT, {"positions.scaling.beta_fast": 0.5}, "positions.scaling.beta_fast", "0.5 is below beta_slow"),
    (LATENT, {"positions.scaling.mscale": -1}, "positions.scaling.mscale", "-1.0 is below 0"),
    ("phi-4-mini", {"positions.scaling.long_factor": []}, "positions.scaling.long_factor", "needs 48 numbers"),
    ("phi-4-mini", {"positions.rotary_dim": 64}, "positions.scaling.short_factor", "needs 32 numbers, .* not 48"),
    (
        "llama3.1-8b",
        {"positions.scaling.original_max_position_embeddings": None, "max_position_embeddings": None},
        "positions.scaling",
        "llama3 needs the length",
    ),
    (
        DENSE,
        {"positions": {"kind": "rope", "rotary_dim": 2, "scaling": {"kind": "dynamic"}}},
        "scaling",
        "only this pair",
    ),
    # Other positions
    ("opt-125m", {"positions.offset": 5000}, "positions.offset", "5000 leaves no position"),
    ("roberta-like", {"positions": {"kind": "learned", "num_positions": 9, "uncounted": 1}}, "uncounted", "row before"),
    (DENSE, {f"{MIXER}.positions": {"kind": "learned", "num_positions": 9}}, f"{MIXER}.positions", "embedding"),
    (LATENT, {"positions": {"kind": "alibi"}}, "positions", "`alibi` acts on scores"),
    ("t5-base", {"positions.num_buckets": 1}, MIXER, "num_buckets 1"),
    # Attention
    *((DENSE, {f"{MIXER}.scale": scale}, f"{MIXER}.scale", str(scale)) for scale in (0, -1, math.nan, math.inf)),
    (DENSE, {"num_key_value_heads": 4}, f"{MIXER}.num_key_value_heads", "4 does not divide num_attention_heads 9"),
    (DENSE, {"clip_qkv": 0}, f"{MIXER}.clip_qkv", "0.0 is not above 0"),
    ("gemma2-2b", {"logit_soft_cap": -50}, "layers.local.mixer.logit_soft_cap", "-50.0 is not above 0"),
    (CHUNKED, {"causal": False}, "layers.chunked_moe.mixer.attention_chunk_size", "8192 .* causal is false"),
    (CHUNKED, {"sliding_window": 8}, "layers.chunked_moe.mixer.attention_chunk_size", "cannot be combined with"),
    ("qwen3-next-80b-a3b", {"layers.attention.mixer.v_head_dim": 128}, "layers.attention.mixer.v_head_dim", "gate"),
    ("t5-base", {"layers.block.cross_attention.num_key_value_heads": 5}, "cross_attention.num_key_value_heads", "5"),
    ("t5-base", {"layers.block.cross_attention.sliding_window": 5}, "layers.block.cross_attention", "whole encoder"),
    ("t5-base", {f"encoder.{MIXER}.head_dim": 64, f"encoder.{MIXER}.scale": 0}, f"encoder.{MIXER}.scale", "0.0"),
    (LATENT, {"latent_eps": -1e-6}, "layers.dense.mixer.latent_eps", "below 0"),
    (LATENT, {"layers.*.mixer.indexer": SHARED_INDEXER}, "layers.dense.mixer.indexer.shared", "no earlier layer"),
    (
        "glm-like",
        {"layers.second.mixer.indexer.top_k": 7},
        "layers.second.mixer.indexer.top_k",
        "7 differs from top_k 2048",
    ),
    (
        "glm-like",
        {"layers.second.mixer.sliding_window": 7},
        "layers.second.mixer.sliding_window",
        "7 differs from the window None",
    ),
    (DENSE, {f"{MIXER}.scale": 1e-300}, f"{MIXER}.scale", "1e-300 is out of range"),
    # Recurrent mixers
    ("mamba2-2.7b", {"n_groups": 3}, "mixer.n_groups", "3 does not divide num_heads 80"),
    ("mamba2-2.7b", {"time_step_max": 0}, "mixer.time_step_max", "0.0 is not above time_step_min"),
    ("mamba2-2.7b", {"projection_scales": [1.0, 1.0]}, "mixer.projection_scales", "needs 5 numbers, not 2"),
    ("recurrentgemma-2b", {"layers.recurrent.mixer.num_heads": 3}, "mixer.num_heads", "3 does not divide lru_width"),
    ("qwen3-next-80b-a3b", {"num_key_heads": 12}, "mixer.num_key_heads", "12 does not divide num_value_heads 32"),
    ("falcon-mamba-7b", {"norm_eps": math.nan}, "mixer.norm_eps", "nan"),
    # Feed-forwards
    *((MIXTURE, {"capacity_factor": f}, f"{FFN}.capacity_factor", str(f)) for f in (0, -1, 1e9, math.nan, math.inf)),
    (MIXTURE, {"num_experts_per_tok": 9}, f"{FFN}.num_experts_per_tok", "9 is more than num_experts 8"),
    (MIXTURE, {f"{FFN}.router.jitter": -1}, f"{FFN}.router.jitter", "-1.0 is below 0"),
    (MIXTURE, {f"{FFN}.router.scale": 0}, f"{FFN}.router.scale", "0.0 is not above 0"),
    (MIXTURE, {"gated": False, "activation": "swiglu_oai"}, f"{FFN}.activation", "swiglu_oai needs a gate"),
    (LATENT, {f"{MOE}.router.n_group": 7}, f"{MOE}.router.n_group", "7 does not divide num_experts 256"),
    (LATENT, {f"{MOE}.zero_experts": 1}, f"{MOE}.router.n_group", "8 does not divide num_experts 256 and zero"),
    (LATENT, {f"{MOE}.router.scores": "softmax_topk"}, f"{MOE}.router.scores", "selects by logits alone"),
    (LATENT, {f"{MOE}.router.topk_group": 9}, f"{MOE}.router.topk_group", "9 is more than n_group 8"),
    (LATENT, {f"{MOE}.router.n_group": 256}, f"{MOE}.num_experts_per_tok", "8 is more than the 4 experts"),
    (DENSE, {"gate_scale": 0}, f"{FFN}.gate_scale", "0.0 is not above 0"),
    ("gpt2", {"activation": "swiglu_oai"}, f"{FFN}.activation", "swiglu_oai needs a gate"),
    ("gpt2", {"activation_parameters": 2}, f"{FFN}.activation_parameters", "gelu_tanh has no parameters"),
    # The model around them
    *((DENSE, {"norm.eps": eps}, "norm.eps", str(eps)) for eps in (-1, math.nan, math.inf)),
    (DENSE, {"embedding": {"scale": 0}}, "embedding.scale", "0.0 is not above 0"),
    (DENSE, {"embedding": {"projection_bias": True}}, "embedding.projection_bias", "needs a projection"),
    (DENSE, {"head": {"soft_cap": 0}}, "head.soft_cap", "0.0 is not above 0"),
    (DENSE, {"head": {"scale": 1e300}}, "head.scale", r"1e\+300 is out of range"),
    (DENSE, {"layers.block.residual_scale": -1}, "layers.block.residual_scale", "-1.0 is not above 0"),
    (DENSE, {"extra": [{"name": "x", "shape": [], "role": "matmul"}]}, "extra.0.shape", "no dimension"),
    (LATENT, {"next_token_prediction.count": 2**31}, "next_token_prediction.count", "2147483648 is more than"),
]
"""Model, changes, the field that the message names, and a part of the message."""


def like_glm() -> ModelSpec:
    """Two layers with an indexer. The second layer reuses the keys that the first layer selects (GLM-5)."""
    spec = load_bundled("deepseek-v3.2")
    first = spec.layers["dense"]
    assert isinstance(first.mixer, LatentAttention)
    assert first.mixer.indexer is not None
    second = replace(first, mixer=replace(first.mixer, indexer=replace(first.mixer.indexer, shared=True)))
    changed = replace(
        spec, layers={"first": first, "second": second}, pattern="first second", next_token_prediction=None
    )
    return changed.check()


@pytest.mark.parametrize(("name", "change", "field", "what"), REFUSED)
def test_refused(name: str, change: dict[str, Any], field: str, what: str) -> None:
    spec = like_glm() if name == "glm-like" else load_bundled("gpt2" if name == "roberta-like" else name)
    with pytest.raises(SpecError, match=what) as refusal:
        override(spec, change)
    assert f"{field}: " in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (DENSE, {"head_dim": 2}),
        (DENSE, {"head_dim": 63, "positions.rotary_dim": 62}),
        (DENSE, {"head_dim": 63, "positions": {"kind": "none"}}),
        (DENSE, {"positions.rotary_dim": 64}),
        (DENSE, {"norm.eps": 0}),
        (DENSE, {"causal": False, "sliding_window": 8}),
        (LATENT, {"qk_rope_head_dim": 0}),
        (LATENT, {f"{MOE}.router.n_group": 1, f"{MOE}.router.topk_group": 1, f"{MOE}.zero_experts": 1}),
        (LATENT, {f"{MOE}.router.n_group": 128, f"{MOE}.router.topk_group": 4}),
        (MIXTURE, {"capacity_factor": 0.5, "num_experts_per_tok": 8}),
        ("t5-base", {"positions.per_layer": True, "num_attention_heads": 24}),
    ],
)
def test_values_at_the_limit_are_accepted(name: str, change: dict[str, Any]) -> None:
    assert override(load_bundled(name), change).check()


def test_branches() -> None:
    mamba = {"kind": "mamba2", "num_heads": 4, "head_dim": 8, "state_size": 8, "n_groups": 2, "conv_kernel": 4}
    for branches, what in (
        ([], "branches: is empty"),
        ([mamba, mamba], "branches: has two mixers of the same kind"),
        ([mamba | {"n_groups": 3}], r"branches\.0\.n_groups: 3 does not divide num_heads 4"),
    ):
        with pytest.raises(SpecError, match=what):
            override(load_bundled(DENSE), {MIXER: {"kind": "parallel", "branches": branches}})


def test_a_shared_table_of_biases_needs_equal_head_counts() -> None:
    spec = load_bundled("t5-base")
    wide = {"kind": "attention", "num_attention_heads": 24, "num_key_value_heads": 24, "head_dim": 64}
    other = {"pattern": "block wide", "layers.wide": {"mixer": wide}}
    with pytest.raises(SpecError, match=r"layers\.wide\.mixer\.num_attention_heads: 24 differs from the 12 heads"):
        override(spec, other)
    assert override(spec, other | {"positions.per_layer": True})
    with pytest.raises(
        SpecError, match="needs the table of relative biases of the first layer, but that layer has none"
    ):
        override(spec, {"pattern": "ffn block", "layers.ffn": {"ffn": {"kind": "dense", "intermediate_size": 8}}})


def test_the_hint_names_valid_values() -> None:
    with pytest.raises(SpecError) as refusal:
        override(load_bundled("mamba2-2.7b"), {"n_groups": 3})
    assert refusal.value.hint == "the nearest divisors are 2 and 4"
    with pytest.raises(SpecError) as refusal:
        override(load_bundled(DENSE), {f"{MIXER}.scale": 0})
    assert refusal.value.hint == "this field may be left out"


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("llama2-7b", {"rope_theta": -5.0}, "positions.theta"),
        ("llama2-7b", {"rms_norm_eps": -1.0}, "norm.eps"),
        ("llama2-7b", {"rope_theta": math.inf}, "config rope_theta"),
        ("gemma2-2b", {"attn_logit_softcapping": 0.0}, "logit_soft_cap"),
        (LATENT, {"n_group": 7}, "router.n_group"),
    ],
)
def test_configs_are_checked_in_the_same_manner(name: str, change: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError, match=field):
        from_config(to_config(load_bundled(name)) | change, name=name)


def test_parts_state_their_own_faults() -> None:
    """Without a model around them, and with every field that is wrong."""
    latent = {"num_attention_heads": 4, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4}
    assert [f.field for f in LatentAttention(**latent, v_head_dim=8, scale=0.0, latent_eps=-1.0).faults()] == [
        "latent_eps",
        "scale",
    ]
    assert not list(RGLRU(lru_width=12, num_heads=3, conv_kernel=4).faults())
    mamba = Mamba2(num_heads=4, head_dim=8, state_size=8, n_groups=3, conv_kernel=4, time_step_min=-1.0)
    assert [f.field for f in mamba.faults()] == ["n_groups", "time_step_min"]
