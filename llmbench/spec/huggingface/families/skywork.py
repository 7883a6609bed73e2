"""Importer for Skywork's models."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama_from_hub
from llmbench.spec.model import ModelSpec


@family("skywork")
def skywork(c: Config) -> ModelSpec:
    """Skywork has Llama's architecture and a model type of its own."""
    return llama_from_hub(c)
