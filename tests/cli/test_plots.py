"""Plots of curves, in terminals and in files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmbench.errors import LLMBenchError
from llmbench.report.plots import Column, Columns, Panel, Series, save, terminal

CURVE = [(1, 1e-3), (10, 1e-2), (100, 1e-1)]


def test_a_terminal_plot() -> None:
    """Two curves of the same slope on logarithmic axes: their letters lie on diagonals, and `*` where they meet."""
    series = [Series("x", [*CURVE]), Series("y", CURVE[:1], "OOM at 10")]
    panel = Panel("time", "causal", "tokens", "s", series)
    lines = terminal(panel, width=21, height=3)
    assert lines[0] == "time, causal"
    assert [line.partition("┤")[2] for line in lines[1:4]] == [" " * 20 + "a", " " * 10 + "a", "*"]
    assert lines[1].startswith("100 ms")
    assert lines[3].strip().startswith("1 ms")
    assert "a x · b y (OOM at 10)" in lines[-1]
    assert terminal(panel._replace(series=[])) == []


@pytest.mark.filterwarnings("error")
def test_a_plot_is_a_file(tmp_path: Path) -> None:
    panel = Panel("time", "", "tokens", "s", [Series("x", CURVE[:2]), Series("y", [], "n/a")])
    for suffix, begins in (("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")):
        save([panel, panel, panel], tmp_path / f"curve.{suffix}")
        assert (tmp_path / f"curve.{suffix}").read_bytes().startswith(begins)
    with pytest.raises(LLMBenchError, match="cannot write"):
        save([panel], tmp_path / "curve.svg" / "below.svg")
    save([panel._replace(series=[Series("y", [], "OOM")])], tmp_path / "nothing.svg")  # not one could be measured


def test_a_plot_says_what_was_measured(tmp_path: Path) -> None:
    """A plot has plain lengths, values in a fitting unit, the candidates without a time, machine and question."""
    import matplotlib as mpl

    lengths = [(512, 2**20), (1024, 2**21), (16384, 3 * 2**23)]
    series = [Series("flash", lengths), Series("standard", lengths[:2], "OOM at 16,384"), Series("flex", [], "n/a")]
    panel = Panel("peak memory", "causal", "tokens of a sequence", "B", series)
    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text
        save([panel], tmp_path / "curve.svg", title="which is best?", caption="a machine · fp32")
    texts = re.findall(r">([^<>]+)</text>", (tmp_path / "curve.svg").read_text())
    assert {"512", "1,024", "16,384", "1", "2", "16", "peak memory (MiB)", "peak memory, causal"} <= set(texts)
    assert {"flash", "standard (OOM at 16,384)", "flex (n/a)", "which is best?", "a machine · fp32"} <= set(texts)
    assert not any("10" in text and "×" in text for text in texts)


@pytest.mark.filterwarnings("error")
def test_columns_have_names_intervals_and_crosses(tmp_path: Path) -> None:
    import matplotlib as mpl

    columns = [Column("first", 2.0, None, [1.9, 2.1], []), Column("second\na → b", None, None, [], [3.1])]
    panel = Columns("losses", "loss (nats)", columns, "mean and interval", "a failure", ("a line", 3.0))
    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text
        save([panel], tmp_path / "columns.svg")
        save([panel._replace(columns=columns[:1])], tmp_path / "column.svg")
    pictures = [(tmp_path / f"{name}.svg").read_text() for name in ("columns", "column")]
    texts = [set(re.findall(r">([^<>]+)</text>", picture)) for picture in pictures]
    assert {"first", "second", "a → b", "losses", "loss (nats)", "mean and interval", "a failure", "a line"} <= texts[0]
    assert "a failure" not in texts[1]
