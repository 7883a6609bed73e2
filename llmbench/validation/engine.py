"""Compare the memory that an inference engine logged when it started with its budget by llmbench."""

from __future__ import annotations

import re
from typing import Any

from llmbench.errors import LLMBenchError, UnknownNameError
from llmbench.sizing.kv_formats import format_names
from llmbench.sizing.serving.budget import GIB, Budget, budget
from llmbench.sizing.serving.layouts import serving_layout
from llmbench.sizing.serving.shard import shards
from llmbench.spec.catalog import DeviceHead, find_device_head
from llmbench.spec.engine import Engine, find_engine
from llmbench.validation.comparison import Answer, Figure, printed
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row, whole
from llmbench.validation.weights import format_of

__all__ = ["answer"]

_NAMED = (
    (r"(Qwen/)?Qwen3.*-FP8", "fp8-block"),
    (r"(RedHatAI|neuralmagic)/.*-FP8-dynamic", "fp8-channel"),
    (r"unsloth/.*-bnb-4bit", "nf4,double=1"),
)
"""Repositories whose names say how they store the weights, by the habit of their owner."""

_MOST_WORDS = 8
"""The largest number of words in the name of a device."""

_QUANTISED = re.compile(r"fp8|awq|gptq|bnb|\dbit|int[48]|nvfp4|mxfp4|gguf", re.IGNORECASE)


def answer(row: Row) -> Answer:
    """Compare the memory of the cache, its tokens, the weights and the peak of the profiling step.

    Raises RefusedError with the missing setting if a row does not say what the figures depend on.
    """
    named, doubt = _model(row)
    spec = bundled_model(named)
    engine = _engine(row)
    device, tp, other = _device(row), row.size("tp"), row.text("other_layout")
    if other and not re.fullmatch(r"\w+=\d+(,\w+=\d+)*", other):
        raise RefusedError(f"column `other_layout`: {other[:40]!r} is not a layout such as `pp=2`")
    layout = serving_layout(f"tp={tp},{other}" if other else f"tp={tp}")
    fp32 = engine.fp32_becomes(device)
    parts = shards(spec, layout, engine, weights=_weights(row, named), kv=_cache_format(row), fp32=fp32)
    missing = _missing(row, engine)
    if missing and not _printed(row, "weights_gib"):
        raise RefusedError(missing)
    seq = row.count("max_model_len") or spec.max_position_embeddings or 8192
    share = row.number("util")
    budgets = [budget(engine, device, part, layout, seq=seq, utilization=share) for part in parts]
    figures = _figures(row, budgets, complete=not missing)
    if not figures:
        raise RefusedError("the row has no measured figure that llmbench computes")
    terms: dict[str, float] = {term.term: term.value for term in budgets[0].terms}
    return Answer(figures=tuple(figures), parts=terms, doubt=doubt)


def _model(row: Row) -> tuple[str, str]:
    """Return the name of the model, and why it is uncertain: `not named; Qwen3-8B-FP8 by weights (8.80)`."""
    text = row.text("model")
    guessed = re.match(r"not named; (\S+) by ", text)
    return (guessed[1], "the log does not name the model") if guessed else (text, "")


def _figures(row: Row, budgets: list[Budget], *, complete: bool) -> list[Figure]:
    """Return the figures. The first stage prints its weights and its peak. All stages use the smallest cache."""
    first = budgets[0]
    least = min(budgets, key=lambda own: own.cache)
    shard = first.shard
    loaded = shard.weights + shard.padding + shard.rope
    # A version that counts CUDA graphs in its budget prints their estimate as a part of the peak.
    peak = sum(term.value for term in first.terms if term.term.startswith(("activations", "CUDA graphs")))
    found: list[tuple[str, tuple[float, float] | None, float]] = []
    if complete:
        found.append(("cache_bytes", _keys_and_values(row) or _printed(row, "kv_gib"), least.cache))
        tokens = row.number("kv_tokens")
        found.append(("tokens", None if tokens is None else (tokens, 0.0), least.pool.tokens))
    found.append(("weights_bytes", _printed(row, "weights_gib"), loaded))
    if complete and first.engine.spec.rule == "vllm":
        found.append(("activations_bytes", _printed(row, "activation_peak_gib"), peak))
    return [
        Figure(quantity=quantity, measured=measured[0], ours=ours, tolerance=measured[1])
        for quantity, measured, ours in found
        if measured is not None
    ]


def _printed(row: Row, column: str) -> tuple[float, float] | None:
    """Return a printed number of GiB in bytes and its tolerance, or None if the cell is not a number."""
    text = row.text(column)
    if not re.fullmatch(r"-?\d+(\.\d+)?", text):
        return None
    value, tolerance = printed(text.removeprefix("-"), GIB)
    return (-value if text.startswith("-") else value), tolerance


