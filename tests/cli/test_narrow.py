"""Tables in a terminal that is too narrow for them: spare columns are left out, and a line names them."""

from __future__ import annotations

import io
import re

import pytest

from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field
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
    assert (f"too narrow for {', '.join(left_out)}" in text) == bool(left_out)
    assert "attention" in text
    if width > 10:
        assert max(map(len, lines)) <= width
