"""Importers for Llama 1 to 4 and Llama 3.2 Vision by Meta, and variants of Llama's decoder for other lineages."""

from __future__ import annotations

from llmbench.spec.ffn import Gated, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    moe,
    norm,
)
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm, Temperature
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions


@family("llama")
def llama(c: Config) -> ModelSpec:
    """Llama 1 to 3 have RMSNorm, RoPE and a gated feed-forward. Larger and newer models have grouped-query attention.

    If `attention_bias` is true, all four projections of attention have biases.
    """
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    c.ignore("max_window_layers")
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


def llama_from_hub(c: Config, *, tied: bool = False, bias: bool | None = None, norm_kind: str = "rmsnorm") -> ModelSpec:
    """Return Llama's decoder for a model whose code is in its hub repository, not in transformers.

    - tied: the default of `tie_word_embeddings`.
    - bias: the projections of attention have biases. None: the config key `attention_bias` decides.
    - norm_kind: "rmsnorm" or "layernorm".

    Three config keys of MiniCPM are read too. `scale_emb` is a factor on the embedding. `scale_depth` gives the factor
    on the output of each sublayer. `dim_model_base` gives the factor on the logits.
    """
    c.rename(num_layers="num_hidden_layers", activation_function="hidden_act")
    if "tie_word_embeddings" not in c:
        c.put("tie_word_embeddings", tied)
    if bias is None:
        bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    c.ignore("rotary", "max_window_layers", "mup_denominator")
    hidden, depth = c.size("hidden_size"), c.optional_number("scale_depth")
    added = 1.0 if depth is None else depth / c.size("num_hidden_layers") ** 0.5
    if c.table("sparse_config"):
        c.doubt("sparse_config: the sparse attention is counted as full attention")
    return decoder(
        c,
        block(mixer, gated(c, bias=False), residual_scale=added),
        norm=norm(c, norm_kind),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.number("scale_emb", 1.0)),
        head=Head(scale=c.number("dim_model_base", float(hidden)) / hidden),
    )


def llama_with_windows(c: Config, kinds: list[str], window: int | None) -> ModelSpec:
    """Return Llama's decoder with a sliding window in the layers of type "sliding_attention".

    - kinds: the type of each layer if the config has no `layer_types`.
    - window: the most keys that a query sees in these layers. None: no window.
    """
    c.require("attention_bias", False)
    ffn = gated(c)
    layers = [
        ("local", block(attention(c, sliding_window=window), ffn))
        if kind == "sliding_attention"
        else ("global", block(attention(c), ffn))
        for kind in layer_types(c, kinds)
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("mllama_text_model")
def mllama(c: Config) -> ModelSpec:
    """The text part of Llama 3.2 Vision has layers with cross-attention to image tokens.

    Its token table has eight rows more than its head.
    """
    hidden, vocab = c.size("hidden_size"), c.size("vocab_size")
    mixer = attention(c)
    kv_width, width = mixer.num_key_value_heads * mixer.head_dim, mixer.num_attention_heads * mixer.head_dim
    ffn = gated(c, bias=False)
    listed = c.entries("cross_attention_layers")
    crossing = {3, 8, 13, 18, 23, 28, 33, 38} if listed is None else set(listed)
    if crossing:
        c.doubt("the scores, keys and values of the cross-attention to image tokens are not counted")
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
        ExtraWeight(name=f"cross_attention.{name}", shape=(mixer.head_dim,), role="vector", component="attention_norms")
        for name in ("q_norm", "k_norm")
    )
    extra += tuple(ExtraWeight(name=name, shape=(1,), role="vector") for name in ("attention_gate", "ffn_gate"))
    # A Layer without mixer has no mixer norm, so the norm before the cross-attention is an extra weight.
    before = ExtraWeight(name="mixer_norm", shape=(hidden,), role="vector", component="norms")
    cross = Layer(ffn=ffn, extra=(before, *extra))
    layers: list[tuple[str, Layer]] = [
        ("cross", cross) if index in crossing else ("block", block(mixer, ffn)) for index in range(num_layers(c))
    ]
    rows = ExtraWeight(name="more_embedding", shape=(8, hidden), role="table", component="embedding")
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        vocab_size=vocab,
        extra=(rows,),
    )


@family("llama4_text")
def llama4(c: Config) -> ModelSpec:
    """In Llama 4, each token uses one routed expert and a shared expert.

    Three of four layers have chunked attention with RoPE. The fourth layer has full attention without position
    encoding. In layers without experts, the feed-forward has another width.
    """
    bias = c.flag("attention_bias")
    count = num_layers(c)
    chunk = c.optional_size("attention_chunk_size")
    no_rope = c.entries("no_rope_layers")
    every = c.size("no_rope_layer_interval", 4)
    rotated = no_rope or [int((i + 1) % every != 0) for i in range(count)]
    if len(rotated) != count:
        raise c.error("no_rope_layers", f"must have {count} entries, one per layer, not {len(rotated)}")
    kinds = layer_types(c, ["chunked_attention" if rotates else "full_attention" for rotates in rotated])
    step = c.size("interleave_moe_layer_step", 1)
    chosen = c.entries("moe_layers")
    sparse = set(chosen) if chosen is not None else set(range(step - 1, count, step))
    qk_norm = QKNorm(norm="l2norm", weight=False, after_rope=True) if c.flag("use_qk_norm", True) else None
    c.ignore("for_llm_compressor")
    temperature = None
    growth, every = c.number("attn_scale", 0.1), c.size("floor_scale", 8192)
    if c.flag("attn_temperature_tuning", True):
        temperature = Temperature(scale=growth, every=every, offset=1)
    width = c.size("intermediate_size")
    experts = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="sigmoid", on_input=True),
        shared=SharedExperts(intermediate_size=width),
    )
    dense = Gated(intermediate_size=c.size("intermediate_size_mlp", width), activation=activation(c))
    layers = []
    for index, kind in enumerate(kinds):
        rotates = bool(rotated[index])
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=qk_norm if rotates else None,
            attention_chunk_size=chunk if kind == "chunked_attention" else None,
            temperature=None if rotates else temperature,
            positions=None if rotates else NoPositions(),
        )
        name = "chunked" if kind == "chunked_attention" else "global"
        is_moe = index in sparse
        layers.append((f"{name}_{'moe' if is_moe else 'dense'}", block(mixer, experts if is_moe else dense)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c), interleaved=True))


@family("diffllama")
def diffllama(c: Config) -> ModelSpec:
    """DiffLlama computes two softmaxes and subtracts one from the other.

    Four vectors per layer give the weight of the subtracted softmax.
    """
    bias = c.flag("attention_bias")
    c.ignore("lambda_std_dev")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, differential=True)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
