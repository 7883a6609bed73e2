"""Compare printed sizes of KV caches with the bytes of the rows that an engine stores."""

from __future__ import annotations

import re
from typing import NamedTuple

from llmbench.sizing.kv_formats import row_bytes
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec
from llmbench.validation.comparison import Answer, Figure, printed
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row

__all__ = ["answer"]

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}


class _Printed(NamedTuple):
    """A printed size: numbers that belong together, in bytes, each with the tolerance of its rounding."""

    parts: list[tuple[float, float]]
    per_token: bool


def answer(row: Row) -> Answer:
    """Compare the printed size of a cache with its number of tokens × layers × bytes of a row.

    `given` can be one size, or the sizes of keys and of values: `8.23 + 8.23 GiB`.
    """
    given = _given(row.text("given"))
    name, tp, only_keys, expanded = _model(row.text("model"))
    spec = bundled_model(name)
    layers = row.size("layers")
    keys, values = _layer_bytes(spec, row.text("format"), tp, layers, expanded=expanded)
    tokens = 1 if given.per_token else row.size("tokens_or_cells")
    keys, values = keys * layers * tokens, values * layers * tokens
    if only_keys:
        values = 0
    quantity = "bytes_per_token" if given.per_token else "bytes"
    ours = [keys + values] if len(given.parts) == 1 else [keys, values]
    figures = [
        Figure(quantity=quantity, measured=measured, ours=own, tolerance=tolerance)
        for (measured, tolerance), own in zip(given.parts, ours, strict=True)
    ]
    if len(figures) == 1:
        return Answer(figures=tuple(figures), parts={"keys": keys, "values": values})
    total = Figure(
        quantity=quantity,
        measured=sum(figure.measured for figure in figures),
        ours=keys + values,
        # the sum is equal only if each of its parts is
        tolerance=sum(figure.tolerance for figure in figures) if all(figure.exact for figure in figures) else -1,
    )
    named = [
        Figure(quantity=f"{part}_{quantity}", measured=figure.measured, ours=figure.ours, tolerance=figure.tolerance)
        for part, figure in zip(("key", "value"), figures, strict=True)
    ]
    return Answer(figures=(total, *named), parts={"keys": keys, "values": values})


def _given(text: str) -> _Printed:
    """Parse a printed size: `224.00 MiB`, `8.23 + 8.23 GB (GiB)`, `35136 B a token`, `54.00 MiB, V 0.00`.

    A unit in brackets is the unit that the engine means: SGLang prints GiB as GB.
    """
    match = re.match(r"([\d.]+)(?:\s*\+\s*([\d.]+))?\s*([KMG]i?B|B)(?:\s*\(([KMG]i?B)\))?", text)
    if match is None:
        raise RefusedError(f"column `given`: {text[:60]!r} is not a size such as `224.00 MiB`")
    scale = _UNITS[match[4] or match[3]]
    numbers = [match[1]] if match[2] is None else [match[1], match[2]]
    return _Printed(
        [printed(number, scale) for number in numbers], bool(re.match(r"\s*(a|per) token", text[match.end() :]))
    )


def _model(text: str) -> tuple[str, int, bool, bool]:
    """Return the name of a model, its tp, whether the row counts only keys, and whether MLA stores expanded keys."""
    tp = re.search(r"\btp\s?=?(\d+)\b", text)
    name = re.sub(r"\(.*?\)|\btp\s?=?\d+\b|\bwithout MLA.*", "", text).strip()
    name = "deepseek-v3" if name == "DeepSeek MLA" else name  # the widths of DeepSeek-V2, V3 and R1
    return name, int(tp[1]) if tp else 1, "(K only)" in text, "without MLA" in text


def _layer_bytes(spec: ModelSpec, format: str, tp: int, layers: int, *, expanded: bool) -> tuple[int, int]:
    """Return the bytes of the keys and of the values of one layer per token, on one GPU of a tensor-parallel group.

    expanded: whether latent attention stores the keys and values of all heads.
    """
    keys, _, values = format.replace(" ", "").partition("/")
    mixers = [
        mixer
        for kind in spec.order
        for mixer in branches(spec.layers[kind].mixer)
        if isinstance(mixer, AttentionKind) and mixer.cache_rows
    ]
    if layers > len(mixers) or not mixers:
        raise RefusedError(f"column `layers`: {spec.name} has {len(mixers)} layers with keys and values, not {layers}")
    sizes = set()
    for mixer in mixers:
        own = (mixer.ordinary or mixer) if expanded else mixer
        row = own.cache_row
        if tp > 1 and row.heads % tp and tp % row.heads:
            raise RefusedError(f"tp={tp} does not divide the {row.heads} key-value heads of {spec.name}")
        shared = row._replace(heads=-(-row.heads // min(tp, row.heads)))
        sizes.add(row_bytes(shared, keys or "bf16", values or None))
    if len(sizes) > 1:
        raise RefusedError(f"the layers of {spec.name} store rows of different sizes, and the row does not say which")
    return sizes.pop()
