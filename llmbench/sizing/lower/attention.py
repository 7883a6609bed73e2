"""The ops of softmax attention: MHA, GQA and MQA.

Elements of the weights per layer: D·N·H for q, D·K·H for k and for v, N·H·D for o. D is the hidden size, N the number
of query heads, K the number of key-value heads, and H the head dimension. The scores and their product with the values
cost 2·(d_qk + d_v) FLOPs per (query, key) pair and head. d_qk and d_v are the widths of a key head and of a value head.
"""

from __future__ import annotations

from typing import Any, Literal, assert_never

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, local_row, product, share, token_cache
from llmbench.sizing.lower.core import core
from llmbench.sizing.lower.pairs import visible_pairs
from llmbench.sizing.lower.temporaries import rotation
from llmbench.sizing.op import Cache
from llmbench.spec.mixer import Attention, DisentangledScores, QKNorm
from llmbench.spec.model import Norm
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)


def attention(b: Builder, mixer: Attention, *, name: str = "attention", cross: bool = False) -> None:
    """Add the ops of softmax attention.

    cross: whether keys and values come from the encoder.

    Raises LayoutError if the heads cannot be split over the GPUs.
    """
    tp = b.layout.tp
    heads = Dim(mixer.num_attention_heads, "num_attention_heads")
    kv_heads = Dim(mixer.num_key_value_heads, "num_key_value_heads")
    head_dim = Dim(mixer.head_dim, "head_dim")
    value_dim = head_dim if mixer.v_head_dim is None else Dim(mixer.v_head_dim, "v_head_dim")
    if heads.size % tp or (kv_heads.size % tp and tp % kv_heads.size):
        raise LayoutError(
            f"layout tp={tp}: the {heads.size} attention heads are not divisible by {tp}"
            if heads.size % tp
            else f"layout tp={tp}: the {kv_heads.size} key-value heads cannot be split evenly over {tp} GPUs",
            hint="choose a tp that divides the number of heads",
        )
    # if there are more GPUs than key-value heads, several GPUs have a copy of one head
    kv_shards = min(tp, kv_heads.size)
    local_heads, local_kv_heads = heads.size // tp, kv_heads.size // kv_shards
    source_tokens = share(b.workload.batch * b.workload.encoder_len, b.layout.cp) if cross else b.tokens
    projects_kv = not mixer.shares_kv and not (cross and b.workload.phase == "decode")

    inputs = b.hidden if mixer.input_size is None else Dim(mixer.input_size, "input_size")
    sources = b.encoder_hidden if cross else inputs
    queries = product(heads, head_dim)
    if mixer.output_gate == "elementwise":
        queries = product(Dim(2, "2"), heads, head_dim)
    if mixer.attention_experts is not None:
        _expert_projection(b, mixer, f"{name}.experts.q_proj", inputs, product(kv_heads, head_dim), split="column")
    else:
        b.linear(f"{name}.q_proj", "attention", inputs, queries, bias=mixer.qkv_bias, split="column", gathers=True)
    if not mixer.shares_kv:
        for letter, dim in (("k", head_dim), ("v", value_dim)):
            if letter == "v" and mixer.value_from_key:
                continue
            b.linear(
                f"{name}.{letter}_proj",
                "attention",
                sources,
                product(kv_heads, dim),
                bias=mixer.qkv_bias and (mixer.key_bias or letter == "v"),
                split="column",
                shards=kv_shards,
                tokens=source_tokens if projects_kv else 0,
                saves_input=False,
            )
    if mixer.output_gate == "headwise":
        b.linear(f"{name}.g_proj", "attention", inputs, heads, split="column", saves_input=False)
    if mixer.qk_norm is not None:
        _qk_norm(b, mixer.qk_norm, f"{name}.q_norm", heads, head_dim, tp)
        if not mixer.shares_kv:
            twice = mixer.value_norm and mixer.value_from_key  # the norm of the values saves the same tensor
            _qk_norm(b, mixer.qk_norm, f"{name}.k_norm", kv_heads, head_dim, kv_shards, saves_input=not twice)
    if mixer.value_norm and not mixer.shares_kv:
        plain = Norm(weight=False)
        b.norm(f"{name}.v_norm", "attention_norms", value_dim, plain, rows=b.tokens * local_kv_heads)
    if mixer.clip_qkv is not None:
        clipped = b.tokens * (local_heads * head_dim.size + local_kv_heads * (head_dim.size + value_dim.size))
        b.elementwise(f"{name}.clip", "attention", reads=clipped, writes=clipped, saves=clipped)
    if mixer.sinks:
        b.vector(f"{name}.sinks", "attention_extra", heads, shards=tp)
    positions = NoPositions() if cross else b.spec.positions_of(mixer)
    both = local_heads, 0 if mixer.shares_kv else local_kv_heads
    apply_positions(b, name, positions, heads, *(b.tokens * count * head_dim.size for count in both))
    if mixer.disentangled is not None:
        _disentangled(b, name, mixer.disentangled, inputs, product(heads, head_dim))
    source_len = b.workload.encoder_len if cross else b.kv_len
    pairs = visible_pairs(
        b.query_len,
        source_len,
        causal=mixer.causal and not cross,
        window=mixer.sliding_window,
        chunk=mixer.attention_chunk_size,
        masked_too=b.workload.masked_pairs,
    )
    row = local_kv_heads * mixer.cache_row.width
    cache = None
    if cross:
        crossing = None if mixer.shares_kv else local_row(b, mixer.cache_row)
        length = None if b.spec.encoder is None else b.spec.encoder.length
        cache = Cache(cross_per_token=0 if crossing is None else row, cross_row=crossing, cross_tokens=length)
    elif mixer.causal and b.stack == "decoder":
        cache = token_cache(b, None if mixer.shares_kv else mixer.cache_row)
    core(
        b,
        f"{name}.core",
        local_heads,
        local_kv_heads,
        qk_dim=head_dim.size,
        v_dim=value_dim.size * (2 if mixer.differential else 1),
        pairs=pairs,
        source_len=source_len,
        cache=cache,
        seen=source_len if mixer.span is None else min(source_len, mixer.span + b.query_len - 1),
        read_per_token=row,
        role="cross_core" if cross else "core",
        soft_cap=mixer.logit_soft_cap is not None,
        biased=positions.acts_on == "scores",
        masked=mixer.span is not None and mixer.span < source_len,
        kv_saved=mixer.shares_kv,
    )
    if mixer.differential:
        _differential(b, name, local_heads, head_dim)
    width = product(heads, value_dim)
    if mixer.output_gate is not None:
        gated = b.tokens * width.size // tp
        gates = gated if mixer.output_gate == "elementwise" else b.tokens * local_heads
        # The product saves the gates and the output of attention, which flash attention has already saved.
        saved = gates if b.workload.attention == "flash" else gates + gated
        b.elementwise(f"{name}.gate", "attention", reads=gated + gates, writes=gated, saves=saved, role="gate")
    changed = mixer.output_gate is not None or mixer.differential
    if mixer.output_norm:
        kept = b.workload.attention == "flash" and not changed  # flash attention has saved the input of the norm
        b.norm(f"{name}.o_norm", "attention_norms", width, b.spec.norm, rows=b.tokens, shards=tp, saves_input=not kept)
    # The input of o_proj is usually the output of attention, which flash attention has already saved.
    w = b.workload
    if mixer.attention_experts is not None:
        _expert_projection(b, mixer, f"{name}.experts.o_proj", product(kv_heads, value_dim), b.hidden, split="row")
        b.linear(f"{name}.router", "router", b.hidden, Dim(mixer.attention_experts, "attention_experts"))
        b.vector(f"{name}.expert_bias", "attention", b.hidden)
        return
    own_input = changed or mixer.output_norm or w.attention != "flash" or w.batch_first or w.fp8
    b.linear(
        f"{name}.o_proj",
        "attention",
        width,
        b.hidden,
        bias=mixer.output_bias,
        split="row",
        saves_input=own_input,
    )


