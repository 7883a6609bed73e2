"""Importers for masked-language models that change a part of BERT: its positions, embedding, attention or head."""

from __future__ import annotations

from llmbench.spec.ffn import Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.bert import bidirectional, learned_positions, masked_lm, projected_embedding
from llmbench.spec.huggingface.families.common import (
    attention,
    block,
    decoder,
    dense,
    gated,
    head_dim_of,
    matrix,
    norm,
    vector,
)
from llmbench.spec.huggingface.layer_lists import layer_size, num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention, QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Placement
from llmbench.spec.position import LearnedPositions, NoPositions, Positions


@family("gte")
def gte(c: Config) -> ModelSpec:
    """GTE is BERT with RoPE and GEGLU. In its feed-forward, only the last matrix has a bias."""
    mixer = bidirectional(c)
    down_bias = vector("ffn.down_bias", "mlp", c.size("hidden_size"))
    layer = block(mixer, gated(c, bias=False), "post", extra=(down_bias,))
    return decoder(
        c,
        layer,
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
        final_norm=False,
        embedding=Embedding(token_types=c.count("type_vocab_size"), norm=True),
        head=Head(bias=True, transform="roberta"),
    )


@family("jina_embeddings_v3")
def jina_embeddings(c: Config) -> ModelSpec:
    """Jina embeddings 3 is RoBERTa with RoPE instead of learned positions."""
    mixer = bidirectional(c)
    layer = block(mixer, dense(c, bias=True), "post")
    return masked_lm(c, layer, "roberta", rope(c, head_dim=mixer.head_dim))


@family("layoutlm")
def layoutlm(c: Config) -> ModelSpec:
    """LayoutLM is BERT with a table for each coordinate of a word on the page: left, top, height and width."""
    rows, hidden = c.size("max_2d_position_embeddings"), c.size("hidden_size")
    tables = tuple(
        ExtraWeight(name=f"{axis}_position", shape=(rows, hidden), role="table", component="embedding")
        for axis in ("x", "y", "h", "w")
    )
    layer = block(bidirectional(c), dense(c, bias=True), "post")
    return masked_lm(c, layer, "bert", learned_positions(c), extra=(*tables, *_pooler(hidden)))


def _pooler(hidden: int) -> tuple[ExtraWeight, ...]:
    """Return the weights of BERT's pooler, which the masked-language model does not use: a matrix with a bias."""
    return (ExtraWeight(name="pooler", shape=(hidden + 1, hidden), role="unused"),)


@family("tapas")
def tapas(c: Config) -> ModelSpec:
    """TAPAS is BERT with seven tables of segments: row, column, rank and others. llmbench counts them as one table."""
    sizes = [layer_size(c, "type_vocab_sizes", size) for size in c.entries("type_vocab_sizes") or ()]
    c.ignore(
        "positive_label_weight num_aggregation_labels aggregation_loss_weight use_answer_as_supervision",
        "answer_loss_importance use_normalized_answer_loss huber_loss_delta aggregation_temperature",
        "use_gumbel_for_cells use_gumbel_for_aggregation average_approximation_function cell_selection_preference",
        "answer_loss_cutoff max_num_rows max_num_columns average_logits_per_cell select_one_column",
        "allow_empty_column_selection init_cell_selection_weights_to_zero reset_position_index_per_cell",
        "disable_per_token_loss aggregation_labels no_aggregation_label_index",
    )
    c.unbuildable("a token has one segment per table, which llmbench describes as one table")
    layer = block(bidirectional(c), dense(c, bias=True), "post")
    embedding = Embedding(token_types=sum(sizes), norm=True)
    return masked_lm(c, layer, "bert", learned_positions(c), embedding=embedding)


@family("roc_bert")
def roc_bert(c: Config) -> ModelSpec:
    """RoCBert is BERT with two more vectors per Chinese character: its pronunciation and its shape.

    A projection combines them with the token's vector, or they are summed.
    """
    hidden = c.size("hidden_size")
    tables: list[ExtraWeight] = []
    width = hidden
    for kind in ("pronunciation", "shape"):
        rows, size = c.size(f"{kind}_vocab_size"), c.size(f"{kind}_embed_dim")
        width += size if c.flag(f"enable_{kind}", True) else 0
        tables.append(ExtraWeight(name=f"{kind}_embedding", shape=(rows, size), role="table", component="embedding"))
    if c.flag("concat_input", True):
        tables += [matrix("embedding_projection", "other", hidden, width)]
        tables += [vector("embedding_projection_bias", "other", hidden)]
    layer = block(bidirectional(c), dense(c, bias=True), "post")
    return masked_lm(c, layer, "bert", learned_positions(c), extra=tuple(tables))


