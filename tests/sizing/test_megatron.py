"""What a step of Megatron-LM allocates besides a step of torch: buffers, copies, masks and workspaces, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from llmbench.sizing.backward import walk
from llmbench.sizing.memory import Memory
from llmbench.sizing.params import count_parameters
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.training import stage_memories, training_memory, training_run
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override

LLAMA = load_bundled("llama2-7b")
MIXTRAL = load_bundled("mixtral-8x7b")
N = count_parameters(LLAMA).total
MIB = 2**20


def megatron(items: str = "", spec: Any = LLAMA, seq: int = 64, **options: Any) -> Memory:
    text = f"framework=megatron,{items}"
    return training_memory(spec, seq, recipe=Recipe.parse(text), **options)


@pytest.mark.parametrize(
    ("capability", "items", "spec", "mib"),
    [
        (9.0, "", LLAMA, 2 * 32 + 32),  # cuBLAS in two threads, Transformer Engine
        (8.0, "", LLAMA, 2 * 8.125 + 4),
        (8.0, "deterministic", LLAMA, 2 * 32 + 4),
        (9.0, "", MIXTRAL, 2 * 32 + 32 + 4 * 32),  # grouped products in four streams
        (9.0, "sequential_experts", MIXTRAL, 2 * 32 + 32),
    ],
)
def test_workspaces(capability: float, items: str, spec: Any, mib: float) -> None:
    memory = megatron(items, spec, compute_capability=capability)
    assert memory.parts_bytes["overhead"] == mib * MIB


def test_buffers_that_live_as_long_as_the_process() -> None:
    layout = Layout(tp=2, sp=True)
    # the gathered input of the head
    assert megatron(layout=layout).parts_bytes["overhead"] == 96 * MIB + 2 * 64 * 4096
    run = training_run(LLAMA, 64, layout=Layout(tp=2), recipe=Recipe(framework="megatron-local"))
    assert run.workspace_bytes == 64 * MIB + 2 * 64 * 64 * 32 // 2  # the scores of one layer, without the other engine


def test_gradients_and_their_copies() -> None:
    """Megatron never frees the gradients, and its optimizer copies 16-bit gradients to fp32."""
    plain = training_memory(LLAMA, 64)
    memory = megatron()
    assert plain.steady_bytes == (2 + 12) * N + 64 * MIB
    assert memory.steady_bytes == (2 + 2 + 12 + 4) * N + 96 * MIB
    wide = megatron(precision="mixed-fp32-grads")
    assert wide.steady_bytes == (2 + 4 + 12) * N + 96 * MIB
    split = megatron(layout=Layout(dp=8, zero=1))
    assert split.steady_bytes == pytest.approx((4 + 16 / 8) * N + 96 * MIB, rel=1e-6)
    # 64 tokens: the peak is in the optimizer step
    assert memory.moment == "optimizer"
    assert memory.peak_bytes == memory.steady_bytes


def test_the_precision_aware_optimizer() -> None:
    """It reads 16-bit gradients, and converts all states that are not fp32 in its step."""
    for items, states, converted in (
        ("states=bf16", 4 + 2 + 2, 4 + 4),
        ("states=fp8+fp32,master=remainder", 2 + 1 + 4, 4),
        ("master=fp16", 2 + 4 + 4, 0),
    ):
        memory = megatron(items)
        assert memory.steady_bytes == (2 + 2 + states) * N + 96 * MIB
        if converted:
            assert memory.moment == "optimizer"
            assert memory.peak_bytes == memory.steady_bytes + converted * N


def test_the_mask_of_the_data_loader() -> None:
    """The forward pass holds one byte per query and key until the loss is computed."""
    spec = override(LLAMA, {"num_hidden_layers": 2, "vocab_size": 400_000})
    here, there = (megatron(items, spec, 2048, micro_batch=3) for items in ("", "loader_mask=0"))
    assert here.moment == there.moment == "loss"
    assert here.peak_bytes - there.peak_bytes == 3 * 2048**2
    torch, masked = (training_memory(spec, 8192, recipe=Recipe(loader_mask=mask)).peak_bytes for mask in (None, True))
    assert masked - torch == 8192**2


@pytest.mark.parametrize(("deferred", "kept"), [(0, 0), (2, 2), (3, 3), (4, 3), (100, 3)])
def test_deferred_gradients_of_the_head(deferred: int, kept: int) -> None:
    """At the loss of the last of four micro-batches, inputs and gradients of the logits of earlier ones exist."""
    spec = override(LLAMA, {"num_hidden_layers": 4, "vocab_size": 400_000})
    layout = Layout(pp=2)
    last, plain = (
        stage_memories(training_run(spec, 16384, layout=layout, micro_batches=4, recompute="full", recipe=recipe))[-1]
        for recipe in (Recipe(deferred_heads=deferred), Recipe())
    )
    assert last.moment == plain.moment == "loss"
    assert last.peak_bytes - plain.peak_bytes == kept * 2 * 16384 * (400_000 + 4096)


def test_results_that_exist_twice_when_they_are_computed_again() -> None:
    """Megatron copies the results of a norm into the storage that the forward pass has freed."""
    run = training_run(LLAMA, 512, recipe=Recipe.parse("recompute=layernorm"))
    layer = run.stages[0].chunks[0].layers[-1]
    own: list[Any] = []
    walk(run, layer, 0, 0, own, "layer")
    moment = next(each for each in own if each.op.endswith("q_proj"))
    q_proj = next(op for op in layer if op.name.endswith("q_proj"))
    stream = 2 * 512 * 4096
    assert moment.temporary == q_proj.backward_bytes + stream + 2 * stream
