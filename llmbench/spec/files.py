"""Specs as TOML files, read strictly and written readably."""

from __future__ import annotations

from pathlib import Path

import msgspec

from llmbench.errors import SpecError, suggestion
from llmbench.spec.model import ModelSpec


def parse_spec(text: str, where: str) -> ModelSpec:
    """A spec from TOML text. Raises SpecError naming `where` and the field."""
    try:
        spec = msgspec.toml.decode(text, type=ModelSpec)
    except msgspec.ValidationError as problem:
        raise invalid(where, problem) from None
    except (msgspec.DecodeError, RecursionError, ValueError) as problem:
        raise SpecError(f"{where} is not TOML: {problem}") from None
    try:
        return spec.check()
    except SpecError as problem:
        raise SpecError(f"{where}: {problem}", hint=problem.hint) from None


def read_spec(path: Path) -> ModelSpec:
    """A spec from a TOML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"{path} is not a text file") from None
    except OSError as problem:
        raise SpecError(f"cannot read {path}: {problem.strerror}") from None
    return parse_spec(text, str(path))


def write_spec(spec: ModelSpec) -> str:
    """A spec as TOML that `read_spec` reads back to an equal one; defaults are left out."""
    import tomli_w  # here, because only `specs import` and `specs show` write

    return tomli_w.dumps(msgspec.to_builtins(spec))


def invalid(where: str, problem: msgspec.ValidationError) -> SpecError:
    """The error of a value that does not fit its type, with its path in front.

    msgspec says "Expected `int`, got `str` - at `$.layers[...].mixer.head_dim`".
    """
    what, _, at = str(problem).partition(" - at `")
    path = at.rstrip("`").removeprefix("$").removeprefix(".")
    hint = None
    if what.startswith("Object contains unknown field `"):
        field = what.split("`")[1]
        known = suggestion(field, _all_fields())
        hint = f"did you mean `{known}`?" if known and known != field else None
    what = what[0].lower() + what[1:]
    return SpecError(f"{where}: {path + ': ' if path else ''}{what}", hint=hint)


def _all_fields() -> set[str]:
    """Every field name of every part of a spec."""
    from llmbench.spec import base

    fields: set[str] = set()
    classes = list(base.Part.__subclasses__())
    while classes:
        part = classes.pop()
        fields.update(part.__struct_fields__)
        classes += part.__subclasses__()
    return fields
