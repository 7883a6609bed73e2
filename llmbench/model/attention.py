"""Softmax attention: projections to queries, keys and values, rotation, attention, and the output projection.

Dimensions: B batch, S query length, T key length, D hidden size, N query heads, K KV heads, H head dim, Hv value head
dim.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from llmbench.errors import UnsupportedError
from llmbench.model.attention_steps import (
    head_norms,
    position_scores,
    relative_bias_table,
    steps_after_rotation,
    steps_before_rotation,
)
from llmbench.model.context import context
from llmbench.model.implementations.interface import Implementation, Scores, Seen
from llmbench.model.layer_cache import LayerCache
from llmbench.model.positions import rotation_of
from llmbench.model.step import Step
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Positions


class AttentionLayer(nn.Module):
    """The attention layer for MHA, GQA and MQA. Its input and output are [B, S, D].

    Some families need more steps. attention_steps.py has norms of queries and keys, clipping, and biases of the scores.
    gated_attention.py and special_attention.py have other layers. GPT-2 and LLaMA need none of these files.
    """

    projections_per_query: ClassVar[int] = 1
    """How many vectors of H elements q_proj computes per query head: 1, the query, or 2, the query and its gate."""

    def __init__(
        self,
        spec: ModelSpec,
        mixer: Attention,
        *,
        positions: Positions,
        index: int = 0,
        where: str = "attention",
    ) -> None:
        super().__init__()
        for field in ("disentangled", "input_size"):
            if getattr(mixer, field):
                raise UnsupportedError(f"{spec.name}: {where}.{field} is not implemented in the PyTorch model yet")
        self.spec, self.mixer, self.position_kind = spec, mixer, positions
        self.rotation = rotation_of(positions, mixer.head_dim, spec.max_position_embeddings)
        self.scale = mixer.score_scale
        self.sinks = nn.Parameter(torch.empty(mixer.num_attention_heads)) if mixer.sinks else None
        self.relative_bias = relative_bias_table(positions, mixer, first=index == 0)
        self.add_projections(spec.hidden_size)
        self.q_norm, self.k_norm = head_norms(mixer, spec.norm)
        self.before_rotation = steps_before_rotation(mixer)
        self.after_rotation = steps_after_rotation(mixer)
        self.position_scores = position_scores(positions)

    def add_projections(self, hidden: int) -> None:
        """Create the projections of queries, keys, values and output."""
        mixer = self.mixer
        heads, kv_heads = mixer.num_attention_heads, mixer.num_key_value_heads
        self.q_proj = nn.Linear(hidden, self.projections_per_query * heads * mixer.head_dim, bias=mixer.qkv_bias)
        self.k_proj = nn.Linear(hidden, kv_heads * mixer.head_dim, bias=mixer.qkv_bias and mixer.key_bias)
        self.v_proj: nn.Linear | None = None
        if not mixer.value_from_key:
            self.v_proj = nn.Linear(hidden, kv_heads * mixer.value_dim, bias=mixer.qkv_bias)
        self.o_proj = nn.Linear(heads * mixer.value_dim, hidden, bias=mixer.output_bias)

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output [B, S, D] of attention, and `shared`.

        - `shared`: T5's relative bias. One layer computes this bias, and later layers read it. In all other models, the
          layer returns the argument `shared` unchanged.
        """
        q = self.queries(x)
        k, v = self.keys_values(x)
        out, shared = self.attend(q, k, v, step, cache, shared)
        return self.o_proj(out.flatten(2)), shared

    def queries(self, x: Tensor) -> Tensor:
        """Project x [B, S, D] to queries [B, S, N, H]."""
        q: Tensor = self.q_proj(x).unflatten(-1, (self.mixer.num_attention_heads, -1))
        return q

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project x [B, S, D] to keys [B, S, K, H] and values [B, S, K, Hv].

        A layer without v_proj uses its keys also as values (Gemma-4).
        """
        k = self.k_proj(x).unflatten(-1, (self.mixer.num_key_value_heads, -1))
        return k, k if self.v_proj is None else self.v_proj(x).unflatten(-1, (self.mixer.num_key_value_heads, -1))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention with queries q [B, S, N, H], keys k [B, S, K, H] and values v [B, S, K, Hv].

        Returns the weighted values [B, S, N, Hv], and the relative bias `shared` that later layers read (T5).
        """
        q, seen = self.seen(q, k, v, step, cache)
        return self.weigh(q, seen, step, shared)

    def seen(self, q: Tensor, k: Tensor, v: Tensor, step: Step, cache: LayerCache | None) -> tuple[Tensor, Seen]:
        """Apply norms and the rotation to q, k and v [B, S, heads, H]. Store k and v in the cache.

        Returns the queries [B, N, S, H], and the keys and values that they see.
        """
        mixer, implementation = self.mixer, step.implementation
        for change in self.before_rotation:
            q, k, v = change(self, q, k, v, step)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, heads, S, H]
        if self.rotation is not None:
            tables, interleaved = step.tables[self.rotation.name], self.rotation.rope.interleaved
            q, k = implementation.rotate(q, k, tables, interleaved=interleaved)
        for change in self.after_rotation:
            q, k, v = change(self, q, k, v, step)
        return q, context(
            k, v, step, cache, causal=mixer.causal, window=mixer.sliding_window, chunk=mixer.attention_chunk_size
        )

    def weigh(self, q: Tensor, seen: Seen, step: Step, shared: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weighted values [B, S, N, Hv] for queries q [B, N, S, H], and `shared`."""
        scores = Scores(self.scale, self.mixer.logit_soft_cap, self.sinks, dropout=step.dropout)
        scores, shared = self.position_scores(self, scores, seen.mask, shared)
        return self.weighted_values(q, seen, scores, step.implementation).transpose(1, 2), shared

    def weighted_values(self, q: Tensor, seen: Seen, scores: Scores, implementation: Implementation) -> Tensor:
        """Return the weighted values [B, N, S, Hv] for queries q [B, N, S, H]."""
        return implementation.attend(q, seen, scores)
