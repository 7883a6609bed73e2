"""Audio towers with the encoder of Whisper: Qwen2-Audio, Voxtral, Audio Flamingo, GLM-ASR, MOSS-Transcribe."""

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
    transformer_layer,
)


def whisper_layers(c: Config) -> int:
    """Return the parameters of Whisper's encoder without its table of positions.

    Two convolutions of three steps read the spectrogram. The key projections have no biases.
    """
    width, inner = c.size("hidden_size"), c.size("intermediate_size")
    front = conv(c.size("num_mel_bins"), width, 3) + conv(width, width, 3)
    c.ignore("max_source_positions")
    layers = c.size("num_hidden_layers") * (transformer_layer(width, inner) - width)
    return front + layers + layer_norm(width)


@tower("qwen2_audio_encoder", "voxtral_encoder", "audioflamingo3_encoder", "moss_transcribe_diarize_audio")
def whisper_encoder(c: Config) -> int:
    """Whisper's encoder stores its sinusoidal positions as a table."""
    return whisper_layers(c) + c.size("max_source_positions") * c.size("hidden_size")


@tower("glmasr_encoder")
def glmasr_encoder(c: Config) -> int:
    """GLM-ASR's encoder has RoPE instead of a table of positions."""
    c.ignore("max_position_embeddings", "num_key_value_heads")
    return whisper_layers(c)


@composite("qwen2_audio")
def qwen2_audio(w: Whole) -> dict[str, int | None]:
    """Qwen2-Audio's projector is one matrix."""
    projector = linear(w.size("audio_config", "d_model"), w.text_width)
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}


@composite("voxtral")
def voxtral(w: Whole) -> dict[str, int | None]:
    """Voxtral joins several steps of the tower: together they are as wide as its feed-forward."""
    inputs = w.size("audio_config", "encoder_ffn_dim")
    projector = mlp(inputs, w.text_width, w.text_width, bias=False)
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}


@composite("audioflamingo3", "musicflamingo")
def audio_flamingo(w: Whole) -> dict[str, int | None]:
    """Audio Flamingo 3 and Music Flamingo have LLaVA's projector."""
    projector = mlp(
        w.size("audio_config", "hidden_size"), w.text_width, w.text_width, bias=w.config.flag("projector_bias", True)
    )
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}


@composite("glmasr")
def glmasr(w: Whole) -> dict[str, int | None]:
    """GLM-ASR joins several steps of the tower: together they are as wide as its feed-forward."""
    projector = mlp(w.size("audio_config", "intermediate_size"), 2 * w.text_width, w.text_width)
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}


@composite("moss_transcribe_diarize")
def moss(w: Whole) -> dict[str, int | None]:
    """MOSS-Transcribe joins several steps of the tower, and has a norm after the projector."""
    inputs, text = w.size("audio_config", "hidden_size") * w.config.size("audio_merge_size"), w.text_width
    projector = mlp(inputs, text, text, bias=w.config.flag("projector_bias", True)) + layer_norm(text)
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}


@tower("voxtral_realtime_encoder")
def voxtral_realtime_encoder(c: Config) -> int:
    """Voxtral Realtime has the layers of LLaMA behind Whisper's convolutions, with some of Whisper's biases."""
    width, heads = c.size("hidden_size"), c.size("num_attention_heads") * c.size("head_dim")
    layer = attention(width, inner=heads) - heads + gated_mlp(width, c.size("intermediate_size")) + width + 2 * width
    c.ignore("max_position_embeddings sliding_window")
    front = conv(c.size("num_mel_bins"), width, 3) + conv(width, width, 3)
    return front + c.size("num_hidden_layers") * layer + width


@composite("voxtral_realtime")
def voxtral_realtime(w: Whole) -> dict[str, int | None]:
    """Voxtral Realtime joins several steps of the tower."""
    inputs = w.size("audio_config", "hidden_size") * w.config.size("downsample_factor")
    projector = mlp(inputs, w.text_width, w.text_width, bias=False)
    return {"audio_tower": w.tower("audio_config"), "multi_modal_projector": projector}
