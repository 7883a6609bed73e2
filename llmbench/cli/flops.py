"""`llmbench flops`: the arithmetic of a prefill, a decoding step or a training step."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from llmbench.cli.options import (
    SEQ,
    As,
    Batch,
    Explain,
    Models,
    Output,
    Seq,
    Set,
    answer,
    approximate_lines,
    length_notes,
    load,
    title,
)
from llmbench.errors import LLMBenchError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import change, plural, si
from llmbench.sizing.flops import Flops, count_flops, step_flops
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.params import layer_group
from llmbench.sizing.workload import Phase, Recompute, Workload
from llmbench.spec.mixer import LatentAttention, branches
from llmbench.spec.model import ModelSpec

OfPhase = Annotated[
    Phase, typer.Option("--phase", help="prefill and train take --seq tokens, decode one after --seq cached.")
]
Counted = Annotated[
    Literal["causal", "full"],
    typer.Option("--attention", help="Score pairs: those the mask leaves, or all S×S as FLOP counters do."),
]
Again = Annotated[Recompute, typer.Option("--recompute", help="What training computes twice.")]
By = Annotated[Literal["component", "op"], typer.Option("--by", help="What a row of the table is.")]


def command(
    models: Models,
    phase: OfPhase = "prefill",
    seq: Seq = SEQ,
    batch: Batch = 1,
    attention: Counted = "causal",
    recompute: Again = "none",
    by: By = "component",
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """The arithmetic of a prefill, decode or training step.

    A multiply-add is 2; logits are counted at every position, experts by those chosen; elementwise work (norms,
    activations, softmax) is not counted.

    Examples:

      llmbench flops llama2-7b --seq 8192

      llmbench flops mixtral-8x7b --phase decode --seq 8192 --batch 32

      llmbench flops llama3-8b --phase train --recompute full --by op

      llmbench flops gemma3-27b --attention full --format json
    """
    if recompute != "none" and phase != "train":
        raise LLMBenchError(
            f"--recompute {recompute} is for training: --phase {phase} has no backward pass",
            hint="leave it out, or ask for --phase train",
        )
    specs = [load(text, set) for text in models]
    workload = workload_of(phase, seq, batch, masked_pairs=attention == "full")
    counts = [count_flops(spec, workload, recompute=recompute) for spec in specs]
    document = Document(
        command="flops",
        inputs={
            "models": models,
            "phase": phase,
            "seq_len": seq,
            "batch": batch,
            "attention": attention,
            "recompute": recompute,
            "set": set or [],
        },
        rows_key="models",
        rows=[
            {
                "model": spec.name,
                "approximate": bool(spec.approximate),
                "approximate_because": list(spec.approximate),
                "notes": [*spec.notes, *length_notes(spec, workload.kv_len)],
                "phase": phase,
                "seq_len": seq,
                "batch": batch,
                "attention": attention,
                "absorbed_mla": absorbs(spec, workload),
                "total_flops": flops.total,
                "matmul_flops": flops.matmul,
                "attention_flops": flops.attention,
                "recurrent_flops": flops.recurrent,
                "recompute_flops": flops.recompute,
                "tokens": flops.tokens,
                "flops_per_token": flops.per_token,
                "rule_of_thumb_flops": flops.rule,
                "components": flops.components,
            }
            for spec, flops in zip(specs, counts, strict=True)
        ],
        blocks=[],
    )
    if format != "json":
        document.blocks += [
            _block(spec, flops, workload, by, explain, recompute) for spec, flops in zip(specs, counts, strict=True)
        ]
    answer(document, format, output)


def workload_of(phase: Phase, seq: int, batch: int, **more: Any) -> Workload:
    """The workload of a phase."""
    return {"prefill": Workload.prefill, "decode": Workload.decode, "train": Workload.train}[phase](seq, batch, **more)


def absorbs(spec: ModelSpec, workload: Workload) -> bool:
    """Whether latent attention works on the latent itself, here."""
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    return workload.absorbed_mla and any(isinstance(mixer, LatentAttention) for mixer in mixers)


def _block(spec: ModelSpec, flops: Flops, workload: Workload, by: str, explain: bool, recompute: Recompute) -> Block:
    ops = [op for op in lower(spec, workload) if step_flops(op, workload)]
    rows = _by_op(ops, workload, explain) if by == "op" else _by_component(flops, ops, workload, explain)
    rows = [[*row, row[-1] / flops.total if flops.total else None] for row in rows]
    rows.append(["total", "", flops.per_token, flops.total, 1.0])
    columns = [
        Column(by),
        Column("formula" if not explain else "formula, with the numbers", wraps=True),
        Column("per token", "flops"),
        Column("step", "flops_whole"),
        Column("share", "percent"),
    ]
    if by == "op" and len({layer_group(op) for op in ops if op.layer}) > 1:  # whose op it is, its name does not say
        columns.insert(1, Column("layers", name=True))
        rows = [[row[0], group, *row[1:]] for row, group in zip(rows, [*map(layer_group, ops), ""], strict=True)]
    return Block(
        subject=title(spec),
        headline=f"{headline(spec)}\n{_context(workload)}",
        table=Table(columns=columns, rows=rows, total=True),
        lines=[*_lines(spec, flops, workload, recompute), *approximate_lines(spec)],
        notes=length_notes(spec, workload.kv_len),
    )


def _context(w: Workload) -> str:
    what = {"prefill": "prefill of", "train": "training step on", "decode": "one new token after"}[w.phase]
    length = w.kv_len - 1 if w.phase == "decode" else w.query_len
    pairs = "all S×S score pairs" if w.masked_pairs else "score pairs that the mask leaves"
    return f"{what} {plural(length, 'token')} · batch {w.batch:,} · {pairs}"


def _lines(spec: ModelSpec, flops: Flops, w: Workload, recompute: Recompute) -> list[str]:
    rule = "6·N" if w.phase == "train" else "2·N"
    lines = [
        f"a token {si(flops.per_token)}FLOPs · rule of thumb {rule}, N active without embeddings = "
        f"{si(flops.rule / flops.tokens)}FLOPs a token ({change(flops.rule, flops.total)})"
    ]
    if absorbs(spec, w):
        lines.append("latent attention absorbed: scores and values are of the latent itself, which is not expanded")
    if flops.recompute:
        again = "flash attention's scores" + (f" and recompute {recompute}" if recompute != "none" else "")
        lines.append(f"computed again in backward, beside the total: {si(flops.recompute)}FLOPs ({again})")
    if flops.recurrent:
        lines.append("recurrences are counted in their step form; chunked kernels compute other products")
    return lines


def _by_component(flops: Flops, ops: list[Op], w: Workload, explain: bool) -> list[list[Any]]:
    rows: list[list[Any]] = []
    groups: dict[str, list[Op]] = {}
    for op in ops:
        groups.setdefault(_work(op), []).append(op)
    for name, chosen in groups.items():
        total = sum(step_flops(op, w) for op in chosen)
        rows.append([name, _text(name, chosen, w, explain), total / flops.tokens, total])
    return rows


def _work(op: Op) -> str:
    """What an op's FLOPs are counted as: scores, a recurrence, or a component's products with weights."""
    names = {"attention": "attention scores", "scan": "recurrence", "conv": "recurrence"}
    return names.get(op.kind, op.component)


def _text(name: str, ops: list[Op], w: Workload, explain: bool) -> str:
    times = 6 if w.phase == "train" else 2
    if name == "attention scores":
        return f"{times} × (d_qk + d_v) × pairs × heads"
    if name == "recurrence":
        return f"{times} × state and taps × tokens"
    elements = sum(op.count * op.matmul_elements for op in ops)
    if explain:
        tokens = w.batch * w.query_len
        return f"{times} × tokens × weights = {times} × {tokens:,} × {elements:,}"
    return f"{times} × tokens × weights"


def _by_op(ops: list[Op], w: Workload, explain: bool) -> list[list[Any]]:
    tokens = w.batch * w.query_len
    rows: list[list[Any]] = []
    for op in ops:
        total = step_flops(op, w)
        text = _text(_work(op), [op], w, explain)
        where = op.name if op.count == 1 else f"{op.count} × {op.name}"
        rows.append([where, text, total / tokens, total])
    return rows
