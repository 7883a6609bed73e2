"""Encoder-decoders: T5 and its kin, Switch, BART and its kin, M2M-100 and NLLB, T5Gemma."""

from __future__ import annotations

from dataclasses import dataclass

from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    dense,
    gated,
    norm,
    per_layer,
    rope,
)
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Placement, Stack
from llmbench.spec.position import LearnedPositions, Positions, RelativeBias, SinusoidalPositions


def _both_depths(c: Config, encoder: int, decoder_depth: int) -> None:
    if max(encoder, decoder_depth) > 10_000:
        raise c.error("num_layers", "is more than 10000")


@family("t5", "mt5", "umt5", "longt5", "switch_transformers")
def t5(c: Config) -> ModelSpec:
    """T5 in all versions; LongT5 with a local encoder; Switch with its experts in every `*_sparse_step`-th
    layer."""
    hidden = c.size("hidden_size")
    heads, head_dim = c.size("num_attention_heads"), c.size("d_kv")
    positions = RelativeBias(
        num_buckets=c.size("relative_attention_num_buckets"),
        max_distance=c.size("relative_attention_max_distance", 128),
        per_layer=c.model_type == "umt5",
    )
    window, more = _longt5(c, hidden, heads) if c.model_type == "longt5" else (None, {})
    switch = c.model_type == "switch_transformers"

    def layer_of(ffn: FFN, *, causal: bool) -> Layer:
        same = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "scale": 1.0,
        }
        local = None if causal else window
        own = Attention(causal=causal, sliding_window=local, **same)  # type: ignore[arg-type]
        cross = Attention(causal=False, **same)  # type: ignore[arg-type]
        return Layer(mixer=own, ffn=ffn, cross_attention=cross if causal else None)

    ffn = _t5_ffn(c)
    depth = c.size("num_hidden_layers")
    decoder_depth = c.size("num_decoder_layers", depth)
    _both_depths(c, depth, decoder_depth)

    def stack(count: int, sparse_key: str, *, causal: bool) -> list[tuple[str, Layer]]:
        layers = []
        step = 0
        if switch:
            sparse = c.count(sparse_key)
            step = count // sparse if sparse else 0
        for index in range(count):
            has_experts = step > 0 and (index % step == 1 or step == 1)
            name = "moe" if has_experts else "block"
            layers.append((name, layer_of(_switch_experts(c, ffn) if has_experts else ffn, causal=causal)))
        return layers

    def with_globals(layers: list[tuple[str, Layer]]) -> list[tuple[str, Layer]]:
        """LongT5's global tokens: a norm in every layer, a table of biases in the first."""
        changed = []
        for index, (name, layer) in enumerate(layers):
            extra = (more["norm"], more["bias"]) if index == 0 else (more["norm"],)
            own = block(layer.mixer, layer.ffn, extra=extra)
            changed.append((f"{name}_first" if index == 0 else name, own))
        return changed

    encoder = stack(depth, "num_sparse_encoder_layers", causal=False)
    encoder_layers, encoder_pattern = per_layer(c, with_globals(encoder) if more else encoder)
    c.ignore(
        "encoder_sparse_step",
        "decoder_sparse_step",
        "is_gated_act",
        "dense_act_fn",
        "add_router_probs",
        "router_type",
        "router_bias",
        "batch_prioritized_routing",
        "num_selected_experts",
        "n_positions",
    )
    if switch and not c.flag("tie_word_embeddings"):
        c.doubt("tie_word_embeddings = False: transformers then also gives each stack a token table of its own")
    c.put("num_hidden_layers", decoder_depth)
    # Files of transformers 5 always tie, and say beside it whether the output is scaled; mT5's never is.
    scaled = c.flag("scale_decoder_outputs", c.flag("tie_word_embeddings")) and c.model_type != "mt5"
    return decoder(
        c,
        stack(decoder_depth, "num_sparse_decoder_layers", causal=True),
        norm=norm(c),
        positions=positions,
        encoder=Stack(layers=encoder_layers, pattern=encoder_pattern, positions=positions),
        head=Head(scale=hidden**-0.5 if scaled else 1.0),
    )


def _t5_ffn(c: Config) -> Dense | Gated:
    projection = c.text("feed_forward_proj", "relu")
    width = c.size("d_ff")
    is_gated = projection.startswith("gated-")
    act = activation(c, "dense_act_fn", default=projection.removeprefix("gated-"))
    if projection == "gated-gelu":
        act = "gelu_tanh"
    if is_gated:
        return Gated(intermediate_size=width, activation=act)
    return Dense(intermediate_size=width, activation=act)


