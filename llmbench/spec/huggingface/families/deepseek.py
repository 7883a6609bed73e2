"""Importers for DeepSeekMoE and DeepSeek-V2 to V4, and functions for models that use parts of their architecture."""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    attention,
    block,
    decoder,
    deepseek_router,
    gated,
    latent_attention,
    mixture_layers,
    moe,
    norm,
    prediction_modules,
    shared_experts,
)
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_after_first, sparse_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention, CompressedAttention, Indexer, LatentAttention, Mixer
from llmbench.spec.model import ExtraWeight, HyperConnections, Layer, ModelSpec
from llmbench.spec.position import Rope


@family("deepseek")
def deepseek_moe(c: Config) -> ModelSpec:
    """DeepSeekMoE-16B has small experts with a softmax router, and shared experts. Its first layers are dense."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    return deepseek_model(c, mixer, positions_dim=mixer.head_dim, scores="softmax", correction=None)


@family("deepseek_ocr2_text", "unlimited_ocr_text")
def deepseek_ocr(c: Config) -> ModelSpec:
    """The language models of DeepSeek-OCR 2 and Unlimited-OCR have ordinary attention and DeepSeek-V2's experts.

    In Unlimited-OCR, a generated token sees the prompt and the `sliding_window` newest tokens.
    """
    c.put("head_dim", None)  # transformers replaces it by hidden_size / num_attention_heads
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    if c.model_type == "unlimited_ocr_text" and c.window() is not None:
        c.doubt("llmbench counts attention to all generated tokens, not only to the newest")
        c.ignore("layer_types")
    return deepseek_model(
        c,
        mixer,
        positions_dim=mixer.head_dim,
        scores="softmax",
        correction=None,
        interleaved=True,
        bias=c.flag("mlp_bias"),
        first=1 if c.model_type == "unlimited_ocr_text" else 0,
    )


def deepseek_model(
    c: Config,
    mixer: Mixer,
    *,
    positions_dim: int,
    scores: str = "sigmoid",
    correction: str | None = "buffer",
    interleaved: bool = False,
    partial: float = 1.0,
    bias: bool = False,
    first: int = 0,
    sparse: list[bool] | None = None,
) -> ModelSpec:
    """Return a model with DeepSeek's experts. All layers have the same mixer.

    The first `first_k_dense_replace` layers are dense. After them, every `moe_layer_freq`-th layer has experts. These
    layers also have `n_shared_experts` shared experts, which are as wide as the routed experts. The model can have
    multi-token-prediction modules.

    - positions_dim: number of dimensions per head that can be rotated by RoPE.
    - scores: the scores of the router, "sigmoid" or "softmax", if the config does not state them.
    - correction: the kind of tensor that stores the router's load-balancing bias, or None.
    - interleaved: RoPE rotates pairs of neighbouring dimensions.
    - partial: the share of `positions_dim` that is rotated, if the config does not state a share.
    - bias: the feed-forwards have biases.
    - first: number of dense layers, if the config does not state it.
    - sparse: one bool per layer, true if the layer has experts. None: DeepSeek's rule above applies.
    """
    ffn = deepseek_ffn(c, scores=scores, correction=correction, bias=bias)
    flags = sparse_after_first(c, first) if sparse is None else sparse
    dense = None if all(flags) else gated(c, bias=bias)
    if dense is None:
        c.ignore("intermediate_size")
    layers = mixture_layers(mixer, flags, ffn, dense)
    positions = rope(c, head_dim=positions_dim, interleaved=interleaved, partial=partial)
    if isinstance(mixer, LatentAttention):  # it rotates all of qk_rope_head_dim
        positions = msgspec.structs.replace(positions, rotary_dim=None)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=positions,
        next_token_prediction=prediction_modules(c.count("num_nextn_predict_layers"), list(layers)),
    )


def deepseek_ffn(c: Config, *, scores: str = "sigmoid", correction: str | None = "buffer", bias: bool = False) -> MoE:
    """Return DeepSeek's experts with their router.

    `scores`, `correction` and `bias` are as in `deepseek_model`. The config key `scoring_func` has precedence over
    `scores`. `topk_method` changes no figure.
    """
    shared = shared_experts(c, "n_shared_experts", c.size("moe_intermediate_size"), bias=bias)
    c.ignore("topk_method", "scoring_func", "num_local_experts")
    if c.text("scoring_func") in ("softmax", "sigmoid"):
        scores = c.text("scoring_func")
    return moe(
        c,
        experts="n_routed_experts",
        router=deepseek_router(c, correction=correction, scores=scores),
        shared=shared,
    )


@family("deepseek_v2")
def deepseek_v2(c: Config) -> ModelSpec:
    """DeepSeek-V2 and V2-Lite have latent attention, and a softmax router that selects groups of experts.

    Small DeepSeek-VL2 models have ordinary attention. Their config key `use_mla` is false.
    """
    mixer: Attention | LatentAttention
    if c.flag("use_mla", True):
        mixer = latent_attention(c)
        rotated = mixer.qk_rope_head_dim
    else:
        bias = c.flag("attention_bias")
        mixer = attention(c, qkv_bias=bias, output_bias=bias)
        rotated = mixer.head_dim
        c.ignore("q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim")
    return deepseek_model(
        c,
        mixer,
        positions_dim=rotated,
        scores="softmax",
        correction=None,
        interleaved=True,
        bias=c.flag("mlp_bias"),
    )


@family("deepseek_v3")
def deepseek_v3(c: Config, *, scores: str = "sigmoid", correction: str | None = "buffer") -> ModelSpec:
    """DeepSeek-V3 and R1 have latent attention, and a sigmoid router with a stored bias for load balancing."""
    mixer = latent_attention(c)
    if any(c.table(key).get("llama_4_scaling_beta") for key in ("rope_parameters", "rope_scaling")):
        c.unbuildable("llama_4_scaling_beta: a factor on the queries that grows with the position is unsupported")
    return deepseek_model(
        c,
        mixer,
        positions_dim=mixer.qk_rope_head_dim,
        scores=scores,
        correction=correction,
        interleaved=c.flag("rope_interleave", True),
    )


@family("deepseek_v32")
def deepseek_v32(c: Config, *, reused: list[bool] | None = None, interleaved: bool = False) -> ModelSpec:
    """DeepSeek-V3.2 is DeepSeek-V3 with indexers. An indexer selects the keys that attention reads.

    - reused: one bool per layer, true if the layer reuses the keys that an earlier layer's indexer selected. None: all
      layers have their own indexer.
    - interleaved: RoPE rotates pairs of neighbouring dimensions in the indexers.
    """
    count = num_layers(c)
    if "num_experts" in c and c.get("num_experts") is not None:
        c.put("n_routed_experts", c.get("num_experts"))
    for kind in c.entries("layer_types", count) or []:
        if kind != "indexed_attention":
            c.doubt(f"layer_types has the entry `{str(kind)[:40]}`, but only `indexed_attention` is supported")
            break
    mixers = [
        ("shared" if reuses else "", indexed_attention(c, shared=reuses, interleaved=interleaved))
        for reuses in reused or [False] * count
    ]
    first = c.count("first_k_dense_replace")
    sparse = sparse_layers(c, lambda index: index >= first)
    c.ignore("moe_layer_freq mlp_bias indexer_rope_interleave index_share_for_mtp_iteration index_skip_topk_offset")
    layers = mixture_layers(mixers, sparse, deepseek_ffn(c), gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=c.size("qk_rope_head_dim"), interleaved=True),
        next_token_prediction=prediction_modules(c.count("num_nextn_predict_layers"), list(layers)),
    )


def indexed_attention(c: Config, *, shared: bool = False, interleaved: bool = False) -> LatentAttention:
    """Return latent attention with an indexer, which selects the keys that attention reads.

    `shared`: the layer reuses the keys that an earlier layer's indexer selected.
    """
    return latent_attention(c, indexer=indexer_of(c, shared=shared, interleaved=interleaved))


def indexer_of(c: Config, *, shared: bool = False, interleaved: bool = False) -> Indexer:
    """Return DeepSeek-V3.2's indexer with the dimensions in the config keys `index_*`."""
    return Indexer(
        num_heads=c.size("index_n_heads"),
        head_dim=c.size("index_head_dim"),
        top_k=c.size("index_topk"),
        shared=shared,
        interleaved=interleaved,
    )


