"""Importer for Jamba by AI21 Labs."""

from __future__ import annotations

import math

from llmbench.spec.ffn import FFN, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, expect_silu, gated, moe, norm
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.mixer import Mamba, Mixer
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions


@family("jamba")
def jamba(c: Config) -> ModelSpec:
    """Jamba has seven Mamba layers for each attention layer, and no position encoding. Every second layer has
    experts."""
    hidden = c.size("hidden_size")
    ssm = Mamba(
        intermediate_size=c.size("mamba_expand") * hidden,
        state_size=c.size("mamba_d_state"),
        conv_kernel=c.size("mamba_d_conv"),
        time_step_rank=c.size_or_auto("mamba_dt_rank", math.ceil(hidden / 16)),
        conv_bias=c.flag("mamba_conv_bias", True),
        proj_bias=c.flag("mamba_proj_bias"),
        inner_norms="weighted",
    )
    c.ignore("sliding_window", "use_associative_scan")
    expect_silu(c, "hidden_act")
    full = attention(c)
    count = num_layers(c)
    period, offset = c.size("attn_layer_period"), c.count("attn_layer_offset")
    kinds = c.entries("layers_block_type", count) or c.entries("layer_types", count)
    expert_period, expert_offset = c.size("expert_layer_period"), c.count("expert_layer_offset")
    experts: FFN | None = None
    if c.size("num_experts") > 1:
        experts = moe(c, width="intermediate_size", router=Router())
    layers = []
    for index in range(count):
        attends = index % period == offset % period if kinds is None else "attention" in str(kinds[index])
        sparse = experts is not None and index % expert_period == expert_offset % expert_period
        mixer: Mixer = full if attends else ssm
        name = f"{'attention' if attends else 'mamba'}_{'moe' if sparse else 'dense'}"
        layers.append((name, block(mixer, experts if sparse else gated(c, bias=False))))
    return decoder(c, layers, norm=norm(c), positions=NoPositions())
