"""State spaces, linear attention, and their hybrids with attention."""

from __future__ import annotations

from torch import Tensor

from llmbench.model.weights.families import table
from llmbench.model.weights.families.llama import ATTENTION, GATED, PRE_NORMS, QK_NORM, TOP
from llmbench.model.weights.families.mixture import EXPERTS, MIXTRAL_EXPERTS, SHARED_EXPERT
from llmbench.model.weights.rules import TRANSFORMS, At, Transform
from llmbench.spec.mixer import GatedDeltaNet


def _delta(at: At) -> GatedDeltaNet:
    assert isinstance(at.mixer, GatedDeltaNet)
    return at.mixer


def _by_key_head(which: int, *, gates: bool) -> Transform:
    """Key head by key head (Qwen3-Next): its query, its key, the values and the output gates of its value heads; or
    (`gates`) their rates and decays."""

    def cut(x: Tensor, at: At) -> Tensor:
        mixer = _delta(at)
        group = mixer.num_value_heads // mixer.num_key_heads
        values = group * mixer.value_head_dim
        widths = (group, group) if gates else (mixer.key_head_dim, mixer.key_head_dim, values, values)
        return x.unflatten(0, (mixer.num_key_heads, -1)).split(widths, dim=1)[which].flatten(0, 1)

    return cut


def _in_turn(which: int) -> Transform:
    """All queries, all keys, all values (Qwen3.5)."""

    def cut(x: Tensor, at: At) -> Tensor:
        mixer = _delta(at)
        keys = mixer.num_key_heads * mixer.key_head_dim
        return x.split((keys, keys, mixer.num_value_heads * mixer.value_head_dim), dim=0)[which]

    return cut


for _index, _letter in enumerate("qkvg"):
    TRANSFORMS[f"delta.{_letter}"] = _by_key_head(_index, gates=False)
for _index, _letter in enumerate("ba"):
    TRANSFORMS[f"delta.{_letter}"] = _by_key_head(_index, gates=True)
for _index, _letter in enumerate("qkv"):
    TRANSFORMS[f"delta.plain.{_letter}"] = _in_turn(_index)

_BACKBONE = """
embedding.weight        backbone.embeddings.weight
embedding.weight        backbone.embedding.weight
final_norm.*            backbone.norm_f.*
lm_head.*               lm_head.*
"""

_STATE_SPACE = """
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

_BESIDE_ATTENTION = _STATE_SPACE.replace(" mixer.", " mamba.").replace("mixer_norm.*            norm.*", "")

_PRE_NORMS = """
mixer_norm.*            input_layernorm.*
ffn_norm.*              pre_ff_layernorm.*
"""

_TOP = TOP + "final_norm.* model.final_layernorm.*"

_GATED = GATED.replace(" mlp.", " feed_forward.")

table("mamba", "falcon_mamba", "mamba2", top=_BACKBONE, layers=_STATE_SPACE, at="backbone.layers.{i}.")
table(
    "nemotron_h",
    top=_BACKBONE,
    layers=_STATE_SPACE
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
table(
    "jamba",
    top=_TOP,
    layers=_BESIDE_ATTENTION
    + ATTENTION
    + _GATED
    + _PRE_NORMS
    + """
    mamba.dt_norm.*         mamba.dt_layernorm.*
    mamba.b_norm.*          mamba.b_layernorm.*
    mamba.c_norm.*          mamba.c_layernorm.*
    ffn.router.weight       feed_forward.router.weight
    """
    + EXPERTS.replace(" mlp.", " feed_forward."),
)
table("bamba", top=_TOP, layers=_BESIDE_ATTENTION + ATTENTION + _GATED + _PRE_NORMS)
table(
    "falcon_h1",
    top=TOP + "final_norm.* model.final_layernorm.*",
    layers=_BESIDE_ATTENTION + ATTENTION + _GATED + _PRE_NORMS,
)
table(
    "minimax",
    top=TOP,
    layers=ATTENTION
    + MIXTRAL_EXPERTS
    + PRE_NORMS
    + """
    linear_attention.qkv_proj.*     self_attn.qkv_proj.*
    linear_attention.g_proj.*       self_attn.output_gate.*
    linear_attention.norm.*         self_attn.norm.*
    linear_attention.out_proj.*     self_attn.out_proj.*
    """,
    ignored=r"model\.layers\.\d+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)",
)
table(
    "granitemoehybrid",
    top=TOP,
    layers=_BESIDE_ATTENTION
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
table(
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + SHARED_EXPERT
    + GATED
    + PRE_NORMS
    + """
    delta_net.q_proj.weight     linear_attn.in_proj_qkvz.weight     delta.q
    delta_net.k_proj.weight     linear_attn.in_proj_qkvz.weight     delta.k
    delta_net.v_proj.weight     linear_attn.in_proj_qkvz.weight     delta.v
    delta_net.g_proj.weight     linear_attn.in_proj_qkvz.weight     delta.g
    delta_net.b_proj.weight     linear_attn.in_proj_ba.weight       delta.b
    delta_net.a_proj.weight     linear_attn.in_proj_ba.weight       delta.a
    delta_net.q_proj.weight     linear_attn.in_proj_qkv.weight      delta.plain.q
    delta_net.k_proj.weight     linear_attn.in_proj_qkv.weight      delta.plain.k
    delta_net.v_proj.weight     linear_attn.in_proj_qkv.weight      delta.plain.v
    delta_net.g_proj.weight     linear_attn.in_proj_z.weight
    delta_net.b_proj.weight     linear_attn.in_proj_b.weight
    delta_net.a_proj.weight     linear_attn.in_proj_a.weight
    delta_net.conv.*            linear_attn.conv1d.*
    delta_net.A_log             linear_attn.A_log
    delta_net.dt_bias           linear_attn.dt_bias
    delta_net.norm.*            linear_attn.norm.*
    delta_net.out_proj.*        linear_attn.out_proj.*
    """,
    ignored=r"mtp\..*",
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
)
