"""Screens of 60 to 160 columns: no line is longer, and no number, unit or word of a heading is cut."""

from __future__ import annotations

import io
import re
import shlex
from html import escape
from pathlib import Path

import pytest

from llmbench.cli import run
from llmbench.report.document import Block, Command, Document, View, table
from llmbench.report.fields import Field
from llmbench.report.html import to_html
from llmbench.report.render import render
from llmbench.report.terminal import _wrapped

SCREENS = [
    "params llama2-7b",
    "params deepseek-v3",
    "params t5-base --explain",
    "params jamba-v0.1 --by layer",
    "params mixtral-8x7b --by op --explain",
    "flops llama2-7b",
    "flops deepseek-v3 --phase train --recompute full --by op",
    "flops gemma3-4b --phase decode --attention full --explain",
    "flops llama3-8b gpt2 --seq 1k..128k",
    "kvcache",
    "kvcache --all --seq 128k",
    "kvcache gemma3-27b --explain",
    "kvcache deepseek-v3.2",
    "kvcache llama3-8b --seq 8k..128k --batch 1,8",
    "memory llama2-7b",
    "memory deepseek-v3 --layout pp=16,ep=64,dp=128,zero=1 --recompute full",
    "memory llama2-7b --explain --timeline",
    "memory llama3-8b --phase inference --seq 8k,32k,128k --batch 1,16",
    "memory llama3-8b --recompute none,every-second --seq 8k,32k --explain",
    "memory llama3-8b --device h100 --device l40s --device rtx-4090 --device mi300x --device v100-sxm2-32gb",
    "memory gpt2-xl --phase inference --seq 8,1k --device h100 --device l40s --device l4 --device mi300x --device h200",
    "fit llama3-8b --device h100 --users 32 --explain",
    "fit llama3-70b --device h100 --device rtx-4090 --weights fp8 --weights awq",
    "fit llama3.3-70b --seq 32k",
    "fit gemma3-27b --engine sglang --device h200 --users 8",
    "fit llama3.3-70b --device h100 --users 4 --seq 16k",
    "fit qwen3-32b --seq 32k --users 16 --price 2.5",
    "fit llama3.1-8b --device l40s --seq 8k,32k --users 1,16 --kv-dtype bf16,fp8 --price 3",
    "fit llama3.1-8b --engine llamacpp --device rtx-4090 --kv-dtype q8_0",
    "mfu llama3-8b --device h100 --gpus 64 --step-time 8.5s --batch 512 --seq 8k",
    "mfu mixtral-8x7b --device a100 --tokens-per-s 2000 --explain",
    "memory llama3-8b --lora r=16,alpha=32,targets=q,v --device h100",
    "memory llama3-70b --lora r=16,targets=all-linear --base nf4 --recompute full --explain",
    "flops llama3-8b --phase train --lora r=16,targets=all-linear",
    "kvcache llama3-8b mistral-7b --kv-dtype fp8_per_token_head,q8_0",
    "params deepseek-v3 --weights gguf-q4-k-m",
    "compare llama2-7b mistral-7b",
    "compare llama2-7b --vs --set num_key_value_heads=8",
    "compare gpt2 t5-base mamba2-2.7b",
    "compare llama2-7b mistral-7b deepseek-v3 gemma3-27b jamba-v0.1 gpt-oss-20b",
    "specs list",
    "specs list --devices",
    "specs list --model-types",
    "specs list --formats",
    "validate kv benchmarks/published/kv_formats.csv",
    "validate engine benchmarks/published/engine_logs.csv --by engine",
    "validate memory benchmarks/published/training_runs.csv --by quantity",
    "validate weights benchmarks/published/checkpoints.csv",
    "specs check specs/models/gpt2.toml",
    "model gpt2 --device meta --layers 2",
    "env",
    "exercise show kv-cache --solution",
    "choose --context 32k",
    "exercise list",
    "kernels list",
    "textbook models",
    "worked flash",
]
"""The commands whose screens are checked."""
NEGATIVE = ("fit llama3.3-70b --device h100 --users 4 --seq 16k",)
"""The commands whose answer is no, so that their exit code is 1."""


WIDTHS = (60, 80, 100, 160)


