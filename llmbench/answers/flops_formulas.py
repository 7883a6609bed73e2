"""The formulas of the FLOPs of a step, as texts for the tables of `llmbench flops`."""

from __future__ import annotations

from llmbench.answers.flops_row import Counted
from llmbench.report.units import plural
from llmbench.sizing.flops import step_flops, step_ops
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Workload


def work_of(op: Op) -> str:
    """Return the name of the table row that includes an op: attention scores, recurrence, or the op's component."""
    names = {"attention": "attention scores", "scan": "recurrence", "conv": "recurrence"}
    return names.get(op.kind, op.component)


def formula_of(name: str, ops: list[Op], row: Counted, explain: bool) -> str:
    """Return the formula of the FLOPs of some ops. Ops with and without gradients have different factors."""
    factors = sorted({_factor(op, row.workload) for op in ops}, reverse=True)
    times = str(factors[0]) if len(factors) == 1 else f"({' or '.join(map(str, factors))})"
    scores = name == "attention scores"
    if scores:
        formula = f"{times} × (d_qk + d_v) × pairs × heads"
    else:
        formula = f"{times} × tokens × " + ("(state + convolution taps)" if name == "recurrence" else "weights")
    if not explain:
        return formula
    terms = _scores if scores else _products
    numbers = []
    for w, some in _by_part(row, ops):
        for factor in factors:
            alike = [op for op in some if _factor(op, w) == factor]
            numbers += [terms(alike, factor, w)] if alike else []
    return f"{formula} = {' + '.join(numbers)}"


def _factor(op: Op, w: Workload) -> int:
    """Return the FLOPs per multiply-add of the forward pass: 2, and more if the step has a backward pass."""
    return step_flops(op, w) * 2 // (op.count * op.forward_flops)


def _by_part(row: Counted, ops: list[Op]) -> list[tuple[Workload, list[Op]]]:
    """Return the parts of the step, each with the work of these ops for it."""
    if row.chunk is None:
        return [(row.workload, ops)]
    wanted = {(op.name, op.layers) for op in ops}
    parts = [(w, step_ops(row.spec, w)) for w in row.parts]
    return [(w, [op for op in every if (op.name, op.layers) in wanted and op.forward_flops]) for w, every in parts]


def _products(ops: list[Op], times: int, w: Workload) -> str:
    """Return the FLOPs of products with numbers: a term for the tokens of the step, and one for those of an encoder.

    Weights that several layers share count once per layer. A few products have rows that do not depend on the tokens.
    """
    step = w.batch * w.query_len
    flops: dict[int, int] = {}
    for op in ops:
        other = op.stack == "encoder" or ".cross_attention." in op.name
        tokens = op.rows if op.rows and (other or op.forward_flops == 2 * op.rows * op.matmul_elements) else step
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
