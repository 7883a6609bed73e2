"""Position encodings: tables for rotary positions with every kind of scaling, ALiBi slopes, sinusoids, T5's buckets.

Positions are integers [B, S]. Tables are computed in fp32, and the code that uses them casts the result.

Dimensions: B batch, S query length, T key length, N heads, H head dim, R rotary dims.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.errors import CannotRunError
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    RopeScaling,
    SinusoidalPositions,
    alibi_slope,
    rope_frequency,
)


def inverse_frequencies(
    rope: Rope, head_dim: int, *, seq_len: int, max_positions: int | None, device: torch.device
) -> tuple[Tensor, float]:
    """Return the scaled RoPE frequencies [R/2], and a factor by which cos and sin are multiplied.

    `rope_frequency` gives the unscaled frequencies. The kinds of scaling are:

    - linear: divides all frequencies by the factor (arXiv 2306.15595).
    - dynamic: increases theta with the sequence length (NTK-aware).
    - llama3: divides low frequencies, keeps high frequencies, and blends the frequencies in between (Llama 3.1 report).
    - yarn: blends divided and original frequencies by wavelength, and multiplies cos and sin by 0.1·ln(factor) + 1
      (arXiv 2309.00071).
    - longrope: divides each frequency by its own factor (arXiv 2402.13753).
    - proportional: spaces the frequencies over the whole head, and rotates only the first dims (Gemma 4).
    """
    scaling = rope.scaling
    dim = rope.rotary_dim or head_dim
    theta = rope.theta
    if scaling is not None and scaling.kind == "dynamic":
        trained = max_positions or scaling.original_max_position_embeddings or seq_len
        if seq_len > trained:
            theta *= ((scaling.factor * seq_len / trained) - (scaling.factor - 1)) ** (dim / (dim - 2))
    pairs = torch.arange(dim // 2, dtype=torch.float32, device=device)
    if scaling is not None and scaling.kind == "proportional":
        frequencies = rope_frequency(theta, pairs, head_dim)
        unrotated = torch.zeros(head_dim // 2 - dim // 2, device=device)
        return torch.cat((frequencies, unrotated)) / scaling.factor, 1.0
    frequencies = rope_frequency(theta, pairs, dim)
    if scaling is None:
        return frequencies, 1.0
    return _scaled(scaling, frequencies, theta, dim, seq_len, max_positions)


def _scaled(
    scaling: RopeScaling, frequencies: Tensor, theta: float, dim: int, seq_len: int, max_positions: int | None
) -> tuple[Tensor, float]:
    factor = scaling.factor
    original = scaling.original_max_position_embeddings or max_positions or seq_len
    if scaling.kind == "linear":
        return frequencies / factor, 1.0
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor or 1.0, scaling.high_freq_factor or 4.0
        wavelength = 2 * math.pi / frequencies
        blend = ((original / wavelength - low) / (high - low)).clamp(0, 1)
        smooth = (1 - blend) * frequencies / factor + blend * frequencies
        return smooth, 1.0
    if scaling.kind == "longrope":
        factors = scaling.long_factor if seq_len > original else scaling.short_factor
        divisor = torch.tensor(factors, dtype=torch.float32, device=frequencies.device)
        extension = factor if factor != 1.0 else (max_positions or original) / original
        attention = scaling.attention_factor
        if attention is None:
            attention = 1.0 if extension <= 1 else math.sqrt(1 + math.log(extension) / math.log(original))
        return frequencies / divisor, attention
    if scaling.kind == "yarn":
        return _yarn(scaling, frequencies, theta, dim, original)
    return frequencies, 1.0


def _yarn(scaling: RopeScaling, frequencies: Tensor, theta: float, dim: int, original: int) -> tuple[Tensor, float]:
    """Return the frequencies of YaRN, and YaRN's factor on cos and sin (arXiv 2309.00071)."""
    factor = scaling.factor

    def correction(rotations: float) -> float:
        """Return the index of the pair of dims that makes `rotations` full turns over the trained length."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = correction(32.0 if scaling.beta_fast is None else scaling.beta_fast)
    high = correction(1.0 if scaling.beta_slow is None else scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(dim // 2, dtype=torch.float32, device=frequencies.device) - low) / (high - low)).clamp(0, 1)
    blended = frequencies / factor * ramp + frequencies * (1 - ramp)
    attention = scaling.attention_factor
    if attention is None:
        if scaling.mscale and scaling.mscale_all_dim:
            attention = scaling.temperature(scaling.mscale) / scaling.temperature(scaling.mscale_all_dim)
        else:
            attention = scaling.temperature(1.0)
    return blended, attention


class Rotation(NamedTuple):
    """The rotation of heads with `width` dims. Layers whose rotations have the same name share their tables."""

    name: str
    rope: Rope
    width: int
    max_positions: int | None

    def regime(self, seq_len: int) -> int:
        """Return a number that is equal for two sequence lengths if and only if their frequencies are equal.

        Dynamic scaling changes the frequencies with every token past the trained length. longrope changes the
        frequencies only once.
        """
        scaling = self.rope.scaling
        if scaling is None or scaling.kind not in ("dynamic", "longrope"):
            return 0
        original = scaling.original_max_position_embeddings
        if scaling.kind == "dynamic":
            return max(seq_len - (self.max_positions or original or seq_len), 0)
        return int(seq_len > (original or self.max_positions or seq_len))

    def tables(self, positions: Tensor, seq_len: int) -> tuple[Tensor, Tensor]:
        """Return the fp32 tables cos and sin [B, 1, S, R/2] for integer positions [B, S]."""
        frequencies, factor = inverse_frequencies(
            self.rope, self.width, seq_len=seq_len, max_positions=self.max_positions, device=positions.device
        )
        angles = positions[:, None, :, None].to(torch.float32) * frequencies
        return angles.cos() * factor, angles.sin() * factor


def rotation_of(positions: Positions, width: int, max_positions: int | None) -> Rotation | None:
    """Return the rotation of heads with `width` dims. None if the position encoding rotates nothing."""
    match positions:
        case Rope():
            return Rotation(f"{positions} {width} {max_positions}", positions, width, max_positions) if width else None
        case LearnedPositions() | SinusoidalPositions() | Alibi() | RelativeBias() | NoPositions():
            return None
        case _:
            assert_never(positions)


Tables = dict[str, tuple[Tensor, Tensor]]
"""The tables cos and sin [B, 1, S, R/2] of each rotation in a model, by the name of the rotation."""


def rotations_of(model: nn.Module) -> list[Rotation]:
    """Return the distinct rotations of all layers in a model."""
    rotations = (getattr(module, "rotation", None) for module in model.modules())
    return list({rotation.name: rotation for rotation in rotations if isinstance(rotation, Rotation)}.values())


class RotaryTable(nn.Embedding):
    """A stored table of sines and cosines, with one row per position and without training (RoFormer).

    The first half of a row has the sines, the second half the cosines.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.weight.requires_grad_(False)

    def reset_parameters(self) -> None:
        """Fill the table with the sines and cosines of unscaled RoPE with the base 10000."""
        positions = torch.arange(self.num_embeddings, dtype=torch.float64, device=self.weight.device)[None]
        waves = sinusoids(SinusoidalPositions(halves=True), positions, self.embedding_dim, self.weight.dtype)
        with torch.no_grad():
            self.weight.copy_(waves[0])

    def tables(self, rotations: Iterable[Rotation], positions: Tensor) -> Tables:
        """Return the fp32 tables cos and sin [B, 1, S, R/2] of all rotations for integer positions [B, S]."""
        sines, cosines = self(positions)[:, None].float().chunk(2, dim=-1)
        return {rotation.name: (cosines, sines) for rotation in rotations}


