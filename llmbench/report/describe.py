"""Short texts about a model: its headline, and the tokens that its cache stores."""

from __future__ import annotations

from collections.abc import Iterable

from llmbench.report.units import plural
from llmbench.spec.mixer import SingleMixer
from llmbench.spec.model import ModelSpec


def headline(spec: ModelSpec, *, approximate: bool = False) -> str:
    """Return a line that describes a model: `llama2-7b · 32 layers · hidden 4096 · 32 heads (MHA) · …`.

    `approximate`: add "(approximate)" to the name, even if the spec itself is exact.
    """
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
    """Return a text for the tokens that a layer's cache stores: `every token`, `the last 4,096` or `fixed size`."""
    spans = ["every token" if row.span is None else f"the last {row.span:,}" for row in mixer.cache_rows]
    if mixer.fixed_state is not None:
        spans.append("fixed size")
    return ", + ".join(spans) or "none"


def distinct(texts: Iterable[str]) -> list[str]:
    """Return the texts without repetitions, in the order of their first appearance."""
    return list(dict.fromkeys(texts))
