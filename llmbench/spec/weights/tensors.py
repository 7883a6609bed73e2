"""The tensors of a checkpoint, for the exact bytes of its weights. The checkpoint is on a disk or on the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from llmbench.errors import LLMBenchError, SpecError
from llmbench.spec.weights.on_hub import HUB
from llmbench.spec.weights.safetensors import INDEX, SINGLE, FileTensor, Index, all_tensors, files_of, read_index

if TYPE_CHECKING:
    from llmbench.spec.model import ModelSpec
    from llmbench.spec.weights.gguf_file import GgufNames
    from llmbench.spec.weights.modules import ModuleNames

__all__ = ["PLAIN", "FileTensor", "FileTensors", "has_all_files", "has_weights", "read_tensors"]


PLAIN: dict[str, Literal["bf16", "fp16", "fp32"]] = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
"""The names in llmbench of the floating-point formats of files."""


class FileTensors(NamedTuple):
    """The tensors of files, by name. None: only the total is known, because the files are missing.

    gguf: whether the names are those of llama.cpp. listed: the index of the files, if there is one.
    """

    tensors: Mapping[str, FileTensor] | None
    total_bytes: int
    gguf: bool = False
    listed: Index | None = None

    @property
    def lacking(self) -> list[str]:
        """The names of the tensors that the index names, but no file has."""
        if self.listed is None or self.tensors is None:
            return []
        return [name for name in self.listed.weight_map if name not in self.tensors]

    @property
    def plain_dtype(self) -> Literal["bf16", "fp16", "fp32"] | None:
        """The floating-point format of most bytes. None: there are no such tensors, or no headers were read."""
        sizes = dict.fromkeys(PLAIN.values(), 0)
        for tensor in (self.tensors or {}).values():
            if tensor.dtype in PLAIN:
                sizes[PLAIN[tensor.dtype]] += tensor.size
        most = max(sizes, key=lambda name: sizes[name])
        return most if sizes[most] else None

    def names(self, spec: ModelSpec) -> ModuleNames | GgufNames:
        """Return the names of the modules of a model in these files."""
        if self.gguf and self.tensors is not None:
            from llmbench.spec.weights.gguf_file import GgufNames  # only GGUF files need it

            return GgufNames(self.tensors)
        from llmbench.spec.weights.modules import ModuleNames  # loads the tables of all families

        return ModuleNames(spec)


def has_weights(folder: Path) -> bool:
    """Return whether a folder has a safetensors file of a model, or an index of such files. It may be unreadable."""
    return os.path.lexists(folder / SINGLE) or os.path.lexists(folder / INDEX)


def has_all_files(folder: Path) -> bool:
    """Return whether a folder has all safetensors files of a model."""
    try:
        return all(map(os.path.isfile, files_of(folder)))
    except SpecError:
        return False


def read_tensors(place: str) -> FileTensors:
    """Read the headers of the files of a checkpoint. No tensor is read.

    place: a folder, a file whose name ends in .gguf, or a repository of the hub (see HUB).

    If all files of an index are missing in a folder, its total is used. Raises SpecError for a damaged file, if only
    some files of an index are missing, and if the index has no total. Raises an LLMBenchError if the hub does not send
    the headers.
    """
    if place.startswith(HUB):
        from llmbench.spec.huggingface.hub_headers import headers  # only models of the hub need it

        found = headers(place.removeprefix(HUB))
        if isinstance(found, LLMBenchError):
            raise found
        return FileTensors(found, sum(tensor.size for tensor in found.values()))
    folder, index = Path(place), None
    if folder.suffix == ".gguf":
        from llmbench.spec.weights.gguf_file import read_gguf  # only GGUF files need it

        _, blocks = read_gguf(folder)
        return FileTensors(blocks, sum(tensor.size for tensor in blocks.values()), gguf=True)
    if os.path.lexists(folder / INDEX):
        index = read_index(folder / INDEX)
        files = sorted(set(index.weight_map.values()))
        missing = [name for name in files if not os.path.lexists(folder / name)]
        if missing and len(missing) == len(files) and index.total_bytes is not None:
            return FileTensors(None, index.total_bytes, listed=index)
        if missing:
            raise SpecError(
                f"{folder}: {len(missing)} of {len(files)} files that the index names are missing: {missing[0][:200]}",
                hint="download the files, or say the format of the weights with --weights, for example --weights bf16",
            )
    tensors = all_tensors(folder)
    return FileTensors(tensors, sum(tensor.size for tensor in tensors.values()), listed=index)
