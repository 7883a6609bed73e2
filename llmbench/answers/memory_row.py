"""A row of `llmbench memory`: the memory that one GPU needs for a model, and the fields of the row."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from llmbench.answers.about import MODEL_FIELDS, WEIGHTS_FROM, AboutModel
from llmbench.answers.communication import COMMUNICATION
from llmbench.answers.formulas import FORMULAS
from llmbench.answers.timeline import STEPS
from llmbench.report.fields import Field, inside, records
from llmbench.sizing.devices import Change, DeviceFit, Run
from llmbench.sizing.dtypes import DType, KVDType
from llmbench.sizing.memory import CONTEXT_BYTES, Memory, ServingRun
from llmbench.sizing.recipe import Optimizer, PrecisionName
from llmbench.sizing.workload import Loss, Recompute
from llmbench.spec.catalog import devices_named, find_device_head

if TYPE_CHECKING:
    from llmbench.sizing.communication import Communication
    from llmbench.sizing.formula import Formula
    from llmbench.sizing.timeline import Step
    from llmbench.sizing.weight_recipe import WeightRecipe


class Verdict(NamedTuple):
    """The answer for one device.

    split: the options with which several of these devices can run the model, if one device cannot.
    changes: the changes with which as many of these devices can run the model.
    """

    fit: DeviceFit
    split: Change | None = None
    changes: tuple[Change, ...] = ()


class LoraSize(NamedTuple):
    """The adapters of a run: their text, the format of the frozen weights if it is not that of the precision, and the
    numbers of trained and of frozen parameters of the whole model."""

    text: str
    base: str | None
    trained: int
    frozen: int


class Sized(AboutModel, kw_only=True):
    """A model, the memory that one GPU needs for it, and the options of the command.

    An option that has no effect in the chosen phase is None.

    run: the settings from which the memory was computed.
    products: number format of the matrix products, which a device must be able to compute.
    weights: how the weights are stored in serving. None in training.
    asked: the names that the user gave to the devices of `verdicts`. Empty: these are the built-in devices that fit.
    formulas, steps: the formulas and the timeline, if the user asked for them.
    """

    run: Run
    memory: Memory
    products: DType
    weights: WeightRecipe | None
    precision: PrecisionName | None
    optimizer: Optimizer | None
    recompute: Recompute | None
    kernels: str | None
    loss: Loss | None
    dropout: bool | None
    micro_batches: int | None
    recipe: str | None
    lora: LoraSize | None
    kv_dtype: KVDType | None
    asked: tuple[str, ...]
    verdicts: list[Verdict]
    formulas: list[Formula] | None
    steps: list[Step] | None

    @property
    def notes(self) -> list[str]:
        """Notes on the names of devices and of the format of the weights, of the model, and on its towers."""
        chosen = {name: (find_device_head(name).name, devices_named(name)) for name in self.asked}
        several = [
            f"{name} is taken as {device}; the other devices of this name: {', '.join(sorted({*named} - {device}))}"
            for name, (device, named) in chosen.items()
            if device != name and len(named) > 1
        ]
        formats = [] if self.weights is None else self.weights.notes
        return [*several, *formats, *super().notes, *self._tower_notes]

    @property
    def _tower_notes(self) -> list[str]:
        """A note that says whether the figures include the parts for other modalities than text."""
        if self.weights is not None:
            included = ", ".join(tensors.kind for tensors in self.weights.towers())
            return [f"the weights include parts for other modalities than text: {included}"] if included else []
        named = ", ".join(tower.name for tower in self.spec.towers)
        return [f"the figures are those of training the text part, without {named}"] if named else []

    @property
    def fits_on(self) -> list[str]:
        """The names of the devices that can run the model. The device that it fills most comes first."""
        return [verdict.fit.device for verdict in self.verdicts if verdict.fit.fits]


DEVICES: tuple[Field[Verdict], ...] = (
    Field("device", value=lambda verdict: verdict.fit.device, description="name of the device"),
    Field(
        "fits",
        value=lambda verdict: verdict.fit.fits,
        description="whether the device can run the model: `missing_format` is null and `exceeds_bytes` is 0",
    ),
    Field(
        "filled",
        value=lambda verdict: verdict.fit.filled,
        description="share of the device's memory that the model needs; above 1 if the memory is too small",
    ),
    Field("memory_bytes", value=lambda verdict: verdict.fit.memory_bytes, description="memory of the device"),
    Field(
        "usable_bytes",
        value=lambda verdict: verdict.fit.usable_bytes,
        description="memory of the device without the headroom: 90% of it",
    ),
    Field(
        "exceeds_bytes",
        value=lambda verdict: verdict.fit.exceeds_bytes,
        description="bytes by which the model needs more than `usable_bytes`; 0 if it does not",
    ),
    Field(
        "missing_format",
        value=lambda verdict: verdict.fit.missing_format,
        description="number format of the matrix products, if the device's matrix units do not compute it; else null",
    ),
    Field(
        "changes",
        value=lambda verdict: [change.option for change in verdict.changes],
        description="if the memory is too small: the options with which the model fits on as many GPUs, each alone. In "
        "training, sequence parallelism, ZeRO, recomputation and smaller micro-batches with as many sequences per step "
        "are tried, several together if none suffices alone, and last tensor parallelism. In inference, it is the "
        "largest batch that fits",
    ),
    Field(
        "split_layout",
        value=lambda verdict: None if verdict.split is None else str(verdict.split.memory.layout),
        description="if one device is too small: the first of the layouts `dp=N,zero=3` (training) or `tp=N` "
        "(inference), N = 2, 4, 8, …, with which N of these devices can run the model. null: no such layout suffices, "
        "the device lacks the format, or `--layout` was used",
    ),
    Field(
        "split_options",
        value=lambda verdict: None if verdict.split is None else verdict.split.option,
        description="the options for these N devices: the layout, and full recomputation if no layout suffices alone",
    ),
    Field(
        "split_needed_bytes",
        value=lambda verdict: None if verdict.split is None else verdict.split.memory.needed_bytes,
        description="bytes that each of these N devices needs",
    ),
)
"""The fields of the objects in the field `devices`."""


FIELDS: tuple[Field[Sized], ...] = (
    *MODEL_FIELDS,
    *inside(
        "memory",
        Field("phase", description="value of `--phase`: `train` or `inference`"),
        Field("seq_len", description="value of `--seq`: tokens per sequence"),
        Field("micro_batch", description="value of `--batch`: number of sequences"),
    ),
    Field(
        "batch_is",
        value=lambda row: _batch_is(row.memory),
        description="text that says which sequences `micro_batch` counts",
    ),
    Field("precision", description="value of `--precision`, or its default; null in inference"),
    Field(
        "weights_format",
        value=lambda row: None if row.weights is None else row.weights.text,
        description="format of the weights, as `--weights` accepts it; null in training, where `precision` says it",
    ),
    Field(
        "weights_from",
        value=lambda row: None if row.weights is None else row.weights.origin,
        description=f"{WEIGHTS_FROM}; null in training",
    ),
    Field("optimizer", description="value of `--optimizer`; null in inference"),
    Field("recompute", description="value of `--recompute`; null in inference"),
    Field("kernels", description="value of `--kernels`; null in inference"),
    Field("loss", description="value of `--loss`; null in inference"),
    Field(
        "dropout",
        description="value of `--dropout`: whether embedding, hidden states and attention have it; null in inference",
    ),
    Field(
        "micro_batches",
        description="micro-batches per optimizer step: value of `--micro-batches`, or its default; null in inference",
    ),
    Field("recipe", description="value of `--recipe`; null in inference"),
    Field(
        "lora",
        value=lambda row: row.lora and row.lora.text,
        description="value of `--lora`, with its defaults: the adapters; null without adapters",
    ),
    Field(
        "base",
        value=lambda row: row.lora and row.lora.base,
        description="value of `--base`: the format of the frozen weights; null if it is that of the precision",
    ),
    Field(
        "trained_parameters",
        value=lambda row: row.lora and row.lora.trained,
        description="with `--lora`: parameters of all adapters of the model; else null",
    ),
    Field(
        "frozen_parameters",
        value=lambda row: row.lora and row.lora.frozen,
        description="with `--lora`: parameters of the model without adapters; else null",
    ),
    Field("kv_dtype", description="value of `--kv-dtype`, or its default; null in training"),
    *inside(
        "memory",
        Field(
            "layout", value=lambda row: str(row.memory.layout), description="value of `--layout`: the parallel layout"
        ),
        Field("num_gpus", value=lambda row: row.memory.layout.num_gpus, description="number of GPUs of the layout"),
        Field(
            "peak_bytes",
            "peak",
            "gib",
            description="peak memory of a training step or of serving, on the GPU with the highest peak",
        ),
        Field(
            "parts_bytes",
            description="bytes of each part at the peak: `weights`, `gradients`, `optimizer`, `activations`, `logits`, "
            "`kv_cache`, `overhead`; they add up to `peak_bytes`",
        ),
        Field(
            "full_bytes",
            description="bytes of all weights, gradients and optimizer states, and of the activations at the start of "
            "the backward pass. Not all of these bytes exist at the peak. With `zero=3` and a master copy, `weights` "
            "is 0, because the fp32 shards count as `optimizer`",
        ),
        Field(
            "steady_bytes",
            description="bytes that stay allocated between two steps: weights, optimizer states, library workspaces, "
            "gradients if they are never freed, and the last inputs of Megatron's pipeline stages; in inference, "
            "weights and cache",
        ),
        Field(
            "host_bytes",
            description="bytes of each part that the memory of the host stores, with `--recipe offload=…`",
        ),
        Field("reserved_bytes", description="memory that PyTorch's allocator reserves on the device"),
        Field(
            "context_bytes",
            value=lambda row: CONTEXT_BYTES,
            description="memory of a CUDA context; not part of `reserved_bytes`",
        ),
        Field(
            "moment",
            description="work that runs at the peak: the op whose backward pass runs, or `optimizer`, or `prefill`",
        ),
        Field("stage", description="index of the pipeline stage with the highest peak; the first stage is 0"),
        Field(
            "stage_peak_bytes",
            value=lambda row: list(row.memory.stage_peaks),
            description="peak memory of each pipeline stage",
        ),
        Field(
            "stage_steady_bytes",
            value=lambda row: list(row.memory.stage_steady),
            description="`steady_bytes` of each pipeline stage",
        ),
        Field(
            "fits_on",
            value=lambda row: row.fits_on,
            description="names of the devices that can run the model. Their matrix units compute the format of the "
            "products, and `reserved_bytes` + `context_bytes` is at most 90% of their memory. The device that the "
            "model fills most comes first. Without `--device`, all devices of `specs list --devices` are tried",
        ),
    ),
    Field(
        "devices",
        value=lambda row: records(DEVICES, row.verdicts),
        description="the devices of `--device`, or else the devices of `fits_on`: list of objects",
    ),
    Field(
        "communication",
        value=lambda row: records(COMMUNICATION, _communication(row)),
        description="what the GPU with the highest peak sends and receives in one optimizer step, without what "
        "recomputation repeats: list of objects. It is empty in inference, and for one GPU",
    ),
    Field(
        "formulas",
        value=lambda row: None if row.formulas is None else records(FORMULAS, row.formulas),
        description="with `--explain`: the formulas of the figures, as a list of objects; else null",
    ),
    Field(
        "timeline",
        value=lambda row: None if row.steps is None else records(STEPS, row.steps),
        description="with `--timeline`: the rows of one training step, as a list of objects; else null",
    ),
)


def _communication(row: Sized) -> list[Communication]:
    if isinstance(row.run, ServingRun) or row.memory.layout.num_gpus == 1:
        return []
    from llmbench.sizing.communication import step_communication  # only layouts need it

    return step_communication(row.run, row.run.stages[row.memory.stage])


def _batch_is(memory: Memory) -> str:
    """Return a text that says which sequences --batch counts."""
    if memory.phase == "train":
        return "sequences in a micro-batch of each data-parallel replica"
    return "sequences served at once by each data-parallel replica"
