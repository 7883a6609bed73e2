"""The ops of pieces in the op table, for every model that has them."""

from __future__ import annotations

import pytest
import torch

from llmbench.bench.experiments import moe, train
from llmbench.bench.experiments.experiment import Ask
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.experiments.train.step import TrainStep
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.moe import ROUTER
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.profile import target_of
from llmbench.errors import LLMBenchError
from llmbench.model.create import build
from llmbench.sizing.work import need_bytes
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.ffn import Gated, MoE
from tests.bench.test_pieces import references

CPU = torch.device("cpu")
SINGLE = ("attention", "decode", "mla", "norm", "rope", "glu")


@pytest.mark.parametrize("name", SINGLE)
def test_a_function_is_one_op_of_one_layer(name: str) -> None:
    piece, count = find_piece(name), 0
    for model in bundled_models():
        try:
            spec = piece.reduce(load_bundled(model))
        except LLMBenchError:  # the model lacks the piece
            continue
        if piece.phase == "decode" and not spec.decodes:
            continue
        ops = piece.ops_of(Setting(spec=spec, batch=1, seq_len=8, dtype="bf16", device=CPU))
        assert [op.count for op in ops] == [1], (model, [op.name for op in ops])
        count += 1
    assert count >= 5


def test_the_norm_of_a_model_with_sandwich_norms() -> None:
    """By hand: 512 tokens of gemma3-1b read and written, with 4 bytes per number, and the weight."""
    piece = find_piece("norm")
    spec = piece.reduce(load_bundled("gemma3-1b"))
    at = Setting(spec=spec, batch=1, seq_len=512, dtype="fp32", device=CPU)
    assert piece.work(at) == (0, 2 * 512 * 1152 * 4 + 1152 * 4)


def test_weights_of_unused_experts_are_resident_but_not_read() -> None:
    piece = find_piece("moe")
    spec = piece.reduce(model_of("x", 64, ffn=MoE(num_experts=16, num_experts_per_tok=1, intermediate_size=96)))
    at = Setting(spec=spec, batch=1, seq_len=1, dtype="fp32", device=CPU)
    expert = 3 * 64 * 96
    assert piece.work(at).bytes == 4 * (expert + 64 * 16 + 2 * 64)
    resident = 4 * (16 * expert + 64 * 16)
    assert resident < need_bytes(piece.ops_of(at), "forward", element_bytes=4) < resident + 4 * 1000


def test_resident_weights_are_those_of_the_module() -> None:
    """The analytic need compared with the real model: tied and untied, with and without the embedding."""
    for tied in (True, False):
        spec = load_bundled("smollm2-135m" if tied else "tinyllama-1.1b")
        assert spec.tie_word_embeddings == tied
        for name in ("loss", "model"):
            piece = find_piece(name)
            at = Setting(spec=piece.reduce(spec), batch=1, seq_len=1, dtype="fp32", device=torch.device("meta"))
            model = build(at.spec, impl="standard", device="meta", dtype=torch.float32)
            part = model if name == "model" else model.lm_head
            weights = sum(parameter.nbytes for parameter in part.parameters())
            # the head's input and logits; in a model also the last layer's input and the final norm's result
            widest = spec.vocab_size + spec.hidden_size * (3 if name == "model" else 1)
            assert need_bytes(piece.ops_of(at), "forward", element_bytes=4) == weights + 4 * widest


# Experiments


def test_parameters_of_a_mixture_are_those_of_the_timed_piece() -> None:
    """Compared with the real modules. A router alone has no experts."""
    ask = Ask(quick=True, device=CPU, dtype="fp32")
    rows = {
        candidate.name: candidate.extra
        for group in moe.groups(ask)
        if group.case["what"] in ("against dense", "cost of routing")
        for candidate in group.candidates(references())
    }
    assert rows["dense, total"]["parameters"] == 3 * 64 * 512
    assert rows["dense, active"]["parameters"] == 3 * 64 * 128
    assert rows["router"]["parameters"] == rows["router"]["active_parameters"] == 64 * 8
    assert rows["loop"]["parameters"] == 3 * 64 * 512 + 64 * 8
    assert rows["loop"]["active_parameters"] == 3 * 64 * 128 + 64 * 8
    spec = ROUTER.reduce(model_of("x", 64, ffn=MoE(num_experts=8, num_experts_per_tok=2, intermediate_size=64)))
    built = ROUTER.build(Setting(spec=spec, batch=1, seq_len=2, dtype="fp32", device=CPU))
    assert (
        sum(parameter.numel() for parameter in built.parameters(torch.float32).values()) == rows["router"]["parameters"]
    )


def test_a_mixture_on_a_cpu_is_one() -> None:
    target = target_of(find_piece("moe"), None, seq_len=None, batch=None, dtype=None, direction="forward", device="cpu")
    at = target.setting
    ffn = at.spec.layers[at.spec.order[0]].ffn
    assert isinstance(ffn, MoE)
    assert (ffn.num_experts, ffn.num_experts_per_tok) == (8, 2)


def test_the_work_of_a_training_step_is_the_same_for_all_variants() -> None:
    spec = model_of("x", 64, mixer=heads(2, 2, 32), ffn=Gated(intermediate_size=96), layers=2)
    at = Setting(spec=spec, batch=2, seq_len=32, dtype="fp32", device=CPU, direction="both")
    steps = [
        TrainStep("standard"),
        TrainStep("sdpa"),
        TrainStep("fused"),
        TrainStep("sdpa", recompute=True),
        TrainStep("sdpa", sharding="fsdp"),
    ]
    candidates = train.group_of(at, steps, Ask(quick=True, device=CPU, dtype="fp32")).candidates(references())
    assert len({(candidate.work_flops, candidate.work_bytes) for candidate in candidates}) == 1
    layer = 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    embedding, rows = 256 * 64, 2 * 32 * 64
    read = 2 * layer + 64 + embedding  # the head is its own matrix
    updates = 4 * 7 * (read + embedding)  # weight, gradient and two moments read, all but the gradient written
    assert candidates[0].work_bytes == 4 * (3 * read + 2 * rows) + updates
