"""Bytes that implementations of attention move: compared with counts over an explicit mask, and with the blocks of our
kernels."""

from __future__ import annotations

from typing import Any

import pytest

from llmbench.sizing.lower import lower
from llmbench.sizing.lower.pairs import keys_of_blocks
from llmbench.sizing.op import Op
from llmbench.sizing.traffic import BLOCK, attention_bytes
from llmbench.sizing.work import Pass, work
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.mixer import Attention
from llmbench.spec.override import override

MASKS: list[dict[str, Any]] = [
    {},
    {"causal": False},
    {"window": 20},
    {"causal": False, "window": 21},
    {"chunk": 24},
    {"window": 300, "chunk": 50},
]


def sees(query: int, key: int, *, causal: bool = True, window: int | None = None, chunk: int | None = None) -> bool:
    if not causal:
        return window is None or abs(key - query) <= window // 2
    near = window is None or key > query - window
    return key <= query and near and (chunk is None or key // chunk == query // chunk)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block", [1, 16, 128])
def test_keys_of_blocks(mask: dict[str, Any], block: int) -> None:
    length = 100
    blocks = [range(first, min(first + block, length)) for first in range(0, length, block)]
    read = sum(any(sees(query, key, **mask) for query in queries) for queries in blocks for key in range(length))
    assert keys_of_blocks(length, block, **mask) == read


def core(attention: str, kv_heads: int, batch: int, seq_len: int) -> tuple[Op, Attention]:
    spec = override(load_bundled("llama2-7b"), {"num_key_value_heads": kv_heads, "num_hidden_layers": 1})
    ops = lower(spec, Workload.train(seq_len, batch, attention=attention))
    mixer = spec.layers["block"].mixer
    assert isinstance(mixer, Attention)
    return next(op for op in ops if op.role == "core"), mixer


BATCH, LENGTH, HEADS, KV_HEADS, WIDTH = 2, 512, 32, 8, 128
Q = OUT = 2 * BATCH * LENGTH * HEADS * WIDTH
KV = 2 * 2 * BATCH * LENGTH * KV_HEADS * WIDTH
SCORES = 2 * BATCH * HEADS * LENGTH**2


def moved(attention: str, direction: Pass, block: int = BLOCK) -> int:
    op, mixer = core(attention, KV_HEADS, BATCH, LENGTH)
    return attention_bytes(op, mixer, direction, batch=BATCH, seq_len=LENGTH, dtype="bf16", block=block)


def test_standard_attention_moves_its_scores() -> None:
    """FlashAttention, algorithms 0 and 3: each line is one kernel, with what it reads and what it writes."""
    q, k, v, out, s, p = Q, KV // 2, KV // 2, OUT, SCORES, SCORES
    dq, dk, dv, dout, ds, dp = q, k, v, out, s, p
    forward = (q + k) + s + (s + p) + (p + v) + out
    backward = (p + dout) + dv + (dout + v) + dp + (dp + p + ds) + (ds + k) + dq + (ds + q) + dk
    assert moved("standard", "forward") == forward
    assert moved("standard", "backward") == backward
    assert moved("standard", "both") == forward + backward


def test_flash_attention_reads_its_inputs_by_blocks() -> None:
    rows = (1 + 2 + 3 + 4) * 128  # keys of four causal blocks, and queries of four blocks of keys
    by_blocks = 2 * BATCH * HEADS * rows * 2 * WIDTH
    assert moved("flash", "forward") == Q + by_blocks + OUT
    delta, for_dq, for_dkv = 2 * OUT, Q + OUT + by_blocks + Q, KV + by_blocks + KV
    assert moved("flash", "backward") == delta + for_dq + for_dkv


def test_one_block_reads_everything_once() -> None:
    op, mixer = core("flash", HEADS, 1, 128)
    one = attention_bytes(op, mixer, "forward", batch=1, seq_len=128, dtype="bf16")
    assert one == work([op], "forward").bytes


def test_a_measurement_of_hbm_traffic() -> None:
    """FlashAttention (arXiv 2205.14135), figure 2: GPT-2 medium, 1,024 tokens, 16 heads of 64, batch 64, forward and
    backward, on an A100: 4.4 GB for flash attention, 40.3 GB for standard attention, which has passes of its own for
    the mask and for dropout. Caches keep some blocks, so flash attention stays between its two bounds."""
    spec = override(load_bundled("gpt2-medium"), {"num_hidden_layers": 1})
    mixer = spec.layers["block"].mixer
    assert isinstance(mixer, Attention)
    flash, standard = (
        next(op for op in lower(spec, Workload.train(1024, 64, attention=name)) if op.role == "core")
        for name in ("flash", "standard")
    )
    most = attention_bytes(flash, mixer, "both", batch=64, seq_len=1024, dtype="fp16")
    assert work([flash], "both").bytes < 4.4e9 < most
    assert attention_bytes(standard, mixer, "both", batch=64, seq_len=1024, dtype="fp16") < 40.3e9


def test_the_block_is_that_of_our_kernels() -> None:
    pytest.importorskip("triton")
    from llmbench.kernels.attention.backward import key_configurations, query_configurations
    from llmbench.kernels.attention.forward import configurations

    for width in (64, 128):
        shape = (width, width, 2, 90, 0)
        assert configurations(*shape)[0]["BLOCK_M"] == BLOCK
        assert query_configurations(*shape)[0]["BLOCK_M"] == BLOCK
        assert key_configurations(*shape, True, True)[0]["BLOCK_N"] == BLOCK