@pytest.mark.parametrize("command", SCREENS)
def test_no_line_is_too_long_and_no_word_is_cut(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The words of a narrow screen are words of the widest one. Only a long identifier may break."""
    monkeypatch.chdir(Path(__file__).parents[2])

    def screen(width: int, *options: str) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        assert run([*shlex.split(command), *options]) == (command in NEGATIVE)
        return capsys.readouterr().out

    whole = {*screen(5000, "--wide", "--notes").split(), *screen(5000).split()}
    identifiers = [word for word in whole if len(word) > 16 and ("_" in word or "." in word)]
    for width in WIDTHS:
        text = screen(width)
        assert [line for line in text.splitlines() if len(line) > width] == []
        shown = re.sub(r"`--(wide|notes)` .*?(\n\n|$)", "", text, flags=re.DOTALL).split()
        # "model": the heading of a comparison with a row per model. A backslash continues a command.
        unknown = set(shown) - whole - {"model", "\\"}
        cut = {word for word in unknown if not any(word in identifier for identifier in identifiers)}
        assert cut | {word for word in unknown if re.fullmatch(r"[\d.,%×−+]+", word)} == set()


FIELDS: list[Field[dict[str, object]]] = [
    Field("implementation", "implementation"),
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
    [(80, []), (60, []), (44, ["traffic"]), (36, ["traffic", "analytic"]), (30, ["traffic", "analytic", "verdict"])],
)
def test_spare_columns_give_way(width: int, left_out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The column with the largest number goes first. After the spare columns, the last column goes."""
    lines = drawn(width, monkeypatch)
    text = " ".join(" ".join(lines).split())
    head = text.partition("attention")[0]
    for field in FIELDS:
        assert field.heading is not None
        assert (field.heading in head) == (field.heading not in left_out)
    assert (f"`--wide` also shows: {', '.join(left_out)}" in text) == bool(left_out)
    assert "attention" in text
    assert max(map(len, lines)) <= width


def shown(view: View, *blocks: Block) -> str:
    """The text of a document with these blocks, in a pipe."""
    out = io.StringIO()
    render(Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[*blocks]), "table", out, view)
    return out.getvalue()


COMMAND = Command(
    "start it:",
    "serve a/b --max-len 8192 --config "
    """'{"method": "draft one", "model": "a/very-long/name-of-a-model"}' --more <(echo 1)""",
)


@pytest.mark.parametrize("width", [20, 60, 80, 300])
def test_a_command_stays_one_command_for_a_shell(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    label, *lines = shown(View(), Block(commands=[COMMAND])).splitlines()
    assert label.strip() == COMMAND.label
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert shlex.split("\n".join(lines).replace("\\\n", "")) == shlex.split(COMMAND.text)
    assert (len(lines) == 1) == (width == 300)


def test_a_command_between_backticks_does_not_break() -> None:
    text = "the command `llmbench train --resume runs/one` goes on"
    for width in range(38, 56):
        assert "`llmbench train --resume runs/one`" in "\n".join(_wrapped(text, width))


def test_a_list_breaks_between_its_items() -> None:
    text = "model · 32 layers · 32 heads (GQA, 8 KV heads) · an item that is longer than a line of the narrowest screen"
    for width in range(26, len(text)):
        lines = _wrapped(text, width)
        assert " ".join(lines).replace(" ·", "") == text.replace(" ·", "")
        assert any("32 heads (GQA, 8 KV heads)" in line for line in lines)
        assert not any(line.startswith("·") for line in lines)
    wrapped = _wrapped("a model · num_key_value_heads=8 · norm.kind=layernorm", 22)
    assert wrapped == ["a model ·", "num_key_value_heads=8", "norm.kind=layernorm"]


def test_markdown_and_html_have_the_whole_command() -> None:
    out = io.StringIO()
    document = Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[Block(commands=[COMMAND])])
    render(document, "markdown", out)
    assert f"```sh\n{COMMAND.text}\n```" in out.getvalue()
    assert f"<code>{escape(COMMAND.text)}</code>" in to_html(document)


def test_the_bytes_of_an_asked_format_stay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["params", "gpt-oss-120b", "--weights", "gguf-mxfp4-moe"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "component" in line).endswith("in files (GiB)")
    assert run(["params", "gpt-oss-120b"]) == 0
    assert "formula (one layer)" in capsys.readouterr().out


def test_a_table_with_columns_that_repeat_is_shown_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"device-{number}" for number in range(6)]
    fields = [
        Field[dict[str, int]]("tokens", "tokens", "count", repeats=True),
        Field[dict[str, int]]("peak", "peak", "count", spare=1),
        *(Field[dict[str, int]](name, name, "percent") for name in names),
    ]
    block = Block(table=table(fields, [{"tokens": 8192, "peak": 7} | dict.fromkeys(names, 1)]))
    parts = shown(View(), block).split("\n\n")
    assert [part.split("\n")[0].split() for part in parts] == [["tokens", *names[:3]], ["tokens", *names[3:]]]
    assert parts[1].strip().endswith("`--wide` also shows: peak")
    parts = shown(View(wide=True), block).split("\n\n")
    assert [word for part in parts for word in part.split("\n")[0].split()[1:]] == ["peak", *names]
    assert all(part.split("\n")[0].split()[0] == "tokens" for part in parts)


@pytest.mark.parametrize("command", ["memory gpt2 --seq 128,1k", "compare gpt2 llama3-8b deepseek-v3 jamba-v0.1"])
def test_wide_shows_everything_in_parts(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(width: int) -> set[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        assert run([*command.split(), "--wide"]) == 0
        return set(capsys.readouterr().out.split())

    assert words(80) == words(5000)


def test_at_most_eight_columns_that_are_left_out_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for number, end in ((9, "c8"), (10, "c7, and 2 more columns")):
        row = dict.fromkeys([f"c{place}" for place in range(number)], "x" * 90)
        fields = [Field[dict[str, str]]("name", "name", value=lambda row: "long name " * 20)]
        fields += [Field[dict[str, str]](name, name, spare=1) for name in row]
        assert shown(View(), Block(table=table(fields, [row]))).rstrip().endswith(end)


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