def _expert_projection(
    b: Builder, mixer: Attention, name: str, inputs: Dim, outputs: Dim, *, split: Literal["column", "row"]
) -> None:
    """Add the query projections or the output projections of the experts of attention (JetMoE).

    Each of the selected experts of a token multiplies one row by its own matrix.
    """
    assert mixer.attention_experts is not None
    tp, tokens = b.layout.tp, b.tokens
    chosen = mixer.num_attention_heads // mixer.num_key_value_heads
    inside = share(inputs.size, tp) if split == "row" else inputs.size
    outside = share(outputs.size, tp) if split == "column" else outputs.size
    rows, weights = tokens * chosen, inside * outside
    read = mixer.attention_experts * (1 - (1 - chosen / mixer.attention_experts) ** tokens)  # as in `experts_read`
    b.add(
        name,
        "attention",
        "matmul",
        parameters=mixer.attention_experts * weights,
        active_parameters=chosen * weights,
        matmul_elements=chosen * weights,
        matrix=(mixer.attention_experts, inside, outside),
        rows=rows,
        experts_met=read,
        shards=tp,
        formula=f"attention_experts × {inputs.label} × {outputs.label}",
        forward_flops=2 * rows * weights,
        backward_flops=4 * rows * weights,
        weight_bytes=bytes_of(round(read * weights), b.workload.weight_dtype),
        read_bytes=b.act(rows * inside),
        written_bytes=b.act(rows * outside),
        saved_bytes=b.saved_input(rows * inside),
        backward_bytes=b.act(rows * (inside + outside)),
        collectives=b.collectives(split, tokens, inputs.size, outputs.size, gathers=split == "column"),
    )


