"""The tensors in a folder of safetensors files: one file, or several files that an index lists.

The `safetensors` package checks the header of a file and memory-maps the file. A tensor therefore needs memory only
when it is copied into the model. A faulty file is refused before any tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, SpecError, install_hint

if TYPE_CHECKING:
    from safetensors import safe_open

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The torch dtype of each format that llmbench reads, by the name that the header of a file uses."""


class _Index(msgspec.Struct):
    """The content of model.safetensors.index.json, which names the file of each tensor."""

    weight_map: dict[str, str]


class Checkpoint:
    """The tensors in a folder, by name.

    Raises SpecError for a damaged or truncated file, for a tensor of an unknown format, and for a tensor that two files
    contain. The message names the file. Raises CannotRunError if `safetensors` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, safe_open] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for path in _paths(folder):
            file = _opened(path)
            for name in file.keys():  # noqa: SIM118 (a file is not a mapping)
                if name in self._files:
                    raise SpecError(f"{path}: tensor {name} is also in another file of the folder")
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    known = ", ".join(_DTYPES)
                    raise SpecError(
                        f"{path}: tensor {name} has the format {dtype}, which is not supported"
                        f" (supported formats: {known})"
                    )
                self._files[name], self._dtypes[name] = file, _DTYPES[dtype]

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._files)

    def dtype(self, name: str) -> torch.dtype:
        """Return the number format of one tensor."""
        return self._dtypes[name]

    def tensor(self, name: str) -> Tensor:
        """Return one tensor on the CPU. It shares memory with the mapped file, so copy it before you change it."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert an error of the operating system to a SpecError that names the file."""
    try:
        yield
    except OSError as problem:
        raise SpecError(f"cannot read {path}: {problem.strerror or problem}") from None


def _paths(folder: Path) -> list[Path]:
    """Return the files of a checkpoint. Other safetensors files in the folder are ignored."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        files = sorted(set(_index(index).weight_map.values()))
        for name in files:
            if Path(name).name != name:
                raise SpecError(f"{index}: `{name}` is not the name of a file in the folder")
            if not (folder / name).is_file():
                raise SpecError(f"{folder}: the index names {name}, which is missing")
        return [folder / name for name in files]
    if single.is_file():
        return [single]
    raise SpecError(f"{folder} has no model.safetensors", hint="llmbench reads weights only from safetensors files")


def _index(path: Path) -> _Index:
    with _reading(path):
        text = path.read_bytes()
    try:
        return msgspec.json.decode(text, type=_Index)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ) as problem:  # msgspec 0.19 raises UnicodeDecodeError for invalid UTF-8
        raise SpecError(f"{path} is not an index of safetensors: {problem}") from None


def _opened(path: Path) -> safe_open:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CannotRunError("reading weights needs the package `safetensors`", hint=install_hint("gpu")) from None
    with _reading(path):
        # If the file cannot be read, open() raises an error with the reason. The error of safe_open() has no reason.
        path.open("rb").close()
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as problem:
            raise SpecError(
                f"{path} is not a safetensors file, or it is truncated or damaged: {problem}",
                hint="copy or download the file again",
            ) from None
