"""Reading a folder of safetensors: one file, or several that an index names.

The format (8 bytes of header length, a JSON header, the bytes) is small enough that no package is needed. Files are
mapped, not read: a tensor costs memory when it is copied into the model.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

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

T = TypeVar("T")


class _Index(msgspec.Struct):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: dict[str, str]


class _Entry(msgspec.Struct):
    """What a header says of one tensor; its offsets count from the header's end."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


class _Place(NamedTuple):
    """Where the bytes of one tensor are."""

    file: Path
    dtype: torch.dtype
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

    def dtype(self, name: str) -> torch.dtype:
        """The format of one tensor."""
        return self._places[name].dtype

    def tensor(self, name: str) -> Tensor:
        """One tensor on the CPU, over the mapped file; to be copied, not changed."""
        place = self._places[name]
        dtype = place.dtype
        if place.end == place.start:
            return torch.empty(place.shape, dtype=dtype)
        if place.file not in self._maps:
            with _reading(place.file), place.file.open("rb") as file:
                self._maps[place.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        raw = torch.frombuffer(
            self._maps[place.file], dtype=torch.uint8, offset=place.start, count=place.end - place.start
        )
        if place.start % dtype.itemsize:  # a header that is not padded leaves its tensors unaligned
            raw = raw.clone()
        return raw.view(dtype).view(place.shape)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What the system says of a file, as a SpecError that names it."""
    try:
        yield
    except OSError as problem:
        raise SpecError(f"cannot read {file}: {problem.strerror}") from None


def _decoded(text: bytes | msgspec.Raw, kind: type[T], fault: str) -> T:
    """JSON as a `kind`; otherwise a SpecError that begins with `fault`."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as problem:
        reason = str(problem)
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except RecursionError:
        reason = "nested too deeply"
    raise SpecError(f"{fault}: {reason}")


def _files(folder: Path) -> list[Path]:
    """The files of a checkpoint, without other safetensors that lie beside them."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.is_file():
        with _reading(index):
            text = index.read_bytes()
        files = sorted(set(_decoded(text, _Index, f"{index} is no index of safetensors").weight_map.values()))
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
    with _reading(file):
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
            if length > min(size - 8, _LARGEST_HEADER):
                raise SpecError(f"{file} is no safetensors file, or cut short")
            text = stream.read(length)
    header = _decoded(text, dict[str, msgspec.Raw], f"{file} is no safetensors file")
    header.pop("__metadata__", None)
    return {name: _place(file, name, entry, 8 + length, size) for name, entry in header.items()}


def _place(file: Path, name: str, said: msgspec.Raw, data: int, size: int) -> _Place:
    entry = _decoded(said, _Entry, f"{file}: tensor {name}")
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise SpecError(f"{file}: tensor {name} has the format {entry.dtype}, which is not known")
    start, end = (data + offset for offset in entry.data_offsets)
    if not data <= start <= end <= size or end - start != math.prod(entry.shape) * dtype.itemsize:
        raise SpecError(f"{file}: tensor {name} does not fit the file; it is cut short or damaged")
    return _Place(file, dtype, entry.shape, start, end)
