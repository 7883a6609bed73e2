"""The types of the fields of a spec, and a walk through all parts of a spec that is still plain data.

A *tree* is a spec as plain data: dicts, lists, numbers and texts, as a TOML parser returns them. Values may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import msgspec

from llmbench.spec.base import Kind, Part

Path = tuple[str, ...]
"""The names on the path of a value: ("layers", "block", "mixer", "head_dim")."""


class FieldType(NamedTuple):
    """The type of a field.

    - annotation: the type, as msgspec accepts it.
    - required: whether a part must have the field.
    - default: the default value of the field, if it is not required.
    - shape: "part": the value is a part. "table": the value is a dict of parts. "list": the value is a list of parts.
      "value": the value contains no part.
    - choices: the classes that the part, or each part inside the value, can have.
    """

    annotation: Any
    required: bool
    default: Any
    shape: Literal["part", "table", "list", "value"]
    choices: tuple[type[Part], ...]


class Place(NamedTuple):
    """A part of a tree.

    - path: the path of the part. The path of the whole model is empty.
    - node: the fields of the part.
    - part: the class of the part. None: `kind` is missing or wrong.
    - choices: the classes that the part can have.
    """

    path: Path
    node: dict[str, Any]
    part: type[Part] | None
    choices: tuple[type[Part], ...]


@cache
def fields_of(part: type[Part]) -> Mapping[str, FieldType]:
    """Return the types of the fields of a class by name. `kind` of a tagged class is not among them."""
    types = {}
    for field in msgspec.structs.fields(part):
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        types[field.name] = FieldType(field.type, field.required, default, *_shape(field.type))
    return types


@cache
def _fields_with_parts(part: type[Part]) -> tuple[tuple[str, FieldType], ...]:
    return tuple((name, field) for name, field in fields_of(part).items() if field.shape != "value")


def _shape(annotation: Any) -> tuple[Literal["part", "table", "list", "value"], tuple[type[Part], ...]]:
    classes: list[type[Part]] = []
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, Part):
            classes.append(option)
        elif get_origin(option) is dict and (inner := _shape(get_args(option)[1])[1]):
            return "table", inner
        elif get_origin(option) is tuple and (inner := _shape(get_args(option)[0])[1]):
            return "list", inner
    return ("part" if classes else "value"), tuple(classes)


def _options(annotation: Any) -> Sequence[Any]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


@cache
def tag_of(part: type[Part]) -> str | None:
    """Return the name of a kind in a spec file: `mla` for LatentAttention. None: the class has no `kind`."""
    return str(part.__struct_config__.tag) if issubclass(part, Kind) else None


def type_of(node: Mapping[str, Any], choices: Sequence[type[Part]]) -> type[Part] | None:
    """Return the class of a part, which its `kind` selects. None: `kind` is missing or wrong."""
    if len(choices) == 1:
        return choices[0]
    kind = node.get("kind")
    return next((choice for choice in choices if tag_of(choice) == kind), None)


PLAIN = frozenset((type(None), bool, int, float, str))
"""The types of values that contain no parts. They are the same in a spec and in a tree."""


def plain(value: Any) -> Any:
    """Return a part as a tree. The tree also has the fields that have their default value."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, Part):
        tag = tag_of(type(value))
        tree: dict[str, Any] = {} if tag is None else {"kind": tag}
        for name in value.__struct_fields__:
            inner = getattr(value, name)
            tree[name] = inner if type(inner) in PLAIN else plain(inner)
        return tree
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return list(map(plain, value)) if isinstance(value, (tuple, list)) else value


def places(node: Any, choices: tuple[type[Part], ...], path: Path = ()) -> Iterator[Place]:
    """Yield a part of a tree and all parts inside it. Values that are not parts are skipped."""
    if not isinstance(node, dict):
        return
    part = type_of(node, choices)
    yield Place(path, node, part, choices)
    for name, field in () if part is None else _fields_with_parts(part):
        inside = node.get(name)
        match field.shape:
            case "part" if inside is not None:
                yield from places(inside, field.choices, (*path, name))
            case "table" if isinstance(inside, dict):
                for key, inner in inside.items():
                    yield from places(inner, field.choices, (*path, name, str(key)))
            case "list" if isinstance(inside, (list, tuple)):
                for number, inner in enumerate(inside):
                    yield from places(inner, field.choices, (*path, name, str(number)))
            case _:
                pass


class Known(NamedTuple):
    """A place in a spec that can have a field: the path with NAME for names of layers, and the class of the part."""

    path: Path
    part: type[Part]


@cache
def every_place(root: type[Part]) -> tuple[Known, ...]:
    """Return every part that a spec can have. An encoder is left out, because its layers have the same parts."""
    return tuple(_every_place(root, ()))


def _every_place(part: type[Part], path: Path) -> Iterator[Known]:
    yield Known(path, part)
    for name, field in fields_of(part).items():
        if name != "encoder":
            step = {"table": ("NAME",), "list": ("0",)}.get(field.shape, ())
            for choice in field.choices:
                yield from _every_place(choice, (*path, name, *step))
