"""Headers of GGUF files: metadata, and name, block type and shape of each tensor. No tensor is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A faulty header is refused.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmbench.errors import SpecError
from llmbench.spec.reading import open_regular
from llmbench.spec.weights.gguf import BLOCKS
from llmbench.spec.weights.safetensors import FileTensor, short

__all__ = ["GgufNames", "read_gguf"]

_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""Numbers of the types of tensors (`ggml_type` in ggml.h)."""

_BLOCKS: dict[str, tuple[int, int]] = {str(name): block for name, block in BLOCKS.items()}
_BLOCKS |= {"I8": (1, 1), "I16": (1, 2), "I32": (1, 4), "I64": (1, 8), "F64": (1, 8)}
"""Elements and bytes of a block of each type."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata with a fixed size, as codes of `struct`. 8 is a string, and 9 an array."""

_MOST_ENTRIES = 100_000
_MOST_ITEMS = 100_000_000
_MOST_TEXTS = 2_000_000
"""The most texts in all arrays. The vocabulary and merges of the largest real files are less than 1,000,000."""
_MOST_NAME = 65_535
_MOST_HEADER = 128 * 1024**2
"""The largest header in bytes. It contains the vocabulary: real headers have 6 to 17 MB."""


class _Reader:
    """Reads the fields of a header. It never reads behind the end of the file."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self.file, self.where = file, where
        self.texts = 0
        self.size = min(os.fstat(file.fileno()).st_size, _MOST_HEADER)

    def refuse(self, reason: str) -> SpecError:
        return SpecError(
            f"{self.where} is not a GGUF file, or it is truncated or damaged: {reason}",
            hint="copy or download the file again",
        )

    def take(self, size: int) -> bytes:
        if size > self.size - self.file.tell():
            raise self.refuse("its header goes beyond its end")
        return self.file.read(size)

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > _MOST_NAME:
            raise self.refuse(f"a name has {length:,} bytes")
        return self.take(length).decode(errors="replace")

    def skip(self, size: int) -> None:
        if size > self.size - self.file.tell():
            raise self.refuse("its header goes beyond its end")
        self.file.seek(size, os.SEEK_CUR)

    def count(self, most: int, what: str) -> int:
        count = int(self.number("Q"))
        if count > most:
            raise self.refuse(f"it has {count:,} {what}")
        return count

    def value(self) -> Any:
        """Return a number or a text, and skip an array (its value is None)."""
        kind = self.number("I")
        if kind == 8:
            length = self.number("Q")
            if length > _MOST_NAME:
                self.skip(length)
                return None
            return self.take(length).decode(errors="replace")
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind != 9:
            raise self.refuse(f"metadata has the unknown type {kind}")
        inner, count = self.number("I"), self.count(_MOST_ITEMS, "items in an array")
        if inner in _NUMBERS:
            self.skip(count * struct.calcsize(f"<{_NUMBERS[inner]}"))
        elif inner == 8:
            self.texts += count
            if self.texts > _MOST_TEXTS:
                raise self.refuse(f"its arrays have {self.texts:,} texts")
            for _ in range(count):
                self.skip(self.number("Q"))
        else:
            raise self.refuse(f"an array has the unknown type {inner}")
        return None


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, FileTensor]]:
    """Return the metadata and the tensors of a GGUF file. Arrays in the metadata are None.

    Raises SpecError if the file cannot be read, is damaged, or has a type that llmbench does not know.
    """
    with open(open_regular(path), "rb") as file:
        reader = _Reader(file, str(path))
        if reader.take(4) != b"GGUF":
            raise reader.refuse("it does not begin with GGUF")
        version = reader.number("I")
        if version not in (2, 3):
            raise SpecError(f"cannot read {path}: it has version {version} of GGUF (llmbench reads 2 and 3)")
        tensors, entries = reader.count(_MOST_ENTRIES, "tensors"), reader.count(_MOST_ENTRIES, "entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name = reader.text()
            if name in metadata:
                raise reader.refuse(f"it has the metadata {short(name)} twice")
            metadata[name] = reader.value()
        found: dict[str, FileTensor] = {}
        for _ in range(tensors):
            name, tensor = reader.text(), _tensor(reader)
            if name in found:
                raise reader.refuse(f"it has the tensor {short(name)} twice")
            found[name] = tensor
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise reader.refuse(f"its alignment must be a power of 2, not {repr(alignment)[:40]}")
        start = -(-file.tell() // alignment) * alignment
        end, size = 0, os.fstat(file.fileno()).st_size
        for name, tensor in sorted(found.items(), key=lambda item: item[1].offset):
            if tensor.offset < end:
                raise reader.refuse(f"tensor {short(name)} overlaps another tensor")
            end = tensor.offset + tensor.size
        if found and start + end > size:
            raise reader.refuse(f"its tensors end at byte {start + end:,}, but the file has {size:,} bytes")
        return metadata, found


def _tensor(reader: _Reader) -> FileTensor:
    dimensions = reader.number("I")
    if dimensions > 4:
        raise reader.refuse(f"a tensor has {dimensions} dimensions")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    kind, offset = reader.number("I"), reader.number("Q")
    if kind not in _TYPES:
        raise SpecError(f"cannot read {reader.where}: llmbench does not know the type {kind} of a tensor")
    elements, (block, size) = math.prod(shape), _BLOCKS[_TYPES[kind]]
    if elements >= 2**63 or (shape and shape[0] % block):
        raise reader.refuse(f"a tensor of type {_TYPES[kind]} has the impossible shape {shape}")
    return FileTensor(_TYPES[kind], shape[::-1], offset, elements // block * size, block=True)


_OUTSIDE = {
    "embedding": ("token_embd",),
    "final_norm": ("output_norm",),
    "lm_head": ("output",),
    "position_embedding": ("position_embd",),
    "embedding_norm": ("token_embd_norm",),
}
_LAYER = {
    "mixer_norm": ("attn_norm",),
    "norm": ("attn_norm",),
    "ffn_norm": ("ffn_norm", "post_attention_norm"),
    "post_mixer_norm": ("post_attention_norm",),
    "post_ffn_norm": ("post_ffw_norm",),
    "attention.q_proj": ("attn_q", "attn_qkv"),
    "attention.k_proj": ("attn_k", "attn_qkv"),
    "attention.v_proj": ("attn_v", "attn_qkv"),
    "attention.o_proj": ("attn_output",),
    "attention.q_norm": ("attn_q_norm",),
    "attention.k_norm": ("attn_k_norm",),
    "attention.sinks": ("attn_sinks",),
    "attention.q_a_proj": ("attn_q_a",),
    "attention.q_a_norm": ("attn_q_a_norm",),
    "attention.q_b_proj": ("attn_q_b",),
    "attention.kv_a_proj": ("attn_kv_a_mqa",),
    "attention.kv_a_norm": ("attn_kv_a_norm",),
    "attention.kv_b_proj": ("attn_kv_b", "attn_k_b", "attn_v_b"),
    "ffn.gate_proj": ("ffn_gate",),
    "ffn.up_proj": ("ffn_up",),
    "ffn.down_proj": ("ffn_down",),
    "ffn.router": ("ffn_gate_inp", "exp_probs_b"),
    "ffn.router.correction": ("exp_probs_b",),
    "ffn.experts.gate_proj": ("ffn_gate_exps", "ffn_gate_up_exps"),
    "ffn.experts.up_proj": ("ffn_up_exps", "ffn_gate_up_exps"),
    "ffn.experts.down_proj": ("ffn_down_exps",),
    "ffn.shared.gate_proj": ("ffn_gate_shexp",),
    "ffn.shared.up_proj": ("ffn_up_shexp",),
    "ffn.shared.down_proj": ("ffn_down_shexp",),
    "ffn.shared_gate": ("ffn_gate_inp_shexp",),
}
"""The names that llama.cpp gives to the modules of a layer (src/llama-arch.cpp)."""


class GgufNames:
    """The names of the modules of a model in a GGUF file. tensors: those of the file."""

    def __init__(self, tensors: Mapping[str, FileTensor]) -> None:
        gated = any(name.startswith("blk.") and name.endswith(".ffn_gate.weight") for name in tensors)
        self._fused_gate = not gated

    def names_of(self, op: str, layer: int | None) -> list[str]:
        """Return every name that files can give to the module of an op.

        op: name of the op, where `{}` stands for the index of the layer. layer: index of the layer, if it has one.
        """
        if layer is None:
            return list(_OUTSIDE.get(op, (op,)))
        name = op.removeprefix("layers.{}.")
        found = _LAYER.get(name, (name,))
        if name == "ffn.gate_proj" and self._fused_gate:
            found = ("ffn_up",)  # Phi-3 has gate and up in one tensor
        return [f"blk.{layer}.{each}" for each in found]
