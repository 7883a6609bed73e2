"""A change of the kind of a part: of a mixer, a feed-forward, a position encoding or a norm.

The new part keeps the fields that both kinds have. Fields that only the old kind has are dropped. A field that only the
new kind has gets the value that a rule of this file gives, or its default. A field without either must be assigned too.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Any, NamedTuple

import msgspec

from llmbench.errors import SpecError
from llmbench.spec.base import Part
from llmbench.spec.diagnosis import did_you_mean, listed, nearest_kind, shown, unknown_kind, words_of
from llmbench.spec.ffn import Dense, MoE
from llmbench.spec.mixer import Attention, LatentAttention
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.position import SCALING_FIELDS, LearnedPositions, RopeScaling
from llmbench.spec.schema import FieldType, Path, Place, fields_of, places, plain, tag_of

OTHER_SIZES: dict[type[Part], tuple[str, ...]] = {MoE: ("intermediate_size",)}
"""Fields that both kinds have, but whose usual value differs: one expert is smaller than a whole feed-forward."""


class Usual(NamedTuple):
    """A value that a rule gives to a field of the new kind, and the reason for it."""

    value: Any
    reason: str


class Switch(NamedTuple):
    """A part whose kind changed.

    - key: the key that the user wrote.
    - path, node, part: the path, the fields and the new class of the part.
    - old, before: the class and the fields of the part before the change.
    - usual: the values that rules gave to fields.
    """

    key: str
    path: Path
    node: dict[str, Any]
    part: type[Part]
    old: type[Part] | None
    before: dict[str, Any]
    usual: dict[str, Usual]

    def said(self, assigned: Set[Path]) -> str:
        """Return a text that says which fields were dropped, set and kept.

        assigned: paths of the fields that the user assigned. The text does not name them.
        """

        def free(name: str) -> bool:
            return name != "kind" and (*self.path, name) not in assigned

        fields, before, kind = fields_of(self.part), self.before, self.before.get("kind")
        usual = {name: rule for name, rule in self.usual.items() if free(name)}
        dropped = [name for name in before if name not in self.node and self._matters(name) and free(name)]
        kept = [
            f"{name} = {shown(value)}"
            for name, value in self.node.items()
            if name in before and name not in usual and free(name) and value not in (None, [], fields[name].default)
        ]
        reasons: dict[str, list[str]] = {}
        for name, (value, reason) in usual.items():
            text = f"dropped {name}" if value is False and before.get(name) else f"set {name} = {shown(value)}"
            reasons.setdefault(reason, []).append(text)
        parts = [
            f"dropped {', '.join(dropped)} of the old kind {kind}" if dropped else "",
            *(f"{', '.join(texts)} ({reason})" for reason, texts in reasons.items()),
            f"kept {', '.join(kept)}" if kept else "",
        ]
        return ", ".join(filter(None, parts)) or f"replaces the kind {kind}"

    def _matters(self, name: str) -> bool:
        """Return whether a dropped field is worth a note: its value is not the default, or it is a size or a base."""
        value = self.before[name]
        if self.old is None or name == "kind" or value in (None, []):
            return False
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 <= value <= 1
        return bool(value != plain(fields_of(self.old)[name].default)) or number

    def refuse_missing_fields(self, spec: ModelSpec, assignments: Mapping[str, Any]) -> None:
        """Raise SpecError if no assignment gives a field that the new kind needs. The hint has a complete command."""
        fields = fields_of(self.part).items()
        missing = [name for name, field in fields if field.required and name not in self.node]
        if missing:
            what = f"--set {self.key}={tag_of(self.part)}: the kind `{tag_of(self.part)}` also needs {listed(missing)}"
            raise SpecError(what, hint=_example(self, missing, spec, assignments))


def switched(place: Place, key: str, kind: Any, tree: Mapping[str, Any]) -> Switch | None:
    """Change the kind of a part in the tree. Return None if the part has this kind already.

    key: the key that the user wrote, for messages.

    Raises SpecError if there is no such kind.
    """
    new, old, before = _class_of(place, key, kind), place.part, dict(place.node)
    if before.get("kind") == kind:
        return None
    fields = {name: field for name, field in fields_of(new).items() if _has(new, kind, name)}
    usual = dict(_usual(new, old, before, tree, kind))
    keep = {name: before[name] for name in fields if name in before and _fits(before[name], fields[name])}
    place.node.clear()
    place.node.update(keep | {name: value for name, (value, _) in usual.items()} | {"kind": kind})
    return Switch(key, place.path, place.node, new, old, before, usual)


def notes(switches: Sequence[Switch], assigned: Set[Path], tree: Mapping[str, Any]) -> Iterator[str]:
    """Yield a note for each change of kinds. Parts that changed in the same manner share a note.

    assigned: paths of the fields that the user assigned.
    """
    alike: dict[tuple[str, str], list[str]] = {}
    for switch in switches:
        paths = alike.setdefault((str(switch.node.get("kind")), switch.said(assigned)), [])
        paths.append(".".join((*switch.path, "kind")))
    for (kind, said), paths in alike.items():
        yield f"{' and '.join(paths)} = {kind}: {said}"
    for switch in switches:
        if len(switch.path) == 1:  # the positions or the norm of the whole model
            for other in places(tree, (ModelSpec,)):
                if other.path[-1:] == switch.path and len(other.path) > 1:
                    yield f"{'.'.join(other.path)} keeps its own kind {other.node.get('kind')}"


def _has(part: type[Part], kind: Any, field: str) -> bool:
    """Return whether a kind uses a field of its class."""
    if part is RopeScaling:
        return field in ("kind", "factor", *SCALING_FIELDS[kind])
    return True


def _class_of(place: Place, key: str, kind: Any) -> type[Part]:
    """Return the class of a part with the new kind. Raises SpecError if there is no such kind."""
    tags = {tag_of(choice): choice for choice in place.choices}
    if isinstance(kind, str) and kind in tags:
        return tags[kind]
    part = place.choices[0]
    if None not in tags:
        fault = unknown_kind(".".join(place.path), {"kind": kind}, place.choices)
        raise SpecError(f"--set {key}: {fault.what}", hint=fault.hint)
    words = words_of(fields_of(part)["kind"].annotation)  # the kind is a field that accepts certain texts
    if kind not in words:
        near = nearest_kind(str(kind), place.choices)
        what = f"--set {key}: there is no kind {shown(kind)}"
        raise SpecError(what, hint=did_you_mean(near, f"the kinds are {', '.join(words)}"))
    return part


def _fits(value: Any, field: FieldType) -> bool:
    try:
        msgspec.convert(value, field.annotation)
    except msgspec.ValidationError:
        return False
    return True


def _usual(
    new: type[Part], old: type[Part] | None, before: Mapping[str, Any], tree: Mapping[str, Any], kind: Any
) -> Iterator[tuple[str, Usual]]:
    """Yield the fields of the new kind whose value follows from the model by a rule that the field uses."""
    if new is Norm:
        bias = Norm(kind=kind).usual_bias
        if bias != before.get("bias"):
            yield "bias", Usual(bias, f"{kind} usually has {'a bias' if bias else 'none'}")
    if new is LearnedPositions and tree.get("max_position_embeddings") is not None:
        yield "num_positions", Usual(tree["max_position_embeddings"], "max_position_embeddings")
    if new is MoE and old is Dense:
        yield "gated", Usual(False, "the old feed-forward has no gate")
    if new is Attention and old is LatentAttention:
        ordinary = msgspec.convert(before, LatentAttention).ordinary
        for name in ("num_key_value_heads", "head_dim", "v_head_dim"):
            yield name, Usual(getattr(ordinary, name), "as in mla without the latent vectors")


def _example(switch: Switch, missing: list[str], spec: ModelSpec, assignments: Mapping[str, Any]) -> str:
    """Return a hint with assignments of the missing fields. A bundled model with this kind gives the values.

    Of the models whose values this model accepts, the model with the most similar hidden_size is taken.
    """
    from llmbench.spec.files import inline
    from llmbench.spec.override import override

    prefix = switch.key.removesuffix("kind")
    other = [name for name in OTHER_SIZES.get(switch.part, ()) if f"{prefix}{name}" not in assignments]
    missing = [*missing, *other]
    models = sorted(models_with(switch.part), key=lambda known: (abs(known[1] - spec.hidden_size), known[0]))
    for model, _, part in models:
        values = {f"{prefix}{name}": getattr(part, name) for name in missing}
        for more in ({}, {"positions.kind": "none"}):
            try:
                override(spec, {**assignments, **values, **more})
            except SpecError:
                continue
            every = {**assignments, **values, **more}
            options = (f"--set {shlex.quote(f'{key}={_text(value, inline)}')}" for key, value in every.items())
            return f"for example, with the values of {model}: {' '.join(options)}"
    return f"add {' '.join(f'--set {prefix}{name}=...' for name in missing)}"


def _text(value: Any, inline: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else inline(value)


@cache
def models_with(part: type[Part]) -> tuple[tuple[str, int, Part], ...]:
    """Return the bundled models that have such a part, as (name, hidden_size, part)."""
    from llmbench.spec.catalog import bundled_models, load_bundled, model_text

    models = []
    for name in bundled_models():
        if f'"{tag_of(part)}"' in model_text(name):
            spec = load_bundled(name)
            models += [(name, spec.hidden_size, known) for known in list(_parts_of(spec, part))[:1]]
    return tuple(models)


def _parts_of(value: Any, part: type[Part]) -> Iterator[Part]:
    if isinstance(value, part):
        yield value
    inside = [getattr(value, name) for name in value.__struct_fields__] if isinstance(value, Part) else value
    if isinstance(inside, (list, tuple, dict)):
        for inner in inside.values() if isinstance(inside, dict) else inside:
            yield from _parts_of(inner, part)