def rotary_table(rotations: Iterable[Rotation]) -> RotaryTable | None:
    """Create the table of sines and cosines of a model. None if they are computed."""
    for rotation in rotations:
        if rotation.rope.table_rows is not None:
            return RotaryTable(rotation.rope.table_rows, rotation.width)
    return None


def refuse_mixed_frequencies(rotations: Iterable[Rotation], before: Sequence[int], after: Sequence[int]) -> None:
    """Raise CannotRunError if a forward pass would need different RoPE frequencies for different rows or for cached
    keys.

    - `before`, `after`: the number of tokens in each row before and after the pass.
    """
    for rotation in rotations:
        new = {rotation.regime(end) for end in after}
        cached = {rotation.regime(end) for end in before if end}
        if len(new | cached) > 1:
            scaling = rotation.rope.scaling
            assert scaling is not None
            cache = f", or continue a cache of {_range(before)} tokens" if cached else ""
            raise CannotRunError(
                f"{scaling.kind} scaling changes the RoPE frequencies with the sequence length: rows of "
                f"{_range(after)} tokens cannot share a forward pass{cache}",
                hint="run rows of one length, without a cache",
            )


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def tables_of(rotations: Iterable[Rotation], positions: Tensor, seq_len: int) -> Tables:
    """Return the tables of all rotations for one forward pass.

    - `seq_len`: the length of the longest sequence, because some scalings depend on the sequence length.
    """
    return {rotation.name: rotation.tables(positions, seq_len) for rotation in rotations}


