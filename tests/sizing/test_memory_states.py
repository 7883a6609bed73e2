"""Weights, gradients and optimizer states by hand and by torch's own optimizers; pipelines by simulation."""

from __future__ import annotations

import pytest
import torch

from llmbench.errors import LayoutError
from llmbench.sizing.params import count_parameters
from llmbench.sizing.stages import in_flight
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

LLAMA = load_bundled("llama2-7b")
N = 6_738_415_616
STATES = ("weights", "gradients", "optimizer")

# Bytes a parameter


@pytest.mark.parametrize(
    ("precision", "optimizer", "bytes_per_parameter"),
    [
        ("mixed", "adamw", 16),  # ZeRO, section 3.1
        ("mixed-fp32-grads", "adamw", 18),  # Korthikanti, section 4.1; Megatron
        ("fp32", "adamw", 16),
        ("bf16", "adamw", 8),
        ("fp8", "adamw", 16),
        ("mixed", "sgd", 8),
        ("mixed", "sgd-momentum", 12),
        ("fp32", "sgd", 8),
        ("bf16", "sgd", 4),
        ("mixed", "adamw-8bit", 10 + 8 / 256),
    ],
)
def test_bytes_per_parameter(precision: str, optimizer: str, bytes_per_parameter: float) -> None:
    full = training_memory(LLAMA, 128, precision=precision, optimizer=optimizer).full_bytes
    assert sum(full[part] for part in STATES) == pytest.approx(bytes_per_parameter * N, rel=1e-6)


TINY = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def stepped(optimizer_class: type[torch.optim.Optimizer], *, only: str = "", **options: object) -> int:
    """Elements an optimizer of torch really keeps for the tiny model, after one step."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**TINY))
    chosen = [p for name, p in model.named_parameters() if only in name and (not only or p.dim() == 2)]
    for parameter in chosen:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizer_class(chosen, **options)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return sum(t.numel() for t in states if isinstance(t, torch.Tensor) and t.dim() > 0)


def state_elements(optimizer: str) -> int:
    """Elements of optimizer state that we count for it, in fp32."""
    spec = from_config(TINY, name="tiny")
    states = training_memory(spec, 16, precision="fp32", optimizer=optimizer).full_bytes["optimizer"]
    assert states % 4 == 0
    return states // 4


def test_adamw_keeps_what_torch_keeps() -> None:
    assert (
        state_elements("adamw")
        == stepped(torch.optim.AdamW, lr=1e-3)
        == 2 * count_parameters(from_config(TINY, name="t")).total
    )


def test_sgd_keeps_what_torch_keeps() -> None:
    assert state_elements("sgd") == stepped(torch.optim.SGD, lr=1e-3) == 0
    assert state_elements("sgd-momentum") == stepped(torch.optim.SGD, lr=1e-3, momentum=0.9)


def test_adafactor_keeps_what_torch_keeps() -> None:
    assert state_elements("adafactor") == stepped(torch.optim.Adafactor, lr=1e-3)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_keeps_what_torch_keeps() -> None:
    """Muon for the matrices of layers, AdamW for tables, head and norms, as its authors advise."""
    matrices = stepped(torch.optim.Muon, only="layers.", lr=1e-3)
    parameters = count_parameters(from_config(TINY, name="tiny")).total
    assert state_elements("muon") == matrices + 2 * (parameters - matrices)


# Data parallelism


def parts(layout: str, *, precision: str = "mixed-fp32-grads", spec: ModelSpec = LLAMA) -> dict[str, int]:
    """The bytes of `full_bytes` under a layout."""
    return training_memory(spec, 128, layout=Layout.parse(layout), precision=precision).full_bytes


def test_zero_divides_the_right_parts() -> None:
    whole, one, two = parts("dp=8"), parts("dp=8,zero=1"), parts("dp=8,zero=2")
    assert whole["weights"] == one["weights"] == two["weights"] == 2 * N
    assert whole["gradients"] == one["gradients"] == 4 * N
    assert whole["optimizer"] == 12 * N
    assert one["optimizer"] == two["optimizer"] == pytest.approx(12 * N / 8, rel=1e-6)
    assert two["gradients"] == pytest.approx(4 * N / 8, rel=1e-6)
    three = parts("dp=8,zero=3", precision="fp32")
    for part, bytes_per_parameter in (("weights", 4), ("gradients", 4), ("optimizer", 8)):
        assert three[part] == pytest.approx(bytes_per_parameter * N / 8, rel=1e-6)


def test_fsdp_keeps_its_fp32_weights_once() -> None:
    """Under FSDP with mixed precision the sharded fp32 weights are the master copy; bf16 ones pass by."""
    full = parts("dp=8,zero=3", precision="mixed")
    assert full["weights"] + full["optimizer"] == pytest.approx(12 * N / 8, rel=1e-6)


def test_context_parallel_ranks_share_states_too() -> None:
    assert parts("dp=4,cp=2,zero=1")["optimizer"] == parts("dp=8,zero=1")["optimizer"]


def test_experts_have_fewer_copies() -> None:
    """With ep ranks a GPU has experts/ep, and dp/ep GPUs share each: the optimizer's share is the same."""
    spec = load_bundled("mixtral-8x7b")
    experts = count_parameters(spec).components["experts"]
    rest = count_parameters(spec).total - experts
    full = parts("dp=16,ep=8,zero=1", spec=spec)
    assert full["weights"] == pytest.approx(2 * (rest + experts / 8), rel=1e-6)
    assert full["optimizer"] == pytest.approx(12 * (rest / 16 + experts / 16), rel=1e-6)