def apply_positions(b: Builder, name: str, positions: Positions, heads: Dim, queries: int, keys: int) -> None:
    """Add the ops with which an attention applies its position encoding to queries, keys or scores.

    queries, keys: numbers of elements that RoPE rotates.
    """
    match positions:
        case Rope():
            _rope(b, name, positions, queries, keys)
        case RelativeBias():
            if positions.per_layer or 0 in b.layers:
                _relative_bias(b, name, positions, heads)
        case Alibi():
            pass  # the core computes the bias: it has no op and no parameters
        case LearnedPositions() | SinusoidalPositions() | NoPositions():
            pass  # the attention does not apply them
        case _:
            assert_never(positions)


def _rope(b: Builder, name: str, positions: Rope, queries: int, keys: int) -> None:
    """Add the rotation of queries and keys. queries, keys: numbers of rotated elements."""
    temporary: dict[str, Any] = {}
    if not b.fused:
        steps = rotation(queries, keys, b.act(queries + keys), interleaved=positions.interleaved)
        temporary = {"forward_bytes": steps.forward_bytes, "backward_bytes": steps.backward_bytes}
    turned = queries + keys
    b.elementwise(f"{name}.rope", "attention", reads=turned, writes=turned, role="rope", **temporary)


def _qk_norm(
    b: Builder, norm: QKNorm, name: str, heads: Dim, head_dim: Dim, parts: int, *, saves_input: bool = True
) -> None:
    kind = Norm(kind=norm.norm_kind, weight=norm.weight, bias=norm.bias)
    everything = product(heads, head_dim)
    local = heads.size // parts
    if norm.over == "full":
        b.norm(name, "attention_norms", everything, kind, rows=b.tokens, shards=parts, saves_input=saves_input)
    else:
        weight = everything if norm.over == "per_head" else head_dim
        shards = parts if norm.over == "per_head" else 1
        b.norm(
            name,
            "attention_norms",
            head_dim,
            kind,
            rows=b.tokens * local,
            weight_width=weight,
            shards=shards,
            saves_input=saves_input,
        )


def _differential(b: Builder, name: str, heads: int, head_dim: Dim) -> None:
    """Add the difference of the two softmaxes and the norm on each pair of heads, after the core.

    heads: number of heads on one GPU. The core gives each head 2·H channels.
    """
    for vector in ("q1", "k1", "q2", "k2"):
        b.vector(f"{name}.difference.{vector}", "attention_extra", head_dim)
    pairs = product(Dim(2, "2"), head_dim)
    both = b.tokens * heads * pairs.size
    # The gradient of λ needs the output of the core, which flash attention has already saved.
    saved = 0 if b.workload.attention == "flash" else both
    b.elementwise(f"{name}.difference", "attention", reads=both, writes=both // 2, saves=saved)
    b.norm(f"{name}.pair_norm", "attention_norms", pairs, Norm(weight=False), rows=b.tokens * heads // 2)


def _disentangled(b: Builder, name: str, scores: DisentangledScores, inputs: Dim, width: Dim) -> None:
    """Add DeBERTa's scores for relative positions.

    The rows of the table are projected once per sequence, which costs 2·rows·D·N·H FLOPs. D is the hidden size, N the
    number of heads, and H the head dimension. Then each query (or key) is multiplied with all rows, which costs
    2·rows·N·H FLOPs per token.
    """
    rows, tp = 2 * (min(scores.span, b.kv_len) if scores.clipped else scores.span), b.layout.tp
    projected = 2 if scores.shared_projections else 0
    products = 0
    for letter, used, bias in (
        ("k", scores.content_to_position, scores.key_bias),
        ("q", scores.position_to_content, True),
    ):
        if not used:
            continue
        products += 1
        if not scores.shared_projections:
            b.linear(
                f"{name}.position_{letter}_proj",
                "attention",
                inputs,
                width,
                bias=bias,
                split="column",
                tokens=rows,
            )
    local = share(width.size, tp)
    flops = products * 2 * rows * b.tokens * local + projected * 2 * rows * inputs.size * local
    b.add(f"{name}.position_scores", "attention", "attention", forward_flops=flops, backward_flops=2 * flops)


def _relative_bias(b: Builder, name: str, positions: RelativeBias, heads: Dim) -> None:
    tp = b.layout.tp
    rows = product(Dim(positions.num_buckets, "num_buckets"), heads)
    # Plain PyTorch looks up a bias for every (query, key) pair. It saves the row index of each pair (int64). With flash
    # attention, it also saves the biases.
    w, looked_up = b.workload, 0
    if not b.fused:
        pairs = w.batch * b.query_len * b.kv_len
        looked_up = 8 * pairs + (b.act(pairs * share(heads.size, tp)) if w.attention == "flash" else 0)
    with b.only(b.layers if positions.per_layer else (0,)):
        b.vector(f"{name}.relative_bias", "attention_extra", rows, shards=tp, saved_bytes=looked_up)