@family("bert-generation")
def bert_generation(c: Config) -> ModelSpec:
    """BERT for generation has no segments, and a head without a transform."""
    vocab = c.size("vocab_size")
    second = () if c.flag("tie_word_embeddings") else (vector("head.second_bias", "other", vocab),)
    return decoder(
        c,
        block(bidirectional(c), dense(c, bias=True), "post"),
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        final_norm=False,
        embedding=Embedding(norm=True),
        head=Head(bias=True),
        extra=second,
    )


@family("big_bird")
def big_bird(c: Config) -> ModelSpec:
    """BigBird is BERT with block-sparse attention. Its queries, keys and values can lack biases."""
    expect_full_attention(c)
    scale = c.size("hidden_size") ** 0.5 if c.flag("rescale_embeddings") else 1.0
    embedding = Embedding(token_types=c.count("type_vocab_size"), norm=True, scale=scale)
    layer = block(bidirectional(c, qkv_bias=c.flag("use_bias", True)), dense(c, bias=True), "post")
    unused = _pooler(c.size("hidden_size"))
    return masked_lm(c, layer, "bert", learned_positions(c), embedding=embedding, extra=unused)


def expect_full_attention(c: Config) -> None:
    """Mark the spec as approximate if BigBird's attention is block-sparse."""
    c.ignore("block_size", "num_random_blocks")
    c.require("attention_type", "original_full", "block_sparse")
    if c.text("attention_type") != "original_full":
        c.doubt("attention_type = block_sparse: llmbench counts attention to all keys")
        c.unbuildable("block-sparse attention is unsupported")


@family("xlm", "flaubert")
def xlm(c: Config) -> ModelSpec:
    """XLM and FlauBERT have a feed-forward of 4 × hidden_size, and a head without a transform.

    A model of several languages has a table of languages.
    """
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    c.require("asm", False)
    c.require("is_encoder", True)
    c.ignore("sinusoidal_embeddings lang_id embed_init_std start_n_top end_n_top")
    c.ignore("bos_index eos_index mask_index pad_index unk_index")
    causal = c.flag("causal")
    mixer = Attention(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim_of(c),
        qkv_bias=True,
        output_bias=True,
        causal=causal,
    )
    ffn = dense(c, bias=True, width=4 * hidden, default="gelu" if c.flag("gelu_activation", True) else "relu")
    placement: Placement = "pre" if c.flag("pre_norm") else "post"
    if placement == "pre":
        c.unbuildable("pre_norm = True is unsupported")
    languages = c.count("n_langs")
    extra: list[ExtraWeight] = []
    if c.flag("use_lang_emb") and languages > 1:
        extra.append(
            ExtraWeight(name="language_embedding", shape=(languages, hidden), role="table", component="embedding")
        )
    return decoder(
        c,
        block(mixer, ffn, placement),
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        final_norm=False,
        embedding=Embedding(norm=True),
        head=Head(bias=True),
        extra=tuple(extra),
    )