def _switch_experts(c: Config, ffn: Dense | Gated) -> MoE:
    return MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=1,
        intermediate_size=ffn.intermediate_size,
        activation=ffn.activation,
        gated=isinstance(ffn, Gated),
        router=Router(bias=c.flag("router_bias")),
        expert_capacity=c.optional_size("expert_capacity"),
    )


def _longt5(c: Config, hidden: int, heads: int) -> tuple[int, dict[str, ExtraWeight]]:
    """LongT5's encoder sees `local_radius` to both sides; "transient-global" adds a summary of each block."""
    kind = c.text("encoder_attention_type", "local")
    c.require("encoder_attention_type", "local", "transient-global")
    c.ignore("global_block_size")
    radius = c.size("local_radius")
    if kind != "transient-global":
        return 2 * radius + 1, {}
    c.doubt("encoder_attention_type = transient-global: scores with the summaries of blocks are not counted")
    buckets = c.size("relative_attention_num_buckets")
    bias = ExtraWeight(name="global_bias", shape=(buckets, heads), role="vector", component="attention_extra")
    return 2 * radius + 1, {
        "norm": ExtraWeight(name="global_norm", shape=(hidden,), role="vector", component="norms"),
        "bias": bias,
    }


@dataclass(frozen=True)
class _Form:
    """How a class of BART's line differs: where its norms stand, and what its positions are."""

    placement: Placement = "post"
    embedding_norm: bool = True
    final_norm: bool = False
    offset: int = 2
    table: bool = True
    buffer: bool = True


_FORMS = {
    "bart": _Form(),
    "plbart": _Form(),
    "mvp": _Form(),
    "mbart": _Form(placement="pre", final_norm=True),
    "blenderbot": _Form(placement="pre", embedding_norm=False, final_norm=True, offset=0),
    "blenderbot-small": _Form(offset=0),
    "pegasus": _Form(placement="pre", embedding_norm=False, final_norm=True, offset=0),
    "marian": _Form(embedding_norm=False, offset=0),
    "m2m_100": _Form(placement="pre", embedding_norm=False, final_norm=True, table=False, buffer=False),
    "nllb-moe": _Form(placement="pre", embedding_norm=False, final_norm=True, table=False, buffer=False),
}


@family(*_FORMS)
def bart(c: Config) -> ModelSpec:
    """BART and its kin: one token table for both stacks and the head, a position table each (Pegasus's and
    Marian's sines are stored as one, M2M-100's are not), and a stored, untrained bias of the logits."""
    form = _FORMS[c.model_type]
    hidden, depth, decoder_depth = (
        c.size("hidden_size"),
        c.size("num_hidden_layers"),
        c.size("decoder_layers"),
    )
    _both_depths(c, depth, decoder_depth)
    c.ignore(
        "normalize_before",
        "normalize_embedding",
        "add_final_layer_norm",
        "add_bias_logits",
        "extra_pos_embeddings",
        "static_position_embeddings",
        "classif_dropout",
        "do_blenderbot_90_layernorm",
        "num_hidden_layers",
        "layernorm_variant",
        "force_bos_token_to_be_generated",
        "variant",
        "gpt2_vocab_size",
        "encoder_layers",
    )
    if not c.flag("tie_word_embeddings"):
        c.doubt("tie_word_embeddings = False: transformers then also gives each stack a token table of its own")
    if c.model_type == "mvp" and c.flag("use_prompt"):
        c.doubt("use_prompt = True: prompts are not counted")
    c.ignore("prompt_length", "prompt_mid_dim")
    rows = c.size("max_position_embeddings") + form.offset
    positions: Positions = SinusoidalPositions(halves=True, to_end=True, offset=2)
    if form.table:
        positions = LearnedPositions(num_positions=rows, offset=form.offset)

    def stack(side: str, count: int) -> list[tuple[str, Layer]]:
        heads = c.size(f"{side}_attention_heads")
        fields = {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads}
        both = {**fields, "qkv_bias": True, "output_bias": True}
        own = Attention(**both, causal=side == "decoder")  # type: ignore[arg-type]
        cross = Attention(**both, causal=False) if side == "decoder" else None  # type: ignore[arg-type]
        width = c.size(f"{side}_ffn_dim")
        ffn: FFN = dense(c, bias=True, width=width, keys=("activation_function",))
        plain = block(own, ffn, form.placement, cross_attention=cross)
        step = c.count(f"{side}_sparse_step") if c.model_type == "nllb-moe" else 0
        if not step:
            return [("block", plain)] * count
        sparse = block(own, _nllb_experts(c, width), form.placement, cross_attention=cross)
        return [("moe", sparse) if (index + 1) % step == 0 else ("block", plain) for index in range(count)]

    vocab, encoder_vocab = c.size("vocab_size"), None
    if c.model_type == "marian":
        own_vocab = c.size("decoder_vocab_size", vocab)
        if not c.flag("share_encoder_decoder_embeddings", True):
            vocab, encoder_vocab = own_vocab, vocab
    encoder_layers, encoder_pattern = per_layer(c, stack("encoder", depth))
    layers = stack("decoder", decoder_depth)
    c.put("num_hidden_layers", decoder_depth)
    bias = ExtraWeight(name="final_logits_bias", shape=(vocab,), role="buffer")
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm"),
        positions=positions,
        vocab_size=vocab,
        final_norm=form.final_norm,
        embedding=Embedding(norm=form.embedding_norm, scale=hidden**0.5 if c.flag("scale_embedding") else 1.0),
        encoder=Stack(
            layers=encoder_layers,
            pattern=encoder_pattern,
            final_norm=form.final_norm,
            positions=positions,
            embedding_norm=form.embedding_norm,
            vocab_size=encoder_vocab,
        ),
        extra=(bias,) if form.buffer else (),
    )