def _keys_and_values(row: Row) -> tuple[float, float] | None:
    """Return the bytes of keys and values that SGLang prints: `K 8.23 GB + V 8.23 GB`. Its GB is GiB."""
    found = re.search(r"K ([\d.]+) GB \+ V ([\d.]+) GB", row.text("notes"))
    if found is None:
        return None
    keys, values = printed(found[1], GIB), printed(found[2], GIB)
    return keys[0] + values[0], keys[1] + values[1]


def _engine(row: Row) -> Engine:
    """Return the engine of a row, with the settings that the row gives."""
    name = row.text("engine")
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)+)(?![\dx])", row.text("version"))
    try:
        newest = find_engine(name)
    except UnknownNameError:
        raise RefusedError(f"column `engine`: llmbench has no profile of {name[:40]!r}") from None
    several = sum(bool(version.constants) for version in newest.spec.versions) > 1
    if found is None and several:
        raise RefusedError(
            f"column `version`: {row.text('version')[:40]!r} is not a version, and the constants of "
            f"{newest.spec.title} depend on it"
        )
    settings = []
    for key, value in (
        ("batched_tokens", row.count("max_batched_tokens")),
        ("sequences", _noted(row, "max_num_seqs", r"max_num_seqs[ =:]+(\d+)")),
        ("block_tokens", _noted(row, "block_size", r"\bblock (\d+)\b")),
    ):
        settings += [f"{key}={value}"] if value else []
    if re.search(r"\beager\b", row.text("notes")):  # without CUDA graphs
        settings.append("graphs=0")
    version = f"@{found[1]}" if found is not None and several else ""
    return find_engine(",".join([f"{newest.spec.name}{version}", *settings]))


def _noted(row: Row, column: str, pattern: str) -> int | None:
    """Return the number of a column, or the one that the notes name."""
    found = re.search(pattern, row.text("notes"))
    return row.count(column) or (whole(found[1]) if found else None)


def _missing(row: Row, engine: Engine) -> str:
    """Return the missing setting without which the cache is unknown, or ""."""
    if row.number("util") is None and engine.spec.rule != "llamacpp":
        return "column `util` is empty, and the cache depends on it"
    stated = row.text("max_model_len") or row.text("max_batched_tokens") or "default" in row.text("notes")
    if engine.spec.rule == "vllm" and not stated:
        return (
            "columns `max_batched_tokens` and `max_model_len` are empty, and the peak of the profiling step depends on "
            "them"
        )
    return ""


def _weights(row: Row, model: str) -> str | None:
    """Return the format of the weights. None: that of the published files."""
    scheme = row.text("scheme")
    named = next((format for pattern, format in _NAMED if re.fullmatch(pattern, model)), None)
    if named is not None and (not scheme or scheme.startswith("bnb")):
        return named
    if scheme == "fp8 online":
        return "fp8-tensor"
    if scheme:
        return format_of(scheme)
    if _QUANTISED.search(model):
        raise RefusedError("column `scheme` is empty, and the name of the model says that its weights are quantised")
    return None


def _cache_format(row: Row) -> str | None:
    """Return the format of the cache. None: that of the activations."""
    found = re.search(r"\b(\w+) KV\b", row.text("notes"))
    text = row.text("kv_dtype") or (found[1] if found else "")
    if text in ("", "auto", "bf16", "fp16"):
        return None
    if text not in format_names():
        raise RefusedError(f"column `kv_dtype`: llmbench does not know {text[:40]!r}")
    return text


def _device(row: Row) -> DeviceHead:
    """Return the device of a row with the total memory that the log printed. Its name can be only a size: `24G`."""
    text, total = row.text("gpu"), row.number("total_gib")
    if total is not None and total * GIB < 1:
        raise RefusedError("column `total_gib`: must be above 0")
    size = None if total is None else round(total * GIB)
    words = re.split(r"[\s-]+", text)[:_MOST_WORDS]
    shorter = ["-".join(words[:count]) for count in range(len(words), 0, -1)]
    for name in (text, f"{text}b", f"{shorter[0]}b", *shorter):
        try:
            known = find_device_head(name)
            return known if size is None else known._replace(cuda_memory_bytes=size)
        except LLMBenchError:
            continue
    if size is None:
        raise RefusedError(f"column `gpu`: llmbench does not know {text[:40]!r}, and `total_gib` is empty")
    every: Any = frozenset(("fp16", "bf16", "fp8", "int8", "fp4"))
    return DeviceHead(text, size, every, size)
