"""Softmax attention as a module: projections, positions, norms, cache, and whichever implementation attends.

B batch, S query length, T key length, D hidden, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.errors import UnsupportedError
from llmbench.model.cache import Held, LayerCache
from llmbench.model.implementations.interface import Given, Implementation, Mask, Scores, Seen
from llmbench.model.norms import NormLayer
from llmbench.model.positions import Tables, alibi_slopes, relative_buckets, rotation_of
from llmbench.spec.mixer import Attention, QKNorm, Temperature
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.position import Alibi, Positions, RelativeBias


class Step(NamedTuple):
    """What every layer of one forward pass shares.

    positions: of the new tokens, [B, S]; valid: which of them are not padding, [B, S] or None for all. plain: positions
    are 0..S-1 of every sequence and nothing is cached. tables: cos and sin of every rotation. lengths: tokens of each
    sequence with the new ones [B], where there is a cache. memory: an encoder's output [B, E, D], with memory_valid
    [B, E].
    """

    positions: Tensor
    valid: Tensor | None
    plain: bool
    tables: Tables
    implementation: Implementation
    lengths: Tensor | None = None
    memory: Tensor | None = None
    memory_valid: Tensor | None = None


class AttentionLayer(nn.Module):
    """MHA, GQA or MQA over [B, S, D]."""

    def __init__(
        self,
        spec: ModelSpec,
        mixer: Attention,
        *,
        positions: Positions,
        owns_bias: bool = True,
        where: str = "attention",
    ) -> None:
        super().__init__()
        for field in ("shares_kv", "output_norm", "disentangled", "input_size"):
            if getattr(mixer, field):
                raise UnsupportedError(f"{spec.name}: {where}.{field} is sized, not built yet")
        self.spec, self.mixer = spec, mixer
        self.position_kind = positions
        self.rotation = rotation_of(positions, mixer.head_dim, spec.max_position_embeddings)
        heads, kv_heads = mixer.num_attention_heads, mixer.num_key_value_heads
        width = spec.hidden_size
        doubled = 2 if mixer.output_gate == "elementwise" else 1
        self.q_proj = nn.Linear(width, doubled * heads * mixer.head_dim, bias=mixer.qkv_bias)
        self.k_proj = nn.Linear(width, kv_heads * mixer.head_dim, bias=mixer.qkv_bias)
        self.v_proj = None
        if not mixer.value_from_key:
            self.v_proj = nn.Linear(width, kv_heads * mixer.value_dim, bias=mixer.qkv_bias)
        self.o_proj = nn.Linear(heads * mixer.value_dim, spec.hidden_size, bias=mixer.output_bias)
        self.g_proj = nn.Linear(width, heads, bias=False) if mixer.output_gate == "headwise" else None
        self.q_norm = self.k_norm = None
        if mixer.qk_norm is not None:
            self.q_norm = _head_norm(mixer.qk_norm, heads, mixer.head_dim, spec.norm)
            self.k_norm = _head_norm(mixer.qk_norm, kv_heads, mixer.head_dim, spec.norm)
        self.sinks = nn.Parameter(torch.empty(heads)) if mixer.sinks else None
        self.relative_bias: nn.Parameter | None = None
        if isinstance(positions, RelativeBias) and owns_bias:
            self.relative_bias = nn.Parameter(torch.empty(positions.num_buckets, heads))
        self.scale = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """[B, S, D] to [B, S, D], and the relative bias that later layers of the stack share (T5)."""
        mixer, implementation = self.mixer, step.implementation
        q, gate = self._queries(x)
        k, v = self._keys_values(x, implementation)
        norm = mixer.qk_norm
        if norm is not None and not norm.after_rope:
            q, k = self._normed(q, self.q_norm, implementation), self._normed(k, self.k_norm, implementation)
        if mixer.clip_qkv is not None:
            q, k, v = (part.clamp(-mixer.clip_qkv, mixer.clip_qkv) for part in (q, k, v))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.rotation is not None:
            tables, turn = step.tables[self.rotation.name], self.rotation.rope.interleaved
            q, k = implementation.rotate(q, k, tables, interleaved=turn)
        if norm is not None and norm.after_rope:
            q = self._normed(q.transpose(1, 2), self.q_norm, implementation).transpose(1, 2)
            k = self._normed(k.transpose(1, 2), self.k_norm, implementation).transpose(1, 2)
        if mixer.temperature is not None:
            q = q * _growth(mixer.temperature, step.positions).to(q.dtype)
        seen = context(
            k, v, step, cache, causal=mixer.causal, window=mixer.sliding_window, chunk=mixer.attention_chunk_size
        )
        if isinstance(self.position_kind, RelativeBias):
            bias = self._relative(seen.mask) if self.relative_bias is not None else bias
        out = implementation.attend(q, seen, self._scores(seen.mask, bias))
        out = out.transpose(1, 2)
        if gate is not None:
            out = out * self._bounded(gate)
        elif self.g_proj is not None:
            out = out * self._bounded(self.g_proj(x))[..., None]
        return self.o_proj(out.flatten(2)), bias

    def _queries(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, S, N, H], and the gate [B, S, N, H] that the same projection makes, head by head."""
        heads = self.q_proj(x).unflatten(-1, (self.mixer.num_attention_heads, -1))
        if self.mixer.output_gate == "elementwise":
            q, gate = heads.chunk(2, dim=-1)
            return q, gate
        return heads, None

    def _bounded(self, gate: Tensor) -> Tensor:
        if self.mixer.gate_activation == "softplus":
            return F.softplus(gate.float()).to(gate.dtype)
        return torch.sigmoid(gate)

    def _keys_values(self, source: Tensor, implementation: Implementation) -> tuple[Tensor, Tensor]:
        """[B, T, K, H] and [B, T, K, Hv]."""
        k = self.k_proj(source).unflatten(-1, (self.mixer.num_key_value_heads, -1))
        v = k if self.v_proj is None else self.v_proj(source).unflatten(-1, (self.mixer.num_key_value_heads, -1))
        if self.mixer.value_norm:
            v, _ = implementation.norm(v, None, None, None, Norm(weight=False, eps=self.spec.norm.eps))
        return k, v if self.mixer.value_scale is None else v * self.mixer.value_scale

    def _normed(self, x: Tensor, norm: NormLayer | None, implementation: Implementation) -> Tensor:
        """[B, S, N, H] normed by head, or across all heads."""
        assert norm is not None
        normed: Tensor
        if norm.width == x.shape[-1]:
            normed = norm(x, implementation)
        else:
            normed = norm(x.flatten(2), implementation).unflatten(-1, x.shape[2:])
        return normed

    def _relative(self, mask: Mask) -> Tensor:
        """T5's bias [B, N, S, T]."""
        kind = self.position_kind
        assert isinstance(kind, RelativeBias)
        assert self.relative_bias is not None
        buckets = relative_buckets(kind, mask.queries, mask.keys, bidirectional=not self.mixer.causal)
        return self.relative_bias[buckets].permute(0, 3, 1, 2)

    def _scores(self, mask: Mask, bias: Tensor | None) -> Scores:
        """What is done to scores, positions included."""
        scores = Scores(self.scale, self.mixer.logit_soft_cap, self.sinks)
        if isinstance(self.position_kind, RelativeBias):
            return scores._replace(bias=bias)
        if not isinstance(self.position_kind, Alibi):
            return scores
        slopes = alibi_slopes(self.mixer.num_attention_heads, mask.keys.device)
        factor = self.scale if self.position_kind.scaled else 1.0
        if self.position_kind.rounded:
            added = (slopes[None, :, None, None].bfloat16() * mask.keys[:, None, None, :]).float() * factor
            return scores._replace(bias=added.expand(-1, -1, mask.queries.shape[1], -1))
        return scores._replace(slopes=slopes * factor)


