"""The formulas of `--explain`, evaluated: each gives the figure beside it. The timeline's largest row is the peak."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product
from typing import Any, get_args

import pytest

from llmbench.answers.flops import counted, document, workload_of
from llmbench.errors import LayoutError
from llmbench.sizing.cache_formulas import kv_cache_formulas
from llmbench.sizing.formula import Formula
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.memory import Memory, ServingRun
from llmbench.sizing.memory_formulas import serving_formulas, training_formulas
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.timeline import timeline
from llmbench.sizing.training import run_memory, training_run
from llmbench.sizing.workload import Layout, Phase
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.huggingface import from_config

each_model = pytest.mark.parametrize("name", bundled_models())

OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
ROUNDING = {"ceil": math.ceil, "floor": math.floor}


def evaluate(text: str) -> Fraction | int:
    """The value of a formula: its numbers, +, −, ×, /, brackets, ceil and floor. Other words change nothing."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"[A-Za-z_][\w.-]*", lambda word: word[0] if word[0] in ROUNDING else "", text)
    return value_of(ast.parse(text.replace("×", "*").replace("−", "-").strip(), mode="eval").body)


def value_of(node: ast.expr) -> Fraction | int:
    """The value of a parsed formula."""
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.Call):
        assert isinstance(node.func, ast.Name)
        return ROUNDING[node.func.id](value_of(node.args[0]))
    assert isinstance(node, ast.BinOp), ast.dump(node)
    result: Fraction | int = OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    return result


def check(formulas: Sequence[Formula], memory: Memory) -> None:
    """Each formula gives its value, and the parts of the peak are among the values."""
    for formula in formulas:
        assert evaluate(formula.text) == formula.value, formula
    values = {formula.term: formula.value for formula in formulas}
    assert values["peak"] == memory.peak_bytes
    assert values["needed on the device"] == memory.needed_bytes
    assert values["weights"] == memory.parts_bytes["weights"]
    assert values["activations"] == memory.parts_bytes["activations"]


TRAINING: list[dict[str, Any]] = [
    {},
    {"kernels": "eager", "attention": "standard", "recompute": "selective"},
    {"layout": Layout.parse("tp=2,sp,pp=2,dp=2,zero=2"), "recompute": "every-second"},
    {"layout": Layout.parse("dp=3,zero=3"), "recompute": "full"},
    {"layout": Layout.parse("pp=2,interleave=2,zero=1,dp=4"), "precision": "mixed-fp32-grads"},
    {"layout": Layout.parse("pp=2,interleave=2,zero=3,dp=4"), "optimizer": "muon"},
    {"layout": Layout.parse("cp=3,zero=1"), "precision": "bf16", "optimizer": "adafactor"},
    {"layout": Layout.parse("dp=4,zero=2"), "optimizer": "adamw-8bit", "micro_batch": 2},
    {"layout": Layout.parse("tp=2,sp,dp=4,ep=4,etp=1,zero=1"), "loss": "chunked", "kernels": "eager"},
    {"layout": Layout.parse("pp=2,count_embedding,count_loss"), "loss": "linear"},
    {"recipe": Recipe.parse("step=foreach,states=fp8+fp16,master=remainder,offload=activations"), "loss": "fused"},
    {"recipe": Recipe.parse("step=backward,offload=states"), "loss": "inplace"},
    {"recipe": Recipe.parse("step=loop,offload=weights"), "layout": Layout.parse("dp=4,zero=3"), "micro_batches": 3},
    {"recipe": Recipe.parse("fp8=cached,imbalance=1.3"), "layout": Layout.parse("tp=2,sp,dp=2")},
    {"recipe": Recipe.parse("recompute=mlp+layernorm+core_attn"), "attention": "standard", "kernels": "eager"},
    {"recipe": Recipe.parse("fp8=primary,step=foreach"), "precision": "mixed-fp32-grads", "dropout": True},
]
SERVING: list[dict[str, Any]] = [
    {"layout": Layout(), "weights": None, "kv_dtype": "bf16"},
    {"layout": Layout.parse("tp=2"), "weights": "awq", "kv_dtype": "int4"},
    {"layout": Layout.parse("pp=2,cp=3"), "weights": "mlx,bits=8", "kv_dtype": "bf16"},
    {"layout": Layout.parse("tp=4"), "weights": "nf4,double=1", "kv_dtype": "fp8"},
]


@each_model
def test_training_formulas_and_timeline(name: str) -> None:
    """Each model has one setting, so that every setting meets many models."""
    setting = bundled_models().index(name) % len(TRAINING)
    try:
        run = training_run(load_bundled(name), 509, **TRAINING[setting])
    except LayoutError:  # the layout does not divide this model
        run = training_run(load_bundled(name), 509)
    memory = run_memory(run)
    check(training_formulas(run, memory), memory)
    steps = timeline(run, memory)
    assert max(step.total_bytes for step in steps) == memory.peak_bytes
    assert steps[-1].part == "optimizer"


def test_formulas_at_the_head_of_a_module_for_multi_token_prediction() -> None:
    """The logits of the other loss are still saved there."""
    for seq, loss in ((3, "inplace"), (512, "plain"), (2048, "fused")):
        run = training_run(load_bundled("deepseek-v3"), seq, loss=loss, recompute="full", recipe=Recipe(mtp=True))
        memory = run_memory(run)
        check(training_formulas(run, memory), memory)


@pytest.mark.parametrize("setting", range(len(TRAINING)))
@pytest.mark.parametrize("name", ["llama2-7b", "mixtral-8x7b", "t5-base", "gemma2-2b"])
def test_training_formulas_of_each_setting(name: str, setting: int) -> None:
    spec = load_bundled(name)
    if TRAINING[setting].get("layout", Layout()).ep > 1 and not spec.is_moe:
        return
    run = training_run(spec, 512, **TRAINING[setting])
    memory = run_memory(run)
    check(training_formulas(run, memory), memory)
    assert max(step.total_bytes for step in timeline(run, memory)) == memory.peak_bytes


