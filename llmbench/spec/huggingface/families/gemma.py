"""Google's decoders: Gemma 1 to 3. Those with per-layer embeddings (3n, 4) are in gemma_edge.py."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import attention, block, decoder, gated, layer_types, lays_scaling_over, norm, rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, Head, ModelSpec, Placement
from llmbench.spec.position import Rope


@family("gemma")
def gemma(c: Config) -> ModelSpec:
    """Gemma 1: LLaMA with GEGLU, wide heads, norms by 1 + weight and a scaled embedding."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    return decoder(
        c,
        block(mixer, gated(c, bias=False)),
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
    )


@family("gemma2")
def gemma2(c: Config) -> ModelSpec:
    """Gemma 2: four norms a layer, soft caps, every other layer local."""
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(count)])
    return _alternating(c, kinds, cap=c.optional_number("attn_logit_softcapping"))


@family("gemma3_text")
def gemma3(c: Config) -> ModelSpec:
    """Gemma 3: five local layers to one global, qk-norm, another base for local layers' rotation."""
    every = c.size("sliding_window_pattern", 6)
    c.ignore("_sliding_window_pattern", "cache_implementation")
    c.require("use_bidirectional_attention", False)
    count = min(c.size("num_hidden_layers"), 10_001)
    derived = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    cap = c.optional_number("attn_logit_softcapping")
    if cap is not None:
        c.inexact("attn_logit_softcapping, which Gemma 3's class does not apply")
    return _alternating(c, layer_types(c, derived), cap=cap, qk_norm=QKNorm())


@family("vaultgemma")
def vaultgemma(c: Config) -> ModelSpec:
    """VaultGemma: Gemma 2 with norms only before its sublayers."""
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(count)])
    return _alternating(c, kinds, cap=c.optional_number("attn_logit_softcapping"), placement="pre")


def _alternating(
    c: Config,
    kinds: list[str],
    *,
    cap: float | None,
    qk_norm: QKNorm | None = None,
    placement: Placement = "sandwich",
) -> ModelSpec:
    bias = c.flag("attention_bias")
    scalar = c.optional_number("query_pre_attn_scalar")
    if scalar is not None and scalar < 0:
        raise c.error("query_pre_attn_scalar", f"must not be negative, not {scalar:g}")
    common = {
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": qk_norm,
        "logit_soft_cap": cap,
        "scale": None if not scalar else scalar**-0.5,
    }
    head_dim = attention(c).head_dim
    local_theta = c.optional_number("rope_local_base_freq")
    positions = rope(c, head_dim=head_dim, layer_type="full_attention")
    local_positions = rope(c, head_dim=head_dim, layer_type="sliding_attention")
    if c.model_type == "gemma3_text" and not c.table("rope_parameters"):  # the other keys speak of global layers
        local_positions = Rope(theta=10000.0 if local_theta is None else local_theta)
        lays_scaling_over(c)
    window = c.window()
    ffn = gated(c, bias=False)
    layers = []
    for kind in kinds:
        if kind == "sliding_attention":
            own = None if local_positions == positions else local_positions
            mixer = attention(c, sliding_window=window, positions=own, **common)
            layers.append(("local", block(mixer, ffn, placement)))
        else:
            layers.append(("global", block(attention(c, **common), ffn, placement)))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=positions,
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
    )
