"""Importers for Falcon, Falcon-Mamba and Falcon-H1 by TII."""

from __future__ import annotations

import msgspec

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, gated, norm
from llmbench.spec.huggingface.families.mamba import mamba, mamba2_mixer
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Parallel
from llmbench.spec.model import Embedding, Head, ModelSpec, Placement
from llmbench.spec.position import Alibi


@family("falcon", "RefinedWeb", "RefinedWebModel")
def falcon(c: Config) -> ModelSpec:
    """Falcon has attention and feed-forward in parallel.

    Falcon-7B has one norm per layer and one key-value head. Falcon-40B and Falcon-180B have two norms per layer and
    grouped-query attention.
    """
    for alias, key in (
        ("n_embed", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
    ):
        if alias in c:  # the config is older than the class of Falcon in transformers
            c.put(key, c.get(alias))
    if c.model_type != "falcon" and "tie_word_embeddings" not in c:
        c.put("tie_word_embeddings", True)
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    new = c.flag("new_decoder_architecture", c.model_type == "RefinedWeb")
    bias = c.flag("bias")
    grouped = c.optional_size("num_kv_heads") or c.optional_size("n_head_kv") or heads
    one = c.flag("multi_query", True)
    kv_heads = grouped if new else 1 if one else heads
    parallel = c.flag("parallel_attn", True)
    norms_each = c.optional_size("num_ln_in_parallel_attn")
    placement: Placement = "pre"
    if new:
        placement = "parallel" if norms_each == 1 else "parallel_two"
    elif parallel:
        placement = "parallel"
    mixer = attention(c, num_key_value_heads=kv_heads, head_dim=hidden // heads, qkv_bias=bias, output_bias=bias)
    c.ignore("ff_factor")
    if c.flag("apply_residual_connection_post_layernorm"):
        c.unbuildable("apply_residual_connection_post_layernorm is true, but transformers ignores it in Falcon")
    if c.flag("alibi"):
        c.ignore("rope_parameters", "rope_theta", "rope_scaling")
    return decoder(
        c,
        block(mixer, dense(c, bias=bias, width=c.size("ffn_hidden_size", 4 * hidden), keys=("activation",)), placement),
        norm=norm(c, "layernorm"),
        positions=Alibi(scaled=True, rounded=True) if c.flag("alibi") else rope(c, head_dim=mixer.head_dim),
    )


@family("falcon_mamba")
def falcon_mamba(c: Config) -> ModelSpec:
    """Falcon-Mamba is Mamba with norms on dt, B and C. These norms have no weights."""
    return mamba(c, inner_norms="plain", norm_eps=c.number("mixer_rms_eps", 1e-6))


@family("falcon_h1")
def falcon_h1(c: Config) -> ModelSpec:
    """In each layer of Falcon-H1, attention and Mamba-2 run in parallel. Constant factors multiply many of its
    tensors."""
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias)
    longer = c.number("key_multiplier", 1.0)
    if longer != 1.0:  # a factor on the keys has the same effect as a factor on the scores
        full = msgspec.structs.replace(full, scale=full.head_dim**-0.5 * longer)
    width = c.optional_size("mamba_d_ssm") or c.size("mamba_expand") * c.size("hidden_size")
    ssm = mamba2_mixer(c, width, out_proj_bias=c.flag("projectors_bias"), gated_norm=c.flag("mamba_rms_norm"))
    ssm = msgspec.structs.replace(ssm, projection_scales=_multipliers(c, "ssm_multipliers", 5))
    c.ignore("layers_block_type", "layer_types", "attn_layer_indices", "mlp_expansion_factor", "time_step_rank")
    gate, out = _multipliers(c, "mlp_multipliers", 2) or (1.0, 1.0)
    mixer = Parallel(
        branches=(ssm, full),
        input_scales=_unless_one(c.number("ssm_in_multiplier", 1.0), c.number("attention_in_multiplier", 1.0)),
        output_scales=_unless_one(c.number("ssm_out_multiplier", 1.0), c.number("attention_out_multiplier", 1.0)),
    )
    return decoder(
        c,
        block(mixer, msgspec.structs.replace(gated(c), gate_scale=gate, output_scale=out)),
        norm=norm(c),
        positions=rope(c, head_dim=full.head_dim),
        embedding=Embedding(scale=c.number("embedding_multiplier", 1.0)),
        head=Head(scale=c.number("lm_head_multiplier", 1.0)),
    )


def _multipliers(c: Config, key: str, count: int) -> tuple[float, ...]:
    """Return the `count` factors in the list under `key`. If all of them are 1, return an empty tuple."""
    factors = c.entries(key) or []
    if factors and (len(factors) != count or not all(isinstance(x, (int, float)) and abs(x) < 1e30 for x in factors)):
        raise c.error(key, f"must be a list of {count} numbers")
    return _unless_one(*map(float, factors))


def _unless_one(*factors: float) -> tuple[float, ...]:
    """Return the factors. If all of them are 1, return an empty tuple."""
    return () if all(factor == 1.0 for factor in factors) else factors
