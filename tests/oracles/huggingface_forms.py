"""The parts of each family's Hugging Face config, and the parts that only models with experts, state-space models and
encoder-decoders have. Standard names of keys are translated to those of the class (n_embd) afterwards."""

from __future__ import annotations

from collections.abc import Callable

from llmbench.spec.ffn import Dense, Gated, MoE
from llmbench.spec.mixer import RGLRU, Attention, GatedDeltaNet, LatentAttention, Mamba, Mamba2
from llmbench.spec.position import RelativeBias, Rope

from .huggingface_keys import (
    Keys,
    View,
    bert,
    cohere,
    common,
    falcon,
    gemma,
    granite,
    inner_width,
    mpt,
    multi_query,
    neox_rope,
    opt,
    parallel_residual,
    phi,
    stablelm,
    starcoder2,
    width,
)


def experts(count: str, size: str) -> Callable[[View], Keys]:
    """Experts, by the family's keys of their number and their width."""

    def part(v: View) -> Keys:
        e = v.experts
        return {count: e.num_experts, size: e.intermediate_size, "num_experts_per_tok": e.num_experts_per_tok}

    return part


def normalized(v: View) -> Keys:
    return {"norm_topk_prob": v.experts.router.normalize}


def phimoe(v: View) -> Keys:
    return {"lm_head_bias": v.spec.head.bias, "router_jitter_noise": v.experts.router.jitter}


def clipped(v: View) -> Keys:
    return {"clip_qkv": v.attention.clip_qkv}


def qwen_moe(v: View) -> Keys:
    """Qwen's layers with experts, its dense width and its shared expert."""
    dense = set(range(len(v.layers))) - set(v.sparse)
    keys: Keys = {"decoder_sparse_step": 1, "mlp_only_layers": sorted(dense)}
    if v.ffn is not None:
        keys["intermediate_size"] = v.ffn.intermediate_size
    if v.experts.shared is not None:
        keys["shared_expert_intermediate_size"] = v.experts.shared.intermediate_size
    if "qkv_bias" in v.declared:
        keys["qkv_bias"] = v.attention.qkv_bias
    return keys


def dbrx(v: View) -> Keys:
    e, rope = v.experts, v.positions
    assert isinstance(rope, Rope)
    return {
        "attn_config": {
            "kv_n_heads": v.attention.num_key_value_heads,
            "rope_theta": rope.theta,
            "clip_qkv": v.attention.clip_qkv,
        },
        "ffn_config": {
            "hidden_size": v.spec.hidden_size,
            "ffn_hidden_size": e.intermediate_size,
            "moe_num_experts": e.num_experts,
            "moe_top_k": e.num_experts_per_tok,
            "ffn_act_fn": {"name": e.activation},
            "moe_normalize_expert_weights": 1.0 if e.router.normalize else None,
        },
    }


def deepseek(v: View) -> Keys:
    """DeepSeek's small experts beside shared ones, dense layers first, and routing limited to groups."""
    e = v.experts
    keys: Keys = {
        "n_routed_experts": e.num_experts,
        "num_experts_per_tok": e.num_experts_per_tok,
        "moe_intermediate_size": e.intermediate_size,
        "n_shared_experts": e.shared.intermediate_size // e.intermediate_size if e.shared else None,
        "first_k_dense_replace": v.sparse[0],
        "norm_topk_prob": e.router.normalize,
        "routed_scaling_factor": e.router.scale,
        "scoring_func": e.router.scores,
        "n_group": e.router.n_group,
        "topk_group": e.router.topk_group,
        "topk_method": "noaux_tc" if e.router.correction else "greedy",
    }
    if e.router.n_group > 1 and not e.router.correction:
        keys["topk_method"] = "group_limited_greedy"
    if v.ffn is not None:
        keys["intermediate_size"] = v.ffn.intermediate_size
    mtp = v.spec.next_token_prediction
    keys["num_nextn_predict_layers"] = mtp.count if mtp else 0
    return keys


def glm_moe(v: View) -> Keys:
    return {"use_qk_norm": v.attention.qk_norm is not None}


def latent(v: View) -> Keys:
    """Multi-head latent attention, with V3.2's indexer where there is one."""
    m = v.mixer(LatentAttention)
    keys: Keys = {
        "num_attention_heads": m.num_attention_heads,
        "num_key_value_heads": m.num_attention_heads,
        "attention_bias": m.output_bias,
        "q_lora_rank": m.q_lora_rank,
        "kv_lora_rank": m.kv_lora_rank,
        "qk_nope_head_dim": m.qk_nope_head_dim,
        "qk_rope_head_dim": m.qk_rope_head_dim,
        "v_head_dim": m.v_head_dim,
    }
    if "rope_interleave" in v.declared and isinstance(v.positions, Rope):
        keys["rope_interleave"] = v.positions.interleaved
    if m.indexer is not None:
        keys |= {
            "index_n_heads": m.indexer.num_heads,
            "index_head_dim": m.indexer.head_dim,
            "index_topk": m.indexer.top_k,
        }
    return keys


