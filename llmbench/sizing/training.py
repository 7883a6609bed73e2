"""Memory of a training step, computed op by op.

In the forward pass, each op adds the activations that it saves. In the backward pass, each op frees its activations and
adds the gradients of its weights. The peak is the moment with the most allocated bytes. The peak is at the loss if the
vocabulary is large, at the last feed-forward if the sequence is long, and at the end of the backward pass if the
sequence is short. llmbench computes the peak of each pipeline stage and reports the highest one.

Sources: Korthikanti 2022 (arXiv 2205.05198) for saved activations and pipeline schedules. Narayanan 2021 (arXiv
2104.04473) for interleaving. ZeRO (arXiv 1910.02054) for sharded states. If a figure follows the behaviour of PyTorch
or Transformer Engine, the docstring of its function says so.

Not counted: the allocator's rounding, most of its fragmentation (see `Memory.reserved_bytes`), and scratch memory of
kernels that is not in the op table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.memory import Memory, highest_stage
from llmbench.sizing.peak import stage_peak
from llmbench.sizing.recipe import (
    PLAIN_RECIPE,
    Optimizer,
    Precision,
    PrecisionName,
    Recipe,
    check_recipe,
    training_precision,
)
from llmbench.sizing.training_run import TrainingRun, training_stages
from llmbench.sizing.workload import Layout, Loss, Recompute, Workload
from llmbench.spec.mixer import branches
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.adapters import Adapters
    from llmbench.sizing.weight_recipe import WeightRecipe

HOPPER = 9.0
"""The compute capability of NVIDIA's H100, H200 and GH200."""


def training_memory(spec: ModelSpec, seq_len: int, **options: Any) -> Memory:
    """Compute the peak memory of a training step. `options`: see `training_run`.

    Raises LayoutError if the model cannot be divided as the layout says.
    """
    return run_memory(training_run(spec, seq_len, **options))


def run_memory(run: TrainingRun) -> Memory:
    """Compute the peak memory of one step of a training run, on the pipeline stage with the highest peak."""
    memory = highest_stage(stage_memories(run))
    return msgspec.structs.replace(memory, approximate=training_doubts(run.spec))


def stage_memories(run: TrainingRun) -> list[Memory]:
    """Return the memory of each pipeline stage. Megatron logs the memory of the last one."""
    return [stage_peak(run, stage) for stage in run.stages]


def training_run(
    spec: ModelSpec,
    seq_len: int,
    *,
    micro_batch: int = 1,
    micro_batches: int | None = None,
    layout: Layout | None = None,
    precision: PrecisionName = "mixed",
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    attention: Literal["flash", "standard"] = "flash",
    kernels: Literal["fused", "eager"] = "fused",
    loss: Loss = "plain",
    dropout: bool = False,
    recipe: Recipe = PLAIN_RECIPE,
    compute_capability: float = HOPPER,
    adapters: Adapters | None = None,
    base: str | None = None,
) -> TrainingRun:
    """Return the settings of a training run. The optimizer states already exist, so it is not the first step.

    micro_batches: number of forward and backward passes per optimizer step. If it is more than one, gradients stay
        allocated between the passes. None: one micro-batch. With more than one pipeline stage: twice as many
        micro-batches as stages.
    loss, dropout: see Workload. recipe: further settings.
    compute_capability: compute capability of the GPU, on which the workspaces of CUDA's libraries depend.
    adapters: adapters that are trained in place of the weights of the model, which are frozen. None: no adapters.
    base: format of the frozen weights, such as `nf4` (see `specs/formats/`). None: the format of the weights that the
        precision names.

    Raises LayoutError if the model cannot be divided as the layout says, and SpecError if settings contradict each
    other, or if the model does not have the targets of the adapters.
    """
    layout = layout or Layout()
    formats = training_precision(precision)
    passes = micro_batches or (1 if layout.pp == 1 else 2 * layout.pp)
    check_recipe(recipe, optimizer, formats)
    _check_step(recipe, layout, formats, passes, base)
    if recipe.recompute and recompute not in ("none", "selective"):
        named = "+".join(recipe.recompute)
        raise SpecError(
            f"recipe recompute={named}: --recompute {recompute} computes these parts again already",
            hint="leave out one of them",
        )
    workload = Workload.train(
        seq_len,
        micro_batch,
        weight_dtype=formats.weights,
        activation_dtype=formats.activations,
        attention=attention,
        kernels=kernels,
        loss=loss,
        dropout=dropout,
        batch_first=recipe.batch_first,
        weights_before_down=recipe.megatron,
        imbalance=recipe.imbalance,
        fp8=recipe.fp8 != "none",
        frozen_head=adapters is not None,
    )
    frozen = _frozen_recipe(spec, adapters, base)
    return TrainingRun(
        spec=spec,
        workload=workload,
        layout=layout,
        formats=formats,
        optimizer=optimizer,
        recipe=recipe,
        recompute=recompute,
        passes=passes,
        compute_capability=compute_capability,
        stages=training_stages(spec, workload, layout, recipe.mtp, adapters, frozen),
        adapters=adapters,
        base=frozen,
    )


