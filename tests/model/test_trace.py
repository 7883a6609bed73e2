"""Three sources of one figure: the built modules, their trace, and the op table."""

from __future__ import annotations

from math import ceil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from llmbench import model as models
from llmbench.model import trace as tracing
from llmbench.model.create import materialise
from llmbench.model.scopes import Scopes
from llmbench.model.trace import (
    Attention,
    CudaNorms,
    TracedOp,
    prepared,
    run_once,
    shortened,
    trace,
    traced_flops,
)
from llmbench.sizing.flops import count_flops
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import WORKSPACE_BYTES
from llmbench.sizing.params import count_parameters
from llmbench.sizing.training import training_doubts, training_memory
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import RecurrentKind
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override
from tests.oracles.training_memory import CudaBehaviour, StorageTracker


def with_few_experts(name: str) -> ModelSpec:
    """A bundled model with twice as many experts as a token uses. The others repeat them, and each takes time."""
    spec = load_bundled(name)
    experts = [layer.ffn for layer in spec.layers.values() if isinstance(layer.ffn, MoE)]
    if not experts:
        return spec
    groups = experts[0].router.n_group
    few = groups * max(2, ceil(2 * experts[0].num_experts_per_tok / groups))
    return override(spec, {"num_experts": min(few, experts[0].num_experts)})


# Modules and parameters


@pytest.mark.parametrize("name", bundled_models())
def test_modules_have_the_names_and_parameters_of_the_ops(name: str) -> None:
    """Every bundled model can be built."""
    spec = load_bundled(name)
    model = models.build(spec, device="meta")
    assert sum(p.numel() for p in dict.fromkeys(model.parameters())) == count_parameters(spec).total
    ops = {name for op in lower(spec, Workload.prefill(8)) for name in op.names()}
    for parameter, _ in model.named_parameters():
        name = parameter.removesuffix(".weight").removesuffix(".bias")
        assert {parameter, name, name.replace("_bias", "_proj")} & ops, parameter


# FLOPs

NOT_COUNTED = {"deepseek-v3.2": "attention.indexer.core"}
"""Ops that a model computes partly without matrix products, which the counter misses."""


@pytest.mark.parametrize("name", bundled_models())
def test_flops_equal_the_counter(name: str) -> None:
    """Every op of two layers of each kind, at full width. The other layers are repetitions."""
    short = shortened(with_few_experts(name))
    ops = [op for op in lower(short, Workload.prefill(24, 2, masked_pairs=True)) if op.kind != "scan"]
    names = {name for op in ops for name in op.names()}
    counted = traced_flops(models.build(short, impl="standard", device="meta"), names, 24, 2)
    for op in ops:
        if not op.name.endswith(NOT_COUNTED.get(name, "?")):
            for where in op.names():
                assert counted.get(where, 0) == op.forward_flops, where


