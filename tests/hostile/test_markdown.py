"""Markdown shows names of strangers as they are: it has no HTML tags, links and pictures of theirs.

The renderer of the tests is markdown-it, which implements CommonMark and the tables of GitHub.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from llmbench.cli import run
from llmbench.report.render import _escaped

RENDERER = MarkdownIt("commonmark").enable("table")
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def rendered(text: str) -> str:
    """The HTML of a text of Markdown."""
    return str(RENDERER.render(text))


@pytest.mark.parametrize(
    "name",
    [
        "\\<img src=x onerror=alert(1)>",
        "\\\\\\<img src=x>",
        "<img src=x>",
        "`\\`<img src=x>",
        "a\\|b|c\\",
        "[x][y]",
        "![x](y)",
        "\\[x](y)",
        "[x]: y",
        "&lt;img&#62;",
        "\\&lt;",
    ],
)
def test_a_name_is_text(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / name.replace("/", "")
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for command in (["params", str(folder)], ["compare", str(folder), "gpt2"]):
        assert run([*command, "--format", "markdown"]) == 0
        page = rendered(capsys.readouterr().out)
        assert not re.search("<(img|a)[ >]", page)
        if "`" not in name:  # a name with backticks becomes a code span, where a backslash is shown
            assert folder.name in html.unescape(page)


@given(st.text(st.sampled_from("\\<>a/!?[]():&;#x3|"), min_size=1, max_size=12))
def test_an_escaped_text_is_shown_as_it_is(text: str) -> None:
    row = _escaped(f"x{text}x").replace("|", "\\|")
    for page in (rendered(f"**x{_escaped(text)}**"), rendered(f"| {row} |\n| --- |\n")):
        assert f"x{text}" in html.unescape(re.sub("</?(strong|p|th|tr|table|thead)>", "", page))


def test_addresses_become_no_links() -> None:
    assert _escaped("see https://a.example/x and www.a.example") == "see https:\\//a.example/x and www\\.a.example"