def minimax_m2(v: View) -> Keys:
    mtp = v.spec.next_token_prediction
    return {"use_qk_norm": True, "use_routing_bias": True, "num_mtp_modules": mtp.count if mtp else 0}


def llama4(v: View) -> Keys:
    mixers = [layer.mixer for layer in v.layers if isinstance(layer.mixer, Attention)]
    chunk = next((m.attention_chunk_size for m in mixers if m.attention_chunk_size), None)
    dense = v.ffn or v.experts
    temperature = next((m.temperature for m in mixers if m.temperature), None)
    tuning: Keys = {"attn_temperature_tuning": temperature is not None}
    if temperature is not None:
        tuning |= {"attn_scale": temperature.scale, "floor_scale": temperature.every}
    return {
        **tuning,
        "attention_chunk_size": chunk,
        "no_rope_layers": [int(m.positions is None) for m in mixers],
        "use_qk_norm": any(m.qk_norm is not None for m in mixers),
        "moe_layers": v.sparse,
        "intermediate_size_mlp": dense.intermediate_size,
    }


def mamba(v: View) -> Keys:
    m = v.mixer(Mamba)
    eps = {} if m.norm_eps is None else {"mixer_rms_eps": m.norm_eps}
    return {
        **eps,
        "intermediate_size": m.intermediate_size,
        "expand": m.intermediate_size // v.spec.hidden_size,
        "state_size": m.state_size,
        "conv_kernel": m.conv_kernel,
        "time_step_rank": m.time_step_rank,
        "use_conv_bias": m.conv_bias,
        "use_bias": m.proj_bias,
    }


def bloom(v: View) -> Keys:
    return {"apply_residual_connection_post_layernorm": v.first.residual_from_norm}


def mamba2(v: View) -> Keys:
    m = v.mixer(Mamba2)
    return {
        "time_step_limit": [m.time_step_min, float("inf") if m.time_step_max is None else m.time_step_max],
        "num_heads": m.num_heads,
        "head_dim": m.head_dim,
        "state_size": m.state_size,
        "n_groups": m.n_groups,
        "conv_kernel": m.conv_kernel,
        "chunk_size": m.chunk_size,
        "expand": m.intermediate_size // v.spec.hidden_size,
        "use_conv_bias": m.conv_bias,
        "use_bias": m.proj_bias,
    }


def jamba(v: View) -> Keys:
    m = v.mixer(Mamba)
    attends = [index for index, layer in enumerate(v.layers) if isinstance(layer.mixer, Attention)]
    return {
        "mamba_expand": m.intermediate_size // v.spec.hidden_size,
        "mamba_d_state": m.state_size,
        "mamba_d_conv": m.conv_kernel,
        "mamba_dt_rank": m.time_step_rank,
        "mamba_conv_bias": m.conv_bias,
        "mamba_proj_bias": m.proj_bias,
        "attn_layer_offset": attends[0],
        "attn_layer_period": attends[1] - attends[0] if len(attends) > 1 else len(v.layers),
        "expert_layer_offset": v.sparse[0],
        "expert_layer_period": v.sparse[1] - v.sparse[0] if len(v.sparse) > 1 else len(v.layers),
    }


def state_dtype(key: str, mixer: Mamba2 | GatedDeltaNet) -> Keys:
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return {} if mixer.state_dtype is None else {key: names[mixer.state_dtype]}


def nemotron_h(v: View) -> Keys:
    m = v.mixer(Mamba2)
    letters: dict[type | None, str] = {Mamba2: "M", Attention: "*", Dense: "-", MoE: "E"}
    sparse = any(isinstance(layer.ffn, MoE) for layer in v.layers)
    return (nemotron_experts(v) if sparse else {"mlp_bias": v.dense.bias} | width(v)) | {
        "hybrid_override_pattern": "".join(letters[type(layer.mixer or layer.ffn)] for layer in v.layers),
        "mamba_num_heads": m.num_heads,
        "mamba_head_dim": m.head_dim,
        "ssm_state_size": m.state_size,
        "time_step_min": m.time_step_min,
        **state_dtype("mamba_ssm_cache_dtype", m),
        "n_groups": m.n_groups,
        "conv_kernel": m.conv_kernel,
        "chunk_size": m.chunk_size,
        "expand": m.intermediate_size // v.spec.hidden_size,
        "use_conv_bias": m.conv_bias,
        "use_bias": m.proj_bias,
    }


def nemotron_experts(v: View) -> Keys:
    e = v.experts
    return {
        "n_routed_experts": e.num_experts,
        "num_experts_per_tok": e.num_experts_per_tok,
        "moe_intermediate_size": e.intermediate_size,
        "moe_shared_expert_intermediate_size": e.shared.intermediate_size if e.shared else None,
        "n_group": e.router.n_group,
        "topk_group": e.router.topk_group,
        "norm_topk_prob": e.router.normalize,
        "routed_scaling_factor": e.router.scale,
    }


