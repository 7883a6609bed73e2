"""The work of ops against what the kernels' files say that they must do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmbench.bench.pieces import piece
from llmbench.bench.setting import Setting
from llmbench.bench.variants import heads, model_of
from llmbench.sizing.work import least_s, work
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import Norm

pytest.importorskip("triton")

B, S = 2, 96


def of(name: str, **parts: Any) -> tuple[Any, Any]:
    """Forward and backward work of a piece in bf16."""
    found = piece(name)
    spec = model_of("x", 256, **parts)
    at = Setting(spec=found.alone(spec), batch=B, seq_len=S, dtype="bf16", device=torch.device("cpu"))
    ops = found.ops_of(at)
    return work(ops, "forward"), work(ops, "backward")


def cost(name: str, *case: Any, **more: Any) -> Any:
    """What a kernel's file says."""
    from importlib import import_module

    module = import_module(f"llmbench.kernels.{name}")
    return module.KERNEL.cost(module.Case(*case, **more), torch.bfloat16)


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_attention(kv_heads: int, window: int | None) -> None:
    forward, backward = of("attention", mixer=heads(4, kv_heads, 64, sliding_window=window))
    expected = cost("attention", B, 4, kv_heads, S, S, 64, window=window)
    log_sum_exp = 4 * B * 4 * S  # which the kernel writes and reads, and the table does not count as traffic
    assert forward == (expected.flops, expected.bytes - log_sum_exp)
    assert backward == (expected.backward_flops, expected.backward_bytes - log_sum_exp)


def test_decode() -> None:
    forward, _ = of("decode", mixer=heads(4, 2, 64))
    expected = cost("decode_attention", (S,) * B, 4, 2, 64)
    new = B * 2 * 2 * 64 * 2  # the new token's key and value, which the model writes to the cache and the kernel reads
    assert forward == (expected.flops, expected.bytes + new)


def test_latent_decode() -> None:
    mixer = LatentAttention(
        num_attention_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    forward, _ = of("mla", mixer=mixer)
    expected = cost("mla_decode", (S,) * B, 16)
    assert forward == (expected.flops, expected.bytes + B * (512 + 64) * 2)


def test_norm() -> None:
    for norm, weights, vectors in ((Norm(), "w", 1), (Norm(kind="layernorm", bias=True), "wb", 2)):
        forward, backward = of("norm", mixer=heads(1, 1, 64), norm=norm)
        expected = cost("rms_norm", B * S, 256, weights)
        assert forward == (0, expected.bytes)
        # A bias's gradient is written; the table reads the bias too, which its backward does not need.
        assert backward == (0, expected.backward_bytes + (vectors - 1) * 256 * 2)


def test_gate_and_rotation() -> None:
    forward, backward = of("glu", ffn=Gated(intermediate_size=384))
    expected = cost("glu", B * S, 384)
    assert (forward.bytes, backward.bytes) == (expected.bytes, expected.backward_bytes)
    forward, backward = of("rope", mixer=heads(4, 2, 64))
    expected = cost("rope", B, S, 4, 2, 64)
    tables = S * 64 * 4
    assert (forward.bytes, backward.bytes) == (expected.bytes - tables, expected.backward_bytes - tables)


def test_the_head() -> None:
    forward, backward = of("loss", mixer=heads(1, 1, 64), vocab=300)
    expected = cost("linear_cross_entropy", B * S, 256, 300)
    assert (forward.flops, backward.flops) == (expected.flops, expected.backward_flops)


def test_the_least_time_is_that_of_each_op_in_turn() -> None:
    """A product bound by FLOPs and a sum bound by bytes, one after the other: no rate of the one serves the other."""
    found = piece("block")
    at = Setting(
        spec=found.alone(model_of("x", 256, mixer=heads(4, 4, 64))),
        batch=B,
        seq_len=S,
        dtype="bf16",
        device=torch.device("cpu"),
    )
    ops = found.ops_of(at)
    by_flops, by_bytes = (lambda flops, moved: flops / 1e9), (lambda flops, moved: moved / 2e7)
    both = least_s(ops, "both", lambda flops, moved: max(by_flops(flops, moved), by_bytes(flops, moved)))
    total = work(ops, "both")
    assert both > max(total.flops / 1e9, total.bytes / 2e7)
    assert both < total.flops / 1e9 + total.bytes / 2e7
    assert least_s(ops, "both", by_flops) == pytest.approx(total.flops / 1e9)
