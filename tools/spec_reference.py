"""Write docs/spec-fields.md from the types in llmbench/spec/. The page lists the fields of every type, with their types
and defaults.

    python tools/spec_reference.py            # write the page
    python tools/spec_reference.py --check    # compare; exit 1 if the page is out of date
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
import typing
from pathlib import Path
from types import ModuleType

import msgspec

from llmbench.spec import device, ffn, mixer, model, position
from llmbench.spec.weights import stored

TARGET = Path(__file__).parent.parent / "docs" / "spec-fields.md"

HEAD = """\
# Fields of a spec

<!-- Written by tools/spec_reference.py from the types in llmbench/spec/. Do not edit; run it again. -->

[Specs](concepts/specs.md) explains how the parts fit together. A *size* is a whole number from 1 to 2³¹. A *count* may
also be 0. A field that is not required may be left out. llmbench refuses an unknown field and names its place in the
file.
"""

SECTIONS = (
    ("The model", model),
    ("Mixers", mixer),
    ("Feed-forwards", ffn),
    ("Positions", position),
    ("Stored weights", stored),
    ("Devices", device),
)
WORDS = {
    "Size": "size",
    "Count": "count",
    "Name": "text",
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "Mixer": "a [mixer](#mixers)",
    "SingleMixer": "a [mixer](#mixers)",
    "FFN": "a [feed-forward](#feed-forwards)",
    "Positions": "[positions](#positions)",
    "int | float": "number",
}


def parts(module: ModuleType) -> list[type[msgspec.Struct]]:
    """Return the spec types that a module or package defines, without base classes. ModelSpec is first."""
    types = [value for value in vars(module).values() if isinstance(value, type)]
    own = [part for part in types if f"{part.__module__}.".startswith(f"{module.__name__}.")]
    return sorted(
        (part for part in own if issubclass(part, msgspec.Struct) and is_concrete(part)),
        key=lambda part: part is not model.ModelSpec,
    )


def is_concrete(part: type[msgspec.Struct]) -> bool:
    """Return whether a spec can contain this type. An abstract base class cannot be in a spec."""
    return not any(getattr(getattr(part, name), "__isabstractmethod__", False) for name in dir(part))


def choices(module: ModuleType) -> dict[str, tuple[str, ...]]:
    """Return the allowed values of each named list of values in a module (for example `Placement`), by the name of the
    list."""
    return {
        name: typing.get_args(value)
        for name, value in vars(module).items()
        if typing.get_origin(value) is typing.Literal
    }


def descriptions(tree: ast.AST) -> dict[str, str]:
    """Return the text that stands directly below each assignment, by the assigned name."""
    texts = {}
    for body in [getattr(node, "body", None) for node in ast.walk(tree)]:
        for before, after in itertools.pairwise(body) if isinstance(body, list) else ():
            text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            target = getattr(before, "target", None) or (getattr(before, "targets", None) or [None])[0]
            if isinstance(text, str) and isinstance(target, ast.Name):
                texts[target.id] = inspect.cleandoc(text)
    return texts


def type_text(written: str) -> str:
    """Return the type of a field in words: `size` for Annotated[int, …], `list of text` for tuple[str, ...]."""
    written = re.sub(r"\s+", " ", written).removesuffix(" | None").strip()
    if written in WORDS:
        return WORDS[written]
    if written.startswith("Annotated["):
        return type_text(written[10:].partition(",")[0])
    if written.startswith("Literal["):
        return ", ".join(f'`"{value}"`' for value in ast.literal_eval(f"({written[8:-1]},)"))
    if written.startswith("tuple["):
        return f"list of {type_text(written[6:].partition(', ...')[0])}"
    if written.startswith("dict["):
        return f"table of {type_text(written[5:-1].partition(', ')[2])}"
    if " | " in written:
        return " or ".join(type_text(part) for part in written.split(" | "))
    return f"[{written}](#{written.lower()})"


def default_text(field: msgspec.structs.FieldInfo) -> str:
    """Return the default of a field, in the notation of a spec file."""
    if field.required:
        return "required"
    if field.default_factory is not msgspec.NODEFAULT or field.default == ():
        return "empty"
    value = field.default
    if value is None:
        return "absent"
    if isinstance(value, msgspec.Struct):
        tag = value.__struct_config__.tag
        return f'`kind = "{tag}"`' if tag else "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def section(part: type[msgspec.Struct]) -> str:
    """Return the section of the page about one type: its docstring and its fields."""
    tag = part.__struct_config__.tag
    lines = [f"### {part.__name__}", ""]
    lines += [f'`kind = "{tag}"`', ""] if tag else []
    lines += [inspect.cleandoc(part.__doc__ or ""), ""]
    fields = msgspec.structs.fields(part)
    if not fields:
        return "\n".join([*lines, "No fields.", ""])
    lines += ["| field | type | default |", "|---|---|---|"]
    notes = descriptions(ast.parse(inspect.getsource(part)))
    for field in fields:
        text = type_text(str(part.__annotations__[field.name]))
        lines.append(f"| `{field.encode_name}` | {text} | {default_text(field)} |")
    if notes:
        lines += ["", *(f"- `{name}`: {' '.join(text.split())}" for name, text in notes.items())]
    return "\n".join([*lines, ""])


def reference() -> str:
    """Return the text of the whole page."""
    texts = [HEAD]
    for title, module in SECTIONS:
        texts += [f"## {title}\n", *(section(part) for part in parts(module))]
        notes = descriptions(ast.parse(inspect.getsource(module)))
        for name, values in choices(module).items():
            listed = ", ".join(f'`"{value}"`' for value in values)
            texts.append(f"### {name}\n\nOne of {listed}.\n\n{notes.get(name, '')}\n".replace("\n\n\n", "\n"))
    return "\n".join(texts)


def main() -> int:
    """Write the page. With `--check`, only compare it, and return 1 if it is out of date."""
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is out of date: run python tools/spec_reference.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
