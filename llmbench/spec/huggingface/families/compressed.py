"""Models whose attention looks at a compressed or chosen part of what came before."""

from __future__ import annotations

from llmbench.spec.ffn import Gated, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import (
    arrange,
    matrix,
    no_effect,
    num_layers,
    sparse_layers,
    vector,
)
from llmbench.spec.huggingface.families.dense import HEAD_NORM
from llmbench.spec.huggingface.families.latent import indexer_of
from llmbench.spec.huggingface.families.shared_moe import mtp_of
from llmbench.spec.huggingface.parts import activation, attention, block, decoder, moe, norm, rope
from llmbench.spec.mixer import CompressedAttention
from llmbench.spec.model import ExtraWeight, HyperConnections, Layer, ModelSpec


@family("deepseek_v4")
def deepseek_v4(c: Config) -> ModelSpec:
    """DeepSeek-V4: windows with compressed entries before them, experts in every layer (the first choose by
    the token's number), residual streams that two small matrices a layer mix (hyper-connections)."""
    count = num_layers(c)
    vocab, top_k = c.size("vocab_size"), c.size("num_experts_per_tok")
    shared = SharedExperts(intermediate_size=c.size("moe_intermediate_size"), bias=c.flag("mlp_bias"))
    c.require("n_shared_experts", 1)
    c.require("attention_bias", False)
    scale = c.number("routed_scaling_factor", 1.0)
    learned = moe(
        c,
        experts="n_routed_experts",
        router=Router(scores="sigmoid", correction="buffer", normalize=True, scale=scale),
        shared=shared,
    )
    hashed = moe(
        c,
        experts="n_routed_experts",
        router=Router(scores="sigmoid", normalize=True, scale=scale),
        shared=shared,
    )
    table = ExtraWeight(name="ffn.router.table", shape=(vocab, top_k), role="buffer", component="router")
    no_effect(
        c,
        """
        hc_sinkhorn_iters hc_eps swiglu_limit scoring_func topk_method expert_dtype compress_rope_theta
        num_key_value_heads norm_topk_prob qk_rope_head_dim partial_rotary_factor num_local_experts
        intermediate_size n_group topk_group first_k_dense_replace
        """,
    )
    kinds = c.entries("mlp_layer_types", count)
    if kinds is None:
        first = min(count, c.count("num_hash_layers", 3))
        kinds = ["hash_moe"] * first + ["moe"] * (count - first)
    layers: list[tuple[str, Layer]] = []
    for (name, rate), kind in zip(_compressed_layers(c), kinds, strict=True):
        mixer = _compressed_attention(c, rate, light=name == "compressed")
        if kind == "hash_moe":
            layers.append((f"{name}_hash", block(mixer, hashed, extra=(table,))))
        else:
            layers.append((name, block(mixer, learned)))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=c.size("head_dim"), interleaved=True),
        next_token_prediction=mtp_of(c.count("num_nextn_predict_layers"), list(layers)),
        hyper_connections=HyperConnections(streams=c.size("hc_mult")),
    )


_KINDS = {
    "sliding_attention": ("local", 0),
    "compressed_sparse_attention": ("compressed", 4),
    "heavily_compressed_attention": ("heavy", 128),
}


def _compressed_layers(c: Config) -> list[tuple[str, int]]:
    """The kind of each layer, and how many tokens an entry stands for; 0 where it has none."""
    count = num_layers(c)
    given, ratios, rates = c.get("layer_types"), c.get("compress_ratios"), c.table("compress_rates")
    own = {"compressed": c.optional_size("compress_rate_csa"), "heavy": c.optional_size("compress_rate_hca")}
    if given is None and isinstance(ratios, list):  # may go on with those of the prediction modules
        kinds = {ratio: kind for kind, (_, ratio) in _KINDS.items()}
        given = [kinds.get(ratio) if type(ratio) is int else None for ratio in ratios]
    if given is None:
        heavy, light = "heavily_compressed_attention", "compressed_sparse_attention"
        given = [light if index > 2 and index % 2 else heavy for index in range(count)]
    if not isinstance(given, list) or len(given) < count or any(kind not in _KINDS for kind in given[:count]):
        raise c.error("layer_types" if ratios is None else "compress_ratios", f"is not understood for {count} layers")
    layers = []
    for kind in given[:count]:
        name, usual = _KINDS[kind]
        rate = own.get(name) or rates.get(kind, usual)
        if type(rate) is not int or rate < min(usual, 1):
            raise c.error("compress_rates", "must be whole numbers of at least one")
        layers.append((name, rate))
    return layers