def context(
    k: Tensor,
    v: Tensor,
    step: Step,
    cache: LayerCache | None,
    *,
    causal: bool,
    window: int | None,
    chunk: int | None,
) -> Seen:
    """All keys and values [B, K, T, H] that the new tokens may see; the cache takes the new ones in.

    Where nothing was held before, the new tokens see just each other, and kernels may build the mask themselves:
    padding stands at the end, where causality hides it from every real token.
    """
    queries = step.positions
    if step.plain:
        if cache is not None:
            cache.fill(k, v, queries, step.valid)
        if step.valid is None or causal:
            return Given(k, v, Mask(queries, queries, causal, window, chunk, True))
        return Given(k, v, Mask(queries, queries.masked_fill(~step.valid, -1), causal, window, chunk, False))
    assert cache is not None
    assert step.lengths is not None
    if cache.overwrites(k.shape[2]):
        old = Held(cache, Mask(queries, cache.token_positions(), causal, window, chunk, False), step.lengths, k.dtype)
        # Padding keeps its positions, behind every real token: a padded query that saw nothing would become a NaN.
        mask = old.mask._replace(keys=torch.cat((old.mask.keys, queries), dim=1))
        seen = Given(torch.cat((old.k, k), dim=2), torch.cat((old.v, v), dim=2), mask)
        cache.fill(k, v, queries, step.valid)
        return seen
    cache.fill(k, v, queries, step.valid)
    return Held(cache, Mask(queries, cache.token_positions(), causal, window, chunk, False), step.lengths, k.dtype)


def _growth(temperature: Temperature, positions: Tensor) -> Tensor:
    """What queries [B, N, S, H] are multiplied with, [B, 1, S, 1]."""
    steps = torch.floor((positions.float() + temperature.offset) / temperature.every)
    return (1.0 + temperature.scale * torch.log1p(steps))[:, None, :, None]


def _head_norm(norm: QKNorm, heads: int, head_dim: int, like: Norm) -> NormLayer:
    kind = Norm(
        kind="layernorm" if norm.norm == "layernorm" else "rmsnorm",
        weight=norm.weight,
        bias=norm.bias,
        eps=like.eps if norm.eps is None else norm.eps,
        unit_offset=like.unit_offset,
    )
    if norm.over == "full":
        return NormLayer(heads * head_dim, kind)
    return NormLayer(head_dim, kind, weight_shape=(heads, head_dim) if norm.over == "per_head" else None)
