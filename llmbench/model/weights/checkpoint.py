"""The tensors in a folder of safetensors files: one file, or several files that an index lists.

`llmbench.spec.weights.safetensors` checks the header of a file. A faulty file is refused before any tensor is read.
The file is mapped into memory read-only, so a file may be larger than the memory. A tensor needs memory of its own only
when it is copied into the model.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.errors import SpecError
from llmbench.spec.reading import open_regular
from llmbench.spec.weights.safetensors import checked_header, checked_length, files_of, short

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


class _Stored(NamedTuple):
    """A tensor in a file. `offset`: the position of its first byte in the file."""

    file: mmap
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors in a folder, by name.

    Raises SpecError for a damaged or truncated file, for a tensor of an unknown format, and for a tensor that occurs
    twice. The message names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tensors: dict[str, _Stored] = {}
        for path in files_of(folder):
            for name, tensor in _tensors(path).items():
                if name in self._tensors:
                    raise SpecError(f"{path}: tensor {short(name)} is also in another file of the folder")
                self._tensors[name] = tensor

    def rename(self, new_name: Callable[[str], str | None]) -> None:
        """Give each tensor the name that `new_name` returns for its name. Leave out a tensor for which it returns None.

        Raises SpecError if two tensors get the same name.
        """
        tensors: dict[str, _Stored] = {}
        for old, tensor in self._tensors.items():
            name = new_name(old)
            if name in tensors:
                raise SpecError(f"{self.folder}: two tensors of the language model are called {short(name)}")
            if name is not None:
                tensors[name] = tensor
        self._tensors = tensors

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
        return _read(self._tensors[name], f"{self.folder}: the file of tensor {short(name)}")


def tensors_in(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file by name, on the CPU. Copy a tensor before you change it.

    Raises SpecError for a damaged file, and for a tensor of an unknown format.
    """
    return {name: _read(tensor, str(path)) for name, tensor in _tensors(path).items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a new safetensors file, and flush it to the disk. Raises OSError if it cannot be written."""
    names = {dtype: name for name, dtype in _DTYPES.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _read(stored: _Stored, where: str) -> Tensor:
    """Return a tensor, which may share memory with the read-only file. `where`: the file in error messages."""
    file, dtype, shape, offset = stored
    count = math.prod(shape)
    if not count:
        return torch.empty(shape, dtype=dtype)
    if file.size() < offset + count * dtype.itemsize:  # the system would end the process that reads such memory
        raise SpecError(f"{where} was truncated after it was opened")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        if offset % dtype.itemsize:  # the address is not a multiple of the element's size
            size = count * dtype.itemsize
            return torch.frombuffer(file, dtype=torch.uint8, count=size, offset=offset).clone().view(dtype).view(shape)
        return torch.frombuffer(file, dtype=dtype, count=count, offset=offset).view(shape)


def _tensors(path: Path) -> dict[str, _Stored]:
    """Return the tensors of a safetensors file. The whole header is checked, but no tensor is read."""
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        header = checked_header(file.read(checked_length(length, size, str(path))), size, str(path))
        content = mmap(file.fileno(), 0, access=ACCESS_READ)
    tensors = {}
    for name, tensor in header.items():
        if tensor.dtype not in _DTYPES:
            raise SpecError(
                f"{path}: tensor {short(name)} has the format {tensor.dtype}, which is not supported"
                f" (supported formats: {', '.join(_DTYPES)})"
            )
        tensors[name] = _Stored(content, _DTYPES[tensor.dtype], tensor.shape, tensor.offset)
    return tensors
