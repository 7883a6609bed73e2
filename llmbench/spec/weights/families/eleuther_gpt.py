"""Weight names of GPT-Neo, GPT-J and GPT-NeoX (Pythia) (EleutherAI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.openai_gpt import GPT2_NORMS, GPT2_TOP

NEOX_FFN = """
ffn.up_proj.*               mlp.dense_h_to_4h.*
ffn.down_proj.*             mlp.dense_4h_to_h.*
"""

table(
    "gpt_neo",
    top=GPT2_TOP,
    layers=GPT2_NORMS
    + """
    attention.q_proj.*      attn.attention.q_proj.*
    attention.k_proj.*      attn.attention.k_proj.*
    attention.v_proj.*      attn.attention.v_proj.*
    attention.o_proj.*      attn.attention.out_proj.*
    ffn.up_proj.*           mlp.c_fc.*
    ffn.down_proj.*         mlp.c_proj.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.attention\.(masked_)?bias",
)

table(
    "gptj",
    top=GPT2_TOP,
    layers="""
    norm.*                  ln_1.*
    attention.q_proj.*      attn.q_proj.*
    attention.k_proj.*      attn.k_proj.*
    attention.v_proj.*      attn.v_proj.*
    attention.o_proj.*      attn.out_proj.*
    ffn.up_proj.*           mlp.fc_in.*
    ffn.down_proj.*         mlp.fc_out.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.(masked_)?bias",
    partial_rotation=True,
)

NEOX_LAYERS = (
    NEOX_FFN
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    attention.q_proj.*      attention.query_key_value.*     groups.q
    attention.k_proj.*      attention.query_key_value.*     groups.k
    attention.v_proj.*      attention.query_key_value.*     groups.v
    attention.o_proj.*      attention.dense.*
    """
)

table(
    "gpt_neox",
    top="""
    embedding.weight        gpt_neox.embed_in.weight
    final_norm.*            gpt_neox.final_layer_norm.*
    lm_head.*               embed_out.*
    """,
    layers=NEOX_LAYERS,
    at="gpt_neox.layers.{i}.",
    ignored=r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
    partial_rotation=True,
)

table(
    "gpt_neox_japanese",
    top="""
    embedding.weight        gpt_neox_japanese.embed_in.weight
    final_norm.*            gpt_neox_japanese.final_layer_norm.*
    lm_head.*               embed_out.*
    """,
    layers=NEOX_LAYERS + "attention.o_proj.bias attention.dense_bias",
    at="gpt_neox_japanese.layers.{i}.",
    partial_rotation=True,
)
