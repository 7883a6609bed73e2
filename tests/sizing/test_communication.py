"""The communication of a training step, by hand. tests/bench/test_ranks.py compares FSDP with PyTorch."""

from __future__ import annotations

import json

import pytest

from llmbench.cli import run
from llmbench.sizing.communication import step_communication
from llmbench.sizing.params import count_parameters
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.training import training_run
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled

Moved = dict[tuple[str, str, str], tuple[int | None, int]]


def moved(model: str, layout: str, stage: int = 0, **options: object) -> Moved:
    settings = training_run(load_bundled(model), 4096, layout=Layout.parse(layout), **options)  # type: ignore[arg-type]
    found = step_communication(settings, settings.stages[stage])
    return {(each.kind, each.group, each.when): (each.calls, each.bytes) for each in found}


def test_gradients_and_weights_of_replicas() -> None:
    """Two bytes per parameter in bf16, and four in Megatron's fp32 gradients. The number of GPUs changes no size."""
    whole = count_parameters(load_bundled("llama2-7b")).total
    tables = 2 * 32000 * 4096 + 4096
    for dp in (2, 64):
        assert moved("llama2-7b", f"dp={dp}") == {("all_reduce", "dp", "step"): (None, 2 * whole)}
        for zero in (1, 2):
            assert moved("llama2-7b", f"dp={dp},zero={zero}", precision="mixed-fp32-grads") == {
                ("reduce_scatter", "dp", "step"): (None, 4 * whole),
                ("all_gather", "dp", "step"): (None, 2 * whole),
            }
        assert moved("llama2-7b", f"dp={dp},zero=3", precision="bf16", micro_batches=3) == {
            ("all_gather", "fsdp", "forward"): (None, 3 * 2 * whole),
            ("all_gather", "fsdp", "backward"): (None, 3 * 2 * (whole - tables)),
            ("reduce_scatter", "fsdp", "backward"): (None, 3 * 2 * whole),
        }
    assert moved("llama2-7b", "dp=8,zero=1,instances=2")["all_reduce", "dp", "step"] == (None, 2 * whole // 4)


def test_copies_in_fp8_are_made_on_each_gpu() -> None:
    """GPUs send bf16 weights, or weights in fp8. Transformer Engine makes their copies and transposes after that."""
    parts = count_parameters(load_bundled("llama2-7b")).components
    whole, matrices = sum(parts.values()), parts["attention"] + parts["mlp"]
    for text, size in (("fp8=cached", 2 * whole), ("fp8=primary", 2 * whole - matrices)):
        found = moved("llama2-7b", "dp=8,zero=1", recipe=Recipe.parse(text))
        assert found["all_gather", "dp", "step"] == (None, size)


def test_experts_have_replicas_of_their_own() -> None:
    """Mixtral on 8 GPUs: with ep=8, each GPU has one expert of every layer. With ep=4, two GPUs share two."""
    parts = count_parameters(load_bundled("mixtral-8x7b")).components
    others = sum(parts.values()) - parts["experts"]
    alone, pairs = moved("mixtral-8x7b", "dp=8,ep=8"), moved("mixtral-8x7b", "dp=8,ep=4")
    assert alone["all_reduce", "dp", "step"] == pairs["all_reduce", "dp", "step"] == (None, 2 * others)
    assert ("all_reduce", "expert_dp", "step") not in alone
    assert pairs["all_reduce", "expert_dp", "step"] == (None, 2 * parts["experts"] // 4)


@pytest.mark.parametrize(("layout", "share"), [("pp=4", 1), ("tp=2,pp=4", 1), ("tp=2,sp,pp=4", 2), ("cp=2,pp=4", 2)])
def test_pipeline_stages_send_hidden_states(layout: str, share: int) -> None:
    """8 micro-batches of 4,096 tokens of width 4,096 in bf16, split by sequence and context parallelism."""
    size = 8 * 4096 * 4096 * 2 // share
    for stage, forward, backward in ((0, 1, 0), (1, 1, 1), (3, 0, 1)):
        found = moved("llama2-7b", layout, stage)
        assert found.get(("send", "pp", "forward"), (0, 0)) == (8 * forward, size * forward)
        assert found.get(("send", "pp", "backward"), (0, 0)) == (8 * backward, size * backward)


def test_interleaved_stages_send_more_often() -> None:
    """With two chunks per stage, only the last chunk sends nothing forward."""
    assert moved("llama2-7b", "pp=4,interleave=2", 0)["send", "pp", "forward"][0] == 16
    assert moved("llama2-7b", "pp=4,interleave=2", 3)["send", "pp", "forward"][0] == 8


def test_copies_of_a_tied_table_are_summed() -> None:
    """Gemma 2: 256,000 × 3,584 in bf16, on the first and on the last stage."""
    for stage in (0, 1):
        assert moved("gemma2-9b", "pp=2", stage)["all_reduce", "pp", "step"] == (1, 2 * 256000 * 3584)
    assert ("all_reduce", "pp", "step") not in moved("llama2-7b", "pp=2")


def test_json_lists_the_communication(capsys: pytest.CaptureFixture[str]) -> None:
    for layout, phase, groups in (
        ("dp=2,tp=2", "train", {"dp", "tp"}),
        ("", "train", set()),
        ("tp=2", "inference", set()),
    ):
        options = ["--layout", layout] if layout else []
        assert run(["memory", "llama3-8b", "--phase", phase, *options, "--format", "json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["models"]
        assert {each["group"] for each in row["communication"]} == groups
