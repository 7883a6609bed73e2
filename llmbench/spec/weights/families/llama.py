"""Weight names of Llama 1 to 4 and Llama 3.2 Vision (Meta), and rules for other families with the same decoder."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

table("llama", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table(
    "diffllama",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + """
    attention.difference.q1 self_attn.lambda_q1
    attention.difference.k1 self_attn.lambda_k1
    attention.difference.q2 self_attn.lambda_q2
    attention.difference.k2 self_attn.lambda_k2
    """,
)

table(
    "llama4_text",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    ffn.router.weight       feed_forward.router.weight
    ffn.experts.gate_proj   feed_forward.experts.gate_up_proj   t first.half.experts
    ffn.experts.up_proj     feed_forward.experts.gate_up_proj   t second.half.experts
    ffn.experts.down_proj   feed_forward.experts.down_proj      t
    ffn.shared.gate_proj.*  feed_forward.shared_expert.gate_proj.*
    ffn.shared.up_proj.*    feed_forward.shared_expert.up_proj.*
    ffn.shared.down_proj.*  feed_forward.shared_expert.down_proj.*
    ffn.gate_proj.*         feed_forward.gate_proj.*
    ffn.up_proj.*           feed_forward.up_proj.*
    ffn.down_proj.*         feed_forward.down_proj.*
    """,
)
