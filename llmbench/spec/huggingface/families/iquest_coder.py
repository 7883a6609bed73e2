"""Importer for IQuest-Coder."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama
from llmbench.spec.model import ModelSpec


@family("iquestcoder")
def iquestcoder(c: Config) -> ModelSpec:
    """IQuest-Coder has Llama's architecture and a model type of its own."""
    return llama(c)
