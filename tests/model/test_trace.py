"""Three figures of one model: the built modules, what was traced of them, and the op table."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llmbench import model as models
from llmbench.errors import UnsupportedError
from llmbench.model.decoder import Decoder
from llmbench.model.trace import Attention, Trace, run_once, shortened, trace, traced_flops
from llmbench.sizing.flops import count_flops
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention as SoftmaxAttention
from llmbench.spec.mixer import branches
from llmbench.spec.model import ModelSpec


def on_meta(spec: ModelSpec) -> Decoder:
    """The whole model, without memory."""
    try:
        return models.build(spec, device="meta")
    except UnsupportedError as problem:
        pytest.skip(str(problem))


# Modules and parameters


@pytest.mark.parametrize("name", bundled_models())
def test_modules_are_the_ops_and_hold_their_parameters(name: str) -> None:
    spec = load_bundled(name)
    model = on_meta(spec)
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total
    ops = {name for op in lower(spec, Workload.prefill(8)) for name in op.names()}
    for held, _ in model.named_parameters():
        name = held.removesuffix(".weight").removesuffix(".bias")
        assert {held, name, name.replace("_bias", "_proj")} & ops, held


def test_most_bundled_models_build() -> None:
    built = 0
    for name in bundled_models():
        try:
            models.build(load_bundled(name), device="meta")
            built += 1
        except UnsupportedError:
            pass
    assert built >= 130


# FLOPs

NOT_COUNTED = {"deepseek-v3.2": "attention.indexer.core"}
"""Ops that a model computes without a matrix product, so that a counter misses a part."""


@pytest.mark.parametrize("name", bundled_models())
def test_flops_are_what_the_counter_counts(name: str) -> None:
    """Two layers of each kind, at full width, every op by itself; the rest of the model is those layers again."""
    spec = load_bundled(name)
    on_meta(spec)
    short = shortened(spec)
    ops = [op for op in lower(short, Workload.prefill(24, 2, masked_pairs=True)) if op.kind != "scan"]
    names = {name for op in ops for name in op.names()}
    found = traced_flops(models.build(short, impl="standard", device="meta"), names, 24, 2)
    for op in ops:
        if not op.name.endswith(NOT_COUNTED.get(name, "?")):
            for where in op.names():
                assert found.get(where, 0) == op.forward_flops, where


@pytest.mark.parametrize("name", ["gpt2", "llama2-7b", "gemma2-2b", "t5-small", "bert-base", "falcon-7b", "bloom-560m"])
def test_flops_of_whole_models(name: str) -> None:
    """Every layer, nothing of ours between model and counter."""
    spec = load_bundled(name)
    on_meta(spec)
    model = models.build(spec, impl="standard", device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_once(model, torch.zeros((3, 40), dtype=torch.int64, device="meta"))
    assert counter.get_total_flops() == count_flops(spec, Workload.prefill(40, 3, masked_pairs=True)).total


# Saved bytes

SEQ, BATCH, WIDTH = 1024, 2, 2


def beyond_the_table(spec: ModelSpec, attention: Attention) -> int:
    """What plain torch keeps and the op table has no figure for: capped scores and logits keep their tanh, a router in
    fp32 its input, matrix and probabilities in fp32, and the weighted sum of the experts' outputs those outputs."""
    tokens = BATCH * SEQ
    bytes_ = 0 if spec.head.soft_cap is None else WIDTH * tokens * spec.vocab_size
    for name in spec.order:
        layer = spec.layers[name]
        for mixer in branches(layer.mixer):
            if isinstance(mixer, SoftmaxAttention) and mixer.logit_soft_cap is not None and attention == "standard":
                bytes_ += WIDTH * BATCH * mixer.num_attention_heads * SEQ**2
        if isinstance(layer.ffn, MoE):
            bytes_ += (4 - WIDTH) * tokens * spec.hidden_size + 4 * (tokens + spec.hidden_size) * layer.ffn.num_experts
            bytes_ += WIDTH * tokens * layer.ffn.num_experts_per_tok * spec.hidden_size
    return bytes_


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize(
    "name",
    [
        "llama2-7b",
        "llama3-70b",
        "llama3.1-405b",
        "gpt2",
        "mistral-7b-v0.1",
        "gemma-2b",
        "gemma2-2b",
        "gemma3-4b",
        "qwen2-7b",
        "qwen3-8b",
        "olmo2-7b",
        "bloom-560m",
        "starcoder2-3b",
        "mixtral-8x7b",
        "qwen3-30b-a3b",
    ],
)
def test_what_backward_needs_is_what_the_table_says(name: str, attention: Attention) -> None:
    spec = load_bundled(name)
    found = trace(spec, seq_len=SEQ, batch=BATCH, attention=attention)
    analytic = sum(op.saved_bytes or 0 for op in found.ops) + beyond_the_table(spec, attention)
    assert total(found) == pytest.approx(analytic, rel=0.03 if attention == "standard" else 0.01)


def total(found: Trace) -> int:
    """Bytes saved by all ops."""
    return sum(op.traced_saved_bytes for op in found.ops)


def test_op_by_op() -> None:
    """llama2-7b: everything but the rotation's tables is exact."""
    found = trace(load_bundled("llama2-7b"), seq_len=512)
    assert found.layers_traced == 2
    for op in found.ops:
        assert op.traced_flops == op.forward_flops
        if not op.name.endswith(".rope"):
            assert op.traced_saved_bytes == pytest.approx(op.saved_bytes, abs=4), op.name


def test_layers_that_are_not_traced_are_counted() -> None:
    spec = load_bundled("gemma2-2b")
    short = shortened(spec)
    assert short.order == ("local", "global", "local", "global")
    twice = trace(short, seq_len=64, attention="standard")
    every = trace(spec, seq_len=64, attention="standard")
    for rope in (False, True):  # the rotation's tables are made once, and kept once
        ops = [[op for op in found.ops if op.layer and op.name.endswith(".rope") == rope] for found in (twice, every)]
        few, many = (sum(op.traced_saved_bytes for op in found) for found in ops)
        assert many * 4 == few * (4 if rope else 26)
        assert many > 0


def test_the_largest_in_seconds_and_without_memory() -> None:
    for name in ("llama3.1-405b", "deepseek-v3"):
        found = trace(load_bundled(name), seq_len=8192)
        assert sum(op.traced_flops for op in found.ops) == sum(op.forward_flops or 0 for op in found.ops)
        assert found.layers_traced <= 4
