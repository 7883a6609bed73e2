"""DeBERTa 1 to 3: encoders that score by content and by relative position (arXiv 2006.03654)."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.encoders import bidirectional, learned_positions, masked_lm
from llmbench.spec.huggingface.parts import block, dense
from llmbench.spec.mixer import DisentangledScores
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec
from llmbench.spec.position import NoPositions, Positions


def _position_scores(c: Config) -> tuple[list[str], int] | None:
    """DeBERTa's kinds of scores by position, and the rows of its table in one direction; None without
    them."""
    kinds = c.get("pos_att_type") or []
    if not isinstance(kinds, (str, list)):
        raise c.error("pos_att_type", "must be a list, or names with | between them")
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    span = c.get("max_relative_positions")
    if not isinstance(span, int) or span < 1:
        span = c.size("max_position_embeddings")
    return ([str(kind) for kind in kinds], span) if c.flag("relative_attention") else None


def _deberta(c: Config, layer: Layer, extra: list[ExtraWeight]) -> ModelSpec:
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
    return ExtraWeight(name="relative_table", shape=(rows, hidden), role="table", component="attention_extra")


@family("deberta")
def deberta(c: Config) -> ModelSpec:
    """DeBERTa 1: scores by content and by relative position; biases on queries and values only."""
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
    """DeBERTa 2 and 3: positions in buckets, whose keys and queries may come from the content's
    projections."""
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
        c.doubt(f"conv_kernel_size = {kernel}: the convolution beside the first layer is not counted")
    c.ignore("attention_head_size", "conv_act", "conv_groups")
    mixer = bidirectional(c, head_dim=c.optional_size("attention_head_size"), disentangled=disentangled)
    return _deberta(c, block(mixer, dense(c, bias=True), "post"), extra)
