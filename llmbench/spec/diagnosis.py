"""Error messages for a spec that has an unknown field, lacks a field, or has a value of a wrong type.

msgspec refuses such a spec, but its message names no layer. `type_fault` finds the place and lists what is possible
there. It runs only after msgspec has refused the spec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from llmbench.errors import SpecError, suggestion
from llmbench.spec.base import Fault, Name, Part, word_list
from llmbench.spec.field_paths import HUGGING_FACE_NAMES, meant_field
from llmbench.spec.model import ModelSpec
from llmbench.spec.schema import FieldType, Path, every_place, fields_of, tag_of, type_of

OTHER_WORDS = {
    "mha": "attention",
    "gqa": "attention",
    "mqa": "attention",
    "latent": "mla",
    "swiglu": "gated",
    "geglu": "gated",
    "glu": "gated",
    "mlp": "dense",
    "experts": "moe",
    "rotary": "rope",
    "absolute": "learned",
    "nope": "none",
    "t5": "relative_bias",
    "layer_norm": "layernorm",
    "prenorm": "pre",
    "pre_norm": "pre",
    "postnorm": "post",
    "post_norm": "post",
    "rms_norm": "rmsnorm",
    "ssm": "mamba",
    "griffin": "rg_lru",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Words that users write for a kind or an activation, and the name that they mean."""


def type_fault(tree: Any) -> tuple[Path, Fault] | None:
    """Return the first fault of a tree of a ModelSpec: the path of the faulty part or value, and the fault.

    None: every field exists and has a value of the right type.
    """
    return next(_faults(tree, (ModelSpec,), ()), None)


def _faults(node: Any, choices: Sequence[type[Part]], path: Path) -> Iterator[tuple[Path, Fault]]:
    at = ".".join(path)
    if not isinstance(node, Mapping):
        yield path, Fault(at, f"must be a table of fields, but is {shown(node)}", _table_hint(node, choices, path))
        return
    part = type_of(node, choices)
    if part is None:
        yield path, unknown_kind(at, node, choices)
        return
    fields = fields_of(part)
    missing = [name for name, field in fields.items() if field.required and name not in node]
    for name, value in node.items():
        if name not in fields and not (name == "kind" and tag_of(part) is not None):
            yield (*path, str(name)), unknown_field(at, part, str(name), value, absent=missing)
    for name, value in node.items():
        if name in fields:
            yield from _value_faults(value, fields[name], (*path, name))
        elif value != tag_of(part):
            yield (*path, name), unknown_kind(at, node, choices)
    if missing:
        hint = f"a spec states every size; `llmbench specs show {_example(part)}` shows a complete spec"
        yield path, Fault(at, f"{subject(part)}lacks {listed(missing)}", hint)


def _example(part: type[Part]) -> str:
    """Return the name of a bundled model that has this kind of part."""
    from llmbench.spec.kinds import models_with

    models = models_with(part) if tag_of(part) is not None else ()
    return models[0][0] if models else "llama2-7b"


def _value_faults(value: Any, field: FieldType, path: Path) -> Iterator[tuple[Path, Fault]]:
    try:
        msgspec.convert(value, field.annotation)
        return
    except msgspec.ValidationError as problem:
        refusal = str(problem)
    at = ".".join(path)
    match field.shape:
        case "part":
            yield from _faults(value, field.choices, path)
        case "table":
            if not isinstance(value, Mapping):
                hint = f"write a table for each: [{at}.NAME]"
                if at == "layers":
                    hint = "write a table for each kind of layer: [layers.block]. `pattern` gives the number of layers"
                yield path, Fault(at, f"must be a table of tables, but is {shown(value)}", hint)
                return
            names = FieldType(Name, True, None, "value", ())
            for name, inside in value.items():
                for _, fault in _value_faults(name, names, path):
                    yield (*path, str(name)), fault._replace(what=f"a name {fault.what}")
                yield from _faults(inside, field.choices, (*path, str(name)))
        case "list" if isinstance(value, (list, tuple)):
            for number, inside in enumerate(value):
                yield from _faults(inside, field.choices, (*path, str(number)))
        case _:
            pass
    words = words_of(field.annotation)
    if words and isinstance(value, str):
        near = OTHER_WORDS.get(value.lower()) or suggestion(value, words)
        choice = f"choose from {', '.join(words)}"
        yield path, Fault(at, f"unknown value {shown(value)}", did_you_mean(near if near in words else None, choice))
    else:
        yield path, Fault(at, _in_words(refusal, value), _value_hint(value, field))


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
"""The words for the types in messages of msgspec."""


