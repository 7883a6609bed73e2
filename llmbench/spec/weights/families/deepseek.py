"""Weight names of DeepSeekMoE and DeepSeek-V2 to V4, and rules for other families that use parts of these models."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import CORRECTION, EXPERTS, GATED, PRE_NORMS, SHARED_EXPERTS, TOP

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

DEEPSEEK_MOE = EXPERTS + CORRECTION + SHARED_EXPERTS + GATED

table("deepseek_v2", "deepseek_v3", top=TOP, layers=LATENT + DEEPSEEK_MOE + PRE_NORMS)

table("deepseek_v32", top=TOP, layers=LATENT + INDEXER + DEEPSEEK_MOE + PRE_NORMS)