def _frozen_recipe(spec: ModelSpec, adapters: Adapters | None, base: str | None) -> WeightRecipe | None:
    """Return how the frozen weights are stored. Raises SpecError for a format of weights that are all trained."""
    if base is None:
        return None
    if adapters is None:
        raise SpecError(
            f"base {base[:40]}: only frozen weights can be stored in another format than the precision says",
            hint="add adapters, for example --lora r=16,targets=all-linear",
        )
    if base.endswith(".gguf"):
        raise SpecError(f"base {base[:200]}: llmbench sizes no adapters of a GGUF file", hint="for example --base nf4")
    from llmbench.sizing.weight_recipe import WeightRecipe  # only runs with a quantised base need it

    return WeightRecipe(spec, base)


def _check_step(recipe: Recipe, layout: Layout, formats: Precision, passes: int, base: str | None) -> None:
    """Raise SpecError for settings that contradict the layout, the number of micro-batches or the frozen weights."""
    if recipe.step == "backward" and (passes > 1 or formats.gradients != formats.weights):
        raise SpecError(
            "recipe step=backward: needs one micro-batch per step, and gradients in the format of the weights",
            hint="use --micro-batches 1 without pp, and --precision mixed, bf16 or fp32",
        )
    if "weights" in recipe.offload and layout.zero != 3:
        raise SpecError("recipe offload=weights: needs zero=3, because FSDP's shards are what the host stores")
    if recipe.table_units and layout.zero != 3:
        raise SpecError("recipe table_units: needs zero=3, because it says what FSDP gathers")
    for item in ("sequential_experts", "deterministic"):
        if getattr(recipe, item) and not recipe.megatron:
            raise SpecError(f"recipe {item}: changes nothing without framework=megatron")
    if recipe.fp8 != "none" and base is not None:
        raise SpecError(f"recipe fp8={recipe.fp8}: contradicts base {base[:40]}, which says how the weights are stored")
    if recipe.fp8 != "none" and layout.zero == 3 and not (recipe.megatron and recipe.fp8 == "primary"):
        raise SpecError(
            f"recipe fp8={recipe.fp8}: llmbench does not know the fp8 copies of gathered weights (zero=3)",
            hint="it knows them for framework=megatron,fp8=primary",
        )


def training_doubts(spec: ModelSpec) -> tuple[str, ...]:
    """Return the reasons why the predicted training memory of this model is approximate.

    An empty tuple means that the prediction is exact. tests/model/test_trace.py compares the prediction for such models
    with a trace of the PyTorch model.
    """
    layers = [*spec.layers.values(), *(spec.encoder.layers.values() if spec.encoder is not None else ())]
    mixers = [mixer for layer in layers for mixer in branches(layer.mixer)]
    doubts = list(dict.fromkeys(mixer.training_doubt for mixer in mixers if mixer.training_doubt is not None))
    encoder_extra = spec.encoder.extra if spec.encoder is not None else ()
    if spec.extra or encoder_extra or any(layer.extra for layer in layers) or spec.hyper_connections is not None:
        doubts.append("llmbench does not count all activations that extra weights and hyper-connections save")
    return tuple(doubts)
