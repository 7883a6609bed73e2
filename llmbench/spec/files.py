"""Reader and writer of spec files in TOML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import SpecError
from llmbench.spec.model import ModelSpec
from llmbench.spec.reading import read_text

MOST_BYTES = 2 * 1024**2
"""The largest size of a spec file, in bytes: twice the size of a model with 5,000 kinds of layers."""
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){30}""")
"""Matches a key such as a.b.c with more than 30 parts. tomllib needs quadratic time and memory for the parts."""


def parse_spec(text: str, where: str) -> ModelSpec:
    """Return the spec that a TOML text describes.

    where: name of the text. Error messages begin with it.

    Raises SpecError if the text is not TOML or a field is invalid. The message names the line and the field.
    """
    try:
        spec = msgspec.toml.decode(text, type=ModelSpec).check()
        spec.weights.refuse_place()
        return spec
    except (msgspec.ValidationError, SpecError) as problem:
        from llmbench.spec.diagnosis import refused_text  # imported here, because only a wrong spec needs it

        raise refused_text(where, text, problem) from None
    except (msgspec.DecodeError, RecursionError, ValueError) as problem:
        from llmbench.spec.diagnosis import invalid_toml

        raise invalid_toml(where, text, problem) from None


def read_spec(path: Path) -> ModelSpec:
    """Return the spec that a TOML file describes. Raises SpecError if the file is unreadable or invalid."""
    return parse_spec(read_toml(path), str(path))


def read_toml(path: Path) -> str:
    """Return the text of a TOML file. Raises SpecError if it is unreadable, too large, or if a key has many parts."""
    text = read_text(path, MOST_BYTES)
    deep = deep_key(text)
    if deep is not None:
        line = text.count("\n", 0, deep.start()) + 1
        raise SpecError(f"{path}, line {line}: a key has more than 30 parts: {deep[0][:60]}")
    return text


def deep_key(text: str) -> re.Match[str] | None:
    """Return the first key of a TOML text with more than 30 parts, or None."""
    return _DEEP_KEY.search(text)


def write_spec(spec: ModelSpec) -> str:
    """Return a spec as TOML text. `read_spec` reads the text back as an equal spec, without `weights.tensors_in`.

    The name and the source come first. Then come the fields of the whole model, and then one table for each kind of
    layer. A part that fits on one line is an inline table. Fields that have their default value are left out.
    """
    spec = msgspec.structs.replace(spec, weights=msgspec.structs.replace(spec.weights, tensors_in=""))
    lines = [_assigned(field, value) for field, value in _written(spec, _IDENTITY)]
    rest = [name for name in spec.__struct_fields__ if name not in (*_IDENTITY, "layers", "pattern")]
    sizes = _written(spec, [*rest, "pattern"])
    inline = [line for field, value in sizes if len(line := _assigned(field, value)) <= _WIDTH or not _nested(value)]
    tables = [pair for pair in sizes if _nested(pair[1]) and len(_assigned(*pair)) > _WIDTH]
    lines += ["", *inline]
    for field, value in [*tables, ("layers", spec.layers)]:
        lines += _table(field, value)
    return "\n".join(lines).strip() + "\n"


_WIDTH = 110
_IDENTITY = ["name", "aliases", "source", "published_parameters", "family", "approximate", "notes"]
_ALWAYS = {
    "ModelSpec": {"norm", "positions"},
    "Norm": {"kind", "eps"},
    "QKNorm": {"over"},
    "Router": {"scores"},
}
"""For each type, the fields that are written even if they have their default value."""


def _written(part: msgspec.Struct, names: Iterable[str]) -> list[tuple[str, Any]]:
    """Return the fields among `names` that a file must contain, as (name, value).

    A file must contain a field if its value differs from the default, or if `_ALWAYS` lists the field.
    """
    defaults = _defaults(type(part))
    always = _ALWAYS.get(type(part).__name__, set())
    pairs = [(name, getattr(part, name)) for name in names]
    return [(name, value) for name, value in pairs if name in always or value != defaults[name]]


@cache
def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the default value of each field of a struct.

    The result is cached, because msgspec evaluates all type hints of the struct, which is slow.
    """
    return {field.name: field.default for field in msgspec.structs.fields(kind)}


def _fields(value: Any) -> list[tuple[str, Any]]:
    """Return the fields of a struct that a file must contain, with the kind first. For a mapping, return its items."""
    if isinstance(value, dict):
        return list(value.items())
    tag = value.__struct_config__.tag
    kind = [(value.__struct_config__.tag_field, tag)] if tag else []
    return kind + _written(value, value.__struct_fields__)


def _nested(value: Any) -> bool:
    return isinstance(value, (msgspec.Struct, dict))


def _table(path: str, value: Any) -> list[str]:
    """Return the lines of a part as a TOML table: first the fields that fit on one line, then the inner tables.

    A part that contains only inner tables has no header line.
    """
    short, long = [], []
    for name, inner in _fields(value):
        line = _assigned(name, inner)
        if _nested(inner) and (len(line) > _WIDTH or name == "layers" or isinstance(value, dict)):
            long.append((name, inner))
        else:
            short.append(line)
    lines = ["", f"[{path}]", *short] if short else []
    for name, inner in long:
        lines += _table(f"{path}.{_key(name)}", inner)
    return lines or ["", f"[{path}]"]


def _assigned(name: str, value: Any) -> str:
    if name in ("aliases", "notes", "approximate"):
        return "\n".join([f"{name} = [", *(f"    {_text(item)}," for item in value), "]"])
    return f"{_key(name)} = {inline(value, grouped=name == 'published_parameters')}"


def inline(value: Any, *, grouped: bool = False) -> str:
    """Return a value as TOML text in one line. grouped: write an integer with underscores."""
    if _nested(value):
        pairs = [f"{_key(name)} = {inline(inner)}" for name, inner in _fields(value)]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    return f"{value:_}" if grouped else repr(value)


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare else _text(name)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
