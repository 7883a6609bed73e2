"""The work of pieces, compared with the costs in the kernels' files."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmbench.bench.experiments.synthetic import choices, heads, model_of
from llmbench.bench.extra_candidates import traits_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.moe import experts_piece
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.model.implementations.plain import STANDARD
from llmbench.sizing.work import least_s, work
from llmbench.spec.ffn import Gated, MoE
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import Norm

pytest.importorskip("triton")

B, S = 2, 96


def work_of_piece(name: str | Piece, **parts: Any) -> tuple[Any, Any]:
    """Forward and backward work of a piece in bf16."""
    piece = find_piece(name) if isinstance(name, str) else name
    spec = model_of("x", 256, **parts)
    at = Setting(spec=piece.reduce(spec), batch=B, seq_len=S, dtype="bf16", device=torch.device("cpu"))
    return piece.work(at), piece.work(at.changed(direction="backward"))


def cost(name: str, *case: Any, **more: Any) -> Any:
    """The cost of a case by the kernel's file."""
    from importlib import import_module

    from llmbench.kernels.registry import KERNELS, load_kernel

    module = import_module(f"llmbench.kernels.{KERNELS[name].partition(':')[0]}")
    return load_kernel(name).cost(module.Case(*case, **more), torch.bfloat16)


@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_attention(kv_heads: int, window: int | None) -> None:
    forward, backward = work_of_piece("attention", mixer=heads(4, kv_heads, 64, sliding_window=window))
    expected = cost("attention", B, 4, kv_heads, S, S, 64, window=window)
    log_sum_exp = 4 * B * 4 * S  # the kernel writes and reads it; the op table does not count it
    assert forward == (expected.flops, expected.bytes - log_sum_exp)
    assert backward == (expected.backward_flops, expected.backward_bytes - log_sum_exp)


def test_decode() -> None:
    forward, _ = work_of_piece("decode", mixer=heads(4, 2, 64))
    expected = cost("decode_attention", (S,) * B, 4, 2, 64)
    new = B * 2 * 2 * 64 * 2  # the new token's key and value: the model writes them to the cache, the kernel reads them
    assert forward == (expected.flops, expected.bytes + new)


def test_latent_decode() -> None:
    mixer = LatentAttention(
        num_attention_heads=16, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
    )
    forward, _ = work_of_piece("mla", mixer=mixer)
    expected = cost("mla_decode", (S,) * B, 16)
    assert forward == (expected.flops, expected.bytes + B * (512 + 64) * 2)


def test_norm() -> None:
    for norm, weights, vectors in ((Norm(), "w", 1), (Norm(kind="layernorm", bias=True), "wb", 2)):
        forward, backward = work_of_piece("norm", mixer=heads(1, 1, 64), norm=norm)
        expected = cost("rms_norm", B * S, 256, weights)
        assert forward == (0, expected.bytes)
        # The gradient of the bias is written. The op table also reads the bias, which the backward pass does not need.
        assert backward == (0, expected.backward_bytes + (vectors - 1) * 256 * 2)


def test_gate_and_rotation() -> None:
    forward, backward = work_of_piece("glu", ffn=Gated(intermediate_size=384))
    expected = cost("glu", B * S, 384)
    assert (forward.bytes, backward.bytes) == (expected.bytes, expected.backward_bytes)
    forward, backward = work_of_piece("rope", mixer=heads(4, 2, 64))
    expected = cost("rope", B, S, 4, 2, 64)
    tables = S * 64 * 4
    assert (forward.bytes, backward.bytes) == (expected.bytes - tables, expected.backward_bytes - tables)


def test_the_head() -> None:
    forward, backward = work_of_piece("loss", mixer=heads(1, 1, 64), vocab=300)
    expected = cost("linear_cross_entropy", B * S, 256, 300)
    targets, loss = 8 * B * S, 4  # the op table does not count them
    assert forward == (expected.flops, expected.bytes - targets - loss)
    assert backward == (expected.backward_flops, expected.backward_bytes - targets - loss)


def test_a_sum_and_its_norm() -> None:
    for norm, weights, vectors in ((Norm(), "w", 1), (Norm(kind="layernorm", bias=True), "wb", 2)):
        forward, backward = work_of_piece(ADD_NORM, mixer=heads(1, 1, 64), norm=norm)
        expected = cost("rms_norm", B * S, 256, weights, residual=True)
        assert forward == (0, expected.bytes)
        assert backward == (0, expected.backward_bytes + (vectors - 1) * 256 * 2)  # as for a norm alone


