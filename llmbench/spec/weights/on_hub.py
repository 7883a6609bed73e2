"""Models whose files are on the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.printable import printable

if TYPE_CHECKING:
    from llmbench.spec.model import ModelSpec

__all__ = ["HUB", "with_headers"]

HUB = "hf:"
"""The beginning of the place of files on the Hugging Face hub: `hf:organisation/name@revision`."""


def with_headers(spec: ModelSpec) -> ModelSpec:
    """Return the model of a repository of the hub after its headers were read.

    If the hub does not send them, the model has no place of files, and a note gives the reason. The config then says
    the format of the weights. Other models are returned as they are.
    """
    if not spec.weights.tensors_in.startswith(HUB):
        return spec
    from llmbench.spec.weights.tensors import read_tensors  # models that are not on the hub do not need it

    try:
        read_tensors(spec.weights.tensors_in)
    except LLMBenchError as problem:
        note = "the bytes of the weights are those of the config, because the headers of the files were not read: "
        return msgspec.structs.replace(
            spec,
            weights=msgspec.structs.replace(spec.weights, tensors_in=""),
            notes=(*spec.notes, note + printable(str(problem))),
        )
    return spec
