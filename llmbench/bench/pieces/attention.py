"""Pieces that compute attention without its projections: over whole sequences, for one new token on a KV cache, and for
one new token on a cache of MLA latents.

B batch, N query heads, K KV heads, S query length, T key length, H head dim, C latent width, R rotated dims.
"""

from __future__ import annotations

from typing import NamedTuple, assert_never

import torch
from torch import Tensor

from llmbench.bench.pieces.piece import BuiltPiece, Piece, Setting
from llmbench.bench.pieces.reduce import attention_of, with_attention
from llmbench.errors import UnsupportedError
from llmbench.model.implementations.interface import Given, Implementation, Mask, Scores, Seen, Slots
from llmbench.model.positions import alibi_slopes
from llmbench.sizing.op import Op
from llmbench.spec.mixer import AttentionKind, ScoreSettings
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)

__all__ = ["ATTENTION", "DECODE", "MLA", "Heads", "heads_of", "sequence_mask"]


LONG_CACHE = 8192
"""The number of cached tokens in a check. With so many tokens, the decoding kernels split the cache, so that the check
covers the split. In fp64, the keys and values of one head of width 128 take 17 MB."""


class Heads(NamedTuple):
    """The head counts, the head widths and the mask of an attention, and the changes to its scores: scale, soft cap,
    sinks and ALiBi.

    `window`, `chunk`: widths in tokens; None without a window or chunks. `alibi`: the factor of ALiBi's slopes; None
    without ALiBi.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    causal: bool
    window: int | None
    chunk: int | None
    scale: float
    soft_cap: float | None
    sinks: bool
    alibi: float | None

    def slopes(self, device: torch.device) -> Tensor | None:
        """Return ALiBi's slopes, one per query head, as a model computes them before its first layer. Return None
        without ALiBi."""
        return None if self.alibi is None else alibi_slopes(self.heads, device) * self.alibi

    def scores(self, sinks: Tensor | None, slopes: Tensor | None) -> Scores:
        """Return the argument `scores` that an implementation's `attend` takes."""
        return Scores(self.scale, self.soft_cap, sinks, slopes)


def heads_of(spec: ModelSpec) -> Heads:
    """Return the `Heads` of the attention in a model's first layer. For MLA, these are the heads of its expanded form.

    Raises UnsupportedError for an attention that needs other parts of its layer, such as a relative bias or an indexer.
    """
    mixer = attention_of(spec)
    settings = _settings(spec, mixer)
    return Heads(
        mixer.num_attention_heads,
        mixer.num_key_value_heads,
        mixer.key_dim,
        mixer.value_dim,
        mixer.causal,
        mixer.sliding_window,
        mixer.attention_chunk_size,
        settings.scale,
        settings.soft_cap,
        settings.sinks,
        _alibi_factor(spec, spec.positions_of(mixer), settings.scale),
    )


def _settings(spec: ModelSpec, mixer: AttentionKind) -> ScoreSettings:
    """Return the settings of the scores. Raises UnsupportedError if the scores need other parts of the layer."""
    settings = mixer.score_settings(spec.positions_of(mixer))
    if settings is None:
        raise _needs_layer(f"{spec.name}: the scores of its {mixer.label} need")
    return settings


def _alibi_factor(spec: ModelSpec, positions: Positions, scale: float) -> float | None:
    """Return the factor of ALiBi's slopes. None without ALiBi. Raises UnsupportedError for a relative bias."""
    match positions:
        case Alibi():
            return scale if positions.scaled else 1.0
        case RelativeBias():
            raise _needs_layer(f"{spec.name}: a relative bias needs")
        case Rope() | LearnedPositions() | SinusoidalPositions() | NoPositions():
            return None
        case _:
            assert_never(positions)


def _needs_layer(subject: str) -> UnsupportedError:
    return UnsupportedError(
        f"{subject} other parts of the layer, so this attention cannot be timed alone",
        hint="`profile block` times a whole layer, if the PyTorch model implements it",
    )


def sequence_mask(setting: Setting, heads: Heads) -> Mask:
    """Return the mask of sequences without gaps."""
    positions = setting.positions()
    return Mask(positions, positions, heads.causal, heads.window, heads.chunk, True)


def _attention(setting: Setting) -> BuiltPiece:
    heads = heads_of(setting.spec)
    mask, (B, S) = sequence_mask(setting, heads), (setting.batch, setting.seq_len)

    def run(
        implementation: Implementation, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, slopes: Tensor | None
    ) -> Tensor:
        return implementation.attend(q, Given(k, v, mask), heads.scores(sinks, slopes))

    shapes = {
        "q": (heads.heads, heads.head_dim),
        "k": (heads.kv_heads, heads.head_dim),
        "v": (heads.kv_heads, heads.value_dim),
    }
    inputs: dict[str, Tensor | None] = {
        # a projection returns this memory layout: [B, S, heads, width], transposed
        name: setting.normal(B, S, count, width, seed=seed).transpose(1, 2)
        for seed, (name, (count, width)) in enumerate(shapes.items())
    }
    inputs["sinks"] = setting.normal(heads.heads, seed=3) if heads.sinks else None
    inputs["slopes"] = heads.slopes(setting.device)
    differentiable = ("q", "k", "v", "sinks") if heads.sinks else ("q", "k", "v")
    return BuiltPiece(run=run, inputs=inputs, differentiable=differentiable)


