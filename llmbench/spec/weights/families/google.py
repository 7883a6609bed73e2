"""Weight names of Gemma 1 to 4, RecurrentGemma, T5 and its successors, and T5Gemma (Google)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    GATED,
    PRE_NORMS,
    QK_NORM,
    SANDWICH_NORMS,
    TOP,
    in_encoder,
)

_T5_ATTENTION = """
attention.q_proj.*          layer.0.SelfAttention.q.*
attention.k_proj.*          layer.0.SelfAttention.k.*
attention.v_proj.*          layer.0.SelfAttention.v.*
attention.o_proj.*          layer.0.SelfAttention.o.*
attention.relative_bias     layer.0.SelfAttention.relative_attention_bias.weight
mixer_norm.*                layer.0.layer_norm.*
"""


def _t5_ffn(place: int) -> str:
    """Return the rules of T5's feed-forward.

    `place` is its index in the layer: 1 in an encoder layer, 2 in a decoder layer.

    The feed-forward is gated if the file has wi_0. Files of Switch Transformers also have experts.
    """
    at = f"layer.{place}"
    return f"""
    ffn.gate_proj.*         {at}.DenseReluDense.wi_0.*
    ffn.up_proj.*           {at}.DenseReluDense.wi_1.*
    ffn.up_proj.*           {at}.DenseReluDense.wi.*
    ffn.down_proj.*         {at}.DenseReluDense.wo.*
    ffn.up_proj.*           {at}.mlp.wi.*
    ffn.down_proj.*         {at}.mlp.wo.*
    ffn.router.*            {at}.mlp.router.classifier.*
    ffn.experts.up_proj     {at}.mlp.experts.expert_{{e}}.wi.weight
    ffn.experts.down_proj   {at}.mlp.experts.expert_{{e}}.wo.weight
    ffn_norm.*              {at}.layer_norm.*
    """


table(
    "t5",
    "mt5",
    "umt5",
    "switch_transformers",
    "longt5",
    top="""
    embedding.weight        shared.weight
    embedding.weight        decoder.embed_tokens.weight
    encoder.final_norm.*    encoder.final_layer_norm.*
    final_norm.*            decoder.final_layer_norm.*
    lm_head.*               lm_head.*
    lm_head.weight          shared.weight
    """
    + in_encoder(
        _T5_ATTENTION + _T5_ATTENTION.replace(".SelfAttention.", ".LocalSelfAttention.") + _t5_ffn(1),
        "encoder.block.{i}.",
    ),
    layers=_T5_ATTENTION
    + """
    cross_attention.q_proj.*    layer.1.EncDecAttention.q.*
    cross_attention.k_proj.*    layer.1.EncDecAttention.k.*
    cross_attention.v_proj.*    layer.1.EncDecAttention.v.*
    cross_attention.o_proj.*    layer.1.EncDecAttention.o.*
    cross_norm.*                layer.1.layer_norm.*
    """
    + _t5_ffn(2),
    at="decoder.block.{i}.",
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)

table(
    "recurrent_gemma",
    top="""
    embedding.weight        model.embed_tokens.weight
    final_norm.*            model.final_norm.*
    lm_head.*               lm_head.*
    """,
    layers="""
    recurrent.linear_y.*        temporal_block.linear_y.*
    recurrent.linear_x.*        temporal_block.linear_x.*
    recurrent.linear_out.*      temporal_block.linear_out.*
    recurrent.conv.*            temporal_block.conv_1d.*
    recurrent.input_gate.*      temporal_block.rg_lru.input_gate_*
    recurrent.recurrent_gate.*  temporal_block.rg_lru.recurrent_gate_*
    recurrent.recurrent_param   temporal_block.rg_lru.recurrent_param
    attention.q_proj.*          temporal_block.q_proj.*
    attention.k_proj.*          temporal_block.k_proj.*
    attention.v_proj.*          temporal_block.v_proj.*
    attention.o_proj.*          temporal_block.o_proj.*
    ffn.gate_proj.*             mlp_block.gate_proj.*
    ffn.up_proj.*               mlp_block.up_proj.*
    ffn.down_proj.*             mlp_block.down_proj.*
    mixer_norm.*                temporal_pre_norm.*
    ffn_norm.*                  channel_pre_norm.*
    """,
    partial_rotation=True,
)

table("gemma", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table("gemma2", "gemma3_text", top=TOP, layers=ATTENTION + QK_NORM + GATED + SANDWICH_NORMS)

table(
    "vaultgemma",
    top=TOP,
    layers=ATTENTION
    + GATED
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              pre_feedforward_layernorm.*
    """,
)

table(
    "gemma4_text",
    "gemma4_unified_text",
    top=TOP
    + """
    per_layer.table.weight      model.embed_tokens_per_layer.weight
    per_layer.projection.*      model.per_layer_model_projection.*
    per_layer.norm.*            model.per_layer_projection_norm.*
    """,
    layers=ATTENTION
    + QK_NORM
    + GATED
    + SANDWICH_NORMS
    + """
    output_scale.scale              layer_scalar
    per_layer_input.gate_proj.*     per_layer_input_gate.*
    per_layer_input.out_proj.*      per_layer_projection.*
    per_layer_input.norm.*          post_per_layer_input_norm.*
    ffn.router.weight               router.proj.weight
    ffn.router.scale                router.scale
    ffn.router.expert_scale         router.per_expert_scale
    ffn.experts.gate_proj           experts.gate_up_proj            first.half.experts
    ffn.experts.up_proj             experts.gate_up_proj            second.half.experts
    ffn.experts.down_proj           experts.down_proj
    ffn.beside.gate_proj.*          mlp.gate_proj.*
    ffn.beside.up_proj.*            mlp.up_proj.*
    ffn.beside.down_proj.*          mlp.down_proj.*
    ffn.experts_norm.*              pre_feedforward_layernorm_2.*
    ffn.post_beside_norm.*          post_feedforward_layernorm_1.*
    ffn.post_experts_norm.*         post_feedforward_layernorm_2.*
    """,
)
