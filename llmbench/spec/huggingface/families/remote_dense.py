"""Dense decoders whose code lives on the Hub beside their weights; all are LLaMA's or GPT's kin.

Their classes' defaults are not in defaults.json: a key that is missing takes the default written here.
"""

from __future__ import annotations

from typing import Any

from llmbench.errors import UnsupportedError
from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    dense,
    gated,
    head_dim_of,
    norm,
    rope,
)
from llmbench.spec.mixer import Attention, QKNorm
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec
from llmbench.spec.position import Alibi, LearnedPositions, Positions


@family("aquila", "internlm", "skywork", "orion", "minicpm", "exaone")
def llama_kin(c: Config) -> ModelSpec:
    """Aquila and Skywork are LLaMA; InternLM 1 has biases in attention by `bias`, Orion LayerNorms, MiniCPM a
    tied embedding and factors on it, on what layers add and on the logits, EXAONE 3 other names for the same keys."""
    kind = c.model_type
    for old, new in (("num_layers", "num_hidden_layers"), ("activation_function", "hidden_act")):
        if old in c and new not in c:
            c.put(new, c.get(old))
    if "tie_word_embeddings" not in c:
        c.put("tie_word_embeddings", kind == "minicpm")
        if kind == "exaone":
            c.doubt("whether the head is tied: tie_word_embeddings is missing")
    bias = c.flag("bias", True) if kind == "internlm" else c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    c.ignore("rotary", "max_window_layers", "mup_denominator")
    hidden, depth = c.size("hidden_size"), c.optional_number("scale_depth")
    added = 1.0 if depth is None else depth / c.size("num_hidden_layers") ** 0.5
    if c.table("sparse_config"):
        c.doubt("sparse attention (sparse_config) is counted as full")
    return decoder(
        c,
        block(mixer, gated(c, bias=False), residual_scale=added),
        norm=norm(c, "layernorm" if kind == "orion" else "rmsnorm"),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.number("scale_emb", 1.0)),
        head=Head(scale=c.number("dim_model_base", float(hidden)) / hidden),
    )


