"""Audio towers with the encoder of Whisper: Qwen2-Audio, Voxtral."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import conv, layer_norm, linear, mlp, transformer_layer


def whisper_layers(c: Config) -> int:
    """Return the parameters of Whisper's encoder without its table of positions.

    Two convolutions of three steps read the spectrogram. The key projections have no biases.
    """
    width, inner = c.size("d_model"), c.size("encoder_ffn_dim")
    front = conv(c.size("num_mel_bins"), width, 3) + conv(width, width, 3)
    c.ignore("max_source_positions")
    layers = c.size("encoder_layers") * (transformer_layer(width, inner) - width)
    return front + layers + layer_norm(width)


@tower("qwen2_audio_encoder", "voxtral_encoder")
def whisper_encoder(c: Config) -> int:
    """Whisper's encoder stores its sinusoidal positions as a table."""
    return whisper_layers(c) + c.size("max_source_positions") * c.size("d_model")


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
