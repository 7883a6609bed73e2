"""The program of each of the two processes in `test_ranks`. The first process writes the results to a JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from inspect import signature
from typing import Any
from unittest.mock import patch

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import loss_parallel

from llmbench.bench.experiments import collectives, train
from llmbench.bench.experiments.experiment import Ask, Group, run
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.experiments.train import step as training
from llmbench.bench.experiments.train.sharding import shard
from llmbench.bench.experiments.train.step import Trainer, TrainStep, verdicts
from llmbench.bench.pieces.piece import Setting
from llmbench.cli import run as command
from llmbench.errors import CannotRunError
from llmbench.kernels.proof.accuracy import Verdict
from llmbench.measure import reference
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import CpuClock
from llmbench.measure.ranks import Ranks, join
from llmbench.measure.reference import ReferenceMeasurements, Sizes, measure_references
from llmbench.model import build
from llmbench.model.decoder import Decoder
from llmbench.spec.ffn import Gated, MoE, SharedExperts

CPU = torch.device("cpu")
SPEC = model_of("tiny", 32, mixer=heads(4, 2, 8), ffn=Gated(intermediate_size=48), layers=3, vocab=98)
EXPERTS = model_of(
    "experts",
    32,
    mixer=heads(4, 2, 8),
    ffn=MoE(num_experts=6, num_experts_per_tok=2, intermediate_size=24, shared=SharedExperts(intermediate_size=16)),
    layers=2,
    vocab=98,
)
SETTING = Setting(spec=SPEC, batch=4, seq_len=24, dtype="fp32", device=CPU, direction="both")
STEPS = [
    TrainStep("sdpa", sharding="fsdp"),
    TrainStep("sdpa", recompute=True, sharding="fsdp"),
    TrainStep("sdpa", sharding="tp"),
]
EXPERT_STEPS = [TrainStep("sdpa", sharding="ep"), TrainStep("sdpa", recompute=True, sharding="ep")]


def rows_of(groups: list[Group], ranks: Ranks, references: ReferenceMeasurements) -> list[Any]:
    """Rows in JSON."""
    return [msgspec.to_builtins(row) for row in run(groups, clock=ranks.clock(CPU), references=references)]


def sent(ranks: Ranks) -> dict[str, int]:
    """All-reduces of a tensor-parallel forward and backward pass."""
    model = build(SPEC, impl="sdpa")
    shard(model, "tp", init_device_mesh("cpu", (ranks.size,)))
    tokens = SETTING.tokens(98, 4, 24)
    with loss_parallel(), CommDebugMode() as counted:
        loss = model(tokens, targets=tokens)
        forward = counted.get_total_counts()
        loss.backward()
        return {"forward": forward, "backward": counted.get_total_counts() - forward}


def moved(ranks: Ranks) -> dict[str, int]:
    """Bytes of the whole tensors that FSDP gathers and splits in a forward and a backward pass."""
    model = build(SPEC, impl="sdpa")
    shard(model, "fsdp", init_device_mesh("cpu", (ranks.size,)))
    tokens = SETTING.tokens(98, 4, 24)
    sizes = dict.fromkeys(("all_gather forward", "all_gather backward", "reduce_scatter backward"), 0)
    when = "forward"

    def recorded(kind: str, whole: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def record(*arguments: Any, **named: Any) -> Any:
            tensor = signature(call).bind(*arguments, **named).arguments[whole]
            sizes[f"{kind} {when}"] += tensor.numel() * tensor.element_size()
            return call(*arguments, **named)

        return record

    gather = recorded("all_gather", "output_tensor", DefaultAllGather.__call__)
    split = recorded("reduce_scatter", "input_tensor", DefaultReduceScatter.__call__)
    with patch.object(DefaultAllGather, "__call__", gather), patch.object(DefaultReduceScatter, "__call__", split):
        loss = model(tokens, targets=tokens)
        when = "backward"
        loss.backward()
    return sizes


def exchanged(ranks: Ranks) -> dict[str, list[int]]:
    """Bytes that this rank sends in each exchange of rows between the experts, in a forward and a backward pass."""
    model = build(EXPERTS, impl="sdpa")
    shard(model, "ep", init_device_mesh("cpu", (ranks.size,)))
    tokens = SETTING.tokens(98, 2, 24, seed=ranks.rank)
    sizes: dict[str, list[int]] = {"forward": [], "backward": []}
    when, usual = "forward", dist.all_to_all_single

    def recorded(out: Tensor, rows: Tensor, *sizes_of_parts: Any, **options: Any) -> Any:
        if rows.dim() == 2:  # not the numbers of rows
            sizes[when].append(rows.nbytes)
        return usual(out, rows, *sizes_of_parts, **options)

    with patch.object(dist, "all_to_all_single", recorded):
        loss = model(tokens, targets=tokens)
        when = "backward"
        loss.backward()
    return sizes


def uneven(ranks: Ranks) -> list[bool]:
    """The verdicts where only the second rank computes wrongly."""
    right = training.shard

    def wrong(model: Decoder, *options: Any) -> None:
        right(model, *options)
        if ranks.rank == 1:
            with torch.no_grad():
                model.layers[1].ffn.down_proj.weight.to_local().mul_(1.01)

    training.shard = wrong  # type: ignore[assignment]
    try:
        return [verdict.passed for verdict in verdicts(SETTING, STEPS[2], ranks)]
    finally:
        training.shard = right


class OddError(Exception):
    """An error that cannot be pickled for other processes."""

    def __init__(self, text: str, more: str) -> None:
        super().__init__(text)


def alone(ranks: Ranks, references: ReferenceMeasurements) -> list[Any]:
    """Rows of candidates that fail on the second rank only, each at another step, some before a collective in which the
    first rank would wait."""
    ones = torch.ones(10)

    def good() -> None:
        dist.all_reduce(ones)

    def failing(problem: Exception, call: int = 0) -> Callable[[], Any]:
        counted = iter(range(100))

        def fail() -> list[Any]:
            if next(counted) == call and ranks.rank == 1:
                raise problem
            return []

        return fail

    def wrong() -> list[Verdict]:
        return [Verdict("out", 1.0, 0.0, 0.0, ranks.rank == 0)]

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        no_room, odd = torch.OutOfMemoryError("no room"), OddError("odd", "more")
        return [
            Candidate(name="need", prepare=lambda: good, need_bytes=2**60 * ranks.rank),
            Candidate(name="check", prepare=lambda: good, check=failing(odd)),
            Candidate(name="wrong", prepare=lambda: good, check=wrong),
            Candidate(name="made", prepare=failing(no_room)),
            Candidate(name="first", prepare=lambda: failing(ValueError("broken"))),
            Candidate(name="memory", prepare=lambda: failing(ValueError("broken"), 1)),
            Candidate(name="timed", prepare=lambda: failing(ValueError("broken"), 2)),
            Candidate(name="good", prepare=lambda: good),
        ]

    names = ["need", "check", "wrong", "made", "first", "memory", "timed", "good"]
    pace = Ask(quick=True, device=CPU, dtype="fp32").pace.fixed()
    return rows_of(
        [Group(experiment="faults", case={}, names=names, candidates=candidates, pace=pace)], ranks, references
    )


def parted(ranks: Ranks, references: ReferenceMeasurements) -> dict[str, Any]:
    """Rows of this rank and its error, where the second rank leaves a collective in which the first waits."""
    _set_pg_timeout(timedelta(seconds=1))
    ones, counted = torch.ones(10), iter(range(100))

    def leaving() -> None:
        if next(counted) == 2 and ranks.rank == 1:
            raise ValueError("gone")
        dist.all_reduce(ones)

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        calls = {"good": lambda: dist.all_reduce(ones), "leaving": leaving}
        return [Candidate(name=name, prepare=lambda call=call: call) for name, call in calls.items()]

    pace = Ask(quick=True, device=CPU, dtype="fp32").pace.fixed()
    group = Group(experiment="parted", case={}, names=["good", "leaving"], candidates=candidates, pace=pace)
    texts: list[Any] = []
    try:
        for row in run([group, group], clock=ranks.clock(CPU), references=references):
            texts.append([row.implementation, row.status, row.ended_session])
    except CannotRunError as problem:
        return {"rows": texts, "end": str(problem)}
    return {"rows": texts, "end": None}


def main(out: str) -> None:
    """Run everything."""
    ranks, _ = join("any", CPU, "train")
    ask = Ask(quick=True, device=CPU, dtype="fp32", ranks=ranks)
    references = measure_references(CpuClock(), torch.float32, budget_s=0.01, sizes=Sizes(64, 2**16, 10))
    reference.measure_references = lambda *_, **__: references  # the commands below need no exact rates
    answers: dict[str, Any] = {
        "train": rows_of([train.group_of(SETTING, STEPS, ask)], ranks, references),
        "collectives": rows_of(
            [collectives.group_of(kind, 6000, ask) for kind in collectives.COLLECTIVES], ranks, references
        ),
        "sent": sent(ranks),
        "moved": moved(ranks),
        "experts": rows_of([train.group_of(SETTING.changed(spec=EXPERTS), EXPERT_STEPS, ask)], ranks, references),
        "exchanged": ranks.gathered(exchanged(ranks)),
        "uneven": uneven(ranks),
        "faults": alone(ranks, references),
    }
    local = Trainer(build(SPEC), *[SETTING.tokens(98, 4, 24)] * 2, sharding="fsdp", ranks=ranks)
    answers["local_parameters"] = ranks.gathered(sum(parameter.to_local().numel() for parameter in local.parameters))
    results = f"{out}.jsonl"
    answers["codes"] = [
        command(["bench", "collectives", "--device", "cpu", option, results]) for option in ("--output", "--resume")
    ]
    answers["exists"] = command(["bench", "collectives", "--device", "cpu", "--output", results])
    answers["parted"] = ranks.gathered(parted(ranks, references))  # the last one: afterwards the ranks are out of step
    if ranks.first:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(answers, file)


if __name__ == "__main__":
    main(sys.argv[1])