def rotate(x: Tensor, tables: tuple[Tensor, Tensor], *, interleaved: bool) -> Tensor:
    """Rotate the first R dims of each head of x [B, N, S, H], in fp32, or in the format of x if that is wider.

    With `interleaved`, a pair consists of two neighbouring dims. Otherwise, a pair has one dim from each half of R.
    """
    (cos, sin), dtype, x = tables, x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))
    rotary_dim = 2 * cos.shape[-1]
    rotary, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    if interleaved:
        first, second = rotary[..., 0::2], rotary[..., 1::2]
        out = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
    else:
        first, second = rotary.chunk(2, dim=-1)
        out = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return (out if rest.shape[-1] == 0 else torch.cat((out, rest), dim=-1)).to(dtype)


def alibi_slopes(num_heads: int, device: torch.device | None = None) -> Tensor:
    """Return ALiBi's slopes [N] in fp32."""
    # The range is created on the device, because a copy from the host would make the host wait for the device.
    heads = torch.arange(num_heads, dtype=torch.float64, device=device)
    slopes: Tensor = alibi_slope(heads, num_heads)
    return slopes.to(torch.float32)


def sinusoids(kind: SinusoidalPositions, positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return the vectors [B, S, width] of sines and cosines for positions [B, S].

    Angles are computed in fp64 if the positions are in fp64, else in fp32.

    Source: "Attention is all you need", section 3.5.
    """
    pairs = width // 2 if kind.to_end else (width + 1) // 2
    dtype_of_angles = torch.promote_types(positions.dtype, torch.float32)
    steps = torch.arange(pairs, dtype=dtype_of_angles, device=positions.device)
    last = max(pairs - 1, 1) if kind.to_end else width / 2
    angles = (positions + kind.offset)[..., None].to(dtype_of_angles) * torch.exp(-math.log(10000.0) / last * steps)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1)
    vectors = (waves.transpose(-1, -2) if kind.halves else waves).flatten(-2)[..., :width]
    return F.pad(vectors, (0, width - vectors.shape[-1])).to(dtype)


def relative_buckets(bias: RelativeBias, queries: Tensor, keys: Tensor, *, bidirectional: bool) -> Tensor:
    """Return T5's bucket number [B, S, T] for the distance from each query to each key.

    Short distances have one bucket each. Longer distances share buckets whose width grows with the distance: the bucket
    number is logarithmic (arXiv 1910.10683, section 2.1).
    """
    distance = keys[:, None, :] - queries[:, :, None]
    buckets = bias.num_buckets
    offset = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        offset = (distance > 0).to(distance.dtype) * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    far = torch.log(distance.clamp(min=1).to(torch.float32) / exact) / math.log(bias.max_distance / exact)
    far_bucket = (exact + (far * (buckets - exact)).to(distance.dtype)).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, far_bucket)
