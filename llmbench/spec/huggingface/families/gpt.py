"""Decoders of GPT's line: LayerNorm with biases, two-matrix feed-forwards, and all ways to tell positions."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import attention, block, decoder, dense, norm, rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, Head, ModelSpec, Placement
from llmbench.spec.position import Alibi, LearnedPositions


@family("gpt2", "gpt_bigcode", "gpt-sw3")
def gpt2(c: Config) -> ModelSpec:
    """GPT-2 and, with one key-value head, StarCoder: learned positions, biases everywhere."""
    c.require("add_cross_attention", False)
    heads = c.size("num_attention_heads")
    kv_heads = 1 if c.model_type == "gpt_bigcode" and c.flag("multi_query", True) else heads
    c.ignore("num_key_value_heads")  # newer files say it beside multi_query
    scale = None if c.flag("scale_attn_weights", True) else 1.0
    if c.flag("scale_attn_by_inverse_layer_idx"):
        c.inexact("scores are divided by the number of the layer")
    mixer = attention(c, num_key_value_heads=kv_heads, qkv_bias=True, output_bias=True, scale=scale)
    width = c.size("n_inner", 4 * c.size("hidden_size"))
    c.ignore("apply_query_key_layer_scaling", "normalize_attention_scores")
    ffn = dense(c, bias=True, width=width, keys=("activation_function",))
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings"))
    return decoder(c, block(mixer, ffn), norm=norm(c, "layernorm"), positions=positions)


@family("opt")
def opt(c: Config) -> ModelSpec:
    """OPT: learned positions with two rows no token uses; 350m projects its embedding and is post-norm."""
    bias = c.flag("enable_bias", True)
    hidden = c.size("hidden_size")
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=bias, output_bias=bias)
    ffn = dense(c, bias=bias, width=c.size("ffn_dim"), keys=("activation_function",), default="relu")
    affine = c.flag("layer_norm_elementwise_affine", True)
    layer_norm = norm(c, "layernorm", weight=affine, bias=affine)
    pre = c.flag("do_layer_norm_before", True)
    size = c.size("word_embed_proj_dim", hidden)
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings") + 2, offset=2)
    return decoder(
        c,
        block(mixer, ffn, "pre" if pre else "post"),
        norm=layer_norm,
        positions=positions,
        final_norm=pre and not c.flag("_remove_final_layer_norm"),
        embedding=Embedding(size=None if size == hidden else size, positions_after=size != hidden),
    )


@family("bloom")
def bloom(c: Config) -> ModelSpec:
    """BLOOM: ALiBi, and a LayerNorm after the embedding. The first configs say `n_embed` for the hidden size."""
    for old, new in (("n_embed", "hidden_size"), ("num_attention_heads", "n_head")):
        if old in c and new not in c:
            c.put(new, c.get(old))
    hidden = c.size("hidden_size")
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True)
    behind = c.flag("apply_residual_connection_post_layernorm")
    if c.flag("slow_but_exact") and hidden % c.size("pretraining_tp", 1):
        c.inexact("BLOOM's class leaves out what pretraining_tp does not divide")
    ffn = dense(c, bias=True, width=4 * hidden, keys=("hidden_act",), default="gelu_tanh")
    return decoder(
        c,
        block(mixer, ffn, residual_from_norm=behind),
        norm=norm(c, "layernorm"),
        positions=Alibi(),
        embedding=Embedding(norm=True),
    )


@family("mpt")
def mpt(c: Config) -> ModelSpec:
    """MPT: ALiBi or learned positions, LayerNorm without bias, no biases, grouped heads in a few sizes."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    inner = c.sub("attn_config")
    kv_heads = 1 if inner.text("attn_type") == "multiquery_attention" else inner.size("kv_n_heads", heads)
    if kv_heads != heads:
        c.doubt("MPT's class in transformers builds a key-value head for every head whatever attn_config says")
    inner.require("qk_ln", False)
    inner.ignore(
        "attn_impl",
        "attn_pdrop",
        "prefix_lm",
        "attn_uses_sequence_id",
        "rope",
        "rope_theta",
        "rope_impl",
        "sliding_window_size",
    )
    c.require("no_bias", True)
    c.require("norm_type", "low_precision_layernorm", "layer_norm", "layernorm")
    c.ignore(
        "learned_pos_emb",
        "logit_scale",
        "verbose",
        "init_device",
        "embedding_fraction",
        "ffn_config",
        "fc_type",
        "init_config",
        "tokenizer_name",
        "use_cache",
        "init_div_is_residual",
    )
    if c.size("expansion_ratio", 4) != 4:
        c.doubt("MPT's class in transformers builds feed-forwards of 4 × hidden whatever expansion_ratio says")
    if hidden % heads:
        c.doubt("num_attention_heads does not divide hidden_size")
    inner.require("alibi_bias_max", 8)
    if c.get("max_seq_len") == 1:
        c.inexact("max_seq_len = 1, which in MPT's class makes every distance zero")
    mixer = attention(
        c,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        clip_qkv=inner.optional_number("clip_qkv") or None,
        scale=inner.optional_number("softmax_scale"),
    )
    if inner.flag("alibi", True):
        positions = Alibi()
    else:
        positions = Alibi()
        c.doubt("MPT without ALiBi has learned positions, which transformers' class does not build")
    inner.doubt_unread()
    return decoder(
        c,
        block(mixer, dense(c, bias=False, width=c.size("expansion_ratio", 4) * hidden, keys=("hidden_act",))),
        norm=norm(c, "layernorm", bias=False),
        positions=positions,
    )


