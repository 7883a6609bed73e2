"""Reading a folder of safetensors: one file, or several that an index names.

The format (8 bytes of header length, a JSON header, the bytes) is small enough that no package is needed. Files are
mapped, not read: a tensor costs memory when it is copied into the model.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from llmbench.errors import SpecError

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

_LARGEST_HEADER = 100 * 2**20


class _Place(NamedTuple):
    """Where the bytes of one tensor are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Checkpoint:
    """The tensors of a folder by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, _Place] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        for file in _files(folder):
            for name, place in _header(file).items():
                if name in self._places:
                    raise SpecError(f"{file}: tensor {name} is in another file of the folder too")
                self._places[name] = place

    @property
    def names(self) -> set[str]:
        """The name of every tensor."""
        return set(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self._places[name].shape

    def dtypes(self) -> set[torch.dtype]:
        """The formats that the tensors have."""
        return {_DTYPES[place.dtype] for place in self._places.values()}

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU, over the mapped file; to be copied, not changed."""
        place = self._places[name]
        dtype = _DTYPES[place.dtype]
        if place.end == place.start:
            return torch.empty(place.shape, dtype=dtype)
        if place.file not in self._maps:
            with place.file.open("rb") as file:
                self._maps[place.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        raw = torch.frombuffer(
            self._maps[place.file], dtype=torch.uint8, offset=place.start, count=place.end - place.start
        )
        if place.start % dtype.itemsize:  # a header that is not padded leaves its tensors unaligned
            raw = raw.clone()
        return raw.view(dtype).view(place.shape)


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, without other safetensors that lie beside them."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        try:
            names: dict[str, Any] = msgspec.json.decode(index.read_bytes())["weight_map"]
            files = sorted({str(name) for name in names.values()})
        except (msgspec.DecodeError, KeyError, TypeError, AttributeError) as problem:
            raise SpecError(f"{index} is no index of safetensors: {problem}") from None
        for name in files:
            if Path(name).name != name:
                raise SpecError(f"{index}: `{name}` is not a file of the folder")
            if not (folder / name).is_file():
                raise SpecError(f"{folder}: the index names {name}, which is not there")
        return [folder / name for name in files]
    if single.is_file():
        return [single]
    raise SpecError(f"{folder} has no model.safetensors", hint="weights are read from safetensors only")


def _header(file: Path) -> dict[str, _Place]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, _LARGEST_HEADER):
            raise SpecError(f"{file} is not safetensors, or cut short")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = msgspec.json.decode(raw)
        header.pop("__metadata__", None)
        return {name: _place(file, name, entry, 8 + length, size) for name, entry in header.items()}
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise SpecError(f"{file} is not safetensors: {problem}") from None


def _place(file: Path, name: str, entry: dict[str, Any], data: int, size: int) -> _Place:
    kind, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
    start, end = (data + int(offset) for offset in entry["data_offsets"])
    if kind not in _DTYPES:
        raise SpecError(f"{file}: tensor {name} has the format {kind}, which is not known")
    elements = 1
    for n in shape:
        elements *= n
    if (
        min(shape, default=0) < 0
        or not data <= start <= end <= size
        or end - start != elements * _DTYPES[kind].itemsize
    ):
        raise SpecError(f"{file}: tensor {name} does not fit the file; it is cut short or damaged")
    return _Place(file, kind, shape, start, end)
