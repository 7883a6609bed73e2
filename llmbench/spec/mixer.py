"""What mixes tokens: attention in its kinds, and the state-space and linear mixers.

Names are Hugging Face's. Every width is explicit: nothing here is derived from `hidden_size`, because real models
break every such rule (Gemma's heads, Mistral Nemo's, T5-11B's).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from llmbench.spec.base import Count, Fault, Kind, Part, Size
from llmbench.spec.faults import divides, not_negative, positive
from llmbench.spec.position import LearnedPositions, Positions, SinusoidalPositions


class QKNorm(Part, frozen=True):
    """A norm on queries and keys before their product.

    `over`: "head" one weight of head_dim shared by all heads (Qwen3); "full" across all heads at once (OLMo-2);
    "per_head" each head its own weight (Command-R+). `weight` False normalises without parameters (Llama-4).
    eps: where it is not the model's.
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
    """Queries grow with their position p, so that scores stay sharp in long contexts (arXiv 2501.19399): times
    1 + scale · ln(1 + floor((p + offset) / every))."""

    scale: float
    every: Size
    offset: Count = 0

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "scale")


class DisentangledScores(Part, frozen=True):
    """DeBERTa's scores by relative position (arXiv 2006.03654), beside those by content.

    A table has 2 × `span` rows. content_to_position: queries meet its projection as keys; position_to_content: keys
    meet its projection as queries. shared_projections: by the content's own projections (DeBERTa-v3), else by two more,
    of which that of keys has a bias where `key_bias`. clipped: rows beyond the sequence's length are left out.
    """

    span: Size
    content_to_position: bool = True
    position_to_content: bool = True
    shared_projections: bool = False
    key_bias: bool = True
    clipped: bool = False


class Attention(Kind, frozen=True, tag="attention"):
    """Softmax attention: MHA, GQA or MQA by its head counts; also bidirectional and cross-attention.

    sliding_window: keys visible to a query, itself included; None sees all before it.
    attention_chunk_size: keys visible are those of the query's own chunk (Llama-4).
    qkv_bias, output_bias: biases of the projections in and out.
    output_gate: a gate on the heads' output, "elementwise" (Qwen3-Next: one per channel), "headwise" (one a head);
        gate_activation is what bounds it (Laguna's is a softplus).
    value_scale: multiplies the values (MiMo).
    value_from_key: no v_proj, the value is the key before its norm and rotation (Gemma-4 global layers).
    shares_kv: the layer reads an earlier layer's keys and values, projects none and caches none (Gemma-3n).
    input_size: width of what q, k and v read where it is not hidden_size (Zamba: hidden state beside the embedding).
    disentangled: scores by relative position beside those by content (DeBERTa).
    scale: multiplies the scores; None means head_dim ** -0.5.
    clip_qkv: queries, keys and values are held within ± it (OLMo, DBRX).
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

    @property
    def value_dim(self) -> int:
        """Width of one value head."""
        return self.head_dim if self.v_head_dim is None else self.v_head_dim

    @property
    def span(self) -> int | None:
        """The most keys one query can see, or None for no bound."""
        return self.sliding_window if self.sliding_window is not None else self.attention_chunk_size

    @property
    def label(self) -> str:
        """MHA, GQA or MQA."""
        if self.num_key_value_heads == self.num_attention_heads:
            return "MHA"
        return "MQA" if self.num_key_value_heads == 1 else "GQA"

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_key_value_heads", "num_attention_heads")
        yield from positive(self, "logit_soft_cap", "value_scale", "scale", "clip_qkv")
        yield from _embedded(self.positions)
        if self.attention_chunk_size is not None and self.sliding_window is not None:
            yield Fault("attention_chunk_size", "and sliding_window exclude each other", "leave one of them out")
        if self.attention_chunk_size is not None and not self.causal:
            what = f"{self.attention_chunk_size} holds causal attention within chunks, and causal is false"
            yield Fault("attention_chunk_size", what, "leave it out; a sliding_window may look both ways")
        if self.value_dim != self.head_dim and self.value_from_key:
            yield Fault("v_head_dim", f"{self.value_dim} is not head_dim {self.head_dim}, but value_from_key is true")
        if self.value_dim != self.head_dim and self.output_gate == "elementwise":
            what = f'{self.value_dim} is not head_dim {self.head_dim}, the width of an output_gate "elementwise"'
            yield Fault("v_head_dim", what)


def _embedded(positions: Positions | None) -> Iterator[Fault]:
    """The fault of a mixer's own positions that are added to an embedding."""
    if isinstance(positions, (LearnedPositions, SinusoidalPositions)):
        yield Fault("positions", "of this kind are added to the embedding", "set the model's own positions instead")


