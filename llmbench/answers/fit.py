"""Answers of `llmbench fit`: whether a model fits on some GPUs with an engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from llmbench.answers.fit_row import FIELDS, Fitted
from llmbench.answers.prices import prices_of
from llmbench.errors import LLMBenchError
from llmbench.report.document import Document, table
from llmbench.report.fields import records
from llmbench.sizing.serving.changes import Change, changes
from llmbench.sizing.serving.command import weights_of
from llmbench.sizing.serving.fit import LENGTH, Fit, Question, Sizer, best_fit, smallest_count
from llmbench.sizing.serving.layouts import serving_layout
from llmbench.spec.catalog import device_heads, find_device_head
from llmbench.spec.engine import find_engine
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.on_hub import with_headers

ENGINE = "vllm"
"""The default of --engine."""


def fitted(
    spec: ModelSpec,
    *,
    model: str | None = None,
    draft: ModelSpec | None = None,
    draft_model: str = "",
    devices: Sequence[str] = (),
    gpus: int | None = None,
    layout: str = "",
    engine: str = ENGINE,
    utilization: float | None = None,
    seq: int | Sequence[int] | None = None,
    users: int | Sequence[int] = 1,
    weights: Sequence[str] = (),
    kv: str | Sequence[str] | None = None,
    price: float | str | None = None,
    explain: bool = False,
) -> list[Fitted]:
    """Return one row per device, format of the weights, format of the cache, `seq` and `users`.

    model: the MODEL of the user. None: the spec is not that of published files. draft: model for speculative decoding.
        draft_model: its name as the user gave it.
    devices: names of devices. Empty: all built-in devices, each with the smallest number of GPUs that suffices.
        weights: formats. Empty: the published files. seq, users, kv: one value or several. seq: None stands for LENGTH
        tokens, or for the context length if that is shorter.
        price: price of one GPU per hour (see `prices_of`).

    Raises LLMBenchError for a wrong name, layout or number, for requests that are longer than the context length, and
    for more than MOST_ROWS rows.
    """
    lengths = _several(min(LENGTH, spec.max_position_embeddings or LENGTH) if seq is None else seq)
    chosen = find_engine(engine)
    parallel = serving_layout(layout)
    if layout and gpus is not None and parallel.num_gpus != gpus:
        raise LLMBenchError(
            f"--layout {layout} is for {parallel.num_gpus} GPUs, and --gpus says {gpus}", hint="leave out --gpus"
        )
    heads = list(dict.fromkeys(map(find_device_head, devices))) or list(device_heads())
    prices = prices_of(price, {device.name for device in heads})
    questions = [
        Question(
            engine=chosen,
            device=device,
            layout=parallel,
            seq=tokens,
            users=requests,
            weights=format,
            kv=cache,
            utilization=utilization,
        )
        for device, format, cache, tokens, requests in _cases(
            heads, weights or (None,), _several(kv), lengths, _several(users)
        )
    ]
    spec = spec if weights else with_headers(spec)
    draft = None if draft is None else with_headers(draft)
    sizer = Sizer(spec, draft)
    rows = []
    for question in questions:
        fit = _answer(sizer, question, fixed=bool(layout), gpus=gpus, smallest=not devices)
        found: list[Change] = []
        if devices and fit is not None and not fit.fits:
            found = changes(sizer, fit, own_layout=bool(layout), pairs=len(questions) == 1)
        rows.append(
            Fitted(
                spec=spec,
                doubts=() if fit is None else (*fit.tightest.shard.doubts, *fit.doubts),
                tokens=question.seq,
                device=question.device,
                engine=chosen,
                question=question,
                fit=fit,
                changes=found,
                asked=bool(devices),
                fixed=bool(layout) or gpus is not None,
                chosen=not layout,
                price=prices.get(question.device.name, prices.get("")),
                files=None if model is None else weights_of(spec, model),
                draft=draft,
                draft_files=None if draft is None else weights_of(draft, draft_model),
                explain=explain,
            )
        )
    return rows


MOST_ROWS = 2048
"""The largest number of rows of a sweep."""


def _several(value: Any) -> Sequence[Any]:
    """Return the values of an option that takes one value or several."""
    return value if isinstance(value, (list, tuple)) else (value,)


def _cases(*settings: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Return the combinations of the values of several settings. Raises LLMBenchError for more than MOST_ROWS."""
    if (count := math.prod(map(len, settings))) > MOST_ROWS:
        raise LLMBenchError(
            f"the sweep has {count:,} combinations of device, format, tokens and users, and {MOST_ROWS:,} are possible",
            hint="give fewer values, or name the devices with --device",
        )
    return product(*settings)


def _answer(sizer: Sizer, question: Question, *, fixed: bool, gpus: int | None, smallest: bool) -> Fit | None:
    if fixed:
        return sizer.fit(question)
    if gpus is None and smallest:
        return smallest_count(sizer, question)
    return best_fit(sizer, question, gpus or 1)


def document(rows: list[Fitted], inputs: dict[str, Any], *, tables: bool = True) -> Document:
    """Return the answer for a model. `inputs`: the options. `tables`: whether people will read it."""
    answer = Document(command="fit", inputs=inputs, rows_key="fits", rows=records(FIELDS, rows), blocks=[])
    if tables:
        from llmbench.answers.fit_screen import blocks  # imported here, because JSON has no tables

        answer.blocks = blocks(rows)
        answer.tables = [table(FIELDS, rows)]
    return answer