@family("qwen")
def qwen(c: Config) -> ModelSpec:
    """Qwen 1: biases on q, k, v; `intermediate_size` counts gate and up together; heads of `kv_channels`."""
    heads = c.size("num_attention_heads")
    head_dim = c.size("kv_channels", max(1, c.size("hidden_size") // heads))
    bias = not c.flag("no_bias", True)
    c.ignore("bf16", "fp16", "fp32", "emb_dropout_prob", "attn_dropout_prob", "scale_attn_weights")
    c.ignore("use_cache_kernel", "use_cache_quantization")
    if c.flag("use_dynamic_ntk", True) or c.flag("use_logn_attn", True):
        c.inexact("a rotation and queries that change beyond seq_length")
    c.ignore("softmax_in_fp32", "onnx_safe", "params_dtype", "pos_emb", "tokenizer_type")
    if c.get("visual"):
        c.note("multimodal config `qwen`: the figures are of its text part")
    mixer = attention(c, num_key_value_heads=heads, head_dim=head_dim, qkv_bias=True, output_bias=bias)
    ffn = gated(c, bias=bias, width=max(1, c.size("intermediate_size") // 2))
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=head_dim))


@family("chatglm")
def chatglm(c: Config) -> ModelSpec:
    """ChatGLM 2 and 3, GLM-4-9B: grouped heads of `kv_channels`, q/k/v biases, a padded vocabulary."""
    if "padded_vocab_size" not in c:
        raise UnsupportedError("the first ChatGLM-6B (its config has no padded_vocab_size) is not supported")
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    head_dim = c.size("kv_channels", max(1, hidden // heads))
    grouped = c.size("multi_query_group_num", 1) if c.flag("multi_query_attention") else heads
    c.ignore("multi_query_group_num")
    c.put("num_hidden_layers", c.size("num_layers"))
    bias = c.flag("add_bias_linear")
    mixer = attention(
        c,
        num_key_value_heads=grouped,
        head_dim=head_dim,
        qkv_bias=bias or c.flag("add_qkv_bias"),
        output_bias=bias,
    )
    c.ignore("vocab_size", "apply_query_key_layer_scaling")
    c.ignore("fp32_residual_connection", "original_rope", "prefix_projection", "quantization_bit")
    c.put("rope_theta", 10000.0 * c.number("rope_ratio", 1.0))
    behind = c.flag("apply_residual_connection_post_layernorm")
    kind = "rmsnorm" if c.flag("rmsnorm", True) else "layernorm"
    ffn = Gated(intermediate_size=c.size("ffn_hidden_size"), activation="silu", bias=bias)
    return decoder(
        c,
        block(mixer, ffn, residual_from_norm=behind),
        norm=norm(c, kind),
        positions=rope(c, head_dim=head_dim, interleaved=True, partial=0.5),
        final_norm=c.flag("post_layer_norm", True),
        vocab_size=c.size("padded_vocab_size"),
    )


@family("deci", "nemotron-nas")
def deci(c: Config) -> ModelSpec:
    """DeciLM and NVIDIA's Puzzle models: LLaMA with each layer's own heads and feed-forward, or none."""
    count, heads = c.size("num_hidden_layers"), c.size("num_attention_heads")
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    c.ignore("num_key_value_heads", "intermediate_size", "num_key_value_heads_per_layer")
    positions = rope(c, head_dim=head_dim_of(c))
    blocks = c.entries("block_configs", count, nested=True)
    layers: list[tuple[str, Layer]] = []
    if blocks is None:
        uniform = c.optional_size("num_key_value_heads") or heads
        for kv_heads in c.entries("num_key_value_heads_per_layer", count) or [uniform] * count:
            own_heads = attention(c, num_key_value_heads=_whole(c, kv_heads), qkv_bias=bias, output_bias=bias)
            layers.append(("block", block(own_heads, gated(c, bias=mlp_bias))))
        return decoder(c, layers, norm=norm(c), positions=positions)
    for given in blocks:
        own, ffn = _part(c, given, "attention"), _part(c, given, "ffn")
        mixer: Attention | None = None
        if not own.get("no_op"):
            group = own.get("n_heads_in_group")
            kv_heads = own.get("num_key_value_heads") if group is None else heads // _whole(c, group)
            mixer = attention(c, num_key_value_heads=_whole(c, kv_heads), qkv_bias=bias, output_bias=bias)
        feed = None if ffn.get("no_op") else gated(c, bias=mlp_bias, width=_puzzle_width(c, ffn))
        layers.append(("block", block(mixer, feed)))
    return decoder(c, layers, norm=norm(c), positions=positions)


_PLAIN_BLOCK = {
    "no_op", "replace_with_linear", "n_heads_in_group", "num_key_value_heads", "ffn_mult",
    "intermediate_size", "hidden_act", "unshifted_sink", "use_prefill_window_in_sink_attention",
}  # fmt: skip


def _part(c: Config, given: Any, key: str) -> dict[str, Any]:
    """One sublayer of a block config; refused or doubted where it is more than heads or a feed-forward."""
    part = given.get(key) if isinstance(given, dict) else None
    if not isinstance(part, dict):
        raise c.error("block_configs", f"must hold objects with `{key}`")
    if part.get("replace_with_linear"):
        raise UnsupportedError("a layer replaced by one matrix (replace_with_linear) is not supported")
    for name, value in part.items():
        if value and name not in _PLAIN_BLOCK:
            c.doubt(f"block_configs: {key}.{name} is not understood")
    return part


def _puzzle_width(c: Config, ffn: dict[str, Any]) -> int:
    """`ffn_mult` is of two thirds of the hidden size, rounded up to a multiple of 256."""
    factor = ffn.get("ffn_mult")
    if factor is None:
        return _whole(c, ffn.get("intermediate_size"))
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1000:
        raise c.error("block_configs", "has a feed-forward whose ffn_mult is not a number")
    return -(-int(2 * factor * c.size("hidden_size") / 3) // 256) * 256


def _whole(c: Config, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 2**31:
        raise c.error("of a layer", "has a head count or width that is not a whole number of at least 1")
    return value


@family("openelm")
def openelm(c: Config) -> ModelSpec:
    """OpenELM: heads and feed-forward grow from layer to layer; qk-norm; the head is the embedding."""
    hidden, count = c.size("model_dim"), c.size("num_transformer_layers")
    c.put("hidden_size", hidden)
    c.put("num_hidden_layers", count)
    heads = c.entries("num_query_heads", count) or []
    kv_heads = c.entries("num_kv_heads", count) or []
    factors = c.entries("ffn_multipliers", count) or []
    if not (heads and kv_heads and factors):
        raise c.error("num_query_heads", "num_kv_heads and ffn_multipliers must be lists of one a layer")
    head_dim, divisor = c.size("head_dim"), c.size("ffn_dim_divisor", 256)
    c.require("normalization_layer_name", "rms_norm")
    c.ignore("num_gqa_groups", "qkv_multipliers", "max_context_length", "rope_max_length")
    c.put("rope_theta", c.number("rope_freq_constant", 10000.0))
    qk_norm = QKNorm() if c.flag("normalize_qk_projections") else None
    with_glu, act = c.flag("ffn_with_glu", True), activation(c, "activation_fn_name")
    layers: list[tuple[str, Layer]] = []
    for own, kv, factor in zip(heads, kv_heads, factors, strict=True):
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1000:
            raise c.error("ffn_multipliers", "must hold numbers")
        width = max(divisor, int(factor * hidden + divisor / 2) // divisor * divisor)
        width += divisor if width < 0.9 * factor * hidden else 0
        mixer = attention(
            c,
            num_attention_heads=_whole(c, own),
            num_key_value_heads=_whole(c, kv),
            head_dim=head_dim,
            qk_norm=qk_norm,
        )
        ffn = (Gated if with_glu else Dense)(intermediate_size=width, activation=act)
        layers.append(("block", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim),
        tie_word_embeddings=c.flag("share_input_output_layers", True),
    )


@family("jais", "btlm")
def jais(c: Config) -> ModelSpec:
    """Jais and BTLM: GPT-2's blocks and biases with SwiGLU and ALiBi, under maximal-update multipliers."""
    names = (("n_embd", "hidden_size"), ("n_head", "num_attention_heads"), ("n_layer", "num_hidden_layers"))
    for old, new in names:
        c.put(new, c.size(old))
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    c.require("add_cross_attention", False)
    c.ignore("scale_attn_weights", "n_positions")
    factors = ("embeddings_scale", "width_scale", "mup_embeddings_scale", "mup_output_alpha", "mup_width_scale")
    others = ("scale_qk_dot_by_d", "mup_scale_qk_dot_by_d", "alibi_scaling")
    if any(c.get(key) not in (None, 1) for key in factors) or any(map(c.get, others)):
        c.inexact("the multipliers of a maximal-update model, or a scaled ALiBi")
    c.ignore(*factors, *others)
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
