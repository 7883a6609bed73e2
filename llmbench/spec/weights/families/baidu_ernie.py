"""Weight names of ERNIE 1 to 4.5, and of the language model in PaddleOCR-VL (Baidu)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.bert import bert_table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS, GATED, PRE_NORMS, SHARED_EXPERTS, TOP

bert_table("ernie", "ernie")

table("ernie4_5", "paddleocr_vl_text", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table(
    "ernie4_5_moe",
    top=TOP,
    layers=ATTENTION
    + EXPERTS
    + SHARED_EXPERTS
    + GATED
    + PRE_NORMS
    + """
    ffn.router.correction   mlp.moe_statics.e_score_correction_bias     flat
    """,
)
