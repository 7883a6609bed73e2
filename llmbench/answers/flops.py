"""Answers of `llmbench flops`: the FLOPs of one step of models, as rows and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from llmbench.answers.about import MODEL_FIELDS, AboutModel, comparison_headline, model_block, sweep_fields
from llmbench.errors import LLMBenchError
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted, records
from llmbench.report.units import change, plural, si
from llmbench.sizing.flops import Flops, count_flops, step_flops, step_ops, trained_parameters
from llmbench.sizing.op import Op
from llmbench.sizing.params import layer_group
from llmbench.sizing.workload import Phase, Recompute, Workload
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.answers.launches import Launched
    from llmbench.sizing.adapters import Adapters

By = Literal["component", "op"]
"""What one row of the table stands for."""
ScoredPairs = Literal["causal", "full"]
"""The (query, key) pairs that count: those inside the mask, or all."""


class Counted(AboutModel, kw_only=True):
    """A model and the FLOPs of one step."""

    flops: Flops
    workload: Workload
    recompute: Recompute
    adapters: Adapters | None = None
    by: By = "component"
    """The rows of the table. With `op`, the answer has the kernel launches too."""


FIELDS: tuple[Field[Counted], ...] = (
    *MODEL_FIELDS,
    Field(
        "phase", value=lambda row: row.workload.phase, description="value of `--phase`: `prefill`, `decode` or `train`"
    ),
    Field("seq_len", value=lambda row: _length(row.workload), description="value of `--seq`: tokens per sequence"),
    Field("batch", value=lambda row: row.workload.batch, description="value of `--batch`: number of sequences"),
    Field(
        "attention",
        value=lambda row: "full" if row.workload.masked_pairs else "causal",
        description="value of `--attention`: whether masked (query, key) pairs are counted too (`full`) or not "
        "(`causal`)",
    ),
    Field("recompute", description="value of `--recompute`"),
    Field(
        "lora",
        value=lambda row: None if row.adapters is None else str(row.adapters),
        description="value of `--lora`, with its defaults: the adapters; null without adapters",
    ),
    Field(
        "absorbed_mla",
        value=lambda row: absorbs(row.spec, row.workload),
        description="whether latent attention (MLA) is counted in its absorbed form, which does not expand the "
        "latents; only decoding uses it",
    ),
    Field(
        "total_flops",
        value=lambda row: row.flops.total,
        description="FLOPs of the step: the forward pass, and in training also the backward pass",
    ),
    Field("matmul_flops", value=lambda row: row.flops.matmul, description="FLOPs of matrix products with weights"),
    Field(
        "attention_flops",
        value=lambda row: row.flops.attention,
        description="FLOPs of the two products of attention: queries with keys, and scores with values",
    ),
    Field(
        "recurrent_flops", value=lambda row: row.flops.recurrent, description="FLOPs of recurrences and convolutions"
    ),
    Field(
        "recompute_flops",
        value=lambda row: row.flops.recompute,
        description="FLOPs of the forward pass that the backward pass computes again; not part of `total_flops`",
    ),
    Field(
        "tokens",
        value=lambda row: row.flops.tokens,
        description="number of tokens that the step computes: `batch` × `seq_len`, or `batch` in decoding",
    ),
    Field("flops_per_token", value=lambda row: row.flops.per_token, description="`total_flops` / `tokens`"),
    Field(
        "rule_of_thumb_flops",
        value=lambda row: row.flops.rule,
        description="FLOPs of the step by the rule of thumb: 2·N per token, or 6·N per token in training. N is the "
        "number of active parameters without embeddings. Frozen parameters count 4·N",
    ),
    Field("components", value=lambda row: row.flops.components, description="FLOPs of each component"),
    Field(
        "launches",
        value=lambda row: None if row.by != "op" else _launches(row).totals,
        description="kernels that the step launches, for each fusion profile: `eager` (plain PyTorch), `fused` "
        "(llmbench's kernels) and `vllm` (approximate). A profile is null if the launches of an op are unknown, and in "
        "training. Only with `--by op`, else null. See [Kernel launches](../concepts/the-op-table.md#kernel-launches)",
    ),
    Field(
        "ops",
        value=lambda row: None if row.by != "op" else _every_op(row),
        description="list of all ops of the [op table](../concepts/the-op-table.md), also of those without FLOPs, each "
        "with `op`, `layers`, `count`, `flops` and `launches`, for all instances of the op. Only with `--by op`, else "
        "null",
    ),
)


def counted(
    specs: Iterable[ModelSpec],
    workload: Workload,
    recompute: Recompute = "none",
    lora: str = "",
    *,
    by: By = "component",
) -> list[Counted]:
    """Return the models with the FLOPs of one step. `lora`: adapters, such as `r=16,targets=q,v`. `by`: see `Counted`.

    Raises LLMBenchError for a recomputation or for adapters in a step without a backward pass.
    """
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
            tokens=workload.kv_len,
            flops=count_flops(spec, workload, recompute=recompute, adapters=adapters),
            workload=workload,
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
    lines = ["attention: share of the products of queries with keys and of scores with values"]
    lines += dict.fromkeys(
        f"{row.spec.name} is approximate: {reason}" for row in rows for reason in row.approximate_because
    )
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    step = {"prefill": "prefill", "train": "training step", "decode": "one new token after cached tokens"}
    return [
        Block(
            headline=comparison_headline([row.spec for row in rows], f"FLOPs · {step[rows[0].workload.phase]}"),
            table=table(fitted(columns, rows), rows),
            lines=lines,
            notes=notes,
        )
    ]


def workload_of(phase: Phase, seq: int, batch: int, **more: Any) -> Workload:
    """Return the workload of a phase. `more`: further fields of the workload and their values."""
    return {"prefill": Workload.prefill, "decode": Workload.decode, "train": Workload.train}[phase](seq, batch, **more)


def absorbs(spec: ModelSpec, workload: Workload) -> bool:
    """Return whether the model has latent attention (MLA), and this workload computes it in its absorbed form."""
    return workload.absorbed_mla and any(mixer.absorbs for mixer in spec.mixers)


def _length(workload: Workload) -> int:
    """Return the value of --seq: tokens per sequence, or cached tokens if the phase is decode."""
    return workload.kv_len - 1 if workload.phase == "decode" else workload.query_len


def _block(row: Counted, explain: bool) -> Block:
    flops, workload, by = row.flops, row.workload, row.by
    ops = [op for op in _ops(row) if step_flops(op, workload)]
    rows = _by_op(row, ops, explain) if by == "op" else _by_component(ops, workload, explain)
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
        *(Field[dict[str, Any]](f"launches_{name}") for name in (_launches(row).totals if by == "op" else ())),
        Field("formula", "formula", wraps=True, spare=0 if explain else 1),
    ]
    return model_block(
        row,
        context=_context(workload) + (f"\n{_adapters(row)}" if row.adapters is not None else ""),
        table=table(fitted(columns, rows), rows, total={by: "total", "flops": flops.total}),
        lines=_lines(row) + (_launches(row).lines(explain) if by == "op" and workload.phase != "train" else []),
    )


def _ops(row: Counted) -> list[Op]:
    return step_ops(row.spec, row.workload, row.adapters)


def _launches(row: Counted) -> Launched:
    from llmbench.answers.launches import Launched  # only --by op needs it

    return Launched(row.spec, row.workload, _ops(row))


def _figures(row: Counted, op: Op) -> dict[str, Any]:
    """Return the figures of all instances of an op."""
    return {"op": op.name, "layers": layer_group(op), "count": op.count, "flops": step_flops(op, row.workload)}


def _every_op(row: Counted) -> list[dict[str, Any]]:
    launched = _launches(row)
    return [{**_figures(row, op), "launches": launched.of(op)} for op in launched.ops]


def _context(w: Workload) -> str:
    step = {"prefill": "prefill of", "train": "training step on", "decode": "one new token after"}[w.phase]
    pairs = "all (query, key) pairs" if w.masked_pairs else "(query, key) pairs inside the mask"
    return f"{step} {plural(_length(w), 'token')} · batch {w.batch:,} · {pairs}"


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
    if absorbs(row.spec, w):
        lines.append("latent attention (MLA) is counted in its absorbed form: it does not expand the latents")
    if flops.recompute:
        source = "flash attention's scores" + (f" and --recompute {row.recompute}" if row.recompute != "none" else "")
        lines.append(f"not in the total: {si(flops.recompute)}FLOPs that the backward pass computes again ({source})")
    if flops.recurrent:
        lines.append("recurrences are counted token by token; kernels that compute chunks need another number of FLOPs")
    return lines


def _by_component(ops: list[Op], w: Workload, explain: bool) -> list[dict[str, Any]]:
    groups: dict[str, list[Op]] = {}
    for op in ops:
        groups.setdefault(_work(op), []).append(op)
    return [
        {"component": name, "formula": _text(name, group, w, explain), "flops": sum(step_flops(op, w) for op in group)}
        for name, group in groups.items()
    ]


def _by_op(row: Counted, ops: list[Op], explain: bool) -> list[dict[str, Any]]:
    launched = _launches(row)
    return [
        {
            **_figures(row, op),
            "formula": _text(_work(op), [op], row.workload, explain),
            **{f"launches_{name}": number for name, number in launched.of(op).items()},
        }
        for op in ops
    ]


def _work(op: Op) -> str:
    """Return the name of the table row that includes an op: attention scores, recurrence, or the op's component."""
    names = {"attention": "attention scores", "scan": "recurrence", "conv": "recurrence"}
    return names.get(op.kind, op.component)


