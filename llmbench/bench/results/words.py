"""The fields of a case in words, for the headings of tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from llmbench.measure.results import Scalar
from llmbench.report.units import plural, size

__all__ = ["FIELDS", "in_words"]

_NAMES = {
    "alibi": "ALiBi",
    "window": "sliding window",
    "both": "forward and backward",
    "all_reduce": "all-reduce",
    "all_gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "all_to_all": "all-to-all",
}
"""The text of each value that is not shown by its name in the code."""


def _value(value: Any) -> str:
    return _NAMES.get(value, str(value))


FIELDS: dict[str, Callable[[Any], str]] = {
    **dict.fromkeys(("what", "run", "model", "mask", "pass", "phase", "collective", "dtype"), _value),
    "batch": "batch {:,}".format,
    "bytes": size,
    "context": "{:,} tokens of context".format,
    "experts": partial(plural, noun="expert"),
    "experts_width": "total expert width {:,}".format,
    "head_dim": "head dim {}".format,
    "heads": partial(plural, noun="head"),
    "hidden_size": "hidden {}".format,
    "intermediate_size": "feed-forward width {:,}".format,
    "kv_heads": partial(plural, noun="KV head"),
    "layers": partial(plural, noun="layer"),
    "new_tokens": partial(plural, noun="new token"),
    "ranks": partial(plural, noun="rank"),
    "routing": "{} routing".format,
    "seq_len": partial(plural, noun="token"),
    "set": "with {}".format,
    "tokens": partial(plural, noun="token"),
    "top_k": "{} per token".format,
}
"""For each field of a case, the function that returns the field's value in words. A field that is not listed is shown
as its name and value."""


def in_words(case: Mapping[str, Scalar], names: Iterable[str] | None = None) -> list[str]:
    """Return the fields of a case in words. `names`: the fields to show; None means all fields. Example: ["next token",
    "batch 4"]."""
    chosen = case if names is None else names
    return [_in_words(name, case[name]) for name in chosen]


def _in_words(name: str, value: Scalar) -> str:
    try:
        return FIELDS[name](value)
    except (KeyError, TypeError, ValueError):  # no words for the field, or a damaged file has a text as a number
        return f"{name} {value}"
