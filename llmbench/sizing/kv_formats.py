"""The formats in which engines store a KV cache, with their scales, and the bytes of a cache row in a format.

Sources of the sizes: vLLM's `kv_cache_interface.py` (16 bit, fp8, per-token-head, nvfp4, fp8_ds_mla), SGLang's
`pool_configurator.py` (fp4, the keys of an indexer), ggml's `ggml-common.h` (the blocks of llama.cpp), and TurboMind's
`block.h` (quant_policy 8 and 4).
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from llmbench.errors import SpecError, unknown
from llmbench.spec.mixer import CacheRow


class KVFormat(NamedTuple):
    """How a cache stores the elements of one part of a head: its key or its value.

    block_elements, block_bytes: elements of a block, and bytes of the block with its scale.
    scale_bytes: bytes of the scale, and of the zero point if there is one, per token, head and part.
    """

    block_elements: int
    block_bytes: int
    scale_bytes: int = 0

    def part_bytes(self, width: int) -> int:
        """Return the bytes of one part of a head. Raises SpecError if the blocks do not divide its width."""
        if width % self.block_elements:
            raise SpecError(
                f"a cache format with blocks of {self.block_elements} elements cannot store a width of {width} elements"
            )
        return width // self.block_elements * self.block_bytes + self.scale_bytes


_BYTE = KVFormat(1, 1)
FORMATS: dict[str, KVFormat] = {
    "fp32": KVFormat(1, 4),
    "f32": KVFormat(1, 4),
    "bf16": KVFormat(1, 2),
    "fp16": KVFormat(1, 2),
    "f16": KVFormat(1, 2),
    "fp8": _BYTE,  # one scale per tensor: two numbers per layer, not per token
    "fp8_e4m3": _BYTE,
    "fp8_e5m2": _BYTE,
    "fp8_per_token_head": KVFormat(1, 1, 4),
    "int8_per_token_head": KVFormat(1, 1, 4),
    "nvfp4": KVFormat(16, 9),  # 16 elements of 4 bits and a scale of 8 bits
    "fp4": KVFormat(16, 9),
    "q8_0": KVFormat(32, 34),
    "q5_1": KVFormat(32, 24),
    "q5_0": KVFormat(32, 22),
    "q4_1": KVFormat(32, 20),
    "q4_0": KVFormat(32, 18),
    "iq4_nl": KVFormat(32, 18),
    "turbomind_int8": KVFormat(1, 1, 4),  # a scale and a zero point of 16 bits each
    "turbomind_int4": KVFormat(2, 1, 4),
}
"""The formats that treat all elements of a part alike."""

DEEPSEEK_FP8 = "fp8_ds_mla"
"""vLLM's and SGLang's format for latent attention: an fp8 latent with an fp32 scale per 128 elements, and rotated keys
in bf16. DeepSeek-V3 takes 512 + 4 × 4 + 64 × 2 = 656 bytes per token and layer."""

INDEXER_FP8 = KVFormat(128, 132)
"""The keys of DeepSeek-V3.2's indexer: 128 fp8 elements and an fp32 scale."""


def format_names() -> tuple[str, ...]:
    """Return the names of all formats."""
    return (*FORMATS, DEEPSEEK_FP8)


def row_bytes(row: CacheRow, keys: str, values: str | None = None) -> tuple[int, int]:
    """Return the bytes of the keys and of the values that one layer stores per token.

    A row of latent attention has only keys: the latent and the rotated key, which a block format stores as one part.

    keys, values: names of formats. None: the values have the format of the keys.

    Raises UnknownNameError for another name, and SpecError if the format cannot store the row.
    """
    if keys == DEEPSEEK_FP8:
        if row.value or len(row.key) != 2:
            raise SpecError(f"`{DEEPSEEK_FP8}` is a format of latent attention, and this attention has keys and values")
        latent, rotated = row.key
        return row.heads * (KVFormat(128, 132).part_bytes(latent) + 2 * rotated), 0
    key, value = _format(keys), _format(values or keys)
    return row.heads * _bytes(key, row.key), row.heads * _bytes(value, row.value)


def token_bytes(row: CacheRow | None, format: str, *, indexer: bool = False, engine: bool = False) -> Fraction:
    """Return the bytes per token of a row in the format of an engine. None: nothing is stored.

    indexer: whether the row has the keys of an indexer. engine: whether an engine stores the row. Engines store the
        keys of an indexer in fp8 with a scale, whatever the format of the cache is. With `fp8_ds_mla`, they always
        have this format.

    Raises UnknownNameError for another name, and SpecError if the format cannot store the row.
    """
    if row is None:
        return Fraction(0)
    if indexer and (engine or format == DEEPSEEK_FP8):
        stored = row.heads * INDEXER_FP8.part_bytes(row.width)
    else:
        stored = sum(row_bytes(row, format))
    return Fraction(stored, row.tokens_per_row)


def _bytes(format: KVFormat, parts: Iterable[int]) -> int:
    width = sum(parts)
    return format.part_bytes(width) if width else 0


def _format(name: str) -> KVFormat:
    if name not in FORMATS:
        raise unknown("format of a KV cache", name, format_names())
    return FORMATS[name]
