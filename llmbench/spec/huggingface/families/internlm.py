"""InternLM 1 to 3 by Shanghai AI Laboratory."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.llama import llama, llama_from_hub
from llmbench.spec.model import ModelSpec


@family("internlm")
def internlm(c: Config) -> ModelSpec:
    """InternLM 1 is Llama. `bias` gives the projections of attention a bias."""
    return llama_from_hub(c, bias=c.flag("bias", True))


@family("internlm2")
def internlm2(c: Config) -> ModelSpec:
    """InternLM 2 is Llama. Its class ignores `bias`."""
    c.ignore("bias")
    return llama(c)


@family("internlm3")
def internlm3(c: Config) -> ModelSpec:
    """InternLM 3 is Llama under its own name."""
    return llama(c)
