"""Softmax attention with heads of its own keys and values: MHA, GQA and MQA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, final

from llmbench.spec.base import Count, Fault, Part, Size, plural
from llmbench.spec.faults import divides, not_negative, positive
from llmbench.spec.mixer.cache_row import CacheRow
from llmbench.spec.mixer.kind import AttentionKind, RotatedHeads
from llmbench.spec.position import Alibi, Positions, RelativeBias, Rope


class QKNorm(Part, frozen=True):
    """A norm on queries and keys before their product.

    over: "head", one weight of head_dim shared by all heads (Qwen3); "full", one norm across all heads (OLMo-2);
    "per_head", a weight per head (Command-R+). weight: False normalises without parameters (Llama-4). eps: where it
    differs from the model's.
    """

    over: Literal["head", "full", "per_head"] = "head"
    norm: Literal["rmsnorm", "layernorm", "l2norm"] = "rmsnorm"
    weight: bool = True
    bias: bool = False
    after_rope: bool = False
    eps: float | None = None

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "eps")


class Temperature(Part, frozen=True):
    """A factor on queries that grows with their position p and keeps scores sharp in long contexts (arXiv 2501.19399):
    1 + scale · ln(1 + floor((p + offset) / every))."""

    scale: float
    every: Size
    offset: Count = 0

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "scale")


class DisentangledScores(Part, frozen=True):
    """DeBERTa's scores by relative position (arXiv 2006.03654), added to the scores by content.

    The position table has 2 × `span` rows. content_to_position: queries are multiplied with projected rows as keys.
    position_to_content: keys are multiplied with projected rows as queries. shared_projections: the content's
    projections are used (DeBERTa-v3); otherwise there are two more, and the one of keys has a bias if `key_bias`.
    clipped: rows beyond the sequence's length are left out.
    """

    span: Size
    content_to_position: bool = True
    position_to_content: bool = True
    shared_projections: bool = False
    key_bias: bool = True
    clipped: bool = False


@final
class Attention(AttentionKind, frozen=True, tag="attention"):
    """Softmax attention: MHA, GQA or MQA by its head counts; also bidirectional and cross-attention.

    sliding_window: keys that a query can see, its own token included; None: all keys before it.
    attention_chunk_size: a query sees the keys of its own chunk (Llama-4).
    qkv_bias, output_bias: biases of the input and output projections.
    output_gate: a gate on the heads' output, "elementwise" (one per channel, Qwen3-Next) or "headwise" (one per head);
        gate_activation is its function (softplus in Laguna).
    value_scale: multiplies the values (MiMo).
    value_from_key: there is no v_proj; the value is the key before its norm and rotation (Gemma-4 global layers).
    shares_kv: the layer reads an earlier layer's keys and values; it projects and caches none (Gemma-3n).
    input_size: input width of q, k and v where it is not hidden_size (Zamba: hidden state joined with the embedding).
    disentangled: scores by relative position are added to those by content (DeBERTa).
    scale: multiplies the scores; None: head_dim ** -0.5.
    clip_qkv: queries, keys and values are clamped to ± this value (OLMo, DBRX).
    """

    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    v_head_dim: Size | None = None
    causal: bool = True
    sliding_window: Size | None = None
    attention_chunk_size: Size | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QKNorm | None = None
    value_norm: bool = False
    sinks: bool = False
    logit_soft_cap: float | None = None
    output_gate: Literal["elementwise", "headwise"] | None = None
    gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    value_scale: float | None = None
    value_from_key: bool = False
    shares_kv: bool = False
    output_norm: bool = False
    input_size: Size | None = None
    disentangled: DisentangledScores | None = None
    scale: float | None = None
    clip_qkv: float | None = None
    temperature: Temperature | None = None
    positions: Positions | None = None

    position_kinds = (Rope, Alibi, RelativeBias)

    @property
    def label(self) -> str:
        """MHA, GQA or MQA."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "MHA"
        return "MQA" if self.num_key_value_heads == 1 else "GQA"

    @property
    def summary(self) -> str:
        heads = plural(self.num_attention_heads, "head")
        return f"{heads} (GQA, {self.num_key_value_heads} KV)" if self.label == "GQA" else f"{heads} ({self.label})"

    @property
    def key_dim(self) -> int:
        return self.head_dim

    @property
    def value_dim(self) -> int:
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def rotated_heads(self) -> RotatedHeads:
        return RotatedHeads("head_dim", self.head_dim, self.num_key_value_heads)

    @property
    def cache_row(self) -> CacheRow:
        alike = self.value_dim == self.head_dim
        formula = "2 × kv_heads × head_dim" if alike else "kv_heads × (head_dim + v_head_dim)"
        return CacheRow(self.num_key_value_heads, (self.head_dim,), (self.value_dim,), formula, span=self.span)

    @property
    def ordinary(self) -> Attention:
        return self

    @property
    def training_doubt(self) -> str | None:
        if self.disentangled is None:
            return None
        return "what scores by relative position save for backward is not counted"

    @property
    def biases(self) -> tuple[str, ...]:
        return ("q, k, v",) * self.qkv_bias + ("attention output",) * self.output_bias

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_key_value_heads", "num_attention_heads")
        yield from positive(self, "logit_soft_cap", "value_scale", "scale", "clip_qkv")
        yield from AttentionKind.faults(self)
        if self.attention_chunk_size is not None and self.sliding_window is not None:
            yield Fault("attention_chunk_size", "and sliding_window exclude each other", "leave one of them out")
        if self.attention_chunk_size is not None and not self.causal:
            what = f"{self.attention_chunk_size} needs causal attention, and causal is false"
            yield Fault("attention_chunk_size", what, "leave it out; a sliding_window may look both ways")
        if self.value_dim != self.head_dim and self.value_from_key:
            yield Fault("v_head_dim", f"{self.value_dim} is not head_dim {self.head_dim}, but value_from_key is true")
        if self.value_dim != self.head_dim and self.output_gate == "elementwise":
            what = f'{self.value_dim} is not head_dim {self.head_dim}, the width of an output_gate "elementwise"'
            yield Fault("v_head_dim", what)