class _Cached(NamedTuple):
    """Keys and values of a cache, in the form that implementations read (`Seen`)."""

    k: Tensor
    v: Tensor
    mask: Mask
    slots: Slots


class _Slots(NamedTuple):
    """The slots of the cache in which a model (`llmbench.model.cache`) would store the tokens so far.

    `tokens`: the number of slots; all of them are in use. `mask`: the slots that the newest token sees. `lengths`: the
    tokens so far, per sequence. `ring`: whether new tokens overwrite old slots. With a window or a chunk, the cache is
    a ring with at most as many slots as the window or chunk has tokens.
    """

    tokens: int
    mask: Mask
    lengths: Tensor
    ring: bool

    def cached(self, k: Tensor, v: Tensor) -> _Cached:
        """Return these keys and values, stored in the slots."""
        return _Cached(k, v, self.mask, Slots(k, v, None, None, self.lengths, ring=self.ring))


def _slots(setting: Setting, *, causal: bool, window: int | None, chunk: int | None) -> _Slots:
    B, last = setting.batch, setting.seq_len - 1
    span = window or chunk
    ring = span is not None and span <= last
    tokens = span if ring and span is not None else last + 1
    slots = torch.arange(tokens, device=setting.device)
    positions = (last - (last - slots) % tokens).expand(B, -1)
    lengths = torch.full((B,), setting.seq_len, dtype=torch.int64, device=setting.device)
    return _Slots(tokens, Mask(lengths[:, None] - 1, positions, causal, window, chunk, False), lengths, ring)


def _decode(setting: Setting) -> BuiltPiece:
    heads = heads_of(setting.spec)
    slots = _slots(setting, causal=heads.causal, window=heads.window, chunk=heads.chunk)
    B, T = setting.batch, slots.tokens

    def run(
        implementation: Implementation, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, slopes: Tensor | None
    ) -> Tensor:
        seen: Seen = slots.cached(k, v)
        return implementation.attend(q, seen, heads.scores(sinks, slopes))

    inputs = {
        "q": setting.normal(B, heads.heads, 1, heads.head_dim),
        "k": setting.normal(B, heads.kv_heads, T, heads.head_dim, seed=1),
        "v": setting.normal(B, heads.kv_heads, T, heads.value_dim, seed=2),
        "sinks": setting.normal(heads.heads, seed=3) if heads.sinks else None,
        "slopes": heads.slopes(setting.device),
    }
    return BuiltPiece(run=run, inputs=inputs)


def _latent(setting: Setting) -> BuiltPiece:
    mixer = attention_of(setting.spec)
    settings = _settings(setting.spec, mixer)
    scores = Scores(settings.scale, settings.soft_cap)
    slots = _slots(setting, causal=True, window=mixer.sliding_window, chunk=None)
    B, T, heads = setting.batch, slots.tokens, mixer.num_attention_heads
    C, R = mixer.cache_row.key

    def run(implementation: Implementation, q_latent: Tensor, q_rope: Tensor, rows: Tensor) -> Tensor:
        seen: Seen = slots.cached(rows, rows[..., :0])
        return implementation.attend_latent(q_latent, q_rope, seen, scores)

    inputs = {
        "q_latent": setting.normal(B, heads, 1, C),
        "q_rope": setting.normal(B, heads, 1, R, seed=1),
        "rows": setting.normal(B, 1, T, C + R, seed=2),
    }
    return BuiltPiece(run=run, inputs=inputs)


def _core(op: Op) -> bool:
    return op.role == "core"


def _with_separate_values(spec: ModelSpec) -> ModelSpec:
    what = "attention whose cache stores keys and values separately"
    return with_attention(spec, what, lambda mixer: bool(mixer.cache_row.value))


def _with_absorbed_latents(spec: ModelSpec) -> ModelSpec:
    def fits(mixer: AttentionKind) -> bool:
        return mixer.absorbs and mixer.score_settings(spec.positions_of(mixer)) is not None

    return with_attention(spec, "latent attention that can be timed alone", fits)


ATTENTION = Piece(
    reduce=with_attention,
    has=_core,
    build=_attention,
    shapes={"cuda": ("llama2-7b", {}, 1, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
)

DECODE = Piece(
    reduce=_with_separate_values,
    has=_core,
    build=_decode,
    shapes={"cuda": ("llama2-7b", {}, 8, 4096), "cpu": ("llama2-7b", {}, 1, 2048)},
    phase="decode",
    check_seq=LONG_CACHE,
)

MLA = Piece(
    reduce=_with_absorbed_latents,
    has=_core,
    build=_latent,
    shapes={"cuda": ("deepseek-v2-lite", {}, 8, 4096), "cpu": ("deepseek-v2-lite", {}, 1, 2048)},
    phase="decode",
    check_seq=LONG_CACHE,
)
