"""Tiny configs of the families with recurrent mixers: their defaults, and the settings that they can change."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 8,
    "head_dim": 16,
    "num_hidden_layers": 4,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": (
        "mamba",
        {"vocab_size": 96, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "time_step_rank": 4},
    ),
    "mamba, biases, untied": (
        "mamba",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "state_size": 4,
            "num_hidden_layers": 2,
            "use_bias": True,
            "use_conv_bias": False,
            "conv_kernel": 3,
            "tie_word_embeddings": False,
        },
    ),
    "falcon-mamba": (
        "falcon_mamba",
        {"vocab_size": 96, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "mixer_rms_eps": 1e-3},
    ),
    "mamba2": (
        "mamba2",
        {
            "vocab_size": 96,
            "hidden_size": 32,
            "state_size": 8,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "time_step_limit": (0.01, 0.9),
        },
    ),
    "kimi linear": (
        "kimi_linear",
        {
            **SMALL,
            "num_key_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "num_hidden_layers": 4,
            "linear_num_heads": 2,
            "linear_head_dim": 8,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "moe_intermediate_size": 24,
            "kv_lora_rank": 16,
            "q_lora_rank": None,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
        },
    ),
    "rwkv": ("rwkv", {"vocab_size": 96, "hidden_size": 32, "attention_hidden_size": 48, "num_hidden_layers": 2}),
    "jamba": (
        "jamba",
        {
            **SMALL,
            **EXPERTS,
            "num_hidden_layers": 8,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            **SMALL,
            "layers_block_type": ["mamba", "mlp", "attention", "moe", "mamba", "mlp"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "time_step_min": 0.3,
            "n_routed_experts": 4,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "num_experts_per_tok": 2,
        },
    ),
    "nemotron-h, experts in a latent space": (
        "nemotron_h",
        {
            **SMALL,
            "layers_block_type": ["mamba", "moe"],
            "head_dim": 8,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
            "moe_latent_size": 16,
            "mlp_hidden_act": "silu",
            "n_routed_experts": 4,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "num_experts_per_tok": 2,
        },
    ),
    "bamba": ("bamba", {**SMALL, **SSM, "num_hidden_layers": 3, "attn_layer_indices": [1]}),
    "falcon-h1": (
        "falcon_h1",
        {
            **SMALL,
            **SSM,
            "mamba_d_ssm": 64,
            "num_hidden_layers": 2,
            "lm_head_multiplier": 0.3,
            "embedding_multiplier": 2.5,
            "mlp_multipliers": [0.6, 1.7],
            "key_multiplier": 0.4,
            "attention_in_multiplier": 1.3,
            "attention_out_multiplier": 0.7,
            "ssm_multipliers": [0.35, 0.6, 1.4, 0.5, 0.8],
            "ssm_in_multiplier": 1.25,
            "ssm_out_multiplier": 0.2,
        },
    ),
    "falcon-h1, norms and biases": (
        "falcon_h1",
        {
            **SMALL,
            **SSM,
            "mamba_d_ssm": 64,
            "num_hidden_layers": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "attention_in_multiplier": 1.3,
            "ssm_in_multiplier": 1.25,
        },
    ),
    "minimax": (
        "minimax",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "block_size": 8,
            **{
                f"{part}_{name}_factor": value
                for part in ("full_attn", "linear_attn", "mlp")
                for name, value in (("alpha", 3.5), ("beta", 0.8))
            },
        },
    ),
    "granite-4": (
        "granitemoehybrid",
        {
            **SMALL,
            **SSM,
            "shared_intermediate_size": 40,
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 2.0,
            "logits_scaling": 3.0,
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {**SMALL, **DELTA, **EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "qwen3.5": ("qwen3_5_text", {**SMALL, **DELTA}),
    "qwen3.5-moe": (
        "qwen3_5_moe_text",
        {**SMALL, **DELTA, **EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24},
    ),
    "olmo-hybrid": ("olmo_hybrid", {**SMALL, "num_hidden_layers": 4}),
    "olmo-hybrid, positive eigenvalues, rotated": (
        "olmo_hybrid",
        {
            **SMALL,
            "num_hidden_layers": 4,
            "linear_allow_neg_eigval": False,
            "linear_num_key_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    ),
    "lfm2-moe": (
        "lfm2_moe",
        {
            **SMALL,
            **EXPERTS,
            "moe_intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_dense_layers": 1,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    "lfm2": ("lfm2", {**SMALL, "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "recurrentgemma, width no square, window 6": (
        "recurrent_gemma",
        {
            **SMALL,
            "hidden_size": 40,
            "lru_width": 40,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "attention_window_size": 6,
        },
    ),
}