def test_experts_on_given_choices() -> None:
    moe = MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=96)
    forward, backward = work_of_piece(experts_piece(partial(choices, "even")), ffn=moe)
    expected = cost("moe", B * S, 256, 96, 4, 2)
    routing_bytes = 12 * B * S * 2  # choices and weights, not in the op table; 192 tokens reach all experts
    assert forward == (expected.flops, expected.bytes - routing_bytes)
    assert backward == (expected.backward_flops, expected.backward_bytes - routing_bytes * 16 // 12)


@pytest.mark.parametrize("placement", ["pre", "output", "sandwich", "parallel", "post"])
@pytest.mark.parametrize("name", ["block", "moe", "loss"])
def test_pieces_move_what_enters_and_leaves(name: str, placement: str) -> None:
    """Compared with the tensors of the real piece: inputs, weights and results once each. The backward pass reads
    inputs and weights again, and moves the gradients of all three."""
    moe = MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=96)
    piece = find_piece(name)
    spec = model_of("x", 64, mixer=heads(2, 1, 32), ffn=moe, vocab=300)
    layer = msgspec.structs.replace(spec.layers["block"], placement=placement)
    spec = piece.reduce(msgspec.structs.replace(spec, layers={"block": layer}))
    at = Setting(spec=spec, batch=B, seq_len=S, dtype="bf16", device=torch.device("cpu"), direction="both")
    built = piece.build(at)
    (x,) = built.inputs.values()
    weights = sum(parameter.nbytes for parameter in built.parameters(torch.bfloat16).values())
    out = built.run(STANDARD, **built.inputs)
    assert isinstance(out, torch.Tensor)
    result = 0 if name == "loss" else out.nbytes
    assert piece.work(at.changed(direction="forward")).bytes == x.nbytes + weights + result
    assert piece.work(at.changed(direction="backward")).bytes == 2 * (x.nbytes + weights) + result
    assert piece.work(at).bytes == 3 * (x.nbytes + weights) + 2 * result


def test_a_model_moves_its_weights_rows_of_its_table_and_logits() -> None:
    piece = find_piece("model")
    spec = model_of("x", 64, mixer=heads(2, 1, 32), ffn=Gated(intermediate_size=96), layers=3, vocab=300)
    at = Setting(spec=spec, batch=B, seq_len=S, dtype="bf16", device=torch.device("cpu"))
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    weights, rows, logits = 3 * layer + 64 + 300 * 64, B * S * 64, B * S * 300
    assert piece.work(at).bytes == 2 * (weights + rows + logits)
    assert piece.work(at.changed(direction="backward")).bytes == 2 * (2 * weights + rows)  # a loss is one number


def test_a_model_without_backward_has_no_loss() -> None:
    """The forward pass alone ends in logits, as it is timed."""
    piece = find_piece("model")
    spec = model_of("x", 64, mixer=heads(2, 1, 32), vocab=300)
    at = Setting(spec=spec, batch=B, seq_len=S, dtype="fp32", device=torch.device("cpu"))
    for of_pass, ends in (("forward", "lm_head"), ("both", "loss")):
        setting = at.changed(direction=of_pass)
        assert piece.ops(setting, traits_of("standard"))[-1].name == ends
        out = piece.build(setting).run(STANDARD, **piece.build(setting).inputs)
        assert isinstance(out, torch.Tensor)
        assert out.shape == ((B, S, 300) if ends == "lm_head" else ())


@pytest.mark.parametrize("impl", ["standard", "grouped"])
@pytest.mark.parametrize("mixer", [heads(4, 2, 64), heads(4, 4, 64, sliding_window=17)])
def test_materialised_scores_are_all_computed(mixer: Any, impl: str) -> None:
    """The prediction has the FLOPs that torch counts, masked pairs included. The work has only the unmasked pairs."""
    piece = find_piece("attention")
    spec = piece.reduce(model_of("x", 256, mixer=mixer))
    at = Setting(spec=spec, batch=B, seq_len=S, dtype="fp32", device=torch.device("cpu"))
    built = piece.build(at)
    inputs = built.inputs | {name: built.inputs[name].requires_grad_() for name in built.differentiable}
    with FlopCounterMode(display=False) as counter:
        out = built.run(STANDARD, **inputs)
        assert isinstance(out, torch.Tensor)
        forward = counter.get_total_flops()
        torch.autograd.grad(out.sum(), [inputs[name] for name in built.differentiable])
    ops = piece.ops(at, traits_of(impl))
    assert (forward, counter.get_total_flops()) == (work(ops, "forward").flops, work(ops, "both").flops)
    assert piece.work(at).flops < forward


def test_the_least_time_is_that_of_each_op_in_turn() -> None:
    """A product limited by FLOPs and a sum limited by bytes run one after the other and share no rate."""
    piece = find_piece("block")
    at = Setting(
        spec=piece.reduce(model_of("x", 256, mixer=heads(4, 4, 64))),
        batch=B,
        seq_len=S,
        dtype="bf16",
        device=torch.device("cpu"),
    )
    ops = piece.ops_of(at)
    by_flops, by_bytes = (lambda flops, moved: flops / 1e9), (lambda flops, moved: moved / 2e7)
    both = least_s(ops, "both", lambda flops, moved: max(by_flops(flops, moved), by_bytes(flops, moved)))
    total = work(ops, "both")
    moved = sum(work([op], "both").bytes for op in ops)
    assert total.bytes < moved  # together they move less
    assert both > max(total.flops / 1e9, moved / 2e7)
    assert both < total.flops / 1e9 + moved / 2e7
    assert least_s(ops, "both", by_flops) == pytest.approx(total.flops / 1e9)
