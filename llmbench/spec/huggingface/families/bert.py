"""Importers for BERT and similar masked-language models: RoBERTa, ALBERT, ELECTRA, DeBERTa, ModernBERT and others."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    dense,
    gated,
    head_dim_of,
    norm,
)
from llmbench.spec.huggingface.layer_lists import MOST_LAYERS, num_layers
from llmbench.spec.huggingface.rotation import expect_rope_type, rope
from llmbench.spec.mixer import Attention, DisentangledScores
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Norm
from llmbench.spec.position import LearnedPositions, NoPositions, Positions, RelativeBias, Rope

Transform = Literal["bert", "roberta"]


def bidirectional(c: Config, **fields: Any) -> Attention:
    """Return attention with biases on all projections. The attention is causal only if `is_decoder` is true."""
    if c.flag("add_cross_attention"):
        c.doubt("add_cross_attention = True: cross-attention is not counted")
    causal = c.flag("is_decoder")
    fields = {"qkv_bias": True, "output_bias": True, "causal": causal, **fields}
    return attention(c, num_key_value_heads=c.size("num_attention_heads"), **fields)


def learned_positions(c: Config, *, after_padding: bool = False) -> LearnedPositions:
    """Return a table of learned positions.

    `after_padding`: the first token uses the row pad_token_id + 1 instead of row 0 (RoBERTa).
    """
    rows = c.size("max_position_embeddings")
    if not after_padding:
        return LearnedPositions(num_positions=rows)
    padding = c.count("pad_token_id", 1)
    return LearnedPositions(num_positions=rows, offset=padding + 1, uncounted=padding)


def projected_embedding(c: Config) -> Embedding:
    """Return BERT's embedding with a width of its own, and its projection to the hidden size if the widths differ."""
    hidden = c.size("hidden_size")
    size = c.size("embedding_size", hidden)
    return Embedding(
        size=None if size == hidden else size,
        projection_bias=size != hidden,
        token_types=c.count("type_vocab_size"),
        norm=True,
    )


def masked_lm(
    c: Config,
    layers: Layer | list[tuple[str, Layer]],
    transform: Transform,
    positions: Positions,
    **fields: Any,
) -> ModelSpec:
    """Return a model with BERT's embedding and head.

    BERT's embedding ends with a norm. BERT's head has a transform before the projection to the vocabulary. `layers`:
    one Layer for all layers, or a pair (name, layer) for each layer.
    """
    c.require("position_embedding_type", "absolute")
    c.ignore(
        "classifier_activation",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "directionality",
    )
    fields = {"final_norm": False, **fields}
    fields.setdefault("embedding", Embedding(token_types=c.count("type_vocab_size"), norm=True))
    fields["extra"] = (*fields.get("extra", ()), *_extra_bias(c, transform))
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm"),
        positions=positions,
        head=Head(bias=True, transform=transform),
        **fields,
    )


def _extra_bias(c: Config, transform: Transform | None) -> tuple[ExtraWeight, ...]:
    """Return the second bias of the masked-language-model head. Only a head that is not tied to the embedding has this
    bias."""
    if transform is None or c.flag("tie_word_embeddings"):
        return ()
    return (ExtraWeight(name="head.second_bias", shape=(c.size("vocab_size"),), role="vector"),)


@family("bert")
def bert(c: Config, *, extra: tuple[ExtraWeight, ...] = ()) -> ModelSpec:
    """BERT has bidirectional attention, norms after the residual sums, and an embedding table for segments."""
    layer = block(bidirectional(c), dense(c, bias=True), "post")
    return masked_lm(c, layer, "bert", learned_positions(c), extra=extra)


@family("roberta", "xlm-roberta", "camembert", "data2vec-text")
def roberta(c: Config) -> ModelSpec:
    """RoBERTa has BERT's architecture. The first token uses row pad_token_id + 1 of the position table."""
    layer = block(bidirectional(c), dense(c, bias=True), "post")
    return masked_lm(c, layer, "roberta", learned_positions(c, after_padding=True))


@family("megatron-bert", "xlm-roberta-xl", "roberta-prelayernorm")
def bert_pre_norm(c: Config) -> ModelSpec:
    """These variants of BERT have norms before the sublayers and a final norm.

    Only roberta-prelayernorm also has a norm on the embedding.
    """
    embedding = Embedding(token_types=c.count("type_vocab_size"), norm=c.model_type == "roberta-prelayernorm")
    transform: Transform = "bert" if c.model_type == "megatron-bert" else "roberta"
    layer = block(bidirectional(c), dense(c, bias=True), "pre")
    positions = learned_positions(c, after_padding=transform == "roberta")
    return masked_lm(c, layer, transform, positions, embedding=embedding, final_norm=True)


