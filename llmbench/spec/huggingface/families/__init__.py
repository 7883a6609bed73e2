"""Importers: a function for each model type turns its config into a ModelSpec.

`@family("llama", ...)` registers a function for these model types. A file holds one lineage: the models of one maker,
or of one class that many makers took over (bert, bart, mamba). `common.py` has what importers share.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from llmbench.spec.huggingface.config import Config
from llmbench.spec.model import ModelSpec

Importer = Callable[[Config], ModelSpec]
ImporterT = TypeVar("ImporterT", bound=Importer)
FAMILIES: dict[str, Importer] = {}
"""The importer of each model type."""


def family(*model_types: str) -> Callable[[ImporterT], ImporterT]:
    """Register an importer for these model types."""

    def register(importer: ImporterT) -> ImporterT:
        for model_type in model_types:
            assert model_type not in FAMILIES, f"{model_type} has two importers"
            FAMILIES[model_type] = importer
        return importer

    return register


for _file in sorted(Path(__file__).parent.glob("[a-z]*.py")):  # each registers its importers
    importlib.import_module(f"{__name__}.{_file.stem}")
