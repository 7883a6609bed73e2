"""Importer for 01.AI's Yi."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama
from llmbench.spec.model import ModelSpec


@family("Yi")
def yi(c: Config) -> ModelSpec:
    """Yi has Llama's architecture and a model type of its own."""
    return llama(c)
