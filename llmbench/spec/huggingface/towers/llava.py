"""Projectors of LLaVA and of models with its structure: a tower, a projector of two matrices, a language model."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import attention, conv, gated_mlp, grid, layer_norm, linear, mlp, patches


def features(w: Whole) -> int:
    """Return the width of the features: several layers of the tower can be joined."""
    listed = w.config.get("vision_feature_layer")
    return w.size("vision_config", "hidden_size") * (len(listed) if isinstance(listed, list) else 1)


@composite("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "fast_vlm")
def llava(w: Whole) -> dict[str, int | None]:
    """LLaVA. Since LLaVA-NeXT, a trained vector ends each row of an image."""
    parts = {
        "vision_tower": w.tower("vision_config"),
        "multi_modal_projector": mlp(
            features(w), w.text_width, w.text_width, bias=w.config.flag("multimodal_projector_bias", True)
        ),
    }
    if w.kind in ("llava_next", "llava_next_video", "llava_onevision"):
        parts["image_newline"] = w.text_width
    if w.kind == "llava_next_video" and w.config.text("spatial_pool_mode") == "conv":
        width, stride = w.size("vision_config", "hidden_size"), w.config.size("spatial_pool_stride")
        parts["vision_resampler"] = conv(width, w.config.size("spatial_pool_out_channels", width), stride, stride)
    if w.kind == "video_llava":
        parts = {"video_tower": parts["vision_tower"], "image_tower": parts.pop("vision_tower"), **parts}
    return parts


@composite("vipllava")
def vipllava(w: Whole) -> dict[str, int | None]:
    """ViP-LLaVA has a norm before the projector."""
    projector = layer_norm(features(w)) + mlp(features(w), w.text_width, w.text_width)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@composite("aya_vision", "cohere2_vision")
def aya_vision(w: Whole) -> dict[str, int | None]:
    """Aya Vision joins neighbouring patches. The projector is gated: the second matrix has half the inputs."""
    inputs = w.size("vision_config", "hidden_size") * w.config.size("downsample_factor") ** 2
    inner = w.config.size("alignment_intermediate_size", w.text_width)
    projector = linear(inputs, inner) + linear(inner // 2, w.text_width)
    if w.kind == "aya_vision":
        projector += layer_norm(inputs)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@composite("lfm2_vl")
def lfm2_vl(w: Whole) -> dict[str, int | None]:
    """LFM2-VL joins neighbouring patches. A norm can stand before the projector."""
    inputs = w.size("vision_config", "hidden_size") * w.config.size("downsample_factor") ** 2
    projector = mlp(
        inputs, w.config.size("projector_hidden_size"), w.text_width, bias=w.config.flag("projector_bias", True)
    )
    if w.config.flag("projector_use_layernorm", True):
        projector += layer_norm(inputs)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@composite("deepseek_vl")
def deepseek_vl(w: Whole) -> dict[str, int | None]:
    """DeepSeek-VL calls its projector the aligner."""
    width = w.size("vision_config", "hidden_size")
    return {"vision_model": w.tower("vision_config"), "aligner": mlp(width, w.text_width, w.text_width)}


@composite("idefics3", "smolvlm")
def idefics3(w: Whole) -> dict[str, int | None]:
    """Idefics3 and SmolVLM join neighbouring patches. One matrix projects them."""
    inputs = w.size("vision_config", "hidden_size") * w.config.size("scale_factor") ** 2
    return {"vision_model": w.tower("vision_config"), "connector": linear(inputs, w.text_width, bias=False)}


@composite("idefics2")
def idefics2(w: Whole) -> dict[str, int | None]:
    """Idefics2 has a gated projector, then a resampler: trained vectors attend to the features of the image.

    The resampler has the width of the text part. The class ignores another width in its config.
    """
    resampler = w.part("perceiver_config")
    assert resampler is not None
    width, inner = w.text_width, w.text_intermediate
    heads = resampler.size("resampler_n_heads") * resampler.size("resampler_head_dim")
    keys = resampler.size("num_key_value_heads") * resampler.size("resampler_head_dim")
    layer = 2 * width * (heads + keys) + gated_mlp(width, 4 * width) + 3 * width
    latents = resampler.size("resampler_n_latents") * width
    connector = gated_mlp(w.size("vision_config", "hidden_size"), inner, w.text_width)
    connector += latents + resampler.size("resampler_depth") * layer + width
    return {"vision_model": w.tower("vision_config"), "connector": connector}


@composite("aria")
def aria(w: Whole) -> dict[str, int | None]:
    """Aria's projector has trained queries that attend to the features of the image."""
    width, text = w.size("vision_config", "hidden_size"), w.text_width
    listed = w.config.table("projector_patch_to_query_dict") or {"1225": 128, "4900": 256}
    numbers = w.config.nested("projector_patch_to_query_dict", listed)
    queries = max(numbers.size(key) for key in listed)
    attends = 3 * width**2 + 4 * linear(width, width) + linear(width, width) + 2 * layer_norm(width)
    projector = queries * width + attends + layer_norm(width) + mlp(width, text, text, bias=False)
    return {"vision_tower": w.tower("vision_config"), "multi_modal_projector": projector}


@tower("janus_vision_model")
def janus_vision(c: Config) -> int:
    """Janus has SigLIP without its head."""
    width = c.size("hidden_size")
    layer = attention(width, qkv_bias=c.flag("attention_bias", True)) + mlp(
        width, int(width * c.number("mlp_ratio", 4))
    )
    if c.flag("use_qk_norm"):
        layer += 2 * layer_norm(width)
    c.ignore("depth", "projection_dim")
    stack = c.size("num_hidden_layers") * (layer + 2 * layer_norm(width))
    return patches(c) + grid(c) * width + stack + layer_norm(width)


@composite("janus")
def janus(w: Whole) -> dict[str, int | None]:
    """Janus reads images with a tower and writes them with a quantised autoencoder, which no formula here describes."""
    c = w.part("vision_config")
    assert c is not None
    inner = c.size("projection_dim")
    aligner = linear(c.size("hidden_size"), inner) + (c.size("depth") - 1) * linear(inner, inner)
    return {"vision_model": w.tower("vision_config"), "aligner": aligner, "vqmodel": None}
