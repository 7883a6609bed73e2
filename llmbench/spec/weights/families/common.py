"""Weight names that many families share. Most of the names come from Llama."""

from __future__ import annotations

TOP = """
embedding.weight        model.embed_tokens.weight
final_norm.*            model.norm.*
lm_head.*               lm_head.*
"""

ATTENTION = """
attention.q_proj.*      self_attn.q_proj.*
attention.k_proj.*      self_attn.k_proj.*
attention.v_proj.*      self_attn.v_proj.*
attention.o_proj.*      self_attn.o_proj.*
"""

QK_NORM = """
attention.q_norm.*      self_attn.q_norm.*
attention.k_norm.*      self_attn.k_norm.*
"""

GATED = """
ffn.gate_proj.*         mlp.gate_proj.*
ffn.up_proj.*           mlp.up_proj.*
ffn.down_proj.*         mlp.down_proj.*
"""

FUSED_GATED = """
ffn.gate_proj.*         mlp.gate_up_proj.*              first.half
ffn.up_proj.*           mlp.gate_up_proj.*              second.half
ffn.down_proj.*         mlp.down_proj.*
"""

UP_DOWN = """
ffn.up_proj.*           mlp.up_proj.*
ffn.down_proj.*         mlp.down_proj.*
"""

PRE_NORMS = """
mixer_norm.*            input_layernorm.*
ffn_norm.*              post_attention_layernorm.*
"""

OUTPUT_NORMS = """
post_mixer_norm.*       post_attention_layernorm.*
post_ffn_norm.*         post_feedforward_layernorm.*
"""

SANDWICH_NORMS = """
mixer_norm.*            input_layernorm.*
post_mixer_norm.*       post_attention_layernorm.*
ffn_norm.*              pre_feedforward_layernorm.*
post_ffn_norm.*         post_feedforward_layernorm.*
"""

PARALLEL_NORM = """
norm.*                  input_layernorm.*
"""

EXPERTS = """
ffn.experts.gate_proj       mlp.experts.{e}.gate_proj.weight
ffn.experts.up_proj         mlp.experts.{e}.up_proj.weight
ffn.experts.down_proj       mlp.experts.{e}.down_proj.weight
ffn.experts.gate_proj       mlp.experts.gate_up_proj                    first.half.experts
ffn.experts.up_proj         mlp.experts.gate_up_proj                    second.half.experts
ffn.experts.down_proj       mlp.experts.down_proj
ffn.router.weight           mlp.gate.weight
"""

MIXTRAL_EXPERTS = """
ffn.experts.gate_proj       block_sparse_moe.experts.{e}.w1.weight
ffn.experts.up_proj         block_sparse_moe.experts.{e}.w3.weight
ffn.experts.down_proj       block_sparse_moe.experts.{e}.w2.weight
ffn.experts.gate_proj       mlp.experts.gate_up_proj                    first.half.experts
ffn.experts.up_proj         mlp.experts.gate_up_proj                    second.half.experts
ffn.experts.down_proj       mlp.experts.down_proj
ffn.router.weight           block_sparse_moe.gate.weight
ffn.router.weight           mlp.gate.weight
ffn.router.correction       block_sparse_moe.e_score_correction_bias
ffn.router.correction       mlp.e_score_correction_bias
"""

SHARED_EXPERT = """
ffn.shared.gate_proj.*      mlp.shared_expert.gate_proj.*
ffn.shared.up_proj.*        mlp.shared_expert.up_proj.*
ffn.shared.down_proj.*      mlp.shared_expert.down_proj.*
ffn.shared_gate.weight      mlp.shared_expert_gate.weight
"""

SHARED_EXPERTS = """
ffn.shared.gate_proj.*      mlp.shared_experts.gate_proj.*
ffn.shared.up_proj.*        mlp.shared_experts.up_proj.*
ffn.shared.down_proj.*      mlp.shared_experts.down_proj.*
"""

CORRECTION = """
ffn.router.correction       mlp.gate.e_score_correction_bias
ffn.router.correction       mlp.e_score_correction_bias
"""


def in_encoder(layers: str, at: str) -> str:
    """Convert the rules of a decoder layer to rules of an encoder layer, whose names in the files begin with `at`."""
    lines = (line.split() for line in layers.strip().splitlines())
    return "\n".join(f"encoder.layers.{{i}}.{words[0]} {at}{words[1]}" for words in lines if words)
