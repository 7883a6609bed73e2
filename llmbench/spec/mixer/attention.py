"""Softmax attention with key and value heads: MHA, GQA and MQA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, assert_never, final

from msgspec.structs import replace

from llmbench.spec.base import Count, Fault, Part, Size, plural
from llmbench.spec.faults import divides, not_negative, positive
from llmbench.spec.mixer.cache_row import CacheRow
from llmbench.spec.mixer.kind import AttentionKind, RotatedHeads, ScoreSettings, at_most
from llmbench.spec.position import Alibi, Positions, RelativeBias, Rope


class QKNorm(Part, frozen=True):
    """A norm on queries and keys, which stands before the product of queries and keys.

    - over: the elements that one norm covers. "head": one norm per head, and all heads share one weight of width
      head_dim (Qwen3). "per_head": one norm per head, and each head has its own weight (Command-R+). "full": one norm
      over all heads together (OLMo-2).
    - norm: the type of the norm.
    - weight: whether the norm has a trained weight (Llama-4: false).
    - bias: whether the norm has a bias.
    - after_rope: whether the norm stands after the RoPE rotation. If false, it stands before the rotation.
    - eps: epsilon of the norm, if it differs from the epsilon of the model's norm.
    """

    over: Literal["head", "full", "per_head"] = "head"
    norm: Literal["rmsnorm", "layernorm", "l2norm"] = "rmsnorm"
    weight: bool = True
    bias: bool = False
    after_rope: bool = False
    eps: float | None = None

    @property
    def norm_kind(self) -> Literal["rmsnorm", "layernorm"]:
        """The type of the norm in `ModelSpec.norm` that computes the same. An L2 norm is an RMSNorm with another
        factor."""
        match self.norm:
            case "rmsnorm" | "l2norm":
                return "rmsnorm"
            case "layernorm":
                return "layernorm"
            case _:
                assert_never(self.norm)

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "eps")


class Temperature(Part, frozen=True):
    """A factor on the queries that grows with the position p of the token (arXiv 2501.19399).

    The factor is 1 + scale · ln(1 + floor((p + offset) / every)). It keeps the softmax sharp in long contexts.
    """

    scale: float
    every: Size
    offset: Count = 0

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "scale")


class DisentangledScores(Part, frozen=True):
    """DeBERTa's scores for relative positions (arXiv 2006.03654). They are added to the product of queries and keys.

    - span: number of distances in each direction. The table of relative positions has one row per distance, so it has
      2 × span rows.
    - content_to_position: whether the queries of the tokens are multiplied with keys that are projected from the table.
    - position_to_content: whether the keys of the tokens are multiplied with queries that are projected from the table.
    - shared_projections: whether the table uses the q and k projections of the tokens (DeBERTa-v3). If false, the table
      has its own two projections.
    - key_bias: whether the table's own key projection has a bias.
    - clipped: whether table rows for distances longer than the sequence are left out of the computation.
    """

    span: Size
    content_to_position: bool = True
    position_to_content: bool = True
    shared_projections: bool = False
    key_bias: bool = True
    clipped: bool = False


@final
class Attention(AttentionKind, frozen=True, tag="attention"):
    """Softmax attention. The numbers of heads make it MHA, GQA or MQA. It can also be bidirectional or cross-attention.

    - num_attention_heads: number of query heads.
    - num_key_value_heads: number of key heads and of value heads.
    - head_dim: width of a query head and of a key head.
    - v_head_dim: width of a value head, if it differs from head_dim.
    - causal: whether a query sees only its own token and the tokens before it.
    - sliding_window: number of keys that a query can see, including the key of its own token. None: there is no window.
    - attention_chunk_size: length of a chunk in tokens. A query sees only the keys of its own chunk (Llama-4).
    - qkv_bias: whether the q, k and v projections have biases.
    - key_bias: if qkv_bias is true: whether the k projection has a bias, too (Whisper: false).
    - output_bias: whether the output projection has a bias.
    - qk_norm: the norm on queries and keys.
    - value_norm: whether a norm without weights stands on the values (Gemma-4).
    - sinks: whether the softmax has one extra trained logit per head (gpt-oss).
    - logit_soft_cap: soft limit of the scores, applied with tanh (Gemma-2).
    - output_gate: a gate on the output of the heads. "elementwise": one gate value per channel (Qwen3-Next).
      "headwise": one gate value per head.
    - gate_activation: activation function of the output gate (Laguna uses softplus).
    - value_scale: factor on the values (MiMo).
    - value_from_key: whether the value is the key before its norm and rotation. The layer then has no v_proj (global
      layers of Gemma-4).
    - shares_kv: whether the layer reads the keys and values of an earlier layer. The layer then has no k and v
      projections and caches nothing (Gemma-3n).
    - output_norm: whether a norm stands before the output projection (BitNet).
    - differential: whether the difference of two softmaxes weighs the values (DiffLlama, arXiv 2410.05258). The heads
      of the first half form pairs with those of the second half. A pair weighs values of 2 × head_dim channels with
      two softmaxes, and subtracts the results. A norm without weights stands on the output of each pair.
    - attention_experts: number of experts for attention (JetMoE). Each expert is a query projection and an output
      projection for num_key_value_heads heads. A router selects num_attention_heads / num_key_value_heads of them for
      each token. All experts share the keys and values. A bias is added to the sum of their outputs.
    - input_size: input width of the q, k and v projections, if it differs from hidden_size (Zamba concatenates hidden
      state and embedding).
    - disentangled: scores for relative positions, which are added to the attention scores (DeBERTa).
    - scale: factor on the scores. None: head_dim ** -0.5.
    - clip_qkv: largest absolute value of queries, keys and values, which are clamped to it (OLMo, DBRX).
    - temperature: factor on the queries that grows with the position (Llama-4).
    - positions: the position encoding of this mixer, if it differs from the position encoding of the model.
    """

    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: Size
    v_head_dim: Size | None = None
    causal: bool = True
    sliding_window: Size | None = None
    attention_chunk_size: Size | None = None
    qkv_bias: bool = False
    key_bias: bool = True
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
    differential: bool = False
    attention_experts: Size | None = None
    input_size: Size | None = None
    disentangled: DisentangledScores | None = None
    scale: float | None = None
    clip_qkv: float | None = None
    temperature: Temperature | None = None
    positions: Positions | None = None

    position_kinds = (Rope, Alibi, RelativeBias)

    @property
    def label(self) -> str:
        """The common name: MHA, GQA or MQA."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "MHA"
        return "MQA" if self.num_key_value_heads == 1 else "GQA"

    @property
    def summary(self) -> str:
        heads = plural(self.num_attention_heads, "head")
        kv_heads = f", {self.num_key_value_heads} KV heads" if self.label == "GQA" else ""
        return f"{heads} ({self.label}{kv_heads})"

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
    def score_scale(self) -> float:
        """The factor on the product of a query and a key."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def score_settings(self, positions: Positions) -> ScoreSettings | None:
        if self.disentangled is not None:
            return None
        return ScoreSettings(self.score_scale, self.logit_soft_cap, self.sinks)

    @property
    def score_changes(self) -> tuple[str, ...]:
        capped = self.logit_soft_cap is not None
        return ("a soft cap on scores",) * capped + ("attention sinks",) * self.sinks

    def narrowed(self, *, kv_heads: int, span: int) -> Attention:
        heads = min(kv_heads, self.num_key_value_heads)
        return replace(
            self,
            num_attention_heads=heads * self.num_attention_heads // self.num_key_value_heads,
            num_key_value_heads=heads,
            sliding_window=at_most(span, self.sliding_window),
            attention_chunk_size=at_most(span, self.attention_chunk_size),
        )

    @property
    def ordinary(self) -> Attention:
        return self

    @property
    def training_doubt(self) -> str | None:
        if self.attention_experts is not None:
            return "llmbench does not count the tensors that routing to attention experts saves for the backward pass"
        if self.disentangled is None:
            return None
        return "llmbench does not count the tensors that scores for relative positions save for the backward pass"

    @property
    def biases(self) -> tuple[str, ...]:
        projections = "q, k, v" if self.key_bias else "q, v"
        return (projections,) * self.qkv_bias + ("attention output",) * self.output_bias

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_key_value_heads", "num_attention_heads")
        yield from positive(self, "logit_soft_cap", "value_scale", "scale", "clip_qkv")
        yield from AttentionKind.faults(self)
        if self.differential and (self.num_key_value_heads % 2 or self.value_dim != self.head_dim):
            what = "needs an even number of key-value heads, and values as wide as keys"
            yield Fault("differential", what)
        experts, chosen = self.attention_experts, self.num_attention_heads // self.num_key_value_heads
        if experts is not None and experts < chosen:
            what = f"{experts} is less than the {chosen} experts that each token uses"
            yield Fault("attention_experts", what, "num_attention_heads / num_key_value_heads experts are used")
        if experts is not None and (self.qkv_bias or self.output_bias or self.output_gate is not None):
            yield Fault("attention_experts", "cannot be combined with qkv_bias, output_bias and output_gate")
        if self.attention_chunk_size is not None and self.sliding_window is not None:
            yield Fault("attention_chunk_size", "cannot be combined with sliding_window", "leave one of them out")
        if self.attention_chunk_size is not None and not self.causal:
            what = f"{self.attention_chunk_size} needs causal attention, but causal is false"
            hint = "leave out attention_chunk_size, or use sliding_window, which also works without causal attention"
            yield Fault("attention_chunk_size", what, hint)
        if self.value_dim != self.head_dim and self.value_from_key:
            what = f"{self.value_dim} differs from head_dim {self.head_dim}, but value_from_key uses the keys as values"
            yield Fault("v_head_dim", what)
        if self.value_dim != self.head_dim and self.output_gate == "elementwise":
            differs = f"{self.value_dim} differs from head_dim {self.head_dim}"
            what = f'{differs}, but output_gate "elementwise" needs equal widths'
            yield Fault("v_head_dim", what)
