"""Vision and audio towers of Qwen2-VL to Qwen3.5, Qwen-Omni, and of models that copied them."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import (
    attention,
    conv,
    gated_mlp,
    layer_norm,
    linear,
    mlp,
    patches,
    transformer_layer,
)
from llmbench.spec.huggingface.towers.whisper import whisper_layers


def merged(c: Config, width: int) -> int:
    """Return the width of neighbouring patches that are joined."""
    return width * c.size("spatial_merge_size") ** 2


@tower("qwen2_vl_vision")
def qwen2_vl(c: Config) -> int:
    """Qwen2-VL. `embed_dim` is the width of the tower, `hidden_size` is the width of the text part."""
    width, text = c.size("embed_dim"), c.size("hidden_size")
    inner = int(width * c.number("mlp_ratio", 4))
    frames, side = c.size("temporal_patch_size"), c.size("patch_size")
    c.ignore("in_chans", "spatial_patch_size")
    embedding = conv(c.size("in_channels"), width, frames, side, side, bias=False)
    merger = layer_norm(width) + mlp(merged(c, width), merged(c, width), text)
    return embedding + c.size("depth") * transformer_layer(width, inner) + merger


@tower("qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder")
def qwen2_5_vl(c: Config) -> int:
    """Qwen2.5-VL has RMSNorm and gated feed-forwards with biases. Most layers attend within windows."""
    width = c.size("hidden_size")
    c.ignore("in_chans", "spatial_patch_size", "fullatt_block_indexes", "window_size")
    layer = 2 * width + attention(width) + gated_mlp(width, c.size("intermediate_size"), bias=True)
    merger = width + mlp(merged(c, width), merged(c, width), c.size("out_hidden_size"))
    embedding = patches(c, channels="in_channels", frames="temporal_patch_size", bias=False)
    return embedding + c.size("depth") * layer + merger


@tower("qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_omni_moe_vision_encoder")
def qwen3_vl(c: Config) -> int:
    """Qwen3-VL has a table of positions. It passes the output of several layers to the text part, each by a merger of
    its own."""
    joined = merged(c, c.size("hidden_size"))
    deep = len(c.entries("deepstack_visual_indexes") or [])
    return qwen3_5(c) + deep * (layer_norm(joined) + mlp(joined, joined, c.size("out_hidden_size")))


@tower("qwen3_5_vision", "qwen3_5_moe_vision")
def qwen3_5(c: Config) -> int:
    """Qwen3.5 passes only the output of the last layer to the text part."""
    width = c.size("hidden_size")
    embedding = patches(c, channels="in_channels", frames="temporal_patch_size")
    embedding += c.size("num_position_embeddings") * width
    merger = layer_norm(width) + mlp(merged(c, width), merged(c, width), c.size("out_hidden_size"))
    return embedding + c.size("depth") * transformer_layer(width, c.size("intermediate_size")) + merger


@composite(
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "glm4v",
    "glm46v",
    "glm4v_moe",
    "glm_ocr",
)
def visual(w: Whole) -> dict[str, int | None]:
    """The tower contains the projector."""
    return {"visual": w.tower("vision_config")}


@composite("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
def thinker(w: Whole) -> dict[str, int | None]:
    """Qwen-Omni's thinker, which reads text, images and sound and writes text."""
    return {"visual": w.tower("vision_config"), "audio_tower": w.tower("audio_config")}


@composite("qwen2_5_omni", "qwen3_omni_moe")
def omni(w: Whole) -> dict[str, int | None]:
    """Qwen-Omni also has a talker, which writes speech. Its size is not counted."""
    return {"talker": None} if w.config.flag("enable_audio_output", True) else {}


@tower("qwen2_5_omni_audio_encoder")
def qwen2_5_omni_audio(c: Config) -> int:
    """Qwen2.5-Omni's audio tower is Whisper's encoder with a projection instead of a table of positions."""
    outputs = c.size("output_dim")
    width = c.size("hidden_size")
    return whisper_layers(c) + linear(width, outputs) + 2 * outputs


@tower("qwen3_omni_moe_audio_encoder")
def qwen3_omni_audio(c: Config) -> int:
    """Qwen3-Omni's audio tower has three convolutions of images instead of Whisper's two convolutions of sound."""
    width, channels, bins = c.size("d_model"), c.size("downsample_hidden_size"), c.size("num_mel_bins")
    for _ in range(3):
        bins = (bins + 1) // 2
    front = conv(1, channels, 3, 3) + 2 * conv(channels, channels, 3, 3) + linear(channels * bins, width, bias=False)
    layers = c.size("encoder_layers") * transformer_layer(width, c.size("encoder_ffn_dim"))
    c.ignore("max_source_positions")
    return front + layers + layer_norm(width) + mlp(width, width, c.size("output_dim"))