def recurrent_gemma(v: View) -> Keys:
    m = v.mixer(RGLRU)
    kinds = ["attention" if isinstance(layer.mixer, Attention) else "recurrent" for layer in v.layers]
    period = next(n for n in range(1, len(kinds) + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds)))
    return {
        "attention_window_size": v.window,
        "block_types": kinds[:period],
        "lru_width": m.lru_width,
        "conv1d_width": m.conv_kernel,
        "intermediate_size": 2 * v.dense.intermediate_size,
        "logits_soft_cap": v.spec.head.soft_cap,
    }


def qwen3_next(v: View) -> Keys:
    m = v.mixer(GatedDeltaNet)
    return {
        "linear_num_key_heads": m.num_key_heads,
        "linear_num_value_heads": m.num_value_heads,
        "linear_key_head_dim": m.key_head_dim,
        "linear_value_head_dim": m.value_head_dim,
        "linear_conv_kernel_dim": m.conv_kernel,
        **state_dtype("mamba_ssm_dtype", m),
    }


def shared_width(v: View) -> Keys:
    assert v.experts.shared is not None
    return {"shared_expert_intermediate_size": v.experts.shared.intermediate_size}


def qwen3_5(v: View) -> Keys:
    mtp = v.spec.next_token_prediction
    return qwen3_next(v) | {"mtp_num_hidden_layers": 0 if mtp is None else mtp.count}


def t5(v: View) -> Keys:
    encoder, positions = v.spec.encoder, v.positions
    if encoder is None or not isinstance(positions, RelativeBias):
        raise AttributeError("no encoder")
    ffn = v.dense
    name = "gelu" if ffn.activation == "gelu_tanh" else ffn.activation
    return {
        "is_encoder_decoder": True,
        "num_hidden_layers": len(encoder.order),
        "num_decoder_layers": len(v.layers),
        "d_kv": v.attention.head_dim,
        "d_ff": ffn.intermediate_size,
        "feed_forward_proj": f"gated-{name}" if isinstance(ffn, Gated) else ffn.activation,
        "relative_attention_num_buckets": positions.num_buckets,
        "relative_attention_max_distance": positions.max_distance,
    }


def switch(v: View) -> Keys:
    encoder = v.spec.encoder
    assert encoder is not None
    return {
        "num_experts": v.experts.num_experts,
        "expert_capacity": v.experts.expert_capacity,
        "router_bias": v.experts.router.bias,
        "num_sparse_decoder_layers": len(v.sparse),
        "num_sparse_encoder_layers": sum(isinstance(encoder.layers[k].ffn, MoE) for k in encoder.order),
    }


_LOCAL = experts("num_local_experts", "intermediate_size")
_QWEN = (common, experts("num_experts", "moe_intermediate_size"), normalized, qwen_moe)
_V3 = (common, latent, deepseek)

FORMS: dict[str, tuple[Callable[[View], Keys], ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "exaone4", "olmo2"), (common, width)),
    "olmo": (common, width, clipped),
    **dict.fromkeys(("glm", "glm4", "phi3", "gemma"), (common, width)),
    "cohere": (common, width, cohere),
    "granite": (common, width, granite),
    "stablelm": (common, width, stablelm, parallel_residual),
    "starcoder2": (common, width, starcoder2),
    "gemma2": (common, width, gemma),
    "gemma3_text": (common, width, gemma),
    "gpt2": (common, inner_width),
    "gpt_bigcode": (common, inner_width, multi_query),
    "gptj": (common, inner_width),
    "gpt_neox": (common, width, neox_rope, parallel_residual),
    "phi": (common, width, phi),
    "opt": (common, opt),
    "bloom": (common, bloom),
    "mpt": (common, mpt),
    "falcon": (common, falcon),
    "bert": (common, width, bert),
    "mixtral": (common, _LOCAL),
    "phimoe": (common, _LOCAL, phimoe),
    "gpt_oss": (common, _LOCAL),
    "minimax_m2": (common, _LOCAL, minimax_m2),
    "llama4_text": (common, _LOCAL, llama4),
    "olmoe": (common, experts("num_experts", "intermediate_size"), normalized, clipped),
    "qwen2_moe": _QWEN,
    "qwen3_moe": _QWEN,
    "qwen3_next": (*_QWEN, qwen3_next),
    "qwen3_5_moe_text": (common, experts("num_experts", "moe_intermediate_size"), qwen3_5, shared_width),
    "qwen3_5_text": (common, width, qwen3_5),
    "dbrx": (common, dbrx),
    "deepseek": (common, deepseek),
    "glm4_moe": (common, deepseek, glm_moe),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2"), _V3),
    "mamba": (common, mamba),
    "falcon_mamba": (common, mamba),
    "mamba2": (common, mamba2),
    "jamba": (common, experts("num_experts", "intermediate_size"), jamba),
    "nemotron_h": (common, nemotron_h),
    "recurrent_gemma": (common, recurrent_gemma),
    "t5": (common, t5),
    "switch_transformers": (common, t5, switch),
}
"""The parts of each family's config; a later part replaces a key of an earlier one."""
