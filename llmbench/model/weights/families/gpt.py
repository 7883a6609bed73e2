"""GPT-2's line: fused projections, each in its own order."""

from __future__ import annotations

from llmbench.model.weights.families import table

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

_GPT2_LAYERS = (
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

table(
    "gpt2",
    "gpt-sw3",
    top=GPT2_TOP,
    layers=_GPT2_LAYERS,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.(masked_)?bias",
)

table(
    "openai-gpt",
    top="""
    embedding.weight            transformer.tokens_embed.weight
    position_embedding.weight   transformer.positions_embed.weight
    lm_head.*                   lm_head.*
    """,
    layers=_GPT2_LAYERS,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.bias",
)

# With one key-value head for all: the queries, then the key, then the value. Else head by head.
table(
    "gpt_bigcode",
    top=GPT2_TOP,
    layers=GPT2_NORMS
    + """
    attention.q_proj.*      attn.c_attn.*                   groups.q
    attention.k_proj.*      attn.c_attn.*                   groups.k
    attention.v_proj.*      attn.c_attn.*                   groups.v
    attention.o_proj.*      attn.c_proj.*
    ffn.up_proj.*           mlp.c_fc.*
    ffn.down_proj.*         mlp.c_proj.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.bias",
)

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
)

table(
    "codegen",
    top=GPT2_TOP,
    layers="""
    norm.*                  ln_1.*
    attention.q_proj.*      attn.qkv_proj.*                 quarters.q
    attention.k_proj.*      attn.qkv_proj.*                 quarters.k
    attention.v_proj.*      attn.qkv_proj.*                 quarters.v
    attention.o_proj.*      attn.out_proj.*
    ffn.up_proj.*           mlp.fc_in.*
    ffn.down_proj.*         mlp.fc_out.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.causal_mask",
)

NEOX_FFN = """
ffn.up_proj.*               mlp.dense_h_to_4h.*
ffn.down_proj.*             mlp.dense_4h_to_h.*
"""

table(
    "gpt_neox",
    top="""
    embedding.weight        gpt_neox.embed_in.weight
    final_norm.*            gpt_neox.final_layer_norm.*
    lm_head.*               embed_out.*
    """,
    layers=NEOX_FFN
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    attention.q_proj.*      attention.query_key_value.*     groups.q
    attention.k_proj.*      attention.query_key_value.*     groups.k
    attention.v_proj.*      attention.query_key_value.*     groups.v
    attention.o_proj.*      attention.dense.*
    """,
    at="gpt_neox.layers.{i}.",
    ignored=r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
)

BLOOM_ATTENTION = """
attention.q_proj.*          self_attention.query_key_value.*    groups.q
attention.k_proj.*          self_attention.query_key_value.*    groups.k
attention.v_proj.*          self_attention.query_key_value.*    groups.v
attention.o_proj.*          self_attention.dense.*
"""

table(
    "bloom",
    top="""
    embedding.weight        transformer.word_embeddings.weight
    embedding_norm.*        transformer.word_embeddings_layernorm.*
    final_norm.*            transformer.ln_f.*
    lm_head.*               lm_head.*
    """,
    layers=BLOOM_ATTENTION
    + NEOX_FFN
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    """,
    at="transformer.h.{i}.",
)

# 7B: one norm; 40B: two, side by side; the first (rw): one before each sublayer, with ALiBi.
table(
    "falcon",
    top="""
    embedding.weight        transformer.word_embeddings.weight
    final_norm.*            transformer.ln_f.*
    lm_head.*               lm_head.*
    """,
    layers=BLOOM_ATTENTION
    + NEOX_FFN
    + """
    norm.*                  input_layernorm.*
    mixer_norm.*            ln_attn.*
    ffn_norm.*              ln_mlp.*
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    """,
    at="transformer.h.{i}.",
)

table(
    "mpt",
    top="""
    embedding.weight        transformer.wte.weight
    final_norm.*            transformer.norm_f.*
    lm_head.*               lm_head.*
    """,
    layers="""
    attention.q_proj.*      attn.Wqkv.*                     plain.q
    attention.k_proj.*      attn.Wqkv.*                     plain.k
    attention.v_proj.*      attn.Wqkv.*                     plain.v
    attention.o_proj.*      attn.out_proj.*
    ffn.up_proj.*           ffn.up_proj.*
    ffn.down_proj.*         ffn.down_proj.*
    mixer_norm.*            norm_1.*
    ffn_norm.*              norm_2.*
    """,
    at="transformer.blocks.{i}.",
)

_FAIRSEQ_LAYERS = """
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
    layers=_FAIRSEQ_LAYERS,
    at="model.decoder.layers.{i}.",
)
table(
    "biogpt",
    top="""
    embedding.weight            biogpt.embed_tokens.weight
    position_embedding.weight   biogpt.embed_positions.weight
    final_norm.*                biogpt.layer_norm.*
    lm_head.*                   output_projection.*
    """,
    layers=_FAIRSEQ_LAYERS,
    at="biogpt.layers.{i}.",
)
table(
    "xglm",
    top="""
    embedding.weight            model.embed_tokens.weight
    final_norm.*                model.layer_norm.*
    lm_head.*                   lm_head.*
    """,
    layers=_FAIRSEQ_LAYERS,
    ignored=r"model\.embed_positions\.weights",
)
table(
    "ctrl",
    top="""
    embedding.weight            transformer.w.weight
    final_norm.*                transformer.layernorm.*
    lm_head.*                   lm_head.*
    """,
    layers="""
    attention.q_proj.*          multi_head_attention.Wq.*
    attention.k_proj.*          multi_head_attention.Wk.*
    attention.v_proj.*          multi_head_attention.Wv.*
    attention.o_proj.*          multi_head_attention.dense.*
    ffn.up_proj.*               ffn.0.*
    ffn.down_proj.*             ffn.2.*
    mixer_norm.*                layernorm1.*
    ffn_norm.*                  layernorm2.*
    """,
    at="transformer.h.{i}.",
)

table(
    "persimmon",
    top="""
    embedding.weight        model.embed_tokens.weight
    final_norm.*            model.final_layernorm.*
    lm_head.*               lm_head.*
    """,
    layers=NEOX_FFN
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    attention.q_proj.*      self_attn.query_key_value.*     groups.q
    attention.k_proj.*      self_attn.query_key_value.*     groups.k
    attention.v_proj.*      self_attn.query_key_value.*     groups.v
    attention.q_norm.*      self_attn.q_layernorm.*
    attention.k_norm.*      self_attn.k_layernorm.*
    attention.o_proj.*      self_attn.dense.*
    """,
)