def shared_indexers(c: Config) -> list[bool]:
    """Return one bool per layer: true if the layer reuses the keys that an earlier layer's indexer selected.

    The config states for each layer whether it has its own indexer, or that every n-th layer has its own indexer.
    """
    count = num_layers(c)
    stated = c.entries("indexer_types", count)
    pattern = c.get("index_topk_pattern")
    every, offset = max(c.count("index_topk_freq", 1), 1), c.count("index_skip_topk_offset", 2)
    if stated is None and isinstance(pattern, (str, list)):
        stated = ["shared" if kind in ("S", "shared") else "full" for kind in pattern]
        if len(stated) != count:
            raise c.error("index_topk_pattern", f"must have {count} entries, one per layer, not {len(stated)}")
    if stated is None:
        stated = ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(count)]
    return [kind == "shared" for kind in stated]


@family("deepseek_v4")
def deepseek_v4(c: Config) -> ModelSpec:
    """DeepSeek-V4 attends to a sliding window and to compressed entries. All layers have experts.

    In the first layers, a table with one row per token id selects the experts. The model has several residual streams
    instead of one. Two small matrices per layer compute how the streams are mixed (hyper-connections).
    """
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
    c.ignore(
        """
        hc_sinkhorn_iters hc_eps swiglu_limit scoring_func topk_method expert_dtype
        num_key_value_heads norm_topk_prob num_local_experts
        intermediate_size n_group topk_group first_k_dense_replace
        """,
    )
    kinds = c.entries("mlp_layer_types", count)
    if kinds is None:
        first = min(count, c.count("num_hash_layers", 3))
        kinds = ["hash_moe"] * first + ["moe"] * (count - first)
    layers: list[tuple[str, Layer]] = []
    of_windows, of_entries = _rotations(c)
    for (name, rate), kind in zip(_compressed_layers(c), kinds, strict=True):
        mixer = _compressed_attention(c, rate, light=name == "compressed")
        if rate and of_entries != of_windows:
            mixer = msgspec.structs.replace(mixer, positions=of_entries)
        if kind == "hash_moe":
            layers.append((f"{name}_hash", block(mixer, hashed, extra=(table,))))
        else:
            layers.append((name, block(mixer, learned)))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=of_windows,
        next_token_prediction=prediction_modules(c.count("num_nextn_predict_layers"), list(layers)),
        hyper_connections=HyperConnections(streams=c.size("hc_mult")),
    )


