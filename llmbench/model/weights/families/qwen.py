"""Weight names of Qwen 2 to 3.5 (Alibaba): dense models, and models with experts or delta nets."""

from __future__ import annotations

from torch import Tensor

from llmbench.model.weights.families import table
from llmbench.model.weights.families.common import ATTENTION, EXPERTS, GATED, PRE_NORMS, QK_NORM, SHARED_EXPERT, TOP
from llmbench.model.weights.rules import TRANSFORMS, Target, Transform
from llmbench.spec.mixer import GatedDeltaNet


def _delta(target: Target) -> GatedDeltaNet:
    assert isinstance(target.mixer, GatedDeltaNet)
    return target.mixer


def _by_key_head(which: int, *, gates: bool) -> Transform:
    """Return a transform that cuts part `which` from a fused projection of Qwen3-Next.

    The rows of the projection are ordered by key head.

    - `gates`: false for in_proj_qkvz. Each key head then has four parts: its query, its key, the values of its value
      heads, and the output gates of its value heads. True for in_proj_ba. Each key head then has two parts: the rates
      and the decays of its value heads.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        mixer = _delta(target)
        group = mixer.num_value_heads // mixer.num_key_heads
        values = group * mixer.value_head_dim
        widths = (group, group) if gates else (mixer.key_head_dim, mixer.key_head_dim, values, values)
        return x.unflatten(0, (mixer.num_key_heads, -1)).split(widths, dim=1)[which].flatten(0, 1)

    return cut


def _in_turn(which: int) -> Transform:
    """Return a transform that cuts q, k or v (`which` is 0, 1 or 2) from a fused projection of Qwen3.5.

    The projection has all queries, then all keys, then all values.
    """

    def cut(x: Tensor, target: Target) -> Tensor:
        mixer = _delta(target)
        keys = mixer.num_key_heads * mixer.key_head_dim
        return x.split((keys, keys, mixer.num_value_heads * mixer.value_head_dim), dim=0)[which]

    return cut


for _index, _letter in enumerate("qkvg"):
    TRANSFORMS[f"delta.{_letter}"] = _by_key_head(_index, gates=False)

for _index, _letter in enumerate("ba"):
    TRANSFORMS[f"delta.{_letter}"] = _by_key_head(_index, gates=True)

for _index, _letter in enumerate("qkv"):
    TRANSFORMS[f"delta.plain.{_letter}"] = _in_turn(_index)

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
    partial_rotation=True,
)

table("qwen2", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table("qwen3", top=TOP, layers=ATTENTION + QK_NORM + GATED + PRE_NORMS)

table("qwen2_moe", top=TOP, layers=ATTENTION + EXPERTS + SHARED_EXPERT + GATED + PRE_NORMS)

table("qwen3_moe", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + GATED + PRE_NORMS)