def test_experts_have_fewer_copies() -> None:
    layout = Layout.parse("dp=4,ep=2,zero=1")
    run = training_run(load_bundled("mixtral-8x7b"), 512, layout=layout)
    memory = run_memory(run)
    formulas = training_formulas(run, memory)
    check(formulas, memory)
    (states,) = (formula.text for formula in formulas if formula.term.startswith("optimizer"))
    assert "/ 4 GPUs" in states
    assert "/ 2 GPUs" in states


@each_model
def test_serving_and_cache_formulas(name: str) -> None:
    spec = load_bundled(name)
    options = SERVING[bundled_models().index(name) % len(SERVING)]
    try:
        run = ServingRun(spec=spec, seq_len=5001, batch=3, **options)
        memory = run.memory()
    except LayoutError:  # the layout does not divide this model
        run = ServingRun(spec=spec, seq_len=5001, batch=3, **SERVING[0])
        memory = run.memory()
    check(serving_formulas(run, memory), memory)
    for kv_dtype in ("int4", "int8_per_token_head"):
        cache = kv_cache(spec, 5001, batch=3, kv_dtype=kv_dtype)  # type: ignore[arg-type]
        formulas = kv_cache_formulas(spec, cache)
        for formula in formulas:
            assert evaluate(formula.text) == formula.value, formula
        parts = [formula.value for formula in formulas if not formula.term.startswith(("total", "reserved"))]
        assert sum(parts) == cache.bytes_total


@pytest.mark.parametrize(("tp", "heads"), [(1, "8 kv_heads"), (4, "(8 / 4) kv_heads"), (16, "(8 / 8) kv_heads")])
def test_a_gpu_stores_at_least_one_head(tp: int, heads: str) -> None:
    spec = load_bundled("llama3-8b")
    run = ServingRun(spec=spec, seq_len=64, batch=1, layout=Layout(tp=tp), weights="bf16", kv_dtype="bf16")
    formulas = serving_formulas(run, run.memory())
    check(formulas, run.memory())
    assert any(f"2 × {heads} × 128 head_dim" in formula.text for formula in formulas)


def test_formulas_of_flops() -> None:
    """Each formula of `flops --explain` gives its figure: windows, indexers, latents, recurrences, two stacks."""
    specs = [load_bundled(name) for name in ("llama3-8b", "gemma3-4b", "deepseek-v3.2", "jamba-v0.1", "t5-base")]
    specs += [from_config({"model_type": name}, name=name) for name in ("deberta-v2", "zamba2")]
    for spec, phase, full in product(specs, get_args(Phase), (False, True)):
        if phase == "decode" and not spec.decodes:
            continue
        chunk = 40 if phase == "decode" and full and spec.encoder is None else None
        rows = counted([spec], workload_of(phase, 300, 2, masked_pairs=full), chunk=chunk, chunk_start=chunk)
        (block,) = document(rows, {}, explain=True).blocks
        assert block.table is not None
        names = [column.name for column in block.table.columns]
        for cells in block.table.rows[:-1]:
            line = dict(zip(names, cells, strict=True))
            assert evaluate(line["formula"].rpartition(" = ")[2]) == line["flops"], (spec.name, phase, line)
    llama = counted(specs[:1], workload_of("prefill", 4096, 1))
    text = "2 × (128 + 128) × 8,390,656 pairs × 32 heads × 32 layers"
    assert text in str(document(llama, {}, explain=True).blocks[0].table)


def test_the_formula_that_people_know() -> None:
    spec = load_bundled("llama3-8b")
    (formula,) = kv_cache_formulas(spec, kv_cache(spec, 4096))
    assert formula.text == "32 layers × 2 × 8 kv_heads × 128 head_dim × 4,096 tokens × 2 bytes × 1 sequence"
    assert formula.value == 512 * 2**20


def test_a_wrong_formula_is_noticed() -> None:
    assert evaluate("2 layers × (3 a + 4.5 b) / 3 + ceil(7 / 2) − floor(7 / 2) × 1,000 tokens") == 5 + 4 - 3000
    with pytest.raises(SyntaxError):
        evaluate("2 layers 3")


def test_the_forward_pass_saves_the_activations() -> None:
    """Along the forward pass, the resident bytes grow by the activations and the logits that the step saves."""
    run = training_run(load_bundled("llama2-7b"), 512, recompute="full")
    memory = run_memory(run)
    steps = [step for step in timeline(run, memory) if step.part == "forward"]
    stored = memory.full_bytes["weights"] + memory.full_bytes["optimizer"] + memory.parts_bytes["overhead"]
    logits = 4 * 512 * 32000
    assert steps[-1].resident_bytes == stored + memory.full_bytes["activations"] + logits
    assert [step.layer for step in steps if step.layer is not None] == list(range(32))
    growth = {after.resident_bytes - before.resident_bytes for before, after in pairwise(steps[:33])}
    assert growth == {2 * 512 * 4096}  # a recomputed layer saves its input


def test_the_backward_pass_frees_the_activations() -> None:
    run = training_run(load_bundled("t5-base"), 512)
    steps = timeline(run, run_memory(run))
    backward = [step for step in steps if step.part == "backward" and step.layer is not None]
    assert [step.op.partition(".")[0] for step in backward] == ["layers"] * 12 + ["encoder"] * 12
    assert [step.layer for step in backward] == [*range(11, -1, -1)] * 2
    assert all(step.temporary_bytes for step in backward)
