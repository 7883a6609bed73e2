"""Headers of safetensors files: name, number format, shape and place of each tensor. No tensor is read.

A file begins with the size of its header in 8 bytes (little endian). The header is a JSON object. The tensors follow it
without gaps (https://huggingface.co/docs/safetensors). A faulty header is refused.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmbench.errors import SpecError
from llmbench.printable import printable
from llmbench.spec.reading import MOST_BYTES, open_regular, read_bytes

__all__ = [
    "INDEX",
    "MOST_TENSORS",
    "SINGLE",
    "FileTensor",
    "Index",
    "all_tensors",
    "checked_header",
    "checked_index",
    "files_of",
    "merged",
    "read_index",
    "short",
]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "U64": 64, "I32": 32, "U32": 32, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "C64": 64, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
"""Bits of an element of each format, by the name that the header uses."""

MOST_TENSORS = 400_000
"""The largest number of tensors of a checkpoint. The largest real checkpoints have about 200,000."""

_MOST_DIMENSIONS = 64
_FIELDS = {"dtype", "shape", "data_offsets"}
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
"""Matches a string of JSON."""


class FileTensor(NamedTuple):
    """A tensor in a file.

    offset: position of its first byte in the file. size: its bytes. block: whether `dtype` is a block type of GGUF.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    block: bool = False

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class _Metadata(msgspec.Struct):
    total_size: int | float | None = None


class Index(msgspec.Struct):
    """The content of model.safetensors.index.json, which names the file of each tensor."""

    weight_map: dict[str, str]
    metadata: _Metadata | None = None

    @property
    def total_bytes(self) -> int | None:
        """The bytes of all tensors, if the index says them."""
        total = None if self.metadata is None else self.metadata.total_size
        return int(total) if total is not None and 0 < total < 2**63 else None


def read_index(path: Path) -> Index:
    """Return an index. Raises SpecError if it cannot be read, or if it names a file outside its folder."""
    return checked_index(read_bytes(path), str(path))


