"""Models with multi-head latent attention."""

from __future__ import annotations

from typing import Any

from llmbench.spec.ffn import MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import (
    after_first,
    arrange,
    matrix,
    no_effect,
    num_layers,
    shared_experts,
    sparse_layers,
    vector,
)
from llmbench.spec.huggingface.families.shared_moe import deepseek_experts, deepseek_ffn, mtp_of
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    deepseek_router,
    gated,
    latent_attention,
    moe,
    norm,
    rope,
)
from llmbench.spec.mixer import Attention, Indexer, LatentAttention
from llmbench.spec.model import Embedding, Head, HyperConnections, Layer, ModelSpec


@family("deepseek_v2")
def deepseek_v2(c: Config) -> ModelSpec:
    """DeepSeek-V2 and V2-Lite: softmax router limited to groups, no correction. Small DeepSeek-VL2 models do
    without latent attention (`use_mla`)."""
    mixer: Attention | LatentAttention
    if c.flag("use_mla", True):
        mixer = latent_attention(c)
        turned = mixer.qk_rope_head_dim
    else:
        bias = c.flag("attention_bias")
        mixer = attention(c, qkv_bias=bias, output_bias=bias)
        turned = mixer.head_dim
        no_effect(c, "q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim")
    return deepseek_experts(
        c,
        mixer,
        positions_dim=turned,
        scores="softmax",
        correction=None,
        interleaved=True,
        bias=c.flag("mlp_bias"),
    )


@family("deepseek_v3", "kimi_k2", "mistral4")
def deepseek_v3(c: Config) -> ModelSpec:
    """DeepSeek-V3 and R1, Kimi-K2: sigmoid router with a stored correction. Mistral 4: softmax without
    one."""
    mixer = latent_attention(c)
    mistral = c.model_type == "mistral4"
    if c.table("rope_parameters").get("llama_4_scaling_beta"):
        c.inexact("queries that grow with their position (llama_4_scaling_beta)")
    return deepseek_experts(
        c,
        mixer,
        positions_dim=mixer.qk_rope_head_dim,
        scores="softmax" if mistral else "sigmoid",
        correction=None if mistral else "buffer",
        interleaved=c.flag("rope_interleave", True),
    )


@family("glm4_moe_lite")
def glm4_moe_lite(c: Config) -> ModelSpec:
    """GLM-4.7-Flash: DeepSeek-V3 with one dense layer."""
    mixer = latent_attention(c)
    turned = mixer.qk_rope_head_dim
    return deepseek_experts(c, mixer, positions_dim=turned, interleaved=c.flag("rope_interleave", True), first=1)


@family("axk1", "AXK1")
def axk1(c: Config) -> ModelSpec:
    """A.X K1: DeepSeek-V3 with a norm on the output of the experts."""
    mixer = latent_attention(c)
    after = vector("ffn.post_norm", "norms", c.size("hidden_size"))
    sparse = after_first(c, 1)
    layers = arrange(mixer, sparse, deepseek_ffn(c), gated(c, bias=False), sparse_extra=(after,))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True),
        next_token_prediction=mtp_of(c.count("num_nextn_predict_layers"), list(layers)),
    )


def indexed(c: Config, indexer: Indexer) -> LatentAttention:
    """Latent attention that looks at the keys which an indexer chooses."""
    return latent_attention(c, indexer=indexer)


def indexer_of(c: Config, *, shared: bool = False) -> Indexer:
    """DeepSeek-V3.2's indexer by its keys."""
    return Indexer(
        num_heads=c.size("index_n_heads"),
        head_dim=c.size("index_head_dim"),
        top_k=c.size("index_topk"),
        shared=shared,
        interleaved=c.model_type == "glm_moe_dsa",
    )


@family("deepseek_v32", "glm_moe_dsa")
def deepseek_v32(c: Config) -> ModelSpec:
    """DeepSeek-V3.2: V3 with an indexer that chooses the keys. GLM-5: one may serve several layers."""
    count = num_layers(c)
    shared = [False] * count
    if c.model_type == "glm_moe_dsa":
        shared = _shared_indexers(c)
    if "num_experts" in c and c.get("num_experts") is not None:
        c.put("n_routed_experts", c.get("num_experts"))
    for kind in c.entries("layer_types", count) or []:
        if kind != "indexed_attention":
            c.doubt(f"layer_types has {str(kind)[:40]!r}, which is not understood")
            break
    mixers = [("shared" if again else "", indexed(c, indexer_of(c, shared=again))) for again in shared]
    sparse = sparse_layers(c, lambda index: index >= c.count("first_k_dense_replace"))
    c.ignore(
        "moe_layer_freq",
        "mlp_bias",
        "indexer_rope_interleave",
        "index_share_for_mtp_iteration",
        "index_skip_topk_offset",
    )
    layers = arrange(mixers, sparse, deepseek_ffn(c), gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=c.size("qk_rope_head_dim"), interleaved=True),
        next_token_prediction=mtp_of(c.count("num_nextn_predict_layers"), list(layers)),
    )


