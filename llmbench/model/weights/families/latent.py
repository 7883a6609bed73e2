"""Latent attention: DeepSeek-V2 and V3 and those that share their names."""

from __future__ import annotations

from llmbench.model.weights.families import table
from llmbench.model.weights.families.llama import GATED, PRE_NORMS, TOP
from llmbench.model.weights.families.mixture import CORRECTION, EXPERTS, SHARED_EXPERTS

LATENT = """
attention.q_proj.*          self_attn.q_proj.*
attention.q_a_proj.*        self_attn.q_a_proj.*
attention.q_a_norm.*        self_attn.q_a_layernorm.*
attention.q_b_proj.*        self_attn.q_b_proj.*
attention.kv_a_proj.*       self_attn.kv_a_proj_with_mqa.*
attention.kv_a_norm.*       self_attn.kv_a_layernorm.*
attention.kv_b_proj.*       self_attn.kv_b_proj.*
attention.o_proj.*          self_attn.o_proj.*
"""

INDEXER = """
attention.indexer.q_proj.*          self_attn.indexer.wq_b.*
attention.indexer.k_proj.*          self_attn.indexer.wk.*
attention.indexer.k_norm.*          self_attn.indexer.k_norm.*
attention.indexer.weights_proj.*    self_attn.indexer.weights_proj.*
"""

MOE = EXPERTS + CORRECTION + SHARED_EXPERTS + GATED

table("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite", top=TOP, layers=LATENT + MOE + PRE_NORMS)
table("deepseek_v32", "glm_moe_dsa", top=TOP, layers=LATENT + INDEXER + MOE + PRE_NORMS)
table("minicpm3", "youtu", top=TOP, layers=LATENT + GATED + PRE_NORMS)