def _rotations(c: Config) -> tuple[Rope, Rope]:
    """Return DeepSeek-V4's RoPE of layers with a window only, and of layers with compressed entries.

    Both rotate the same dimensions of a head. The published configs state their number as `qk_rope_head_dim`. Their
    `rope_theta` is the base of the first RoPE, `compress_rope_theta` and `rope_scaling` describe the second one.
    transformers 5 writes both into `rope_parameters`, as "main" and "compress".
    """
    head_dim, rotated = c.size("head_dim"), c.optional_size("qk_rope_head_dim")
    partial = c.number("partial_rotary_factor", 64 / 512 if rotated is None else rotated / head_dim)
    stated = c.table("rope_parameters")
    main, compress = stated.get("main"), stated.get("compress")
    if not isinstance(main, dict) or not isinstance(compress, dict):
        main = {"rope_theta": c.number("rope_theta", 10000.0)}
        compress = {**(c.table("rope_scaling") or stated), "rope_theta": c.number("compress_rope_theta", 160000.0)}
        if "yarn" in (compress.get("rope_type"), compress.get("type")):  # V4 does not scale sines and cosines
            compress.setdefault("attention_factor", 1.0)
    c.ignore("rope_theta", "compress_rope_theta", "rope_scaling", "original_max_position_embeddings")
    lengths = {"max_position_embeddings": c.get("max_position_embeddings")}

    def rotation(values: dict[str, Any]) -> Rope:
        own = {**values, "partial_rotary_factor": partial}
        return rope(c.nested("rope", {**lengths, "rope_parameters": own}), head_dim=head_dim, interleaved=True)

    return rotation(main), rotation(compress)


_KINDS = {
    "sliding_attention": ("local", 0),
    "compressed_sparse_attention": ("compressed", 4),
    "heavily_compressed_attention": ("heavy", 128),
}


def _compressed_layers(c: Config) -> list[tuple[str, int]]:
    """Return a pair (name, rate) for each layer.

    The name is "local", "compressed" or "heavy". The rate is the number of tokens per compressed entry. It is 0 if the
    layer has no compressed entries.
    """
    count = num_layers(c)
    stated, ratios, rates = c.get("layer_types"), c.get("compress_ratios"), c.table("compress_rates")
    stated_rates = {"compressed": c.optional_size("compress_rate_csa"), "heavy": c.optional_size("compress_rate_hca")}
    if stated is None and isinstance(
        ratios, list
    ):  # the list can also have entries for the multi-token-prediction modules
        kinds = {ratio: kind for kind, (_, ratio) in _KINDS.items()}
        stated = [kinds.get(ratio) if type(ratio) is int else None for ratio in ratios]
    if stated is None:
        heavy, light = "heavily_compressed_attention", "compressed_sparse_attention"
        stated = [light if index > 2 and index % 2 else heavy for index in range(count)]
    if not isinstance(stated, list) or len(stated) < count or any(kind not in _KINDS for kind in stated[:count]):
        raise c.error(
            "layer_types" if ratios is None else "compress_ratios",
            f"must have one entry for each of {count} layers; known entries are "
            + ", ".join(_KINDS if ratios is None else (str(usual) for _, usual in _KINDS.values())),
        )
    layers = []
    for kind in stated[:count]:
        name, usual = _KINDS[kind]
        rate = stated_rates.get(name) or rates.get(kind, usual)
        if type(rate) is not int or rate < min(usual, 1):
            raise c.error(
                "compress_rates", f"has the entry {str(rate)[:40]}; each must be a whole number of at least 1"
            )
        layers.append((name, rate))
    return layers


def _compressed_attention(c: Config, rate: int, *, light: bool) -> CompressedAttention:
    """Return DeepSeek-V4's attention with `rate` tokens per compressed entry.

    `light`: the compression is light (few tokens per entry). The entries then overlap, and an indexer selects among
    them.
    """
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