@pytest.mark.parametrize("name", ["gpt2", "llama2-7b", "gemma2-2b", "t5-small", "bert-base", "falcon-7b", "bloom-560m"])
def test_flops_of_whole_models(name: str) -> None:
    """All layers, counted by torch's counter alone."""
    spec = load_bundled(name)
    model = models.build(spec, impl="standard", device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run_once(model, torch.zeros((3, 40), dtype=torch.int64, device="meta"))
    assert counter.get_total_flops() == count_flops(spec, Workload.prefill(40, 3, masked_pairs=True)).total


# Saved bytes

SEQ, BATCH = 1024, 2


def saved_whole(spec: ModelSpec) -> tuple[str, ...]:
    """Ops that save a view, and so its whole tensor: a gate of every channel comes from the projection of q."""
    gated = any(getattr(mixer, "output_gate", None) == "elementwise" for mixer in spec.mixers)
    return ("attention.q_norm", "attention.gate") if gated else ()


def traced(ops: list[TracedOp]) -> int:
    """Traced saved bytes of the ops."""
    return sum(op.traced_saved_bytes for op in ops)


def analytic(ops: list[TracedOp]) -> int:
    """Saved bytes of the ops by the table."""
    return sum(op.saved_bytes or 0 for op in ops)


def first_of_each_kind() -> list[str]:
    """The first bundled model of each family with its kinds of mixers, with or without windows."""
    kinds: dict[object, str] = {}
    for name in bundled_models():
        spec = load_bundled(name)
        windows = any(row.span is not None for mixer in spec.mixers for row in mixer.cache_rows)
        kinds.setdefault((spec.family, frozenset(map(type, spec.mixers)), windows), name)
    return list(kinds.values())


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, "flash") for name in bundled_models()] + [(name, "standard") for name in first_of_each_kind()],
)
def test_saved_bytes_equal_the_table(name: str, attention: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every bundled model agrees with `memory`'s figure. `standard` changes the ops of attention only, so it is tried
    with one model of each kind. Where a model has recurrent mixers, `memory` marks the figure, as torch's recurrences
    keep many times what the table says, and all that is outside of them agrees."""
    monkeypatch.setattr(tracing, "traced_flops", lambda *_: {})  # other tests compare the FLOPs of every model
    spec = with_few_experts(name)
    recorded = trace(spec, seq_len=min(SEQ, spec.max_position_embeddings or SEQ), batch=BATCH, attention=attention)
    ops = [op for op in recorded.ops if not op.name.endswith(saved_whole(spec))]
    if training_doubts(spec):
        assert training_memory(spec, SEQ, kernels="eager").approximate
        names = {mixer.module_name for mixer in spec.mixers if isinstance(mixer, RecurrentKind)}
        inside = [op for op in ops if names & set(op.name.split("."))]
        assert traced(inside) > 4 * analytic(inside)
        ops = [op for op in ops if op not in inside]
    bound = 0.005 if attention == "flash" else 0.02  # standard saves its mask too, which the table leaves out
    differences = {
        op.name: (op.traced_saved_bytes, op.saved_bytes) for op in ops if op.traced_saved_bytes != op.saved_bytes
    }
    assert traced(ops) == pytest.approx(analytic(ops), rel=bound), f"traced and analytic bytes by op: {differences}"


def test_only_models_with_recurrent_mixers_are_marked() -> None:
    """The marks are for models with recurrent mixers, and those only."""
    marked = {name for name in bundled_models() if training_doubts(load_bundled(name))}
    recurrent = {
        name
        for name in bundled_models()
        if any(isinstance(mixer, RecurrentKind) for mixer in load_bundled(name).mixers)
    }
    assert marked == recurrent


OP_BY_OP = [
    "llama2-7b",
    "gemma2-2b",
    "command-r-plus",
    "dbrx",
    "bert-base",
    "t5-small",
    "switch-base-128",
    "gpt-oss-20b",
    "qwen1.5-moe-a2.7b",
    "llama4-scout",
    "deepseek-v3",
]


@pytest.mark.parametrize("name", OP_BY_OP)
def test_op_by_op(name: str) -> None:
    """FLOPs and saved bytes of every op are equal, but for tables and indices that are small beside the layer."""
    traced = trace(with_few_experts(name), seq_len=512)
    whole = sum(op.saved_bytes or 0 for op in traced.ops)
    for op in traced.ops:
        assert op.traced_flops == (op.forward_flops or 0), op.name
        assert abs(op.traced_saved_bytes - (op.saved_bytes or 0)) <= 0.005 * whole, op.name


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("gate", ["elementwise", "headwise"])
def test_the_gate_of_attention_saves_what_the_table_says(gate: str, attention: Attention) -> None:
    """The product saves its two factors. Flash attention has already saved one of them, its output."""
    spec = override(load_bundled("smollm2-135m"), {"output_gate": gate, "num_hidden_layers": 2})
    gates = [op for op in trace(spec, seq_len=256, attention=attention).ops if op.name.endswith("attention.gate")]
    assert [op.traced_saved_bytes for op in gates] == [op.saved_bytes for op in gates] != []


# The peak


@pytest.mark.parametrize(
    ("name", "layers", "seq_len"),
    [
        ("gpt2", 2, 256),
        ("llama2-7b", 2, 1024),
        ("gemma2-2b", 2, 512),
        ("mixtral-8x7b", 2, 512),
        ("mixtral-8x7b", 2, 2048),
        ("olmoe-1b-7b", 3, 256),
        ("qwen1.5-moe-a2.7b", 3, 1024),
        ("deepseek-v2-lite", 3, 512),
        ("gpt-oss-20b", 2, 512),
        ("llama4-scout", 4, 256),
        ("dbrx", 2, 512),
        ("bert-base", 12, 256),
    ],
)
def test_peak_of_a_step(name: str, layers: int, seq_len: int) -> None:
    """`memory`'s peak equals that of forward, loss and backward, with every storage followed while it lives."""
    spec = override(load_bundled(name), {"num_hidden_layers": layers})
    model = models.build(spec, impl="standard", device="meta", dtype=torch.bfloat16)
    tracker, cuda = StorageTracker(), CudaBehaviour()
    with FakeTensorMode():
        materialise(model, device="cpu", dtype=torch.bfloat16)
        tokens, labels = (torch.zeros((BATCH, seq_len), dtype=torch.int64) for _ in range(2))
        for tensor in (*model.parameters(), *model.buffers(), tokens, labels):
            tracker.add(tensor, "given")
        with prepared(model, Scopes(model, set()), "standard"), CudaNorms(), tracker, cuda:
            logits = run_once(model, tokens)
            loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
            del logits
            cuda.in_backward = True
            loss.backward()
    ours = training_memory(
        spec,
        seq_len,
        micro_batch=BATCH,
        precision="bf16",
        optimizer="sgd",
        attention="standard",
        kernels="eager",
    )
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(tracker.peak, rel=0.015)


def test_one_traced_layer_counts_for_the_others() -> None:
    spec = load_bundled("gemma2-2b")
    short = shortened(spec)
    assert short.order == ("local", "global", "local", "global")
    twice = trace(short, seq_len=64, attention="standard")
    every = trace(spec, seq_len=64, attention="standard")
    for rope in (False, True):  # the tables of the rotation are computed and saved once
        ops = [[op for op in traced.ops if op.layer and op.name.endswith(".rope") == rope] for traced in (twice, every)]
        few, many = map(traced, ops)
        assert many * 4 == few * (4 if rope else 26)
        assert many > 0


def test_the_largest_models_are_traced_in_seconds() -> None:
    for name in ("llama3.1-405b", "deepseek-v3"):
        counted = trace(load_bundled(name), seq_len=8192)
        assert sum(op.traced_flops for op in counted.ops) == sum(op.forward_flops or 0 for op in counted.ops)
        assert counted.layers_traced <= 4
