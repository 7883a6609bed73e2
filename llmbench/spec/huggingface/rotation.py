"""The rotary position encoding (RoPE) that a config states."""

from __future__ import annotations

from typing import Any, cast

from llmbench.spec.huggingface.config import Config
from llmbench.spec.position import Rope, RopeScaling

__all__ = ["expect_fixed_rotation", "expect_rope_type", "expect_stated_rotation", "rope"]


def rope(
    c: Config, *, head_dim: int, layer_type: str | None = None, interleaved: bool = False, partial: float = 1.0
) -> Rope:
    """Return the RoPE that the config states in `rope_scaling` or `rope_parameters`, and in keys beside them.

    - head_dim: number of dimensions per head.
    - layer_type: the layer type whose RoPE is returned, because `rope_parameters` may have one entry per layer type.
    - interleaved: RoPE rotates pairs of neighbouring dimensions.
    - partial: the rotated share of each head, if the config does not state a share.
    """
    stated = _stated_rotation(c, layer_type)
    usual = c.get("default_theta")  # of the model's class; an object in models whose layer types differ in their base
    usual = usual if isinstance(usual, (int, float)) else 10000.0
    theta = stated.number("rope_theta", c.first_number("rope_theta", "rotary_emb_base", default=usual))
    keys = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_percent")
    fraction = stated.number("partial_rotary_factor", c.first_number(*keys, default=partial))
    if not 0 <= fraction <= 1:
        raise c.error("partial_rotary_factor", f"must be between 0 and 1, not {fraction!r}")
    rotated = c.optional_size("rotary_dim") or int(head_dim * fraction)
    c.ignore("rope_interleave", "rope_interleaved", "max_rope_position", "original_max_position_embeddings")
    kind, alpha = _rope_kind(stated), stated.number("alpha", 0.0)
    if alpha and c.model_type.startswith("hunyuan_v1") and kind == "dynamic":
        # Hunyuan's class scales RoPE at every sequence length. This is the same as a larger base.
        theta, kind = theta * alpha ** (rotated / (rotated - 2)), "default"
    elif alpha:
        c.unbuildable(f"rope_scaling.alpha = {alpha} is supported only for the dynamic RoPE of Hunyuan")
    if rotated % 2 or (head_dim and not rotated):
        c.unbuildable(f"the config states RoPE for {rotated} dimensions per head, but RoPE rotates pairs of dimensions")
        rotated -= rotated % 2
    return Rope(
        theta=theta,
        rotary_dim=None if rotated == head_dim or rotated < 1 else rotated,
        interleaved=interleaved,
        scaling=_rope_scaling(c, kind, stated),
    )


def _stated_rotation(c: Config, layer_type: str | None) -> Config:
    """Return the object that states the RoPE of layers of one type.

    As in transformers, this is `rope_scaling`, unless it is missing or empty. Otherwise it is `rope_parameters`, or its
    entry for the layer type. The keys of this object have precedence over keys of the config with the same names.
    """
    scaling, parameters = c.table("rope_scaling"), c.table("rope_parameters")
    if scaling and parameters:
        c.unbuildable("the config has rope_scaling and rope_parameters, and transformers reads only one of them")
    if scaling or layer_type is None:
        return c.nested("rope_scaling", scaling) if scaling else c.nested("rope_parameters", parameters)
    if parameters and not any(isinstance(value, dict) for value in parameters.values()):
        c.unbuildable("rope_parameters states one RoPE, but the class of the model reads one for each layer type")
    all_types = c.nested("rope_parameters", parameters)
    if parameters.get(layer_type) is not None:
        return c.nested(f"rope_parameters.{layer_type}", all_types.table(layer_type))
    return all_types


def expect_stated_rotation(c: Config) -> None:
    """Mark the model as not buildable if its config has neither rope_parameters nor rope_scaling.

    Without these keys, the class of the model in transformers scales RoPE by default. Importers do not know this
    scaling.
    """
    if not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.unbuildable(
            "the config has no rope_parameters or rope_scaling, and the default scaling of transformers is unsupported"
        )


def expect_rope_type(c: Config) -> None:
    """Mark the model as not buildable if rope_scaling has the older key `type` but not `rope_type`.

    The class of the model in transformers ignores the older key.
    """
    scaling = c.table("rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        c.unbuildable("transformers ignores rope_scaling.type in this model: its class reads rope_scaling.rope_type")


def expect_fixed_rotation(c: Config) -> None:
    """Mark the model as not buildable if its config states something about RoPE that the class of the model ignores."""
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        if key in c and c.get(key):
            c.unbuildable(f"transformers ignores {key} in this model: its class has a fixed RoPE")


_ROPE_KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")


def _rope_kind(scaling: Config) -> str:
    kind = scaling.text("type", "default") if scaling.get("rope_type") is None else scaling.text("rope_type")
    return {"su": "longrope", "ntk": "dynamic", "mrope": "default"}.get(kind, kind)


def _rope_scaling(c: Config, kind: str, scaling: Config) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind not in _ROPE_KINDS:
        c.unbuildable(f"the RoPE scaling `{kind[:40]}` is unknown; known are {', '.join(_ROPE_KINDS)}")
        return None
    original = _original_length(c, kind, scaling)
    longest, factor = c.size_or_none("max_position_embeddings"), scaling.optional_number("factor")
    if factor is None and kind == "yarn" and original and longest:
        factor = longest / original
    return RopeScaling(
        kind=cast(Any, kind),
        factor=factor or 1.0,
        original_max_position_embeddings=original,
        low_freq_factor=scaling.optional_number("low_freq_factor"),
        high_freq_factor=scaling.optional_number("high_freq_factor"),
        beta_fast=scaling.optional_number("beta_fast"),
        beta_slow=scaling.optional_number("beta_slow"),
        mscale=scaling.optional_number("mscale"),
        mscale_all_dim=scaling.optional_number("mscale_all_dim"),
        attention_factor=scaling.optional_number("attention_factor"),
        truncate=scaling.flag("truncate", True),
        short_factor=scaling.numbers("short_factor"),
        long_factor=scaling.numbers("long_factor"),
    )


def _original_length(c: Config, kind: str, scaling: Config) -> int | None:
    """Return the sequence length of the training before RoPE was scaled. None: max_position_embeddings.

    A class of transformers ignores the key outside `scaling`, unless the class itself has it, as that of Phi-3.
    """
    key = "original_max_position_embeddings"
    own, outer = scaling.size_or_none(key), c.size_or_none(key)
    if c.declares(key):
        return outer or own if kind in ("llama3", "yarn", "longrope") else own
    return own if c.has_class or key in scaling else outer