@family("falcon", "RefinedWeb", "RefinedWebModel")
def falcon(c: Config) -> ModelSpec:
    """Falcon: 7B a parallel block behind one norm with one key-value head, 40B and 180B behind two with groups."""
    for old, new_name in (
        ("n_embed", "hidden_size"),
        ("n_head", "num_attention_heads"),
        ("n_layer", "num_hidden_layers"),
    ):
        if old in c:  # RefinedWeb's names, from before the class was part of transformers
            c.put(new_name, c.get(old))
    if c.model_type != "falcon" and "tie_word_embeddings" not in c:
        c.put("tie_word_embeddings", True)
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    new = c.flag("new_decoder_architecture", c.model_type == "RefinedWeb")
    bias = c.flag("bias")
    grouped = c.first("num_kv_heads", "n_head_kv")
    one = c.flag("multi_query", True)
    kv_heads = int(grouped) if new and isinstance(grouped, int) else 1 if one and not new else heads
    parallel = c.flag("parallel_attn", True)
    norms_each = c.first("num_ln_in_parallel_attn")
    placement: Placement = "pre"
    if new:
        placement = "parallel" if norms_each == 1 else "parallel_two"
    elif parallel:
        placement = "parallel"
    mixer = attention(c, num_key_value_heads=kv_heads, head_dim=hidden // heads, qkv_bias=bias, output_bias=bias)
    c.ignore("ff_factor")
    if c.flag("apply_residual_connection_post_layernorm"):
        c.inexact("residuals that start behind the norm, which Falcon's class does not read")
    if c.flag("alibi"):
        c.ignore("rope_parameters", "rope_theta", "rope_scaling")
    return decoder(
        c,
        block(mixer, dense(c, bias=bias, width=c.size("ffn_hidden_size", 4 * hidden), keys=("activation",)), placement),
        norm=norm(c, "layernorm"),
        positions=Alibi(scaled=True, rounded=True) if c.flag("alibi") else rope(c, head_dim=mixer.head_dim),
    )


@family("gpt_neox")
def gpt_neox(c: Config) -> ModelSpec:
    """GPT-NeoX and Pythia: two norms side by side, a quarter of each head rotated, no biases on the head."""
    bias = c.flag("attention_bias", True)
    heads = c.size("num_attention_heads")
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=bias, output_bias=bias)
    placement: Placement = "parallel_two" if c.flag("use_parallel_residual", True) else "pre"
    return decoder(
        c,
        block(mixer, dense(c, bias=True, keys=("hidden_act",)), placement),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.25),
    )


@family("gptj", "codegen")
def gptj(c: Config) -> ModelSpec:
    """GPT-J and CodeGen: one norm before both, rotation of 64 neighbours in pairs, a bias on the head and nowhere in
    attention."""
    heads = c.size("num_attention_heads")
    c.ignore("scale_attn_weights", "rotary")
    mixer = attention(c, num_key_value_heads=heads)
    width = c.size("n_inner", 4 * c.size("hidden_size"))
    return decoder(
        c,
        block(mixer, dense(c, bias=True, width=width, keys=("activation_function",)), "parallel"),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, interleaved=True),
        head=Head(bias=True),
    )


@family("phi", "phi-msft")
def phi(c: Config) -> ModelSpec:
    """Phi-1 to Phi-2: parallel block behind one norm, biases everywhere, a bias on the head."""
    if c.model_type == "phi-msft":  # the first files of Phi-1.5 and 2, with GPT-2's names
        names = (("n_embd", "hidden_size"), ("n_head", "num_attention_heads"), ("n_layer", "num_hidden_layers"))
        for old, new in (*names, ("n_positions", "max_position_embeddings")):
            c.put(new, c.size(old))
        c.put("num_key_value_heads", c.size("n_head_kv", c.get("num_attention_heads")))
        c.put("intermediate_size", c.size("n_inner", 4 * c.size("hidden_size")))
        c.ignore("fused_dense", "flash_rotary", "img_processor")
    qk_norm = QKNorm(norm="layernorm", bias=True) if c.flag("qk_layernorm") else None
    mixer = attention(c, qkv_bias=True, output_bias=True, qk_norm=qk_norm)
    return decoder(
        c,
        block(mixer, dense(c, bias=True, keys=("hidden_act", "activation_function")), "parallel"),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.5),
        head=Head(bias=True),
    )
