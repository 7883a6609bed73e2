"""Importers for Mamba 1 and 2, and functions for hybrid models with Mamba-2."""

from __future__ import annotations

import math
from typing import Literal

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import block, decoder, expect_silu, norm
from llmbench.spec.mixer import Mamba, Mamba2
from llmbench.spec.model import ModelSpec


@family("mamba")
def mamba(
    c: Config, *, inner_norms: Literal["none", "plain", "weighted"] = "none", norm_eps: float | None = None
) -> ModelSpec:
    """All layers of Mamba are state-space layers.

    - inner_norms: the kind of the norms on dt, B and C.
    - norm_eps: the epsilon of these norms. None: the epsilon of the model's norm.
    """
    hidden = c.size("hidden_size")
    mixer = Mamba(
        intermediate_size=c.size("intermediate_size", c.size("expand", 2) * hidden),
        state_size=c.size("state_size"),
        conv_kernel=c.size("conv_kernel"),
        time_step_rank=c.size_or_auto("time_step_rank", math.ceil(hidden / 16)),
        conv_bias=c.flag("use_conv_bias", True),
        proj_bias=c.flag("use_bias"),
        inner_norms=inner_norms,
        norm_eps=norm_eps,
    )
    expect_silu(c, "hidden_act")
    c.ignore(
        "n_layer",
        "d_model",
        "rms_norm",
        "expand",
        "mixer_rms_eps",
        "use_associative_scan",
        "intermediate_size",
    )
    return decoder(c, block(mixer, None), norm=norm(c))


@family("mamba2")
def mamba2(c: Config) -> ModelSpec:
    """All layers of Mamba-2 are state-space layers."""
    shortest, longest = time_step_limits(c)
    mixer = Mamba2(
        num_heads=c.size("num_heads"),
        head_dim=c.size("head_dim"),
        state_size=c.size("state_size"),
        n_groups=c.size("n_groups"),
        conv_kernel=c.size("conv_kernel"),
        chunk_size=c.size("chunk_size", 256),
        conv_bias=c.flag("use_conv_bias", True),
        proj_bias=c.flag("use_bias"),
        time_step_min=shortest,
        time_step_max=longest,
    )
    expect_silu(c, "hidden_act")
    c.ignore("expand", "time_step_rank", "rms_norm", "norm_before_gate")
    if mixer.intermediate_size != c.size("expand", 2) * c.size("hidden_size"):
        raise c.error(
            "num_heads", f"num_heads × head_dim is {mixer.intermediate_size}, but must equal expand × hidden_size"
        )
    return decoder(c, block(mixer, None), norm=norm(c))


def mamba2_mixer(c: Config, width: int, *, out_proj_bias: bool | None = None, gated_norm: bool = True) -> Mamba2:
    """Return the Mamba-2 mixer of a hybrid model. The config keys `mamba_*` state its dimensions.

    - width: the inner width of the mixer, which must equal the number of heads times the head width. If it does not,
      SpecError is raised.
    - out_proj_bias: the output projection has a bias. None: the config key `mamba_proj_bias` decides.
    - gated_norm: a gated norm stands before the output projection.
    """
    heads = c.size("mamba_n_heads")
    derived = c.get("mamba_d_head") in ("auto", None)
    head_dim = width // heads if derived else c.size("mamba_d_head")
    if heads * head_dim != width:
        raise c.error(
            "mamba_n_heads",
            f"mamba_n_heads × mamba_d_head is {heads * head_dim}, but the width of the mixer is {width}",
        )
    c.ignore("mamba_expand", "mamba_norm_before_gate", "mamba_use_mlp")
    expect_silu(c, "hidden_act")
    shortest, longest = time_step_limits(c)
    return Mamba2(
        num_heads=heads,
        head_dim=head_dim,
        state_size=c.size("mamba_d_state"),
        n_groups=c.size("mamba_n_groups"),
        conv_kernel=c.size("mamba_d_conv"),
        chunk_size=c.size("mamba_chunk_size", 256),
        conv_bias=c.flag("mamba_conv_bias", True),
        proj_bias=c.flag("mamba_proj_bias"),
        out_proj_bias=out_proj_bias,
        gated_norm=gated_norm,
        norm_before_gate=c.model_type == "falcon_h1" and c.flag("mamba_norm_before_gate", True),
        time_step_min=shortest,
        time_step_max=longest,
    )


def time_step_limits(c: Config) -> tuple[float, float | None]:
    """Return the smallest and the largest time step of Mamba-2.

    They are 0 and None if the config states no limits. None means that the time step has no upper limit.
    """
    limits = c.get("time_step_limit")
    if limits is None:
        return 0.0, None
    if not isinstance(limits, (list, tuple)) or len(limits) != 2:
        raise c.error("time_step_limit", "must be two numbers")
    bounds = [_UNBOUNDED if limit == {"__float__": "Infinity"} else limit for limit in limits]
    if any(type(bound) not in (int, float) for bound in bounds):
        raise c.error("time_step_limit", "must be two numbers")
    low, high = (min(bound, _UNBOUNDED) for bound in bounds)
    if not 0 <= low <= high:
        raise c.error("time_step_limit", "must be two numbers of at least 0, with the smaller one first")
    return float(low), None if high == _UNBOUNDED else float(high)


_UNBOUNDED = 10**6
"""A limit that no time step reaches. It replaces infinity, which transformers 5 writes as a JSON object."""