@family("roformer")
def roformer(c: Config) -> ModelSpec:
    """RoFormer is BERT with RoPE. Its checkpoint stores the sines and cosines as a table of parameters."""
    mixer = bidirectional(c)
    if c.flag("rotary_value"):
        c.unbuildable("rotary_value = True: the rotation of values is not supported")
    layer = block(mixer, dense(c, bias=True), "post")
    positions = Rope(interleaved=True, table_rows=c.size("max_position_embeddings"))
    return masked_lm(c, layer, "bert", positions, embedding=projected_embedding(c))


@family("rembert")
def rembert(c: Config) -> ModelSpec:
    """RemBERT is BERT with a narrow embedding and a wide head, which are never tied (arXiv 2010.12821)."""
    embedding = Embedding(
        size=c.size("input_embedding_size"),
        projection_bias=True,
        token_types=c.count("type_vocab_size"),
        norm=True,
    )
    ffn = dense(c, bias=True)
    if ffn.activation != "gelu":
        c.unbuildable(f"hidden_act = `{ffn.activation}`: the head supports only `gelu`")
    c.ignore("tie_word_embeddings")
    return decoder(
        c,
        block(bidirectional(c), ffn, "post"),
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        tie_word_embeddings=False,
        final_norm=False,
        embedding=embedding,
        head=Head(bias=True, transform="roberta", size=c.size("output_embedding_size")),
    )


@family("mpnet")
def mpnet(c: Config) -> ModelSpec:
    """MPNet is RoBERTa without segments. In addition to learned positions, it has T5's relative position bias."""
    buckets = RelativeBias(num_buckets=c.size("relative_attention_num_buckets"))
    if buckets.num_buckets != 32:
        c.unbuildable(
            f"relative_attention_num_buckets = {buckets.num_buckets}: transformers ignores it and uses 32 for MPNet"
        )
    layer = block(bidirectional(c, positions=buckets), dense(c, bias=True), "post")
    # transformers ignores pad_token_id of MPNet. Its padding token is always 1.
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings"), offset=2, uncounted=1)
    return masked_lm(c, layer, "roberta", positions, embedding=Embedding(norm=True))


@family("nomic_bert")
def nomic_bert(c: Config) -> ModelSpec:
    """Nomic's BERT has RoPE and SwiGLU. Only its head has biases. Configs on the hub use GPT-2's names of keys."""
    c.rename(
        n_embd="hidden_size",
        n_head="num_attention_heads",
        n_inner="intermediate_size",
        n_layer="num_hidden_layers",
        n_positions="max_position_embeddings",
        rotary_emb_base="rope_theta",
    )
    c.put("tie_word_embeddings", True)  # head and embedding are tied even if a config says false
    for key, value in (
        ("prenorm", False),
        ("qkv_proj_bias", False),
        ("mlp_fc1_bias", False),
        ("mlp_fc2_bias", False),
        ("rotary_emb_fraction", 1.0),
        ("use_rms_norm", False),
        ("activation_function", "swiglu"),
        ("parallel_block", False),
        ("causal", False),
    ):
        c.require(key, value)
    c.ignore(
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "rotary_emb_base",
        "rotary_emb_scale_base",
        "rotary_emb_interleaved",
        "pad_vocab_size_multiple",
        "layer_norm_epsilon",
        "max_trained_positions",
        "tie_word_embeddings",
        "dense_seq_output",
        "last_layer_subset",
        "fused_bias_fc",
        "fused_dropout_add_ln",
        "rotary_scaling_factor",
        "use_xentropy",
        "parallel_block_tied_norm",
        "summary_first_dropout",
        "scale_attn_weights",
    )
    mixer = bidirectional(c, qkv_bias=False, output_bias=False)
    layer = block(mixer, gated(c, bias=False), "post")
    positions = rope(c, head_dim=mixer.head_dim)
    return masked_lm(c, layer, "bert", positions)


@family("eurobert")
def eurobert(c: Config) -> ModelSpec:
    """EuroBERT has Llama's architecture, but without the causal mask."""
    bias = c.flag("attention_bias")
    c.ignore("classifier_pooling", "clf_pooling")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, causal=False)
    head = Head(bias=c.flag("mlp_bias"))
    positions = rope(c, head_dim=mixer.head_dim)
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=positions, head=head)


