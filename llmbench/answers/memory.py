"""Answers of `llmbench memory`: the memory that one GPU needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from llmbench.answers.memory_row import FIELDS, LoraSize, Sized, Verdict
from llmbench.answers.timeline import STEPS
from llmbench.errors import LLMBenchError
from llmbench.report.document import Document, Table, table
from llmbench.report.fields import Field, record, records
from llmbench.sizing.devices import (
    Run,
    changes_that_fit,
    device_fit,
    fitting_devices,
    memory_of,
    split_until_it_fits,
)
from llmbench.sizing.dtypes import DType, KVDType
from llmbench.sizing.flops import trained_parameters
from llmbench.sizing.memory import Memory, ServingRun
from llmbench.sizing.recipe import Optimizer, PrecisionName, Recipe, product_dtype
from llmbench.sizing.recompute import discarded
from llmbench.sizing.training import training_run
from llmbench.sizing.workload import Layout, Loss, Recompute
from llmbench.spec.catalog import find_device_head
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.adapters import Adapters
    from llmbench.sizing.formula import Formula
    from llmbench.sizing.timeline import Step
    from llmbench.sizing.training_run import TrainingRun
    from llmbench.sizing.weight_recipe import WeightRecipe

Phase = Literal["train", "inference"]
Kernels = Literal["fused", "eager", "standard"]
"""The kernels of a training step. See the help of `llmbench memory --kernels`."""


def sized(
    spec: ModelSpec,
    *,
    phase: Phase = "train",
    seq: int = 4096,
    batch: int = 1,
    precision: PrecisionName | None = None,
    weights: str | None = None,
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    layout: str = "",
    kernels: Kernels = "fused",
    loss: Loss = "plain",
    dropout: bool = False,
    micro_batches: int | None = None,
    recipe: str = "",
    lora: str = "",
    base: str = "",
    kv_dtype: KVDType | None = None,
    devices: Sequence[str] = (),
    explain: bool = False,
    timeline: bool = False,
) -> Sized:
    """Return a model with the memory that one GPU needs for it.

    devices: names of devices. Empty: those of `torch_devices`. explain: also return the formulas. timeline: also return
        the timeline of the training step.

    Raises LLMBenchError for a layout that is not valid, for an option that has no effect in the phase or on the model,
    and for a device that is unknown.
    """
    parallel = Layout.parse(layout)
    training = phase == "train"
    if training and kv_dtype is not None:
        raise LLMBenchError(
            f"--kv-dtype {kv_dtype}: a training step has no KV cache",
            hint="leave out --kv-dtype, or use --phase inference",
        )
    if training and weights is not None:
        raise LLMBenchError(
            f"--weights {weights}: a training step stores its weights as --precision says",
            hint=f"the frozen weights of adapters have --base {weights}"
            if lora
            else "use --precision, use --phase inference, or train adapters on frozen weights of this format: --lora "
            f"r=16 --base {weights}",
        )
    if not training:
        if precision is not None:
            known = precision if precision in ("fp8", "fp32") else "bf16"
            raise LLMBenchError(
                f"--precision {precision} is for training and changes nothing with --phase inference",
                hint=f"the format of served weights is --weights {known}",
            )
        _refuse_training_options(
            {
                "optimizer": optimizer,
                "recompute": recompute,
                "kernels": kernels,
                "loss": loss,
                "dropout": dropout,
                "micro-batches": micro_batches,
                "recipe": recipe,
                "lora": lora,
                "base": base,
            },
            parallel,
            timeline,
        )
    run: Run
    stored: WeightRecipe | None = None
    if training:
        precision = precision or "mixed"
        run = training_run(
            spec,
            seq,
            micro_batch=batch,
            layout=parallel,
            precision=precision,
            optimizer=optimizer,
            recompute=recompute,
            micro_batches=micro_batches,
            kernels="fused" if kernels == "fused" else "eager",
            loss=loss,
            dropout=dropout,
            recipe=Recipe.parse(recipe),
            adapters=_adapters(lora),
            base=base or None,
            attention="standard" if kernels == "standard" else "flash",
        )
        _refuse_missing_parts(run)
        products = "fp8" if run.recipe.fp8 != "none" else product_dtype(precision)
    else:
        from llmbench.spec.weights.on_hub import with_headers  # a training step stores no files

        spec = spec if weights is not None else with_headers(spec)
        run = ServingRun(
            spec=spec, seq_len=seq, batch=batch, layout=parallel, weights=weights, kv_dtype=kv_dtype or "bf16"
        )
        stored = run.weight_recipe()
        products = stored.products
    memory = memory_of(run)
    return Sized(
        spec=spec,
        doubts=memory.approximate,
        tokens=seq,
        run=run,
        memory=memory,
        products=products,
        weights=stored,
        precision=precision,
        optimizer=optimizer if training else None,
        recompute=recompute if training else None,
        kernels=kernels if training else None,
        loss=loss if training else None,
        dropout=dropout if training else None,
        micro_batches=None if isinstance(run, ServingRun) else run.passes,
        recipe=None if isinstance(run, ServingRun) else str(run.recipe),
        lora=_lora_size(run),
        kv_dtype=None if training else kv_dtype or "bf16",
        asked=tuple(devices),
        verdicts=_verdicts(run, memory, products, devices),
        formulas=_formulas(run, memory) if explain else None,
        steps=_steps(run, memory) if timeline else None,
    )


def _adapters(text: str) -> Adapters | None:
    if not text:
        return None
    from llmbench.sizing.adapters import Adapters  # only --lora needs it

    return Adapters.parse(text)


def _lora_size(run: Run) -> LoraSize | None:
    """Return the adapters of a run with the numbers of its parameters. None: the run has no adapters."""
    if isinstance(run, ServingRun) or run.adapters is None:
        return None
    trained, frozen = trained_parameters(run.spec, run.adapters)
    return LoraSize(str(run.adapters), None if run.base is None else run.base.text, trained, frozen)


def _verdicts(run: Run, memory: Memory, products: DType, names: Sequence[str]) -> list[Verdict]:
    """Return the answer for each of the named devices, or for each built-in device that can run the model."""
    if not names:
        return [Verdict(fit) for fit in fitting_devices(memory.needed_bytes, products)]
    verdicts = []
    for device in dict.fromkeys(map(find_device_head, names)):
        fit = device_fit(device, memory.needed_bytes, products)
        if fit.fits:
            verdicts.append(Verdict(fit))
            continue
        own = tuple(changes_that_fit(run, device, products))
        verdicts.append(Verdict(fit, split_until_it_fits(run, memory, device, products, recompute=not own), own))
    return verdicts


def _formulas(run: Run, memory: Memory) -> list[Formula]:
    from llmbench.sizing.memory_formulas import serving_formulas, training_formulas  # only --explain needs them

    return serving_formulas(run, memory) if isinstance(run, ServingRun) else training_formulas(run, memory)


def _steps(run: Run, memory: Memory) -> list[Step]:
    from llmbench.sizing.timeline import timeline  # only --timeline needs it

    assert not isinstance(run, ServingRun)
    return timeline(run, memory)


def document(rows: list[Sized], inputs: dict[str, Any], *, tables: bool = True) -> Document:
    """Return the answer for some models. `inputs`: the options. `tables`: whether people will read it."""
    answer = Document(
        command="memory", version=3, inputs=inputs, rows_key="models", rows=records(FIELDS, rows), blocks=[]
    )
    if tables:
        from llmbench.answers.memory_screen import blocks  # imported here, because JSON has no tables

        answer.blocks = blocks(rows)
        if any(row.steps for row in rows):
            answer.tables = [_steps_table(rows)]
    return answer


def _steps_table(rows: list[Sized]) -> Table:
    """Return the timelines as one table for CSV. Each step has the model and the workload of its row."""
    about = [field for field in FIELDS if field.name in ("model", "seq_len", "micro_batch")]
    items = [record(about, row) | record(STEPS, step) for row in rows for step in row.steps or ()]
    names = [field.name for field in about] + [field.name for field in STEPS]
    return table([Field[dict[str, Any]](name) for name in names], items)


_DEFAULTS = {"optimizer": "adamw", "recompute": "none", "kernels": "fused", "loss": "plain"}
"""The values of the training options that are named by words."""


def _refuse_training_options(options: dict[str, Any], layout: Layout, timeline: bool) -> None:
    """Raise LLMBenchError if an option is set that has no effect in inference."""
    for option, value in options.items():
        if value and value != _DEFAULTS.get(option):
            shown = f"--{option}" if value is True else f"--{option} {value}"
            raise LLMBenchError(
                f"{shown} is for training and changes nothing with --phase inference",
                hint=f"leave out --{option}, or use --phase train",
            )
    if timeline:
        raise LLMBenchError(
            "--timeline shows a training step, and serving has only one moment in this model: the prefill",
            hint="leave out --timeline, or use --phase train",
        )
    if layout.zero:
        served = replace(layout, zero=0)
        if layout.zero == 3 and layout.tp == 1:
            served = replace(served, tp=layout.dp, dp=1)
        raise LLMBenchError(
            f"layout zero={layout.zero}: ZeRO splits training states, which do not exist in serving",
            hint=f"tp, pp and ep split the weights of a served model, for example --layout {served}",
        )


def _refuse_missing_parts(run: TrainingRun) -> None:
    """Raise LLMBenchError for an item of the recipe about a part that no layer of the model has."""
    name, recipe = run.spec.name, run.recipe
    if recipe.imbalance != 1 and not run.spec.is_moe:
        raise LLMBenchError(f"recipe imbalance={recipe.imbalance:g}: {name} has no experts", hint="leave out this item")
    layers = [layer for stage in run.stages for chunk in stage.chunks for layer in chunk.layers]
    for module in recipe.recompute:
        if module == "core_attn":  # the same as --recompute selective, which is never refused in training
            continue
        if not any(part.part == module for layer in layers for part in discarded(layer, {module})):
            raise LLMBenchError(
                f"recipe recompute={module}: no layer of {name} has this part", hint=f"leave out {module}"
            )
