"""The formulas in answers, evaluated: each gives the figure beside it."""

from __future__ import annotations

import ast
import operator
import re

import pytest

from llmbench.sizing.formula import simplify, values_of, with_numbers
from llmbench.sizing.lower import lower, lower_next_token_prediction
from llmbench.sizing.op import Op
from llmbench.sizing.params import ONE_TOKEN, count_parameters, layer_group
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.model import Layer, ModelSpec

each_model = pytest.mark.parametrize("name", bundled_models())

_OPERATORS = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}


def evaluate(text: str) -> int:
    """A formula without names: numbers, ×, +, /, brackets and powers."""
    text = text.replace("×", "*").replace("/", "//").replace("²", "**2").replace("³", "**3").replace("^", "**")
    return _value(ast.parse(text, mode="eval").body)


def _value(node: ast.expr) -> int:
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int)
        return node.value
    assert isinstance(node, ast.BinOp), ast.dump(node)
    return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))


def put_in(formula: str, values: dict[str, int]) -> str:
    """The formula with numbers in place of names; KeyError for a name that stands for nothing."""
    return re.sub(r"[A-Za-z_][\w.]*", lambda name: str(values[name[0]]), formula)


def layer_of(op: Op, spec: ModelSpec) -> Layer | None:
    """The kind of layer an op stands in."""
    stack = spec.encoder.layers if op.stack == "encoder" and spec.encoder else spec.layers
    return stack.get(op.layer)


def ops_of(spec: ModelSpec) -> list[Op]:
    """Every op with parameters, of decoder, encoder and multi-token prediction."""
    ops = [*lower(spec, ONE_TOKEN), *lower_next_token_prediction(spec, ONE_TOKEN)]
    return [op for op in ops if op.parameters]


def check_every_op(spec: ModelSpec) -> None:
    """The formula of every op comes to its parameters, as it is, simplified, and with its numbers shown."""
    for op in ops_of(spec):
        values = values_of(op, spec)
        assert op.formula, f"{op.name} has no formula"
        assert evaluate(put_in(op.formula, values)) == op.parameters, f"{op.name}: {op.formula}"
        shown = with_numbers(op.formula, values)
        assert not re.search(r"[A-Za-z]", shown), f"{op.name}: {shown}"
        assert evaluate(shown) == op.parameters


def check_components(spec: ModelSpec) -> None:
    """One simplified formula for what a component has in a kind of layer comes to the sum of its ops."""
    groups: dict[tuple[str, str, str], list[Op]] = {}
    for op in ops_of(spec):
        groups.setdefault((op.stack, layer_group(op), op.component), []).append(op)
    for place, chosen in groups.items():
        values: dict[str, int] = {}
        for op in chosen:
            values |= values_of(op, spec)
        text = simplify([op.formula for op in chosen], layer_of(chosen[0], spec), spec)
        assert evaluate(with_numbers(text, values)) == sum(op.parameters for op in chosen), f"{place}: {text}"


@each_model
def test_every_formula_gives_its_figure(name: str) -> None:
    check_every_op(load_bundled(name))


@each_model
def test_a_components_formula_gives_its_sum(name: str) -> None:
    check_components(load_bundled(name))


UNBUNDLED = {
    "bart": {},
    "deberta-v2": {},
    "falcon_h1": {},
    "gemma3n_text": {},
    "kimi_linear": {},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "longcat_flash": {},
    "minimax": {},
    "opt": {"word_embed_proj_dim": 512},
    "rwkv": {},
    "t5gemma": {},
    "zamba2": {},
}
"""Model types whose parts no bundled model has, and the keys that their classes' defaults lack."""


@pytest.mark.parametrize("model_type", UNBUNDLED)
def test_formulas_of_the_class_defaults(model_type: str) -> None:
    spec = from_config({"model_type": model_type, **UNBUNDLED[model_type]}, name=model_type)
    check_every_op(spec)
    check_components(spec)


def test_the_textbook_formulas() -> None:
    """The figures that people know by heart, as a component's formula says them."""
    spec = load_bundled("llama2-7b")
    by_component: dict[str, list[str]] = {}
    for op in ops_of(spec):
        if op.layer:
            by_component.setdefault(op.component, []).append(op.formula)
    block = spec.layers["block"]
    assert simplify(by_component["attention"], block, spec) == "4 × hidden²"
    assert simplify(by_component["mlp"], block, spec) == "3 × hidden × intermediate"
    assert count_parameters(spec).components["attention"] == 32 * 4 * 4096**2


def test_a_formula_that_is_wrong_is_noticed() -> None:
    """The check above can fail: the evaluator distinguishes hidden² and hidden × intermediate."""
    values = {"hidden_size": 4096, "intermediate_size": 11008}
    assert evaluate(put_in("hidden_size × intermediate_size", values)) == 4096 * 11008
    assert evaluate("2 × 3² + (4 + 1) × 2^4 / 2") == 18 + 40
    with pytest.raises(KeyError):
        put_in("hidden_size × heads", values)
