"""A row of `llmbench fit`: a model on some GPUs with an engine, and the fields of the row."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmbench.answers.about import MODEL_FIELDS, AboutModel
from llmbench.answers.formulas import FORMULAS
from llmbench.report.fields import Field, records
from llmbench.report.units import Unit, word_list
from llmbench.sizing.serving.changes import Change
from llmbench.sizing.serving.command import Start, start_commands
from llmbench.sizing.serving.fit import Fit, Question
from llmbench.sizing.serving.layouts import SERVER, kinds, layout_text
from llmbench.spec.catalog import DeviceHead
from llmbench.spec.engine import Engine
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.formats import alias_note


class Fitted(AboutModel, kw_only=True):
    """A model on one device with one format of the weights.

    fit: the answer. None: no number of GPUs that was tried suffices. changes: what would make it fit.
    asked: whether the user named the device.
    fixed: whether the user gave the number of GPUs. chosen: whether llmbench chose the layout.
    price: price of one GPU per hour, or None.
    files: name with which an engine finds the weights. None: there are no files, because the user described the model.
    draft: the model for speculative decoding, or None. draft_files: name with which an engine finds its weights.
    """

    device: DeviceHead
    engine: Engine
    question: Question
    fit: Fit | None
    changes: list[Change]
    asked: bool
    fixed: bool
    chosen: bool
    price: float | None
    files: str | None
    draft: ModelSpec | None
    draft_files: str | None
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
    def layout(self) -> str | None:
        """The layout of the GPUs, or None if no number that was tried suffices."""
        return None if self.fit is None else layout_text(self.fit.question.layout)

    @property
    def tried(self) -> str:
        """The ways to divide the model that llmbench tried, as `tp, tp × dp and tp × pp`, or "" if it chose none."""
        if not self.chosen or self.gpus == 1:
            return ""
        return word_list([kind.name for kind in kinds(self.spec, self.engine, SERVER)])

    @property
    def cost(self) -> float | None:
        """The price of all GPUs per hour, or None."""
        return None if self.price is None or self.gpus is None else self.price * self.gpus

    @property
    def start(self) -> Start | None:
        """The commands that start the engine with these settings, or None if there are none."""
        if self.fit is None or self.files is None or not self.fit.runs:
            return None
        return start_commands(self.files, self.fit, draft=self.draft_files)

    @property
    def command(self) -> str | None:
        """The command that starts the engine, on the first of several servers, or None if there is none."""
        return None if self.start is None else self.start.command

    @property
    def cannot_run(self) -> str | None:
        """Why the engine does not run on the device, or None if it does."""
        if self.fit is None or self.fit.runs:
            return None
        missing = self.fit.missing_format
        if missing is None:
            return f"llmbench has no profile of {self.engine.spec.title} on devices of {self.device.vendor.title()}"
        units = f"its matrix units do not compute {missing}"
        if missing == self.fit.tightest.shard.activations:
            return units
        return f"{units}, and llmbench knows no kernel of {self.engine.title} that converts the weights of this model"

    @property
    def constants(self) -> list[UsedConstant]:
        """The constants of the engine on this device, with their sources."""
        engine = self.engine if self.fit is None else self.fit.tightest.engine
        return [UsedConstant(key, engine.get(key, device=self.device), engine.source(key)) for key in engine.constants]

    @property
    def notes(self) -> list[str]:
        """The notes of the engine, of the format and the device that the user named, and of the model."""
        named = alias_note(self.question.weights or "")
        about = [*([named] if named else []), *(_memory_notes(self.device) if self.asked else [])]
        return [*self.engine.notes, *about, *super().notes]


class UsedConstant(NamedTuple):
    """A constant of an engine, its value on a device, and a description of its source."""

    constant: str
    value: float
    source: str


CONSTANTS: tuple[Field[UsedConstant], ...] = (
    Field("constant", "constant", description="name of the constant, as `--engine` reads it"),
    Field(
        "value",
        "value",
        text=lambda used: f"{used.value:,.10g}" if used.value == int(used.value) else f"{used.value:g}",
        description="its value on the device",
    ),
    Field("source", "source", wraps=True, description="where the value comes from"),
)
"""The fields of the objects in the field `constants`."""


CHANGES: tuple[Field[Change], ...] = (
    Field("option", description="the options with their new values"),
    Field("what", description="what changes, in words"),
    Field("factor", description="by which factor the setting changes; of two settings, the product of their factors"),
    Field(
        "other_files",
        description="whether the change needs files with the weights in another format than that of the published ones",
    ),
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
    return []


def _fit_field(
    name: str, heading: str | None = None, unit: Unit = "text", *, key: str = "", spare: int = 0, description: str
) -> Field[Fitted]:
    """Return a field with an attribute of the fit. key: name of the field, if it is not that of the attribute."""
    return Field(
        key or name,
        heading,
        unit,
        value=lambda row: None if row.fit is None else getattr(row.fit, name),
        spare=spare,
        description=description,
    )


def _budget_figure(row: Fitted, name: str) -> Any:
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
    return Field(name, value=lambda row: _budget_figure(row, name), description=description)


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
    Field("layout", "layout", description="layout of the GPUs; null if no number that was tried suffices"),
    Field(
        "tried",
        value=lambda row: row.tried or None,
        description="ways to divide the model among several GPUs that llmbench tried; null with `--layout` or one GPU",
    ),
    _budget("weights", "format of the weights, as `--weights` reads it"),
    Field(
        "kv_dtype",
        value=lambda row: row.question.kv,
        description="value of `--kv-dtype`; null: the format of the activations",
    ),
    Field("seq_len", value=lambda row: row.question.seq, description="value of `--seq`: tokens per request"),
    Field("users", value=lambda row: row.question.users, description="value of `--users`: requests at the same time"),
    _fit_field(
        "capacity",
        "most users",
        "count",
        description="number of requests of `seq_len` tokens that fit at the same time, on all GPUs; at most the "
        "engine's limit of sequences",
    ),
    _fit_field(
        "longest",
        "longest request",
        "count",
        key="longest_tokens",
        spare=2,
        description="longest request, in tokens, that fits alone; at most the context length of the model; "
        "134,217,728 if the model has no context length and the cache no limit",
    ),
    _fit_field(
        "longest_each",
        key="longest_tokens_each",
        description="longest length, in tokens, that each of `users` requests can have, with the same limit; 0 if none "
        "fits",
    ),
    _fit_field(
        "filled",
        "filled",
        "percent",
        description="share of `usable_bytes` that weights, activations and the caches of `users` requests take; if "
        "an engine has pools in fixed ratios, its cache is so large that they fit into the pool that is full first",
    ),
    _budget("total_bytes", "memory of one GPU"),
    Field(
        "total_from",
        value=lambda row: row.device.total_from,
        description="where `total_bytes` comes from: the total that CUDA reports, or that of the driver or of the "
        "datasheet if the total of CUDA is not known",
    ),
    _budget("usable_bytes", "memory of one GPU that the engine may use"),
    _budget("terms_bytes", "terms of the budget of the GPU with the smallest cache; they add up to `total_bytes`"),
    _budget("cache_bytes", "memory of the cache on that GPU; negative if the other terms are too large"),
    _budget("cache_tokens", "number of tokens that the engine prints as the size of its cache"),
    _budget("request_bytes", "memory that one request of `seq_len` tokens takes in the cache of that GPU"),
    _budget("batched_tokens", "largest number of tokens in one step; null: the engine has no limit"),
    _budget("sequences", "largest number of sequences in one step; null: the engine has no limit"),
    _fit_field(
        "missing_format",
        description="number format of the matrix products, if the engine cannot run them on the device; else null",
    ),
    Field(
        "cannot_run",
        description="why the engine does not run on the device; null if it does. The other figures are given in both "
        "cases",
    ),
    _fit_field(
        "converts",
        key="converts_weights",
        description="whether the engine converts the weights to the format of the activations while it multiplies "
        "them, because the device does not compute their format",
    ),
    Field(
        "draft",
        value=lambda row: None if row.draft is None else row.draft.name,
        description="name of the draft model of `--draft`; else null",
    ),
    Field(
        "changes",
        value=lambda row: records(CHANGES, row.changes),
        description="if the model does not fit: the changes of one setting with which it does, the nearest one first; "
        "of two settings, if no single one suffices on the same GPUs and the answer has one row",
    ),
    Field(
        "command",
        description="the command that starts the engine with these settings, for `users` requests of at most `seq_len` "
        "tokens; null for an ideal engine, if `--set` changed the model, and if the engine does not run on the device. "
        "For several servers of 8 GPUs, it is that of the first one, and FIRST-SERVER stands for its address",
    ),
    Field(
        "command_other_servers",
        description="the command for each other server, in which RANK stands for one of `ranks_other_servers` if "
        "there are several; null if they need none",
        value=lambda row: row.start and row.start.others,
    ),
    Field(
        "ranks_other_servers",
        description="the rank of each other server, in their order; null if `command_other_servers` is null",
        value=lambda row: list(row.start.ranks) if row.start and row.start.ranks else None,
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
    Field(
        "constants",
        value=lambda row: records(CONSTANTS, row.constants) if row.explain else None,
        description="with `--explain`: the constants of the engine and their sources, as a list of objects; else null",
    ),
)
