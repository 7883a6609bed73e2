"""The output of commands: every format, terminals and pipes, files, exit codes of processes."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmbench.cli import run
from llmbench.cli.encodings import SIGNS
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Cell, Field, records
from llmbench.report.render import render
from llmbench.report.units import Unit, change, fitting, shown, texts
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import write_spec
from llmbench.spec.override import override

Capture = pytest.CaptureFixture[str]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
LLMBENCH = [sys.executable, "-c", "from llmbench.cli import main; main()"]

ANSWERS = [
    ["params", "llama2-7b"],
    ["params", "deepseek-v3", "--explain"],
    ["params", "jamba-v0.1", "--by", "layer"],
    ["params", "mixtral-8x7b", "--by", "op", "--explain"],
    ["flops", "gpt2", "llama2-7b"],
    ["flops", "deepseek-v3", "--phase", "train", "--recompute", "full", "--by", "op"],
    ["flops", "gemma3-4b", "--phase", "decode", "--attention", "full", "--explain"],
    ["kvcache"],
    ["kvcache", "gemma3-27b", "--explain"],
    ["kvcache", "llama2-7b", "jamba-v0.1", "t5-base"],
    ["memory", "llama2-7b"],
    ["memory", "deepseek-v3", "--layout", "pp=16,ep=64,dp=128,zero=1", "--recompute", "full"],
    ["memory", "llama3-70b", "--phase", "inference", "--weights", "fp8"],
    ["fit", "llama3-8b", "--device", "h100", "--explain"],
    ["fit", "llama3.3-70b", "--seq", "32k"],
    ["compare", "gpt2-xl", "llama2-7b", "deepseek-v3"],
    ["model", "qwen3-0.6b", "--trace", "--seq", "32"],
    ["env"],
    ["specs", "list"],
    ["specs", "list", "--devices"],
    ["specs", "list", "--model-types"],
    ["specs", "list", "--formats"],
    ["specs", "check", "specs/models/gpt2.toml"],
]
VERSIONS = {"memory": 3, "compare": 2, "specs.list": 2, "specs.check": 2}
"""The version of the JSON of each command. It is 1 for the other commands."""
each_answer = pytest.mark.parametrize("arguments", ANSWERS, ids=" ".join)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run where the specs' folder is."""
    monkeypatch.chdir(Path(__file__).parents[2])