def _shared_indexers(c: Config) -> list[bool]:
    """Which layers reuse the choice of the indexer before them: listed, or every so many have their own."""
    count = num_layers(c)
    given = c.entries("indexer_types", count)
    pattern = c.get("index_topk_pattern")
    every, offset = max(c.count("index_topk_freq", 1), 1), c.count("index_skip_topk_offset", 2)
    if given is None and isinstance(pattern, (str, list)):
        given = ["shared" if kind in ("S", "shared") else "full" for kind in pattern]
        if len(given) != count:
            raise c.error("index_topk_pattern", f"must have {count} entries, one a layer, not {len(given)}")
    if given is None:
        given = ["full" if max(i - offset + 1, 0) % every == 0 else "shared" for i in range(count)]
    return [kind == "shared" for kind in given]


@family("axk2")
def axk2(c: Config) -> ModelSpec:
    """A.X K2: DeepSeek-V3.2 whose queries and output gate come from one matrix over both q latents, and whose
    norms are gated by a narrow network."""
    hidden, rank = c.size("hidden_size"), c.size("gated_norm_rank")
    mixer = indexed(c, indexer_of(c))
    q_rank = mixer.q_lora_rank
    if q_rank is None:
        raise c.error("q_lora_rank", "must be a whole number of at least one")
    heads, width = mixer.num_attention_heads, mixer.qk_head_dim + mixer.v_head_dim
    # q_b_proj of the spec is heads × qk over one latent; the rest of the fused matrix stands beside it.
    rest = matrix("attention.q_gate_proj", "attention", heads * (2 * width - mixer.qk_head_dim), q_rank)
    c.ignore("layer_types")

    def gate(name: str) -> tuple[Any, ...]:
        return (
            matrix(f"{name}.gate_in", "norms", rank, hidden),
            matrix(f"{name}.gate_out", "norms", hidden, rank),
        )

    layers = arrange(
        mixer,
        after_first(c, 1),
        deepseek_ffn(c),
        gated(c, bias=False),
        extra=(rest, *gate("mixer_norm")),
        sparse_extra=gate("ffn_norm"),
    )
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True))


@family("hy_v4")
def hy_v4(c: Config) -> ModelSpec:
    """Hunyuan 4: gated latent attention with sinks and shared indexers, over several residual streams that
    two small matrices a layer mix (hyper-connections)."""
    count, hidden = num_layers(c), c.size("hidden_size")
    given = c.entries("indexer_types", count)
    shared = [kind == "shared" for kind in given] if given else [i > 0 and (i - 1) % 4 != 0 for i in range(count)]
    mixers = [("shared" if again else "", indexed(c, indexer_of(c, shared=again))) for again in shared]
    heads, value = c.size("num_attention_heads"), c.size("v_head_dim")
    extra = (
        matrix("attention.gate_proj", "attention", heads * value, hidden),
        vector("attention.sinks", "attention_extra", heads),
    )
    c.ignore("layer_types", "hc_magnitude", "hc_eps", "learnable_sink_init", "swiglu_limit")
    layers = arrange(mixers, after_first(c, 1), deepseek_ffn(c), gated(c, bias=False), extra=extra)
    positions = rope(c, head_dim=c.size("qk_rope_head_dim"))
    streams = HyperConnections(streams=c.size("hc_mult"), mixes=False)
    return decoder(c, layers, norm=norm(c), positions=positions, hyper_connections=streams)


@family("minicpm3", "youtu")
def minicpm3(c: Config) -> ModelSpec:
    """MiniCPM3 and Youtu-LLM: dense models with latent attention; MiniCPM scales what enters and leaves."""
    if c.get("v_head_dim") is None:
        c.put("v_head_dim", c.size("hidden_size") // c.size("num_attention_heads"))
    mixer = latent_attention(c)
    mini = c.model_type == "minicpm3"
    positions = rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=not mini and c.flag("rope_interleave", True))
    if not mini:
        c.ignore("mlp_bias", "embedding_initializer_range")
        return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)
    depth, count = c.number("scale_depth", 1.0), num_layers(c)
    base = c.number("dim_model_base", float(c.size("hidden_size"))) or 1.0
    return decoder(
        c,
        block(mixer, gated(c), residual_scale=depth / count**0.5),
        norm=norm(c),
        positions=positions,
        embedding=Embedding(scale=c.number("scale_emb", 1.0)),
        head=Head(scale=base / c.size("hidden_size")),
    )


