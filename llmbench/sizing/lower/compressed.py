"""The ops of DeepSeek-V4's compressed attention. A compressed entry is one vector for `rate` consecutive tokens.

Symbols: D hidden size, N query heads, H head dimension, r_q width of the query latent, g groups of heads, r_o output
width of a group's first matrix, n number of indexer heads, h width of an indexer head. c is 2 if entries overlap,
otherwise 1.

Elements of the weights per layer: D·r_q + r_q·N·H for queries, D·H for the single head that is both key and value, and
N·H·r_o + g·r_o·D for the output. A layer with entries has two more projections of D·c·H elements each, and a bias of
rate·c·H elements. Its indexer has two projections of D·c·h elements each, a bias of rate·c·h, a query projection of
r_q·n·h, and D·n elements for the weights of the heads.

The cache stores H elements per token of the window, H elements per entry, and h elements per entry of the indexer. The
memory for tokens whose entry is not complete yet is not counted.
"""

from __future__ import annotations

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, product, share, token_cache
from llmbench.sizing.lower.core import core
from llmbench.sizing.lower.pairs import compressed_pairs, visible_pairs
from llmbench.spec.mixer import CompressedAttention


def compressed(b: Builder, mixer: CompressedAttention) -> None:
    """Add the ops of attention to a window of tokens and to compressed entries.

    Raises LayoutError if the heads or the groups cannot be split over the GPUs.
    """
    tp, name = b.layout.tp, mixer.module_name
    heads, groups = (
        Dim(mixer.num_attention_heads, "num_attention_heads"),
        Dim(mixer.output_groups, "output_groups"),
    )
    head_dim, q_rank = Dim(mixer.head_dim, "head_dim"), Dim(mixer.q_lora_rank, "q_lora_rank")
    if heads.size % tp or groups.size % tp:
        raise LayoutError(
            f"layout tp={tp}: the {heads.size} attention heads and their {groups.size} groups must be divisible by {tp}"
        )
    norm = b.spec.norm
    b.linear(f"{name}.q_a_proj", "attention", b.hidden, q_rank)
    b.norm(f"{name}.q_a_norm", "attention_norms", q_rank, norm, rows=b.tokens)
    b.linear(f"{name}.q_b_proj", "attention", q_rank, product(heads, head_dim), split="column", gathers=True)
    b.linear(f"{name}.kv_proj", "attention", b.hidden, head_dim, saves_input=False)
    b.norm(f"{name}.kv_norm", "attention_norms", head_dim, norm, rows=b.tokens)
    b.vector(f"{name}.sinks", "attention_extra", heads, shards=tp)
    w = b.workload
    pairs = visible_pairs(b.query_len, b.kv_len, window=mixer.sliding_window, masked_too=w.masked_pairs)
    if mixer.compress_rate is not None:
        pairs += _compressor(b, mixer, mixer.compress_rate)
    local, positions = heads.size // tp, b.spec.positions_of(mixer)
    if positions.acts_on == "queries and keys":
        turned = b.tokens * (local + 1) * head_dim.size
        b.elementwise(f"{name}.rope", "attention", reads=turned, writes=turned, role="rope")
    core(
        b,
        f"{name}.core",
        local,
        1,
        qk_dim=head_dim.size,
        v_dim=head_dim.size,
        pairs=pairs,
        source_len=b.kv_len,
        cache=token_cache(b, mixer.cache_row),
        seen=min(b.kv_len, mixer.sliding_window + b.query_len - 1),
        read_per_token=head_dim.size,
        biased=positions.acts_on == "scores",
    )
    rank = product(groups, Dim(mixer.output_lora_rank, "output_lora_rank"))
    # Each of the g groups has its own matrix with N·H/g inputs and r_o outputs. All groups together have N·H·r_o
    # weights, so the formula does not contain g.
    inside = Dim(heads.size * head_dim.size // groups.size, product(heads, head_dim).label)
    narrow = Dim(rank.size, "output_lora_rank")
    b.linear(f"{name}.o_a_proj", "attention", inside, narrow, split="column", saves_input=False)
    b.linear(f"{name}.o_b_proj", "attention", rank, b.hidden, split="row")


def _compressor(b: Builder, mixer: CompressedAttention, rate: int) -> int:
    """Add the ops that compute, cache and select entries. Return the number of scored (query, entry) pairs."""
    name, indexer, w = mixer.module_name, mixer.indexer, b.workload
    cached = b.cached // rate  # the complete entries in the cache
    _entries(b, f"{name}.compressor", Dim(mixer.head_dim, "head_dim"), rate, overlap=mixer.overlap)
    top_k = None if indexer is None else indexer.top_k
    pairs = compressed_pairs(b.query_len, b.kv_len, rate=rate, top_k=top_k, masked_too=w.masked_pairs)
    # A decoding step reads the entries that its query selects. The queries of a chunk select different entries.
    read = cached if top_k is None or w.phase != "decode" else min(cached, top_k)
    if indexer is not None:
        where = f"{name}.indexer"
        q_rank, width = Dim(mixer.q_lora_rank, "q_lora_rank"), Dim(indexer.head_dim, "index_head_dim")
        heads = Dim(indexer.num_heads, "index_n_heads")
        _entries(b, where, width, rate, overlap=mixer.overlap)
        b.linear(f"{where}.q_proj", "attention_extra", q_rank, product(heads, width), saves_input=False)
        b.linear(f"{where}.weights_proj", "attention_extra", b.hidden, heads, saves_input=False)
        every = compressed_pairs(b.query_len, b.kv_len, rate=rate, top_k=None, masked_too=w.masked_pairs)
        scored = share(w.batch * every, b.layout.cp)
        flops = 2 * indexer.num_heads * indexer.head_dim * scored
        b.add(
            f"{where}.core",
            "attention_extra",
            "attention",
            role="indexer_core",
            scores=(indexer.head_dim, 0, indexer.num_heads, scored),
            forward_flops=flops,
            backward_flops=2 * flops,
            kv_read_bytes=bytes_of(w.batch * cached * width.size, w.kv_dtype),
        )
    b.add(
        f"{name}.compressed_kv",
        "attention_extra",
        "attention",
        kv_read_bytes=bytes_of(w.batch * read * mixer.head_dim, w.kv_dtype),
        cache=token_cache(b, mixer.cache_rows[1], mixer.indexer_row),
    )
    return pairs


def _entries(b: Builder, where: str, width: Dim, rate: int, *, overlap: bool) -> None:
    """Add the ops that compute one entry from `rate` tokens: projections, gates, a bias per position, and a norm."""
    wide = product(Dim(2, "2"), width) if overlap else width
    b.linear(f"{where}.kv_proj", "attention_extra", b.hidden, wide, saves_input=False)
    b.linear(f"{where}.gate_proj", "attention_extra", b.hidden, wide, saves_input=False)
    b.vector(f"{where}.position_bias", "attention_extra", product(Dim(rate, "compress_rate"), wide))
    b.norm(f"{where}.kv_norm", "attention_extra", width, b.spec.norm, rows=b.tokens)
