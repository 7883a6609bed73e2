"""The ops of multi-head latent attention (MLA), and of DeepSeek-V3.2's indexer, which selects keys for it."""

from __future__ import annotations

from llmbench.errors import LayoutError
from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.attention import apply_positions
from llmbench.sizing.lower.builder import Builder, Dim, product, share, token_cache
from llmbench.sizing.lower.core import core
from llmbench.sizing.lower.pairs import visible_pairs
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import Norm


def latent(b: Builder, mixer: LatentAttention) -> None:
    """Add the ops of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Symbols: D hidden size, N heads, r_q width of the query latent, r_kv width of the key-value latent, d_nope and
    d_rope widths of the unrotated and the rotated part of a key head, d_v width of a value head.

    Elements of the weights per layer: The query projection has D·r_q + r_q·N·(d_nope + d_rope) elements, or D·N·(d_nope
    + d_rope) without a query latent. The down-projection of keys and values has D·(r_kv + d_rope) elements. The
    up-projection has r_kv·N·(d_nope + d_v) elements. The cache stores r_kv + d_rope elements per token, which all heads
    share.

    In the absorbed form, the up-projection is applied to queries and outputs instead of keys and values. It costs the
    same FLOPs per token. Each (query, key) pair then costs 2·(2·r_kv + d_rope) FLOPs per head. In the expanded form,
    each pair costs 2·(d_nope + d_rope + d_v) FLOPs per head.

    Raises LayoutError if the heads cannot be split over the GPUs.
    """
    tp, name = b.layout.tp, mixer.module_name
    heads = Dim(mixer.num_attention_heads, "num_attention_heads")
    if heads.size % tp:
        raise LayoutError(f"layout tp={tp}: the {heads.size} attention heads are not divisible by {tp}")
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
    compressed = Dim(mixer.cache_row.width, "(kv_lora_rank + qk_rope_head_dim)")
    b.linear(f"{name}.kv_a_proj", "attention", b.hidden, compressed, bias=mixer.latent_bias, saves_input=False)
    if mixer.latent_norms:
        b.norm(f"{name}.kv_a_norm", "attention_norms", kv_rank, latent_norm, rows=b.tokens)
    expanded = product(heads, Dim(mixer.qk_nope_head_dim + mixer.v_head_dim, "(qk_nope_head_dim + v_head_dim)"))
    w = b.workload
    # In the expanded form, a chunk of a prompt also computes the keys and values of the earlier tokens that it sees.
    sees = min(b.kv_len, (mixer.sliding_window or b.kv_len) + b.query_len - 1)
    again = w.phase == "prefill" and not w.absorbed_mla
    tokens = share(w.batch * sees, b.layout.cp) if again else None
    b.linear(f"{name}.kv_b_proj", "attention", kv_rank, expanded, split="column", tokens=tokens)
    local, positions = heads.size // tp, b.spec.positions_of(mixer)
    if mixer.qk_rope_head_dim:
        turned = (b.tokens * count * mixer.qk_rope_head_dim for count in (local, 1))
        apply_positions(b, name, positions, heads, *turned)
    visible = visible_pairs(b.query_len, b.kv_len, window=mixer.sliding_window, masked_too=w.masked_pairs)
    indexer = mixer.indexer
    if indexer is not None:
        if not indexer.shared:
            _indexer(b, mixer, visible)
        if not w.masked_pairs:
            nearest = min(indexer.top_k, mixer.sliding_window or indexer.top_k)
            visible = visible_pairs(b.query_len, b.kv_len, window=nearest)
    core(
        b,
        f"{name}.core",
        local,
        1 if w.absorbed_mla else local,
        qk_dim=compressed.size if w.absorbed_mla else qk_dim.size,
        v_dim=mixer.kv_lora_rank if w.absorbed_mla else mixer.v_head_dim,
        pairs=visible,
        source_len=b.kv_len,
        cache=token_cache(b, mixer.cache_row, mixer.indexer_row),
        # the queries of a chunk select different keys
        seen=min(sees, indexer.top_k) if indexer and w.phase == "decode" else sees,
        read_per_token=compressed.size,
        biased=positions.acts_on == "scores",
        unsplit=mixer.qk_nope_head_dim,  # one matrix computes the unrotated keys and the values
        keys_expanded=not w.absorbed_mla,
    )
    b.linear(
        f"{name}.o_proj",
        "attention",
        product(heads, Dim(mixer.v_head_dim, "v_head_dim")),
        b.hidden,
        bias=mixer.output_bias,
        split="row",
        saves_input=w.attention != "flash" or w.batch_first or w.fp8,
    )


def _indexer(b: Builder, mixer: LatentAttention, pairs: int) -> None:
    """Add DeepSeek-V3.2's indexer, which computes a score for every visible (query, key) pair with small heads.

    The indexer computes its queries from the query latent. Per token, it also computes one key of `head_dim` elements
    and one weight per head. The score of a pair is the weighted sum over the heads. It costs 2·num_heads·(head_dim + 1)
    FLOPs.
    """
    indexer = mixer.indexer
    assert indexer is not None
    rank = b.hidden if mixer.q_lora_rank is None else Dim(mixer.q_lora_rank, "q_lora_rank")
    heads, head_dim = Dim(indexer.num_heads, "index_n_heads"), Dim(indexer.head_dim, "index_head_dim")
    where = f"{mixer.module_name}.indexer"
    b.linear(f"{where}.q_proj", "attention_extra", rank, product(heads, head_dim), saves_input=False)
    b.linear(f"{where}.k_proj", "attention_extra", b.hidden, head_dim, saves_input=False)
    b.norm(f"{where}.k_norm", "attention_extra", head_dim, Norm(kind="layernorm", bias=True), rows=b.tokens)
    b.linear(f"{where}.weights_proj", "attention_extra", b.hidden, heads, saves_input=False)
    scored = share(b.workload.batch * pairs, b.layout.cp)
    flops = 2 * indexer.num_heads * (indexer.head_dim + 1) * scored
    w = b.workload
    b.add(
        f"{where}.core",
        "attention_extra",
        "attention",
        role="indexer_core",
        scores=(indexer.head_dim, 1, indexer.num_heads, scored),
        forward_flops=flops,
        backward_flops=2 * flops,
        kv_read_bytes=bytes_of(w.batch * b.cached * head_dim.size, w.kv_dtype),
        kv_written_bytes=bytes_of(b.tokens * head_dim.size, w.kv_dtype) if w.phase != "train" else 0,
    )
