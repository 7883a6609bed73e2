"""The tensors in a folder of safetensors files: one file, or several files that an index lists.

The `safetensors` package checks the header of a file. A faulty file is refused before any tensor is read. The file is
mapped into memory read-only, so a file may be larger than the memory. A tensor needs memory of its own only when it is
copied into the model.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, SpecError, install_hint
from llmbench.spec.reading import MOST_BYTES, open_regular, read_bytes

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


class _Stored(NamedTuple):
    """A tensor in a file. `offset`: the position of its first byte in the file."""

    file: mmap
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors in a folder, by name.

    Raises SpecError for a damaged or truncated file, for a tensor of an unknown format, and for a tensor that occurs
    twice. The message names the file. Raises CannotRunError if `safetensors` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, _Stored] = {}
        for path in _paths(folder):
            for name, tensor in _tensors(path).items():
                if name in self._tensors:
                    raise SpecError(f"{path}: tensor {_short(name)} is also in another file of the folder")
                self._tensors[name] = tensor

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._tensors)

    @property
    def elements(self) -> int:
        """The number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self._tensors.values())

    def dtype(self, name: str) -> torch.dtype:
        """Return the number format of one tensor."""
        return self._tensors[name].dtype

    def tensor(self, name: str) -> Tensor:
        """Return one tensor on the CPU. It may share memory with the read-only file: copy it before you change it."""
        file, dtype, shape, offset = self._tensors[name]
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        if file.size() < offset + count * dtype.itemsize:  # the system would end the process that reads such memory
            raise SpecError(f"{self.folder}: the file of tensor {_short(name)} was truncated after it was opened")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            if offset % dtype.itemsize:  # the address is not a multiple of the element's size
                size = count * dtype.itemsize
                return (
                    torch.frombuffer(file, dtype=torch.uint8, count=size, offset=offset).clone().view(dtype).view(shape)
                )
            return torch.frombuffer(file, dtype=dtype, count=count, offset=offset).view(shape)


def _paths(folder: Path) -> list[Path]:
    """Return the files of a checkpoint. Other safetensors files in the folder are ignored."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if os.path.isfile(index):
        files = sorted(set(_index(index).weight_map.values()))
        for name in files:
            if Path(name).name != name:
                raise SpecError(f"{index}: `{_short(name)}` is not the name of a file in the folder")
            if not os.path.isfile(folder / name):
                raise SpecError(f"{folder}: the index names {_short(name)}, which is missing")
        return [folder / name for name in files]
    if os.path.isfile(single):
        return [single]
    raise SpecError(f"{folder} has no model.safetensors", hint="llmbench reads weights only from safetensors files")


def _index(path: Path) -> _Index:
    try:
        return msgspec.json.decode(read_bytes(path), type=_Index)
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ) as problem:  # msgspec 0.19 raises UnicodeDecodeError for invalid UTF-8
        raise SpecError(f"{path} is not an index of safetensors: {problem}") from None


def _tensors(path: Path) -> dict[str, _Stored]:
    """Return the tensors of a safetensors file. The whole header is checked, but no tensor is read."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CannotRunError("reading weights needs the package `safetensors`", hint=install_hint("gpu")) from None
    with open(open_regular(path), "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if MOST_BYTES < size <= os.fstat(file.fileno()).st_size:
            raise SpecError(f"cannot read {path}: its header has more than {MOST_BYTES:,} bytes")
        try:
            with safe_open(path, framework="np"):  # checks sizes and offsets, and that no bytes are left
                pass
        except (SafetensorError, OSError) as problem:
            raise SpecError(
                f"{path} is not a safetensors file, or it is truncated or damaged: {str(problem)[:500]}",
                hint="copy or download the file again",
            ) from None
        header = json.loads(file.read(size), object_pairs_hook=lambda pairs: _without_duplicates(path, pairs))
        content = mmap(file.fileno(), 0, access=ACCESS_READ)
    header.pop("__metadata__", None)
    tensors = {}
    for name, fields in header.items():
        dtype = fields["dtype"]
        if dtype not in _DTYPES:
            raise SpecError(
                f"{path}: tensor {_short(name)} has the format {dtype}, which is not supported"
                f" (supported formats: {', '.join(_DTYPES)})"
            )
        # torch cannot create an empty tensor whose other lengths are too large
        if math.prod(max(1, length) for length in fields["shape"]) >= 2**63:
            raise SpecError(f"{path}: tensor {_short(name)} has the impossible shape {fields['shape']}")
        tensors[name] = _Stored(content, _DTYPES[dtype], tuple(fields["shape"]), 8 + size + fields["data_offsets"][0])
    return tensors


def _without_duplicates(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise SpecError(f"{path}: the header has the name {_short(name)} twice")
        fields[name] = value
    return fields


def _short(name: str) -> str:
    """Return the first characters of a tensor's name. A damaged file can have a name of any length."""
    return name if len(name) <= 200 else f"{name[:200]}…"
