"""Storage of cache rows, in the model's format or quantised. A row is the key or the value of one token in one head.

Dimensions: W width of a row, P number of its segments.

A quantised row has one fp32 scale per segment. An MLA row has two segments: the latent and the rotary key. The scale
maps the largest element of a segment to the largest value of the format:

    int8  x ≈ q · s,  s = max|x| / 127,  |error| ≤ s / 2
    fp8   x ≈ q · s,  s = max|x| / 448 (e4m3),  |error| ≤ max(|x| · 2⁻⁴, s · 2⁻¹⁰)

The mantissa of e4m3 has three bits, so half a step is at most 2⁻⁴ of a normal number. Numbers below 2⁻⁶ have steps of
2⁻⁹.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, assert_never

import torch
from torch import Tensor

Storage = Literal["int8", "fp8"]


class QuantisedFormat(NamedTuple):
    """The number format of quantised rows.

    - `dtype`: the format of the values.
    - `stored`: the format in memory. fp8 is stored as bytes, because torch cannot index fp8 tensors on every device.
    - `largest`: the largest value of the format.
    """

    dtype: torch.dtype
    stored: torch.dtype
    largest: float

    def converted(self, x: Tensor) -> Tensor:
        """Return x in this format, rounded to the nearest value. x must lie within ± `largest`."""
        nearest = x if self.dtype.is_floating_point else x.round()  # torch truncates when it converts to integers
        return nearest.to(self.dtype)


def format_of(storage: Storage) -> QuantisedFormat:
    """Return the number format of rows that are stored in this way."""
    match storage:
        case "int8":
            return QuantisedFormat(torch.int8, torch.int8, 127.0)
        case "fp8":
            return QuantisedFormat(torch.float8_e4m3fn, torch.uint8, 448.0)
        case _:
            assert_never(storage)


def quantise(x: Tensor, storage: Storage, segments: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Quantise rows x [..., W]. `segments` lists the width of each segment of a row.

    Returns the stored elements [..., W] and the fp32 scales [..., P].
    """
    form = format_of(storage)
    quantised, scales = [], []
    for segment in x.to(torch.float32).split(segments, dim=-1):
        largest = segment.abs().amax(dim=-1, keepdim=True)
        scale = torch.where(largest > 0, largest / form.largest, 1.0)
        quantised.append(form.converted((segment / scale).clamp(-form.largest, form.largest)))
        scales.append(scale)
    return torch.cat(quantised, dim=-1).view(form.stored), torch.cat(scales, dim=-1)


def dequantise(
    stored: Tensor, scales: Tensor, storage: Storage, segments: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return rows [..., W] in `dtype`, computed from the elements [..., W] and scales [..., P] that `quantise`
    returned."""
    values = stored.view(format_of(storage).dtype).to(torch.float32).split(segments, dim=-1)
    scaled = [segment * scale for segment, scale in zip(values, scales.split(1, dim=-1), strict=True)]
    return torch.cat(scaled, dim=-1).to(dtype)


class RowStorage:
    """Storage of rows of one width: a tensor [*place, W], and scales [*place, P] if the rows are quantised.

    - `place`: the dimensions that select a row, for example (batch, KV heads, slots).
    """

    def __init__(
        self,
        place: tuple[int, ...],
        segments: tuple[int, ...],
        *,
        storage: Storage | None,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.segments = tuple(width for width in segments if width)
        self.dtype = dtype
        self.storage: Storage | None = storage if self.segments else None
        stored = dtype if self.storage is None else format_of(self.storage).stored
        self.data = torch.zeros(*place, sum(self.segments), dtype=stored, device=device)
        self.scales: Tensor | None = None
        if self.storage is not None:
            self.scales = torch.ones(*place, len(self.segments), dtype=torch.float32, device=device)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row, including its scales."""
        scales = 0 if self.scales is None else self.scales.shape[-1] * self.scales.element_size()
        return self.data.shape[-1] * self.data.element_size() + scales

    @torch.no_grad()
    def write(self, index: Any, x: Tensor) -> None:
        """Store rows x at `index` of the tensor. In a quantised storage, quantises the rows first."""
        if self.storage is None:
            self.data[index] = x.to(self.dtype)
            return
        assert self.scales is not None
        self.data[index], self.scales[index] = quantise(x, self.storage, self.segments)

    def read(self, index: Any, dtype: torch.dtype) -> Tensor:
        """Return the rows at `index` of the tensor, converted to `dtype`."""
        if self.storage is None:
            return self.data[index].to(dtype)
        assert self.scales is not None
        return dequantise(self.data[index], self.scales[index], self.storage, self.segments, dtype)

    def stored(self, index: Any) -> tuple[Tensor, Tensor | None]:
        """Return the rows at `index` in their stored format, and the scales [..., P] of quantised rows."""
        if self.storage is None or self.scales is None:
            return self.data[index], None
        return self.data[index].view(format_of(self.storage).dtype), self.scales[index]
