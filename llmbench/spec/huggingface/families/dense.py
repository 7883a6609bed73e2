"""Dense decoders of LLaMA's line: RMSNorm, RoPE, gated feed-forward, grouped heads."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import (
    attention,
    block,
    decoder,
    dense,
    gated,
    head_dim_of,
    layer_types,
    lays_scaling_over,
    norm,
    rope,
)
from llmbench.spec.mixer import QKNorm, Temperature
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec, Placement
from llmbench.spec.position import Alibi, NoPositions, Rope

HEAD_NORM = QKNorm()

MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""What its class takes where a config says nothing of the rotation."""


@family("llama", "internlm2", "internlm3", "iquestcoder", "emu3_text_model", "Emu3", "Yi")
def llama(c: Config) -> ModelSpec:
    """LLaMA 1 to 3, and what was rewritten in its shape. `attention_bias` is on all four projections."""
    if c.model_type == "internlm2":
        c.ignore("bias")
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    c.ignore("max_window_layers")
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("baichuan")
def baichuan(c: Config) -> ModelSpec:
    """Baichuan 1 and 2: LLaMA with multi-head attention; the 13B sizes use ALiBi instead of RoPE."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"))
    positions = Alibi() if c.size("hidden_size") == 5120 else rope(c, head_dim=mixer.head_dim)
    if c.size("vocab_size") == 125696:
        c.inexact("a head whose rows have length one (Baichuan 2)")
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)


@family("mistral", "ministral3")
def mistral(c: Config) -> ModelSpec:
    """Mistral 7B and later: one window for all layers, where there is one. Ministral 3: queries grow with position."""
    if c.model_type == "ministral3" and not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.put("rope_parameters", MINISTRAL3_ROPE)
    rotation = c.table("rope_parameters") or c.table("rope_scaling")
    beta, every = rotation.get("llama_4_scaling_beta"), rotation.get("original_max_position_embeddings")
    temperature = None
    if c.model_type == "ministral3" and isinstance(beta, (int, float)) and type(every) is int:
        temperature = Temperature(scale=float(beta), every=every)
    mixer = attention(c, sliding_window=c.window(), temperature=temperature)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("qwen2")
def qwen2(c: Config) -> ModelSpec:
    """Qwen 1.5 to 2.5: biases on q, k and v only; a window in the layers past `max_window_layers` if it is used."""
    return windowed_after(c, qkv_bias=True)


@family("qwen3")
def qwen3(c: Config) -> ModelSpec:
    """Qwen3: no biases by default, a norm per head on queries and keys."""
    bias = c.flag("attention_bias")
    return windowed_after(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)


def windowed_after(c: Config, **fields: object) -> ModelSpec:
    """Qwen's way of windows: `use_sliding_window` gives the layers from `max_window_layers` on a window."""
    c.ignore("sliding_window")
    window = c.window() if c.flag("use_sliding_window") else None
    first = c.count("max_window_layers")
    count = c.size("num_hidden_layers")
    derived = ["sliding_attention" if window and i >= first else "full_attention" for i in range(min(count, 10_001))]
    full = attention(c, **fields)
    kinds = layer_types(c, derived)
    ffn = gated(c, bias=False)
    local = attention(c, sliding_window=window, **fields)
    layers = [
        ("local", block(local, ffn)) if kind == "sliding_attention" else ("block", block(full, ffn)) for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim))


@family("exaone4")
def exaone4(c: Config) -> ModelSpec:
    """EXAONE 4: norms on sublayer outputs, qk-norm, three local layers to one global without positions."""
    window = c.window()
    count = min(c.size("num_hidden_layers"), 10_001)
    pattern = c.get("sliding_window_pattern")
    spelled = isinstance(pattern, str)  # "LLLG": then the last layer is global wherever the pattern stands
    every = max(1, len(pattern) if spelled else pattern if isinstance(pattern, int) else 4)
    derived = [
        "sliding_attention" if window and (i + 1) % every and not (spelled and i == count - 1) else "full_attention"
        for i in range(count)
    ]
    kinds = layer_types(c, derived)
    ffn = gated(c, bias=False)
    layers = [
        ("local", block(attention(c, qk_norm=HEAD_NORM, sliding_window=window), ffn, "output"))
        if kind == "sliding_attention"
        else (
            "global",
            block(attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None), ffn, "output"),
        )
        for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("olmo")
