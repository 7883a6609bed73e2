"""Weight names of BART and of the encoder-decoders with its architecture, and of their decoders without an encoder."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import in_encoder
from llmbench.spec.weights.families.meta import FAIRSEQ_LAYERS

_CROSS_ATTENTION = """
cross_attention.q_proj.*    encoder_attn.q_proj.*
cross_attention.k_proj.*    encoder_attn.k_proj.*
cross_attention.v_proj.*    encoder_attn.v_proj.*
cross_attention.o_proj.*    encoder_attn.out_proj.*
cross_norm.*                encoder_attn_layer_norm.*
"""

_TOP = """
embedding.weight                    model.shared.weight
embedding.weight                    model.decoder.embed_tokens.weight
position_embedding.weight           model.decoder.embed_positions.weight
embedding_norm.*                    model.decoder.layernorm_embedding.*
final_norm.*                        model.decoder.layer_norm.*
lm_head.*                           lm_head.*
fixed_bias                          final_logits_bias                       flat
encoder.embedding.weight            model.encoder.embed_tokens.weight
encoder.position_embedding.weight   model.encoder.embed_positions.weight
encoder.embedding_norm.*            model.encoder.layernorm_embedding.*
encoder.final_norm.*                model.encoder.layer_norm.*
""" + in_encoder(FAIRSEQ_LAYERS, "model.encoder.layers.{i}.")

_COMPUTED_POSITIONS = """
position_embedding.weight           -           sinusoids
encoder.position_embedding.weight   -           sinusoids
"""

BART_LAYERS = FAIRSEQ_LAYERS + _CROSS_ATTENTION
BART_AT = "model.decoder.layers.{i}."

# The decoder without its encoder (BartForCausalLM) keeps the weights of its cross-attention, but does not use them.
UNUSED_CROSS_ATTENTION = r"model\.decoder\.layers\.\d+\.encoder_attn(_layer_norm)?\..*"

table(
    "bart",
    "blenderbot",
    "blenderbot-small",
    "m2m_100",
    "mbart",
    "mvp",
    "pegasus",
    "plbart",
    top=_TOP,
    layers=BART_LAYERS,
    at=BART_AT,
    ignored=UNUSED_CROSS_ATTENTION,
)

table("marian", top=_TOP + _COMPUTED_POSITIONS, layers=BART_LAYERS, at=BART_AT, ignored=UNUSED_CROSS_ATTENTION)

table(
    "trocr",
    top=_TOP.replace(" lm_head.*", " output_projection.*"),
    layers=BART_LAYERS,
    at=BART_AT,
    ignored=UNUSED_CROSS_ATTENTION,
)