def answer(capsys: Capture, *arguments: str) -> str:
    """stdout of a command that succeeds and says nothing on stderr."""
    code = run([*arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), err
    return out


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, its output in a pipe."""
    return subprocess.run([*LLMBENCH, *arguments], capture_output=True, text=True, check=False, **options)


# Formats


@each_answer
def test_json(arguments: list[str], capsys: Capture) -> None:
    text = answer(capsys, *arguments, "--format", "json")
    document = json.loads(text)
    command = ".".join(arguments[: 2 if arguments[0] == "specs" else 1])
    assert document["schema"] == f"llmbench.{command}/{VERSIONS.get(command, 1)}"
    assert text.endswith("\n}\n")
    assert document == json.loads(json.dumps(document))


@each_answer
def test_csv(arguments: list[str], capsys: Capture) -> None:
    text = answer(capsys, *arguments, "--format", "csv")
    rows = list(csv.reader(io.StringIO(text), strict=True))
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}, "one line of headings for all rows"
    assert rows.count(rows[0]) == 1
    assert len(set(rows[0])) == len(rows[0])
    assert "–" not in [cell for row in rows[1:] for cell in row]  # unknown is empty to a machine
    if arguments[0] != "env" and not {"--devices", "--model-types", "--formats"} & set(arguments):
        assert "model" in rows[0]


def test_csv_has_base_units(capsys: Capture) -> None:
    rows = list(csv.DictReader(io.StringIO(answer(capsys, "params", "llama2-7b", "-f", "csv"))))
    by_name = {row["component"]: row for row in rows}
    assert int(by_name["total"]["parameters"]) == 6_738_415_616
    assert float(by_name["mlp"]["share"]) == 4_328_521_728 / 6_738_415_616
    cache = list(csv.DictReader(io.StringIO(answer(capsys, "kvcache", "gpt2", "llama2-7b", "-f", "csv"))))
    assert [row["model"] for row in cache] == ["gpt2", "llama2-7b"]
    assert int(cache[1]["bytes_per_token"]) == 524_288


@each_answer
def test_markdown(arguments: list[str], capsys: Capture) -> None:
    lines = answer(capsys, *arguments, "--format", "markdown").splitlines()
    starts = [n for n, line in enumerate(lines) if re.fullmatch(r"\|( -+:? \|)+", line)]
    assert starts
    for start in starts:
        width = len(re.findall(r"(?<!\\)\|", lines[start]))
        table = [lines[start - 1]]
        for line in lines[start + 1 :]:
            if not line.startswith("|"):
                break
            table.append(line)
        assert len(table) > 1
        assert all(len(re.findall(r"(?<!\\)\|", line)) == width for line in table)


@each_answer
def test_a_table_in_a_pipe_is_whole(arguments: list[str], capsys: Capture) -> None:
    text = answer(capsys, *arguments)
    assert "\x1b" not in text
    assert "…" not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert text.endswith("\n")


@each_answer
def test_a_file_is_the_same_as_stdout(arguments: list[str], tmp_path: Path, capsys: Capture) -> None:
    for format in ("table", "json", "csv", "markdown"):
        file = tmp_path / f"answer.{format}"
        assert run([*arguments, "--format", format, "--output", str(file)]) == 0
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"wrote {file}\n"
        assert file.read_text(encoding="utf-8") == without_output(answer(capsys, *arguments, "-f", format), file)


def without_output(text: str, _file: Path) -> str:
    """The answer does not say where it was written."""
    return text


# Terminals


def on_terminal(*arguments: str, columns: int = 80, **environment: str) -> str:
    """The output in a terminal of this width."""
    master, slave = pty.openpty()
    variables = {
        **os.environ,
        "COLUMNS": str(columns),
        "LINES": "50",
        "TERM": "xterm-256color",
        **environment,
    }
    for name in ("NO_COLOR", "FORCE_COLOR"):
        if name not in environment:
            variables.pop(name, None)
    child = subprocess.Popen([*LLMBENCH, *arguments], stdout=slave, stderr=slave, stdin=slave, env=variables)
    os.close(slave)
    chunks = []
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # Linux says EIO at the end
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    assert child.wait() == 0
    return b"".join(chunks).decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["params", "deepseek-v3"],
        ["params", "llama2-7b", "--explain"],
        ["flops", "llama2-7b"],
        ["kvcache", "gemma3-27b"],
        ["kvcache"],
        ["memory", "llama2-7b"],
        ["compare", "gpt2-xl", "llama2-7b"],
        ["specs", "list"],
    ],
    ids=" ".join,
)
def test_eighty_columns_are_kept_and_no_number_cut(arguments: list[str]) -> None:
    text = on_terminal(*arguments)
    assert ANSI.search(text)  # a person's terminal has styles
    lines = [ANSI.sub("", line) for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    cut = [line for line in lines if re.search(r"[0-9.,]…", line)]
    assert cut == []


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_below_a_wide_table_lines_are_wrapped_and_not_padded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    wide = Table(columns=[Field(name, name * 12) for name in "abcdefghij"], rows=[["x"] * 10])
    words = "a line that is longer than the terminal is wide, and so goes on in the next line, which is short"
    lines = [words, "short"]
    blocks = [Block(headline="first", table=wide, lines=lines), Block(headline="second", lines=lines)]
    out = Terminal()
    render(Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=blocks), "table", out)
    text = [ANSI.sub("", line) for line in out.getvalue().splitlines()]
    assert max(map(len, text)) <= 80
    wrapped = [
        "  a line that is longer than the terminal is wide, and so goes on in the next",
        "  line, which is short",
    ]
    below = [*wrapped, "  short"]
    assert text[-8:] == [*below, "", "second", *below]


def test_no_color_is_respected() -> None:
    """No colour, as no-color.org asks; other styles may stay."""
    text = on_terminal("params", "gpt2", NO_COLOR="1")
    codes = {code for escape in ANSI.findall(text) for code in escape[2:-1].split(";")}
    assert codes <= {"", "0", "1", "2", "3", "4", "22", "23", "24"}, codes


def test_progress_is_shown_on_a_terminal_only(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmbench.cli.options import working

    monkeypatch.setenv("FORCE_COLOR", "1")  # which is about colours
    with working("waiting"):
        pass
    assert capsys.readouterr().err == ""


def test_a_dumb_terminal_gets_plain_text() -> None:
    assert "\x1b" not in on_terminal("params", "gpt2", TERM="dumb")


# Processes


def test_answers_go_to_stdout_and_errors_to_stderr() -> None:
    good = process("params", "gpt2", "--format", "json")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["models"][0]["parameters"]["total"] == 124_439_808
    bad = process("params", "gpt3-175x")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: model `gpt3-175x` not found\n\nhint: did you mean `gpt3-175b`?")


def test_python_dash_m_and_the_script_are_one_program() -> None:
    script = Path(sys.executable).parent / "llmbench"
    if not script.exists():
        pytest.skip("not installed as a script")
    assert subprocess.run([script, "--version"], capture_output=True, text=True).stdout == process("--version").stdout


@pytest.mark.parametrize(
    "arguments",
    [["kvcache", "--format", "json"], ["params", "gpt2"], ["specs", "show", "gpt2"], ["--help"]],
    ids=" ".join,
)
def test_a_closed_pipe_is_not_an_error(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    child = subprocess.Popen([*LLMBENCH, *arguments], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = child.communicate()
    assert (child.returncode, err) == (0, b"")


def test_head() -> None:
    command = f"{' '.join(map(repr, LLMBENCH))} kvcache --format json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_arguments_that_are_not_text() -> None:
    for arguments in (["params", b"\xff"], ["params", "gpt2", "--set", b"name=\xff"], [b"\xff"]):
        done = subprocess.run([*LLMBENCH, *arguments], capture_output=True)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: ")
        assert b"Traceback" not in done.stderr


def test_a_terminal_without_utf8_gets_no_traceback() -> None:
    variables = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
    done = process("params", "llama2-7b", env=variables)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert "rule of thumb 12*L*d^2 = 6.44 B (-4.4%) | equal to the published total" in done.stdout
    assert "?" not in done.stdout


def test_signs_that_an_encoding_lacks_have_others_of_the_same_meaning() -> None:
    text = "a · 12·L·d² = −31.7% – 10⁻¹² × 2 ≤ 3 … ±5 β₂ 漢"
    assert text.encode("ascii", SIGNS) == b"a | 12*L*d^2 = -31.7% - 10^-12 x 2 <= 3 ... +/-5 ?2 ?"
    assert text.encode("latin-1", SIGNS).decode("latin-1") == "a · 12·L·d² = -31.7% - 10^-¹² × 2 <= 3 ... ±5 ?2 ?"


# Approximate models


@pytest.fixture
def approximate(tmp_path: Path) -> str:
    """A model whose figures are not exact, as a file."""
    spec = override(load_bundled("gpt2"), {"name": "guessed", "approximate": ["config key x = 1 is not understood"]})
    file = tmp_path / "guessed.toml"
    file.write_text(write_spec(spec), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("format", ["table", "json", "csv", "markdown"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["params"],
        ["params", "--by", "op"],
        ["flops"],
        ["kvcache"],
        ["memory"],
        ["compare"],
        ["specs", "check"],
    ],
    ids=" ".join,
)
def test_an_approximate_model_is_marked(arguments: list[str], format: str, approximate: str, capsys: Capture) -> None:
    text = answer(capsys, *arguments, approximate, "--format", format)
    assert "approximate" in text
    if format == "json":
        assert all(row["approximate"] for row in json.loads(text)[list(json.loads(text))[3]])
    exact = answer(capsys, *arguments[:1], *(arguments[1:] or []), *exact_of(arguments), "--format", format)
    if format in ("table", "markdown"):
        assert "approximate" not in exact
    elif format == "csv":
        for content, value in ((text, "true"), (exact, "false")):
            assert {line["approximate"] for line in csv.DictReader(io.StringIO(content.split("\n\n")[0]))} == {value}


def exact_of(arguments: list[str]) -> list[str]:
    """The same command's argument for an exact model."""
    return ["specs/models/gpt2.toml"] if arguments[0] == "specs" else ["gpt2"]


@pytest.mark.parametrize("format", ["table", "json", "csv", "markdown"])
def test_one_approximate_model_among_several(format: str, approximate: str, capsys: Capture) -> None:
    for command in ("kvcache", "compare", "params", "flops"):
        assert "approximate" in answer(capsys, command, "llama2-7b", approximate, "--format", format)


def test_an_approximate_import_is_marked(tmp_path: Path, capsys: Capture) -> None:
    from ..oracles.huggingface_export import to_config

    config = to_config(load_bundled("llama2-7b")) | {"something_new": 17}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert run(["specs", "import", str(file), "-o", str(tmp_path / "x.toml")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "approximate: config key something_new = 17 is not understood" in err
    assert "approximate" in answer(capsys, "params", str(tmp_path / "x.toml"))
    assert run(["specs", "import", str(file)]) == 0
    out, err = capsys.readouterr()
    assert out.replace(f'name = "{tmp_path.name}"', 'name = "x"') == (tmp_path / "x.toml").read_text(encoding="utf-8")
    assert "source" not in out


# Streams that take nothing


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [["params", "gpt2"], ["kvcache", "--format", "json"], ["specs", "show", "gpt2"], ["--version"], []],
    ids=" ".join,
)
def test_a_full_disk_is_an_error_and_not_a_bug(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*LLMBENCH, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "error: cannot write the answer to stdout: No space left on device\n")


def test_names_are_never_broken() -> None:
    names = ["qwen3-235b-a22b", "mistral-small-24b", "deepseek-v2-lite", "codestral-mamba-7b"]
    for command in ("kvcache", "compare"):
        text = ANSI.sub("", on_terminal(command, *names))
        assert all(name in text for name in names)


@pytest.mark.parametrize(
    ("unit", "values", "fits"),
    [
        ("gib", [2**32, 2**28], "gib"),
        ("gib", [2**30, 2**22, 0], "mib"),
        ("gib", [2**30 - 1, None], "mib"),
        ("gib", [2**20 - 1], "kib"),
        ("ms", [0.0009, 0.0001], "us"),
        ("ms", [0.001, "OOM"], "ms"),
        ("ms", [7e-6, 0.8], "ms"),
        ("tflops_per_s", [9.9e11], "gflops_per_s"),
        ("ratio", [1e-9], "ratio"),
        ("ms", [None], "ms"),
    ],
)
def test_a_column_has_the_unit_of_its_middle_value(unit: Unit, values: list[object], fits: Unit) -> None:
    assert fitting(unit, values) == fits


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2560, "kib", "2.50"),
        (3 * 2**19, "mib", "1.50"),
        (2**24, "kib", "16,384"),
        (12347e-9, "us", "12.3"),
        (0.277, "error", "+27.7%"),
        (2**20, "gib", "<0.01"),
        (0.0002, "percent", "<0.1%"),
        (-0.0002, "error", "−<0.1%"),
        (None, "gib", "–"),
        (0, "gib", "0.00"),
        (7e9, "parameters", "7.00"),
        (25e9, "gflops_per_s", "25"),
        (-0.533, "percent", "−53.3%"),
    ],
)
def test_values_in_their_units(value: float, unit: Unit, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize(
    ("unit", "values", "shown"),
    [
        ("ms", [0.0123, 0.5], ["12.3", "500.0"]),
        ("ms", [0.000123, 0.0005], ["0.123", "0.500"]),
        ("ms", [0.000012, "OOM", 0.25, None], ["0.012", "OOM", "250.000", "–"]),
        ("number", [1, 20], ["1", "20"]),
        ("number", [[1, None], 2.5], ["1.00, –", "2.50"]),
        ("ms", [1e-9, 0.25], ["<0.001", "250.000"]),
        ("tflops", [0, 5e12, float("inf")], ["0", "5", "inf"]),
    ],
)
def test_a_column_has_one_number_of_decimals(unit: Unit, values: list[object], shown: list[str]) -> None:
    assert texts(values, unit) == shown


def test_sparse_columns_without_a_value_are_for_machines_only() -> None:
    fields: list[Field[dict[str, object]]] = [
        Field("name", "name"),
        Field("known_s", "known", "ms", sparse=True),
        Field("unknown_s", "unknown", "ms", sparse=True),
        Field("hidden", description="a field without a heading"),
    ]
    items = [{"name": "a", "known_s": 0.0025, "unknown_s": None, "hidden": True}, {"name": "b"}]
    items[1] |= {"known_s": None, "unknown_s": None, "hidden": False}
    document = Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=[Block(table=table(fields, items))])
    for form in ("table", "markdown"):
        out = io.StringIO()
        render(document, form, out)
        assert "known (ms)" in out.getvalue()
        assert "2.5" in out.getvalue()
        assert "unknown" not in out.getvalue()
        assert "hidden" not in out.getvalue()
    out = io.StringIO()
    render(document, "csv", out)
    assert out.getvalue().splitlines() == ["name,known_s,unknown_s,hidden", "a,0.0025,,true", "b,,,false"]


