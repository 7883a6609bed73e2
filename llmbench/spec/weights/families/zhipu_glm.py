"""Weight names of ChatGLM and of GLM-4 to GLM-5 (Zhipu AI): dense models, and models with experts or latent
attention."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    FUSED_GATED,
    GATED,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERTS,
    TOP,
)
from llmbench.spec.weights.families.deepseek import DEEPSEEK_MOE, INDEXER, LATENT

table("glm4_moe_lite", top=TOP, layers=LATENT + DEEPSEEK_MOE + PRE_NORMS)

table("glm_moe_dsa", top=TOP, layers=LATENT + INDEXER + DEEPSEEK_MOE + PRE_NORMS)

table(
    "glm4",
    "glm4v_text",
    "glm_ocr_text",
    top=TOP,
    layers=ATTENTION
    + FUSED_GATED
    + """
    mixer_norm.*            input_layernorm.*
    post_mixer_norm.*       post_self_attn_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    post_ffn_norm.*         post_mlp_layernorm.*
    """,
    partial_rotation=True,
)

table("glm", top=TOP, layers=ATTENTION + FUSED_GATED + PRE_NORMS, partial_rotation=True)

table(
    "glm4_moe",
    "glm4v_moe_text",
    top=TOP,
    layers=ATTENTION + QK_NORM + EXPERTS + CORRECTION + SHARED_EXPERTS + GATED + PRE_NORMS,
    partial_rotation=True,
)
