"""Weight names of JetMoE."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import PRE_NORMS, TOP

table(
    "jetmoe",
    top=TOP,
    layers=PRE_NORMS
    + """
    attention.router.weight     self_attention.experts.router.layer.weight
    attention.experts.q_proj    self_attention.experts.input_linear.weight
    attention.experts.o_proj    self_attention.experts.output_linear.weight
    attention.expert_bias       self_attention.experts.bias
    attention.k_proj.weight     self_attention.kv_proj.weight           first.half
    attention.v_proj.weight     self_attention.kv_proj.weight           second.half
    ffn.router.weight           mlp.router.layer.weight
    ffn.experts.gate_proj       mlp.input_linear.weight                 first.half.experts
    ffn.experts.up_proj         mlp.input_linear.weight                 second.half.experts
    ffn.experts.down_proj       mlp.output_linear.weight
    ffn.output_bias             mlp.bias
    """,
)
