"""The glossary explains the headings of all tables and the names of their parts, or they are plain English."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from llmbench.answers import fit_table, kvcache, memory_screen
from llmbench.cli import run
from llmbench.measure.results import Status
from llmbench.sizing.op import Component

PACKAGE = Path(__file__).parents[1] / "llmbench"
GLOSSARY = Path(__file__).parents[1] / "docs" / "glossary.md"
SHOWS_TABLES = ("answers", "bench", "cli", "report", "textbook", "validation")
"""The packages that make columns."""
PLAIN = """
    a about above after again all alternative and answered at before beyond busiest by call case change check choice
    claim claimed computed constant count decision description difference element exceeded experiment extra
    family file filled fit fixed free from function group guessing hour if in its kept kind largest last length limit
    limited line llmbench longest mean measured median memory method most moved name needed of ok one os other our
    outside paper part per plain predicted price product prompt published python pytorch quantity rate ratio reason
    report result row run setting shape show size smallest source stay step suffice table term text that the time to
    topic total traffic train training type usable used value variant verdict warning were what why within worst
"""
"""Words of everyday English that need no explanation."""
DYNAMIC = {
    "headings[field.name]": "the options of a sweep: SWEPT",
    "names[name]": "the parts of memory: PART_NAMES",
    "label": "the label of a Chart",
    "name": "a name of a device, a model or a figure of a worked example",
    "column.heading": "a Column of an experiment",
    "field.heading": "a field of another table",
    "step.row": "a figure of a worked example, which the step explains",
}
"""The expressions for headings that are no literal texts, and where they come from."""


def texts(node: ast.expr) -> list[str] | None:
    """Return the texts that an expression can have, without the values in an f-string. None: it is no literal."""
    match node:
        case ast.Constant():
            return [node.value] if isinstance(node.value, str) else []
        case ast.JoinedStr():
            return [" ".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))]
        case ast.IfExp():
            branches = texts(node.body), texts(node.orelse)
            return None if None in branches else [text for branch in branches for text in branch or ()]
    return None


def callee(call: ast.Call) -> str:
    """Return the name of the called function: `Field` for `Field[Any](...)`."""
    function = call.func.value if isinstance(call.func, ast.Subscript) else call.func
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def argument(call: ast.Call, place: int | None, name: str) -> ast.expr | None:
    """Return an argument of a call by its name or its place."""
    named = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return call.args[place] if named is None and place is not None and place < len(call.args) else named


def headings(path: Path) -> Iterator[ast.expr]:
    """Yield the expressions for headings in a file: the arguments of Field, Column and Chart, and of functions that
    call these with one of their parameters."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    makers: dict[str, tuple[int | None, str]] = {"Field": (1, "heading"), "Column": (1, "heading")}
    makers |= {"replace": (None, "heading"), "Chart": (1, "label")}
    passed: set[str] = set()
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            names = [parameter.arg for parameter in function.args.args]
            for call in ast.walk(function):
                if isinstance(call, ast.Call) and callee(call) in ("Field", "Column"):
                    heading = argument(call, 1, "heading")
                    if isinstance(heading, ast.Name) and heading.id in names:
                        makers[function.name] = names.index(heading.id), heading.id
                        passed.add(heading.id)
    for call in calls:
        heading = argument(call, *makers[callee(call)]) if callee(call) in makers else None
        if heading is not None and not (isinstance(heading, ast.Name) and heading.id in passed):
            yield heading


def columns() -> set[str]:
    """Return the headings of the columns of all tables."""
    found: set[str] = set()
    dynamic: set[str] = set()
    for package in SHOWS_TABLES:
        for path in (PACKAGE / package).rglob("*.py"):
            for heading in headings(path):
                literal = texts(heading)
                found.update(literal or ())
                dynamic |= set() if literal is not None else {ast.unparse(heading)}
    assert dynamic == set(DYNAMIC)
    for module in (fit_table, kvcache, memory_screen):
        found.update(module.SWEPT.values())
    return found


def parts(capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the names in the first columns: components, parts of memory, terms of engines, verdicts."""
    found = {*get_args(Component), *get_args(Status), *memory_screen.PART_NAMES.values()}
    for engine in sorted((PACKAGE.parent / "specs" / "engines").glob("*.toml")):
        assert run(["fit", "llama3-8b", "--device", "h100", "--engine", engine.stem, "--format", "markdown"]) == 0
        found.update(re.findall(r"^\| ([^|]+?) +\|", capsys.readouterr().out, flags=re.MULTILINE))
    return found


def words(text: str) -> set[str]:
    """Return the words of a text, without the ending of a plural."""
    return {re.sub(r"(?<=..[^s])s$", "", word) for word in re.findall(r"[a-z]+", text.lower())}


def explained() -> list[str]:
    """Return the words that the glossary explains: the first column of its tables, without the headings."""
    cells = re.findall(r"^\| ([^|]+) \|", GLOSSARY.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [cell for cell in cells if cell != "word"]


def test_the_glossary_explains_each_word_once() -> None:
    assert [word for word, times in Counter(explained()).items() if times > 1] == []


def test_the_glossary_explains_the_words_of_all_tables(capsys: pytest.CaptureFixture[str]) -> None:
    known = words(PLAIN).union(*map(words, explained()))
    shown = columns() | parts(capsys)
    assert len(shown) > 250
    unknown = {text: sorted(words(text) - known) for text in shown if words(text) - known}
    assert unknown == {}, "add the words to docs/glossary.md"
