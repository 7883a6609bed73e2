"""Formulas as texts: sums of products of spec field names.

Each op has a formula for its number of parameters (`hidden_size × num_attention_heads × head_dim`). This module adds
several formulas into one (`4 × hidden²`) and replaces names by numbers. The texts only explain the figures. The code in
`lower` computes the figures. A test evaluates each formula and compares the result with the figure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from llmbench.sizing.op import Op
from llmbench.spec.mixer import AttentionKind, CacheRow, SingleMixer, branches
from llmbench.spec.model import Layer, ModelSpec

Term = tuple[str, ...]
"""The factors of a product, in alphabetical order."""

_SHORT = {
    "hidden_size": "hidden",
    "intermediate_size": "intermediate",
    "vocab_size": "vocab",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "num_experts": "experts",
    "moe_intermediate_size": "intermediate",
    "shared.intermediate_size": "shared.intermediate",
    "q_lora_rank": "q_lora",
    "kv_lora_rank": "kv_lora",
    "qk_nope_head_dim": "nope_dim",
    "qk_rope_head_dim": "rope_dim",
    "v_head_dim": "v_dim",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_ORDER = ("vocab", "hidden", "experts", "heads", "kv_heads", "head_dim")


def terms(formula: str) -> Counter[Term]:
    """Count how often each product occurs in a formula. A sum in brackets counts as one factor."""
    counted: Counter[Term] = Counter()
    for product in _split(formula, "+"):
        coefficient, factors = 1, []
        for factor in _split(product, "×"):
            if factor.isdigit():
                coefficient *= int(factor)
            elif factor.startswith("(") and not {"+", "/"} & set(factor) and factor.count("(") == 1:
                factors += _split(factor[1:-1], "×")
            else:
                factors.append(factor)
        counted[tuple(sorted(factors))] += coefficient
    return counted


def _split(text: str, sign: str) -> list[str]:
    """Split the text at each `sign` that is outside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == sign and not depth:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def simplify(formulas: Iterable[str], layer: Layer | None, spec: ModelSpec) -> str:
    """Add several formulas into one. `heads × head_dim` becomes `hidden` if both are equal in this model."""
    total: Counter[Term] = Counter()
    attention = next((m for m in branches(layer.mixer if layer else None) if isinstance(m, AttentionKind)), None)
    for formula in formulas:
        for term, count in terms(formula).items():
            total[tuple(sorted(_merged(term, attention, spec)))] += count
    shown = [_shown(term, count) for term, count in total.items()]
    return " + ".join(shown)


def _merged(term: Term, attention: AttentionKind | None, spec: ModelSpec) -> list[str]:
    factors = list(term)
    if attention is not None:
        if attention.num_key_value_heads == attention.num_attention_heads:
            factors = ["num_attention_heads" if f == "num_key_value_heads" else f for f in factors]
        if attention.num_key_value_heads == 1:
            factors = [f for f in factors if f != "num_key_value_heads"]
        whole = attention.num_attention_heads * attention.key_dim == spec.hidden_size
        if whole and "num_attention_heads" in factors and "head_dim" in factors:
            factors.remove("num_attention_heads")
            factors.remove("head_dim")
            factors.append("hidden_size")
    return factors