class Indexer(Part, frozen=True):
    """DeepSeek-V3.2's lightning indexer: small heads that choose the `top_k` keys each query attends to.

    shared: the layer takes the choice of the indexer before it, and has no weights or keys of its own (GLM-5).
    interleaved: its rotation pairs neighbours (GLM-5), not halves.
    """

    num_heads: Size
    head_dim: Size
    top_k: Size
    shared: bool = False
    interleaved: bool = False


class LatentAttention(Kind, frozen=True, tag="mla"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values come from one latent vector of
    `kv_lora_rank` plus one rotated key of `qk_rope_head_dim` shared by the heads, and only those are cached.

    q_lora_rank None projects queries in full rank (V2-Lite). `latent_norms` are on the q and kv latents, with
    `latent_eps` whatever the model's other norms have.
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

    @property
    def qk_head_dim(self) -> int:
        """Width of one query (and uncompressed key) head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "latent_eps")
        yield from positive(self, "scale")
        yield from _embedded(self.positions)


class CompressedAttention(Kind, frozen=True, tag="compressed"):
    """DeepSeek-V4's attention: one key a token, which is its value too, for all heads, seen within a window; and
    before that, where `compress_rate` is set, one entry for every so many tokens, which two projections and a trained
    bias make.

    overlap: an entry sums up the tokens before its own as well, so that the projections are twice as wide.
    indexer: chooses `top_k` entries a query; it makes entries of its own. Queries come from a latent of `q_lora_rank`;
    the output goes through `output_groups` narrow matrices of `output_lora_rank` columns, then one to hidden_size.
    """

    num_attention_heads: Size
    head_dim: Size
    q_lora_rank: Size
    output_groups: Size
    output_lora_rank: Size
    sliding_window: Size
    compress_rate: Size | None = None
    overlap: bool = False
    indexer: Indexer | None = None
    positions: Positions | None = None

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "output_groups", "num_attention_heads")
        yield from _embedded(self.positions)
        if self.compress_rate is None and self.overlap:
            yield Fault("overlap", "there are no entries to overlap", "set compress_rate")
        if self.compress_rate is None and self.indexer is not None:
            yield Fault("indexer", "there are no entries to choose from", "set compress_rate")


class Mamba(Kind, frozen=True, tag="mamba"):
    """Selective state space (Mamba-1, arXiv 2312.00752).

    inner_norms: norms with weights on dt, B and C (Jamba); "plain" the same without weights (Falcon-Mamba), with an
    epsilon `norm_eps` where it is not the model's.
    """

    intermediate_size: Size
    state_size: Size
    conv_kernel: Size
    time_step_rank: Size
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: Literal["none", "plain", "weighted"] = "none"
    norm_eps: float | None = None

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "norm_eps")


class Mamba2(Kind, frozen=True, tag="mamba2"):
    """State-space duality (Mamba-2, arXiv 2405.21060): heads that share B and C by group.

    proj_bias: on the projections in and out; out_proj_bias where the latter differs (Falcon-H1). gated_norm: a norm of
    each group, behind the gate or (norm_before_gate) before it. time_step_min, time_step_max: limits of the step of
    time (Nemotron-H). projection_scales: five numbers that multiply what the projection in gives for the gate, the
    values, B, C and the step of time (Falcon-H1); empty: none.
    """

    num_heads: Size
    head_dim: Size
    state_size: Size
    n_groups: Size
    conv_kernel: Size
    chunk_size: Size = 256
    conv_bias: bool = True
    proj_bias: bool = False
    out_proj_bias: bool | None = None
    gated_norm: bool = True
    norm_before_gate: bool = False
    time_step_min: float = 0.0
    time_step_max: float | None = None
    projection_scales: tuple[float, ...] = ()

    @property
    def intermediate_size(self) -> int:
        """Width of the values the heads carry."""
        return self.num_heads * self.head_dim

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "n_groups", "num_heads")
        yield from not_negative(self, "time_step_min")
        yield from positive(self, "projection_scales")
        if self.time_step_max is not None and not self.time_step_max > self.time_step_min:
            yield Fault("time_step_max", f"{self.time_step_max} is not above time_step_min {self.time_step_min}")
        if self.projection_scales and len(self.projection_scales) != 5:
            yield Fault("projection_scales", f"needs 5 numbers, not {len(self.projection_scales)}")


class GatedDeltaNet(Kind, frozen=True, tag="gated_delta_net"):
    """Linear attention with a gated delta rule (arXiv 2412.06464), as in Qwen3-Next.

    negative_eigenvalues: rates of learning reach to two, not to one (OLMo hybrid, arXiv 2411.12537). norm_eps: of the
    norm on heads, where it is not the model's.
    """

    num_key_heads: Size
    num_value_heads: Size
    key_head_dim: Size
    value_head_dim: Size
    conv_kernel: Size
    output_gate: bool = True
    negative_eigenvalues: bool = False
    norm_eps: float | None = None

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_key_heads", "num_value_heads")
        yield from not_negative(self, "norm_eps")


class KimiDelta(Kind, frozen=True, tag="kimi_delta"):
    """Kimi delta attention: a delta rule whose decay is per channel, from a low-rank projection.

    full_rank_gates: the decay and the output gate each come from one whole matrix (Ling 2.5 and later).
    """

    num_heads: Size
    head_dim: Size
    conv_kernel: Size
    full_rank_gates: bool = False


class LightningAttention(Kind, frozen=True, tag="lightning"):
    """Linear attention with a fixed decay a head and an output gate (MiniMax-Text-01, arXiv 2501.08313)."""

    num_attention_heads: Size
    head_dim: Size
    block_size: Size = 256


class RGLRU(Kind, frozen=True, tag="rg_lru"):
    """Griffin's recurrent block (arXiv 2402.19427): a gated linear recurrence between two branches."""

    lru_width: Size
    num_heads: Size
    conv_kernel: Size

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "num_heads", "lru_width")


