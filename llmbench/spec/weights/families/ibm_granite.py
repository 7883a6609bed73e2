"""Weight names of Granite 3, Granite 4 and Bamba (IBM)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP
from llmbench.spec.weights.families.mamba import HYBRID_GATED, HYBRID_PRE_NORMS, HYBRID_TOP, MAMBA_BESIDE_ATTENTION

table(
    "bamba",
    top=HYBRID_TOP,
    layers=MAMBA_BESIDE_ATTENTION + ATTENTION + HYBRID_GATED + HYBRID_PRE_NORMS,
    partial_rotation=True,
)

table(
    "granitemoehybrid",
    top=TOP,
    layers=MAMBA_BESIDE_ATTENTION
    + ATTENTION
    + PRE_NORMS
    + """
    ffn.router.weight       block_sparse_moe.router.layer.weight
    ffn.experts.gate_proj   block_sparse_moe.input_linear.weight    first.half.experts
    ffn.experts.up_proj     block_sparse_moe.input_linear.weight    second.half.experts
    ffn.experts.down_proj   block_sparse_moe.output_linear.weight
    ffn.shared.gate_proj.*  shared_mlp.input_linear.*               first.half
    ffn.shared.up_proj.*    shared_mlp.input_linear.*               second.half
    ffn.shared.down_proj.*  shared_mlp.output_linear.*
    ffn.gate_proj.*         shared_mlp.input_linear.*               first.half
    ffn.up_proj.*           shared_mlp.input_linear.*               second.half
    ffn.down_proj.*         shared_mlp.output_linear.*
    """,
)

table("granite", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table("granite_swa", top=TOP, layers=ATTENTION + GATED + PRE_NORMS + "attention.sinks self_attn.sinks")

table(
    "granitemoe",
    "granitemoeshared",
    "granitemoe_swa",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    ffn.router.weight       block_sparse_moe.router.layer.weight
    ffn.experts.gate_proj   block_sparse_moe.input_linear.weight    first.half.experts
    ffn.experts.up_proj     block_sparse_moe.input_linear.weight    second.half.experts
    ffn.experts.down_proj   block_sparse_moe.output_linear.weight
    ffn.router.weight       block_sparse_moe.router.weight
    ffn.experts.gate_proj   block_sparse_moe.experts.gate_up_proj   first.half.experts
    ffn.experts.up_proj     block_sparse_moe.experts.gate_up_proj   second.half.experts
    ffn.experts.down_proj   block_sparse_moe.experts.down_proj
    ffn.shared.gate_proj.*  shared_mlp.input_linear.*               first.half
    ffn.shared.up_proj.*    shared_mlp.input_linear.*               second.half
    ffn.shared.down_proj.*  shared_mlp.output_linear.*
    """,
)
