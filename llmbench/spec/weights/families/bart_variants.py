"""Weight names of encoder-decoders that change a part of BART."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.bart import BART_AT, BART_LAYERS, UNUSED_CROSS_ATTENTION
from llmbench.spec.weights.families.common import in_encoder

table(
    "bigbird_pegasus",
    top="""
    embedding.weight                    model.shared.weight
    embedding.weight                    model.decoder.embed_tokens.weight
    position_embedding.weight           model.decoder.embed_positions.weight
    final_norm.*                        model.decoder.layernorm_embedding.*
    lm_head.*                           lm_head.*
    fixed_bias                          final_logits_bias                       flat
    encoder.position_embedding.weight   model.encoder.embed_positions.weight
    encoder.final_norm.*                model.encoder.layernorm_embedding.*
    """
    + in_encoder(
        """
        attention.q_proj.*          self_attn.self.query.*
        attention.k_proj.*          self_attn.self.key.*
        attention.v_proj.*          self_attn.self.value.*
        attention.o_proj.*          self_attn.output.*
        mixer_norm.*                self_attn_layer_norm.*
        ffn.up_proj.*               fc1.*
        ffn.down_proj.*             fc2.*
        ffn_norm.*                  final_layer_norm.*
        """,
        "model.encoder.layers.{i}.",
    ),
    layers=BART_LAYERS,
    at=BART_AT,
    ignored=UNUSED_CROSS_ATTENTION,
)

# Only global tokens use the global projections of LED and Longformer.
table(
    "led",
    top="""
    embedding.weight                    led.shared.weight
    position_embedding.weight           led.decoder.embed_positions.weight
    embedding_norm.*                    led.decoder.layernorm_embedding.*
    lm_head.*                           lm_head.*
    fixed_bias                          final_logits_bias                       flat
    encoder.position_embedding.weight   led.encoder.embed_positions.weight
    encoder.embedding_norm.*            led.encoder.layernorm_embedding.*
    """
    + in_encoder(
        """
        attention.q_proj.*          self_attn.longformer_self_attn.query.*
        attention.k_proj.*          self_attn.longformer_self_attn.key.*
        attention.v_proj.*          self_attn.longformer_self_attn.value.*
        attention.o_proj.*          self_attn.output.*
        mixer_norm.*                self_attn_layer_norm.*
        ffn.up_proj.*               fc1.*
        ffn.down_proj.*             fc2.*
        ffn_norm.*                  final_layer_norm.*
        """,
        "led.encoder.layers.{i}.",
    ),
    layers=BART_LAYERS,
    at="led.decoder.layers.{i}.",
    ignored=r"led\.encoder\.layers\.\d+\.self_attn\.longformer_self_attn\.(query|key|value)_global\..*",
)