def _nllb_experts(c: Config, width: int) -> MoE:
    """Two experts a token."""
    c.ignore(
        "expert_capacity",
        "batch_prioritized_routing",
        "moe_eval_capacity_token_fraction",
        "normalize_router_prob_before_dropping",
        "second_expert_policy",
        "router_type",
    )
    ffn = dense(c, bias=True, width=width, keys=("activation_function",))
    return MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=2,
        intermediate_size=width,
        activation=ffn.activation,
        gated=False,
        bias=True,
        router=Router(bias=c.flag("router_bias")),
    )


@family("t5gemma")
def t5gemma(c: Config) -> ModelSpec:
    """T5Gemma: Gemma 2 as encoder and as decoder, each with a token table, of widths that may differ."""
    module = facts()["t5_gemma_module"]["defaults"]
    inner, outer = c.sub("encoder", defaults=module), c.sub("decoder", defaults=module)
    # Keys of the whole that both stacks repeat.
    c.ignore("encoder", "decoder", "vocab_size", "hidden_size", "num_hidden_layers")

    def stack(own: Config, *, causal: bool) -> list[tuple[str, Layer]]:
        bias = own.flag("attention_bias")
        own.ignore(
            "query_pre_attn_scalar",
            "is_decoder",
            "cross_attention_hidden_size",
            "use_bidirectional_attention",
        )
        count, window = min(own.size("num_hidden_layers"), 10_001), own.window()
        given = own.entries("layer_types", count)
        kinds = given or ["full_attention" if index % 2 else "sliding_attention" for index in range(count)]
        shape = {"qkv_bias": bias, "output_bias": bias}
        soft_cap = own.optional_number("attn_logit_softcapping")
        cross = attention(own, causal=False, logit_soft_cap=soft_cap, **shape) if causal else None
        layers = []
        for kind in kinds:
            local = kind == "sliding_attention"
            span = window if local else None
            if span is not None and not causal:
                span = 2 * span  # the window lies to both sides
            mixer = attention(own, causal=causal, sliding_window=span, logit_soft_cap=soft_cap, **shape)
            layer = block(mixer, gated(own, bias=False), "sandwich", cross_attention=cross)
            layers.append(("local" if local else "global", layer))
        return layers

    encoder_layers, encoder_pattern = per_layer(c, stack(inner, causal=False))
    layers = stack(outer, causal=True)
    vocab, hidden, encoder_hidden = (
        outer.size("vocab_size"),
        outer.size("hidden_size"),
        inner.size("hidden_size"),
    )
    c.put("num_hidden_layers", len(layers))
    soft_cap = outer.optional_number("final_logit_softcapping")
    inner.ignore("final_logit_softcapping", "tie_word_embeddings", "max_position_embeddings", "rope_theta")
    outer.ignore("tie_word_embeddings", "max_position_embeddings")
    positions = rope(outer, head_dim=outer.size("head_dim"))
    encoder = Stack(
        layers=encoder_layers,
        pattern=encoder_pattern,
        positions=rope(inner, head_dim=inner.size("head_dim")),
        vocab_size=inner.size("vocab_size"),
        hidden_size=None if encoder_hidden == hidden else encoder_hidden,
    )
    inner.doubt_unread()
    outer.doubt_unread()
    return decoder(
        c,
        layers,
        norm=norm(outer, unit_offset=True),
        positions=positions,
        vocab_size=vocab,
        hidden_size=hidden,
        embedding=Embedding(scale=hidden**0.5),
        head=Head(soft_cap=soft_cap),
        encoder=encoder,
    )
