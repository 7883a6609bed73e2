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


@tower("qwen2_5_vl_vision", "qwen2_5_omni_vision_encoder", "exaone4_5_vision")
def qwen2_5_vl(c: Config) -> int:
    """Qwen2.5-VL has RMSNorm and gated feed-forwards with biases. Most layers attend within windows.

    EXAONE 4.5 has fewer heads of keys and values.
    """
    width = c.size("hidden_size")
    c.ignore("in_chans", "spatial_patch_size", "fullatt_block_indexes", "window_size")
    heads = c.size("num_heads")
    keys = c.size("num_key_value_heads", heads) * (width // heads)
    layer = 2 * width + attention(width, kv=keys) + gated_mlp(width, c.size("intermediate_size"), bias=True)
    merger = width + mlp(merged(c, width), merged(c, width), c.size("out_hidden_size"))
    embedding = patches(c, channels="in_channels", frames="temporal_patch_size", bias=False)
    return embedding + c.size("depth") * layer + merger


@tower("qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_omni_moe_vision_encoder", "cohere_compass_vision")
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
    "glmga",
    "exaone4_5",
    "cosmos3_omni",
    "glm5_next",
    "cohere_compass",
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
    """Qwen-Omni also has a talker and a vocoder, which make speech. Their sizes are not known."""
    vocoder = "token2wav" if w.kind == "qwen2_5_omni" else "code2wav"
    return {"talker": None, vocoder: None} if w.config.flag("enable_audio_output", True) else {}


@tower("qwen2_5_omni_audio_encoder")
def qwen2_5_omni_audio(c: Config) -> int:
    """Qwen2.5-Omni's audio tower is Whisper's encoder with a projection instead of a table of positions."""
    outputs = c.size("output_dim")
    width = c.size("hidden_size")
    return whisper_layers(c) + linear(width, outputs) + 2 * outputs


@composite("hyperclovax_vision_v2")
def hyperclovax_vision(w: Whole) -> dict[str, int | None]:
    """HyperCLOVA X Vision has the tower of Qwen2.5-VL and one matrix."""
    projector = linear(w.size("vision_config", "out_hidden_size"), w.text_width)
    return {"vision_model": w.tower("vision_config"), "projector": projector}


@tower("qwen3_omni_moe_audio_encoder")
def qwen3_omni_audio(c: Config) -> int:
    """Qwen3-Omni's audio tower contains its projector."""
    c.ignore("max_source_positions")
    return qwen3_asr_encoder(c) + mlp(c.size("d_model"), c.size("d_model"), c.size("output_dim"))


@composite("qwen3_asr")
def qwen3_asr(w: Whole) -> dict[str, int | None]:
    """Qwen3-ASR has the audio tower of Qwen3-Omni, and its projector beside it."""
    width = w.size("audio_config", "d_model")
    projector = mlp(width, width, w.size("audio_config", "output_dim"))
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}


@tower("qwen3_asr_encoder")
def qwen3_asr_encoder(c: Config) -> int:
    """Three convolutions over time and frequency read the spectrogram, instead of Whisper's two over time."""
    width, channels, bins = c.size("d_model"), c.size("downsample_hidden_size"), c.size("num_mel_bins")
    for _ in range(3):
        bins = (bins + 1) // 2
    front = conv(1, channels, 3, 3) + 2 * conv(channels, channels, 3, 3) + linear(channels * bins, width, bias=False)
    layers = c.size("encoder_layers") * transformer_layer(width, c.size("encoder_ffn_dim"))
    c.ignore("max_position_embeddings", "output_dim")
    return front + layers + layer_norm(width)
