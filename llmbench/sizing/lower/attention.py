"""Attention and latent attention as ops.

Per layer, MHA/GQA/MQA: q D·N·H, k and v D·K·H each, o N·H·D weights; scores and their use of the values cost
2·(d_qk + d_v) FLOPs a pair and head. Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): see `latent`.
"""

from __future__ import annotations

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, product, share
from llmbench.sizing.lower.core import core
from llmbench.sizing.lower.pairs import visible_pairs
from llmbench.sizing.lower.temporaries import rotation
from llmbench.sizing.op import Cache
from llmbench.spec.mixer import Attention, DisentangledScores, LatentAttention, QKNorm
from llmbench.spec.model import Norm
from llmbench.spec.position import Alibi, Positions, RelativeBias, Rope


def attention(b: Builder, mixer: Attention, *, name: str = "attention", cross: bool = False) -> None:
    """Softmax attention; `cross` reads its keys and values from an encoder."""
    tp = b.layout.tp
    heads = Dim(mixer.num_attention_heads, "num_attention_heads")
    kv_heads = Dim(mixer.num_key_value_heads, "num_key_value_heads")
    head_dim = Dim(mixer.head_dim, "head_dim")
    value_dim = head_dim if mixer.v_head_dim is None else Dim(mixer.v_head_dim, "v_head_dim")
    if heads.size % tp or (kv_heads.size % tp and tp % kv_heads.size):
        raise LayoutError(
            f"layout tp={tp}: does not divide {heads.size} attention heads"
            if heads.size % tp
            else f"layout tp={tp}: neither divides nor is a multiple of {kv_heads.size} key-value heads",
            hint="choose a tp that divides the heads",
        )
    kv_ways = min(tp, kv_heads.size)  # beyond that, GPUs hold copies of a key-value head
    local_heads, local_kv_heads = heads.size // tp, kv_heads.size // kv_ways
    source_tokens = share(b.workload.batch * b.workload.encoder_len, b.layout.cp) if cross else b.tokens
    projects_kv = not mixer.shares_kv and not (cross and b.workload.phase == "decode")

    inputs = b.hidden if mixer.input_size is None else Dim(mixer.input_size, "input_size")
    sources = b.encoder_hidden if cross else inputs
    queries = product(heads, head_dim)
    if mixer.output_gate == "elementwise":
        queries = product(Dim(2, "2"), heads, head_dim)
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
                bias=mixer.qkv_bias,
                split="column",
                ways=kv_ways,
                tokens=source_tokens if projects_kv else 0,
                saves_input=False,
            )
    if mixer.output_gate == "headwise":
        b.linear(f"{name}.g_proj", "attention", inputs, heads, split="column", saves_input=False)
    if mixer.qk_norm is not None:
        _qk_norm(b, mixer.qk_norm, f"{name}.q_norm", heads, head_dim, tp)
        if not mixer.shares_kv:
            _qk_norm(b, mixer.qk_norm, f"{name}.k_norm", kv_heads, head_dim, kv_ways)
    if mixer.value_norm:
        plain = Norm(weight=False)
        b.norm(f"{name}.v_norm", "attention_norms", value_dim, plain, rows=b.tokens * local_kv_heads)
    if mixer.clip_qkv is not None:
        clipped = b.tokens * (local_heads * head_dim.size + local_kv_heads * (head_dim.size + value_dim.size))
        b.elementwise(f"{name}.clip", "attention", reads=clipped, writes=clipped, saves=clipped)
    if mixer.sinks:
        b.vector(f"{name}.sinks", "attention_extra", heads, shards=tp)
    positions = b.spec.positions_of(mixer)
    if isinstance(positions, RelativeBias) and not cross and (positions.per_layer or 0 in b.layers):
        _relative_bias(b, name, positions, heads, tp)
    if isinstance(positions, Rope) and not cross:
        both = local_heads, 0 if mixer.shares_kv else local_kv_heads
        _rope(b, name, positions, *(b.tokens * count * head_dim.size for count in both))
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
    per_token = 0 if mixer.shares_kv else local_kv_heads * (head_dim.size + value_dim.size)
    cache = None
    if cross:
        cache = Cache(cross_per_token=per_token)
    elif mixer.causal and b.stack == "decoder":
        cache = Cache(per_token=per_token, span=mixer.span)
    core(
        b,
        f"{name}.core",
        local_heads,
        local_kv_heads,
        qk_dim=head_dim.size,
        v_dim=value_dim.size,
        pairs=pairs,
        source_len=source_len,
        cache=cache,
        seen=source_len if mixer.span is None else min(source_len, mixer.span + b.query_len - 1),
        read_per_token=local_kv_heads * (head_dim.size + value_dim.size),
        soft_cap=mixer.logit_soft_cap is not None,
        biased=isinstance(positions, (Alibi, RelativeBias)) and not cross,
        masked=mixer.span is not None and mixer.span < source_len,
    )
    width = product(heads, value_dim)
    if mixer.output_gate is not None:
        gated = b.tokens * width.size // tp
        b.elementwise(f"{name}.gate", "attention", reads=2 * gated, writes=gated, saves=gated)
    if mixer.output_norm:
        b.norm(f"{name}.o_norm", "attention_norms", width, b.spec.norm, rows=b.tokens, shards=tp)
    # The input of o_proj is the attention's own output, which flash attention saves already.
    own_input = mixer.output_gate is not None or mixer.output_norm or b.workload.attention != "flash"
    b.linear(
        f"{name}.o_proj",
        "attention",
        width,
        b.hidden,
        bias=mixer.output_bias,
        split="row",
        saves_input=own_input,
    )