@family("longcat_flash")
def longcat_flash(c: Config) -> ModelSpec:
    """LongCat-Flash: layers in pairs, each with latent attention and a dense feed-forward; the first of a
    pair has experts beside it, some of which compute nothing."""
    count = (
        c.size("num_layers") if "num_layers" in c or "num_hidden_layers" not in c else c.size("num_hidden_layers") // 2
    )
    c.ignore("num_layers", "num_hidden_layers")
    c.put("num_hidden_layers", 2 * min(count, 10_001))
    mixer = latent_attention(c)
    dense = gated(c, bias=False)
    zero = c.count("zero_expert_num")
    c.ignore("zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora", "attention_method", "router_dtype")
    c.inexact("factors on the latents (LongCat)")
    experts = MoE(
        num_experts=c.size("n_routed_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=c.size("moe_intermediate_size"),
        activation=activation(c),
        router=Router(correction="buffer", bias=c.flag("router_bias"), scale=c.number("routed_scaling_factor", 1.0)),
        beside=dense,
        zero_experts=zero,
    )
    if zero:
        c.doubt(
            f"a token computes with {experts.num_experts_per_tok} experts at most, fewer where it "
            f"chooses one of {zero} that do nothing"
        )
    layers: list[tuple[str, Layer]] = [("moe", block(mixer, experts)), ("dense", block(mixer, dense))] * count
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True))


@family("dots3_note_text")
def dots3_note(c: Config) -> ModelSpec:
    """dots3: global layers of indexed latent attention, local ones of a narrower kind; a norm on the rotated
    key and a gate a head."""
    count, hidden = num_layers(c), c.size("hidden_size")
    given = c.entries("layer_types", count)
    windows = c.flag("use_sliding_window", True)
    derived = ["full_attention" if not windows or i < 2 or i % 4 == 1 else "sliding_attention" for i in range(count)]
    kinds = [str(kind) for kind in given or derived]
    sparse_attention = c.get("use_dsa")
    if "per_layer_config" in c:
        c.doubt("per_layer_config is not understood")
    if sparse_attention is None and "per_layer_config" not in c:
        sparse_attention = True
    if sparse_attention is not None:
        kinds = [kind if kind == "sliding_attention" else "indexed" if sparse_attention else "full" for kind in kinds]
    window = c.window() or c.size("sliding_window_size", 512)
    full = latent_attention(c)
    if full.q_lora_rank is None:
        raise c.error("q_lora_rank", "must be a whole number of at least one")
    head_dim, nope = c.size("swa_head_dim", 256), c.size("swa_qk_nope_head_dim", 192)
    local = LatentAttention(
        num_attention_heads=c.size("swa_num_attention_heads", 64),
        q_lora_rank=c.size("swa_q_lora_rank", 1024),
        kv_lora_rank=c.size("swa_kv_lora_rank", 1024),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=c.count("swa_qk_rope_head_dim", head_dim - nope),
        v_head_dim=c.size("swa_v_head_dim", 128),
        latent_bias=full.latent_bias,
        output_bias=full.output_bias,
        sliding_window=window,
    )
    c.ignore("swa_num_key_value_heads", "swa_rope_theta", "head_dim", "mlp_bias")
    width = c.size("shared_experts_intermediate_size", 1536)
    width = c.size("moe_shared_expert_intermediate_size", width)
    shared = shared_experts(c, "n_shared_experts", width)
    ffn = moe(c, experts="n_routed_experts", router=deepseek_router(c), shared=shared)
    dense = gated(c, bias=False)
    layers = []
    for kind, sparse in zip(kinds, after_first(c, 1), strict=True):
        mixer, name = full, "global"
        if kind == "sliding_attention":
            mixer, name = local, "local"
        elif kind in ("indexed", "indexed_attention"):
            mixer = indexed(c, indexer_of(c))
        extra = (
            vector("attention.k_rope_norm", "attention_norms", mixer.qk_rope_head_dim),
            matrix("attention.g_proj", "attention", mixer.num_attention_heads, hidden),
        )
        layers += arrange([(name, mixer)], [sparse], ffn, dense, extra=extra)
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.qk_rope_head_dim, interleaved=True))