def _in_words(refusal: str, value: Any) -> str:
    """Return what a value must be, from the message with which msgspec refused it.

    The message is, for example, "Expected `int | null`, got `str`", "Expected `int` >= 1" or, for an element of a list,
    "Expected `str`, got `int` - at `$[0]`".
    """
    expected, _, place = refusal.partition(" - at `$")
    names = re.match(r"Expected `(.+?)`", expected)
    known = [_TYPES[name] for name in names[1].split(" | ") if name in _TYPES] if names is not None else []
    if not known:
        return f"{expected[0].lower()}{expected[1:]}, got {shown(value)}"
    must = " or ".join(known)
    limit = re.search(r"(of length )?(>=|<=) (\d+)$", expected)
    if " matching regex " in expected:  # only `Name` has one
        must += " of letters, digits, spaces and other visible characters"
    elif limit is not None:
        unit = "" if limit[1] is None else " character" if limit[3] == "1" else " characters"
        must += f" of at {'least' if limit[2] == '>=' else 'most'} {int(limit[3]):,}{unit}"
    element = re.match(r"\[(\d+)\]", place)
    if element is not None and isinstance(value, (list, tuple)):
        return f"each value must be {must}, but value {int(element[1]) + 1} is {shown(value[int(element[1])])}"
    return f"must be {must}, but is {shown(value)}"


def _value_hint(value: Any, field: FieldType) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"[\d_.]+", value):
        return f"write the number without quotes: {value}"
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return f"write {value.lower()} without quotes"
    if field.required:
        return None
    return "this field may be left out" if field.default in (None, ()) else f"the default is {shown(field.default)}"


def words_of(annotation: Any) -> list[str]:
    """Return the texts that a field accepts, if it accepts only certain texts."""
    from typing import Literal, get_args, get_origin

    if get_origin(annotation) is Literal:
        return [word for word in get_args(annotation) if isinstance(word, str)]
    return [word for option in get_args(annotation) for word in words_of(option)]


def unknown_kind(at: str, node: Mapping[str, Any], choices: Sequence[type[Part]]) -> Fault:
    """Return the fault of a part whose `kind` is missing or wrong. The hint lists the kinds."""
    tags = [tag for tag in map(tag_of, choices) if tag is not None]
    every = f"the kinds are {', '.join(tags)}"
    if "kind" not in node:
        return Fault(at, "lacks `kind`", f'write for example kind = "{tags[0]}"; {every}')
    kind = node["kind"]
    near = nearest_kind(kind, choices) if isinstance(kind, str) else None
    return Fault(f"{at}.kind", f"there is no kind {shown(kind)}", did_you_mean(near, every))


