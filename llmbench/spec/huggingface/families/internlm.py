"""Importers for InternLM 1 to 3 by Shanghai AI Laboratory."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama, llama_from_hub
from llmbench.spec.model import ModelSpec


@family("internlm")
def internlm(c: Config) -> ModelSpec:
    """InternLM 1 has Llama's architecture. If `bias` is true, all projections of attention have biases."""
    return llama_from_hub(c, bias=c.flag("bias", True))


@family("internlm2")
def internlm2(c: Config) -> ModelSpec:
    """InternLM 2 has Llama's architecture. The config key `bias` has no effect."""
    c.ignore("bias")
    return llama(c)


@family("internlm3")
def internlm3(c: Config) -> ModelSpec:
    """InternLM 3 has Llama's architecture and a model type of its own."""
    return llama(c)
