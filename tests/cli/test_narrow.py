"""Tables in a terminal that is too narrow for them: what is spare is left out, and said to be."""

from __future__ import annotations

import io
import re

import pytest

from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.render import render

COLUMNS = [
    Column("implementation", name=True),
    Column("time", "ms"),
    Column("traffic", "gb_per_s", spare=2),
    Column("analytic", "gib", spare=1),
    Column("verdict"),
]


class Terminal(io.StringIO):
    """Somebody looks at it."""

    def isatty(self) -> bool:
        return True


def drawn(width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of a table in a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    table = Table(columns=COLUMNS, rows=[["attention", 0.001, 5e9, 2**30, "faster"]])
    document = Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[Block(table=table, lines=["below"])])
    terminal = Terminal()
    render(document, "table", terminal)
    return re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(80, []), (60, []), (44, ["traffic"]), (36, ["traffic", "analytic"]), (10, ["traffic", "analytic"])],
)
def test_what_is_spare_gives_way(width: int, left_out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest number first, and never what is not spare, however narrow it is."""
    lines = drawn(width, monkeypatch)
    text = " ".join(" ".join(lines).split())
    head = text.partition("attention")[0]
    for column in COLUMNS:
        assert (column.title in head) == (column.title not in left_out)
    assert (f"too narrow for {', '.join(left_out)}" in text) == bool(left_out)
    assert "attention" in text
    if width > 10:
        assert max(map(len, lines)) <= width
