"""Importer for OrionStar's Orion."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama_from_hub
from llmbench.spec.model import ModelSpec


@family("orion")
def orion(c: Config) -> ModelSpec:
    """Orion has Llama's architecture, but with LayerNorms."""
    return llama_from_hub(c, norm_kind="layernorm")
