"""Importers for BART and models with its architecture: mBART, Pegasus, Marian, Blenderbot, M2M-100, NLLB, TrOCR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmbench.spec.ffn import FFN, MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm, per_layer
from llmbench.spec.huggingface.layer_lists import expect_depths
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Placement, Stack
from llmbench.spec.position import LearnedPositions, Positions, SinusoidalPositions


@dataclass(frozen=True)
class _Form:
    """The fields in which BART and the models that descend from it differ.

    - placement: the places of the norms in a layer.
    - embedding_norm: a norm follows the embedding.
    - final_norm: a norm follows the last layer.
    - offset: number of rows in the position table before the row of the first token.
    - table: the positions are a table of parameters. Otherwise they are computed.
    - fixed_bias: the logits have a bias, which is stored but not trained. Otherwise the logits have no bias.
    - norm_before_positions: the decoder adds the positions after the embedding norm.
    """

    placement: Placement = "post"
    embedding_norm: bool = True
    final_norm: bool = False
    offset: int = 2
    table: bool = True
    fixed_bias: bool = True
    norm_before_positions: bool = False


_FORMS = {
    "bart": _Form(),
    "plbart": _Form(),
    "mvp": _Form(),
    "mbart": _Form(placement="pre", final_norm=True),
    "blenderbot": _Form(placement="pre", embedding_norm=False, final_norm=True, offset=0),
    "blenderbot-small": _Form(offset=0, norm_before_positions=True),
    "pegasus": _Form(placement="pre", embedding_norm=False, final_norm=True, offset=0),
    "marian": _Form(embedding_norm=False, offset=0),
    "m2m_100": _Form(placement="pre", embedding_norm=False, final_norm=True, table=False, fixed_bias=False),
    "nllb-moe": _Form(placement="pre", embedding_norm=False, final_norm=True, table=False, fixed_bias=False),
}


@family(*_FORMS)
def bart(c: Config) -> ModelSpec:
    """In BART and its descendants, encoder, decoder and head use the same token table.

    Encoder and decoder have one position table each. Pegasus and Marian store sinusoidal positions as a table. M2M-100
    and NLLB compute sinusoidal positions. The bias of the logits is stored but not trained.

    With `is_encoder_decoder` = false, the model is the decoder alone (BartForCausalLM). It keeps the weights of the
    cross-attention, but does not use them. Its logits have no bias.
    """
    form, alone = _FORMS[c.model_type], not c.flag("is_encoder_decoder", True)
    hidden, depth, decoder_depth = (
        c.size("hidden_size"),
        c.size("num_hidden_layers"),
        c.size("decoder_layers"),
    )
    expect_depths(c, depth, decoder_depth)
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
    if not c.flag("tie_word_embeddings") and not alone:
        c.doubt("tie_word_embeddings = False: transformers creates more token tables, which are not counted")
    if c.model_type == "mvp" and c.flag("use_prompt"):
        c.doubt("use_prompt = True: the weights of the prompts are not counted")
    c.ignore("prompt_length", "prompt_mid_dim")
    scale = encoder_scale = hidden**0.5 if c.flag("scale_embedding") else 1.0
    if c.model_type == "blenderbot-small":
        scale = 1.0  # the class in transformers scales only the embedding of its encoder
    rows = c.size("max_position_embeddings") + form.offset
    padding = c.count("pad_token_id", 1)
    positions: Positions = SinusoidalPositions(halves=True, to_end=True, offset=padding + 1, uncounted=padding)
    if form.table:
        positions = LearnedPositions(num_positions=rows, offset=form.offset)

    def stack(side: str, count: int) -> list[tuple[str, Layer]]:
        heads = c.size(f"{side}_attention_heads")
        fields = {"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": hidden // heads}
        both = {**fields, "qkv_bias": True, "output_bias": True}
        self_attention = Attention(**both, causal=side == "decoder")  # type: ignore[arg-type]
        width = c.size(f"{side}_ffn_dim")
        ffn: FFN = dense(c, bias=True, width=width, keys=("activation_function",))
        if side == "decoder" and alone:
            unused = unused_cross_attention(hidden, hidden)
            return [("block", block(self_attention, ffn, form.placement, extra=unused))] * count
        cross = Attention(**both, causal=False) if side == "decoder" else None  # type: ignore[arg-type]
        plain = block(self_attention, ffn, form.placement, cross_attention=cross)
        step = c.count(f"{side}_sparse_step") if c.model_type == "nllb-moe" else 0
        if not step:
            return [("block", plain)] * count
        sparse = block(self_attention, _nllb_experts(c, width), form.placement, cross_attention=cross)
        return [("moe", sparse) if (index + 1) % step == 0 else ("block", plain) for index in range(count)]

    vocab, encoder_vocab = c.size("vocab_size"), None
    if c.model_type == "marian":
        own_vocab = c.size("decoder_vocab_size", vocab)
        if not c.flag("share_encoder_decoder_embeddings", True):
            vocab, encoder_vocab = own_vocab, vocab
    encoder_layers, encoder_pattern = per_layer(c, stack("encoder", depth))
    encoder = Stack(
        layers=encoder_layers,
        pattern=encoder_pattern,
        final_norm=form.final_norm,
        positions=positions,
        embedding_norm=form.embedding_norm,
        embedding_scale=None if encoder_scale == scale else encoder_scale,
        vocab_size=encoder_vocab,
    )
    layers = stack("decoder", decoder_depth)
    c.put("num_hidden_layers", decoder_depth)
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm"),
        positions=positions,
        vocab_size=vocab,
        final_norm=form.final_norm,
        embedding=Embedding(
            norm=form.embedding_norm,
            positions_after=form.norm_before_positions,
            scale=scale,
        ),
        head=Head(fixed_bias=form.fixed_bias and not alone),
        encoder=None if alone else encoder,
    )


@family("trocr")
def trocr(c: Config) -> ModelSpec:
    """TrOCR is the text decoder of a model that reads images. It is BART's decoder without an encoder."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    padding = c.count("pad_token_id", 1)
    positions: Positions = SinusoidalPositions(halves=True, to_end=True, offset=padding + 1, uncounted=padding)
    if c.flag("use_learned_position_embeddings", True):
        positions = LearnedPositions(num_positions=c.size("max_position_embeddings") + 2, offset=2)
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=True, output_bias=True)
    ffn = dense(c, bias=True, width=c.size("decoder_ffn_dim"), keys=("activation_function",))
    unused = unused_cross_attention(hidden, c.size("cross_attention_hidden_size", hidden))
    return decoder(
        c,
        block(mixer, ffn, "post", extra=unused),
        norm=norm(c, "layernorm"),
        positions=positions,
        final_norm=False,
        embedding=Embedding(
            norm=c.flag("layernorm_embedding", True), scale=hidden**0.5 if c.flag("scale_embedding") else 1.0
        ),
    )


def unused_cross_attention(hidden: int, source: int, *, biases: int = 4) -> tuple[ExtraWeight, ...]:
    """Return the weights of a cross-attention and its norm, which a decoder without encoder has but does not use.

    - source: width of the encoder output.
    - biases: number of projections with a bias.
    """

    def weights(name: str, component: Literal["attention", "norms"], *shape: int) -> ExtraWeight:
        return ExtraWeight(name=name, shape=shape, role="unused", component=component)

    vectors = (weights("cross_attention.biases", "attention", biases, hidden),) if biases else ()
    return (
        weights("cross_attention.qo_proj", "attention", 2, hidden, hidden),
        weights("cross_attention.kv_proj", "attention", 2, hidden, source),
        *vectors,
        weights("cross_norm", "norms", 2, hidden),
    )


def _nllb_experts(c: Config, width: int) -> MoE:
    """Return NLLB's experts. Two experts process each token."""
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
