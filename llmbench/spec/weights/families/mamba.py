"""Weight names of Mamba 1 and 2, and rules for hybrid models with Mamba layers."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import GATED, TOP

BACKBONE = """
embedding.weight        backbone.embeddings.weight
embedding.weight        backbone.embedding.weight
final_norm.*            backbone.norm_f.*
lm_head.*               lm_head.*
"""

STATE_SPACE = """
mamba.A_log             mixer.A_log
mamba.D                 mixer.D
mamba.dt_bias           mixer.dt_bias
mamba.conv.*            mixer.conv1d.*
mamba.in_proj.*         mixer.in_proj.*
mamba.x_proj.*          mixer.x_proj.*
mamba.dt_proj.*         mixer.dt_proj.*
mamba.norm.*            mixer.norm.*
mamba.out_proj.*        mixer.out_proj.*
mixer_norm.*            norm.*
"""

MAMBA_BESIDE_ATTENTION = STATE_SPACE.replace(" mixer.", " mamba.").replace("mixer_norm.*            norm.*", "")

HYBRID_PRE_NORMS = """
mixer_norm.*            input_layernorm.*
ffn_norm.*              pre_ff_layernorm.*
"""

HYBRID_TOP = TOP + "final_norm.* model.final_layernorm.*"

HYBRID_GATED = GATED.replace(" mlp.", " feed_forward.")

table("mamba", "mamba2", top=BACKBONE, layers=STATE_SPACE, at="backbone.layers.{i}.")
