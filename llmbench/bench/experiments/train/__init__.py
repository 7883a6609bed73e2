"""How fast does a model train, and in how much memory: by each implementation, recomputed, compiled; under torchrun
with FSDP2 and tensor parallelism?

MFU and HFU as in PaLM (arXiv 2204.02311, appendix B) and Korthikanti 2022 (arXiv 2205.05198, section 6.3), with the
score pairs that the mask leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from llmbench.bench.compiling import forget_compiled
from llmbench.bench.experiments.experiment import Ask, Experiment, Group
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.experiments.train.sharding import Sharding
from llmbench.bench.experiments.train.step import Trainer, Way, verdicts
from llmbench.bench.pieces.blocks import decoder_of
from llmbench.bench.pieces.piece import Setting, computed
from llmbench.bench.results.metrics import Yardsticks
from llmbench.errors import LLMBenchError
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.ranks import Ranks
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Row, Scalar
from llmbench.sizing.flops import Flops, count_flops
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

__all__ = ["EXPERIMENT", "derived", "group_of", "layout_of", "memory_of", "rival", "trainer_of"]


def layout_of(way: Way, ranks: int) -> Layout:
    """How a way spreads a model over so many GPUs."""
    return {None: Layout(), "fsdp": Layout(dp=ranks, zero=3), "tp": Layout(tp=ranks)}[way.sharding]


def workload(setting: Setting, way: Way, ranks: int) -> Workload:
    """A step of one GPU: data-parallel ones have equal parts of the batch."""
    batch = setting.batch // ranks if way.sharding == "fsdp" else setting.batch
    return _step(setting, batch, **computed(way.impl, "train"))


def _step(setting: Setting, batch: int, **how: Any) -> Workload:
    formats: dict[str, Any] = dict.fromkeys(("weight_dtype", "activation_dtype"), setting.dtype)
    return Workload.train(setting.seq_len, batch, **formats, **how)


def memory_of(setting: Setting, way: Way, ranks: int) -> Memory:
    """What `llmbench memory` says of it: weights, gradients and AdamW's states in the format of the model."""
    of = workload(setting, way, ranks)
    return training_memory(
        setting.spec,
        setting.seq_len,
        micro_batch=of.batch,
        layout=layout_of(way, ranks),
        precision=_precision(setting),
        recompute="full" if way.recompute else "none",
        attention=of.attention,
        kernels=of.kernels,
    )


def flops_of(setting: Setting, way: Way) -> Flops:
    """Those of the whole batch, of the pairs that the mask leaves."""
    needed = _step(setting, setting.batch, attention=workload(setting, way, 1).attention)
    return count_flops(setting.spec, needed, recompute="full" if way.recompute else "none")


def bytes_of(setting: Setting) -> int:
    """What a step of the whole batch has to move on one GPU, whatever computes it: forward, backward and AdamW."""
    ops = lower(setting.spec, _step(setting, setting.batch))
    return work(ops, "both").bytes + _updated_bytes(ops, setting)


def predicted_s(setting: Setting, way: Way, ranks: int, references: ReferenceMeasurements) -> float:
    """The step's ops one after the other, layers once more where they are recomputed, and one pass over what AdamW
    updates. Communication is left out."""
    layout, bound = layout_of(way, ranks), references.limits().least_s
    ops = lower(setting.spec, workload(setting, way, ranks), layout)
    again = [op for op in ops if op.layer] if way.recompute else []
    updated = _updated_bytes(ops, setting) // (ranks if way.sharding == "fsdp" else 1)
    return least_s(ops, "both", bound) + least_s(again, "forward", bound) + bound(0, updated)


def _updated_bytes(ops: Sequence[Op], setting: Setting) -> int:
    """What AdamW moves of the weights of these ops."""
    recipe = training_precision(_precision(setting))
    return sum(op.count * update_bytes(op, "adamw", recipe) for op in ops)


def _precision(setting: Setting) -> PrecisionName:
    return "fp32" if setting.dtype == "fp32" else "bf16"


def group_of(setting: Setting, ways: Sequence[Way], ask: Ask) -> Group:
    """The ways at a setting, whose batch is that of all ranks together. Those spread alike share a model."""
    case: dict[str, Scalar] = {
        "model": setting.spec.name,
        "dtype": setting.dtype,
        "batch": setting.batch,
        "seq_len": setting.seq_len,
    }
    if ask.ranks.size > 1:
        case["ranks"] = ask.ranks.size

    def rivals(references: ReferenceMeasurements) -> list[Candidate]:
        forget_compiled()  # of other settings
        trainer = cache(partial(trainer_of, setting, ask.ranks))
        return [rival(setting, way, ask, references, trainer) for way in ways]

    names = [way.name for way in ways]
    alone = ask.ranks.size == 1
    return Group(
        experiment="train",
        case=case,
        names=names,
        rivals=rivals,
        pace=ask.pace if alone else ask.pace.settled(),
        graphs=False,
        attention=True,
        energy=alone and not ask.quick,  # ranks must all do as many calls, and a second is not as many for all
    )


def trainer_of(setting: Setting, ranks: Ranks, sharding: Sharding | None) -> Trainer:
    """A model of that setting and what it trains on, spread over the ranks."""
    shape = setting.spec.vocab_size, setting.batch, setting.seq_len
    tokens, targets = (setting.tokens(*shape, seed=seed) for seed in (0, 1))
    return Trainer(decoder_of(setting)[0], tokens, targets, sharding=sharding, ranks=ranks)


