"""Attention and latent attention as ops.

Per layer, MHA/GQA/MQA: q D·N·H, k and v D·K·H each, o N·H·D weights; scores and their use of the values cost
2·(d_qk + d_v) FLOPs a pair and head. Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): see `latent`.
"""

from __future__ import annotations

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, product, share
from llmbench.sizing.lower.held import dense_mask, held_scores, rotation, sdpa_scores
from llmbench.sizing.lower.pairs import visible_pairs
from llmbench.sizing.op import Cache, Collective, Component
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


def core(
    b: Builder,
    name: str,
    heads: int,
    kv_heads: int,
    *,
    qk_dim: int,
    v_dim: int,
    pairs: int,
    source_len: int,
    cache: Cache | None,
    seen: int,
    read_per_token: int,
    component: Component = "attention",
    soft_cap: bool = False,
    biased: bool = False,
    masked: bool = False,
    unsplit: int = 0,
) -> None:
    """softmax(Q Kᵀ) V of `heads` heads on this GPU.

    Forward 2·(d_qk + d_v) FLOPs a pair and head; backward twice that; flash computes Q Kᵀ once more. Flash saves
    q, k, v, its output and one fp32 log-sum-exp a row and head; standard saves the probabilities in place of both
    (and with dropout a mask and the dropped-out probabilities, and the tanh of a `soft_cap`; selective recomputation
    gives these up). `biased`: a bias is added to all scores; `masked`: pairs are left out that a causal mask has; see
    `_held`. `unsplit`: width of what the values are only a view into, and plain torch's flash keeps with them.
    """
    w = b.workload
    batch = w.batch
    queries = share(batch * b.query_len, b.layout.cp)
    keys = share(batch * source_len, b.layout.cp)
    scored = heads * share(batch * pairs, b.layout.cp)
    forward = 2 * (qk_dim + v_dim) * scored
    square = heads * share(batch * b.query_len * source_len, b.layout.cp)
    inputs = queries * heads * qk_dim + keys * kv_heads * (qk_dim + v_dim)
    output = queries * heads * v_dim
    selective = 0
    if w.attention == "flash":
        saved = b.act(inputs + output + (0 if b.fused else queries * heads * unsplit)) + 4 * queries * heads
        # Flash's backward accumulates dQ in fp32 and, with grouped heads, expands dK and dV to all of them; torch's
        # kernel for CPUs does neither.
        expanded = 0 if kv_heads == heads or w.on_cpu else keys * heads * (qk_dim + v_dim)
        rows = 4 * queries * heads
        accumulator = 0 if w.activation_dtype == "fp32" or w.on_cpu else rows * qk_dim
        scratch = b.act(inputs + output + expanded) + rows + accumulator
        traffic_read, traffic_written = inputs, output
    else:
        # Plain torch takes the softmax in fp32 and keeps it beside its copy in the activations' format.
        wide = w.dense_mask or w.activation_dtype == "fp32"  # SDPA without a kernel: nothing is rounded in between
        kept = b.act(square) if b.fused else 4 * square + (0 if wide else b.act(square))
        selective = kept + (b.act(square) if soft_cap else 0) + (square + b.act(square) if w.dropout else 0)
        expanded = queries * heads * qk_dim + keys * heads * (qk_dim + v_dim)
        saved = (4 * expanded if wide and not b.fused else b.act(expanded)) + selective
        # At the softmax's backward, plain torch holds three fp32 squares (probabilities, their gradient, the scores')
        # and the values' gradient, and has let the copy and the output's gradient go.
        made = b.act(keys * heads * v_dim)
        scratch = b.act(inputs + output) + 2 * b.act(square) if b.fused else 12 * square - kept + made
        traffic_read, traffic_written = inputs + 2 * square, output + 2 * square
    new = 0 if cache is None else cache.per_token
    reads_cache = w.phase == "decode"
    kv_read = bytes_of(share(batch * seen, b.layout.cp) * read_per_token, w.kv_dtype) if reads_cache else 0
    given = b.act(queries * heads * qk_dim) + kv_read if reads_cache else b.act(inputs)
    held, mask_saved, copied = _held(
        b,
        heads,
        kv_heads,
        qk_dim=qk_dim,
        v_dim=v_dim,
        key_len=min(seen, source_len) if reads_cache else source_len,
        biased=biased,
        masked=masked or reads_cache,
        soft_cap=soft_cap,
    )
    kv_width = kv_heads * (qk_dim + v_dim)
    ring: tuple[Collective, ...] = ()
    if b.layout.cp > 1:
        moved = b.act(batch * source_len * kv_width)
        ring = (
            Collective("all_gather", moved, "cp", "forward"),
            Collective("reduce_scatter", moved, "cp", "backward"),
        )
    b.add(
        name,
        component,
        "attention",
        forward_flops=forward,
        backward_flops=2 * forward,
        recompute_flops=2 * qk_dim * scored if w.attention == "flash" else 0,
        read_bytes=b.act(queries * heads * qk_dim) if reads_cache else b.act(traffic_read),
        written_bytes=b.act(traffic_written),
        kv_read_bytes=kv_read,
        kv_written_bytes=bytes_of(queries * new, w.kv_dtype) if w.phase != "train" else 0,
        forward_bytes=given + held,
        saved_bytes=saved + mask_saved,
        copied_bytes=copied,
        selective_bytes=selective,
        backward_bytes=scratch,
        cache=cache,
        collectives=ring,
    )


