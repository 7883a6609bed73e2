"""The ops of the new attention, as its author would write them in llmbench/sizing/lower/."""

from __future__ import annotations

from llmbench.spec.mixer.gated_window import GatedWindow

from llmbench.sizing.lower.attention import apply_positions
from llmbench.sizing.lower.builder import Builder, Dim, product, token_cache
from llmbench.sizing.lower.core import core
from llmbench.sizing.lower.pairs import visible_pairs


def gated_window(b: Builder, mixer: GatedWindow) -> None:
    """Add the ops of attention to a window with a gated output. Layouts that split heads are left out."""
    name = mixer.module_name
    heads, kv_heads = mixer.num_attention_heads, mixer.num_key_value_heads
    width = Dim(mixer.head_dim, "head_dim")
    queries = product(Dim(heads, "num_attention_heads"), width)
    keys = product(Dim(kv_heads, "num_key_value_heads"), width)
    for letter, outputs in (("q", queries), ("k", keys), ("v", keys), ("g", queries)):
        b.linear(f"{name}.{letter}_proj", "attention", b.hidden, outputs, saves_input=letter == "q")
    rotated = b.tokens * queries.size, b.tokens * keys.size
    apply_positions(b, name, b.spec.positions_of(mixer), Dim(heads, "num_attention_heads"), *rotated)
    window = mixer.window_size
    core(
        b,
        f"{name}.core",
        heads,
        kv_heads,
        qk_dim=width.size,
        v_dim=width.size,
        pairs=visible_pairs(b.query_len, b.kv_len, window=window, masked_too=b.workload.masked_pairs),
        source_len=b.kv_len,
        cache=token_cache(b, mixer.cache_row),
        seen=min(b.kv_len, window + b.query_len - 1),
        read_per_token=kv_heads * mixer.cache_row.width,
    )
    gated = b.tokens * queries.size
    # The product saves the gates and the output of attention, which flash attention has already saved.
    saved = gated if b.workload.attention == "flash" else 2 * gated
    b.elementwise(f"{name}.gate", "attention", reads=2 * gated, writes=gated, saves=saved, role="gate")
    b.linear(f"{name}.o_proj", "attention", queries, b.hidden)
