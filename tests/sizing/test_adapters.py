"""Low-rank adapters: memory against traced steps, FLOPs against torch's counter, counts against PEFT's formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from llmbench.errors import LLMBenchError, SpecError
from llmbench.sizing.adapters import Adapters
from llmbench.sizing.flops import count_flops, step_ops, trained_parameters
from llmbench.sizing.memory import WORKSPACE_BYTES
from llmbench.sizing.recipe import Recipe
from llmbench.sizing.training import run_memory, training_run
from llmbench.sizing.training_run import TrainingRun
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled

from ..oracles.training_adapters import Lora
from ..oracles.training_memory import trace
from ..oracles.training_transformer import Setup, build, loss_of
from .test_memory import SMALL, spec_of

BOUND = 0.01
ALL = ("q", "k", "v", "o", "gate", "up", "down")
RUNS = [
    ("mha-8k", ("q", "v"), {}, "none"),
    ("gqa-32k", ALL, {"nf4": True}, "full"),
    ("deep-4k", ("down",), {}, "none"),
    ("deep-4k", ("gate", "o"), {"nf4": True}, "none"),
    ("deep-4k", ("q", "k", "v"), {"dropout": 0.1}, "full"),
    ("mha-8k", ALL, {"dropout": 0.1}, "none"),
    ("mha-8k", ("q", "v"), {"dora": True}, "full"),
    ("mqa-32k", ("gate", "up"), {}, "none"),
    ("mqa-32k", ALL, {"dora": True}, "none"),
]


def lora_run(model: str, text: str, seq: int = 512, **options: object) -> TrainingRun:
    return training_run(load_bundled(model), seq, adapters=Adapters.parse(text), **options)


@pytest.mark.parametrize(("name", "targets", "how", "recompute"), RUNS)
def test_memory_as_traced(name: str, targets: tuple[str, ...], how: dict[str, object], recompute: str) -> None:
    """Peak and saved activations of a step in plain PyTorch, followed storage by storage."""
    style, seq, batch, shape = SMALL[name]
    spec = spec_of(style, seq, shape)
    traced = trace(
        shape, Setup(style=style, recompute=recompute, lora=Lora(rank=16, targets=targets, **how)), batch=batch, seq=seq
    )
    own = {key: value for key, value in how.items() if key != "nf4"}
    run = training_run(
        spec,
        seq,
        micro_batch=batch,
        recompute=recompute,
        kernels="eager",
        adapters=Adapters(r=16, targets=targets, **own),
        base="nf4" if "nf4" in how else None,
    )
    ours = run_memory(run)
    assert ours.peak_bytes - WORKSPACE_BYTES == pytest.approx(traced.peak_bytes, rel=BOUND)
    if recompute == "none":
        saved = traced.saved_bytes - traced.saved_by_module["loss"]
        assert ours.full_bytes["activations"] == pytest.approx(saved, rel=BOUND)


def test_flops_as_counted_by_torch() -> None:
    """The products of forward and backward pass, to the FLOP, of a model on the meta device."""
    style, seq, batch, shape = SMALL["gqa-32k"]
    spec, workload = spec_of(style, seq, shape), Workload.train(seq, batch, masked_pairs=True)
    for targets in (("q", "v"), ("k",), ("o",), ("down",), ("gate", "up"), ALL):
        lora = Lora(rank=16, targets=targets)
        with torch.device("meta"):
            setup = Setup(style=style, attention="standard", precision="fp32", lora=lora)
            model, ids, labels = build(shape, setup, batch, seq)
            with FlopCounterMode(display=False) as counter:
                loss_of(model(ids), labels).backward()
        ours = count_flops(spec, workload, adapters=Adapters(r=16, targets=targets))
        # In the first layer, the scores of a frozen query or key need no gradient of it.
        difference = ours.total - counter.get_total_flops()
        assert 0 <= difference <= 0.01 * ours.total, targets
        if targets == ALL:
            assert difference == 0


@pytest.mark.parametrize(
    ("model", "targets", "count"),
    [
        # PEFT prints these numbers: r × (inputs + outputs) of each adapted matrix, in each layer
        ("llama2-7b", "r=8,targets=q,v", 32 * 2 * 8 * (4096 + 4096)),
        ("llama3-8b", "r=16,targets=q_proj,k_proj,v_proj,o_proj", 32 * 16 * (2 * 8192 + 2 * (4096 + 1024))),
        ("llama2-7b", "r=64,targets=all-linear", 32 * 64 * (4 * 8192 + 3 * (4096 + 11008))),
        ("llama2-7b", "r=4,targets=mlp,dora", 32 * (4 * 3 * (4096 + 11008) + 2 * 11008 + 4096)),
    ],
)
def test_trained_parameters(model: str, targets: str, count: int) -> None:
    ops = step_ops(load_bundled(model), Workload.train(128), Adapters.parse(targets))
    frozen = sum(op.count * op.parameters for op in ops if op.frozen)
    assert sum(op.count * op.trained for op in ops) == count
    assert frozen == sum(op.count * op.parameters for op in step_ops(load_bundled(model), Workload.train(128)))


@settings(max_examples=12, deadline=None)
@given(
    model=st.sampled_from(["llama3.2-1b", "mixtral-8x7b", "gpt2", "deepseek-v2-lite", "gemma3-1b", "falcon-mamba-7b"]),
    r=st.integers(1, 64),
    targets=st.sampled_from(["all-linear", "all-linear,dora", "all-linear,dropout=0.1"]),
    recompute=st.sampled_from(["none", "full"]),
    kernels=st.sampled_from(["fused", "eager"]),
)
def test_a_larger_rank_needs_more(model: str, r: int, targets: str, recompute: str, kernels: str) -> None:
    spec = load_bundled(model)
    options = {"recompute": recompute, "kernels": kernels}
    full = run_memory(training_run(spec, 256, **options))
    small, large = (run_memory(lora_run(model, f"r={rank},targets={targets}", 256, **options)) for rank in (r, r + 8))
    quantised = run_memory(lora_run(model, f"r={r},targets={targets}", 256, base="nf4", **options))
    assert small.peak_bytes < large.peak_bytes
    assert small.parameters - full.parameters > 0
    assert quantised.parts_bytes["weights"] < small.parts_bytes["weights"]
    assert small.parts_bytes["optimizer"] < full.parts_bytes["optimizer"]
    workload = Workload.train(256)
    counted = [
        count_flops(spec, workload, adapters=Adapters.parse(f"r={rank},targets={targets}")) for rank in (r, r + 8)
    ]
    assert counted[0].total < counted[1].total
    every = count_flops(spec, workload).total
    assert count_flops(spec, workload, adapters=Adapters.parse("r=1,targets=all-linear")).total < every


def test_gpus_share_adapters() -> None:
    """The shards of B (matrices split by outputs) and of A (split by inputs) add up; the rest is on every GPU."""
    for text in ("r=8,targets=q,k,v,gate,up", "r=8,targets=o,down"):
        whole, split = (
            [op for op in run.stages[0].ops if not op.frozen]
            for run in (lora_run("llama3-8b", text), lora_run("llama3-8b", text, layout=Layout(tp=4)))
        )
        assert [op.name for op in whole] == [op.name for op in split]
        assert sum(op.shards * op.parameters for op in split) == sum(op.parameters for op in whole)
        assert not any(op.collectives for op in whole)
        for op in split:  # the gradient of a matrix that is on every GPU is a sum over the GPUs
            gradients = [sent.bytes for sent in op.collectives if (sent.kind, sent.when) == ("all_reduce", "backward")]
            assert gradients == ([op.weight_bytes] if op.parameters and op.shards == 1 else [])
    dora = lora_run("llama3-8b", "r=8,targets=o,dora", layout=Layout(tp=4)).stages[0].ops
    sums = {
        op.name: [(sent.when, sent.bytes) for sent in op.collectives] for op in dora if op.name.endswith("magnitude")
    }
    assert list(sums.values()) == [[("forward", 2 * 4096), ("backward", 2 * 4096)]]
    sharded = run_memory(lora_run("llama3-8b", "r=8", layout=Layout(dp=8, zero=3)))
    alone = run_memory(lora_run("llama3-8b", "r=8"))
    assert sharded.full_bytes["weights"] * 8 < alone.full_bytes["weights"]
    assert sharded.full_bytes["optimizer"] * 8 == pytest.approx(alone.full_bytes["optimizer"], rel=1e-3)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("r=0", "r: must be a whole number from 1"),
        ("alpha=16", "rank is missing"),
        ("r=8,r=8", "given twice"),
        ("r=8,targets=", "targets: needs names"),
        ("r=8,targets=wide", "no matrix `wide`"),
        ("r=8,targets=lm_head", "adds no adapters"),
        ("r=8,dropout=1", "dropout: must be at least 0"),
        ("r=8,alpha=nan", "alpha: needs a number"),
        ("r=8,beta=2", "unknown item `beta`"),
        ("q,v", "unknown item `q`"),
        ("r=8,alpha=0", "alpha: must be above 0"),
    ],
)
def test_wrong_text(text: str, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        lora_run("llama2-7b", text)


def test_experts_have_no_adapters() -> None:
    with pytest.raises(SpecError, match="experts"):
        lora_run("mixtral-8x7b", "r=8,targets=gate")
    with pytest.raises(LLMBenchError, match="only frozen weights"):
        training_run(load_bundled("llama2-7b"), 512, base="nf4")
    with pytest.raises(SpecError, match="contradicts base nf4"):
        lora_run("llama2-7b", "r=8", base="nf4", recipe=Recipe(fp8="cached"))


def test_the_hint_of_default_targets_works() -> None:
    spec = load_bundled("deepseek-v3")
    with pytest.raises(SpecError, match="targets=q,v is the default") as refused:
        trained_parameters(spec, Adapters.parse("r=16"))
    hint = refused.value.hint or ""
    assert "kv_b" in hint
    assert trained_parameters(spec, Adapters.parse(hint.split()[-1]))[0] > 0


def test_text_of_adapters() -> None:
    for text in ("r=8,alpha=16,targets=q,v", "r=64,alpha=128,targets=all-linear,dropout=0.05,dora"):
        assert str(Adapters.parse(text)) == text
    assert Adapters.parse("targets=q_proj,w1+output_proj,mlp,r=8").targets == ("q", "gate", "o", "mlp")


def test_answers_of_commands() -> None:
    """The commands name the adapters, the share of trained parameters, and factors that add up to the FLOPs."""
    import llmbench

    row = llmbench.memory("mixtral-8x7b", lora="r=8,targets=attention", base="nf4").rows[0]
    assert (row["lora"], row["base"]) == ("r=8,alpha=16,targets=attention", "nf4")
    assert row["trained_parameters"] == 32 * 8 * (2 * 8192 + 2 * (4096 + 1024))
    assert row["frozen_parameters"] == llmbench.params("mixtral-8x7b").value.total
    assert "experts and routers have no adapters" in str(llmbench.memory("mixtral-8x7b", lora="r=8,targets=attention"))
    assert llmbench.memory("llama2-7b").rows[0]["lora"] is None
    shown = str(llmbench.flops("llama3.2-1b", phase="train", seq=64, lora="r=4,targets=o,dora", explain=True))
    for line in filter(lambda text: " = " in text and "×" in text and "tokens" in text, shown.splitlines()):
        assert "weights = " in line
    with pytest.raises(LLMBenchError, match="trains no adapters"):
        llmbench.flops("llama2-7b", lora="r=8")
    with pytest.raises(LLMBenchError, match="--lora r=8 is for training"):
        llmbench.memory("llama2-7b", phase="inference", lora="r=8")