def test_tensor_parallel_divides_all_but_the_norms() -> None:
    norms = count_parameters(LLAMA).components["norms"]
    full = parts("tp=8")
    assert full["weights"] == 2 * ((N - norms) // 8 + norms)


# Pipelines


def orders(stages: int, micro_batches: int, chunks: int) -> list[list[tuple[str, int, int]]]:
    """Megatron's order of work for every stage: ("F" or "B", chunk, micro-batch); arXiv 2104.04473."""
    total = micro_batches * chunks
    schedule = []
    for stage in range(stages):
        if chunks == 1:
            warm_up = min(stages - stage - 1, total)
        else:
            warm_up = min(2 * (stages - stage - 1) + (chunks - 1) * stages, total)

        def unit(index: int, *, forward: bool) -> tuple[str, int, int]:
            group, inside = divmod(index, stages * chunks)
            chunk = inside // stages
            return (
                "F" if forward else "B",
                chunk if forward else chunks - 1 - chunk,
                group * stages + inside % stages,
            )

        def plain(index: int, *, forward: bool) -> tuple[str, int, int]:
            return ("F" if forward else "B", 0, index)

        make = plain if chunks == 1 else unit
        work = [make(index, forward=True) for index in range(warm_up)]
        for index in range(total - warm_up):
            work += [make(warm_up + index, forward=True), make(index, forward=False)]
        work += [make(index, forward=False) for index in range(total - warm_up, total)]
        schedule.append(work)
    return schedule


def most_stored(stages: int, micro_batches: int, chunks: int) -> list[int]:
    """Run every stage's order. Return the most chunks that each stage stored at once.

    A unit runs as soon as the units that it needs are done.

    Forward of a chunk needs the stage before it (or, on the first stage, the last one's chunk before);
    backward needs its own forward and the stage after it. An order that cannot be run would stand still.
    """
    queues = orders(stages, micro_batches, chunks)
    done: set[tuple[str, int, int]] = set()  # (kind, position of the chunk in the model, micro-batch)
    in_flight_now, most = [0] * stages, [0] * stages
    last = stages * chunks - 1
    while any(queues):
        ready = []
        for stage, queue in enumerate(queues):
            if not queue:
                continue
            kind, chunk, batch = queue[0]
            place = chunk * stages + stage
            if kind == "F":
                needs = {("F", place - 1, batch)} if place else set()
            else:
                needs = {("F", place, batch)} | ({("B", place + 1, batch)} if place < last else set())
            if needs <= done:
                ready.append((stage, kind, place, batch))
        assert ready, "the schedule stands still"
        for stage, kind, place, batch in ready:
            queues[stage].pop(0)
            done.add((kind, place, batch))
            in_flight_now[stage] += 1 if kind == "F" else -1
            most[stage] = max(most[stage], in_flight_now[stage])
    assert in_flight_now == [0] * stages
    return most


@pytest.mark.parametrize("stages", [2, 3, 4, 8])
@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_micro_batches_in_flight_by_simulation(stages: int, times: int, chunks: int) -> None:
    micro_batches = times * stages
    layout = Layout(pp=stages, interleave=chunks)
    ours = [in_flight(stage, layout, micro_batches) for stage in range(stages)]
    assert ours == most_stored(stages, micro_batches, chunks)


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 7])
def test_fewer_micro_batches_than_stages(micro_batches: int) -> None:
    ours = [in_flight(stage, Layout(pp=4), micro_batches) for stage in range(4)]
    assert ours == most_stored(4, micro_batches, 1)


def test_the_first_stage_saves_as_much_as_the_whole_model() -> None:
    """1F1B: p micro-batches of a p-th of the layers. Interleaved: 1 + (p - 1)/(p·v) times that."""
    one = training_memory(LLAMA, 2048, precision="mixed-fp32-grads").full_bytes["activations"]
    for pp in (2, 4, 8):
        staged = training_memory(LLAMA, 2048, layout=Layout(pp=pp), precision="mixed-fp32-grads")
        assert staged.stage == 0
        assert staged.full_bytes["activations"] == pytest.approx(one, rel=0.02)
        assert staged.stage_peaks[0] == staged.peak_bytes == max(staged.stage_peaks)
    woven = training_memory(LLAMA, 2048, layout=Layout(pp=4, interleave=2), precision="mixed-fp32-grads")
    assert woven.full_bytes["activations"] == pytest.approx(one * (1 + 3 / 8), rel=0.02)


def test_the_last_stage_can_be_the_fullest() -> None:
    """A vocabulary of a million: the logits need more memory than the first stage."""
    spec = override(LLAMA, {"vocab_size": 1_000_000})
    memory = training_memory(spec, 4096, layout=Layout(pp=4), recompute="full")
    assert memory.stage == 3
    assert memory.moment == "loss"
    assert memory.parts_bytes["logits"] > 4 * 4096 * 1_000_000


def test_layouts_that_do_not_fit_are_refused() -> None:
    for text in ("pp=33", "pp=8,interleave=5", "tp=3", "tp=64"):
        with pytest.raises(LayoutError):
            training_memory(LLAMA, 128, layout=Layout.parse(text))
    with pytest.raises(LayoutError):
        training_memory(load_bundled("mixtral-8x7b"), 128, layout=Layout(ep=3, dp=3))


def test_sequence_and_context_parallelism_divide_activations() -> None:
    one = training_memory(LLAMA, 4096).full_bytes["activations"]
    context = training_memory(LLAMA, 4096, layout=Layout(cp=4))
    assert context.full_bytes["activations"] == pytest.approx(one / 4, rel=0.02)
    both = training_memory(LLAMA, 4096, layout=Layout(tp=4, sp=True)).full_bytes["activations"]
    alone = training_memory(LLAMA, 4096, layout=Layout(tp=4)).full_bytes["activations"]
    assert one / 4 == pytest.approx(both, rel=0.05)
    assert alone > 1.5 * both
