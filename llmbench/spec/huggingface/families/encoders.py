"""Encoders and encoder-decoders: BERT, T5, Switch."""

from __future__ import annotations

from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import activation, attention, block, decoder, dense, norm, per_layer
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec, Stack
from llmbench.spec.position import LearnedPositions, RelativeBias


@family("bert", "roberta", "xlm-roberta", "camembert")
def bert(c: Config) -> ModelSpec:
    """BERT and RoBERTa with their masked-LM heads: bidirectional, post-norm, segment embeddings."""
    heads = c.size("num_attention_heads")
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=True, output_bias=True, causal=False)
    c.require("position_embedding_type", "absolute")
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings"))
    return decoder(
        c,
        block(mixer, dense(c, bias=True), "post"),
        norm=norm(c, "layernorm"),
        positions=positions,
        final_norm=False,
        embedding=Embedding(token_types=c.count("type_vocab_size"), norm=True),
        head=Head(bias=True, transform="bert" if c.model_type == "bert" else "roberta"),
    )


@family("t5", "mt5", "umt5", "switch_transformers")
def t5(c: Config) -> ModelSpec:
    """T5 in all versions, and Switch with its experts in every `*_sparse_step`-th layer."""
    hidden = c.size("hidden_size")
    heads, head_dim = c.size("num_attention_heads"), c.size("d_kv")
    positions = RelativeBias(
        num_buckets=c.size("relative_attention_num_buckets"),
        max_distance=c.size("relative_attention_max_distance", 128),
        per_layer=c.model_type == "umt5",
    )

    def layer_of(ffn: FFN, *, causal: bool) -> Layer:
        own = Attention(
            num_attention_heads=heads, num_key_value_heads=heads, head_dim=head_dim, causal=causal, scale=1.0
        )
        cross = Attention(
            num_attention_heads=heads, num_key_value_heads=heads, head_dim=head_dim, causal=False, scale=1.0
        )
        return Layer(mixer=own, ffn=ffn, cross_attention=cross if causal else None)

    ffn = _t5_ffn(c)
    depth = c.size("num_hidden_layers")
    decoder_depth = c.size("num_decoder_layers", depth)
    if max(depth, decoder_depth) > 10_000:
        raise c.error("num_layers", "is more than 10000")

    def stack(count: int, sparse_key: str, *, causal: bool) -> list[tuple[str, Layer]]:
        layers = []
        step = 0
        if c.model_type == "switch_transformers":
            sparse = c.count(sparse_key)
            step = count // sparse if sparse else 0
        for index in range(count):
            has_experts = step > 0 and (index % step == 1 or step == 1)
            name = "moe" if has_experts else "block"
            layers.append((name, layer_of(_switch_experts(c, ffn) if has_experts else ffn, causal=causal)))
        return layers

    encoder_layers, encoder_pattern = per_layer(c, stack(depth, "num_sparse_encoder_layers", causal=False))
    c.ignore(
        "encoder_sparse_step",
        "decoder_sparse_step",
        "is_gated_act",
        "dense_act_fn",
        "expert_capacity",
        "add_router_probs",
        "router_type",
        "router_bias",
        "batch_prioritized_routing",
        "num_selected_experts",
        "n_positions",
    )
    c.put("num_hidden_layers", decoder_depth)
    return decoder(
        c,
        stack(decoder_depth, "num_sparse_decoder_layers", causal=True),
        norm=norm(c),
        positions=positions,
        encoder=Stack(layers=encoder_layers, pattern=encoder_pattern, positions=positions),
        head=Head(scale=hidden**-0.5 if c.flag("tie_word_embeddings") else 1.0),
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
    )