def rival(
    setting: Setting,
    way: Way,
    ask: Ask,
    references: ReferenceMeasurements,
    trainer: Callable[[Sharding | None], Trainer],
) -> Candidate:
    """A way to train; `trainer` gives the model that ways spread alike share."""
    ranks = ask.ranks.size
    flops, memory = flops_of(setting, way), memory_of(setting, way, ranks)
    workspace = 0 if ask.on_gpu else memory.parts_bytes["overhead"]  # cuBLAS's
    figures: dict[str, Scalar] = {
        "tokens": setting.batch * setting.seq_len,
        "ranks": ranks,
        "hardware_flops": (flops.total + flops.recompute) // ranks,
    }

    def ready() -> tuple[Trainer, Call]:
        made = trainer(way.sharding)
        return made, made.by(way)

    def prepare() -> Call:
        made, step = ask.ranks.agreed(ready)
        ask.ranks.agreed(step)  # AdamW makes its states
        figures["input_bytes"] = made.nbytes
        return step

    return Candidate(
        name=way.name,
        prepare=prepare,
        check=partial(verdicts, setting, way, ask.ranks),
        need_bytes=memory.peak_bytes - workspace,
        work_flops=flops.total // ranks,
        work_bytes=bytes_of(setting) // ranks,
        predicted_s=predicted_s(setting, way, ranks, references),
        extra=figures,
        compiled=way.compiled,
    )


def derived(row: Row, yardsticks: Yardsticks) -> Mapping[str, Scalar]:
    """MFU and HFU: of the datasheet's peak, of the machine's own products where there is none."""
    done = row.extra.get("hardware_flops")
    if not row.seconds or row.work_flops is None or not isinstance(done, int):
        return {}
    peak = yardsticks.datasheet or yardsticks.limits(row)
    return {name: flops / row.seconds / peak.flops_per_s for name, flops in (("mfu", row.work_flops), ("hfu", done))}


def groups(ask: Ask) -> list[Group]:
    """A model of a billion parameters on a GPU, a small one on a CPU; under torchrun a part of the batch for each
    rank."""
    if ask.dtype == "fp16":
        raise LLMBenchError("train: fp16 would need its losses scaled", hint="--dtype bf16 or fp32")
    spec, shapes = plan(ask)
    found = []
    for index, (batch, seq_len) in enumerate(shapes):
        setting = Setting(
            spec=spec, batch=batch * ask.ranks.size, seq_len=seq_len, dtype=ask.dtype, device=ask.device, of="both"
        )
        # compiling takes minutes: at the first shape alone
        found.append(group_of(setting, [way for way in ways(ask) if not (way.compiled and index)], ask))
    return found


def plan(ask: Ask) -> tuple[ModelSpec, tuple[tuple[int, int], ...]]:
    """The model of a preset, and the (batch of a rank, tokens) at which it trains."""
    if ask.on_gpu:
        shapes = ((1, 2048),) if ask.quick else ((4, 2048), (1, 8192))
        return load_bundled("llama3.2-1b"), shapes
    if ask.quick:
        spec = model_of("tiny", 128, mixer=heads(4, 4, 32), ffn=Gated(intermediate_size=384), layers=4, vocab=1024)
        return spec, ((2, 128),)
    return load_bundled("smollm2-135m"), ((1, 256),)


def ways(ask: Ask) -> list[Way]:
    """Every implementation, then what is to be had for memory and for time. Compiling takes a CPU minutes."""
    if ask.ranks.size > 1:
        impls = ("sdpa", "fused") if ask.on_gpu else ("sdpa",)
        spread = [Way(impl, sharding="fsdp") for impl in impls]
        return [*spread, Way("sdpa", recompute=True, sharding="fsdp"), Way("sdpa", sharding="tp")]
    if not ask.on_gpu:
        found = [Way("standard"), Way("sdpa"), Way("flash"), Way("sdpa", recompute=True)]
        return found if ask.quick else [*found, Way("sdpa", compiled=True)]
    found = [Way("standard"), Way("sdpa"), Way("flash"), Way("fused")]
    found += [Way("sdpa", recompute=True), Way("fused", recompute=True)]
    return found if ask.quick else [*found, Way("sdpa", compiled=True), Way("sdpa", recompute=True, compiled=True)]


EXPERIMENT = Experiment(
    name="train",
    question="how fast does a model train, and in how much memory?",
    groups=groups,
    baseline="sdpa",
    columns=(("mfu", "MFU", "percent"), ("hfu", "HFU", "percent")),
    derived=derived,
    processes="any",
    notes=(
        "a step: forward, loss, backward and AdamW, all in the model's own format; its learning rate is 0",
        "MFU: FLOPs that the model needs (forward, backward, the score pairs that the mask leaves) over what could be"
        " done in the time of a step: by the datasheet's peak, where there is none by the rate of a product here",
        "HFU: the same with what is computed again (scores in flash attention's backward, recomputed layers)",
        "analytic: the peak by `llmbench memory`; predicted: the roofline of every op, without communication",
        "batch: of all ranks; FSDP gives each an equal part, TP gives all of it to the group",
    ),
)
