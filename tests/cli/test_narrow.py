"""Tables in a terminal that is too narrow for them: spare columns are left out, and a line names them."""

from __future__ import annotations

import io
import re

import pytest

from llmbench.report.document import Block, Document, View, table
from llmbench.report.fields import Field
from llmbench.report.html import to_html
from llmbench.report.render import render

FIELDS: list[Field[dict[str, object]]] = [
    Field("implementation", "implementation", unbroken=True),
    Field("seconds", "time", "ms"),
    Field("bytes_per_s", "traffic", "gb_per_s", spare=2),
    Field("need_bytes", "analytic", "gib", spare=1),
    Field("verdict", "verdict"),
]
ROW = {
    "implementation": "attention",
    "seconds": 0.001,
    "bytes_per_s": 5e9,
    "need_bytes": 2**30,
    "verdict": "faster",
}


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a table in a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    block = Block(table=table(FIELDS, [ROW]), lines=["below"])
    document = Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[block])
    terminal = Terminal()
    render(document, "table", terminal)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(80, []), (60, []), (44, ["traffic"]), (36, ["traffic", "analytic"]), (10, ["traffic", "analytic"])],
)
def test_spare_columns_give_way(width: int, left_out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The column with the largest number goes first. Columns that are not spare stay, however narrow the terminal."""
    lines = drawn(width, monkeypatch)
    text = " ".join(" ".join(lines).split())
    head = text.partition("attention")[0]
    for field in FIELDS:
        assert field.heading is not None
        assert (field.heading in head) == (field.heading not in left_out)
    assert (f"`--wide` also shows: {', '.join(left_out)}" in text) == bool(left_out)
    assert "attention" in text
    if width > 10:
        assert max(map(len, lines)) <= width


def shown(view: View, *blocks: Block) -> str:
    """The text of a document with these blocks, in a pipe."""
    out = io.StringIO()
    render(Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[*blocks]), "table", out, view)
    return out.getvalue()


def test_wide_shows_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "36")
    lines = shown(View(wide=True), Block(table=table(FIELDS, [ROW]))).splitlines()
    assert len(lines) == 2
    assert all(field.heading in lines[0] for field in FIELDS if field.heading)


def test_a_note_is_said_once_and_a_table_has_at_most_three_notes() -> None:
    blocks = [Block(notes=["a", "b", "a"], lines=["line"]), Block(notes=["b", "c", "d", "e", "f", "g"])]
    below = ["note: c", "note: d", "note: e"]
    assert shown(View(), *blocks).split("\n")[:-1] == [
        *("  line", "  note: a", "  note: b", ""),
        *(f"  {line}" for line in (*below, "`--notes` shows 2 more notes")),
    ]
    every = shown(View(notes=True), *blocks)
    assert "note: f\n  note: g\n" in every
    assert "--notes" not in every


def test_the_answer_comes_before_the_headline(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(answer="a is faster", headline="context", table=table(FIELDS, [ROW]))
    assert shown(View(), block).startswith("a is faster\ncontext\n\n  implementation")
    document = Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[block])
    out = io.StringIO()
    render(document, "markdown", out)
    assert out.getvalue().startswith("**a is faster**\n\ncontext\n\n| implementation")
    assert "<strong>a is faster</strong>" in to_html(document)


def test_columns_sets_the_width_of_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    block = Block(lines=["word " * 30])
    monkeypatch.delenv("COLUMNS", raising=False)
    assert len(shown(View(), block).splitlines()) == 1
    monkeypatch.setenv("COLUMNS", "50")
    assert 45 < max(map(len, shown(View(), block).splitlines())) <= 50
