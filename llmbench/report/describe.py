"""Short texts about a model: its headline, and the tokens that its cache stores."""

from __future__ import annotations

from collections.abc import Iterable

from llmbench.report.units import plural
from llmbench.spec.mixer import SingleMixer
from llmbench.spec.model import ModelSpec


def headline(spec: ModelSpec, *, approximate: bool = False) -> str:
    """A model in one line: `llama2-7b · 32 layers · hidden 4096 · 32 heads (MHA) · SwiGLU 11008 · …`."""
    layers = plural(spec.num_hidden_layers, "layer")
    if spec.encoder is not None:
        layers = f"{len(spec.encoder.order)} + {layers}"
    parts = [
        spec.name + (" (approximate)" if spec.approximate or approximate else ""),
        layers,
        f"hidden {spec.hidden_size}",
        *distinct(layer.mixer.summary for layer in spec.layers.values() if layer.mixer is not None),
        *distinct(layer.ffn.summary for layer in spec.layers.values() if layer.ffn is not None),
        f"vocab {spec.vocab_size}",
        "tied" if spec.tie_word_embeddings else "untied",
    ]
    return " · ".join(parts)


def cache_span(mixer: SingleMixer) -> str:
    """The tokens that the cache of a mixer stores, as a text: `every token`, `the last 4,096`, `fixed size`."""
    spans = ["every token" if row.span is None else f"the last {row.span:,}" for row in mixer.cache_rows]
    if mixer.fixed_state is not None:
        spans.append("fixed size")
    return ", + ".join(spans) or "none"


def distinct(texts: Iterable[str]) -> list[str]:
    """The texts without repetitions, in order of first appearance."""
    return list(dict.fromkeys(texts))
