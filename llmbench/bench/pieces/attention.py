"""Attention by itself: over a whole sequence, of a new token on a cache, and of one on a cache of latents.

B batch, N query heads, K KV heads, S query length, T key length, H head dim, C latent width, R rotated dims.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.bench.pieces.piece import Made, Piece, Setting
from llmbench.bench.pieces.reduce import attention_of, mixer_of, with_layer
from llmbench.errors import UnsupportedError
from llmbench.model.implementations.interface import Given, Implementation, Mask, Scores, Seen, Slots
from llmbench.model.latent import score_scale
from llmbench.model.positions import alibi_slopes
from llmbench.sizing.op import Op
from llmbench.spec.mixer import Attention, AttentionKind, LatentAttention
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Alibi, RelativeBias

__all__ = ["PIECES", "Heads", "heads_of", "sequence_mask"]


LONG_CACHE = 8192
"""Tokens in a cache that is checked: enough for kernels to split it, and 17 MB a key head of 128 in fp64."""


class Heads(NamedTuple):
    """What the core of an attention is given, and what it does to scores."""

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
        """ALiBi's, as a model has them before its first layer attends; None without."""
        return None if self.alibi is None else alibi_slopes(self.heads, device) * self.alibi

    def scores(self, sinks: Tensor | None, slopes: Tensor | None) -> Scores:
        """As implementations take it."""
        return Scores(self.scale, self.soft_cap, sinks, slopes)


def heads_of(spec: ModelSpec) -> Heads:
    """The attention of a model's first layer; a latent one in its naive form. Raises UnsupportedError for what has to
    be trained or chosen beside it."""
    mixer = attention_of(spec)
    positions = spec.positions_of(mixer)
    if isinstance(positions, RelativeBias):
        raise UnsupportedError(f"{spec.name}: a relative bias is timed within its block", hint="profile block")
    if isinstance(mixer, LatentAttention):
        if mixer.indexer is not None:
            raise UnsupportedError(f"{spec.name}: an indexer is timed within its block", hint="profile block")
        scale, heads = score_scale(mixer, positions), mixer.num_attention_heads
        widths = mixer.qk_head_dim, mixer.v_head_dim
        return Heads(heads, heads, *widths, True, mixer.sliding_window, None, scale, None, False, None)
    if not isinstance(mixer, Attention):
        raise UnsupportedError(f"{spec.name}: {mixer.label} cannot be timed by itself", hint="profile block")
    scale = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
    alibi = None
    if isinstance(positions, Alibi):
        alibi = scale if positions.scaled else 1.0
    return Heads(
        mixer.num_attention_heads,
        mixer.num_key_value_heads,
        mixer.head_dim,
        mixer.value_dim,
        mixer.causal,
        mixer.sliding_window,
        mixer.attention_chunk_size,
        scale,
        mixer.logit_soft_cap,
        mixer.sinks,
        alibi,
    )


def sequence_mask(setting: Setting, of: Heads) -> Mask:
    """The mask of sequences without gaps."""
    positions = setting.positions()
    return Mask(positions, positions, of.causal, of.window, of.chunk, True)


def _attention(setting: Setting) -> Made:
    of = heads_of(setting.spec)
    mask, (B, S) = sequence_mask(setting, of), (setting.batch, setting.seq_len)

    def run(
        how: Implementation, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, slopes: Tensor | None
    ) -> Tensor:
        return how.attend(q, Given(k, v, mask), of.scores(sinks, slopes))

    shapes = {"q": (of.heads, of.head_dim), "k": (of.kv_heads, of.head_dim), "v": (of.kv_heads, of.value_dim)}
    inputs: dict[str, Tensor | None] = {
        # as a projection leaves them
        name: setting.normal(B, S, count, width, seed=seed).transpose(1, 2)
        for seed, (name, (count, width)) in enumerate(shapes.items())
    }
    inputs["sinks"] = setting.normal(of.heads, seed=3) if of.sinks else None
    inputs["slopes"] = of.slopes(setting.device)
    return Made(run=run, inputs=inputs, differentiable=("q", "k", "v", "sinks") if of.sinks else ("q", "k", "v"))


class _Cached(NamedTuple):
    """Keys and values in a cache, as a Seen."""

    k: Tensor
    v: Tensor
    mask: Mask
    slots: Slots


class _Room(NamedTuple):
    """Where a model's cache (`llmbench.model.cache`) would hold the tokens of sequences that have come so far: `mask`
    is the newest one's on all `tokens` slots, which are all taken. A layer with a window or a chunk has no more slots
    than that, a ring of them."""

    tokens: int
    mask: Mask
    lengths: Tensor
    ring: bool

    def cached(self, k: Tensor, v: Tensor) -> _Cached:
        """Keys and values that are in the slots."""
        return _Cached(k, v, self.mask, Slots(k, v, None, None, self.lengths, ring=self.ring))


