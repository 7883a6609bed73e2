"""Changes of spec fields, for the option `--set key=value`.

A key is the path of a field, with dots: `hidden_size`, `layers.block.mixer.num_key_value_heads`. In a path, `*` stands
for all names at its position. The name of a mixer or feed-forward field can stand alone (`num_key_value_heads`,
`num_experts`). The assignment then changes this field in all mixers and feed-forwards that have it.
`num_hidden_layers=N` repeats or cuts the pattern to N layers. A value is written as in TOML. A bare word is a string,
and `none` removes the field.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from llmbench.errors import SpecError, suggestion
from llmbench.spec.files import invalid
from llmbench.spec.model import ModelSpec
from llmbench.spec.pattern import format_pattern

_REMOVE = object()


def parse_assignments(items: Iterable[str]) -> dict[str, Any]:
    """Return texts of the form `key=value` as a mapping from key to value.

    Raises SpecError if a text does not have this form, or if a key occurs twice.
    """
    assignments: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(
                f"--set {item[:60]}: does not have the form key=value", hint="for example --set num_key_value_heads=8"
            )
        if len(key) > 200:
            raise SpecError(f"--set {key[:60]}...: the name is longer than every field name")
        if any("\ud800" <= character <= "\udfff" for character in item):
            raise SpecError(f"--set {key}: is not valid UTF-8")
        if key in assignments:
            raise SpecError(f"--set {key}: is given twice")
        assignments[key] = _value(value.strip())
    return assignments


def _value(text: str) -> Any:
    if text.lower() in ("none", "null"):
        return _REMOVE
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, KeyError, RecursionError, ValueError):
        return text


def override(spec: ModelSpec, assignments: Mapping[str, Any]) -> ModelSpec:
    """Return a copy of the spec in which the assigned fields are changed.

    assignments: new value of each field, with the plain types of TOML. None removes the field.

    Raises SpecError if a field does not exist or its new value is invalid. The message names the path of the field.
    """
    if not assignments:
        return spec
    if type(assignments.get("layers")) is int:
        raise SpecError(
            "--set layers: `layers` names the kinds of layers, not their number", hint="use num_hidden_layers"
        )
    try:
        return _changed(spec, assignments)
    except msgspec.ValidationError as problem:
        raise invalid(f"--set {_culprit(spec, assignments)}", problem) from None
    except SpecError as problem:
        where = "" if str(problem).startswith("--set") else "--set: "
        raise SpecError(f"{where}{problem}", hint=problem.hint) from None


def _changed(spec: ModelSpec, assignments: Mapping[str, Any]) -> ModelSpec:
    tree: dict[str, Any] = msgspec.to_builtins(spec)
    for key, value in assignments.items():
        wanted = _REMOVE if value is None else value
        if key == "num_hidden_layers":
            tree["pattern"] = _repeated(spec, wanted)
        else:
            _assign(spec, tree, key, wanted)
    tree.pop("published_parameters", None)  # the published parameter count does not hold for a changed model
    return msgspec.convert(tree, ModelSpec).check()


def _culprit(spec: ModelSpec, assignments: Mapping[str, Any]) -> str:
    """Return the key of the assignment that has the invalid value. To find it, try each assignment alone.

    The error message of msgspec does not name the layer, so our message needs the key.
    """
    for key, value in assignments.items():
        try:
            _changed(spec, {key: value})
        except msgspec.ValidationError:
            return key
        except SpecError:
            continue
    return ", ".join(assignments)


def _repeated(spec: ModelSpec, count: Any) -> str:
    """Return the pattern cut or repeated to `count` layers.

    Only a pattern with one kind of layer can be repeated. A cut must not remove all layers of a kind.

    Raises SpecError if the pattern cannot be cut or repeated to `count` layers.
    """
    if type(count) is not int or not 1 <= count <= 10_000:
        raise SpecError(f"--set num_hidden_layers: must be a whole number from 1 to 10000, not {count!r}")
    order = spec.order
    names = list(order[:count])
    if count > len(order):
        if len(set(order)) == 1:
            names += [order[0]] * (count - len(order))
        else:
            raise SpecError(
                f"--set num_hidden_layers: {spec.name} has {len(set(order))} kinds of layers in the order "
                f"`{spec.pattern}`, so llmbench does not know the order of {count} layers",
                hint="set the order: --set 'pattern=...'",
            )
    missing = set(order) - set(names)
    if missing:
        raise SpecError(
            f"--set num_hidden_layers: the first {count} layers of `{spec.pattern}` contain no `{sorted(missing)[0]}`",
            hint="set the order: --set 'pattern=...', and remove the kinds of layers that it does not use",
        )
    return format_pattern(names)


def _assign(spec: ModelSpec, tree: dict[str, Any], key: str, value: Any) -> None:
    path = key.split(".")
    if len(path) == 1 and key not in ModelSpec.__struct_fields__:
        places = list(_places(tree, spec, key))
        if not places:
            known = _field_with_the_words_of(key, spec) or suggestion(key, _known_fields(spec))
            raise SpecError(
                f"--set {key}: {spec.name} has no such field",
                hint=f"did you mean `{known}`?" if known else f"`llmbench specs show {spec.name}` shows its fields",
            )
    else:
        places = list(_resolve(tree, path, key))
    for place, field in places:
        if value is _REMOVE:
            place.pop(field, None)
        else:
            place[field] = value


def _resolve(tree: Any, path: list[str], key: str) -> Iterable[tuple[dict[str, Any], str]]:
    """Return all fields that match a path, each as (mapping that contains the field, field name).

    The path has dots, and `*` matches every name at its position.
    """
    nodes = [tree]
    for step, part in enumerate(path[:-1]):
        children: list[Any] = []
        for node in nodes:
            if isinstance(node, dict) and part == "*":
                children += node.values()
            elif isinstance(node, dict) and part in node:
                children.append(node[part])
            elif isinstance(node, list) and (part == "*" or (part.isdigit() and int(part) < len(node))):
                children += node if part == "*" else [node[int(part)]]
        if not children:
            prefix = ".".join(path[: step + 1])
            names = sorted({name for node in nodes if isinstance(node, dict) for name in node})
            near = suggestion(part, names)
            raise SpecError(
                f"--set {key}: this spec has no `{prefix}`",
                hint=f"did you mean `{near}`?" if near else f"choose from {', '.join(names)}" if names else None,
            )
        nodes = children
    places = [(node, path[-1]) for node in nodes if isinstance(node, dict)]
    if not places:
        raise SpecError(f"--set {key}: `{'.'.join(path[:-1])}` has no fields")
    return places


def _places(tree: dict[str, Any], spec: ModelSpec, field: str) -> Iterable[tuple[dict[str, Any], str]]:
    """Yield `field` in all mixers and feed-forwards that have it, each as (mapping that contains the field, field
    name)."""
    stacks = [(tree["layers"], spec.layers)]
    if spec.encoder is not None:
        stacks.append((tree["encoder"]["layers"], spec.encoder.layers))
    for nodes, layers in stacks:
        for name, layer in layers.items():
            for part in ("mixer", "cross_attention", "ffn"):
                typed = getattr(layer, part)
                if typed is not None:
                    yield from _fields_in(nodes[name][part], typed, field)


def _fields_in(node: dict[str, Any], typed: Any, field: str) -> Iterable[tuple[dict[str, Any], str]]:
    if field in typed.__struct_fields__:
        yield node, field
    for branch, inner in zip(node.get("branches", ()), getattr(typed, "branches", ()), strict=False):
        yield from _fields_in(branch, inner, field)


_LONG_WORDS = {"kv": "key value", "vocabulary": "vocab", "attn": "attention", "ctx": "position", "dim": "size"}
"""Words that users write, and the words that the names of fields contain instead."""


def _field_with_the_words_of(key: str, spec: ModelSpec) -> str | None:
    """Return the shortest field whose name contains all words of `key`, for example `num_key_value_heads` for
    `kv_heads`. Return None if there is no such field."""

    def words(name: str) -> set[str]:
        parts = " ".join(_LONG_WORDS.get(part, part) for part in name.lower().replace("-", "_").split("_"))
        return {part.rstrip("s") for part in parts.split()} - {"n", "num"}

    wanted = words(key)
    numbers = {"num_hidden_layers", *_known_fields(spec)} - {"layers", "head", "positions"}  # parts, not numbers
    matches = [name for name in numbers if wanted and wanted <= words(name) and name.endswith("s") >= key.endswith("s")]
    return min(matches, key=lambda name: (len(name), name), default=None)


def _known_fields(spec: ModelSpec) -> set[str]:
    fields = set(ModelSpec.__struct_fields__) | {"num_hidden_layers"}
    for layer in spec.layers.values():
        for part in (layer.mixer, layer.ffn):
            if part is not None:
                fields.update(part.__struct_fields__)
    return fields
