"""Multi-head latent attention (MLA)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_never, final

from msgspec.structs import replace

from llmbench.spec.base import Count, Fault, Size
from llmbench.spec.faults import not_negative, positive
from llmbench.spec.mixer.attention import Attention
from llmbench.spec.mixer.cache_row import CacheRow
from llmbench.spec.mixer.kind import AttentionKind, Indexer, RotatedHeads, ScoreSettings, at_most
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    RopeScaling,
    SinusoidalPositions,
)


@final
class LatentAttention(AttentionKind, frozen=True, tag="mla"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434).

    The keys and values of a token are projections of one latent vector. In addition, all heads share one rotated key.
    The cache stores the latent vector and the rotated key.

    - num_attention_heads: number of query heads.
    - kv_lora_rank: width of the latent vector of keys and values.
    - qk_nope_head_dim: width of the part of a query or key head that RoPE does not rotate.
    - qk_rope_head_dim: width of the rotated key, and of the rotated part of a query head.
    - v_head_dim: width of a value head.
    - q_lora_rank: width of the latent vector of queries. None: one full matrix projects to the queries (V2-Lite).
    - latent_bias: whether the projections to the latent vectors have biases.
    - output_bias: whether the output projection has a bias.
    - latent_norms: whether norms stand on the two latent vectors.
    - latent_eps: epsilon of the latent norms. It is independent of the epsilon of the model's norm.
    - sliding_window: number of keys that a query can see, including the key of its own token. None: there is no window.
    - indexer: the indexer that selects the keys for each query (DeepSeek-V3.2). None: a query sees all keys.
    - scale: factor on the scores. None: (qk_nope_head_dim + qk_rope_head_dim) ** -0.5.
    - positions: the position encoding of this mixer, if it differs from the position encoding of the model.
    """

    num_attention_heads: Size
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Count
    v_head_dim: Size
    q_lora_rank: Size | None = None
    latent_bias: bool = False
    output_bias: bool = False
    latent_norms: bool = True
    latent_eps: float = 1e-6
    sliding_window: Size | None = None
    indexer: Indexer | None = None
    scale: float | None = None
    positions: Positions | None = None

    label = "MLA"
    position_kinds = (Rope,)
    absorbs = True
    training_doubt = None

    @property
    def qk_head_dim(self) -> int:
        """The width of a query head. A key head has this width after the latent vector is expanded."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def num_key_value_heads(self) -> int:
        """The number of key heads after the latent vector is expanded. The number of value heads is equal."""
        return self.num_attention_heads

    @property
    def key_dim(self) -> int:
        return self.qk_head_dim

    @property
    def value_dim(self) -> int:
        return self.v_head_dim

    @property
    def rotated_heads(self) -> RotatedHeads:
        return RotatedHeads("qk_rope_head_dim", self.qk_rope_head_dim, key_heads=1)

    @property
    def cache_row(self) -> CacheRow:
        parts = self.kv_lora_rank, self.qk_rope_head_dim
        return CacheRow(1, parts, (), "kv_lora_rank + qk_rope_head_dim", span=self.sliding_window)

    @property
    def indexer_row(self) -> CacheRow | None:
        if self.indexer is None or self.indexer.shared:
            return None
        return CacheRow(1, (self.indexer.head_dim,), (), "index_head_dim")

    @property
    def biases(self) -> tuple[str, ...]:
        return ("latents",) * self.latent_bias + ("attention output",) * self.output_bias

    def score_scale(self, positions: Positions) -> float:
        """Return the factor on the product of a query and a key.

        If YaRN has `mscale_all_dim`, the factor is also multiplied by the square of YaRN's temperature (DeepSeek).
        """
        scale = self.qk_head_dim**-0.5 if self.scale is None else self.scale
        match positions:
            case Rope(scaling=RopeScaling(mscale_all_dim=float(mscale)) as scaling) if mscale:
                return scale * scaling.temperature(mscale) ** 2
            case Rope() | Alibi() | RelativeBias() | LearnedPositions() | SinusoidalPositions() | NoPositions():
                return scale
            case _:
                assert_never(positions)

    def score_settings(self, positions: Positions) -> ScoreSettings | None:
        return None if self.indexer is not None else ScoreSettings(self.score_scale(positions))

    def narrowed(self, *, kv_heads: int, span: int) -> LatentAttention:
        heads = min(kv_heads, self.num_attention_heads)
        return replace(self, num_attention_heads=heads, sliding_window=at_most(span, self.sliding_window))

    @property
    def ordinary(self) -> Attention:
        return Attention(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            head_dim=self.qk_head_dim,
            v_head_dim=self.v_head_dim,
            sliding_window=self.sliding_window,
            positions=self.positions,
        )

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "latent_eps")
        yield from positive(self, "scale")
        yield from AttentionKind.faults(self)
