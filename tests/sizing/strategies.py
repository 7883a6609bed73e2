"""Hypothesis strategies: any model that a spec can describe, small, and with widths that split evenly.

Every width is a multiple of 8 and every head count of 4, so that a model can be cut over 2 or 4 GPUs without
a remainder: shares then sum to the whole exactly, which is what the properties hold.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import strategies as st
from msgspec.structs import replace

from llmbench.printable import UNSAFE
from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.mixer import (
    RGLRU,
    RWKV,
    Attention,
    AttentionKind,
    CompressedAttention,
    GatedDeltaNet,
    Indexer,
    KimiDelta,
    LatentAttention,
    LightningAttention,
    Mamba,
    Mamba2,
    Parallel,
    QKNorm,
    ShortConv,
    SingleMixer,
    branches,
)
from llmbench.spec.model import (
    Embedding,
    ExtraWeight,
    Head,
    HyperConnections,
    Layer,
    ModelSpec,
    NextTokenPrediction,
    Norm,
    PerLayerEmbedding,
    Stack,
)
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

widths = st.integers(1, 8).map(lambda n: 8 * n)
heads = st.sampled_from((4, 8))
maybe = st.booleans()
texts = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.from_regex(f"[^{UNSAFE}]{{1,12}}", fullmatch=True)
scales = st.floats(1e-6, 1e6)
PLACEMENTS = ("pre", "post", "output", "sandwich", "parallel", "parallel_two", "none")
ACTIVATIONS = ("relu", "gelu", "silu", "relu2")


def optional(strategy: st.SearchStrategy) -> st.SearchStrategy:
    """None half of the time."""
    return st.one_of(st.none(), strategy)


rope = st.builds(
    Rope,
    theta=st.floats(1.5, 1e8),
    rotary_dim=optional(st.just(4)),
    interleaved=maybe,
    scaling=optional(
        st.builds(
            RopeScaling,
            kind=st.sampled_from(("linear", "yarn", "llama3")),
            factor=st.floats(1, 64),
            original_max_position_embeddings=st.integers(1, 2**20),
        )
    ),
)
positions = st.one_of(
    rope,
    st.builds(LearnedPositions, num_positions=st.integers(8, 64), offset=st.integers(0, 2)),
    st.builds(Alibi),
    st.builds(SinusoidalPositions),
    st.builds(NoPositions),
    st.builds(RelativeBias, num_buckets=st.integers(4, 32), per_layer=maybe),
)
own_positions = optional(st.one_of(rope, st.builds(NoPositions)))
norms = st.builds(
    Norm,
    kind=st.sampled_from(("rmsnorm", "layernorm")),
    weight=maybe,
    bias=maybe,
    eps=st.floats(1e-9, 1e-2),
    unit_offset=maybe,
)
qk_norms = st.builds(
    QKNorm,
    over=st.sampled_from(("head", "full", "per_head")),
    norm=st.sampled_from(("rmsnorm", "layernorm")),
    bias=maybe,
)


@st.composite
def attentions(draw: st.DrawFn, *, causal: bool = True) -> Attention:
    """MHA, GQA or MQA with a window, chunks or neither, and whatever else an attention may have."""
    many = draw(heads)
    head_dim = draw(widths)
    from_key = draw(maybe)
    span = draw(st.sampled_from(("none", "window", "chunk") if causal else ("none", "window")))
    biases, gate = draw(maybe), draw(st.sampled_from((None, "elementwise", "headwise")))
    kv_heads = draw(st.sampled_from([n for n in (1, 2, 4, 8) if many % n == 0]))
    value_dim = None if from_key or gate == "elementwise" else draw(optional(widths))
    experts = draw(optional(st.integers(many // kv_heads, 16))) if gate is None and not biases else None
    return Attention(
        num_attention_heads=many,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        v_head_dim=value_dim,
        causal=causal,
        sliding_window=draw(st.integers(1, 24)) if span == "window" else None,
        attention_chunk_size=draw(st.integers(1, 24)) if span == "chunk" else None,
        qkv_bias=biases,
        output_bias=biases and draw(maybe),
        qk_norm=draw(optional(qk_norms)),
        attention_experts=experts,
        sinks=draw(maybe),
        output_gate=gate,
        value_from_key=from_key,
        shares_kv=draw(st.sampled_from((False, False, False, True))),
        output_norm=draw(maybe),
        differential=kv_heads % 2 == 0 and value_dim is None and draw(maybe),
        positions=draw(own_positions),
        scale=draw(optional(st.floats(0.01, 1.0))),
    )


indexers = st.builds(
    Indexer,
    num_heads=heads,
    head_dim=st.sampled_from((16, 40)),  # no less than what latents rotate
    top_k=st.integers(1, 24),
    shared=st.sampled_from((False, False, True)),
)


latent_spans = st.one_of(
    st.just({}), st.builds(dict, sliding_window=st.integers(1, 24)), st.builds(dict, indexer=indexers)
)


@st.composite
def latents(draw: st.DrawFn) -> LatentAttention:
    """Multi-head latent attention, with a window or an indexer or neither."""
    return LatentAttention(
        num_attention_heads=draw(heads),
        kv_lora_rank=draw(widths),
        qk_nope_head_dim=draw(widths),
        qk_rope_head_dim=draw(st.sampled_from((0, 8, 16))),
        v_head_dim=draw(widths),
        q_lora_rank=draw(optional(widths)),
        latent_bias=draw(maybe),
        output_bias=draw(maybe),
        latent_norms=draw(maybe),
        **draw(latent_spans),
    )


@st.composite
def compressed(draw: st.DrawFn) -> CompressedAttention:
    """Attention to a window and, half of the time, to entries before it, chosen or not."""
    head_dim = draw(widths)
    chosen_by = st.sampled_from((head_dim, head_dim + 8))  # no less than what positions turn
    indexers = st.builds(Indexer, num_heads=heads, head_dim=chosen_by, top_k=st.integers(1, 8))
    rate = draw(optional(st.sampled_from((2, 4, 8))))
    return CompressedAttention(
        num_attention_heads=draw(heads),
        head_dim=head_dim,
        q_lora_rank=draw(widths),
        output_groups=4,
        output_lora_rank=draw(widths),
        sliding_window=draw(st.integers(1, 24)),
        compress_rate=rate,
        overlap=rate is not None and draw(maybe),
        indexer=None if rate is None else draw(optional(indexers)),
    )


recurrents = st.one_of(
    st.builds(
        Mamba,
        intermediate_size=widths,
        state_size=widths,
        conv_kernel=st.integers(1, 4),
        time_step_rank=widths,
        conv_bias=maybe,
        proj_bias=maybe,
        inner_norms=st.sampled_from(("none", "plain", "weighted")),
    ),
    st.builds(
        Mamba2,
        num_heads=heads,
        head_dim=widths,
        state_size=widths,
        n_groups=st.sampled_from((1, 2, 4)),
        conv_kernel=st.integers(1, 4),
        conv_bias=maybe,
        proj_bias=maybe,
        out_proj_bias=optional(maybe),
        gated_norm=maybe,
    ),
    st.builds(
        GatedDeltaNet,
        num_key_heads=st.just(4),
        num_value_heads=heads,
        key_head_dim=widths,
        value_head_dim=widths,
        conv_kernel=st.integers(1, 4),
        output_gate=maybe,
    ),
    st.builds(
        KimiDelta,
        num_heads=heads,
        head_dim=widths,
        conv_kernel=st.integers(1, 4),
        full_rank_decay=maybe,
        full_rank_gate=maybe,
    ),
    st.builds(LightningAttention, num_attention_heads=heads, head_dim=widths, stored_decays=maybe),
    st.builds(RGLRU, lru_width=widths.map(lambda n: 8 * n), num_heads=heads, conv_kernel=st.integers(1, 4)),
    st.builds(ShortConv, width=widths, conv_kernel=st.integers(1, 4), bias=maybe),
    st.builds(RWKV, width=widths),
)
single: st.SearchStrategy[SingleMixer] = st.one_of(attentions(), latents(), compressed(), recurrents)
mixers = st.one_of(single, single, st.builds(Parallel, branches=st.tuples(attentions(), recurrents)))

dense = st.one_of(
    st.builds(Dense, intermediate_size=widths, activation=st.sampled_from(ACTIVATIONS), bias=maybe),
    st.builds(
        Dense, intermediate_size=widths, activation=st.just("xielu"), bias=maybe, activation_parameters=st.just(2)
    ),
)
gated = st.builds(
    Gated, intermediate_size=widths, activation=st.sampled_from(ACTIVATIONS), bias=maybe, inner_norm=maybe
)
networks = st.sampled_from((None, None, 8))
by_logits = st.builds(Router, scores=st.just("softmax_topk"), bias=maybe, hidden_size=networks)
by_scores = st.builds(
    Router,
    scores=st.sampled_from(("softmax", "sigmoid")),
    bias=maybe,
    correction=st.sampled_from((None, "buffer", "parameter")),
    hidden_size=networks,
)
shared_experts = st.builds(SharedExperts, intermediate_size=widths, gate=maybe, bias=maybe)


@st.composite
def mixtures(draw: st.DrawFn) -> MoE:
    """Experts with whatever stands beside them."""
    experts = draw(st.sampled_from((4, 8, 16)))
    router = draw(st.one_of(by_logits, by_scores, by_scores))
    most = 1 if router.scores == "softmax_topk" else experts // 2
    groups = draw(st.sampled_from([n for n in (1, 2, 4) if n <= most]))
    chosen_groups = draw(st.integers(1, groups))
    beside = draw(optional(st.one_of(dense, gated)))
    return MoE(
        num_experts=experts,
        num_experts_per_tok=draw(st.integers(1, min(4, chosen_groups * experts // groups))),
        intermediate_size=draw(widths),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        gated=draw(maybe),
        bias=draw(maybe),
        router=replace(router, n_group=groups, topk_group=chosen_groups),
        shared=draw(optional(shared_experts)),
        beside=beside,
        separate_norms=beside is not None and draw(maybe),
        zero_experts=draw(st.sampled_from((0, 0, 4))),
        latent_size=draw(optional(widths)),
        output_bias=draw(maybe),
        output_norm=draw(maybe),
    )


ffns: st.SearchStrategy[FFN] = st.one_of(dense, gated, mixtures())
extras = st.builds(
    ExtraWeight,
    name=st.sampled_from(("extra_a", "extra_b")),
    shape=st.lists(widths, min_size=1, max_size=2).map(tuple),
    role=st.sampled_from(("matmul", "vector", "table", "buffer")),
)


per_layer_embeddings = st.builds(PerLayerEmbedding, size=widths, vocab_size=widths)
embeddings = st.builds(
    Embedding,
    size=st.sampled_from((None, None, 16)),
    positions_after=maybe,
    token_types=st.sampled_from((0, 0, 2)),
    norm=maybe,
    scale=scales,
)
output_heads = st.builds(Head, bias=maybe, transform=st.sampled_from((None, None, "bert", "roberta")), scale=scales)
encoder_positions = st.builds(LearnedPositions, num_positions=widths)


@st.composite
def layers(draw: st.DrawFn, *, cross: bool, mixer: st.SearchStrategy = mixers) -> Layer:
    """A layer with a mixer, a feed-forward, or both."""
    parts = draw(st.sampled_from(("both", "both", "both", "mixer", "ffn")))
    return Layer(
        mixer=draw(mixer) if parts != "ffn" else None,
        ffn=draw(ffns) if parts != "mixer" else None,
        placement=draw(st.sampled_from(PLACEMENTS)),
        cross_attention=draw(attentions().filter(lambda a: a.span is None)) if cross and parts != "ffn" else None,
        norm=draw(optional(norms)),
        output_scale=draw(maybe),
        extra=tuple(draw(st.lists(extras, max_size=1))),
    )


def _pattern(draw: st.DrawFn, kinds: Iterable[str]) -> str:
    return " ".join(f"{draw(st.integers(1, 3))}*{kind}" for kind in kinds)


def _with_a_first_choice(kinds: dict[str, Layer]) -> dict[str, Layer]:
    """The layers, where the first with an indexer has one of its own, and those that share a choice its size."""
    layers: dict[str, Layer] = {}
    chosen: Indexer | None = None
    for name, layer in kinds.items():
        mixer = layer.mixer
        if isinstance(mixer, LatentAttention) and mixer.indexer is not None:
            shared = mixer.indexer.shared and chosen is not None
            indexer = replace(mixer.indexer, shared=shared)
            chosen = indexer if not shared or chosen is None else chosen
            indexer = replace(indexer, top_k=chosen.top_k)
            layer = replace(layer, mixer=replace(mixer, indexer=indexer))
        layers[name] = layer
    return layers


def _positions_for(kinds: dict[str, Layer]) -> st.SearchStrategy[Positions]:
    """Positions that layers in this order can have: each mixer that attends supports them, and one shared table of
    biases needs layers with as many heads as the first."""
    mixers = [branches(layer.mixer) for layer in kinds.values()]
    everything = [mixer for singles in mixers for mixer in singles]
    attending = [mixer for mixer in everything if isinstance(mixer, AttentionKind)]
    users = [mixer for mixer in attending if mixer.positions is None]
    one_table = len({mixer.num_attention_heads for mixer in users}) < 2 and (not users or users[0] in mixers[0])

    def fits(chosen: Positions) -> bool:
        if isinstance(chosen, RelativeBias) and not chosen.per_layer and not one_table:
            return False
        if chosen.acts_on in ("embedding", "nothing"):
            return True
        return all(type(chosen) in mixer.position_kinds for mixer in users) and bool(attending or not everything)

    return positions.filter(fits)


@st.composite
def models(draw: st.DrawFn, *, encoder: bool | None = False, mixer: st.SearchStrategy = mixers) -> ModelSpec:
    """A valid model; `encoder` None has one half of the time."""
    with_encoder = draw(maybe) if encoder is None else encoder
    kinds = {f"kind{n}": draw(layers(cross=with_encoder, mixer=mixer)) for n in range(draw(st.integers(1, 3)))}
    kinds = _with_a_first_choice(kinds)
    encoder_stack = None
    if with_encoder:
        inner = {"enc": draw(layers(cross=False, mixer=attentions(causal=False)))}
        encoder_stack = Stack(
            layers=inner,
            pattern=_pattern(draw, inner),
            final_norm=draw(maybe),
            positions=draw(optional(encoder_positions)),
            embedding_norm=draw(maybe),
            vocab_size=draw(optional(widths)),
        )
    embedding = draw(embeddings)
    if all(layer.ffn is not None for layer in kinds.values()):
        embedding = replace(embedding, per_layer=draw(optional(per_layer_embeddings)))
    return ModelSpec(
        name=draw(names),
        source=draw(texts),
        aliases=tuple(draw(st.lists(texts, max_size=2))),
        notes=tuple(draw(st.lists(texts, max_size=2))),
        approximate=tuple(draw(st.lists(texts, max_size=1))),
        layers=kinds,
        pattern=_pattern(draw, kinds),
        vocab_size=draw(widths),
        hidden_size=draw(widths),
        tie_word_embeddings=draw(maybe),
        max_position_embeddings=draw(optional(st.integers(1, 2**20))),
        positions=draw(_positions_for(kinds)),
        norm=draw(norms),
        final_norm=draw(maybe),
        embedding=embedding,
        head=draw(output_heads),
        encoder=encoder_stack,
        next_token_prediction=draw(
            st.sampled_from(
                (
                    None,
                    None,
                    NextTokenPrediction(count=1, layer="kind0"),
                    NextTokenPrediction(count=2, layer="kind0"),
                )
            )
        ),
        hyper_connections=draw(
            st.sampled_from((None, None, None, HyperConnections(streams=2), HyperConnections(streams=4, mixes=False)))
        ),
        extra=tuple(draw(st.lists(extras, max_size=1))),
    ).check()
