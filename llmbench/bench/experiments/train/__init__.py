"""How fast does a model train, and how much memory does it need?

Each candidate is a training step with one implementation. Some candidates also use recomputation or torch.compile.
Under torchrun, the candidates use FSDP2 or tensor parallelism. MFU and HFU are defined as in PaLM (arXiv 2204.02311,
appendix B) and Korthikanti 2022 (arXiv 2205.05198, section 6.3), with one difference: only the score pairs that the
mask allows are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from llmbench.bench.experiments.experiment import Ask, Column, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.experiments.train.sharding import DATA_PARALLEL, Sharding
from llmbench.bench.experiments.train.step import Trainer, TrainStep, verdicts
from llmbench.bench.extra_candidates.compiled import forget_compiled
from llmbench.bench.pieces.blocks import decoder_of, decoder_only
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.results.metrics import MachineLimits
from llmbench.errors import LayoutError, LLMBenchError, UnsupportedError
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.ranks import Ranks
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Row, Scalar
from llmbench.model.implementations import described
from llmbench.sizing.flops import Flops, count_flops
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import Memory
from llmbench.sizing.op import Op
from llmbench.sizing.recipe import PrecisionName, training_precision, update_bytes
from llmbench.sizing.training import training_memory
from llmbench.sizing.work import least_s, work
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated
from llmbench.spec.model import ModelSpec

__all__ = ["EXPERIMENT", "candidate", "derived", "group_of", "layout_of", "memory_of", "trainer_of"]


def layout_of(step: TrainStep, ranks: int) -> Layout:
    """Return the parallel layout of a step on `ranks` GPUs."""
    if step.sharding == "fsdp":
        return Layout(dp=ranks, zero=3 if ranks > 1 else 0)  # one rank has nothing to split
    if step.sharding == "ep":
        return Layout(dp=ranks, ep=ranks)
    return Layout(tp=ranks) if step.sharding == "tp" else Layout()


def workload(setting: Setting, step: TrainStep, ranks: int) -> Workload:
    """Return the workload of one GPU in a step. Each data-parallel rank has an equal part of the batch."""
    batch = setting.batch // ranks if step.sharding in DATA_PARALLEL else setting.batch
    return _workload(setting, batch, **described(step.impl).traits.computed("train"))


def _workload(setting: Setting, batch: int, **options: Any) -> Workload:
    formats: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype"), setting.dtype)
    return Workload.train(setting.seq_len, batch, **formats, **options)


def memory_of(setting: Setting, step: TrainStep, ranks: int) -> Memory:
    """Return the memory of the step, as `llmbench memory` predicts it. The weights, the gradients and the states of
    AdamW have the model's number format."""
    load = workload(setting, step, ranks)
    return training_memory(
        setting.spec,
        setting.seq_len,
        micro_batch=load.batch,
        layout=layout_of(step, ranks),
        precision=_precision(setting),
        recompute="full" if step.recompute else "none",
        attention=load.attention,
        kernels=load.kernels,
        loss=load.loss,
    )


def flops_of(setting: Setting, step: TrainStep) -> Flops:
    """Return the FLOPs of a step on the whole batch. Only the score pairs that the mask allows are counted."""
    needed = _workload(setting, setting.batch, attention=workload(setting, step, 1).attention)
    return count_flops(setting.spec, needed, recompute="full" if step.recompute else "none")


def exchanged_bytes(setting: Setting, step: TrainStep, ranks: int) -> int:
    """Return the mean bytes that a rank sends in the all-to-all exchanges of a layer in a step: the inputs and outputs
    of the experts, and the gradients of both. If the kinds of layers differ, return the largest number. 0: no layer has
    such an exchange."""
    by_layer: Counter[str] = Counter()
    for op in lower(setting.spec, workload(setting, step, ranks), layout_of(step, ranks)):
        by_layer[op.layer] += sum(each.bytes for each in op.collectives if each.kind == "all_to_all")
    return max(by_layer.values())


def bytes_of(setting: Setting) -> int:
    """Return the least bytes that one GPU must move in a step on the whole batch, with any implementation: the bytes of
    the forward pass, the backward pass and AdamW."""
    ops = lower(setting.spec, _workload(setting, setting.batch))
    return work(ops, "both").bytes + _updated_bytes(ops, setting)


def predicted_s(setting: Setting, step: TrainStep, ranks: int, references: ReferenceMeasurements) -> float:
    """Return the predicted seconds of a step, without communication.

    The prediction is the sum of three least times: the forward and backward pass of all ops, the second forward pass of
    the recomputed layers, and the memory traffic of AdamW.
    """
    layout, bound = layout_of(step, ranks), references.limits().least_s
    ops = lower(setting.spec, workload(setting, step, ranks), layout)
    recomputed = [op for op in ops if op.layer] if step.recompute else []
    updated = _updated_bytes(ops, setting) // (ranks if step.sharding == "fsdp" else 1)
    return least_s(ops, "both", bound) + least_s(recomputed, "forward", bound) + bound(0, updated)


