"""A new kind of attention, as its author would write it: only what `AttentionKind` demands."""

from __future__ import annotations

from typing import final

from msgspec.structs import replace

from llmbench.spec.base import Size
from llmbench.spec.mixer.attention import Attention
from llmbench.spec.mixer.cache_row import CacheRow
from llmbench.spec.mixer.kind import AttentionKind, RotatedHeads, ScoreSettings
from llmbench.spec.position import Positions, Rope


@final
class GatedWindow(AttentionKind, frozen=True, tag="gated_window"):
    """Attention to the newest `window_size` tokens, with a gate on the heads' output."""

    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    window_size: Size
    positions: Positions | None = None

    label = "gated window"
    position_kinds = (Rope,)
    training_doubt = "no trace confirms what a gated window saves for backward"

    @property
    def key_dim(self) -> int:
        return self.head_dim

    @property
    def value_dim(self) -> int:
        return self.head_dim

    @property
    def sliding_window(self) -> int:
        return self.window_size

    @property
    def rotated_heads(self) -> RotatedHeads:
        return RotatedHeads("head_dim", self.head_dim, self.num_key_value_heads)

    @property
    def cache_row(self) -> CacheRow:
        parts = (self.head_dim,), (self.head_dim,)
        return CacheRow(self.num_key_value_heads, *parts, "2 × kv_heads × head_dim", span=self.window_size)

    def score_settings(self, positions: Positions) -> ScoreSettings:
        return ScoreSettings(self.head_dim**-0.5)

    def narrowed(self, *, kv_heads: int, span: int) -> GatedWindow:
        heads = min(kv_heads, self.num_key_value_heads)
        return replace(
            self,
            num_attention_heads=heads * self.num_attention_heads // self.num_key_value_heads,
            num_key_value_heads=heads,
            window_size=min(span, self.window_size),
        )

    @property
    def ordinary(self) -> Attention:
        return Attention(
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            sliding_window=self.window_size,
            positions=self.positions,
        )
