"""Weight names of OPT, XGLM and CWM (Meta). llama.py has the names of Llama, bert.py the names of RoBERTa."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

FAIRSEQ_LAYERS = """
attention.q_proj.*          self_attn.q_proj.*
attention.k_proj.*          self_attn.k_proj.*
attention.v_proj.*          self_attn.v_proj.*
attention.o_proj.*          self_attn.out_proj.*
ffn.up_proj.*               fc1.*
ffn.down_proj.*             fc2.*
mixer_norm.*                self_attn_layer_norm.*
ffn_norm.*                  final_layer_norm.*
"""

table(
    "opt",
    top="""
    embedding.weight            model.decoder.embed_tokens.weight
    position_embedding.weight   model.decoder.embed_positions.weight
    embedding_projection.*      model.decoder.project_in.*
    head.projection.*           model.decoder.project_out.*
    final_norm.*                model.decoder.final_layer_norm.*
    lm_head.*                   lm_head.*
    """,
    layers=FAIRSEQ_LAYERS,
    at="model.decoder.layers.{i}.",
)

table(
    "xglm",
    top="""
    embedding.weight            model.embed_tokens.weight
    final_norm.*                model.layer_norm.*
    lm_head.*                   lm_head.*
    """,
    layers=FAIRSEQ_LAYERS,
    ignored=r"model\.embed_positions\.weights",
)

table("cwm", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