@family("albert")
def albert(c: Config) -> ModelSpec:
    """ALBERT has a narrow embedding. Its layers use only `num_hidden_groups` different sets of weights."""
    mixer, ffn = bidirectional(c), dense(c, bias=True)
    depth, groups, inner = c.size("num_hidden_layers"), c.size("num_hidden_groups"), c.size("inner_group_num")
    if depth * inner > MOST_LAYERS:
        raise c.error("num_hidden_layers", f"{depth} × inner_group_num {inner} is more than {MOST_LAYERS}")
    if groups > depth:
        raise c.error("num_hidden_groups", f"{groups} is more than num_hidden_layers {depth}")
    c.ignore("gap_size", "net_structure_type", "num_memory_blocks", "down_scale_factor")
    layers = []
    for index in range(depth):
        group = int(index / (depth / groups))
        for sub in range(inner):
            tag = f"group{group}" if inner == 1 else f"group{group}_{sub}"
            layers.append((tag, block(mixer, ffn, "post", shared_weights=tag)))
    c.put("num_hidden_layers", len(layers))
    token_types = c.count("type_vocab_size")
    embedding = Embedding(size=c.size("embedding_size"), projection_bias=True, token_types=token_types, norm=True)
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        final_norm=False,
        embedding=embedding,
        head=Head(bias=True, transform="bert"),
        extra=_extra_bias(c, "bert"),
    )


@family("distilbert")
def distilbert(c: Config) -> ModelSpec:
    """DistilBERT is BERT without segments. Its positions are a table of parameters, even if they are sinusoidal."""
    c.ignore("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout")
    c.put("layer_norm_eps", 1e-12)  # the epsilon is a constant in transformers, without a config key
    ffn = dense(c, bias=True, width=c.size("hidden_dim"), keys=("activation",))
    if ffn.activation != "gelu":
        c.unbuildable(f"activation = `{ffn.activation}`: the head supports only `gelu`")
    layer = block(bidirectional(c), ffn, "post")
    # Unlike BERT, DistilBERT never has a second bias in the head.
    return decoder(
        c,
        layer,
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        final_norm=False,
        embedding=Embedding(norm=True),
        head=Head(bias=True, transform="roberta"),
    )


@family("electra")
def electra(c: Config) -> ModelSpec:
    """The generator of ELECTRA is BERT with a narrower embedding."""
    c.ignore("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj")
    c.require("position_embedding_type", "absolute")
    return decoder(
        c,
        block(bidirectional(c), dense(c, bias=True), "post"),
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        final_norm=False,
        embedding=projected_embedding(c),
        head=Head(bias=True, transform="roberta"),
    )


@family("deberta")
def deberta(c: Config) -> ModelSpec:
    """DeBERTa 1 adds scores for relative positions to the attention scores (arXiv 2006.03654).

    Queries and values have biases. Keys have none.
    """
    hidden = c.size("hidden_size")
    scores, extra = _position_scores(c), []
    disentangled = None
    if scores is not None:
        kinds, span = scores
        extra.append(_relative_table(2 * span, hidden))
        disentangled = DisentangledScores(
            span=span,
            content_to_position="c2p" in kinds,
            position_to_content="p2c" in kinds,
            key_bias=False,
            clipped=True,
        )
    mixer = bidirectional(c, qkv_bias=False, disentangled=disentangled)
    width = mixer.num_attention_heads * mixer.head_dim
    biases = tuple(
        ExtraWeight(name=f"attention.{letter}_bias", shape=(width,), role="vector", component="attention")
        for letter in "qv"
    )
    return _deberta(c, block(mixer, dense(c, bias=True), "post", extra=biases), extra)


@family("deberta-v2")
def deberta_v2(c: Config) -> ModelSpec:
    """DeBERTa 2 and 3 group relative positions in buckets.

    The embeddings of the buckets are projected with the query and key matrices of the tokens if `share_att_key` is
    true.
    """
    hidden = c.size("hidden_size")
    scores = _position_scores(c)
    extra: list[ExtraWeight] = []
    disentangled = None
    buckets, shared = c.get("position_buckets"), c.flag("share_att_key")
    if scores is not None:
        kinds, span = scores
        span = buckets if isinstance(buckets, int) and buckets > 0 else span
        extra.append(_relative_table(2 * span, hidden))
        disentangled = DisentangledScores(
            span=span,
            content_to_position="c2p" in kinds,
            position_to_content="p2c" in kinds,
            shared_projections=shared,
        )
    if "layer_norm" in c.text("norm_rel_ebd", "none").lower():
        extra.append(ExtraWeight(name="relative_norm", shape=(2, hidden), role="vector", component="norms"))
    kernel = c.get("conv_kernel_size")
    if isinstance(kernel, int) and kernel > 0:
        c.doubt(f"conv_kernel_size = {kernel}: the convolution parallel to the first layer is not counted")
    c.ignore("attention_head_size", "conv_act", "conv_groups")
    mixer = bidirectional(c, head_dim=c.optional_size("attention_head_size"), disentangled=disentangled)
    return _deberta(c, block(mixer, dense(c, bias=True), "post"), extra)


