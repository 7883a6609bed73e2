"""Towers that are a plain ViT with a way of their own to join patches.

MiniCPM-V, PaddleOCR-VL, VideoLLaMA 3, MiniMax-M3, Step-3.7, HunYuan-VL, Ovis 2, LFM3-VL, ModernVBERT, Molmo 2, Muse,
Granite Docling and Fuyu.
"""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.clip import layers, siglip_without_head
from llmbench.spec.huggingface.towers.formulas import (
    attention,
    conv,
    gated_mlp,
    grid,
    layer_norm,
    linear,
    mlp,
    patches,
    sides,
)
from llmbench.spec.pattern import MAX_LAYERS


@tower("minicpmv4_6_vision", "minicpmv4_7_vision", "minicpm_ocr_vision")
def minicpmv(c: Config) -> int:
    """MiniCPM-V joins patches of a window after some layers, with attention and a feed-forward."""
    width, inner = c.size("hidden_size"), c.size("intermediate_size")
    height, across = sides(c, "window_kernel_size")
    window = width * height * across
    merger = attention(width) + layer_norm(width) + layer_norm(window) + mlp(window, inner * height * across, width)
    c.ignore("insert_layer_id")
    return siglip_without_head(c) + merger


@composite("minicpmv4_6", "minicpmv4_7", "minicpm_ocr")
def minicpmv_whole(w: Whole) -> dict[str, int | None]:
    """The merger joins four patches, once or several times."""
    width = w.size("vision_config", "hidden_size")
    joined = 4 * width
    again = layer_norm(joined) + mlp(joined, joined, width)
    merger = (w.config.size("merger_times", 1) - 1) * again + layer_norm(joined) + mlp(joined, joined, w.text_width)
    return {"vision_tower": w.tower("vision_config"), "merger": merger}


@tower("paddleocr_vl_vision")
def paddleocr_vision(c: Config) -> int:
    """PaddleOCR-VL has SigLIP without its head."""
    c.ignore("spatial_merge_size")
    return siglip_without_head(c)


@composite("paddleocr_vl")
def paddleocr(w: Whole) -> dict[str, int | None]:
    """The projector joins neighbouring patches after a norm."""
    width = w.size("vision_config", "hidden_size")
    joined = width * w.size("vision_config", "spatial_merge_size") ** 2
    return {"visual": w.tower("vision_config"), "projector": layer_norm(width) + mlp(joined, joined, w.text_width)}


@tower("video_llama_3_vision")
def video_llama_vision(c: Config) -> int:
    """VideoLLaMA 3 has SigLIP with RoPE instead of a table of positions."""
    return patches(c) + layers(c) + layer_norm(c.size("hidden_size"))


@composite("video_llama_3")
def video_llama(w: Whole) -> dict[str, int | None]:
    """VideoLLaMA 3 has LLaVA's projector."""
    projector = mlp(w.size("vision_config", "hidden_size"), w.text_width, w.text_width)
    return {"vision_model": w.tower("vision_config"), "projector": projector}


@tower("minimax_m3_vl_vision")
def minimax_vision(c: Config) -> int:
    """MiniMax-M3 has a norm before the layers, and RoPE instead of a table of positions."""
    c.ignore("image_size", "spatial_merge_size")
    return patches(c, frames="temporal_patch_size", bias=False) + layer_norm(c.size("hidden_size")) + layers(c)


@composite("minimax_m3_vl")
def minimax(w: Whole) -> dict[str, int | None]:
    """One projector has single patches as inputs, the second one has joined outputs of the first."""
    inner, text = w.config.size("projector_hidden_size"), w.text_width
    joined = text * w.size("vision_config", "spatial_merge_size") ** 2
    projector = mlp(w.size("vision_config", "hidden_size"), inner, text) + mlp(joined, inner, text)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@tower("step3p5_vision")
def step_vision(c: Config) -> int:
    """Step-3.7 has a trained factor on the output of each sublayer, and two convolutions that join patches."""
    width, depth = c.size("hidden_size"), c.size("num_hidden_layers")
    joins = conv(width, 2 * width, 3, 3) + conv(2 * width, 4 * width, 3, 3)
    c.put("intermediate_size", int(width * c.number("mlp_ratio", 8960 / 1536)))
    c.ignore("max_position_embeddings")
    return patches(c, bias=False) + grid(c) * width + layer_norm(width) + layers(c) + 2 * depth * width + joins


