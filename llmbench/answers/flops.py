"""Answers of `llmbench flops`: the FLOPs of one step of models, as rows and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from llmbench.answers.about import comparison_headline, model_block, sweep_fields
from llmbench.answers.flops_formulas import formula_of, work_of
from llmbench.answers.flops_row import (
    FIELDS,
    By,
    Counted,
    ScoredPairs,
    absorbs,
    figures,
    launched,
    length,
    ops_of,
)
from llmbench.errors import LLMBenchError
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted, records
from llmbench.report.units import change, plural, si, size
from llmbench.sizing.flops import count_flops, step_flops, trained_parameters
from llmbench.sizing.op import Op
from llmbench.sizing.params import layer_group
from llmbench.sizing.workload import Phase, Recompute, Workload
from llmbench.spec.model import ModelSpec

__all__ = ["By", "Counted", "ScoredPairs", "absorbs", "counted", "document", "workload_of"]


def counted(
    specs: Iterable[ModelSpec],
    workload: Workload,
    recompute: Recompute = "none",
    lora: str = "",
    *,
    by: By = "component",
    chunk: int | None = None,
    chunk_start: int | None = None,
) -> list[Counted]:
    """Return the models with the FLOPs of one step. `lora`: adapters, such as `r=16,targets=q,v`. `by`: see `Counted`.

    chunk: tokens of a prompt that a decoding step processes too. chunk_start: tokens of this prompt in the cache.

    Raises LLMBenchError for a recomputation or for adapters in a step without a backward pass, and for a chunk in a
    step that does not decode.
    """
    part = _chunk(workload, chunk, chunk_start)
    if lora and workload.phase != "train":
        raise LLMBenchError(
            f"--lora {lora}: --phase {workload.phase} trains no adapters",
            hint="use --phase train. Adapters that are merged into the weights change no FLOPs of inference",
        )
    adapters = None
    if lora:
        from llmbench.sizing.adapters import Adapters  # only --lora needs it

        adapters = Adapters.parse(lora)
    if recompute != "none" and workload.phase != "train":
        raise LLMBenchError(
            f"--recompute {recompute}: --phase {workload.phase} has no backward pass",
            hint="leave out --recompute, or use --phase train",
        )
    return [
        Counted(
            spec=spec,
            tokens=max(workload.kv_len, 0 if part is None else part.kv_len),
            flops=count_flops(spec, workload, recompute=recompute, adapters=adapters, chunk=part),
            workload=workload,
            chunk=part,
            recompute=recompute,
            adapters=adapters,
            by=by,
        )
        for spec in specs
    ]


def document(rows: list[Counted], inputs: dict[str, Any], *, explain: bool = False, tables: bool = True) -> Document:
    """Return the answer for some models. `inputs`: the options. `tables`: whether people will read it."""
    return Document(
        command="flops",
        inputs=inputs,
        rows_key="models",
        rows=records(FIELDS, rows),
        blocks=_blocks(rows, explain) if tables else [],
    )


def _blocks(rows: list[Counted], explain: bool) -> list[Block]:
    """Return a block per model. A sweep has one table, with a row per model, workload and recomputation."""
    if all((row.workload, row.recompute) == (rows[0].workload, rows[0].recompute) for row in rows):
        return [_block(row, explain) for row in rows]
    one_model = all(row.spec == rows[0].spec for row in rows)
    first = msgspec.structs.replace(FIELDS[0], heading=None) if one_model else FIELDS[0]
    again = [
        Field[Counted](
            "again_flops",
            "computed again",
            "tflops",
            lambda row: row.flops.recompute,
            in_json=False,
            scale="step",
        )
    ]
    if all(row.recompute == rows[0].recompute for row in rows):
        again = []
    columns = (
        *sweep_fields((first, *FIELDS[1:]), rows, {"seq_len": "tokens", "batch": "batch", "recompute": "recompute"}),
        Field[Counted]("step_flops", "step", "tflops", lambda row: row.flops.total, in_json=False, scale="step"),
        Field[Counted](
            "token_flops", "per token", "gflops", lambda row: row.flops.per_token, in_json=False, scale="token"
        ),
        *again,
        Field[Counted](
            "attention_share", "attention", "percent", lambda row: row.flops.attention / row.flops.total, in_json=False
        ),
    )
    lines = [
        *_chunk_lines(rows[0])[:1],
        "attention: share of the products of queries with keys and of scores with values",
    ]
    lines += dict.fromkeys(
        f"{row.spec.name} is approximate: {reason}" for row in rows for reason in row.approximate_because
    )
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    step = {"prefill": "prefill", "train": "training step", "decode": "one new token after cached tokens"}
    return [
        Block(
            headline=comparison_headline(
                [row.spec for row in rows], f"FLOPs · {step[rows[0].workload.phase]}{_chunk_text(rows[0])}"
            ),
            table=table(fitted(columns, rows), rows),
            lines=lines,
            notes=notes,
        )
    ]


def workload_of(phase: Phase, seq: int, batch: int, **more: Any) -> Workload:
    """Return the workload of a phase. `more`: further fields of the workload and their values."""
    return {"prefill": Workload.prefill, "decode": Workload.decode, "train": Workload.train}[phase](seq, batch, **more)


def _chunk(workload: Workload, tokens: int | None, start: int | None) -> Workload | None:
    """Return the workload of the chunk that a step processes too. None: there is none. Arguments: see `counted`."""
    if tokens is None:
        if start is not None:
            raise LLMBenchError(
                f"--chunk-start {start}: there is no chunk", hint="add --chunk, for example --chunk 512"
            )
        return None
    if workload.phase != "decode":
        raise LLMBenchError(
            f"--chunk {tokens}: only a decoding step can process a chunk of a prompt too",
            hint="use --phase decode, or leave out --chunk",
        )
    return Workload.chunk(tokens, start or 0, masked_pairs=workload.masked_pairs)


def _block(row: Counted, explain: bool) -> Block:
    flops, by = row.flops, row.by
    ops = [op for op in ops_of(row) if step_flops(op, row.workload)]
    rows = _by_op(row, ops, explain) if by == "op" else _by_component(row, ops, explain)
    counts_launches = by == "op" and row.workload.phase != "train" and row.chunk is None
    one_kind = len({layer_group(op) for op in ops if op.layer}) < 2
    first: list[Field[dict[str, Any]]] = [
        Field("op", "op", text=lambda part: f"{part['count']} × {part['op']}" if part.get("count", 1) > 1 else None),
        Field("layers", None if one_kind else "layers", spare=2),
        Field("count"),
    ]
    columns: list[Field[dict[str, Any]]] = [
        *(first if by == "op" else [Field[dict[str, Any]]("component", "component")]),
        Field("flops", "step", "tflops", scale="step"),
        Field("share", "share", "percent", value=lambda part: part["flops"] / flops.total if flops.total else None),
        Field("flops_per_token", value=lambda part: part["flops"] / flops.tokens),
        *(Field[dict[str, Any]](f"launches_{name}") for name in (launched(row).totals if counts_launches else ())),
        Field("formula", "formula", wraps=True, spare=0 if explain else 1),
    ]
    return model_block(
        row,
        context=_context(row) + (f"\n{_adapters(row)}" if row.adapters is not None else ""),
        table=table(fitted(columns, rows), rows, total={by: "total", "flops": flops.total}),
        lines=_lines(row) + (launched(row).lines(explain) if counts_launches else []),
    )


def _context(row: Counted) -> str:
    w = row.workload
    step = {"prefill": "prefill of", "train": "training step on", "decode": "one new token after"}[w.phase]
    pairs = "all (query, key) pairs" if w.masked_pairs else "(query, key) pairs inside the mask"
    return f"{step} {plural(length(w), 'token')} · batch {w.batch:,}{_chunk_text(row)} · {pairs}"


def _chunk_text(row: Counted) -> str:
    """Return the words for the chunk of a prompt that the step processes too."""
    if row.chunk is None:
        return ""
    new, start = row.chunk.query_len, row.chunk.kv_len - row.chunk.query_len
    return f" · with a chunk of {plural(new, 'token')}" + (f" after {start:,} cached ones" if start else "")


def _chunk_lines(row: Counted) -> list[str]:
    """Return what a reader must know about a step that also processes a chunk of a prompt."""
    if row.chunk is None:
        return []
    flops, expected = row.flops, " (with the expected number of experts)" if row.spec.is_moe else ""
    lines = [
        "logits are counted for each decoded token, and for the last token of the chunk",
        f"in bf16, the step reads {size(flops.weight_bytes)} of weights{expected}, once for both parts, and "
        f"{size(flops.kv_read_bytes)} of cache",
    ]
    if row.by == "op":
        lines.append("kernel launches are unknown: engines differ in how many kernels compute attention for both parts")
    return lines


def _adapters(row: Counted) -> str:
    """Return the adapters of a row, and their share of all parameters."""
    assert row.adapters is not None
    trained, frozen = trained_parameters(row.spec, row.adapters)
    share = trained / (trained + frozen)
    return f"lora {row.adapters} · {trained:,} of {trained + frozen:,} parameters are trained ({share:.2%})"


def _lines(row: Counted) -> list[str]:
    flops, w = row.flops, row.workload
    rule = "2·N" if w.phase != "train" else "6·N" if row.adapters is None else "4·N + 6·adapters"
    lines = [
        f"{si(flops.per_token)}FLOPs per token · rule of thumb {rule} = {si(flops.rule / flops.tokens)}FLOPs per token "
        f"({change(flops.rule, flops.total)}), N: active parameters without embeddings"
    ]
    if row.adapters is not None:
        lines.append(
            "factors: 6 for adapters, 4 for frozen weights, which need no gradient, and 2 before the first adapter"
        )
    lines += _chunk_lines(row)
    if absorbs(row.spec, w):
        lines.append(
            "latent attention (MLA) is counted in its absorbed form: it does not expand the latents"
            if row.chunk is None
            else "latent attention (MLA) is counted in its absorbed form for decoding. For the chunk, it expands the "
            "latents of all tokens that the chunk sees"
        )
    if flops.recompute:
        source = "flash attention's scores" + (f" and --recompute {row.recompute}" if row.recompute != "none" else "")
        lines.append(f"not in the total: {si(flops.recompute)}FLOPs that the backward pass computes again ({source})")
    if flops.recurrent:
        lines.append("recurrences are counted token by token; kernels that compute chunks need another number of FLOPs")
    return lines


def _by_component(row: Counted, ops: list[Op], explain: bool) -> list[dict[str, Any]]:
    groups: dict[str, list[Op]] = {}
    for op in ops:
        groups.setdefault(work_of(op), []).append(op)
    return [
        {
            "component": name,
            "formula": formula_of(name, group, row, explain),
            "flops": sum(step_flops(op, row.workload) for op in group),
        }
        for name, group in groups.items()
    ]


def _by_op(row: Counted, ops: list[Op], explain: bool) -> list[dict[str, Any]]:
    counts = launched(row)
    return [
        {
            **figures(row, op),
            "formula": formula_of(work_of(op), [op], row, explain),
            **{f"launches_{name}": number for name, number in counts.of(op).items()},
        }
        for op in ops
    ]
