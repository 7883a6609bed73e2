"""Weight names of RWKV-4."""

from __future__ import annotations

from llmbench.spec.weights.families import table

table(
    "rwkv",
    top="""
    embedding.weight            rwkv.embeddings.weight
    embedding_norm.*            rwkv.blocks.0.pre_ln.*
    final_norm.*                rwkv.ln_out.*
    lm_head.*                   head.*
    """,
    layers="""
    mixer_norm.*                ln1.*
    ffn_norm.*                  ln2.*
    rwkv.time_mix_key           attention.time_mix_key              flat
    rwkv.time_mix_value         attention.time_mix_value            flat
    rwkv.time_mix_receptance    attention.time_mix_receptance       flat
    rwkv.time_decay             attention.time_decay
    rwkv.time_first             attention.time_first
    rwkv.k_proj.*               attention.key.*
    rwkv.v_proj.*               attention.value.*
    rwkv.r_proj.*               attention.receptance.*
    rwkv.out_proj.*             attention.output.*
    ffn.time_mix_key            feed_forward.time_mix_key           flat
    ffn.time_mix_receptance     feed_forward.time_mix_receptance    flat
    ffn.up_proj.*               feed_forward.key.*
    ffn.receptance.*            feed_forward.receptance.*
    ffn.down_proj.*             feed_forward.value.*
    """,
    at="rwkv.blocks.{i}.",
)
