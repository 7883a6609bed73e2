"""A model in one line, and in the words of the field."""

from __future__ import annotations

from collections.abc import Iterable

from llmbench.report.units import plural
from llmbench.spec.ffn import FFN, Dense, MoE
from llmbench.spec.mixer import (
    RGLRU,
    RWKV,
    Attention,
    CompressedAttention,
    GatedDeltaNet,
    KimiDelta,
    LatentAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    Mixer,
    Parallel,
    ShortConv,
    SingleMixer,
)
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Alibi, LearnedPositions, Positions, RelativeBias, Rope, SinusoidalPositions

_GLU = {
    "silu": "SwiGLU",
    "gelu": "GEGLU",
    "gelu_tanh": "GEGLU",
    "relu": "ReGLU",
    "sigmoid": "GLU",
    "swiglu_oai": "SwiGLU",
}
_ACTIVATION = {
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "relu": "ReLU",
    "relu2": "ReLU²",
    "silu": "SiLU",
    "xielu": "xIELU",
}
_MIXER = {
    CompressedAttention: "compressed attention",
    Mamba: "Mamba",
    Mamba2: "Mamba-2",
    GatedDeltaNet: "gated delta net",
    KimiDelta: "Kimi delta attention",
    LightningAttention: "lightning attention",
    RGLRU: "RG-LRU",
    ShortConv: "short convolution",
    RWKV: "RWKV",
}


def headline(spec: ModelSpec, *, approximate: bool = False) -> str:
    """`llama2-7b · 32 layers · hidden 4096 · 32 heads (MHA) · SwiGLU 11008 · vocab 32000 · untied`."""
    layers = plural(spec.num_hidden_layers, "layer")
    if spec.encoder is not None:
        layers = f"{len(spec.encoder.order)} + {layers}"
    parts = [
        spec.name + (" (approximate)" if spec.approximate or approximate else ""),
        layers,
        f"hidden {spec.hidden_size}",
        *distinct(mixer_text(layer.mixer) for layer in spec.layers.values() if layer.mixer is not None),
        *distinct(ffn_text(layer.ffn) for layer in spec.layers.values() if layer.ffn is not None),
        f"vocab {spec.vocab_size}",
        "tied" if spec.tie_word_embeddings else "untied",
    ]
    return " · ".join(parts)


def mixer_text(mixer: Mixer) -> str:
    """`32 heads (MHA)`, `128 heads (MLA)`, `Mamba-2`."""
    if isinstance(mixer, Parallel):
        return " beside ".join(mixer_text(branch) for branch in mixer.branches)
    if isinstance(mixer, Attention):
        heads = plural(mixer.num_attention_heads, "head")
        return f"{heads} (GQA, {mixer.num_key_value_heads} KV)" if mixer.label == "GQA" else f"{heads} ({mixer.label})"
    if isinstance(mixer, LatentAttention):
        return f"{plural(mixer.num_attention_heads, 'head')} (MLA)"
    return kind_text(mixer)


def kind_text(mixer: SingleMixer) -> str:
    """The kind of a mixer: MHA, GQA, MQA, MLA, Mamba …"""
    if isinstance(mixer, Attention):
        return mixer.label
    return "MLA" if isinstance(mixer, LatentAttention) else _MIXER[type(mixer)]


def ffn_text(ffn: FFN) -> str:
    """`SwiGLU 11008`, `8 experts, 2 a token, SwiGLU 14336`."""
    if isinstance(ffn, MoE):
        name = _GLU.get(ffn.activation, ffn.activation) if ffn.gated else activation_text(ffn.activation)
        shared = " + shared" if ffn.shared is not None else ""
        experts = f"{plural(ffn.num_experts, 'expert')}, {ffn.num_experts_per_tok} a token{shared}"
        return f"{experts}, {name} {ffn.intermediate_size}"
    if isinstance(ffn, Dense):
        return f"{activation_text(ffn.activation)} {ffn.intermediate_size}"
    return f"{_GLU.get(ffn.activation, 'gated ' + ffn.activation)} {ffn.intermediate_size}"


def activation_text(name: str) -> str:
    """An activation as the field writes it."""
    return _ACTIVATION.get(name, name)


def positions_text(positions: Positions) -> str:
    """`RoPE (θ 10000)`, `learned (1024)`, `ALiBi`."""
    if isinstance(positions, Rope):
        details = [f"θ {positions.theta:g}"]
        if positions.rotary_dim is not None:
            details.append(f"{positions.rotary_dim} dims")
        if positions.scaling is not None:
            details.append(f"{positions.scaling.kind} ×{positions.scaling.factor:g}")
        return f"RoPE ({', '.join(details)})"
    if isinstance(positions, LearnedPositions):
        return f"learned ({positions.num_positions - positions.offset})"
    if isinstance(positions, RelativeBias):
        return f"relative bias ({positions.num_buckets} buckets)"
    if isinstance(positions, Alibi):
        return "ALiBi"
    return "sinusoidal" if isinstance(positions, SinusoidalPositions) else "none"


def distinct(texts: Iterable[str]) -> list[str]:
    """The texts in order, each once."""
    return list(dict.fromkeys(texts))
