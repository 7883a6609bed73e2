"""Importers for ChatGLM and GLM-4 to GLM-5 by Zhipu AI: dense models, MoE models, and models with latent attention."""

from __future__ import annotations

from llmbench.errors import UnsupportedError
from llmbench.spec.ffn import Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    block,
    decoder,
    gated,
    latent_attention,
    matrix,
    mixture_layers,
    norm,
    vector,
)
from llmbench.spec.huggingface.families.deepseek import (
    deepseek_ffn,
    deepseek_model,
    deepseek_v32,
    indexed_attention,
    shared_indexers,
)
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers, sparse_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import KimiDelta, Mixer
from llmbench.spec.model import HyperConnections, Layer, ModelSpec, Placement
from llmbench.spec.position import NoPositions


@family("chatglm")
def chatglm(c: Config) -> ModelSpec:
    """ChatGLM 2, ChatGLM 3 and GLM-4-9B have grouped-query attention, biases on q, k and v, and a padded vocabulary.

    The config key `kv_channels` is the head width.
    """
    if "padded_vocab_size" not in c:
        raise UnsupportedError(
            "config has no padded_vocab_size: the first ChatGLM-6B is not supported, only ChatGLM 2 and later"
        )
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


@family("glm", "glm4")
def glm(c: Config) -> ModelSpec:
    """GLM-4 has RoPE on half of each head. If `attention_bias` is true, q, k and v have biases.

    GLM-4-0414 has four norms per layer.
    """
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    placement: Placement = "sandwich" if c.model_type == "glm4" else "pre"
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True, partial=0.5)
    return decoder(c, block(mixer, gated(c, bias=False), placement), norm=norm(c), positions=positions)


@family("glm4v_text", "glm_ocr_text")
def glm4v(c: Config) -> ModelSpec:
    """The text parts of GLM-4.1V and GLM-OCR have four norms per layer. Only GLM-4.1V has biases on q, k and v."""
    c.ignore("attention_bias")
    mixer = attention(c, qkv_bias=c.model_type == "glm4v_text")
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c, bias=False), "sandwich"), norm=norm(c), positions=positions)


@family("glm4_moe", "glm4v_moe_text")
def glm4_moe(c: Config) -> ModelSpec:
    """GLM-4.5 has DeepSeek's experts and RoPE on half of each head. If `attention_bias` is true, q, k and v have
    biases."""
    mixer = attention(
        c,
        qkv_bias=c.flag("attention_bias"),
        qk_norm=HEAD_NORM if c.model_type == "glm4_moe" and c.flag("use_qk_norm") else None,
    )
    return deepseek_model(c, mixer, positions_dim=mixer.head_dim, partial=0.5)


@family("glm4_moe_lite")
def glm4_moe_lite(c: Config) -> ModelSpec:
    """GLM-4.7-Flash has the architecture of DeepSeek-V3. By default, only its first layer is dense."""
    mixer = latent_attention(c)
    turned = mixer.qk_rope_head_dim
    return deepseek_model(c, mixer, positions_dim=turned, interleaved=c.flag("rope_interleave", True), first=1)


@family("glm_moe_dsa")
def glm_moe_dsa(c: Config) -> ModelSpec:
    """GLM-5 has the architecture of DeepSeek-V3.2. Several layers can use the keys that one indexer selects."""
    return deepseek_v32(c, reused=shared_indexers(c), interleaved=True)


@family("glm5_next_text")
def glm5_next(c: Config) -> ModelSpec:
    """GLM-5.3-Flash has Kimi's delta attention, indexed latent attention in every fourth layer, and several streams.

    An indexer scores groups of tokens instead of single tokens.
    """
    count, hidden = num_layers(c), c.size("hidden_size")
    kinds = layer_types(c, ["linear_attention" if index % 4 != 3 else "indexed_attention" for index in range(count)])
    group, width = c.size("index_kpool"), c.size("index_head_dim")
    c.doubt(f"llmbench counts an indexer score per key and query, but the indexer scores groups of {group} keys")
    c.ignore("index_kpool_always_select_tail swiglu_limit hc_eps hc_sinkhorn_iters linear_lower_bound head_dim")
    pooling = (
        matrix("attention.indexer.pool_gate", "attention_extra", width, hidden),
        vector("attention.indexer.pool_positions", "attention_extra", group, width),
    )
    delta = KimiDelta(
        num_heads=c.size("linear_num_heads"),
        head_dim=c.size("linear_head_dim"),
        conv_kernel=c.size("linear_conv_kernel_dim"),
    )
    layers: list[tuple[str, Layer]] = []
    ffn, dense = deepseek_ffn(c), gated(c, bias=False)
    sparse = sparse_layers(c, lambda index: index >= 3)
    for kind, shared, has_experts in zip(kinds, shared_indexers(c), sparse, strict=True):
        linear = kind == "linear_attention"
        mixer: Mixer = delta if linear else indexed_attention(c, shared=shared)
        name = "linear" if linear else "shared" if shared else "indexed"
        extra = () if linear or shared else pooling
        layers += mixture_layers([(name, mixer)], [has_experts], ffn, dense, extra=extra)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=NoPositions(),
        hyper_connections=HyperConnections(streams=c.size("hc_mult"), learned_head=False),
    )
