"""Importers for Phi 1 to 4, BitNet and BioGPT by Microsoft."""

from __future__ import annotations

from msgspec.structs import replace

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, gated, moe, norm
from llmbench.spec.huggingface.families.meta import fairseq_decoder
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Head, ModelSpec
from llmbench.spec.position import LearnedPositions


@family("phi", "phi-msft")
def phi(c: Config) -> ModelSpec:
    """Phi-1, Phi-1.5 and Phi-2 have attention and feed-forward in parallel after one norm.

    All projections and the head have biases.
    """
    if c.model_type == "phi-msft":  # the oldest configs of Phi-1.5 and Phi-2 use GPT-2's names of keys
        names = (("n_embd", "hidden_size"), ("n_head", "num_attention_heads"), ("n_layer", "num_hidden_layers"))
        for alias, key in (*names, ("n_positions", "max_position_embeddings")):
            c.put(key, c.size(alias))
        c.put("num_key_value_heads", c.size("n_head_kv", c.get("num_attention_heads")))
        c.put("intermediate_size", c.size("n_inner", 4 * c.size("hidden_size")))
        c.ignore("fused_dense", "flash_rotary", "img_processor")
    qk_norm = QKNorm(norm="layernorm", bias=True) if c.flag("qk_layernorm") else None
    mixer = attention(c, qkv_bias=True, output_bias=True, qk_norm=qk_norm)
    return decoder(
        c,
        block(mixer, dense(c, bias=True, keys=("hidden_act", "activation_function")), "parallel"),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.5),
        head=Head(bias=True),
    )


@family("phi3", "phi4_multimodal", "phi3_v", "phi4mm")
def phi3(c: Config) -> ModelSpec:
    """Phi-3 and Phi-4 have Llama's architecture with fused projections. Some models have a sliding window or partial
    RoPE."""
    if c.model_type != "phi3":  # multimodal
        c.ignore("embd_layer", "img_processor", "audio_processor", "vision_lora", "speech_lora")
    c.require("lm_head_bias", False)
    mixer = attention(c, sliding_window=c.window())
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("phimoe")
def phimoe(c: Config) -> ModelSpec:
    """Phi-3.5-MoE has 2 of 16 experts, LayerNorms, and biases on attention and head."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=c.window())
    if c.size("num_experts_per_tok") != 2:
        c.unbuildable("num_experts_per_tok is not 2, but Phi-3.5-MoE selects two experts in transformers")
    positions = rope(c, head_dim=mixer.head_dim)
    if positions.scaling is not None:
        c.unbuildable(
            "rope_scaling: the attention factors of Phi-3.5-MoE for short and long contexts are not supported"
        )
    router = Router(scores="sparsemixer", jitter=c.number("router_jitter_noise", 0.01))
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=router)
    return decoder(
        c,
        block(mixer, ffn),
        norm=norm(c, "layernorm"),
        positions=positions,
        head=Head(bias=c.flag("lm_head_bias")),
    )


@family("bitnet")
def bitnet(c: Config) -> ModelSpec:
    """BitNet b1.58 has an additional norm before the last matrix of each sublayer.

    The parameter count does not depend on the number of bits per weight.
    """
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, output_norm=True)
    if mixer.num_attention_heads * mixer.head_dim != c.size("hidden_size"):
        c.doubt(
            "the norm in BitNet's attention has hidden_size weights, but num_attention_heads × head_dim input channels"
        )
    ffn = replace(gated(c, bias=False), inner_norm=True)
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("biogpt")
def biogpt(c: Config) -> ModelSpec:
    """BioGPT is fairseq's decoder with learned positions."""
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings") + 2, offset=2)
    return fairseq_decoder(c, positions, width=c.size("intermediate_size"))