def checked_index(content: bytes, where: str) -> Index:
    """Return the index that a JSON text contains. Raises SpecError if it is none."""
    try:
        index = msgspec.json.decode(content, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:  # msgspec 0.19 raises the second one
        raise SpecError(f"{where} is not an index of safetensors: {problem}") from None
    for name in set(index.weight_map.values()):
        if Path(name).name != name or name in ("", "..") or not name.isprintable():
            raise SpecError(f"{where}: `{short(name)}` is not the name of a file in the folder")
    return index


def files_of(folder: Path) -> list[Path]:
    """Return the files of a checkpoint. Other safetensors files in the folder are ignored.

    Raises SpecError if the folder has neither model.safetensors nor an index, and if a file of the index is missing.
    """
    if os.path.lexists(folder / INDEX):
        files = sorted(set(read_index(folder / INDEX).weight_map.values()))
        for name in files:
            if not os.path.lexists(folder / name):
                raise SpecError(f"{folder}: the index names {short(name)}, which is missing")
        return [folder / name for name in files]
    if os.path.lexists(folder / SINGLE):
        return [folder / SINGLE]
    raise SpecError(f"{folder} has no {SINGLE}", hint="llmbench reads weights only from safetensors files")


def all_tensors(folder: Path) -> dict[str, FileTensor]:
    """Return all tensors of a checkpoint, by name. Raises SpecError for a tensor that is in two files."""
    return merged((str(path), _header_of(path)) for path in files_of(folder))


def _header_of(path: Path) -> dict[str, FileTensor]:
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = file.read(checked_length(length, size, str(path)))
    return checked_header(header, size, str(path))


def merged(files: Iterable[tuple[str, Mapping[str, FileTensor]]]) -> dict[str, FileTensor]:
    """Return the tensors of several files, each a name and its tensors. Raises SpecError for a tensor in two files."""
    tensors: dict[str, FileTensor] = {}
    for file, own in files:
        for name, tensor in own.items():
            if name in tensors:
                raise SpecError(f"{file}: tensor {short(name)} is also in another file of the model")
            tensors[name] = tensor
        if len(tensors) > MOST_TENSORS:
            raise SpecError(f"the files of the model have more than {MOST_TENSORS:,} tensors")
    return tensors


def checked_length(length: int, size: int, where: str) -> int:
    """Return the length of a header. Raises SpecError if it is impossible. size: bytes of the file."""
    if 8 + length > size or length < 2:
        raise _damaged(where, f"a header of {length:,} bytes, in a file of {size:,} bytes")
    if length > MOST_BYTES:
        raise SpecError(f"cannot read {where}: its header has more than {MOST_BYTES:,} bytes")
    return length


@contextmanager
def _without_collections() -> Iterator[None]:
    """Stop Python's search for unreachable objects, which would visit millions of new objects several times."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collections()
def checked_header(header: bytes, size: int, where: str) -> dict[str, FileTensor]:
    """Return the tensors that a header describes. size: bytes of the file. where: name of the file in messages.

    Raises SpecError if a field is wrong, a name occurs twice, or the tensors overlap, leave a gap or exceed the file.
    """
    fields = _fields(header, where)
    fields.pop("__metadata__", None)
    if len(fields) > MOST_TENSORS:
        raise SpecError(f"cannot read {where}: it has {len(fields):,} tensors, more than {MOST_TENSORS:,}")
    start = 8 + len(header)
    tensors = {name: _tensor(name, entry, start, where) for name, entry in fields.items()}
    at = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != at:
            raise _damaged(where, f"tensor {short(name)} overlaps another tensor, or there is a gap before it")
        at += tensor.size
    if at != size:
        raise _damaged(where, f"its tensors end at byte {at:,}, but the file has {size:,} bytes")
    return tensors


def _fields(header: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a header. Raises SpecError if it is none, or if a name occurs twice."""
    try:
        fields = msgspec.json.decode(header)
        # msgspec is fast, but does not report a name that occurs twice: it keeps fewer names than there are colons.
        if isinstance(fields, dict) and _names(fields) == _STRING.sub(b"", header).count(b":"):
            return fields
        fields = json.loads(header, object_pairs_hook=lambda pairs: _without_duplicates(where, pairs))
    except (msgspec.DecodeError, ValueError, RecursionError) as problem:
        raise _damaged(where, f"its header is not JSON ({problem})") from None
    if not isinstance(fields, dict):
        raise _damaged(where, "its header is not a JSON object")
    return fields


def _names(fields: dict[str, Any]) -> int:
    """Return the number of names in a header and in the objects of its tensors."""
    return len(fields) + sum(len(entry) for entry in fields.values() if isinstance(entry, dict))


def _tensor(name: str, entry: Any, start: int, where: str) -> FileTensor:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise _damaged(where, f"tensor {short(name)} needs the fields dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(where, f"tensor {short(name)} has the unknown format {str(dtype)[:40]}")
    if not _whole(shape) or len(shape) > _MOST_DIMENSIONS or math.prod(filter(None, shape)) >= 2**63:
        raise _damaged(where, f"tensor {short(name)} has the impossible shape {str(shape)[:200]}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(where, f"tensor {short(name)} has the impossible place {str(offsets)[:200]}")
    size = offsets[1] - offsets[0]
    if 8 * size != math.prod(shape) * BITS[dtype]:
        raise _damaged(where, f"tensor {short(name)} has {size:,} bytes, which is not its shape {str(shape)[:200]}")
    return FileTensor(dtype, tuple(shape), start + offsets[0], size)


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _damaged(where: str, reason: str) -> SpecError:
    return SpecError(
        f"{where} is not a safetensors file, or it is truncated or damaged: {reason[:500]}",
        hint="copy or download the file again",
    )


def _without_duplicates(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise SpecError(f"{where}: the header has the name {short(name)} twice")
        fields[name] = value
    return fields


def short(name: str) -> str:
    """Return the first characters of a tensor's name, printable. A damaged file can have a name of any length."""
    return printable(name if len(name) <= 200 else f"{name[:200]}…")