def _updated_bytes(ops: Sequence[Op], setting: Setting) -> int:
    """Return the bytes that AdamW moves to update the weights of these ops."""
    recipe = training_precision(_precision(setting))
    return sum(op.count * update_bytes(op, "adamw", recipe) for op in ops)


def _precision(setting: Setting) -> PrecisionName:
    return "fp32" if setting.dtype == "fp32" else "bf16"


def group_of(setting: Setting, steps: Sequence[TrainStep], ask: Ask) -> Group:
    """Return the group that compares these steps at one setting. The batch of the setting is the batch of all ranks
    together. Steps with the same sharding share a model."""
    case: dict[str, Scalar] = {
        **(ask.shape.case or {"model": setting.spec.name}),
        "dtype": setting.dtype,
        "batch": setting.batch,
        "seq_len": setting.seq_len,
    }
    if ask.ranks.size > 1:
        case["ranks"] = ask.ranks.size

    def candidates(references: ReferenceMeasurements) -> list[Candidate]:
        forget_compiled()  # drop the compiled code of earlier groups
        trainer = cache(partial(trainer_of, setting, ask.ranks))
        return [candidate(setting, step, ask, references, trainer) for step in steps]

    alone = ask.ranks.size == 1
    return Group(
        case=case,
        names=[step.name for step in steps],
        candidates=candidates,
        pace=ask.pace if alone else ask.pace.fixed(),
        graphs=False,
        attention=True,
        # The energy is measured only in a run with one rank. An energy measurement repeats the call for one second. The
        # ranks would make different numbers of calls in this second, and then wait for each other forever.
        energy=alone and not ask.quick,
    )


def trainer_of(setting: Setting, ranks: Ranks, sharding: Sharding | None) -> Trainer:
    """Return the trainer of a setting: the model, sharded over the ranks, with its tokens and targets."""
    shape = setting.spec.vocab_size, setting.batch, setting.seq_len
    tokens, targets = (setting.tokens(*shape, seed=seed) for seed in (0, 1))
    return Trainer(decoder_of(setting)[0], tokens, targets, sharding=sharding, ranks=ranks)


def candidate(
    setting: Setting,
    step: TrainStep,
    ask: Ask,
    references: ReferenceMeasurements,
    trainer: Callable[[Sharding | None], Trainer],
) -> Candidate:
    """Return a training step as a candidate. `trainer(sharding)` returns the trainer that all steps with this sharding
    share."""
    ranks = ask.ranks.size
    try:
        flops, memory = flops_of(setting, step), memory_of(setting, step, ranks)
    except LayoutError as problem:
        return Candidate(name=step.name, prepare=partial(_refuse, str(problem)))
    # memory.peak_bytes includes the workspace of cuBLAS. A CPU has no such workspace, so it is subtracted there.
    workspace = 0 if ask.on_gpu else memory.parts_bytes["overhead"]
    extra: dict[str, Scalar] = {
        "tokens": setting.batch * setting.seq_len,
        "ranks": ranks,
        "hardware_flops": (flops.total + flops.recompute) // ranks,
    }
    exchanged = exchanged_bytes(setting, step, ranks)
    if exchanged:
        extra["exchanged_bytes"] = exchanged

    def build() -> tuple[Trainer, Call]:
        built = trainer(step.sharding)
        return built, built.call(step)

    def prepare() -> Call:
        built, call = ask.ranks.agreed(build)
        ask.ranks.agreed(call)  # AdamW allocates its states in the first step
        extra["input_bytes"] = built.nbytes
        return call

    return Candidate(
        name=step.name,
        prepare=prepare,
        check=partial(verdicts, setting, step, ask.ranks),
        need_bytes=memory.peak_bytes - workspace,
        work_flops=flops.total // ranks,
        work_bytes=bytes_of(setting) // ranks,
        predicted_s=predicted_s(setting, step, ranks, references),
        extra=extra,
        compiled=step.compiled,
    )


def _refuse(reason: str) -> Call:
    raise UnsupportedError(reason)


def derived(row: Row, limits: MachineLimits) -> Mapping[str, Scalar]:
    """Return MFU and HFU of a row, as shares of the datasheet's peak FLOP/s. Without a datasheet, return shares of the
    matrix-product rate that was measured on this machine."""
    hardware_flops = row.extra.get("hardware_flops")
    if not row.seconds or row.work_flops is None or not isinstance(hardware_flops, int):
        return {}
    peak = limits.datasheet or limits.limits_of(row)
    flops = {"mfu": row.work_flops, "hfu": hardware_flops}
    return {name: count / row.seconds / peak.flops_per_s for name, count in flops.items()}


