"""Importers for Jais 1 and 2 by Inception, and BTLM by Cerebras. BTLM has the architecture of Jais 1."""

from __future__ import annotations

from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arcee import arcee
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Alibi, LearnedPositions, Positions


@family("jais", "btlm")
def jais(c: Config) -> ModelSpec:
    """Jais and BTLM are GPT-2 with SwiGLU, ALiBi and the constant factors of maximal-update parametrisation (muP)."""
    names = (("n_embd", "hidden_size"), ("n_head", "num_attention_heads"), ("n_layer", "num_hidden_layers"))
    for alias, key in names:
        c.put(key, c.size(alias))
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    c.require("add_cross_attention", False)
    c.ignore("scale_attn_weights", "n_positions")
    factors = ("embeddings_scale", "width_scale", "mup_embeddings_scale", "mup_output_alpha", "mup_width_scale")
    switches = ("scale_qk_dot_by_d", "mup_scale_qk_dot_by_d", "alibi_scaling")
    scaled = [key for key in factors if c.get(key) not in (None, 1)] + [key for key in switches if c.get(key)]
    if scaled:
        c.unbuildable(f"constant factors (muP) and scaled ALiBi are not supported: {', '.join(scaled)}")
    c.ignore(*factors, *switches)
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=True, output_bias=True)
    width = c.size("n_inner", 4 * hidden)
    ffn: Dense | Gated
    if c.text("activation_function") == "swiglu":
        ffn = Gated(intermediate_size=width, activation="silu", bias=True)
    else:
        ffn = dense(c, bias=True, width=width, keys=("activation_function",))
    positions: Positions = Alibi()
    if c.text("position_embedding_type", "learned") != "alibi":
        positions = LearnedPositions(num_positions=c.size("n_positions"))
    return decoder(
        c,
        block(mixer, ffn),
        norm=norm(c, "layernorm"),
        positions=positions,
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
    )


@family("jais2")
def jais2(c: Config) -> ModelSpec:
    """Jais 2 has the architecture of AFM, but with LayerNorms."""
    return arcee(c, norm_kind="layernorm")