@family("xlnet")
def xlnet(c: Config) -> ModelSpec:
    """XLNet has Transformer-XL's attention: a second score per query and key depends on their distance.

    The attention also has a score for whether query and key are in the same segment. It has no biases.
    """
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    head_dim = c.size("d_head", hidden // heads)
    c.doubt("the scores of distances and of segments are not counted")
    c.ignore("mem_len reuse_len use_mems_eval use_mems_train bi_data clamp_len same_length start_n_top end_n_top")
    c.ignore("summary_last_dropout")
    c.require("attn_type", "bi", "uni")
    mixer = Attention(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        causal=c.text("attn_type", "bi") == "uni",
    )
    width = heads * head_dim
    extra = (
        matrix("attention.distance", "attention_extra", width, hidden),
        vector("attention.score_biases", "attention_extra", 3, width),
        vector("attention.segments", "attention_extra", 2, width),
    )
    ffn = dense(c, bias=True, width=c.size("d_inner"), keys=("ff_activation",))
    return decoder(
        c,
        block(mixer, ffn, "post", extra=extra),
        norm=norm(c, "layernorm"),
        final_norm=False,
        head=Head(bias=True),
        extra=(vector("mask_embedding", "other", hidden),),
    )


@family("xmod")
def xmod(c: Config) -> ModelSpec:
    """X-MOD is RoBERTa with an adapter per language in each layer. A token uses the adapter of its language only."""
    hidden = c.size("hidden_size")
    narrow = hidden // c.size("adapter_reduction_factor")
    c.ignore("adapter_reuse_layer_norm ln_before_adapter default_language")
    others = len(c.entries("languages") or ("en_XX",)) - 1
    extra = [
        matrix("adapter.down", "other", narrow, hidden),
        matrix("adapter.up", "other", hidden, narrow),
        vector("adapter.biases", "other", narrow + hidden),
    ]
    if others > 0:
        size = 2 * narrow * hidden + narrow + hidden
        extra.append(ExtraWeight(name="adapters_of_other_languages", shape=(others, size), role="unused"))
    if c.flag("adapter_layer_norm"):
        extra.append(vector("adapter_norm", "norms", 2, hidden))
    before = c.flag("pre_norm")
    layer = block(bidirectional(c), dense(c, bias=True), "pre" if before else "post", extra=tuple(extra))
    positions = learned_positions(c, after_padding=True)
    return masked_lm(c, layer, "roberta", positions, final_norm=before)


@family("longformer")
def longformer(c: Config) -> ModelSpec:
    """Longformer is RoBERTa with a sliding window. Chosen tokens, the global ones, have projections of their own."""
    hidden = c.size("hidden_size")
    c.ignore("sep_token_id onnx_export")
    layers: list[tuple[str, Layer]] = []
    for window in longformer_windows(c, num_layers(c)):
        mixer = bidirectional(c, sliding_window=window)
        layers.append(("block", block(mixer, dense(c, bias=True), "post", extra=global_projections(hidden))))
    return masked_lm(c, layers, "roberta", learned_positions(c, after_padding=True))


def longformer_windows(c: Config, count: int) -> list[int]:
    """Return the keys that a token sees in each layer: half of `attention_window` on each side, and its own key."""
    c.note("the figures are those of a text without global tokens, which see all tokens and are seen by all tokens")
    stated = c.get("attention_window")
    if isinstance(stated, list):
        windows = [layer_size(c, "attention_window", size) for size in c.entries("attention_window", count) or ()]
    else:
        windows = [c.size("attention_window")] * count
    return [window // 2 * 2 + 1 for window in windows]


def global_projections(hidden: int) -> tuple[ExtraWeight, ...]:
    """Return Longformer's projections of global tokens: three matrices with biases. Other tokens do not use them."""
    shape = (3, hidden + 1, hidden)
    return (ExtraWeight(name="attention.global_projections", shape=shape, role="unused", component="attention"),)


@family("yoso", "mra", "nystromformer")
def sampled_attention(c: Config) -> ModelSpec:
    """YOSO, MRA and Nyströmformer are RoBERTa with an attention that approximates the softmax over all keys."""
    names = {"yoso": "hashed", "mra": "computed at several resolutions", "nystromformer": "computed through landmarks"}
    c.doubt(f"the attention is {names[c.model_type]}, and llmbench counts it as attention to all keys")
    c.ignore(
        "use_expectation hash_code_len num_hash use_fast_hash lsh_backward",
        "block_per_row approx_mode initial_prior_first_n_blocks initial_prior_diagonal_n_blocks",
        "segment_means_seq_len num_landmarks inv_coeff_init_option",
    )
    c.unbuildable("the approximation of the softmax is unsupported")
    mixer = bidirectional(c)
    kernel = c.optional_size("conv_kernel_size" if c.model_type == "nystromformer" else "conv_window")
    extra: tuple[ExtraWeight, ...] = ()
    if kernel is not None:  # one filter per head, over the values of neighbouring tokens
        extra = (vector("attention.conv", "attention_extra", mixer.num_attention_heads, kernel),)
    rows = c.size("max_position_embeddings") + 2
    positions = LearnedPositions(num_positions=rows, offset=2)
    buffers: tuple[ExtraWeight, ...] = ()
    if c.model_type == "mra":
        buffers = (ExtraWeight(name="position_ids", shape=(rows - 2,), role="buffer"),)
    layer = block(mixer, dense(c, bias=True), "post", extra=extra)
    return masked_lm(c, layer, "bert", positions, extra=buffers)


@family("fnet")
def fnet(c: Config) -> ModelSpec:
    """FNet mixes tokens with a Fourier transform instead of attention. A projection follows its embedding."""
    hidden = c.size("hidden_size")
    c.require("use_tpu_fourier_optimizations", False)
    c.ignore("tpu_short_seq_length")
    c.doubt("the FLOPs of the Fourier transform are not counted")
    mixer_norm = vector("fourier_norm", "norms", 2, hidden)
    projection = (
        matrix("embedding_projection", "other", hidden, hidden),
        vector("embedding_projection_bias", "other", hidden),
    )
    layer = block(None, dense(c, bias=True), "post", extra=(mixer_norm,))
    return masked_lm(c, layer, "bert", learned_positions(c), extra=(*projection, *_pooler(hidden)))


@family("convbert")
def convbert(c: Config) -> ModelSpec:
    """ConvBERT replaces half of BERT's heads by a convolution whose kernel is computed for each token."""
    hidden = c.size("hidden_size")
    heads = max(1, c.size("num_attention_heads") // c.size("head_ratio"))
    head_dim, kernel = hidden // heads // 2, c.size("conv_kernel_size")
    width, groups = heads * head_dim, c.size("num_groups")
    if groups != 1:
        c.doubt(f"num_groups = {groups}: the feed-forward is counted as if all its inputs reached all outputs")
    c.doubt("the FLOPs of the convolution with the computed kernel are not counted")
    mixer = Attention(
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        qkv_bias=True,
        output_bias=True,
        causal=c.flag("is_decoder"),
    )
    extra = (
        vector("attention.conv.depthwise", "attention_extra", hidden, kernel),
        vector("attention.conv.pointwise", "attention_extra", width, hidden),
        vector("attention.conv.bias", "attention_extra", width),
        matrix("attention.conv_kernel", "attention_extra", heads * kernel, width),
        vector("attention.conv_kernel_bias", "attention_extra", heads * kernel),
        matrix("attention.conv_out", "attention_extra", width, hidden),
        vector("attention.conv_out_bias", "attention_extra", width),
        matrix("attention.o_proj_of_conv", "attention", hidden, width),
    )
    return decoder(
        c,
        block(mixer, dense(c, bias=True), "post", extra=extra),
        norm=norm(c, "layernorm"),
        positions=learned_positions(c),
        final_norm=False,
        embedding=projected_embedding(c),
        head=Head(bias=True, transform="roberta"),
    )


@family("esm")
def esm(c: Config) -> ModelSpec:
    """ESM-1 and ESM-2, models of proteins, have norms before the sublayers. ESM-2 has RoPE.

    A small head predicts contacts from the attention weights. The language model does not use it.
    """
    if c.flag("is_folding_model"):
        c.doubt("is_folding_model = True: the weights of the folding trunk are not counted")
    c.ignore("esmfold_config vocab_list token_dropout")
    mixer = bidirectional(c)
    contacts = num_layers(c) * mixer.num_attention_heads + 1
    extra = [ExtraWeight(name="contact_head", shape=(contacts,), role="unused")]
    kind = c.text("position_embedding_type", "absolute")
    c.require("position_embedding_type", "absolute", "rotary")
    if kind == "rotary":
        positions: Positions = rope(c, head_dim=mixer.head_dim)
        extra.append(ExtraWeight(name="rotary_frequencies", shape=(mixer.head_dim // 2,), role="buffer"))
    elif kind == "absolute":
        positions = learned_positions(c, after_padding=True)
    else:
        positions = NoPositions()
    return decoder(
        c,
        block(mixer, dense(c, bias=True)),
        norm=norm(c, "layernorm"),
        positions=positions,
        embedding=Embedding(norm=c.flag("emb_layer_norm_before")),
        head=Head(bias=True, transform="roberta"),
        extra=tuple(extra),
    )


@family("esmc")
def esmc(c: Config) -> ModelSpec:
    """ESM C, a model of proteins, has Llama's layers without the causal mask, with LayerNorm, also on q and k."""
    bias = c.flag("attention_bias")
    count = num_layers(c)
    mixer = attention(
        c,
        qkv_bias=bias,
        output_bias=bias,
        causal=False,
        qk_norm=QKNorm(over="full", norm="layernorm"),
    )
    # The class divides the output of each sublayer by √(number of layers / 36).
    layer = block(mixer, gated(c), residual_scale=(36 / count) ** 0.5)
    c.ignore("tie_word_embeddings")
    last_norm = vector("final_norm", "norms", c.size("hidden_size"))  # unlike the other norms, without a bias
    return decoder(
        c,
        layer,
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
        final_norm=False,
        head=Head(bias=True, transform="roberta"),
        tie_word_embeddings=False,  # the class never ties the head
        extra=(last_norm,),
    )


@family("ultrabert")
def ultrabert(c: Config) -> ModelSpec:
    """Ultrabert has Llama's layers without the causal mask. Two of three layers have a sliding window.

    Two narrow matrices precede its head.
    """
    bias, hidden, narrow = c.flag("attention_bias"), c.size("hidden_size"), c.size("prediction_head_size")
    window = c.size("sliding_window")
    c.ignore("classifier_pooling", "attention_windows")
    local = windowed_layers(c, lambda index: (index + 1) % 3 != 0)
    ffn: Gated = gated(c)
    head_dim = head_dim_of(c)
    near = rope(c, head_dim=head_dim, layer_type="sliding_attention")
    layers: list[tuple[str, Layer]] = []
    for windowed in local:
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            causal=False,
            sliding_window=2 * window + 1 if windowed else None,
            positions=near if windowed else None,
        )
        layers.append(("local" if windowed else "global", block(mixer, ffn)))
    extra = (matrix("head.down", "other", narrow, hidden), matrix("head.up", "other", hidden, narrow))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim, layer_type="full_attention"),
        extra=extra,
    )