@composite("step3p7")
def step(w: Whole) -> dict[str, int | None]:
    """Step-3.7's projector is one matrix."""
    width = 4 * w.size("vision_config", "hidden_size")
    projector = linear(width, w.text_width, bias=w.config.flag("projector_bias"))
    return {"vision_model": w.tower("vision_config"), "multi_modal_projector": projector}


@tower("hunyuan_vl_vision")
def hunyuan_vision(c: Config) -> int:
    """HunYuan-VL's tower contains its projector, with four trained vectors that mark the parts of an image."""
    width, text, merge = c.size("hidden_size"), c.size("text_hidden_size"), c.size("spatial_merge_size")
    positions = (c.size("max_image_size") // c.size("patch_size")) ** 2 + 1
    merger = conv(width, 2 * width, merge, merge) + linear(2 * width, 4 * width) + linear(4 * width, text)
    c.ignore("out_hidden_size temporal_patch_size img_max_token_num min_image_size max_vit_seq_len interpolate_mode")
    c.ignore("num_key_value_heads")
    return patches(c) + positions * width + layers(c) + merger + 4 * width + 3 * text + width + text


@composite("hunyuan_vl")
def hunyuan(w: Whole) -> dict[str, int | None]:
    """The tower contains the projector. The class sets its width to that of the text part."""
    vision = w.part("vision_config")
    assert vision is not None
    vision.put("text_hidden_size", w.text_width)
    return {"vision_tower": w.tower("vision_config")}


@tower("ovis2_vision")
def ovis_vision(c: Config) -> int:
    """Ovis 2 assigns each patch to the entries of a visual vocabulary, as a head does for tokens."""
    width, bias = c.size("hidden_size"), c.flag("qkv_bias")
    layer = attention(width, qkv_bias=bias, output_bias=bias) + 2 * width
    layer += gated_mlp(width, c.size("intermediate_size"), bias=c.flag("mlp_bias"))
    entries = c.size("vocab_size") - c.size("num_visual_indicator_tokens", 5)
    head = linear(width * c.size("hidden_stride", 1) ** 2, entries, bias=False) + layer_norm(entries)
    return patches(c) + grid(c) * width + width + c.size("num_hidden_layers") * layer + width + head


@composite("ovis2")
def ovis(w: Whole) -> dict[str, int | None]:
    """A table has the embedding of each entry of the visual vocabulary."""
    table = w.size("vision_config", "vocab_size") * w.config.size("hidden_size", w.text_width)
    return {"vision_tower": w.tower("vision_config"), "visual_embeddings_table": table}


@tower("lfm3_vl_vision")
def lfm3_vision(c: Config) -> int:
    """LFM3-VL has layers with a short convolution over the image, and layers with attention."""
    width, kernel = c.size("hidden_size"), c.size("conv_kernel_size")
    head = width // c.size("num_attention_heads")
    attends = attention(width, kv=c.size("num_key_value_heads") * head, qkv_bias=False, output_bias=False) + 2 * head
    slides = linear(width, 3 * width, bias=False) + conv(width, width, kernel, kernel, bias=False, groups=width)
    slides += width**2
    shared = gated_mlp(width, c.size("intermediate_size")) + 2 * width
    depth = c.size("num_hidden_layers")
    usual = ["conv" if index < 2 or index % 2 else "full_attention" for index in range(min(depth, MAX_LAYERS))]
    kinds = c.entries("layer_types", depth) or usual
    stack = sum(shared + (slides if kind == "conv" else attends) for kind in kinds)
    c.ignore("spatial_merge_size")
    return patches(c, channels="in_channels", frames="temporal_patch_size", bias=False) + width + stack


@composite("lfm3_vl")
def lfm3(w: Whole) -> dict[str, int | None]:
    """The projector joins neighbouring patches after a norm."""
    width, inner = w.size("vision_config", "hidden_size"), w.config.size("projector_hidden_size")
    joined = width * w.size("vision_config", "spatial_merge_size") ** 2
    projector = layer_norm(width) + mlp(joined, inner, w.text_width, bias=w.config.flag("projector_bias", True))
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@composite("modernvbert", "ultravbert")
def modernvbert(w: Whole) -> dict[str, int | None]:
    """ModernVBERT joins neighbouring patches. One matrix projects them. UltraVBERT has a norm after it."""
    inputs = w.size("vision_config", "hidden_size") * w.config.size("pixel_shuffle_factor") ** 2
    connector = linear(inputs, w.text_width, bias=False) + (w.text_width if w.kind == "ultravbert" else 0)
    return {"vision_model": w.tower("vision_config"), "connector": connector}


@tower("molmo2_vision")
def molmo_vision(c: Config) -> int:
    """Molmo 2 has no norm after the last layer."""
    width, head, bias = c.size("hidden_size"), c.size("head_dim"), c.flag("attention_bias", True)
    heads, keys = c.size("num_attention_heads") * head, c.size("num_key_value_heads") * head
    layer = attention(width, inner=heads, kv=keys, qkv_bias=bias) + mlp(width, c.size("intermediate_size"))
    layers_of = c.size("num_hidden_layers") * (layer + 2 * layer_norm(width))
    c.rename(image_default_input_size="image_size", image_num_pos="num_position_embeddings")
    if c.get("image_size") is None:
        c.put("image_size", 378)
    return patches(c) + c.size("num_position_embeddings", grid(c)) * width + layers_of


@composite("molmo2")
def molmo(w: Whole) -> dict[str, int | None]:
    """The adapter joins the outputs of several layers, pools patches with attention, and has a gated projector."""
    c = w.part("adapter_config")
    assert c is not None
    width, head, bias = c.size("hidden_size"), c.size("head_dim"), c.flag("attention_bias", True)
    c.rename(vit_layers="vision_feature_layer")
    inputs = w.size("vision_config", "hidden_size") * len(c.entries("vision_feature_layer") or [24, 18])
    heads, keys = c.size("num_attention_heads") * head, c.size("num_key_value_heads") * head
    pooling = linear(inputs, heads, bias=bias) + 2 * linear(inputs, keys, bias=bias) + linear(heads, width)
    projector = gated_mlp(width, c.size("intermediate_size"), c.size("text_hidden_size"), bias=c.flag("mlp_bias"))
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": pooling + projector}


@tower("muse_glimmer_vision")
def muse_vision(c: Config) -> int:
    """Muse has a norm before the layers and a norm after them."""
    width, side = c.size("hidden_size"), c.size("patch_size")
    embedding = 3 * c.size("patch_temporal") * side**2 * width
    embedding += c.size("pos_emb_height") * c.size("pos_emb_width") * width
    c.ignore("layer_types merge_size max_position_embeddings")
    return embedding + layers(c) + 2 * layer_norm(width)


@composite("muse_glimmer")
def muse(w: Whole) -> dict[str, int | None]:
    """The adapter joins neighbouring patches. One matrix projects its output."""
    inner = w.config.size("projector_hidden_size")
    return {
        "vision_tower": w.tower("vision_config"),
        "vision_adapter": mlp(w.config.size("out_hidden_size"), inner, bias=False, outputs=inner),
        "vision_projection": linear(inner, w.text_width, bias=False),
    }


@tower("granite_docling_vision")
def granite_docling_vision(c: Config) -> int:
    """Granite Docling joins patches in one or two sizes, and also passes the output of several layers on."""
    width, text = c.size("hidden_size"), c.size("out_hidden_size")
    indices = c.entries("deepstack_visual_indexes")
    deep = 3 if indices is None else len(indices)  # the class takes three layers if the config names none

    def route(factor: int) -> int:
        joined = width * factor**2
        return linear(joined, text, bias=False) + deep * (layer_norm(joined) + mlp(joined, text, text))

    factor = c.size("scale_factor")
    routes = route(factor) + (route(factor // 2) if c.flag("use_fine_route", True) else 0)
    return siglip_without_head(c) + layer_norm(width) + routes + 2 * layer_norm(text) + text**2


@composite("granite_docling")
def granite_docling(w: Whole) -> dict[str, int | None]:
    """The tower contains the projector. A router can choose the size of the joined patches."""
    parts: dict[str, int | None] = {"vision_model": w.tower("vision_config")}
    if w.config.get("density_router_hidden_size") is not None:
        parts["density_router"] = None
    return parts


@composite("fuyu")
def fuyu(w: Whole) -> dict[str, int | None]:
    """Fuyu has no tower: one matrix projects each patch."""
    inputs = w.config.size("num_channels") * w.config.size("patch_size") ** 2
    return {"vision_embed_tokens": linear(inputs, w.text_width)}
