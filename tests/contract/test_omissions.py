"""Omissions that must be caught: mypy names a kind that lacks a demanded member, and every function that has no case
for a new kind. No function tests the class of a position encoding by other means."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from llmbench.sizing.dtypes import DType
from llmbench.spec import ffn, mixer, position
from llmbench.spec.base import Kind
from llmbench.spec.ffn import FFNKind
from llmbench.spec.mixer.kind import AttentionKind, RecurrentKind
from llmbench.spec.model import Norm
from llmbench.spec.position import PositionKind
from tests.contract.copies import PACKAGE, PLACES, answers, copy_package, imports_of, read, type_check


def abstract_members(kind: type) -> set[str]:
    """The members that a class leaves open."""
    return {name for name in dir(kind) if getattr(getattr(kind, name, None), "__isabstractmethod__", False)}


UNIONS = {"mixer": mixer.SingleMixer, "feed-forward": ffn.FFN, "positions": position.Positions}


@pytest.mark.parametrize("kind", [kind for union in UNIONS.values() for kind in get_args(union)])
def test_each_kind_is_final_and_complete(kind: type[Kind]) -> None:
    assert getattr(kind, "__final__", False), f"{kind.__name__} lacks @final, with which mypy names what it forgets"
    assert not abstract_members(kind)


def without(source: str, member: str, name: str) -> str:
    """The source of a module's class, renamed and without one member."""
    tree = ast.parse(source)
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef))

    def defines(node: ast.stmt) -> bool:
        match node:
            case ast.FunctionDef(name=defined) | ast.AnnAssign(target=ast.Name(id=defined)):
                return defined == member
            case ast.Assign(targets=[ast.Name(id=defined)]):
                return defined == member
        return False

    left = [node for node in kind.body if not defines(node)]
    assert len(left) == len(kind.body) - 1, f"{kind.name} defines {member} once"
    kind.body, kind.name = left, name
    return ast.unparse(kind)


PLANTED = {
    "gated_window": AttentionKind,
    "leaky_average": RecurrentKind,
    "squeezed": FFNKind,
    "span_bias": PositionKind,
    "tone": PositionKind,
}


def planted(file: str, base: type) -> Iterable[tuple[str, str, str]]:
    """For each demanded member: the member, a class without it, and its source."""
    for member in sorted(abstract_members(base)):
        name = f"Without_{file}_{member}"
        yield member, name, without(read(file), member, name)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """All functions and methods of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def function_at(file: Path, line: int) -> str:
    """The name of the innermost function around a line."""
    around = [
        f for f in functions(ast.parse(file.read_text(encoding="utf-8"))) if f.lineno <= line <= (f.end_lineno or 0)
    ]
    return max(around, key=lambda function: function.lineno).name


def test_mypy_names_each_omission(tmp_path: Path) -> None:
    """One run of mypy over classes that each lack one demanded member, and over a package whose unions have new kinds
    that no other file knows of."""
    package = copy_package(tmp_path)
    cases = [case for file, base in PLANTED.items() for case in planted(file, base)]
    assert len(cases) > 20
    file = tmp_path / "planted.py"
    imports = dict.fromkeys(line for name in PLANTED for line in imports_of(read(name)).splitlines())
    future, *others = imports
    file.write_text("\n\n".join([future, *others, *(source for *_, source in cases)]), encoding="utf-8")
    places = {(place.file, place.function) for union in PLACES.values() for place in union}
    lines = type_check(tmp_path, [file, *(package / path for path in sorted({path for path, _ in places}))])
    for member, name, _ in cases:
        assert any(f".{name} has abstract" in line and f'"{member}"' in line for line in lines), (name, lines)
    named = set()
    for line in (line for line in lines if '"assert_never"' in line):
        path, number, _ = line.split(":", 2)
        named.add((str(Path(path).relative_to("llmbench")), function_at(tmp_path / path, int(number))))
    assert named == places


NORMS = set(get_args(get_type_hints(Norm)["kind"]))
FORMATS = set(get_args(DType))
SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not {"huggingface", "weights"} & set(path.relative_to(PACKAGE).parts[:-1])
]
"""The files that compute with kinds. Files of importers and of weights names are left out."""


def asked_of(node: ast.Match) -> set[str]:
    """The unions whose kinds the cases of a `match` name."""
    inside = list(ast.walk(node))
    classes = {one.cls.id for one in inside if isinstance(one, ast.MatchClass) and isinstance(one.cls, ast.Name)}
    constants = (one.value for one in inside if isinstance(one, ast.MatchValue))
    values = {constant.value for constant in constants if isinstance(constant, ast.Constant)}
    unions = {name for name, union in UNIONS.items() if classes & {kind.__name__ for kind in get_args(union)}}
    if values:
        unions |= {name for name, names in (("norm", NORMS), ("format", FORMATS)) if values <= names}
    return unions


def test_each_distinction_of_kinds_is_a_place() -> None:
    """Every `match` over the kinds of a union is in PLACES, so that the run of mypy above covers it."""
    found: dict[str, set[tuple[str, str]]] = {union: set() for union in PLACES}
    for path in SOURCES:
        for function in functions(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(function):
                if isinstance(node, ast.Match):
                    for union in asked_of(node):
                        found[union].add((str(path.relative_to(PACKAGE)), function.name))
    for union, places in PLACES.items():
        assert found[union] == {(place.file, place.function) for place in places}, union


def test_no_file_asks_for_the_class_of_a_position_encoding() -> None:
    """A new encoding would be ignored by such a question. `assert isinstance` only narrows a type."""
    kinds = {kind.__name__ for kind in get_args(position.Positions)}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asserted = {id(node.test) for node in ast.walk(tree) if isinstance(node, ast.Assert)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                names = {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
                assert id(node) in asserted or not names & kinds, f"{path}:{node.lineno}"


def test_an_unregistered_kind_is_unknown() -> None:
    spec = str(Path(__file__).parent / "kinds" / "new-kinds.toml")
    (answer,) = answers(PACKAGE.parent, [["params", spec]])
    assert answer.code == 2
    assert "gated_window" in answer.err
