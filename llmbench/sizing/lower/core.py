"""The attention core softmax(Q Kᵀ) V: its FLOPs, bytes moved, saved activations and temporaries. It has no weights."""

from __future__ import annotations

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, share
from llmbench.sizing.lower.temporaries import dense_mask, sdpa_scores, stepwise_scores
from llmbench.sizing.op import Cache, Collective, Component, Role


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
    role: Role = "core",
    soft_cap: bool = False,
    biased: bool = False,
    masked: bool = False,
    unsplit: int = 0,
    kv_saved: bool = False,
    keys_expanded: bool = False,
) -> None:
    """Add softmax(Q Kᵀ) V with `heads` query heads and `kv_heads` key-value heads on this GPU.

    The forward pass costs 2·(qk_dim + v_dim) FLOPs per (query, key) pair and head. The backward pass costs twice as
    much. In its backward pass, flash attention computes Q Kᵀ once more. Flash attention saves q, k, v, its output, and
    one fp32 log-sum-exp per query and head. Standard attention saves q, k, v and the probabilities. With dropout, it
    also saves a mask and the masked probabilities. With a soft cap, it also saves the tanh. Selective recomputation
    does not save these tensors with one element per (query, key) pair.

    qk_dim, v_dim: widths of a key head and of a value head.
    pairs: number of (query, key) pairs per sequence and head that the mask shows.
    source_len: number of keys per sequence.
    cache: the cache that the op reads and writes. None: the op has no cache.
    seen: largest number of keys that one query reads.
    read_per_token: cache elements that a step reads per cached token.
    soft_cap: whether the scores have a soft cap.
    biased: whether a bias is added to the scores.
    masked: whether the mask hides pairs that a causal mask shows (see `_temporary_bytes`).
    unsplit: width per head by which V's tensor is wider than V. If V is a view of a wider tensor, plain PyTorch with
        flash attention saves the whole wider tensor.
    kv_saved: whether another layer has saved k and v. Standard attention saves copies of them for all query heads.
    keys_expanded: whether another op computes the keys and values of all tokens from the rows of the cache.
    """
    w = b.workload
    batch = w.batch
    queries = share(batch * b.query_len, b.layout.cp)
    # A chunk of a prompt reads the earlier keys from the cache. If they are expanded from rows of the cache, both are
    # read.
    chunk = w.phase == "prefill" and role == "core"
    key_len = source_len if not chunk else seen if keys_expanded else b.query_len
    keys = share(batch * key_len, b.layout.cp)
    shown = share(batch * pairs, b.layout.cp)
    scored = heads * shown
    forward = 2 * (qk_dim + v_dim) * scored
    square = heads * share(batch * b.query_len * source_len, b.layout.cp)
    inputs = queries * heads * qk_dim + keys * kv_heads * (qk_dim + v_dim)
    output = queries * heads * v_dim
    selective = 0
    if w.attention == "flash":
        own = queries * heads * qk_dim if kv_saved else inputs
        saved = b.act(own + output + (0 if b.fused else queries * heads * unsplit)) + 4 * queries * heads
        # The backward pass of flash attention accumulates dQ in fp32. With grouped heads, it also expands dK and dV to
        # all query heads. PyTorch's CPU kernel does neither.
        expanded = 0 if kv_heads == heads or w.on_cpu else keys * heads * (qk_dim + v_dim)
        rows = 4 * queries * heads
        accumulator = 0 if w.activation_dtype == "fp32" or w.on_cpu else rows * qk_dim
        scratch = b.act(inputs + output + expanded) + rows + accumulator
        traffic_read, traffic_written = inputs, output
    else:
        # Plain PyTorch computes the softmax in fp32. It saves the fp32 result and a copy in the format of the
        # activations. SDPA without a flash kernel computes everything in fp32, so there is no copy.
        wide = w.dense_mask or w.activation_dtype == "fp32"
        # The product with the values saves the probabilities that it gets: the result of the softmax itself, its copy,
        # or the result of dropout, which replaces the copy. Dropout also saves its mask.
        saved_scores = b.act(square) if b.fused else 4 * square
        if w.dropout or not (b.fused or wide):
            saved_scores += b.act(square)
        selective = saved_scores + (b.act(square) if soft_cap else 0) + (square if w.dropout else 0)
        expanded = queries * heads * qk_dim + keys * heads * (qk_dim + v_dim)
        saved = (4 * expanded if wide and not b.fused else b.act(expanded)) + selective
        # In the backward pass of the softmax, plain PyTorch has three fp32 tensors with one element per (query, key)
        # pair: the probabilities, their gradient, and the gradient of the scores. It also has the gradient of the
        # values. At this moment, the copy of the probabilities and the gradient of the output are already freed.
        value_gradient = b.act(keys * heads * v_dim)
        scratch = b.act(inputs + output) + 2 * b.act(square) if b.fused else 12 * square - saved_scores + value_gradient
        traffic_read, traffic_written = inputs + 2 * square, output + 2 * square
    new = 0 if cache is None else cache.per_token
    reads_cache = w.phase == "decode"
    earlier = seen if reads_cache else max(0, seen - b.query_len) if chunk else 0
    kv_read = bytes_of(share(batch * earlier, b.layout.cp) * read_per_token, w.kv_dtype)
    input_bytes = b.act(queries * heads * qk_dim) + kv_read if reads_cache else b.act(inputs)
    temporary, mask_saved, copied = _temporary_bytes(
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
        role=role,
        forward_flops=forward,
        backward_flops=2 * forward,
        scores=(qk_dim, v_dim, heads, shown),
        recompute_flops=2 * qk_dim * scored if w.attention == "flash" else 0,
        read_bytes=b.act(queries * heads * qk_dim) if reads_cache else b.act(traffic_read),
        written_bytes=b.act(traffic_written),
        score_bytes=b.act(square) if w.attention == "standard" else 0,
        kv_read_bytes=kv_read,
        kv_written_bytes=bytes_of(queries * new, w.kv_dtype) if w.phase != "train" else 0,
        forward_bytes=input_bytes + temporary,
        saved_bytes=saved + mask_saved,
        copied_bytes=copied,
        selective_bytes=selective,
        backward_bytes=scratch,
        cache=cache,
        collectives=ring,
    )


def _temporary_bytes(
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
    """Return (peak bytes of temporaries in the forward pass, bytes of the saved mask, bytes of copied inputs).

    For grouped heads, plain PyTorch repeats the keys and values for every query head. A matrix product needs contiguous
    inputs and copies all others. Keys and values are contiguous if they come from a cache, if there is only one
    sequence, or if they were repeated. Absorbed latent attention has one key head, and concatenates the parts of its
    queries into a new tensor.

    key_len: number of keys per sequence.
    biased: whether a bias is added to the scores.
    masked: whether the mask hides pairs that a causal mask shows.
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
        input_bytes = b.act(sum(sizes))
        scores = sdpa_scores(
            squares, queries=sizes[0], keys=sizes[1], values=sizes[2], input_bytes=input_bytes, output=output
        )
        return joined + scores, 0, 4 * sum(sizes)
    if w.attention == "standard":
        moved = 0 if decode or w.batch == 1 else heads
        moved_keys = 0 if repeats else moved
        moved_queries = b.act(queries * moved * qk_dim)
        scores = stepwise_scores(
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
    masked_pairs = squares if absorbed else pairs
    making = dense_mask(squares, b.act(squares), masked_pairs, b.act(1), biased=biased)
    mask = b.act(squares) if biased else masked_pairs + b.act(masked_pairs)
    return joined + max(making, mask + output), b.act(squares if biased else masked_pairs), 0