def _shown(term: Term, count: int) -> str:
    powers = Counter(with_texts(factor, _SHORT) for factor in term)
    order = sorted(powers, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    factors = [name + {1: "", 2: "²", 3: "³"}.get(powers[name], f"^{powers[name]}") for name in order]
    if count != 1 or not factors:
        factors.insert(0, str(count))
    return " × ".join(factors)


def with_numbers(formula: str, values: Mapping[str, int]) -> str:
    """Replace every known name in the formula by its number."""
    return with_texts(formula, {name: str(value) for name, value in short_names(values).items()})


def short_names(values: Mapping[str, int]) -> dict[str, int]:
    """Return the values with two names each: the name of the spec field, and its short name."""
    return {**{_SHORT.get(name, name): value for name, value in values.items()}, **values}


def with_texts(formula: str, texts: Mapping[str, str]) -> str:
    """Replace every known name in the formula by its text."""
    return _NAME.sub(lambda match: texts.get(match[0], match[0]), formula)


def values_of(op: Op, spec: ModelSpec) -> dict[str, int]:
    """Return the number that each name in an op's formula stands for."""
    values: dict[str, Any] = {"hidden_size": spec.hidden_size, "vocab_size": spec.vocab_size}
    values["embedding_size"] = spec.embedding.size or spec.hidden_size
    values["token_types"] = spec.embedding.token_types
    if spec.embedding.per_layer is not None:
        values["num_hidden_layers"] = spec.num_hidden_layers
        values |= {f"per_layer.{name}": value for name, value in numbers_of(spec.embedding.per_layer).items()}
    values |= numbers_of(spec.positions)
    if spec.hyper_connections is not None:
        values["streams"] = spec.hyper_connections.streams
    if spec.encoder is not None:
        inside = numbers_of(spec.encoder)
        if spec.encoder.positions is not None:
            inside |= numbers_of(spec.encoder.positions)
        values |= {f"encoder.{name}": value for name, value in inside.items()}
    layers = spec.encoder.layers if op.stack == "encoder" and spec.encoder else spec.layers
    layer = layers.get(op.layer)
    if layer is None:
        return values
    parts: list[Any] = branches_of(op, layer)
    if ".cross_attention." in op.name:
        parts = [layer.cross_attention]
    elif ".ffn." in op.name:
        parts = [layer.ffn]
    for part in filter(None, parts):
        values |= numbers_of(part)
        for inner in ("shared", "beside", "router"):
            nested = getattr(part, inner, None)
            if nested is not None:
                values |= {f"{inner}.{name}": value for name, value in numbers_of(nested).items()}
        indexer = getattr(part, "indexer", None)
        if indexer is not None:
            values |= {"index_n_heads": indexer.num_heads, "index_head_dim": indexer.head_dim}
    return values


def branches_of(op: Op, layer: Layer) -> list[SingleMixer]:
    """Return the mixers of a layer whose module name occurs in the op's name."""
    return [mixer for mixer in branches(layer.mixer) if f".{mixer.module_name}." in op.name]


def cache_formula(mixer: SingleMixer, rows: Sequence[CacheRow]) -> str:
    """Return the formula for the elements per token in these cache rows: `2 × kv_heads × head_dim`."""
    if mixer.shares_kv:
        return "none: the layer reads the cache of another layer"
    parts = [row.formula for row in rows] + ["a fixed state"] * (mixer.fixed_state is not None)
    return ", + ".join(parts) or "none"


def numbers_of(part: msgspec.Struct) -> dict[str, int]:
    """Return the integer fields of a part of a spec, by name."""
    fields = {name: getattr(part, name) for name in part.__struct_fields__}
    return {name: value for name, value in fields.items() if type(value) is int}


class Formula(msgspec.Struct, frozen=True, kw_only=True):
    """How one figure is computed: a formula with numbers, and its value.

    term: the figure that the formula computes. text: the formula. A name after a number says what the number is. Only
        numbers, +, −, ×, /, brackets, ceil and floor change the value.
    value: the value of the formula. unit: bytes, or a number of parameters.
    """

    term: str
    text: str
    value: int
    unit: Literal["bytes", "parameters"] = "bytes"


def counted(number: float, noun: str = "") -> str:
    """Return a number with its noun: `4,096 tokens`, `1 sequence`. The noun is in the plural."""
    text = f"{number:,}"
    if number == 1 and noun.endswith("s") and not noun.endswith("ss"):
        noun = noun[: -2 if noun.endswith("ches") else -1]
    return f"{text} {noun}" if noun else text


def times(*factors: str) -> str:
    """Return the product of several factors. A factor that is a sum gets brackets."""
    chosen = [factor for factor in factors if factor]
    if len(chosen) > 1:
        chosen = [f"({factor})" if " + " in factor and not _bracketed(factor) else factor for factor in chosen]
    return " × ".join(chosen)


def _bracketed(text: str) -> bool:
    """Return whether no sum of the text is outside brackets."""
    return len(_split(text, "+")) < 2


def plus(*terms: str) -> str:
    """Return the sum of several terms, or `0` if there is none. A negative term is subtracted."""
    chosen = [term for term in terms if term]
    return " + ".join(chosen).replace("+ -", "− ") or "0"


def divided(text: str, whole: int, parts: int, noun: str, share: int) -> str:
    """Return the formula of one share of `whole`, which the formula `text` computes.

    parts: number of shares. share: bytes of one share. It can be larger than the quotient, because each tensor of
        `whole` is divided by itself and rounded up.
    """
    if parts == 1:
        return text
    quotient = f"{text if _bracketed(text) else f'({text})'} / {counted(parts, noun)}"
    exact, rest = divmod(whole, parts)
    if not rest and exact == share:
        return quotient
    least = -(-whole // parts)
    return f"ceil({quotient})" + (f" + {share - least:,} from rounding up each tensor" if share > least else "")


def shared(whole: int, parts: int, noun: str) -> str:
    """Return the formula of the largest share of a number: `8 / 4 kv_heads`, or `ceil(9 / 4) kv_heads`."""
    if parts == 1:
        return counted(whole, noun)
    return f"({whole:,} / {parts:,}) {noun}" if whole % parts == 0 else f"ceil({whole:,} / {parts:,}) {noun}"