def _rope(b: Builder, name: str, rope: Positions, queries: int, keys: int) -> None:
    """Queries and keys turned, of so many elements."""
    held = {}
    if not b.fused:
        steps = rotation(queries, keys, b.act(queries + keys), interleaved=isinstance(rope, Rope) and rope.interleaved)
        held = {"forward_bytes": steps.forward_bytes, "backward_bytes": steps.backward_bytes}
    b.elementwise(f"{name}.rope", "attention", reads=queries + keys, writes=queries + keys, **held)


def _qk_norm(b: Builder, norm: QKNorm, name: str, heads: Dim, head_dim: Dim, ways: int) -> None:
    kind = Norm(kind="layernorm" if norm.norm == "layernorm" else "rmsnorm", weight=norm.weight, bias=norm.bias)
    everything = product(heads, head_dim)
    local = heads.size // ways
    if norm.over == "full":
        b.norm(name, "attention_norms", everything, kind, rows=b.tokens, shards=ways)
    else:
        weight = everything if norm.over == "per_head" else head_dim
        shards = ways if norm.over == "per_head" else 1
        b.norm(name, "attention_norms", head_dim, kind, rows=b.tokens * local, weight_width=weight, shards=shards)


def _disentangled(b: Builder, name: str, scores: DisentangledScores, inputs: Dim, width: Dim) -> None:
    """Scores by relative position: the table's rows are projected once a sequence, 2·rows·D·N·H FLOPs, and every query
    (or key) meets all rows, 2·rows·N·H FLOPs a token."""
    rows, ways = 2 * (min(scores.span, b.kv_len) if scores.clipped else scores.span), b.layout.tp
    projected = 2 if scores.shared_projections else 0
    met = 0
    for letter, used, bias in (
        ("k", scores.content_to_position, scores.key_bias),
        ("q", scores.position_to_content, True),
    ):
        if not used:
            continue
        met += 1
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
    local = share(width.size, ways)
    flops = met * 2 * rows * b.tokens * local + projected * 2 * rows * inputs.size * local
    b.add(f"{name}.position_scores", "attention", "attention", forward_flops=flops, backward_flops=2 * flops)


def _relative_bias(b: Builder, name: str, positions: RelativeBias, heads: Dim, tp: int) -> None:
    rows = product(Dim(positions.num_buckets, "num_buckets"), heads)
    # Plain torch looks up a bias for every pair, and keeps the numbers of the rows (int64); flash keeps the biases too.
    w, looked_up = b.workload, 0
    if not b.fused:
        pairs = w.batch * b.query_len * b.kv_len
        looked_up = 8 * pairs + (b.act(pairs * share(heads.size, tp)) if w.attention == "flash" else 0)
    with b.only(b.layers if positions.per_layer else (0,)):
        b.vector(f"{name}.relative_bias", "attention_extra", rows, shards=tp, saved_bytes=looked_up)


