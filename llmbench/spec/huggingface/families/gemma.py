"""Google's decoders: Gemma 1 to 4."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import attention, block, decoder, gated, layer_types, norm, rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, ModelSpec


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
    c.ignore("_sliding_window_pattern", "cache_implementation", "use_bidirectional_attention")
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)])
    norm_over_head = QKNorm()
    return _alternating(c, kinds, cap=c.optional_number("attn_logit_softcapping"), qk_norm=norm_over_head)


def _alternating(c: Config, kinds: list[str], *, cap: float | None, qk_norm: QKNorm | None = None) -> ModelSpec:
    bias = c.flag("attention_bias")
    scalar = c.optional_number("query_pre_attn_scalar")
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
    if local_theta is not None:
        local_positions = type(positions)(theta=local_theta)
    window = c.optional_size("sliding_window")
    ffn = gated(c, bias=False)
    layers = []
    for kind in kinds:
        if kind == "sliding_attention":
            own = None if local_positions == positions else local_positions
            mixer = attention(c, sliding_window=window, positions=own, **common)
            layers.append(("local", block(mixer, ffn, "sandwich")))
        else:
            layers.append(("global", block(attention(c, **common), ffn, "sandwich")))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=positions,
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
    )


@family("gemma4_text")
def gemma4(c: Config) -> ModelSpec:
    """Gemma 4: global layers have wider and fewer heads, and may take their values from their keys; a stored scale a
    layer. Experts and per-layer embeddings are not read yet."""
    if c.flag("enable_moe_block") or c.count("hidden_size_per_layer_input") or c.count("num_kv_shared_layers"):
        c.doubt("Gemma 4 with experts, per-layer embeddings or shared key-value layers is not read exactly")
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)])
    bias = c.flag("attention_bias")
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": QKNorm(), "value_norm": True, "scale": 1.0}
    global_dim = c.size("global_head_dim", attention(c).head_dim)
    keys_are_values = c.flag("attention_k_eq_v")
    global_kv = c.size("num_global_key_value_heads", c.size("num_key_value_heads")) if keys_are_values else None
    ffn = gated(c, bias=False)
    stored = (ExtraWeight(name="layer_scalar", shape=(1,), role="buffer"),)
    window = c.optional_size("sliding_window")
    c.ignore("num_experts", "top_k_experts", "expert_intermediate_size", "moe_intermediate_size", "use_double_wide_mlp",
             "vocab_size_per_layer_input", "use_bidirectional_attention", "num_global_key_value_heads")
    local_positions = rope(c, head_dim=attention(c).head_dim, layer_type="sliding_attention")
    layers = []
    for kind in kinds:
        if kind == "sliding_attention":
            mixer = attention(c, sliding_window=window, positions=local_positions, **common)
        else:
            mixer = attention(
                c, head_dim=global_dim, num_key_value_heads=global_kv, value_from_key=keys_are_values, **common
            )
        name = "local" if kind == "sliding_attention" else "global"
        layers.append((name, block(mixer, ffn, "sandwich", extra=stored)))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=global_dim, layer_type="full_attention"),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
    )
