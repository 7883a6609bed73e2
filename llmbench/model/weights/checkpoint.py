"""The tensors of a folder of safetensors: one file, or several that an index names.

The `safetensors` package checks a file's header and maps the file: a tensor costs memory when it is copied into the
model. Nothing but headers is read before a file is refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, SpecError

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
"""The formats that are read, by their name in a header."""


class _Index(msgspec.Struct):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]


class Checkpoint:
    """The tensors of a folder by name.

    Raises SpecError, which names the file and the tensor, for a file that is damaged or cut short, for a tensor of an
    unknown format, and for one that two files have. Raises CannotRunError where `safetensors` is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, safe_open] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        for path in _paths(folder):
            file = _opened(path)
            for name in file.keys():  # noqa: SIM118 (a file is not a mapping)
                if name in self._files:
                    raise SpecError(f"{path}: tensor {name} is in another file of the folder too")
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _DTYPES:
                    raise SpecError(f"{path}: tensor {name} {_unknown_format(dtype)}")
                self._files[name], self._dtypes[name] = file, _DTYPES[dtype]

    @property
    def names(self) -> set[str]:
        """The name of every tensor."""
        return set(self._files)

    def dtype(self, name: str) -> torch.dtype:
        """The format of one tensor."""
        return self._dtypes[name]

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU, over the mapped file; to be copied, not changed."""
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn an error of the system into a SpecError that names the file."""
    try:
        yield
    except OSError as problem:
        raise SpecError(f"cannot read {path}: {problem.strerror or problem}") from None


def _paths(folder: Path) -> list[Path]:
    """The files of a checkpoint, without other safetensors in the folder."""
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
    raise SpecError(f"{folder} has no model.safetensors", hint="weights are read from safetensors only")


def _index(path: Path) -> _Index:
    with _reading(path):
        text = path.read_bytes()
    try:
        return msgspec.json.decode(text, type=_Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:  # Unicode: msgspec 0.19
        raise SpecError(f"{path} is not an index of safetensors: {problem}") from None


def _opened(path: Path) -> safe_open:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise CannotRunError(
            "reading weights needs the package `safetensors`", hint="pip install 'llmbench[gpu]'"
        ) from None
    with _reading(path):
        path.open("rb").close()  # an error of the system is raised here, with its text; the package's has none
        try:
            return safe_open(path, framework="pt")
        except SafetensorError as problem:
            raise _refusal(path, str(problem)) from None


# Messages of the package name no tensor, and those of older versions are bare codes.


def _refusal(path: Path, reason: str) -> SpecError:
    """The error for a file that the package refuses, with the first tensor whose entry in the header is wrong."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            return SpecError(f"{path} is not a safetensors file, or is cut short")
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        reason = "its header is not UTF-8"
    except ValueError as problem:
        reason = f"its header is not JSON: {problem}"
    except RecursionError:
        reason = "its header is nested too deeply"
    else:
        if not isinstance(header, dict):
            return SpecError(f"{path} is not a safetensors file: its header is not an object")
        for name, entry in header.items():
            fault = None if name == "__metadata__" else _fault(entry, size - 8 - length)
            if fault is not None:
                return SpecError(f"{path}: tensor {name} {fault}")
    return SpecError(f"{path} is not a safetensors file, or is damaged: {reason}")


def _fault(entry: Any, data_bytes: int) -> str | None:
    """What is wrong with the entry of one tensor, in a file with `data_bytes` behind the header; None if nothing."""
    if not isinstance(entry, dict):
        return "has an entry that is not an object"
    missing = [key for key in ("dtype", "shape", "data_offsets") if key not in entry]
    if missing:
        return f"has no `{missing[0]}`"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _DTYPES:
        return _unknown_format(dtype)
    if not _sizes(shape):
        return "has a shape that is not a list of whole numbers from 0"
    if not _sizes(offsets) or len(offsets) != 2:
        return "has data_offsets that are not two whole numbers from 0"
    start, end = offsets
    if not start <= end <= data_bytes or end - start != math.prod(shape) * _DTYPES[dtype].itemsize:
        return "does not fit the file, which is cut short or damaged"
    return None


def _unknown_format(dtype: object) -> str:
    return f"has the format {dtype}, which is not supported; supported are {', '.join(_DTYPES)}"


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