def latent(b: Builder, mixer: LatentAttention) -> None:
    """Multi-head latent attention.

    q: D·r_q + r_q·N·(d_nope + d_rope), or D·N·(d_nope + d_rope) in full rank. kv: D·(r_kv + d_rope) down,
    r_kv·N·(d_nope + d_v) up. Cached per token: r_kv + d_rope, once. Absorbed, the up-projection is applied to
    queries and outputs instead of keys and values (the same FLOPs a token) and a pair costs 2·(2·r_kv + d_rope) a
    head instead of 2·(d_nope + d_rope + d_v).
    """
    tp = b.layout.tp
    name = "attention"
    heads = Dim(mixer.num_attention_heads, "num_attention_heads")
    if heads.size % tp:
        raise LayoutError(f"layout tp={tp}: does not divide {heads.size} attention heads")
    qk_dim = Dim(mixer.qk_head_dim, "(qk_nope_head_dim + qk_rope_head_dim)")
    kv_rank = Dim(mixer.kv_lora_rank, "kv_lora_rank")
    latent_norm = b.spec.norm
    if mixer.q_lora_rank is None:
        b.linear(f"{name}.q_proj", "attention", b.hidden, product(heads, qk_dim), split="column", gathers=True)
    else:
        q_rank = Dim(mixer.q_lora_rank, "q_lora_rank")
        b.linear(f"{name}.q_a_proj", "attention", b.hidden, q_rank, bias=mixer.latent_bias)
        if mixer.latent_norms:
            b.norm(f"{name}.q_a_norm", "attention_norms", q_rank, latent_norm, rows=b.tokens)
        b.linear(f"{name}.q_b_proj", "attention", q_rank, product(heads, qk_dim), split="column", gathers=True)
    compressed = Dim(mixer.kv_lora_rank + mixer.qk_rope_head_dim, "(kv_lora_rank + qk_rope_head_dim)")
    b.linear(f"{name}.kv_a_proj", "attention", b.hidden, compressed, bias=mixer.latent_bias, saves_input=False)
    if mixer.latent_norms:
        b.norm(f"{name}.kv_a_norm", "attention_norms", kv_rank, latent_norm, rows=b.tokens)
    expanded = product(heads, Dim(mixer.qk_nope_head_dim + mixer.v_head_dim, "(qk_nope_head_dim + v_head_dim)"))
    b.linear(f"{name}.kv_b_proj", "attention", kv_rank, expanded, split="column")
    local = heads.size // tp
    if mixer.qk_rope_head_dim:
        _rope(b, name, b.spec.positions_of(mixer), *(b.tokens * count * mixer.qk_rope_head_dim for count in (local, 1)))
    w = b.workload
    visible = visible_pairs(b.query_len, b.kv_len, window=mixer.sliding_window, masked_too=w.masked_pairs)
    indexer = mixer.indexer
    if indexer is not None:
        if not indexer.shared:
            _indexer(b, mixer, visible)
        if not w.masked_pairs:
            nearest = min(indexer.top_k, mixer.sliding_window or indexer.top_k)
            visible = visible_pairs(b.query_len, b.kv_len, window=nearest)
    cache = Cache(
        per_token=compressed.size,
        span=mixer.sliding_window,
        indexer_per_token=indexer.head_dim if indexer and not indexer.shared else 0,
    )
    core(
        b,
        f"{name}.core",
        local,
        1 if w.absorbed_mla else local,
        qk_dim=compressed.size if w.absorbed_mla else qk_dim.size,
        v_dim=mixer.kv_lora_rank if w.absorbed_mla else mixer.v_head_dim,
        pairs=visible,
        source_len=b.kv_len,
        cache=cache,
        seen=min(b.kv_len, mixer.sliding_window or b.kv_len, indexer.top_k if indexer else b.kv_len),
        read_per_token=compressed.size,
        unsplit=mixer.qk_nope_head_dim,  # one product makes the plain part of a key and its value
    )
    b.linear(
        f"{name}.o_proj",
        "attention",
        product(heads, Dim(mixer.v_head_dim, "v_head_dim")),
        b.hidden,
        bias=mixer.output_bias,
        split="row",
        saves_input=w.attention != "flash",
    )


def _indexer(b: Builder, mixer: LatentAttention, pairs: int) -> None:
    """DeepSeek-V3.2's indexer: queries from the q latent, one key of `head_dim` a token, a weight a head, and a
    score of every visible pair, summed over the heads by those weights: 2·heads·(head_dim + 1) FLOPs each."""
    indexer = mixer.indexer
    assert indexer is not None
    rank = b.hidden if mixer.q_lora_rank is None else Dim(mixer.q_lora_rank, "q_lora_rank")
    heads, head_dim = Dim(indexer.num_heads, "index_n_heads"), Dim(indexer.head_dim, "index_head_dim")
    where = "attention.indexer"
    b.linear(f"{where}.q_proj", "attention_extra", rank, product(heads, head_dim), saves_input=False)
    b.linear(f"{where}.k_proj", "attention_extra", b.hidden, head_dim, saves_input=False)
    b.norm(f"{where}.k_norm", "attention_extra", head_dim, Norm(kind="layernorm", bias=True), rows=b.tokens)
    b.linear(f"{where}.weights_proj", "attention_extra", b.hidden, heads, saves_input=False)
    flops = 2 * indexer.num_heads * (indexer.head_dim + 1) * share(b.workload.batch * pairs, b.layout.cp)
    w = b.workload
    b.add(
        f"{where}.core",
        "attention_extra",
        "attention",
        forward_flops=flops,
        backward_flops=2 * flops,
        kv_read_bytes=bytes_of(w.batch * b.kv_len * head_dim.size, w.kv_dtype) if w.phase == "decode" else 0,
        kv_written_bytes=bytes_of(b.tokens * head_dim.size, w.kv_dtype) if w.phase != "train" else 0,
    )
