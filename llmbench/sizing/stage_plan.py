"""The contents of each chunk of a pipeline: how many layers, and whether it has the embedding, the head or MTP modules.

Megatron's notation for uneven stages (--pipeline-model-parallel-layout) lists the chunks in the order of the model,
divided by `|`. Letters say what a chunk contains: `E` the embedding, `t` a layer, `m` a multi-token-prediction module,
`L` the final norm, the head and its loss. `*3` repeats the letter or the bracket before it: `Et*3|(tt|)*6tL`. Chunk i
belongs to stage i mod pp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import msgspec

from llmbench.errors import LayoutError
from llmbench.sizing.workload import Layout

MOST_LETTERS = 20_000
"""The longest text that repetitions in a notation may produce."""

_ITEM = re.compile(r"[|(]|[EtmL)](?:\*([0-9]{1,5}))?")
"""Matches one letter of a notation, with its repetition."""

SHOWN_STAGES = 4
"""The number of stages of an example, if the layout has no `pp`."""


class Part(msgspec.Struct, frozen=True):
    """The contents of one chunk: numbers of layers and of multi-token-prediction modules."""

    layers: int
    mtp: int = 0
    embedding: bool = False
    head: bool = False


def chunk_parts(layout: Layout, layers: int, mtp: int = 0, *, name: str = "the model") -> list[Part]:
    """Return the contents of each chunk, in the order of the model.

    layers, mtp: number of layers and of multi-token-prediction modules of the model. name: name of the model.

    Without further settings, the chunks have nearly equal numbers of layers. Earlier chunks have one layer more than
    later chunks. Modules for multi-token prediction are in the last chunk.

    Raises LayoutError if the layout does not divide the layers of the model.
    """
    if layout.stages:
        return _written(layout, layers, mtp, name)
    counts = _counts(layout, layers, name)
    last = len(counts) - 1
    return [
        Part(layers=count, mtp=mtp if index == last else 0, embedding=index == 0, head=index == last)
        for index, count in enumerate(counts)
    ]


def _counts(layout: Layout, layers: int, name: str) -> Sequence[int]:
    """Return the number of layers of each chunk."""
    chunks = layout.pp * layout.interleave
    extra = int(layout.count_embedding) + int(layout.count_loss)
    if chunks > layers + extra:
        product = f"pp × interleave = {chunks}" if layout.interleave > 1 else f"pp={layout.pp}"
        raise LayoutError(
            f"layout {product}: {name} has only {layers} layers",
            hint="each pipeline stage, or each chunk of an interleaved stage, needs at least one layer: choose "
            f"{'pp × interleave' if layout.interleave > 1 else 'pp'} up to {layers + extra}",
        )
    if layout.first is not None or layout.last is not None:
        return _ends(layout, layers, name)
    size, rest = divmod(layers + extra, chunks)
    counts = [size + (index < rest) for index in range(chunks)]
    counts[0] -= layout.count_embedding
    counts[-1] -= layout.count_loss
    return counts


def _ends(layout: Layout, layers: int, name: str) -> list[int]:
    """Return the number of layers of each chunk if the first or the last stage has another number than the others."""
    per_stage: list[int | None] = [None] * layout.pp
    if layout.first is not None:
        per_stage[0] = layout.first
    if layout.last is not None:
        per_stage[-1] = layout.last
    given = sum(count or 0 for count in per_stage)
    others = per_stage.count(None)
    ends = " and ".join(
        f"{end}={getattr(layout, end)}" for end in ("first", "last") if getattr(layout, end) is not None
    )
    if others and (layers - given < others or (layers - given) % others):
        raise LayoutError(
            f"layout {ends}: {name} has {layers} layers, and the other {layers - given} cannot be divided evenly over "
            f"{others} stages",
            hint="choose first and last so that the other stages have equal numbers of layers",
        )
    if not others and given != layers:
        raise LayoutError(f"layout {ends}: {name} has {layers} layers, not {given}")
    counts = [(layers - given) // others if count is None else count for count in per_stage]
    for count in counts:
        if count % layout.interleave:
            raise LayoutError(
                f"layout {ends}: a stage has {count} layers, which are not divisible by interleave={layout.interleave}"
            )
    return [count // layout.interleave for count in counts] * layout.interleave


def _written(layout: Layout, layers: int, mtp: int, name: str) -> list[Part]:
    """Return the contents of each chunk from Megatron's notation."""
    example = _example(layout, layers, mtp)
    chunks = _expand(layout.stages, example).split("|")
    if len(chunks) != layout.pp * layout.interleave:
        wanted = f"pp × interleave = {layout.pp} × {layout.interleave}"
        hint = f"write a multiple of {layout.pp} chunks, divided by `|`, {example}"
        if layout.pp == 1:
            hint = f"write pp={len(chunks)}"
        elif len(chunks) % layout.pp == 0:
            hint = f"write interleave={len(chunks) // layout.pp}"
        raise LayoutError(f"layout stages: has {len(chunks)} chunks, and the layout needs {wanted}", hint=hint)
    parts = [
        Part(layers=chunk.count("t"), mtp=chunk.count("m"), embedding=chunk.startswith("E"), head=chunk.endswith("L"))
        for chunk in chunks
    ]
    whole = "".join(chunks)
    for letter, what, number in (("t", "layers", layers), ("m", "multi-token-prediction modules", mtp)):
        if whole.count(letter) != number:
            raise LayoutError(
                f"layout stages: has {whole.count(letter)} × `{letter}`, but {name} has {number} {what}", hint=example
            )
    if not re.fullmatch("Et*m*L", whole):
        raise LayoutError(
            "layout stages: the order must be E (embedding), t (layers), m (multi-token prediction), L (head and loss)",
            hint=example,
        )
    return parts


