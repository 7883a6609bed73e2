"""Weight names of GPT-1, GPT-2 and gpt-oss (OpenAI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, PRE_NORMS, TOP

GPT2_TOP = """
embedding.weight            transformer.wte.weight
position_embedding.weight   transformer.wpe.weight
final_norm.*                transformer.ln_f.*
lm_head.*                   lm_head.*
"""

GPT2_NORMS = """
mixer_norm.*                ln_1.*
ffn_norm.*                  ln_2.*
"""

GPT2_LAYERS = (
    GPT2_NORMS
    + """
    attention.q_proj.*      attn.c_attn.*                   t plain.q
    attention.k_proj.*      attn.c_attn.*                   t plain.k
    attention.v_proj.*      attn.c_attn.*                   t plain.v
    attention.o_proj.*      attn.c_proj.*                   t
    ffn.up_proj.*           mlp.c_fc.*                      t
    ffn.down_proj.*         mlp.c_proj.*                    t
    """
)

table("gpt2", "gpt-sw3", top=GPT2_TOP, layers=GPT2_LAYERS, at="transformer.h.{i}.", ignored=r".*\.attn\.(masked_)?bias")

table(
    "openai-gpt",
    top="""
    embedding.weight            transformer.tokens_embed.weight
    position_embedding.weight   transformer.positions_embed.weight
    lm_head.*                   lm_head.*
    """,
    layers=GPT2_LAYERS,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.bias",
)

table(
    "gpt_oss",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    ffn.router.*            mlp.router.*
    ffn.experts.gate_proj   mlp.experts.gate_up_proj            t first.turns.experts
    ffn.experts.up_proj     mlp.experts.gate_up_proj            t second.turns.experts
    ffn.experts.down_proj   mlp.experts.down_proj               t
    ffn.experts.gate_bias   mlp.experts.gate_up_proj_bias       first.turns.experts
    ffn.experts.up_bias     mlp.experts.gate_up_proj_bias       second.turns.experts
    ffn.experts.down_bias   mlp.experts.down_proj_bias
    """,
)
