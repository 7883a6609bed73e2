"""The help texts: groups, whole sentences at every width, examples on one line, and colours in a terminal only."""

from __future__ import annotations

import re
import sys

import pytest

from llmbench.cli import COMMANDS, GROUPS, run
from llmbench.cli.help import coloured

Capture = pytest.CaptureFixture[str]
PAGES = [
    "",
    *COMMANDS,
    "specs list",
    "specs show",
    "kernels check",
    "kernels bench",
    "kernels inspect",
    "exercise show",
    "exercise check",
]


def page(command: str, width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    assert run([*command.split(), "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", PAGES)
def test_no_line_is_longer_than_the_terminal(command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except examples, which stay whole so that they can be copied."""
    for width in (60, 80, 100, 160):
        lines = page(command, width, capsys, monkeypatch).splitlines()
        assert not [line for line in lines if len(line) > width and not line.startswith("    llmbench ")]
        assert max(map(len, lines)) > min(width, 120) - 25


@pytest.mark.parametrize("command", PAGES)
def test_nothing_is_cut_and_no_range_is_shown(command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(command, 80, capsys, monkeypatch)
    assert not re.search(r"[a-z]\.\.\.$|…|<=|\{MODEL", text, flags=re.MULTILINE)
    assert "\x1b" not in text


def test_commands_stand_in_groups(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page("", 80, capsys, monkeypatch)
    for group, commands in GROUPS.items():
        section = text.partition(f"\n{group}:\n")[2].partition("\n\n")[0]
        assert re.findall(r"(?m)^  ([a-z]+)  ", section) == [*commands]


def test_options_of_the_output_stand_last(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    options, output = page("params", 80, capsys, monkeypatch).partition("\nOptions:\n")[2].split("\nOutput:\n")
    assert re.findall(r"--[a-z]+", options)[0] == "--by"
    assert re.findall(r"(?m)^  (?:-\w, )?(--[a-z]+)", output)[:2] == ["--format", "--output"]


@pytest.mark.parametrize(
    ("terminal", "variables", "colours"),
    [(True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"TERM": "dumb"}, False), (False, {}, False)],
)
def test_colours_need_a_terminal(
    terminal: bool,
    variables: dict[str, str],
    colours: bool,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    for command in (["params", "--help"], []):
        assert run(command) == 0
        assert ("\x1b[" in capsys.readouterr().out) == colours


def test_colours_mark_headings_options_commands_and_examples() -> None:
    text = "Usage: llmbench params\n\n  Text.\n\n  Examples:\n    llmbench params gpt2\n\nSize:\n  flops  Count.\n"
    text += "  -o, --output FILE  Write.\n                     More text.\n"
    shown = coloured(text)
    assert re.sub(r"\x1b\[\d+m", "", shown) == text
    marked = re.findall(r"\x1b\[\d+m(.*?)\x1b\[0m", shown)
    assert sorted(marked) == [
        "-o, --output FILE",
        "Examples:",
        "Size:",
        "Usage:",
        "flops",
        "llmbench params gpt2",
    ]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["fit", "llama3-8b", "--kv-dtype", "bf16", "--kv-dtype", "fp8"], "--kv-dtype"),
        (["memory", "llama2-7b", "-o", "a.csv", "--output", "b.csv"], "--output"),
        (["specs", "list", "--family", "llama", "--family", "qwen"], "--family"),
    ],
)
def test_an_option_with_one_value_is_given_once(arguments: list[str], option: str, capsys: Capture) -> None:
    assert run(arguments) == 2
    assert f"{option} is given 2 times, but it can be given only once" in capsys.readouterr().err


def test_profile_names_the_command_that_compares_several_implementations(capsys: Capture) -> None:
    for arguments, hint in (
        (["attention", "--impl", "flash,sdpa"], "hint: `llmbench bench attention` compares several"),
        (["decode", "--impl", "flash,sdpa"], "hint: run the command once for each of them"),
        (
            ["norm", "--impl", "fused", "--impl", "compiled"],
            "hint: keep one of them; `llmbench bench` compares several",
        ),
    ):
        assert run(["profile", *arguments, "--device", "cpu"]) == 2
        assert hint in capsys.readouterr().err


def test_options_that_may_be_repeated(capsys: Capture) -> None:
    assert run(["params", "gpt2", "--set", "hidden_size=768", "--set", "vocab_size=8", "--explain", "--explain"]) == 0