def _held(
    b: Builder,
    heads: int,
    kv_heads: int,
    *,
    qk_dim: int,
    v_dim: int,
    key_len: int,
    biased: bool,
    masked: bool,
    soft_cap: bool,
) -> tuple[int, int, int]:
    """What `core` holds beside its inputs at the fullest moment of its forward, what of a mask it saves, and of its
    inputs in copies.

    Plain torch repeats shared keys and values for every head; those of a cache, of a single sequence, and what it
    repeated, lie as a product wants them, others are copied. Absorbed latent attention has one head of keys, and its
    queries joined anew.
    """
    w = b.workload
    decode, absorbed = w.phase == "decode", w.absorbed_mla and kv_heads == 1
    queries, keys = (share(w.batch * length, b.layout.cp) for length in (b.query_len, key_len))
    pairs = share(w.batch * b.query_len * key_len, b.layout.cp)
    squares, output = heads * pairs, b.act(queries * heads * v_dim)
    joined = b.act(queries * heads * qk_dim) if absorbed else 0
    repeats = kv_heads != heads and not absorbed
    repeated = b.act(keys * heads * (qk_dim + v_dim)) if repeats else 0
    if w.attention == "standard" and w.dense_mask:
        sizes = queries * heads * qk_dim, keys * kv_heads * qk_dim, keys * kv_heads * v_dim
        given = b.act(sum(sizes))
        scores = sdpa_scores(squares, queries=sizes[0], keys=sizes[1], values=sizes[2], given=given, output=output)
        return joined + scores, 0, 4 * sum(sizes)
    if w.attention == "standard":
        moved = 0 if decode or w.batch == 1 else heads
        moved_keys = 0 if repeats else moved
        moved_queries = b.act(queries * moved * qk_dim)
        scores = held_scores(
            squares,
            b.act(squares),
            queries=moved_queries,
            keys=b.act(keys * moved_keys * qk_dim),
            values=b.act(keys * moved_keys * v_dim),
            output=output,
            biased=biased,
            soft_cap=soft_cap,
        )
        copied = moved_queries + repeated + b.act(keys * moved_keys * (qk_dim + v_dim))
        return joined + repeated + scores, 0, copied
    if not w.dense_mask:
        return output, 0, 0
    if not biased and not masked:
        return joined + output, 0, 0
    many = squares if absorbed else pairs
    made = dense_mask(squares, b.act(squares), many, b.act(1), biased=biased)
    handed = b.act(squares) if biased else many + b.act(many)
    return joined + max(made, handed + output), b.act(squares if biased else many), 0


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