def _position_scores(c: Config) -> tuple[list[str], int] | None:
    """Return the names of DeBERTa's position scores and the largest distance in tokens, or None if the model has
    none."""
    kinds = c.get("pos_att_type") or []
    if not isinstance(kinds, (str, list)):
        raise c.error(
            "pos_att_type", f"must be a list, or a string of names separated by |, not {type(kinds).__name__}"
        )
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    span = c.get("max_relative_positions")
    if not isinstance(span, int) or span < 1:
        span = c.size("max_position_embeddings")
    return ([str(kind) for kind in kinds], span) if c.flag("relative_attention") else None


def _deberta(c: Config, layer: Layer, extra: list[ExtraWeight]) -> ModelSpec:
    """Return a DeBERTa model. All its layers are equal to `layer`."""
    c.ignore(
        "pooler_hidden_act",
        "pooler_hidden_size",
        "pooler_dropout",
        "max_relative_positions",
        "pos_att_type",
        "relative_attention",
    )
    c.require("legacy", True)
    c.require("embedding_size", c.size("hidden_size"))
    positions: Positions = learned_positions(c) if c.flag("position_biased_input", True) else NoPositions()
    return masked_lm(c, layer, "bert", positions, extra=tuple(extra))


def _relative_table(rows: int, hidden: int) -> ExtraWeight:
    """Return DeBERTa's table of relative positions as an extra weight of shape [rows, hidden]."""
    return ExtraWeight(name="relative_table", shape=(rows, hidden), role="table", component="attention_extra")


@family("modernbert", "modernbert-decoder")
def modernbert(c: Config) -> ModelSpec:
    """ModernBERT has norms before the sublayers, and GEGLU. Two of three layers have a sliding window.

    The first layer has no norm before its attention, because a norm follows the embedding. Layers with a window have a
    RoPE of their own.
    """
    causal = c.model_type == "modernbert-decoder"
    bias = c.flag("attention_bias")
    every, count = c.size("global_attn_every_n_layers", 3), num_layers(c)
    kinds = c.entries("layer_types", count) or [
        "sliding_attention" if index % every else "full_attention" for index in range(count)
    ]
    c.ignore(
        "deterministic_flash_attn",
        "sparse_prediction",
        "reference_compile",
        "sparse_pred_ignore_index",
        "classifier_pooling",
        "repad_logits_with_grad",
        "embedding_size",
        "layer_norm_eps",
        "position_embedding_type",
    )
    if activation(c, "classifier_activation", default="gelu") != "gelu":
        c.unbuildable(f"classifier_activation = `{c.text('classifier_activation')}`: the head supports only `gelu`")
    window = c.optional_size("local_attention")
    if causal and "sliding_window" in c:
        window = c.window()
    elif causal and window is not None:
        window = max(1, window // 2)  # local_attention counts the keys before and after the query
    layer_norm = Norm(kind="layernorm", bias=c.flag("norm_bias"), eps=c.number("norm_eps", 1e-5))
    ffn: Gated | Dense = Gated(
        intermediate_size=c.size("intermediate_size"),
        activation=activation(c, "hidden_activation", default="gelu"),
        bias=c.flag("mlp_bias"),
    )
    positions = _modernbert_rope(c, "full_attention", "global_rope_theta", 160_000.0)
    local_positions = _modernbert_rope(c, "sliding_attention", "local_rope_theta", 10_000.0)
    layers = []
    for index, kind in enumerate(kinds):
        local = kind == "sliding_attention"
        mixer = attention(
            c,
            num_key_value_heads=c.size("num_attention_heads"),
            qkv_bias=bias,
            output_bias=bias,
            causal=causal,
            sliding_window=window if local else None,
            positions=local_positions if local and local_positions != positions else None,
        )
        name = ("local" if local else "global") if index else "first"
        layers.append((name, block(mixer, ffn, "pre" if index else "pre_ffn")))
    return decoder(
        c,
        layers,
        norm=layer_norm,
        positions=positions,
        embedding=Embedding(norm=True),
        head=Head(bias=c.flag("decoder_bias", True), transform="roberta", transform_bias=c.flag("classifier_bias")),
    )


def _modernbert_rope(c: Config, layer_type: str, older_key: str, usual: float) -> Rope:
    """Return the RoPE of the layers of one type.

    Its base is in `rope_scaling` or `rope_parameters`, or in `older_key`, or it is `usual`.
    """
    positions = rope(c, head_dim=head_dim_of(c), layer_type=layer_type)
    expect_rope_type(c)
    stated = c.table("rope_scaling") or c.table("rope_parameters").get(layer_type) or {}
    older = c.number(older_key, usual)
    return positions if "rope_theta" in stated else msgspec.structs.replace(positions, theta=older)
