"""Importers for Aquila and for the text part of Emu3, by BAAI."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama, llama_from_hub
from llmbench.spec.model import ModelSpec


@family("aquila")
def aquila(c: Config) -> ModelSpec:
    """Aquila has Llama's architecture and a model type of its own."""
    return llama_from_hub(c)


@family("emu3_text_model", "Emu3")
def emu3(c: Config) -> ModelSpec:
    """The text part of Emu3 has Llama's architecture."""
    return llama(c)
