"""Text parts that exist only inside a vision or audio model: Qwen-VL, GLM-V, OCR models, Llama 3.2 Vision."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.dense import HEAD_NORM, windowed_after
from llmbench.spec.huggingface.parts import attention, block, decoder, gated, norm, rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec


@family("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text")
def qwen2_vl(c: Config) -> ModelSpec:
    """Qwen2-VL, Qwen2.5-VL and the thinker of Qwen2.5-Omni: Qwen2 whose RoPE turns in time, height and
    width."""
    return windowed_after(c, qkv_bias=True)


@family("qwen3_vl_text")
def qwen3_vl(c: Config) -> ModelSpec:
    """Qwen3-VL: Qwen3 without windows."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)
    positions = rope(c, head_dim=mixer.head_dim)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)


@family("glm4v_text", "glm_ocr_text")
def glm4v(c: Config) -> ModelSpec:
    """GLM-4.1V (always with biases on q, k and v) and GLM-OCR (never): norms before and after each
    sublayer."""
    c.ignore("attention_bias")
    mixer = attention(c, qkv_bias=c.model_type == "glm4v_text")
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c, bias=False), "sandwich"), norm=norm(c), positions=positions)


@family("paddleocr_vl_text")
def paddleocr_vl(c: Config) -> ModelSpec:
    """PaddleOCR-VL: ERNIE 4.5's dense decoder; `use_bias` is on all projections."""
    bias = c.flag("use_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    layer = block(mixer, gated(c, bias=bias))
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("hunyuan_vl_text")
def hunyuan_vl(c: Config) -> ModelSpec:
    """Hunyuan-VL: LLaMA with a norm per head on queries and keys."""
    bias = c.flag("attention_bias")
    c.ignore("use_qk_norm")
    c.require("use_qk_norm", True)
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(after_rope=True))
    positions = rope(c, head_dim=mixer.head_dim)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)


@family("mllama_text_model")
def mllama(c: Config) -> ModelSpec:
    """Llama 3.2 Vision's text part: eight more rows in the token table than in the head, and layers whose
    attention reads image tokens instead of text."""
    hidden, vocab = c.size("hidden_size"), c.size("vocab_size")
    own = attention(c)
    kv_width, width = own.num_key_value_heads * own.head_dim, own.num_attention_heads * own.head_dim
    ffn = gated(c, bias=False)
    given = c.entries("cross_attention_layers")
    crossing = {3, 8, 13, 18, 23, 28, 33, 38} if given is None else set(given)
    if crossing:
        c.doubt("cross-attention to image tokens: its scores and its keys and values are not counted")
    extra = tuple(
        ExtraWeight(name=f"cross_attention.{name}", shape=shape, role="matmul", component="attention")
        for name, shape in (
            ("q_proj", (width, hidden)),
            ("k_proj", (kv_width, hidden)),
            ("v_proj", (kv_width, hidden)),
            ("o_proj", (hidden, width)),
        )
    )
    extra += tuple(
        ExtraWeight(name=f"cross_attention.{name}", shape=(own.head_dim,), role="vector", component="attention_norms")
        for name in ("q_norm", "k_norm")
    )
    extra += tuple(ExtraWeight(name=name, shape=(1,), role="vector") for name in ("attention_gate", "ffn_gate"))
    # The norm before the cross-attention, which as an extra weight has none.
    before = ExtraWeight(name="mixer_norm", shape=(hidden,), role="vector", component="norms")
    cross = Layer(ffn=ffn, extra=(before, *extra))
    layers: list[tuple[str, Layer]] = [
        ("cross", cross) if index in crossing else ("block", block(own, ffn))
        for index in range(min(c.size("num_hidden_layers"), 10_001))
    ]
    rows = ExtraWeight(name="more_embedding", shape=(8, hidden), role="table", component="embedding")
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=own.head_dim),
        vocab_size=vocab,
        extra=(rows,),
    )