def _compressed_attention(c: Config, rate: int, *, light: bool) -> CompressedAttention:
    return CompressedAttention(
        num_attention_heads=c.size("num_attention_heads"),
        head_dim=c.size("head_dim"),
        q_lora_rank=c.size("q_lora_rank"),
        output_groups=c.size("o_groups"),
        output_lora_rank=c.size("o_lora_rank"),
        sliding_window=c.size("sliding_window"),
        compress_rate=rate or None,
        overlap=light,
        indexer=indexer_of(c) if light else None,
    )


@family("minimax_m3_vl_text", "minimax_m3")
def minimax_m3(c: Config) -> ModelSpec:
    """MiniMax-M3: grouped attention with a norm a head, on some layers to blocks of keys that an indexer
    chooses."""
    legacy = c.table("sparse_attention_config")
    count, hidden = num_layers(c), c.size("hidden_size")
    for key, old in (("index_n_heads", "sparse_num_index_heads"), ("index_head_dim", "sparse_index_dim")):
        if old in legacy:
            c.put(key, legacy[old])
    no_effect(
        c,
        """
        index_block_size index_topk_blocks index_local_blocks use_qk_norm
        use_gemma_norm qk_norm_type use_routing_bias scoring_func num_mtp_modules use_mtp
        """,
    )
    c.put("rotary_dim", None)  # the class reads a share of the head
    if (c.number("swiglu_alpha", 1.702), c.number("swiglu_limit", 7.0)) != (1.702, 7.0):
        c.inexact("a SwiGLU with another slope or limit than gpt-oss's")
    c.ignore("mtp_transformer_layers", "index_n_heads", "index_head_dim")
    given = c.entries("layer_types", count)
    frequency = legacy.get("sparse_attention_freq")
    if given is None and isinstance(frequency, list):
        if len(frequency) != count:
            raise c.error("sparse_attention_config", f"must say it of {count} layers, not of {len(frequency)}")
        given = ["minimax_m3_sparse" if chosen else "full_attention" for chosen in frequency]
    kinds = given or ["full_attention"] * count
    chosen = c.entries("moe_layer_freq", count)
    sparse = sparse_layers(c, lambda index: bool(chosen[index]) if chosen else True)
    mixer = attention(c, qk_norm=HEAD_NORM)
    c.put("hidden_act", "swiglu_oai")
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(
            scores="sigmoid",
            correction="buffer",
            normalize=True,
            scale=c.number("routed_scaling_factor", 1.0),
        ),
        shared=SharedExperts(intermediate_size=c.size("shared_intermediate_size")),
    )
    c.require("n_shared_experts", 1)
    dense = Gated(intermediate_size=c.size("dense_intermediate_size"), activation=activation(c))
    layers: list[tuple[str, Layer]] = []
    for kind, has_experts in zip(kinds, sparse, strict=True):
        if kind not in ("full_attention", "minimax_m3_sparse"):
            raise c.error("layer_types", f"has the unknown kind `{str(kind)[:40]}`")
        extra: tuple[ExtraWeight, ...] = ()
        if kind == "minimax_m3_sparse":
            c.doubt("attention to chosen blocks is counted as to all keys, without the indexer's scores and keys")
            width, heads = c.size("index_head_dim"), c.size("index_n_heads")
            extra = (
                matrix("attention.indexer.q_proj", "attention_extra", heads * width, hidden),
                matrix("attention.indexer.k_proj", "attention_extra", width, hidden),
                vector("attention.indexer.norms", "attention_extra", 2, width),
            )
        name = "chosen" if extra else "global"
        layers += arrange([(name, mixer)], [has_experts], ffn, dense, extra=extra)
    return decoder(c, layers, norm=norm(c, unit_offset=True), positions=rope(c, head_dim=mixer.head_dim))
