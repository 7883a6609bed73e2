"""The Python interface: `import llmbench as lb`, then `lb.params("llama2-7b")`.

Each function takes a model and returns an `Answer`. The model is a name, a path, or a spec that `load` returned. An
answer has the typed figures (`value`), rows for a DataFrame, and the JSON and the tables of the command with the same
name. A notebook shows the tables. Only `build` imports torch.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, get_args

from llmbench.answers import flops as flops_answers
from llmbench.answers import kvcache as kvcache_answers
from llmbench.answers import memory as memory_answers
from llmbench.answers import params as params_answers
from llmbench.errors import unknown
from llmbench.report.document import Document, View
from llmbench.sizing.dtypes import KVDType
from llmbench.sizing.recipe import Optimizer, PrecisionName
from llmbench.sizing.workload import Loss, Phase, Recompute
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.answers.fit_row import Fitted
    from llmbench.answers.mfu import Utilized
    from llmbench.model.decoder import Decoder
    from llmbench.sizing.flops import Flops
    from llmbench.sizing.kvcache import KVCache
    from llmbench.sizing.memory import Memory
    from llmbench.sizing.params import Parameters

__all__ = ["Answer", "Model", "build", "fit", "flops", "kv_cache", "load", "memory", "mfu", "params"]

Value = TypeVar("Value")
Model = str | ModelSpec
"""A name from `llmbench specs list`, a path to a spec or a config, `hf:organisation/name`, or a spec."""


class Answer(Generic[Value]):
    """The figures of one or several models.

    `values`: the typed figures of each model, in the order of the arguments.
    `rows`: one flat dict per model in base units, for example for `pandas.DataFrame(answer.rows)`. A key with a dot
        stands for a key of a nested object in the JSON.
    """

    def __init__(self, values: Sequence[Value], document: Document) -> None:
        self.values = list(values)
        self._document = document

    @property
    def value(self) -> Value:
        """The typed figures of the only model. Raises ValueError if the answer is about several models."""
        if len(self.values) != 1:
            raise ValueError(f"this answer is about {len(self.values)} models: use `values`")
        return self.values[0]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One flat dict per model."""
        return [dict(_flat(row)) for row in self._document.rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of the command as plain Python values."""
        import json

        content: dict[str, Any] = json.loads(self.to_json())
        return content

    def to_json(self) -> str:
        """Return the text that the command prints with `--format json`."""
        from llmbench.report.render import to_json

        return to_json(self._document)

    def __repr__(self) -> str:
        return self._rendered("table")

    def _repr_markdown_(self) -> str:
        return self._rendered("markdown")

    def _repr_html_(self) -> str:
        from llmbench.report.html import to_html

        return to_html(self._document)

    def _rendered(self, format: Literal["table", "markdown"]) -> str:
        from llmbench.report.render import render

        text = io.StringIO()
        render(self._document, format, text, View(notes=True))
        return text.getvalue()


def _flat(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def load(model: Model, changes: Mapping[str, Any] | None = None) -> ModelSpec:
    """Return the spec of a model. `changes` replaces fields, for example `{"num_key_value_heads": 8}`.

    Raises LLMBenchError if there is no such model or field, or if a value is not valid.
    """
    spec = model if isinstance(model, ModelSpec) else find_model(model)
    if not changes:
        return spec
    from llmbench.spec.override import override

    return override(spec, dict(changes))


def _one_of(option: str, value: str | None, choices: Any) -> None:
    """Raise UnknownNameError if the value of an option is not in the Literal type `choices`. None is a default."""
    if value is not None and value not in get_args(choices):
        raise unknown(option, str(value), get_args(choices))


def params(
    model: Model,
    *more: Model,
    by: params_answers.By = "component",
    weights: str | None = None,
    explain: bool = False,
) -> Answer[Parameters]:
    """Count the parameters of models, as `llmbench params` does. `weights`: format of the weights, for their bytes in
    files. `explain`: show the formulas with their numbers."""
    _one_of("by", by, params_answers.By)
    rows = params_answers.counted(map(load, (model, *more)), weights)
    inputs = {"models": [row.spec.name for row in rows], "weights": weights}
    return Answer([row.parameters for row in rows], params_answers.document(rows, inputs, by=by, explain=explain))


def flops(
    model: Model,
    *more: Model,
    phase: Phase = "prefill",
    seq: int = 4096,
    batch: int = 1,
    chunk: int | None = None,
    chunk_start: int | None = None,
    attention: flops_answers.ScoredPairs = "causal",
    recompute: Recompute = "none",
    lora: str = "",
    by: flops_answers.By = "component",
    explain: bool = False,
) -> Answer[Flops]:
    """Count the FLOPs of one step, as `llmbench flops` does. `seq`: tokens per sequence. `batch`: sequences.

    chunk: tokens of a prompt that a decoding step processes too. chunk_start: tokens of this prompt in the cache.

    Raises LLMBenchError for a value that is not valid, and for an option that has no effect in the phase.
    """
    _one_of("phase", phase, Phase)
    _one_of("recompute", recompute, Recompute)
    _one_of("attention", attention, flops_answers.ScoredPairs)
    _one_of("by", by, flops_answers.By)
    workload = flops_answers.workload_of(phase, seq, batch, masked_pairs=attention == "full")
    rows = flops_answers.counted(
        map(load, (model, *more)), workload, recompute, lora, by=by, chunk=chunk, chunk_start=chunk_start
    )
    inputs = {
        "models": [row.spec.name for row in rows],
        "phase": phase,
        "seq_len": seq,
        "batch": batch,
        "chunk": chunk,
        "chunk_start": chunk_start,
        "attention": attention,
        "recompute": recompute,
        "lora": lora,
        "by": by,
    }
    return Answer([row.flops for row in rows], flops_answers.document(rows, inputs, explain=explain))


def kv_cache(
    model: Model,
    *more: Model,
    seq: int = 4096,
    batch: int = 1,
    kv_dtype: KVDType = "bf16",
    block_size: int = 16,
    explain: bool = False,
) -> Answer[KVCache]:
    """Compute the size of KV caches and recurrent states, as `llmbench kvcache` does. `seq`: tokens per sequence.

    Raises LLMBenchError for a value that is not valid.
    """
    _one_of("kv_dtype", kv_dtype, KVDType)
    rows = kvcache_answers.cached(
        map(load, (model, *more)), seq, batch=batch, kv_dtype=kv_dtype, block_size=block_size, explain=explain
    )
    inputs = {
        "models": [row.spec.name for row in rows],
        "seq_len": seq,
        "batch": batch,
        "kv_dtype": kv_dtype,
        "block_size": block_size,
    }
    return Answer([row.cache for row in rows], kvcache_answers.document(rows, inputs))


def memory(
    model: Model,
    *,
    phase: memory_answers.Phase = "train",
    seq: int = 4096,
    batch: int = 1,
    precision: PrecisionName | None = None,
    weights: str | None = None,
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    layout: str = "",
    kernels: memory_answers.Kernels = "fused",
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
) -> Answer[Memory]:
    """Compute the peak memory of one GPU, as `llmbench memory` does. `layout`: for example "tp=8,pp=4,dp=2".

    recipe: for example "step=foreach,offload=states". lora: for example "r=16,targets=q,v". base: format of the frozen
    weights with `lora`, for example "nf4". devices: names of devices. Empty: all built-in devices. explain:
    show the formulas with their numbers. timeline: show the memory along the training step.

    Raises LLMBenchError for a value that is not valid, and for an option that has no effect in the phase.
    """
    _one_of("phase", phase, memory_answers.Phase)
    _one_of("precision", precision, PrecisionName)
    _one_of("optimizer", optimizer, Optimizer)
    _one_of("recompute", recompute, Recompute)
    _one_of("kernels", kernels, memory_answers.Kernels)
    _one_of("loss", loss, Loss)
    _one_of("kv_dtype", kv_dtype, KVDType)
    options: dict[str, Any] = {
        "precision": precision,
        "weights": weights,
        "optimizer": optimizer,
        "recompute": recompute,
        "layout": layout,
        "kernels": kernels,
        "loss": loss,
        "dropout": dropout,
        "micro_batches": micro_batches,
        "recipe": recipe,
        "lora": lora,
        "base": base,
        "kv_dtype": kv_dtype,
        "devices": list(devices),
    }
    spec = load(model)
    row = memory_answers.sized(spec, phase=phase, seq=seq, batch=batch, explain=explain, timeline=timeline, **options)
    inputs = {"model": row.spec.name, "phase": phase, "seq_len": seq, "micro_batch": batch, **options}
    return Answer([row.memory], memory_answers.document([row], inputs))


def fit(
    model: Model,
    *,
    device: str | Sequence[str] = (),
    gpus: int | None = None,
    layout: str = "",
    engine: str = "vllm",
    utilization: float | None = None,
    seq: int | Sequence[int] | None = None,
    users: int | Sequence[int] = 1,
    weights: str | Sequence[str] = (),
    kv_dtype: str | Sequence[str] | None = None,
    draft: Model | None = None,
    price: float | str | None = None,
    explain: bool = False,
) -> Answer[Fitted]:
    """Say whether a model fits on devices with an inference engine, as `llmbench fit` does.

    `values` has one item for each device, format of the weights, format of the cache, `seq` and `users`. Its `fit` has
    the budget, `capacity` and `longest`.

    device, weights, kv_dtype: one name or several. No device: all built-in devices, each with the smallest number of
    GPUs that suffices. seq, users: tokens per request and requests at the same time, one number or several. Without
    `seq`, it is 8192, or the context length if that is shorter. draft: model for speculative decoding. An answer about
    a spec has no `command`, because a spec can differ from the files of its name.

    Raises LLMBenchError for a value that is not valid, and for a format that the engine does not load or store.
    """
    from llmbench.answers import fit as answers

    spec, drafter = load(model), None if draft is None else load(draft)
    options: dict[str, Any] = {
        "devices": [device] if isinstance(device, str) else list(device),
        "gpus": gpus,
        "layout": layout,
        "engine": engine,
        "utilization": utilization,
        "seq": seq,
        "users": users,
        "weights": [weights] if isinstance(weights, str) else list(weights),
        "price": price,
    }
    rows = answers.fitted(
        spec,
        model=model if isinstance(model, str) else None,  # a spec can differ from the files of its name
        draft=drafter,
        draft_model=draft if isinstance(draft, str) else "",
        kv=kv_dtype,
        explain=explain,
        **options,
    )
    asked = options.pop("seq")
    inputs = {"model": spec.name, "seq_len": rows[0].question.seq if asked is None else asked, **options}
    inputs["kv_dtype"] = kv_dtype
    return Answer(rows, answers.document(rows, {**inputs, "draft": None if drafter is None else drafter.name}))


def mfu(
    model: Model,
    *,
    device: str,
    gpus: int = 1,
    seq: int = 4096,
    batch: int | None = None,
    step_s: float | None = None,
    tokens_per_s: float | None = None,
    mfu: float | None = None,
    tokens: float | None = None,
    precision: Literal["bf16", "fp16", "tf32", "fp32", "fp8", "fp4"] = "bf16",
    recompute: Recompute = "none",
    explain: bool = False,
) -> Answer[Utilized]:
    """Compute the utilization of a training run, as `llmbench mfu` does. `values` has one item for each convention.

    batch, step_s: sequences of all GPUs together and seconds per step. tokens_per_s: tokens per second of all GPUs
    together, in place of step_s. mfu: expected share of the peak, from 0 to 1, in place of a measured speed. tokens:
    tokens of the whole training.

    Raises LLMBenchError for a value that is not valid, and for a format that the device does not compute.
    """
    from llmbench.answers import mfu as answers

    _one_of("recompute", recompute, Recompute)
    options: dict[str, Any] = {
        "device": device,
        "gpus": gpus,
        "step_s": step_s,
        "tokens_per_s": tokens_per_s,
        "mfu": mfu,
        "batch": batch,
        "precision": precision,
        "recompute": recompute,
    }
    rows = answers.utilized(load(model), seq=seq, training_tokens=tokens, **options)
    inputs = {"model": rows[0].spec.name, "seq_len": seq, "tokens": tokens, **options}
    return Answer(rows, answers.document(rows, inputs, explain=explain))


def build(model: Model, **options: Any) -> Decoder:
    """Build the PyTorch model of a spec. `options`: `impl`, `device`, `dtype` and `seed` of `llmbench.model.build`."""
    from llmbench.model import build as build_model

    return build_model(load(model), **options)
