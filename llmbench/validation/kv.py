"""Compare printed sizes of KV caches with the bytes of the rows that an engine stores."""

from __future__ import annotations

import re
from typing import NamedTuple

from llmbench.sizing.items import without_commas
from llmbench.sizing.kv_formats import row_bytes
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec
from llmbench.validation.comparison import Answer, Figure, printed
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row, whole

__all__ = ["answer"]

_UNITS = {"bytes": 1, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}


_NUMBER = r"\d+(?:,\d+)*(?:\.\d+)?"
_UNIT = r"(?:[KMG]i?B|bytes|B)\b"
_SIZES = re.compile(
    rf"(?:K\s*)?{_NUMBER}\s*(?P<first>{_UNIT})?(?:\s*(?:\+|,\s*V\b)\s*(?P<second>{_NUMBER})\s*(?:V\b)?\s*(?P<unit>{_UNIT})?)?"
    rf"(?:\s*\((?P<meant>{_UNIT})\))?"
)
"""One size, or the sizes of keys and values. The last unit holds for both."""


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
    keys, values = _layer_bytes(spec, row.text("engine"), row.text("format"), tp, layers, expanded=expanded)
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
    """Parse a printed size: `224.00 MiB`, `8.23 + 8.23 GB (GiB)`, `K 8.23 GiB, V 8.23 GiB`, `35,136 B a token`.

    A unit in brackets is the unit that the engine means: SGLang prints GiB as GB.
    """
    try:
        numbers = [without_commas(part) for part in re.findall(_NUMBER, text)]
    except ValueError as problem:
        raise RefusedError(f"column `given`: {text[:60]!r}: a number {problem}") from None
    sizes = re.match(_SIZES, text)
    if sizes is None:
        raise RefusedError(f"column `given`: {text[:60]!r} is not a size such as `224.00 MiB`")
    unit = sizes["meant"] or sizes["unit"] or sizes["first"]
    if unit is None:
        raise RefusedError(f"column `given`: {text[:60]!r} has no unit")
    scale = _UNITS[unit]
    count = 1 if sizes["second"] is None else 2
    per_token = bool(re.match(r"\s*(?:(?:a|per)\s+token|/\s*token)", text[sizes.end() :]))
    return _Printed([printed(number, scale) for number in numbers[:count]], per_token)


def _model(text: str) -> tuple[str, int, bool, bool]:
    """Return the name of a model, its tp, whether the row counts only keys, and whether MLA stores expanded keys."""
    tp = re.search(r"\btp\s?=?(\d+)\b", text)
    name = re.sub(r"\(.*?\)|\btp\s?=?\d+\b|\bwithout MLA.*", "", text).strip()
    if re.search(r"\d+ of \d+ layers", name):
        raise RefusedError(
            f"column `model`: {name!r} describes a model, but its name, which decides the width, is missing"
        )
    name = "deepseek-v3" if name == "DeepSeek MLA" else name  # the widths of DeepSeek-V2, V3 and R1
    return name, whole(tp[1], least=1) if tp else 1, "(K only)" in text, "without MLA" in text


def _formats(engine: str, format: str) -> tuple[str, str]:
    """Return the formats of keys and of values: `q8_0`, `q8_0/f16`, or `K q8_0 V f16`.

    TurboMind calls its formats by their numbers of bits.
    """
    parts = re.fullmatch(r"(?:K\s*)?([\w-]+)(?:\s*[/,]\s*|\s+)(?:V\s*)?([\w-]+)", format.strip())
    names = parts.groups() if parts is not None else (format.strip(), "")
    if engine.lower() in ("turbomind", "lmdeploy"):
        bits = {"int8": "turbomind_int8", "8": "turbomind_int8", "int4": "turbomind_int4", "4": "turbomind_int4"}
        names = tuple(bits.get(name, name) for name in names)
    return names[0] or "bf16", names[1]


def _layer_bytes(spec: ModelSpec, engine: str, format: str, tp: int, layers: int, *, expanded: bool) -> tuple[int, int]:
    """Return the bytes of the keys and of the values of one layer per token, on one GPU of a tensor-parallel group.

    expanded: whether latent attention stores the keys and values of all heads.
    """
    keys, values = _formats(engine, format)
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
        sizes.add(row_bytes(shared, keys, values or None))
    if len(sizes) > 1:
        raise RefusedError(f"the layers of {spec.name} store rows of different sizes, and the row does not say which")
    return sizes.pop()