def olmo(c: Config) -> ModelSpec:
    """OLMo 1: LayerNorms without weights or biases."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, clip_qkv=c.optional_number("clip_qkv"))
    plain = norm(c, "layernorm", weight=False, bias=False)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=plain, positions=rope(c, head_dim=mixer.head_dim))


@family("olmo2", "olmo3")
def olmo2(c: Config) -> ModelSpec:
    """OLMo 2 and 3: norms on sublayer outputs, qk-norm over the full width; OLMo 3 windows three layers of four."""
    bias = c.flag("attention_bias")
    window = c.window() if c.model_type == "olmo3" else None
    count = min(c.size("num_hidden_layers"), 10_001)
    derived = ["sliding_attention" if window and (i + 1) % 4 else "full_attention" for i in range(count)]
    kinds = layer_types(c, derived)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": QKNorm(over="full")}
    positions = rope(c, head_dim=head_dim_of(c), layer_type="full_attention")
    near = rope(c, head_dim=head_dim_of(c), layer_type="sliding_attention")
    if c.model_type == "olmo3" and not c.table("rope_parameters"):  # `rope_scaling` is that of full attention
        near = Rope(theta=near.theta, rotary_dim=near.rotary_dim)
        lays_scaling_over(c)
        if near.theta != 500000.0:
            c.inexact("OLMo 3's class takes rope_theta for full attention alone")
    ffn = gated(c, bias=False)
    local = attention(c, sliding_window=window, positions=None if near == positions else near, **common)
    layers = [
        ("local", block(local, ffn, "output"))
        if kind == "sliding_attention"
        else ("global" if window else "block", block(attention(c, **common), ffn, "output"))
        for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=positions)


@family("cohere")
def cohere(c: Config) -> ModelSpec:
    """Command-R: parallel block behind one LayerNorm without bias; Command-R+ norms each head of q and k."""
    bias = c.flag("attention_bias")
    qk_norm = QKNorm(over="per_head", norm="layernorm") if c.flag("use_qk_norm") else None
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm)
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    head = Head(scale=c.number("logit_scale", 0.0625))
    layer = block(mixer, gated(c, bias=False), "parallel")
    return decoder(c, layer, norm=norm(c, "layernorm", bias=False), positions=positions, head=head)


@family("cohere2")
def cohere2(c: Config) -> ModelSpec:
    """Command-R7B: three local layers to one global layer without positions."""
    bias = c.flag("attention_bias")
    window = c.window()
    every = c.size("sliding_window_pattern", 4)
    c.ignore(
        "_sliding_window_pattern",
        "order_of_interleaved_layers",
        "rotary_pct",
        "use_gated_activation",
        "use_parallel_block",
        "use_parallel_embedding",
        "use_embedding_sharing",
        "use_qk_norm",
        "position_embedding_type",
        "layer_switch",
        "attention_bias",
    )
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)])
    common = {"qkv_bias": bias, "output_bias": bias}
    ffn = gated(c, bias=False)
    layers = [
        ("local", block(attention(c, sliding_window=window, **common), ffn, "parallel"))
        if kind == "sliding_attention"
        else ("global", block(attention(c, positions=NoPositions(), **common), ffn, "parallel"))
        for kind in kinds
    ]
    positions = rope(c, head_dim=head_dim_of(c), interleaved=True)
    head = Head(scale=c.number("logit_scale", 0.0625))
    return decoder(c, layers, norm=norm(c, "layernorm", bias=False), positions=positions, head=head)


@family("glm", "glm4")
def glm(c: Config) -> ModelSpec:
    """GLM-4: biases on q, k, v by `attention_bias`, half of each head rotated; GLM-4-0414 has four norms a layer."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    placement: Placement = "sandwich" if c.model_type == "glm4" else "pre"
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True, partial=0.5)
    return decoder(c, block(mixer, gated(c, bias=False), placement), norm=norm(c), positions=positions)


@family("granite")
def granite(c: Config) -> ModelSpec:
    """Granite 3: LLaMA with multipliers on embedding, attention, residuals and logits."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    layer = block(mixer, gated(c), residual_scale=c.number("residual_multiplier", 1.0))
    return granite_model(c, layer, mixer.head_dim)


def granite_model(c: Config, layers: Layer | list[tuple[str, Layer]], head_dim: int) -> ModelSpec:
    """Granite's multipliers around its layers."""
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim),
        embedding=Embedding(scale=c.number("embedding_multiplier", 1.0)),
        head=Head(scale=1 / (c.number("logits_scaling", 1.0) or 1.0)),
    )


@family("phi3", "phi4_multimodal", "phi3_v", "phi4mm")
def phi3(c: Config) -> ModelSpec:
    """Phi-3 and Phi-4: LLaMA with fused projections, sometimes a window or a partial rotation."""
    if c.model_type in ("phi3_v", "phi4mm"):
        c.note(f"multimodal config `{c.model_type}`: the figures are of its text part, without adapters")
        c.ignore("embd_layer", "img_processor", "audio_processor", "vision_lora", "speech_lora")
    c.require("lm_head_bias", False)
    mixer = attention(c, sliding_window=c.window())
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("stablelm", "stablelm_epoch")
def stablelm(c: Config) -> ModelSpec:
    """StableLM: LayerNorm with biases, partial rotation, optional q/k/v biases, qk-norm and parallel block."""
    qk_norm = QKNorm(over="per_head", norm="layernorm") if c.flag("qk_layernorm") else None
    c.ignore("num_heads", "rotary_scaling_factor")
    mixer = attention(c, qkv_bias=c.flag("use_qkv_bias"), qk_norm=qk_norm)
    placement: Placement = "parallel" if c.flag("use_parallel_residual") else "pre"
    return decoder(
        c,
        block(mixer, gated(c, bias=False), placement),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.25),
    )


@family("starcoder2")
def starcoder2(c: Config) -> ModelSpec:
    """StarCoder2: GPT's biases, LayerNorm and two-matrix feed-forward with RoPE and grouped heads."""
    bias = c.flag("use_bias", True)
    window = c.window()
    mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=window)
    c.require("norm_type", "layer_norm")
    c.ignore("activation_function", "scale_attn_weights")
    c.require("mlp_type", "default")
    return decoder(
        c,
        block(mixer, dense(c, bias=bias)),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
    )
