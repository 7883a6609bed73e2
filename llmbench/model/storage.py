"""How a cache holds one row, the keys or the values of one token and head: as it is, or quantised.

W width of a row, P its parts.

A quantised row has a scale for each of its parts (a latent beside a rotated key has two), so that the largest element
of a part maps to the format's largest value:

    int8  x ≈ q · s,  s = max|x| / 127,  |error| ≤ s / 2
    fp8   x ≈ q · s,  s = max|x| / 448 (e4m3),  |error| ≤ max(|x| · 2⁻⁴, s · 2⁻¹⁰)

e4m3 has three bits of mantissa, so half a step is 2⁻⁴ of a normal number; below 2⁻⁶ its steps are 2⁻⁹.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Storage = Literal["int8", "fp8"]


class Format(NamedTuple):
    """A number format of a quantised row. `dtype` is what it is computed as, `stored` what memory holds: fp8 is kept
    as bytes, because indexing is not defined for it everywhere."""

    dtype: torch.dtype
    stored: torch.dtype
    largest: float


FORMATS: dict[Storage, Format] = {
    "int8": Format(torch.int8, torch.int8, 127.0),
    "fp8": Format(torch.float8_e4m3fn, torch.uint8, 448.0),
}


def quantise(x: Tensor, storage: Storage, parts: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """[..., W] as stored elements [..., W] and fp32 scales [..., P]."""
    form = FORMATS[storage]
    pieces, scales = [], []
    for piece in x.to(torch.float32).split(parts, dim=-1):
        largest = piece.abs().amax(dim=-1, keepdim=True)
        scale = torch.where(largest > 0, largest / form.largest, 1.0)
        scaled = (piece / scale).clamp(-form.largest, form.largest)
        pieces.append(scaled.round() if storage == "int8" else scaled)
        scales.append(scale)
    return torch.cat(pieces, dim=-1).to(form.dtype).view(form.stored), torch.cat(scales, dim=-1)


def restore(stored: Tensor, scales: Tensor, storage: Storage, parts: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What `quantise` made, as numbers [..., W] of `dtype`."""
    values = stored.view(FORMATS[storage].dtype).to(torch.float32).split(parts, dim=-1)
    pieces = [piece * scale for piece, scale in zip(values, scales.split(1, dim=-1), strict=True)]
    return torch.cat(pieces, dim=-1).to(dtype)


class Rows:
    """Rows of one width, by place: a tensor [*place, W], and scales [*place, P] where they are quantised."""

    def __init__(
        self,
        place: tuple[int, ...],
        parts: tuple[int, ...],
        *,
        storage: Storage | None,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.parts = tuple(part for part in parts if part)
        self.dtype = dtype
        self.storage: Storage | None = storage if self.parts else None
        held = dtype if self.storage is None else FORMATS[self.storage].stored
        self.data = torch.zeros(*place, sum(self.parts), dtype=held, device=device)
        self.scales: Tensor | None = None
        if self.storage is not None:
            self.scales = torch.ones(*place, len(self.parts), dtype=torch.float32, device=device)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, its scales included."""
        scales = 0 if self.scales is None else self.scales.shape[-1] * self.scales.element_size()
        return self.data.shape[-1] * self.data.element_size() + scales

    @torch.no_grad()
    def write(self, index: Any, x: Tensor) -> None:
        """Put x into the places that `index` selects."""
        if self.storage is None:
            self.data[index] = x.to(self.dtype)
            return
        assert self.scales is not None
        self.data[index], self.scales[index] = quantise(x, self.storage, self.parts)

    def read(self, index: Any, dtype: torch.dtype) -> Tensor:
        """What the places that `index` selects hold."""
        if self.storage is None:
            return self.data[index].to(dtype)
        assert self.scales is not None
        return restore(self.data[index], self.scales[index], self.storage, self.parts, dtype)

    def stored(self, index: Any) -> tuple[Tensor, Tensor | None]:
        """What memory holds at the places that `index` selects, and the scales [..., P] of quantised rows."""
        if self.storage is None or self.scales is None:
            return self.data[index], None
        return self.data[index].view(FORMATS[self.storage].dtype), self.scales[index]
