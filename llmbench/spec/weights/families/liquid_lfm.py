"""Weight names of LFM2 and LFM3 (Liquid AI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, QK_NORM

_LFM_TOP = """
embedding.weight        model.embed_tokens.weight
final_norm.*            model.embedding_norm.*
lm_head.*               lm_head.*
"""

_LFM = """
conv.in_proj.*          conv.in_proj.*
conv.conv.*             conv.conv.*
conv.out_proj.*         conv.out_proj.*
ffn.gate_proj.*         feed_forward.w1.*
ffn.up_proj.*           feed_forward.w3.*
ffn.down_proj.*         feed_forward.w2.*
mixer_norm.*            operator_norm.*
ffn_norm.*              ffn_norm.*
"""

_LFM2_ATTENTION = """
attention.q_proj.*      self_attn.q_proj.*
attention.k_proj.*      self_attn.k_proj.*
attention.v_proj.*      self_attn.v_proj.*
attention.o_proj.*      self_attn.out_proj.*
attention.q_norm.*      self_attn.q_layernorm.*
attention.k_norm.*      self_attn.k_layernorm.*
"""

table("lfm2", top=_LFM_TOP, layers=_LFM + _LFM2_ATTENTION)

table(
    "lfm2_moe",
    top=_LFM_TOP,
    layers=_LFM
    + _LFM2_ATTENTION
    + """
    ffn.router.weight       feed_forward.gate.weight
    ffn.router.correction   feed_forward.expert_bias
    ffn.experts.gate_proj   feed_forward.experts.{e}.w1.weight
    ffn.experts.up_proj     feed_forward.experts.{e}.w3.weight
    ffn.experts.down_proj   feed_forward.experts.{e}.w2.weight
    ffn.experts.gate_proj   feed_forward.experts.gate_up_proj   first.half.experts
    ffn.experts.up_proj     feed_forward.experts.gate_up_proj   second.half.experts
    ffn.experts.down_proj   feed_forward.experts.down_proj
    """,
)

table(
    "lfm3",
    top=_LFM_TOP,
    layers=ATTENTION
    + QK_NORM
    + _LFM
    + """
    attention.g_proj.*      self_attn.gate_proj.*
    post_mixer_norm.*       post_operator_norm.*
    post_ffn_norm.*         post_ffn_norm.*
    """,
)
