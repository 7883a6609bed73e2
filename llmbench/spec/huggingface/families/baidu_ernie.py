"""Importers for ERNIE 1 to 4.5 and for the text part of PaddleOCR-VL, by Baidu."""

from __future__ import annotations

from llmbench.spec.ffn import MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.bert import bert
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    gated,
    mixture_layers,
    norm,
    shared_experts,
)
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ExtraWeight, Head, ModelSpec, NextTokenPrediction


@family("ernie")
def ernie(c: Config) -> ModelSpec:
    """ERNIE 1 to 3 have BERT's architecture. Some of them also have an embedding table for task types."""
    shape = (c.size("task_type_vocab_size"), c.size("hidden_size"))
    tasks: tuple[ExtraWeight, ...] = ()
    if c.flag("use_task_id"):
        tasks = (ExtraWeight(name="task_embedding", shape=shape, role="table", component="embedding"),)
    return bert(c, extra=tasks)


@family("ernie4_5")
def ernie4_5(c: Config) -> ModelSpec:
    """ERNIE 4.5 without experts has biases everywhere if `use_bias` is true. RoPE rotates pairs of neighbouring
    dimensions."""
    bias = c.flag("use_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c, bias=bias)), norm=norm(c), positions=positions)


@family("ernie4_5_moe", "ernie4_5_vl_moe_text", "ernie4_5_moe_vl")
def ernie4_5_moe(c: Config) -> ModelSpec:
    """ERNIE 4.5 has experts in the layers from `moe_layer_start_index` to `moe_layer_end_index`.

    The router's bias for load balancing is a trained parameter. In vision-language models, only the experts for text
    are read.
    """
    bias = c.flag("use_bias")
    text = c.model_type == "ernie4_5_vl_moe_text"
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    if c.model_type != "ernie4_5_moe":
        c.unbuildable("the experts for vision are not counted")
        if text and c.get("moe_intermediate_size") is None:
            c.put("moe_intermediate_size", [1536, 512])
        for key in (
            "moe_intermediate_size",
            "moe_num_experts",
            "moe_layer_start_index",
            "moe_layer_end_index",
        ):
            pair = c.get(key)
            if isinstance(pair, list) and pair:
                c.put(key, pair[0])  # the first entry is for text, the second for vision
    width = c.size("moe_intermediate_size")
    c.require("moe_use_aux_free", True)
    c.ignore(
        """
        moe_capacity moe_gate moe_group moe_multimodal_paths use_rmsnorm fuse_rope
        compression_ratio moe_dropout_prob im_patch_id
        """,
    )
    if c.number("moe_norm_min", 1e-12) > 1e-9:
        c.unbuildable(
            "moe_norm_min > 1e-9: the sum that divides the expert weights has this lower bound, which is not supported"
        )
    ffn = MoE(
        num_experts=c.size("moe_num_experts"),
        num_experts_per_tok=c.size("moe_k"),
        intermediate_size=width,
        activation=activation(c),
        router=Router(correction="parameter", normalize=True),
        shared=shared_experts(c, "moe_num_shared_experts", width, bias=bias),
    )
    count = num_layers(c)
    if text:
        sparse = sparse_layers(c, lambda index: index > 0)
    else:
        first, interval = c.count("moe_layer_start_index"), c.size("moe_layer_interval", 1)
        last = c.get("moe_layer_end_index")
        last = count - 1 if not isinstance(last, int) or last == -1 else last
        sparse = [(index + 1) % interval == 0 and first <= index <= last for index in range(count)]
    mtp = c.count("num_nextn_predict_layers")
    layers = mixture_layers(mixer, sparse, ffn, gated(c, bias=bias))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim, interleaved=True),
        head=Head(bias=bias and c.model_type == "ernie4_5_moe"),
        next_token_prediction=NextTokenPrediction(count=mtp, layer=layers[0][0], files="own") if mtp else None,
    )


@family("paddleocr_vl_text")
def paddleocr_vl(c: Config) -> ModelSpec:
    """The text part of PaddleOCR-VL is the dense decoder of ERNIE 4.5. If `use_bias` is true, all projections have
    biases."""
    bias = c.flag("use_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    layer = block(mixer, gated(c, bias=bias))
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
