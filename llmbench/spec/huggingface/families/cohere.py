"""Importers for Command-R and its successors by Cohere."""

from __future__ import annotations

from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    mixture_layers,
    norm,
    shared_experts,
)
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers, sparse_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Head, Layer, ModelSpec, Norm
from llmbench.spec.position import NoPositions


@family("cohere")
def cohere(c: Config) -> ModelSpec:
    """Command-R has attention and feed-forward in parallel after one LayerNorm without bias.

    Command-R+ also has norms on q and k. Each head has its own norm weights.
    """
    bias = c.flag("attention_bias")
    qk_norm = QKNorm(over="per_head", norm="layernorm") if c.flag("use_qk_norm") else None
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=qk_norm)
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    head = Head(scale=c.number("logit_scale", 0.0625))
    layer = block(mixer, gated(c, bias=False), "parallel")
    return decoder(c, layer, norm=norm(c, "layernorm", bias=False), positions=positions, head=head)


@family("cohere2")
def cohere2(c: Config) -> ModelSpec:
    """In Command-R7B, every fourth layer has full attention without position encoding.

    The other layers have RoPE and a sliding window.
    """
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
    count = num_layers(c)
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


@family("cohere2_moe")
def cohere2_moe(c: Config) -> ModelSpec:
    """Cohere's MoE model has attention and feed-forward in parallel. Its first layers are dense.

    Among the layers with experts, every fourth layer has full attention without position encoding. The other layers
    have RoPE and a sliding window.
    """
    bias = c.flag("attention_bias")
    window = c.window()
    first = c.count("first_k_dense_replace")
    before, every = c.size("prefix_dense_sliding_window_pattern", 1), c.size("sliding_window_pattern", 4)

    def windowed(index: int) -> bool:
        """Return whether the layer has a sliding window."""
        return (index + 1) % before != 0 if index < first else (index - first + 1) % every != 0

    local, sparse = windowed_layers(c, windowed), sparse_layers(c, lambda index: index >= first)
    common = {"qkv_bias": bias, "output_bias": bias}
    mixers = []
    for is_local, has_experts in zip(local, sparse, strict=True):
        rotates = is_local or (not has_experts and before == 1)
        mixer = attention(
            c,
            sliding_window=window if is_local else None,
            positions=None if rotates else NoPositions(),
            **common,
        )
        mixers.append(("local" if is_local else "global", mixer))
    width = c.size("intermediate_size")
    shared = shared_experts(c, "num_shared_experts", width)
    if shared is not None:
        c.require("shared_expert_combination_strategy", "average", "sum")
        averaged = c.text("shared_expert_combination_strategy", "average") == "average"
        shared = SharedExperts(intermediate_size=shared.intermediate_size, averaged=averaged)
    ffn = MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=width,
        activation=activation(c),
        router=Router(scores="softmax_topk")
        if c.text("expert_selection_fn", "softmax") == "softmax"
        else Router(scores="sigmoid", normalize=c.flag("norm_topk_prob")),
        shared=shared,
    )
    dense = gated(c, bias=False, width=c.optional_size("prefix_dense_intermediate_size") or width)
    c.ignore("shared_expert_combination_strategy", "norm_topk_prob", "_sliding_window_pattern")
    if c.table("rope_scaling") and not c.table("rope_parameters"):
        c.unbuildable("transformers ignores rope_scaling in this model: its class reads rope_parameters")
    root = c.get("rms_norm_eps") is not None
    kind: Norm = norm(c, "rmsnorm" if root else "layernorm", bias=False)
    layers = mixture_layers(mixers, sparse, ffn, dense, "parallel")
    positions = rope(c, head_dim=head_dim_of(c), interleaved=True)
    return decoder(c, layers, norm=kind, positions=positions, head=Head(scale=c.number("logit_scale", 0.0625)))


@family("cohere_compass_text")
def cohere_compass(c: Config) -> ModelSpec:
    """The text part of North Vision has attention and feed-forward in parallel, like Command-R.

    The type of a layer decides whether the layer has a sliding window and whether it has RoPE.
    """
    bias = c.flag("attention_bias")
    window = c.window()
    kinds = layer_types(c, ["full_attention"] * num_layers(c))
    c.ignore("sliding_window_pattern", "pooling")
    rotations = c.table("rope_parameters")
    ffn = gated(c, bias=False)
    layers: list[tuple[str, Layer]] = []
    for kind in kinds:
        local = kind == "sliding_attention"
        rotates = rotations.get(kind) or not {"full_attention", "sliding_attention"} & rotations.keys()
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            sliding_window=window if local else None,
            positions=None if rotates else NoPositions(),
        )
        layers.append(("local" if local else "global", block(mixer, ffn, "parallel")))
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm", bias=False),
        positions=rope(c, head_dim=head_dim_of(c), layer_type="sliding_attention", interleaved=True),
        head=Head(scale=c.number("logit_scale", 1.0)),
    )