def groups(ask: Ask) -> list[Group]:
    """Return one group per shape of the preset. The batch of all ranks together grows with the number of ranks."""
    if ask.dtype == "fp16":
        raise LLMBenchError("train: fp16 needs loss scaling, which is not implemented", hint="--dtype bf16 or fp32")
    spec, shapes = plan(ask)
    all_groups = []
    for index, (batch, seq_len) in enumerate(shapes):
        setting = ask.setting(spec, batch=batch * ask.ranks.size, seq_len=seq_len, direction="both")
        # Compiled steps run at the first shape only, because their compilation takes minutes.
        all_groups.append(group_of(setting, [step for step in steps(ask, spec) if not (step.compiled and index)], ask))
    return all_groups


def plan(ask: Ask) -> tuple[ModelSpec, tuple[tuple[int, int], ...]]:
    """Return the model and its shapes: those that the user chose, or those of the preset. A shape is a pair: the batch
    per rank, and the tokens per sequence."""
    spec, shapes = _preset(ask)
    if ask.shape.model is not None:
        spec = decoder_only(ask.shape.model)
    pairs = ask.pairs(shapes)
    for _, seq_len in pairs:
        refuse_beyond_positions(spec, seq_len)
    return spec, pairs


def _preset(ask: Ask) -> tuple[ModelSpec, tuple[tuple[int, int], ...]]:
    if ask.on_gpu:
        shapes = ((1, 2048),) if ask.quick else ((4, 2048), (1, 8192))
        return load_bundled("llama3.2-1b"), shapes
    if ask.quick:
        spec = model_of("tiny", 128, mixer=heads(4, 4, 32), ffn=Gated(intermediate_size=384), layers=4, vocab=1024)
        return spec, ((2, 128),)
    return load_bundled("smollm2-135m"), ((1, 256),)


def steps(ask: Ask, spec: ModelSpec) -> list[TrainStep]:
    """Return the steps that a preset compares: first each implementation, then steps with recomputation and compiled
    steps. Under torchrun, return sharded steps instead: a mixture of experts has expert parallelism instead of tensor
    parallelism. The quick preset has no compiled steps, because compilation
    takes minutes on a CPU."""
    plain, recomputed = (partial(TrainStep, recompute=recompute) for recompute in (False, True))
    if ask.ranks.size > 1:
        impls = ("sdpa", "fused") if ask.on_gpu else ("sdpa",)
        sharded = [plain(impl, sharding="fsdp") for impl in impls]
        other: Sharding = "ep" if spec.is_moe else "tp"
        return [*sharded, recomputed("sdpa", sharding="fsdp"), plain("sdpa", sharding=other)]
    if not ask.on_gpu:
        variants = [plain("standard"), plain("sdpa"), plain("flash"), recomputed("sdpa")]
        return variants if ask.quick else [*variants, plain("sdpa", compiled=True)]
    variants = [plain("standard"), plain("sdpa"), plain("flash"), plain("fused")]
    variants += [recomputed("sdpa"), recomputed("fused")]
    return variants if ask.quick else [*variants, plain("sdpa", compiled=True), recomputed("sdpa", compiled=True)]


EXPERIMENT = Experiment(
    question="how fast does a model train, and how much memory does it need?",
    groups=groups,
    baseline="sdpa",
    columns=(
        Column("mfu", "MFU", "percent", spare=0),
        Column("hfu", "HFU", "percent"),
        Column("exchanged_bytes", "all-to-all per layer", "mib"),
    ),
    derived=derived,
    processes="any",
    notes=(
        "a step: forward pass, loss, backward pass and AdamW, all in the model's number format, with learning rate 0",
        "MFU: the FLOPs that the model needs (forward and backward pass, only score pairs that the mask allows),"
        " divided by the FLOPs that the device can do in the time of the step at its peak rate. The peak rate is that"
        " of the datasheet; without a datasheet, it is the rate of matrix products in this run",
        "HFU: defined like MFU, but recomputed FLOPs count too. Recomputed are the scores in the backward pass of flash"
        " attention, and layers with recomputation",
        "predicted peak: the peak memory that `llmbench memory` predicts",
        "predicted time: the sum of the roofline times of all ops, without communication",
        "batch: the number of sequences of all ranks together. FSDP and expert parallelism (EP) give each rank an equal"
        " part of the batch. Tensor parallelism (TP) gives the whole batch to every rank",
        "all-to-all per layer: the bytes that a rank sends in a step, on average, to exchange the inputs and outputs of"
        " the experts of a layer, and their gradients",
    ),
)