def test_one_description_serves_every_format() -> None:
    """A name with dots is an object in JSON, and one column in CSV; people read the text, machines the value."""
    fields: list[Field[int]] = [
        Field("value", "value", "count", value=lambda number: number),
        Field("square.text", value=lambda number: [number, number]),
        Field("square.value", "square", "count", value=lambda number: number**2, text=lambda number: f"{number}²"),
        Field("object", value=lambda number: {"a": number}),
        Field("parity", "parity", value=lambda number: number % 2 == 1, in_json=False),
    ]
    assert records(fields, [3]) == [{"value": 3, "square": {"text": [3, 3], "value": 9}, "object": {"a": 3}}]
    result = table(fields, [3, 1000])
    assert result.rows[0] == [3, [3, 3], Cell(9, "3²"), {"a": 3}, True]
    blocks = [Block(about={"model": name, "notes": ["x", "y"]}, table=result) for name in ("m", "n")]
    document = Document(command="x", inputs={}, rows_key="rows", rows=[], blocks=blocks)
    out = io.StringIO()
    render(document, "csv", out)
    assert out.getvalue().splitlines()[:3] == [
        "model,value,square.text,square.value,parity,notes",
        "m,3,3; 3,9,true,x; y",
        "m,1000,1000; 1000,1000000,false,x; y",
    ]
    assert len(out.getvalue().splitlines()) == 5, "one header for both blocks"
    out = io.StringIO()
    render(document, "markdown", out)
    assert (
        "| value | square | parity |\n| ---: | ---: | --- |\n| 3 | 3² | yes |\n| 1,000 | 1000² | no |" in out.getvalue()
    )