def _text(name: str, ops: list[Op], w: Workload, explain: bool) -> str:
    """Return the formula of the FLOPs of some ops. Ops with and without gradients have different factors."""
    groups: dict[int, list[Op]] = {}
    for op in ops:
        groups.setdefault(step_flops(op, w) * 2 // (op.count * op.forward_flops), []).append(op)
    factors = sorted(groups, reverse=True)
    times = str(factors[0]) if len(factors) == 1 else f"({' or '.join(map(str, factors))})"
    if name == "attention scores":
        formula = f"{times} × (d_qk + d_v) × pairs × heads"
        numbers = [_scores(groups[factor], factor, w) for factor in factors]
    else:
        formula = f"{times} × tokens × " + ("(state + convolution taps)" if name == "recurrence" else "weights")
        numbers = [_products(groups[factor], factor, w) for factor in factors]
    return f"{formula} = {' + '.join(numbers)}" if explain else formula


def _products(ops: list[Op], times: int, w: Workload) -> str:
    """Return the FLOPs of products with numbers: a term for the tokens of the step, and one for those of an encoder.

    Weights that several layers share count once per layer. A few products have rows that do not depend on the tokens.
    """
    step = w.batch * w.query_len
    flops: dict[int, int] = {}
    for op in ops:
        tokens = op.rows if op.rows and (op.stack == "encoder" or ".cross_attention." in op.name) else step
        flops[tokens] = flops.get(tokens, 0) + op.count * op.forward_flops
    terms = []
    for tokens, total in flops.items():
        elements, rest = divmod(total, 2 * tokens)
        more = f" + {times // 2 * rest:,}" if rest else ""
        terms.append(f"{times} × {tokens:,} × {elements:,}{more}")
    return " + ".join(terms)


def _scores(ops: list[Op], times: int, w: Workload) -> str:
    """Return the FLOPs of attention scores with numbers: a product for each kind of scores."""
    layers: dict[tuple[int, int, int, int], int] = {}
    for op in ops:
        if op.scores is not None:
            layers[op.scores] = layers.get(op.scores, 0) + op.count
    terms = [
        f"{times} × ({d_qk:,} + {d_v:,}) × {plural(pairs, 'pair')} × {plural(heads, 'head')} × {plural(count, 'layer')}"
        for (d_qk, d_v, heads, pairs), count in layers.items()
    ]
    rest = sum(step_flops(op, w) for op in ops if op.scores is None)
    return " + ".join(terms + [f"{rest:,} for scores of positions"] * bool(rest))
