"""The towers of Phi-3-vision and Phi-4-multimodal, with their projectors."""

from __future__ import annotations

import math

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.clip import clip, siglip_without_head
from llmbench.spec.huggingface.towers.formulas import (
    attention,
    conv,
    layer_norm,
    linear,
    mlp,
    pooling_head,
)


@tower("phi4_multimodal_vision")
def phi4_vision(c: Config) -> int:
    """The vision tower is SigLIP with its head."""
    c.ignore("crop_size", "feature_layer")
    return siglip_without_head(c) + pooling_head(c.size("hidden_size"), c.size("intermediate_size"))


@tower("phi4_multimodal_audio")
def phi4_audio(c: Config) -> int:
    """The audio tower is a conformer: two gated feed-forwards, attention and convolutions in each layer."""
    width, inner, inputs = c.size("hidden_size"), c.size("intermediate_size"), c.size("input_size")
    channels, halvings, bins = c.size("nemo_conv_channels"), int(math.log2(c.size("time_reduction"))), inputs
    front = conv(1, channels, 3, 3)
    for step in range(halvings):
        bins = (bins - 1) // 2 + 1
        if step:
            front += conv(channels, channels, 3, 3, groups=channels) + conv(channels, channels, 1, 1)
    front += linear(channels * bins, width)
    buckets = c.size("bias_max_distance") * (1 if c.flag("bias_symmetric") else 2)
    outputs, deep = c.size("ext_pw_out_channel"), width * c.size("depthwise_multiplier")
    feed_forward = layer_norm(width) + linear(width, 2 * inner) + linear(inner, width)
    convolutions = layer_norm(width) + linear(width, 2 * outputs) + 2 * outputs + linear(width, outputs)
    convolutions += conv(width, deep, c.size("kernel_size"), groups=width)
    convolutions += linear(deep, c.size("depthwise_separable_out_channel"))
    layer = 2 * feed_forward + attention(width) + convolutions + 2 * layer_norm(width)
    c.ignore("chunk_size left_chunk feature_layer conv_glu_type conv_activation nemo_activation nemo_final_size")
    c.ignore("downsample_rate")
    stored_means = 2 * inputs
    return front + buckets * c.size("num_attention_heads") + c.size("num_blocks") * layer + stored_means


@composite("phi3_v")
def phi3_vision(w: Whole) -> dict[str, int | None]:
    """Phi-3-vision joins four patches of CLIP. Its config names the tower, whose sizes are those of the name."""
    w.config.ignore("embd_layer")  # the parts are fixed
    named = w.config.nested("img_processor", w.config.table("img_processor"))
    if not named.text("model_name").endswith("clip-vit-large-patch14-336"):
        return {"vision_embed_tokens": None}
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336}
    joined, text = 4 * named.size("image_dim_out", 1024), w.text_width
    tower_of = clip(named.nested("img_processor", {**sizes, "patch_size": 14, "num_channels": 3}))
    return {"vision_embed_tokens": tower_of + mlp(joined, text, text) + 2 * joined}


@composite("phi4mm")
def phi4mm(w: Whole) -> dict[str, int | None]:
    """The published files of Phi-4-multimodal have other names of keys, and adapters of the text part.

    The vision tower is always SigLIP for images of 448 × 448. Each modality has adapters on all products of a layer.
    """
    w.config.ignore("embd_layer", "img_processor")  # the parts are fixed
    image = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "image_size": 448}
    vision = w.config.nested("vision", {**image, "patch_size": 14, "num_channels": 3})
    listed = w.config.nested("audio_processor", w.config.table("audio_processor")).table("config")
    sound = w.config.nested("audio_processor.config", listed)
    sound.rename(
        attention_dim="hidden_size",
        attention_heads="num_attention_heads",
        linear_units="intermediate_size",
        depthwise_seperable_out_channel="depthwise_separable_out_channel",
    )
    bias = sound.nested("relative_attention_bias_args", sound.table("relative_attention_bias_args"))
    sound.put("bias_max_distance", bias.size("t5_bias_max_distance"))
    convolutions = sound.nested("nemo_conv_settings", sound.table("nemo_conv_settings"))
    sound.put("nemo_conv_channels", convolutions.size("conv_channels"))
    text, width, steps = w.text_width, vision.size("hidden_size"), sound.size("hidden_size")
    parts: dict[str, int | None] = {
        "embed_tokens_extend.image_embed": phi4_vision(vision) + mlp(width, text, text) + 2 * width,
        "embed_tokens_extend.audio_embed": phi4_audio(sound) + 2 * mlp(steps, text, text),
    }
    heads, inner = w.spec.attentions[0], w.text_intermediate
    queries = heads.num_attention_heads * heads.key_dim
    fused = queries + 2 * heads.cache_row.heads * heads.key_dim
    sides_of_products = (text + fused) + (queries + text) + (text + 2 * inner) + (inner + text)
    for name in ("vision_lora", "speech_lora"):
        adapter = w.config.nested(name, w.config.table(name))
        if adapter.get("r") is not None:
            parts[name] = adapter.size("r") * sides_of_products * w.spec.num_hidden_layers
    return parts


@composite("phi4_multimodal")
def phi4_multimodal(w: Whole) -> dict[str, int | None]:
    """Two vectors separate the parts of an image. Sound has a projector for itself, and one for sound with images."""
    image, text = w.size("vision_config", "hidden_size"), w.text_width
    sound = w.size("audio_config", "hidden_size") * w.size("audio_config", "downsample_rate")
    parts = {
        "embed_tokens_extend.image_embed": (w.tower("vision_config"), mlp(image, text, text) + 2 * image),
        "embed_tokens_extend.audio_embed": (w.tower("audio_config"), 2 * mlp(sound, text, text)),
    }
    return {name: None if counted is None else counted + more for name, (counted, more) in parts.items()}