def nearest_kind(word: str, choices: Sequence[type[Part]]) -> str | None:
    """Return the kind that a user probably means by `word`: `mla` for `latent_attention`. None: no kind is similar."""
    names = {}
    for choice in choices:
        tag = tag_of(choice)
        tags = words_of(fields_of(choice)["kind"].annotation) if "kind" in fields_of(choice) else []
        if tag is not None:
            names[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", choice.__name__).lower()] = tag
            tags = [tag]
        names |= {tag: tag for tag in tags}
    plain = word.lower().replace("-", "_").replace(" ", "_")
    other = OTHER_WORDS.get(plain)
    if other in names.values():
        return other
    near = suggestion(plain, names)
    return None if near is None else names[near]


def unknown_field(at: str, part: type[Part], name: str, value: Any = None, *, absent: Sequence[str] = ()) -> Fault:
    """Return the fault of a field that a part does not have.

    The hint names the most similar field, or the part to which the field belongs, and lists the fields of the part.

    absent: required fields that the part lacks. The user probably means one of them.
    """
    fields = fields_of(part)
    names = (["kind"] if tag_of(part) is not None else []) + list(fields)
    every = f"the fields of {f'`{at}`' if at else 'the model'} are {', '.join(names)}"
    return Fault(at, f"{subject(part)}has no field `{name}`", _advice(part, name, value, absent) + every)


def _advice(part: type[Part], name: str, value: Any, absent: Sequence[str]) -> str:
    if part is ModelSpec and isinstance(value, Mapping) and ("mixer" in value or "ffn" in value):
        return f"write [layers.{name}] instead of [{name}]; "
    for home in every_place(ModelSpec):
        if name == tag_of(home.part) and isinstance(value, Mapping) and home.path[:-1] == ("layers", "NAME"):
            return f'`{name}` is a kind of {home.path[-1]}: write {home.path[-1]} = {{ kind = "{name}", ... }}; '
    fields = fields_of(part)
    near = suggestion(name, absent) or meant_field(name, fields) or suggestion(name, fields)
    if near is not None:
        return did_you_mean(near, "")
    if "num_hidden_layers" in (name, HUGGING_FACE_NAMES.get(name)):
        return '`pattern` gives the number of layers, for example pattern = "32*block"; '
    if name in HUGGING_FACE_NAMES:
        return f"its name in a spec is `{HUGGING_FACE_NAMES[name]}`; "
    homes = homes_of(name)
    if not homes:
        return ""
    if homes[0] == "the model":
        return f"`{name}` is a field of the model, so write it above the first [table]; "
    return f"`{name}` is a field of {' or '.join(homes[:3])}; "


def homes_of(name: str) -> list[str]:
    """Return the places that have a field with this name: `the model`, or `layers.NAME.mixer` with its kinds."""
    kinds: dict[str, list[str]] = {}
    for home in every_place(ModelSpec):
        if name in fields_of(home.part) and "branches" not in home.path:
            tags = kinds.setdefault(".".join(home.path) or "the model", [])
            tag = tag_of(home.part)
            if tag is not None:
                tags.append(tag)
    return [f"{at} (kind {', '.join(tags)})" if tags else at for at, tags in kinds.items()]


def did_you_mean(near: str | None, more: str) -> str:
    """Return a hint that begins with the most similar name, if there is one."""
    return more if near is None else f"did you mean `{near}`? {more}"


def _table_hint(node: Any, choices: Sequence[type[Part]], path: Path) -> str | None:
    near = nearest_kind(node, choices) if isinstance(node, str) else None
    return None if near is None else f'write {path[-1]} = {{ kind = "{near}" }}'


def subject(part: type[Part]) -> str:
    """Return the subject of a message about a part. It is empty if the path before the message is the subject."""
    tag = tag_of(part)
    if tag is not None:
        return f"the kind `{tag}` "
    return "the model " if part is ModelSpec else ""


def listed(names: Sequence[str]) -> str:
    """Return names as a list in words: `a`, `b` and `c`."""
    return word_list([f"`{name}`" for name in names])


def shown(value: Any) -> str:
    """Return a value as a spec file writes it, cut to 60 characters."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refused_text(where: str, text: str, problem: Exception) -> SpecError:
    """Return the error for a TOML text that msgspec or `check` refused. Its message begins with the file and the line.

    where: the name of the file.
    """
    import tomllib

    if isinstance(problem, SpecError):
        what, hint = str(problem), problem.hint
        field = re.match(r"[\w.-]+", what)
        path = field[0].split(".") if field is not None else []
    else:
        fault = type_fault(tomllib.loads(text))
        if fault is None:  # a rule that only msgspec knows
            return SpecError(f"{where}: {problem}")
        path, what, hint = list(fault[0]), message(fault[1]), fault[1].hint
    line = line_of(text, path)
    return SpecError(f"{where}{'' if line is None else f', line {line}'}: {what}", hint=hint)


def invalid_toml(where: str, text: str, problem: Exception) -> SpecError:
    """Return the error for a text that is not TOML. The hint shows the line."""
    place = re.search(r"line (\d+)", str(problem))
    line = text.splitlines()[int(place[1]) - 1].strip() if place and int(place[1]) <= len(text.splitlines()) else ""
    hint = (
        f'line {place[1]} is {shown(line)}. TOML writes name = "text", size = 128 and {{ a = 1, b = 2 }}'
        if place and line
        else None
    )
    return SpecError(f"{where} is not valid TOML: {problem}", hint=hint)


def message(fault: Fault) -> str:
    """Return the message of a fault: `field: what`. A fault of the whole model has no field."""
    return f"{fault.field}: {fault.what}" if fault.field else fault.what


_HEADER = re.compile(r"\s*\[\[?\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_ASSIGNED = re.compile(r"\s*([\w.\"'-]+)\s*=")


def line_of(text: str, path: Sequence[str]) -> int | None:
    """Return the number of the line of a TOML text that assigns the value at `path`, or the nearest table around it.

    None: no line contains a part of the path.
    """
    best: tuple[int, int] | None = None
    header: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        table, assigned = _HEADER.match(line), _ASSIGNED.match(line)
        if table is not None:
            header = _keys(table[1])
            keys = header
        elif assigned is not None:
            keys = [*header, *_keys(assigned[1])]
        else:
            continue
        if keys == list(path[: len(keys)]) and (best is None or len(keys) > best[0]):
            best = len(keys), number
    return None if best is None else best[1]


def _keys(dotted: str) -> list[str]:
    return [key.strip().strip("\"'") for key in dotted.split(".")]