def test_a_dash_is_stdout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["params", "gpt2"], ["kvcache", "gpt2", "--format", "csv"], ["specs", "show", "gpt2"]):
        assert run(command) == 0
        out = capsys.readouterr().out
        assert run([*command, "-o", "-"]) == 0
        assert capsys.readouterr() == (out, "")
    assert run(["bench", "heads", "--device", "cpu", "--output", "-"]) == 2
    assert "--output -: results need a file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_spec_is_written_as_toml(capsys: Capture, tmp_path: Path) -> None:
    assert run(["specs", "show", "gpt2", "-o", str(tmp_path / "gpt2.csv")]) == 2
    error = capsys.readouterr().err
    assert "a spec is written as TOML" in error
    assert f"use --output {tmp_path / 'gpt2.toml'}" in error
    assert not list(tmp_path.iterdir())


def test_a_relative_difference_has_few_digits() -> None:
    """A small difference is neither rounded to zero nor shown as a power of ten."""
    values = (1.0, 1 + 1e-7, 1 - 1e-7, 1.00004, 0.9997, 1.001, 0.5)
    shown_as = ["+0.0%", "+<0.001%", "−<0.001%", "+0.004%", "−0.03%", "+0.1%", "−50.0%"]
    assert [change(value, 1.0) for value in values] == shown_as