class ShortConv(Kind, frozen=True, tag="short_conv"):
    """LFM2's gated short convolution: in-projection to three streams, depthwise convolution, out-projection."""

    width: Size
    conv_kernel: Size
    bias: bool = False


class RWKV(Kind, frozen=True, tag="rwkv"):
    """RWKV-4's time mixing (arXiv 2305.13048): a decayed average of values, a channel at a time, gated; it and the
    channel mixing behind it each see the token before as well."""

    width: Size


Recurrent = Mamba | Mamba2 | GatedDeltaNet | KimiDelta | LightningAttention | RGLRU | ShortConv | RWKV
SingleMixer = Attention | LatentAttention | CompressedAttention | Recurrent


class Parallel(Kind, frozen=True, tag="parallel"):
    """Several mixers on the same input whose outputs are added (Falcon-H1: attention beside Mamba-2).

    input_scales, output_scales: one number a branch, which multiplies what it reads and what it gives; empty: none.
    """

    branches: tuple[SingleMixer, ...]
    input_scales: tuple[float, ...] = ()
    output_scales: tuple[float, ...] = ()

    def faults(self) -> Iterator[Fault]:
        if not self.branches:
            yield Fault("branches", "is empty", "without a mixer, leave out the whole of it")
        if len({type(branch) for branch in self.branches}) != len(self.branches):
            yield Fault("branches", "two are of one kind, and a branch goes by the name of its kind")
        for field in ("input_scales", "output_scales"):
            given = getattr(self, field)
            if given and len(given) != len(self.branches):
                yield Fault(field, f"needs one number for each of {len(self.branches)} branches, not {len(given)}")
        yield from positive(self, "input_scales", "output_scales")


Mixer = SingleMixer | Parallel


def branches(mixer: Mixer | None) -> tuple[SingleMixer, ...]:
    """The single mixers inside `mixer`: none, itself, or its parallel branches."""
    if mixer is None:
        return ()
    return mixer.branches if isinstance(mixer, Parallel) else (mixer,)


def scales(mixer: Mixer | None) -> tuple[tuple[float, float], ...]:
    """For each of its `branches`, the factors on what it reads and on what it gives."""
    ones = (1.0,) * len(branches(mixer))
    given = (mixer.input_scales, mixer.output_scales) if isinstance(mixer, Parallel) else ((), ())
    return tuple(zip(given[0] or ones, given[1] or ones, strict=True))