def _example(layout: Layout, layers: int, mtp: int) -> str:
    """Return an option `--layout` that divides the layers of this model, for a hint. A shell needs its quotes."""
    pp, interleave = layout.pp, layout.interleave
    if pp == 1 or pp * interleave > layers:
        pp, interleave = min(SHOWN_STAGES, layers), 1
    size, rest = divmod(layers, pp * interleave)
    first, *others = (f"t*{size + (index < rest)}" for index in range(pp * interleave))
    runs = [(f"|{chunk}", len(list(run))) for chunk, run in groupby(others)]
    text = "".join(chunk * times if times < 4 else f"({chunk})*{times}" for chunk, times in runs)
    written = msgspec.structs.replace(layout, pp=pp, interleave=interleave, stages=f"E{first}{text}{'m' * mtp}L")
    return f"for example --layout '{written}'"


def _expand(text: str, example: str) -> str:
    """Write out the repetitions of a notation: `t*2|(t|)*2L` becomes `tt|t|t|L`.

    The number of letters is known before they are written, so a notation cannot take all memory. example: text of the
    hint for a wrong notation.
    """
    rest = re.sub(r"\s", "", text)
    wrong = re.search(r"[^EtmL|()*0-9]", rest)
    if wrong is not None:
        raise LayoutError(
            f"layout stages: unknown letter `{wrong[0]}`", hint=f"use E, t, m, L, |, *3 and ( ), {example}"
        )
    inside = [""]  # what was written in each open bracket, the outermost first
    at = 0
    while at < len(rest):
        item = _ITEM.match(rest, at)
        if item is None or (item[0][0] == ")" and len(inside) == 1):
            raise LayoutError(f"layout stages: cannot read `{rest[at : at + 60]}`", hint=example)
        at = item.end()
        if item[0] == "(":
            inside.append("")
            continue
        piece = inside.pop() if item[0][0] == ")" else item[0][0]
        times = int(item[1] or 1)
        if len(inside[-1]) + len(piece) * times > MOST_LETTERS:
            raise LayoutError(f"layout stages: the repetitions make more than {MOST_LETTERS:,} letters")
        inside[-1] += piece * times
    if len(inside) > 1:
        raise LayoutError(f"layout stages: a bracket is not closed in `{text[:60]}`", hint=example)
    return inside[0]
