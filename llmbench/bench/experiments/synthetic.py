"""Small models made for an experiment: one layer of given parts, or a few."""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import FFN
from llmbench.spec.mixer import Attention, Mixer
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.position import Positions, Rope

__all__ = ["heads", "model_of"]


def heads(count: int, kv_heads: int, head_dim: int, **more: Any) -> Attention:
    """Causal attention of that many heads."""
    return Attention(num_attention_heads=count, num_key_value_heads=kv_heads, head_dim=head_dim, **more)


def model_of(
    name: str,
    hidden: int,
    *,
    mixer: Mixer | None = None,
    ffn: FFN | None = None,
    norm: Norm | None = None,
    positions: Positions | None = None,
    layers: int = 1,
    vocab: int = 256,
) -> ModelSpec:
    """A model of equal layers of these parts, pre-normed; RMSNorm and RoPE unless given."""
    base = load_bundled("llama2-7b")
    layer = Layer(mixer=mixer, ffn=ffn)
    return msgspec.structs.replace(
        base,
        name=name,
        hidden_size=hidden,
        vocab_size=vocab,
        norm=norm or base.norm,
        positions=positions or Rope(),
        layers={"block": layer},
        pattern=f"{layers}*block",
        published_parameters=None,
        notes=(),
    ).check()
