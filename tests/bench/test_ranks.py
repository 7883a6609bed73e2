"""Two processes on one machine with gloo: sharded models are right, their collectives are those of the op table, and
neither process waits forever for the other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmbench.bench.experiments.collectives import bandwidths
from llmbench.bench.experiments.experiment import QUICK
from llmbench.errors import LLMBenchError
from llmbench.measure.ranks import join
from llmbench.measure.results import read
from llmbench.sizing.communication import step_communication
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.training import training_run
from llmbench.sizing.workload import Layout, Workload
from tests.bench.two_ranks import EXPERTS, SPEC, STEPS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results_of_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of two processes, and the file that they wrote."""
    out = tmp_path_factory.mktemp("ranks") / "found.json"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.two_ranks", str(out)],
            env={**os.environ, **where, "RANK": rank, "LOCAL_RANK": rank, "TRITON_INTERPRET": "0"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    answers: dict[str, Any] = json.loads(out.read_text())
    return answers | {"said": said, "file": f"{out}.jsonl"}


def test_a_sharded_model_has_the_loss_and_gradients_of_one_process(results_of_ranks: dict[str, Any]) -> None:
    rows = results_of_ranks["train"]
    assert [(row["implementation"], row["status"], row["reason"]) for row in rows] == [
        (step.name, "ok", None) for step in STEPS
    ]
    for row in rows:
        assert [(check["tensor"], check["passed"]) for check in row["checks"]] == [("loss", True), ("gradients", True)]
        assert row["extra"]["tokens"] == 4 * 24
        assert row["case"]["ranks"] == 2


def test_expert_parallelism_has_the_loss_and_gradients_of_one_process(results_of_ranks: dict[str, Any]) -> None:
    """Also with recomputation, which repeats the exchanges in the backward pass."""
    rows = results_of_ranks["experts"]
    assert [(row["implementation"], row["status"], row["reason"]) for row in rows] == [
        ("sdpa EP", "ok", None),
        ("sdpa EP recompute", "ok", None),
    ]
    for row in rows:
        assert [(check["tensor"], check["passed"]) for check in row["checks"]] == [("loss", True), ("gradients", True)]
        # 2 sequences × 24 tokens × 2 experts × 32 channels × 4 bytes, for inputs, outputs and their gradients.
        assert row["extra"]["exchanged_bytes"] == 4 * 2 * 24 * 2 * 32 * 4


def test_each_rank_sends_the_bytes_of_the_op_table(results_of_ranks: dict[str, Any]) -> None:
    """On average over the ranks. The router decides how many rows the experts of each rank send back."""
    for when in ("forward", "backward"):
        predicted = [
            collective.bytes
            for op in lower(EXPERTS, Workload.train(24, 2, activation_dtype="fp32"), Layout(dp=2, ep=2))
            for collective in op.collectives
            if collective.kind == "all_to_all" and collective.when == when
            for _ in op.layers
        ]
        first, second = (sent[when] for sent in results_of_ranks["exchanged"])
        assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == predicted
        assert len(predicted) == 4


def test_fsdp_splits_weights_evenly(results_of_ranks: dict[str, Any]) -> None:
    assert sum(results_of_ranks["local_parameters"]) == count_parameters(SPEC).total
    assert max(results_of_ranks["local_parameters"]) < 0.51 * count_parameters(SPEC).total


def test_tensor_parallel_has_the_collectives_of_the_op_table(results_of_ranks: dict[str, Any]) -> None:
    """The embedding's sum, the products split by rows, and three numbers per token of the loss."""
    counts = {"forward": 0, "backward": 0}
    for op in lower(SPEC, Workload.train(24, 4), Layout(tp=2)):
        for collective in op.collectives:
            counts[collective.when] += op.count
    assert results_of_ranks["sent"] == counts


def test_fsdp_moves_the_bytes_of_the_step(results_of_ranks: dict[str, Any]) -> None:
    """PyTorch's fully_shard on two ranks. The number of rows of every matrix is even, so no shard is padded."""
    run = training_run(SPEC, 24, micro_batch=4, layout=Layout(dp=2, zero=3), precision="fp32")
    predicted = {f"{each.kind} {each.when}": each.bytes for each in step_communication(run, run.stages[0])}
    assert results_of_ranks["moved"] == predicted


def test_a_fault_on_one_rank_is_found(results_of_ranks: dict[str, Any]) -> None:
    assert results_of_ranks["uneven"][1] is False  # the gradients; the loss hardly changes with so few layers


def test_a_failure_on_one_rank_is_a_failure_on_all(results_of_ranks: dict[str, Any]) -> None:
    rows = {row["implementation"]: (row["status"], row["reason"]) for row in results_of_ranks["faults"]}
    assert rows == {
        "need": ("OOM", "not tried: the call needs more memory than any machine can address; on rank 1"),
        "check": ("FAILED", "RuntimeError: OddError: odd; on rank 1"),
        "wrong": ("INCORRECT", "out: error 1.0e+00, budget 0.0e+00; on rank 1"),
        "made": ("OOM", "no room; on rank 1"),
        **dict.fromkeys(("first", "memory", "timed"), ("FAILED", "ValueError: broken; on rank 1")),
        "good": ("ok", None),
    }


def test_ranks_that_are_out_of_step_stop_measuring(results_of_ranks: dict[str, Any]) -> None:
    """The collective that the first rank waits in would be joined by the next one of the second rank."""
    first, second = results_of_ranks["parted"]
    assert first == second
    assert first["rows"] == [["leaving", "FAILED", True]]
    assert first["end"].startswith("ranks are no longer in step: rank 0: RuntimeError: ")
    assert "; rank 1: ValueError: gone, at leaving" in first["end"]


def test_collectives_are_right(results_of_ranks: dict[str, Any]) -> None:
    rows = {row["case"]["collective"]: row for row in results_of_ranks["collectives"]}
    assert list(rows) == ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]
    for row in rows.values():
        assert row["status"] == "ok"
        assert row["implementation"] == "gloo"
        assert [check["passed"] for check in row["checks"]] == [True]
        assert len(row["measurement"]["samples_s"]) == QUICK.min_samples


@pytest.mark.parametrize(
    ("kind", "bus"), [("all_reduce", 1.5e9), ("all_gather", 7.5e8), ("reduce_scatter", 7.5e8), ("all_to_all", 7.5e8)]
)
def test_bandwidths(kind: str, bus: float) -> None:
    """Four ranks and one gigabyte per second, worked out by hand."""
    assert bandwidths(kind, 10**9, 1.0, 4) == (1e9, bus)


def test_the_first_rank_alone_writes_and_answers(results_of_ranks: dict[str, Any]) -> None:
    (first, first_said), (second, second_said) = results_of_ranks["said"]
    assert results_of_ranks["codes"] == [0, 0]
    assert first.count("how fast are collectives between ranks") == 2
    assert second == ""
    results = read(results_of_ranks["file"])
    assert not results.damaged
    assert len(results.headers) == 2
    assert len(results.rows) == len(results.by_key()) == 8  # resumed without measuring anything again
    assert results_of_ranks["exists"] == 2
    assert "which would be lost" in first_said
    assert "which would be lost" in second_said


def test_collectives_need_several_processes() -> None:
    with pytest.raises(LLMBenchError, match="needs several processes") as raised:
        join("several", torch.device("cpu"), "collectives")
    assert raised.value.hint == "torchrun --nproc-per-node 2 -m llmbench bench collectives --device cpu"


def test_other_experiments_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LLMBenchError, match="runs in one process, and torchrun started 2"):
        join("one", torch.device("cpu"), "norms")
