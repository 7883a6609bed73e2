"""Changes of spec fields, for the option `--set key=value`.

A key is the path of a field, with dots: `hidden_size`, `layers.block.mixer.num_key_value_heads`. In a path, `*` stands
for all names at its position. The end of a path is enough if it means one field: `mixer.head_dim`, `theta`. If several
kinds of layers have the same field with the same value, the key changes the field in all of them. Some keys of Hugging
Face configs are also accepted (`rope_theta`). `num_hidden_layers=N` repeats or cuts the pattern to N layers. A value is
written as in TOML. A bare word is a string, and `none` removes the field.

`layers.NEW=NAME` adds a kind of layer: a copy of the kind NAME, whose fields further keys can change.

A key that ends in `kind` changes the kind of a part: fields that the new kind does not have are dropped. The notes of
the changed spec say which fields were dropped, kept and set.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

import msgspec

from llmbench.errors import SpecError
from llmbench.spec import field_paths, kinds
from llmbench.spec.files import deep_key
from llmbench.spec.model import ModelSpec
from llmbench.spec.pattern import format_pattern
from llmbench.spec.schema import PLAIN, Path, Place, places, plain


def parse_assignments(
    items: Iterable[str], option: str = "--set", example: str = "num_key_value_heads=8"
) -> dict[str, Any]:
    """Return texts of the form `key=value` as a mapping from key to value. The value of `key=none` is None.

    `option`, `example`: the option with these texts and an example of a text, for messages.

    Raises SpecError if a text does not have this form, or if a key occurs twice.
    """
    assignments: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(
                f"{option} {item[:60]}: does not have the form key=value", hint=f"for example {option} {example}"
            )
        if len(key) > 200:
            raise SpecError(f"{option} {key[:60]}...: the name is longer than every field name")
        if any("\ud800" <= character <= "\udfff" for character in item):
            raise SpecError(f"{option} {key}: is not valid UTF-8")
        if key in assignments:
            raise SpecError(f"{option} {key}: is given twice")
        assignments[key] = _value(option, key, value.strip())
    return assignments


def _value(option: str, key: str, text: str) -> Any:
    """Return the value that a text in TOML has, or the text itself. Raises SpecError if it contains further keys."""
    if text.lower() in ("none", "null"):
        return None
    if deep_key(text) is not None:
        raise SpecError(f"{option} {key}: a key in the value has more than 30 parts")
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        return text
    if len(document) > 1:
        raise SpecError(f"{option} {key}: has more than one line", hint=f"give one {option} for each field")
    return document["value"]


def override(spec: ModelSpec, assignments: Mapping[str, Any]) -> ModelSpec:
    """Return a copy of the spec in which the assigned fields are changed.

    assignments: new value of each field, with the plain types of TOML. None removes the field.

    Raises SpecError if a field does not exist, if a key is ambiguous, if a new kind needs more fields, or if a new
    value is invalid. The message names the path of the field.
    """
    if not assignments:
        return spec
    if type(assignments.get("layers")) is int:
        raise SpecError(
            "--set layers: `layers` names the kinds of layers, not their number",
            hint=f"use num_hidden_layers={assignments['layers']}",
        )
    spec = msgspec.structs.replace(spec, weights=msgspec.structs.replace(spec.weights, tensors_in=""))  # another model
    change = _Change(spec)
    for key, value in sorted(assignments.items(), key=_order):
        change.assign(key, value)
    for switch in change.switches:
        switch.refuse_missing_fields(spec, assignments)
    return change.result()


def _order(assignment: tuple[str, Any]) -> int:
    """Return the turn of an assignment. Copies of layers come first, then fields of the model and whole parts, then
    kinds, then the rest."""
    key, value = assignment
    if _is_copy(key, value):
        return -1
    whole = isinstance(value, Mapping) and {"kind", "mixer", "ffn"} & set(value)
    if whole or (key in ModelSpec.__struct_fields__ and not isinstance(value, str)):
        return 0
    return 1 if key.rpartition(".")[2] == "kind" or key in ModelSpec.__struct_fields__ else 2


def _is_copy(key: str, value: Any) -> bool:
    """Return whether an assignment such as `layers.local=block` copies a kind of layer."""
    return isinstance(value, str) and key.startswith("layers.") and key.count(".") == 1


class _Change:
    """A spec as a tree, to which assignments are applied one after another.

    - tree: the fields of the changed spec. parts: all parts of the tree, or None if they have changed since the search.
    - changed: for each assigned field, its path and the key of the assignment.
    - assigned: for each set of fields, the key that changed exactly these.
    - switches: the parts whose kind changed.
    - notes: texts that say what else an assignment changed.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.tree: dict[str, Any] = plain(spec)
        self.parts: list[Place] | None = None
        self.changed: list[tuple[Path, str]] = []
        self.switches: list[kinds.Switch] = []
        self.notes: list[str] = []
        self.assigned: dict[frozenset[Path], str] = {}

    def assign(self, key: str, value: Any) -> None:
        """Change one field, or the same field of several parts."""
        if field_paths.spec_name(key) == "num_hidden_layers":
            self._claim([("pattern",)], key)
            self.tree["pattern"] = _repeated(self.spec, key, value)
            self.changed.append((("pattern",), key))
            return
        if _is_copy(key, value):
            self._copy_layer(key, value)
            return
        if self.parts is None:
            self.parts = list(places(self.tree, (ModelSpec,)))
        targets = field_paths.targets(self.tree, key, self.spec.name, self.parts)
        value = field_paths.value_for(targets[0], value)
        if isinstance(value, str) and targets[0].choices:  # `positions=alibi` is short for `positions.kind=alibi`
            if all(target.node.get(target.field) is not None for target in targets):
                self.assign(f"{key}.kind", value)
                return
            value = {"kind": value}
        if value is None or type(value) not in PLAIN or targets[0].field == "kind":
            self.parts = None
        self._claim((target.path for target in targets), key)
        for target in targets:
            self.changed.append((target.path, key))
            place = target.place
            if target.field == "kind" and place is not None:
                switch = kinds.switched(place, key, value, self.tree)
                if switch is not None:
                    self.switches.append(switch)
            elif value is None:
                target.node.pop(target.field, None)
            else:
                target.node[target.field] = plain(value)
        if len(targets) > 1 and "*" not in key and targets[0].field != "kind":
            paths = ", ".join(".".join(target.path) for target in targets)
            self.notes.append(f"{key} changed {len(targets)} fields: {paths}")

    def _copy_layer(self, key: str, source: str) -> None:
        """Add a kind of layer that is a copy of the kind `source`."""
        layers = self.tree["layers"]
        new = key.partition(".")[2]
        if new in layers:
            raise SpecError(f"--set {key}: {self.spec.name} has a kind of layer `{new}` already", hint="use a new name")
        if source not in layers:
            names = ", ".join(f"`{name}`" for name in layers)
            raise SpecError(f"--set {key}: there is no kind of layer `{source}` to copy", hint=f"choose from {names}")
        layers[new] = deepcopy(layers[source])
        self.parts = None
        self.changed.append((("layers", new), key))
        self.notes.append(f"layers.{new} is a copy of layers.{source}")

    def _claim(self, paths: Iterable[Path], key: str) -> None:
        """Raise SpecError if another key changes exactly these fields: the later one would win without a word."""
        first = self.assigned.setdefault(frozenset(paths), key)
        if first != key:
            raise SpecError(f"--set {first} and --set {key} change the same field")

    def result(self) -> ModelSpec:
        """Return the changed spec. Raises SpecError if it is invalid."""
        self.tree.pop("published_parameters", None)  # the published parameter count does not hold for a changed model
        if isinstance(self.tree.get("notes"), list):
            assigned = {path for path, _ in self.changed}
            self.tree["notes"] = [
                *kinds.notes(self.switches, assigned, self.tree),
                *self.notes,
                *self.tree["notes"],
            ]
        try:
            spec = msgspec.convert(self.tree, ModelSpec).check()
            spec.weights.refuse_place()
            return spec
        except msgspec.ValidationError as problem:
            raise self._type_error(problem) from None
        except SpecError as problem:
            where = "" if str(problem).startswith("--set") else "--set: "
            raise SpecError(f"{where}{problem}", hint=problem.hint) from None

    def _type_error(self, problem: msgspec.ValidationError) -> SpecError:
        from llmbench.spec.diagnosis import message, type_fault  # imported here, because only an error needs it

        fault = type_fault(self.tree)
        if fault is None:  # a rule that only msgspec knows
            return SpecError(f"--set {', '.join(key for _, key in self.changed)}: {problem}")
        path = fault[0]
        keys = [key for changed, key in self.changed if changed == path[: len(changed)] or path == changed[: len(path)]]
        key = keys[-1] if keys else ""
        what = fault[1].what if fault[1].field == key else message(fault[1])
        return SpecError(f"--set {key}: {what}", hint=fault[1].hint)


def _repeated(spec: ModelSpec, key: str, count: Any) -> str:
    """Return the pattern cut or repeated to `count` layers.

    Only a pattern with one kind of layer can be repeated. A cut must not remove all layers of a kind.

    Raises SpecError if the pattern cannot be cut or repeated to `count` layers.
    """
    if type(count) is not int or not 1 <= count <= 10_000:
        raise SpecError(f"--set {key}: must be a whole number from 1 to 10000, not {count!r}")
    order = spec.order
    names = list(order[:count])
    if count > len(order):
        if len(set(order)) == 1:
            names += [order[0]] * (count - len(order))
        else:
            raise SpecError(
                f"--set {key}: {spec.name} has {len(set(order))} kinds of layers in the order "
                f"`{spec.pattern}`, so llmbench does not know the order of {count} layers",
                hint="set the order: --set 'pattern=...'",
            )
    missing = set(order) - set(names)
    if missing:
        raise SpecError(
            f"--set {key}: the first {count} layers of `{spec.pattern}` contain no `{sorted(missing)[0]}`",
            hint="set the order: --set 'pattern=...', and remove the kinds of layers that it does not use",
        )
    return format_pattern(names)
