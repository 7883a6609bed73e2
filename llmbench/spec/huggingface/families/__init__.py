"""One function a family: a config of that model_type becomes a ModelSpec.

`@family("llama", ...)` registers it for those model types. Importing this package registers all of them.
"""

from __future__ import annotations

from collections.abc import Callable

from llmbench.spec.huggingface.config import Config
from llmbench.spec.model import ModelSpec

Importer = Callable[[Config], ModelSpec]
FAMILIES: dict[str, Importer] = {}


def family(*model_types: str) -> Callable[[Importer], Importer]:
    """Register an importer for these model types."""

    def register(importer: Importer) -> Importer:
        for model_type in model_types:
            assert model_type not in FAMILIES, f"{model_type} has two importers"
            FAMILIES[model_type] = importer
        return importer

    return register


from llmbench.spec.huggingface.families import (  # noqa: E402, F401
    compressed,
    deberta,
    dense,
    dense_kin,
    encoders,
    gemma,
    gemma_edge,
    gpt,
    gpt_kin,
    hybrid,
    latent,
    linear,
    mixture,
    mixture_kin,
    odd_moe,
    remote,
    remote_dense,
    seq2seq,
    shared_moe,
    state_space,
    vision_text,
)
