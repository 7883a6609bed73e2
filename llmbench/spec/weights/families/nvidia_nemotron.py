"""Weight names of Nemotron, Nemotron-H and DeciLM, whose architecture the Puzzle search found (NVIDIA)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, PRE_NORMS, TOP, UP_DOWN
from llmbench.spec.weights.families.mamba import BACKBONE, STATE_SPACE

table(
    "nemotron_h",
    top=BACKBONE,
    layers=STATE_SPACE
    + """
    attention.q_proj.*      mixer.q_proj.*
    attention.k_proj.*      mixer.k_proj.*
    attention.v_proj.*      mixer.v_proj.*
    attention.o_proj.*      mixer.o_proj.*
    ffn_norm.*              norm.*
    ffn.up_proj.*           mixer.up_proj.*
    ffn.down_proj.*         mixer.down_proj.*
    ffn.router.weight       mixer.gate.weight
    ffn.router.correction   mixer.gate.e_score_correction_bias
    ffn.experts.up_proj     mixer.experts.{e}.up_proj.weight
    ffn.experts.down_proj   mixer.experts.{e}.down_proj.weight
    ffn.experts.up_proj     mixer.experts.up_proj
    ffn.experts.down_proj   mixer.experts.down_proj
    ffn.shared.up_proj.*    mixer.shared_experts.up_proj.*
    ffn.shared.down_proj.*  mixer.shared_experts.down_proj.*
    ffn.latent_in.*         mixer.fc1_latent_proj.*
    ffn.latent_out.*        mixer.fc2_latent_proj.*
    """,
    at="backbone.layers.{i}.",
)

table("nemotron", top=TOP, layers=ATTENTION + UP_DOWN + PRE_NORMS, partial_rotation=True)