def _room(setting: Setting, *, causal: bool, window: int | None, chunk: int | None) -> _Room:
    B, last = setting.batch, setting.seq_len - 1
    span = window or chunk
    ring = span is not None and span <= last
    tokens = span if ring and span is not None else last + 1
    slots = torch.arange(tokens, device=setting.device)
    positions = (last - (last - slots) % tokens).expand(B, -1)
    lengths = torch.full((B,), setting.seq_len, dtype=torch.int64, device=setting.device)
    return _Room(tokens, Mask(lengths[:, None] - 1, positions, causal, window, chunk, False), lengths, ring)


def _decode(setting: Setting) -> Made:
    of = heads_of(setting.spec)
    room = _room(setting, causal=of.causal, window=of.window, chunk=of.chunk)
    B, T = setting.batch, room.tokens

    def run(
        how: Implementation, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, slopes: Tensor | None
    ) -> Tensor:
        seen: Seen = room.cached(k, v)
        return how.attend(q, seen, of.scores(sinks, slopes))

    inputs = {
        "q": setting.normal(B, of.heads, 1, of.head_dim),
        "k": setting.normal(B, of.kv_heads, T, of.head_dim, seed=1),
        "v": setting.normal(B, of.kv_heads, T, of.value_dim, seed=2),
        "sinks": setting.normal(of.heads, seed=3) if of.sinks else None,
        "slopes": of.slopes(setting.device),
    }
    return Made(run=run, inputs=inputs)


def _latent(setting: Setting) -> Made:
    spec = setting.spec
    mixer = mixer_of(spec, LatentAttention)
    scores = Scores(score_scale(mixer, spec.positions_of(mixer)))
    room = _room(setting, causal=True, window=mixer.sliding_window, chunk=None)
    B, T, heads = setting.batch, room.tokens, mixer.num_attention_heads
    C, R = mixer.kv_lora_rank, mixer.qk_rope_head_dim

    def run(how: Implementation, q_latent: Tensor, q_rope: Tensor, rows: Tensor) -> Tensor:
        seen: Seen = room.cached(rows, rows[..., :0])
        return how.attend_latent(q_latent, q_rope, seen, scores)

    inputs = {
        "q_latent": setting.normal(B, heads, 1, C),
        "q_rope": setting.normal(B, heads, 1, R, seed=1),
        "rows": setting.normal(B, 1, T, C + R, seed=2),
    }
    return Made(run=run, inputs=inputs)


def _core(op: Op) -> bool:
    return op.name == "layers.{}.attention.core"


def _attends(spec: ModelSpec) -> ModelSpec:
    return with_layer(spec, "attention", lambda layer: isinstance(layer.mixer, AttentionKind))


def _attends_plainly(spec: ModelSpec) -> ModelSpec:
    return with_layer(spec, "attention of its own keys", lambda layer: isinstance(layer.mixer, Attention))


def _attends_latents(spec: ModelSpec) -> ModelSpec:
    def plain(mixer: object) -> bool:
        return isinstance(mixer, LatentAttention) and mixer.indexer is None

    return with_layer(spec, "latent attention", lambda layer: plain(layer.mixer))


PIECES = (
    Piece(
        name="attention",
        what="softmax(q kᵀ) v of a layer, over whole sequences",
        alone=_attends,
        has=_core,
        make=_attention,
        shapes={"cuda": ("llama2-7b", {}, 1, 4096), "cpu": ("llama2-7b", {}, 1, 512)},
        impl="flash",
        cpu_impl="flash",
    ),
    Piece(
        name="decode",
        what="attention of one new token a sequence on its cache",
        alone=_attends_plainly,
        has=_core,
        make=_decode,
        shapes={"cuda": ("llama2-7b", {}, 8, 4096), "cpu": ("llama2-7b", {}, 1, 2048)},
        phase="decode",
        impl="flash",
        cpu_impl="flash",
        check_seq=LONG_CACHE,
    ),
    Piece(
        name="mla",
        what="latent attention of one new token a sequence on its cache of latents, absorbed",
        alone=_attends_latents,
        has=_core,
        make=_latent,
        shapes={"cuda": ("deepseek-v2-lite", {}, 8, 4096), "cpu": ("deepseek-v2-lite", {}, 1, 2048)},
        phase="decode",
        impl="flash",
        cpu_impl="sdpa",
        check_seq=LONG_CACHE,
    ),
)
