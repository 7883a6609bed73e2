"""Weight names of masked-language models that change a part of BERT."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.bert import BERT_LAYERS, bert_table, bert_top

bert_table("big_bird", "bert")

table(
    "bert-generation",
    top=bert_top("bert")
    + """
    lm_head.bias            lm_head.bias
    lm_head.weight          lm_head.decoder.weight
    """,
    layers=BERT_LAYERS,
    at="bert.encoder.layer.{i}.",
    ignored=r"lm_head\.decoder\.bias|bert\.embeddings\.position_ids",
)

table(
    "xlm",
    "flaubert",
    top="""
    embedding.weight            transformer.embeddings.weight
    position_embedding.weight   transformer.position_embeddings.weight
    embedding_norm.*            transformer.layer_norm_emb.*
    lm_head.*                   pred_layer.proj.*
    """,
    layers="""
    attention.q_proj.*          attentions.{i}.q_lin.*
    attention.k_proj.*          attentions.{i}.k_lin.*
    attention.v_proj.*          attentions.{i}.v_lin.*
    attention.o_proj.*          attentions.{i}.out_lin.*
    mixer_norm.*                layer_norm1.{i}.*
    ffn.up_proj.*               ffns.{i}.lin1.*
    ffn.down_proj.*             ffns.{i}.lin2.*
    ffn_norm.*                  layer_norm2.{i}.*
    """,
    at="transformer.",
)

table(
    "longformer",
    top=bert_top("longformer")
    + """
    head.transform.*        lm_head.dense.*
    head.norm.*             lm_head.layer_norm.*
    lm_head.bias            lm_head.bias
    lm_head.weight          lm_head.decoder.weight
    """,
    layers=BERT_LAYERS,
    at="longformer.encoder.layer.{i}.",
    ignored=r"longformer\.pooler\..*|longformer\.embeddings\.position_ids|lm_head\.decoder\.bias|"
    r"longformer\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)_global\..*",
)
