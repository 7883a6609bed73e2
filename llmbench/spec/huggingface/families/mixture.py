"""Mixtures of experts with ordinary attention."""

from __future__ import annotations

from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import (
    arrange,
    local_layers,
    num_layers,
    shared_experts,
)
from llmbench.spec.huggingface.families.dense import HEAD_NORM
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    layer_types,
    moe,
    norm,
    rope,
    states_rotation,
)
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Head, ModelSpec, Placement

TOPK_SOFTMAX = Router(scores="softmax_topk")


def divisible(c: Config) -> None:
    """Refuse a hidden width that the heads do not divide where the class has no head_dim of its own."""
    if "head_dim" not in c and c.size("hidden_size") % c.size("num_attention_heads"):
        raise c.error("hidden_size", "is not a multiple of num_attention_heads")


@family("aria_text", "aria_moe_lm")
def aria(c: Config) -> ModelSpec:
    """Aria: LLaMA with experts; two of every token's experts are shared, and only those may have biases."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    width = c.size("intermediate_size")
    ffn = MoE(
        num_experts=c.size("moe_num_experts"),
        num_experts_per_tok=c.size("moe_topk"),
        intermediate_size=width,
        activation=activation(c),
        router=TOPK_SOFTMAX,
        shared=shared_experts(c, "moe_num_shared_experts", width, bias=c.flag("mlp_bias")),
    )
    if ffn.activation != "silu":
        c.inexact("Aria's routed experts have SiLU whatever hidden_act says")
    c.ignore("moe_intermediate_size", "moe_z_loss_coeff", "moe_aux_loss_coeff")
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("mixtral")
def mixtral(c: Config) -> ModelSpec:
    """Mixtral: Mistral with every feed-forward a choice of two of eight."""
    mixer = attention(c, sliding_window=c.window())
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")
def qwen_moe(c: Config) -> ModelSpec:
    """Qwen1.5/2-MoE (with a gated shared expert) and Qwen3-MoE; `decoder_sparse_step` and `mlp_only_layers`
    say which layers have experts."""
    old = c.model_type == "qwen2_moe"
    bias = c.flag("qkv_bias", True) if old else c.flag("attention_bias")
    c.ignore("sliding_window", "max_window_layers", "use_sliding_window")
    c.require("use_qk_norm", not old)
    window = None
    vision = c.model_type == "qwen3_vl_moe_text"
    if not vision and c.model_type != "qwen3_omni_moe_text" and c.flag("use_sliding_window"):
        window = c.window()
    count, first = num_layers(c), c.count("max_window_layers")
    step, only_dense = c.count("decoder_sparse_step", 1), set(c.entries("mlp_only_layers") or [])
    shared = None
    if old:
        shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"), gate=True)
        local = local_layers(c, lambda index: window is not None and (index + 1) % 2 == 1 and index < first)
        if window is None and any(local):
            c.inexact("layer_types has layers with a window, which another key switches off")
    else:
        local = [window is not None] * count
    common = {"qkv_bias": bias, "output_bias": bias and not old, "qk_norm": None if old else HEAD_NORM}
    mixers = [
        ("local" if near else "", attention(c, sliding_window=window if near else None, **common)) for near in local
    ]
    sparse = [
        index not in only_dense and c.size("num_experts") > 0 and step > 0 and (index + 1) % step == 0
        for index in range(count)
    ]
    ffn = moe(c, router=Router(normalize=c.flag("norm_topk_prob") or vision), shared=shared)
    if all(sparse):
        c.ignore("intermediate_size")
    layers = arrange(mixers, sparse, ffn, None if all(sparse) else gated(c, bias=False))
    # The class of the text part alone says tied, the one of the whole, which is what is loaded, does not.
    tied = c.flag("tie_word_embeddings") and (not vision or "tie_word_embeddings" in c)
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)), tie_word_embeddings=tied)


@family("olmoe", "flex_olmo")
def olmoe(c: Config) -> ModelSpec:
    """OLMoE: qk-norm over the full width, 8 of 64 small experts. FlexOlmo: OLMo 2's norms on outputs."""
    bias = c.flag("attention_bias")
    clip = c.optional_number("clip_qkv")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(over="full"), clip_qkv=clip)
    divisible(c)
    ffn = moe(c, width="intermediate_size", router=Router(normalize=c.flag("norm_topk_prob")))
    placement: Placement = "output" if c.model_type == "flex_olmo" else "pre"
    return decoder(c, block(mixer, ffn, placement), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("phimoe")
def phimoe(c: Config) -> ModelSpec:
    """Phi-3.5-MoE: LayerNorms, biases on attention and head, 2 of 16 experts."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=c.window())
    if c.size("num_experts_per_tok") != 2:
        c.inexact("Phi-3.5-MoE's class chooses two experts whatever num_experts_per_tok says")
    positions = rope(c, head_dim=mixer.head_dim)
    if positions.scaling is not None:
        c.inexact("Phi-3.5-MoE's scaling of its rotation, with a factor of its own for short and long contexts")
    router = Router(scores="sparsemixer", jitter=c.number("router_jitter_noise", 0.01))
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=router)
    return decoder(
        c,
        block(mixer, ffn),
        norm=norm(c, "layernorm"),
        positions=positions,
        head=Head(bias=c.flag("lm_head_bias")),
    )


@family("gpt_oss")
def gpt_oss(c: Config) -> ModelSpec:
    """gpt-oss: sinks, biases on attention, router and experts, every other layer local."""
    bias = c.flag("attention_bias", True)
    window = c.window()
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(count)])
    c.ignore("experts_per_token", "initial_context_length")
    states_rotation(c)
    if c.number("swiglu_limit", 7.0) != 7.0:
        c.inexact("a limit of the gated activation other than 7")
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="softmax_topk", bias=True),
        bias=True,
        activation="swiglu_oai",
    )
    common = {"qkv_bias": bias, "output_bias": bias, "sinks": True}
    layers = [
        ("local", block(attention(c, sliding_window=window, **common), ffn))
        if kind == "sliding_attention"
        else ("global", block(attention(c, **common), ffn))
        for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))
