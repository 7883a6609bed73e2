"""Answers of `llmbench fit`: whether a model fits on some GPUs with an engine, as rows and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from llmbench.answers.about import MODEL_FIELDS, AboutModel
from llmbench.answers.formulas import FORMULAS
from llmbench.errors import LLMBenchError
from llmbench.report.document import Document, table
from llmbench.report.fields import Field, records
from llmbench.sizing.serving.command import start_command
from llmbench.sizing.serving.fit import Change, Fit, Question, Sizer, changes, smallest_count, split
from llmbench.sizing.serving.shard import serving_layout
from llmbench.spec.catalog import DeviceHead, device_heads, find_device_head
from llmbench.spec.engine import Engine, find_engine
from llmbench.spec.model import ModelSpec

ENGINE = "vllm"
"""The default of --engine."""


class Fitted(AboutModel, kw_only=True):
    """A model on one device with one format of the weights.

    fit: the answer. None: no number of GPUs that was tried suffices. changes: what would make it fit.
    asked: whether the user named the device. price: price of one GPU per hour, or None. model: the MODEL of the user.
    """

    device: DeviceHead
    engine: Engine
    question: Question
    fit: Fit | None
    changes: list[Change]
    asked: bool
    price: float | None
    model: str
    explain: bool

    @property
    def fits(self) -> bool:
        """Whether the model fits."""
        return self.fit is not None and self.fit.fits

    @property
    def gpus(self) -> int | None:
        """The number of GPUs, or None if no number that was tried suffices."""
        return None if self.fit is None else self.fit.question.layout.num_gpus

    @property
    def cost(self) -> float | None:
        """The price of all GPUs per hour, or None."""
        return None if self.price is None or self.gpus is None else self.price * self.gpus

    @property
    def notes(self) -> list[str]:
        """The notes of the engine, of the memory of a device that the user named, and of the model."""
        return [*self.engine.notes, *(_memory_notes(self.device) if self.asked else []), *super().notes]


CHANGES: tuple[Field[Change], ...] = (
    Field("option", description="the option with its new value"),
    Field("what", description="what changes, in words"),
    Field("factor", description="by which factor the setting changes"),
    Field("capacity", value=lambda change: change.fit.capacity, description="number of users that then fit"),
    Field(
        "longest_tokens",
        value=lambda change: change.fit.longest,
        description="longest request, in tokens, that then fits alone",
    ),
)
"""The fields of the objects in the field `changes`."""


def _memory_notes(device: DeviceHead) -> list[str]:
    """Return a note if the memory that a program can use is only approximately known."""
    if device.gpu_memory_share < 1:
        return [
            f"macOS lets the GPU of {device.name} use {device.gpu_memory_share:.0%} of the memory by default; "
            "--utilization changes this share"
        ]
    if device.vendor == "nvidia" and device.cuda_memory_bytes is None:
        return [
            f"the total that a CUDA program sees on {device.name} is not known; the total of the driver or of the "
            "datasheet is used, which is slightly larger"
        ]
    return []


def _of(name: str) -> Any:
    return lambda row: None if row.fit is None else getattr(row.fit, name)


def _tightest(row: Fitted, name: str) -> Any:
    if row.fit is None:
        return None
    own = row.fit.tightest
    return {
        "cache_bytes": own.cache,
        "cache_tokens": own.pool.tokens,
        "request_bytes": own.pool.request_bytes(row.question.seq),
        "total_bytes": own.device.total_bytes,
        "usable_bytes": own.usable,
        "terms_bytes": {term.term: term.value for term in own.terms},
        "weights": own.shard.format,
        "batched_tokens": own.batched_tokens or None,
        "sequences": own.sequences or None,
    }[name]


def _budget(name: str, description: str) -> Field[Fitted]:
    return Field(name, value=lambda row: _tightest(row, name), description=description)


FIELDS: tuple[Field[Fitted], ...] = (
    *MODEL_FIELDS,
    Field("engine", value=lambda row: row.engine.spec.name, description="name of the engine"),
    Field(
        "engine_version",
        value=lambda row: row.engine.version or None,
        description="version whose constants are used; null if the engine has no versions",
    ),
    Field("device", "device", value=lambda row: row.device.name, description="name of the device"),
    Field(
        "fits",
        "fits",
        description="whether all users fit, the engine runs on the device, and the device computes the format",
    ),
    Field("gpus", "GPUs", "count", description="number of GPUs; null if no number that was tried suffices"),
    Field(
        "layout",
        value=lambda row: None if row.fit is None else str(row.fit.question.layout),
        description="layout of the GPUs",
    ),
    _budget("weights", "format of the weights, as `--weights` reads it"),
    Field(
        "kv_dtype",
        value=lambda row: row.question.kv,
        description="value of `--kv-dtype`; null: the format of the activations",
    ),
    Field("seq_len", value=lambda row: row.question.seq, description="value of `--seq`: tokens per request"),
    Field("users", value=lambda row: row.question.users, description="value of `--users`: requests at the same time"),
    Field(
        "capacity",
        "users",
        "count",
        value=_of("capacity"),
        description="number of requests of `seq_len` tokens that fit at the same time, on all GPUs; at most the "
        "engine's limit of sequences",
    ),
    Field(
        "longest_tokens",
        "longest request",
        "count",
        value=_of("longest"),
        spare=1,
        description="longest request, in tokens, that fits alone; 134,217,728 stands for no limit",
    ),
    Field(
        "longest_tokens_each",
        value=_of("longest_each"),
        description="longest length, in tokens, that each of `users` requests can have; 0 if none fits",
    ),
    Field(
        "filled",
        "filled",
        "percent",
        value=_of("filled"),
        description="share of `usable_bytes` that weights, activations and the caches of `users` requests take",
    ),
    _budget("total_bytes", "memory of one GPU"),
    _budget("usable_bytes", "memory of one GPU that the engine may use"),
    _budget("terms_bytes", "terms of the budget of the GPU with the smallest cache; they add up to `total_bytes`"),
    _budget("cache_bytes", "memory of the cache on that GPU; negative if the other terms are too large"),
    _budget("cache_tokens", "number of tokens that the engine prints as the size of its cache"),
    _budget("request_bytes", "memory that one request of `seq_len` tokens takes in the cache of that GPU"),
    _budget("batched_tokens", "largest number of tokens in one step; null: the engine has no limit"),
    _budget("sequences", "largest number of sequences in one step; null: the engine has no limit"),
    Field(
        "missing_format",
        value=_of("missing_format"),
        description="number format of the matrix products, if the device does not compute it; else null",
    ),
    Field(
        "changes",
        value=lambda row: records(CHANGES, row.changes),
        description="if the model does not fit: the changes of one setting with which it does, the nearest one first",
    ),
    Field(
        "command",
        value=lambda row: None if row.fit is None else start_command(row.spec, row.model, row.fit),
        description="the command that starts the engine with these settings; null for an ideal engine",
    ),
    Field(
        "price_per_hour",
        "price per hour",
        "number",
        value=lambda row: row.cost,
        sparse=True,
        description="`--price` × `gpus`; null without `--price`",
    ),
    Field(
        "formulas",
        value=lambda row: records(FORMULAS, row.fit.tightest.terms) if row.explain and row.fit else None,
        description="with `--explain`: the formulas of the terms, as a list of objects; else null",
    ),
)


def fitted(
    spec: ModelSpec,
    *,
    model: str = "",
    devices: Sequence[str] = (),
    gpus: int | None = None,
    layout: str = "",
    engine: str = ENGINE,
    utilization: float | None = None,
    seq: int = 8192,
    users: int = 1,
    weights: Sequence[str] = (),
    kv: str | None = None,
    price: float | None = None,
    explain: bool = False,
) -> list[Fitted]:
    """Return one row per device and format of the weights.

    model: the name with which the engine finds the model. devices: names of devices. Empty: all built-in devices, each
        with the smallest number of GPUs that suffices. weights: formats. Empty: the published files.

    Raises LLMBenchError for a wrong name, layout or number.
    """
    if price is not None and not 0 <= price < math.inf:
        raise LLMBenchError(f"--price {price}: must be a number of at least 0")
    chosen = find_engine(engine)
    parallel = serving_layout(layout)
    if layout and gpus is not None and parallel.num_gpus != gpus:
        raise LLMBenchError(
            f"--layout {layout} is for {parallel.num_gpus} GPUs, and --gpus says {gpus}", hint="leave out --gpus"
        )
    sizer = Sizer(spec)
    heads = list(dict.fromkeys(map(find_device_head, devices))) or list(device_heads())
    rows = []
    for device in heads:
        for format in weights or (None,):
            question = Question(
                engine=chosen,
                device=device,
                layout=parallel,
                seq=seq,
                users=users,
                weights=format,
                kv=kv,
                utilization=utilization,
            )
            fit = _answer(sizer, question, fixed=bool(layout), gpus=gpus, smallest=not devices)
            rows.append(
                Fitted(
                    spec=spec,
                    doubts=() if fit is None else (*fit.tightest.shard.doubts, *fit.doubts(moe=spec.is_moe)),
                    tokens=seq,
                    device=device,
                    engine=chosen,
                    question=question,
                    fit=fit,
                    changes=changes(sizer, fit) if devices and fit is not None and not fit.fits else [],
                    asked=bool(devices),
                    price=price,
                    model=model or spec.name,
                    explain=explain,
                )
            )
    return rows


def _answer(sizer: Sizer, question: Question, *, fixed: bool, gpus: int | None, smallest: bool) -> Fit | None:
    if not fixed and gpus is None and smallest:
        return smallest_count(sizer, question)
    layout = question.layout if fixed else split(sizer, question, gpus or 1)
    return sizer.fit(msgspec.structs.replace(question, layout=layout))


def document(rows: list[Fitted], inputs: dict[str, Any], *, tables: bool = True) -> Document:
    """Return the answer for a model. `inputs`: the options. `tables`: whether people will read it."""
    answer = Document(command="fit", inputs=inputs, rows_key="fits", rows=records(FIELDS, rows), blocks=[])
    if tables:
        from llmbench.answers.fit_screen import blocks  # imported here, because JSON has no tables

        answer.blocks = blocks(rows)
        answer.tables = [table(FIELDS, rows)]
    return answer
