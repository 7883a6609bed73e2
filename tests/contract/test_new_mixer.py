"""The contract of a mixer: a kind that says only what its base demands is sized right by every command, or refused in
words; and a kind that forgets something is named by mypy.

The kinds in tests/contract/kinds are registered in a copy of the package, in the places that a newcomer would edit.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest

from llmbench.spec import ffn, mixer, position
from llmbench.spec.base import Kind
from llmbench.spec.mixer.kind import AttentionKind, RecurrentKind

HERE = Path(__file__).parent
KINDS = HERE / "kinds"
PACKAGE = HERE.parents[1] / "llmbench"
SPEC = str(KINDS / "new-kinds.toml")

# The model of new-kinds.toml, by hand.
D, VOCAB, N, K, H, WINDOW, W = 40, 96, 4, 2, 6, 5, 24
WINDOW_LAYERS, AVERAGE_LAYERS = 2, 1
WINDOW_MATRICES = D * N * H + 2 * D * K * H + D * N * H + N * H * D  # q, k and v, gate, o
AVERAGE_MATRICES = D * W + W * D
NORMS = (WINDOW_LAYERS + AVERAGE_LAYERS + 1) * D  # one before each mixer, one before the head
PARAMETERS = VOCAB * D + NORMS + WINDOW_LAYERS * WINDOW_MATRICES + AVERAGE_LAYERS * (AVERAGE_MATRICES + W)
SEQ = 9


class Answer(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def row(self) -> dict[str, Any]:
        """The only model of a JSON answer."""
        assert (self.code, self.err) == (0, ""), self.err
        (row,) = json.loads(self.out)["models"]
        return row


RUN = """
import contextlib, io, json, sys
from llmbench.cli import run
answers = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


def insert(file: Path, mark: str, text: str) -> None:
    """Put `text` in front of the only `mark` in a file."""
    source = file.read_text(encoding="utf-8")
    assert source.count(mark) == 1, (file, mark)
    file.write_text(source.replace(mark, text + mark), encoding="utf-8")


def copy_package(folder: Path) -> Path:
    """A copy of the package in `folder`, with both kinds written and in the union, and no ops yet."""
    package = folder / "llmbench"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in ("gated_window", "leaky_average"):
        shutil.copy(KINDS / f"{name}.py", package / "spec" / "mixer")
    union = package / "spec" / "mixer" / "__init__.py"
    imports = "from llmbench.spec.mixer.gated_window import GatedWindow\n"
    imports += "from llmbench.spec.mixer.leaky_average import LeakyAverage\n"
    insert(union, "from llmbench.spec.mixer.kind import", imports)
    insert(union, "Mamba | Mamba2 |", "LeakyAverage | ")
    insert(union, "Attention | LatentAttention |", "GatedWindow | ")
    return package


def register(package: Path) -> None:
    """Add the ops of both kinds to a copy of the package, and say that their modules are not built."""
    lower = package / "sizing" / "lower"
    import_window = "from llmbench.spec.mixer.gated_window import GatedWindow\n"
    import_average = "from llmbench.spec.mixer.leaky_average import LeakyAverage\n"
    shutil.copy(KINDS / "gated_window_ops.py", lower / "gated_window.py")
    insert(lower / "mixers.py", "from llmbench.spec.mixer import", import_window)
    insert(
        lower / "mixers.py",
        "        case LatentAttention():",
        "        case GatedWindow():\n"
        "            from llmbench.sizing.lower.gated_window import gated_window\n\n"
        "            gated_window(b, mixer)\n",
    )
    recurrent = lower / "recurrent.py"
    insert(recurrent, "from llmbench.spec.mixer import (", import_average)
    insert(recurrent, "        case Mamba2():", "        case LeakyAverage():\n            _leaky_average(b, mixer)\n")
    ops = (KINDS / "leaky_average_ops.txt").read_text(encoding="utf-8")
    recurrent.write_text(recurrent.read_text(encoding="utf-8") + ops, encoding="utf-8")
    modules = package / "model" / "mixers.py"
    insert(modules, "from llmbench.spec.mixer import (", import_window + import_average)
    insert(modules, "CompressedAttention() | KimiDelta()", "GatedWindow() | LeakyAverage() | ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has both kinds."""
    where = tmp_path_factory.mktemp("registered")
    register(copy_package(where))
    return where


def answers(folder: Path, commands: Sequence[Sequence[str]]) -> list[Answer]:
    """The answers of several commands, run in one process with the package in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return [Answer(*answer) for answer in json.loads(done.stdout)]


def visible(length: int) -> int:
    """Pairs of a query and a key that it sees, counted one by one."""
    return sum(0 <= query - key < WINDOW for query in range(length) for key in range(length))


def test_figures_are_right(folder: Path) -> None:
    params, flops, train, decode, cache, inference = (
        answer.row
        for answer in answers(
            folder,
            [
                ["params", SPEC, "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--phase", "train", "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--phase", "decode", "--format", "json"],
                ["kvcache", SPEC, "--seq", str(SEQ), "--format", "json"],
                ["memory", SPEC, "--seq", str(SEQ), "--phase", "inference", "--format", "json"],
            ],
        )
    )
    assert params["parameters"]["total"] == PARAMETERS
    matrices = VOCAB * D + WINDOW_LAYERS * WINDOW_MATRICES + AVERAGE_LAYERS * AVERAGE_MATRICES
    scan = 6 * W * AVERAGE_LAYERS
    scores = WINDOW_LAYERS * N * 2 * (H + H)
    assert flops["total_flops"] == SEQ * (2 * matrices + scan) + scores * visible(SEQ)
    assert train["total_flops"] >= 3 * flops["total_flops"]
    assert decode["total_flops"] == 2 * matrices + scan + scores * WINDOW
    row, state = 2 * K * H, 4 * W
    assert cache["bytes_per_token"] == WINDOW_LAYERS * row * 2
    assert cache["bytes_per_sequence"] == WINDOW_LAYERS * row * WINDOW * 2
    assert cache["state_bytes_per_sequence"] == AVERAGE_LAYERS * state
    assert inference["parts_bytes"]["weights"] == 2 * PARAMETERS
    assert inference["parts_bytes"]["kv_cache"] == cache["bytes_total"]


def test_words_are_right(folder: Path) -> None:
    table, compare, training, absorbed = answers(
        folder,
        [
            ["kvcache", SPEC, "--seq", str(SEQ), "--explain"],
            ["compare", SPEC, "--format", "json"],
            ["memory", SPEC, "--seq", str(SEQ), "--format", "json"],
            ["flops", SPEC, "--seq", str(SEQ), "--phase", "decode", "--format", "json"],
        ],
    )
    assert "4 heads (gated window)" in table.out
    assert "leaky average" in table.out
    assert "the last 5" in table.out
    assert "2 × kv_heads × head_dim = 2 × 2 × 6 = 24" in " ".join(table.out.split())
    assert "a fixed state" in table.out
    assert "fixed size" in table.out
    assert "MHA" in table.out  # the cache with other heads
    words = compare.row
    assert words["positions"] == ["RoPE (θ 10000)"]
    assert words["attention"] == ["4 heads (gated window)", "leaky average"]
    assert words["head_dim"] == [H]
    assert words["window"] == [WINDOW]
    assert training.row["approximate"]
    doubts = " ".join(training.row["approximate_because"])
    assert "gated window" in doubts
    assert "recurrent" in doubts
    assert absorbed.row["absorbed_mla"] is False


REFUSED = [
    ("layers.window.mixer.head_dim=33", ("head_dim", "33 is odd", "rotary_dim")),
    ("positions.kind=alibi", ("positions", "`alibi`", "gated window", "choose `rope`")),
    ("positions.kind=relative_bias", ("positions", "`relative_bias`", "gated window", "choose `rope`")),
    (
        'layers.window.mixer.positions={kind = "learned", num_positions = 9}',
        ("layers.window.mixer.positions", "`learned`", "set the positions of the model"),
    ),
    ("positions.rotary_dim=8", ("positions.rotary_dim", "8 is more than", "head_dim 6")),
    ("layers.window.mixer.windows=3", ("layers.window.mixer.windows",)),
]


def test_what_a_kind_does_not_support_is_refused(folder: Path) -> None:
    refusals = answers(folder, [["params", SPEC, "--set", change] for change, _ in REFUSED])
    for (change, words), refusal in zip(REFUSED, refusals, strict=True):
        assert refusal.code == 2, change
        for word in words:
            assert word in refusal.err, change


def test_positions_that_no_layer_uses_are_refused(folder: Path, tmp_path: Path) -> None:
    text = Path(SPEC).read_text(encoding="utf-8").replace("2*window average", "average")
    text = text[: text.index("[layers.window")] + text[text.index("[layers.average") :]
    with_rope, without = tmp_path / "rope.toml", tmp_path / "none.toml"
    with_rope.write_text(text, encoding="utf-8")
    without.write_text(text.replace('"rope"', '"none"'), encoding="utf-8")
    refused, accepted = answers(folder, [["params", str(with_rope)], ["params", str(without)]])
    assert refused.code == 2
    assert "positions: `rope` needs attention, but all mixers are recurrent (such as leaky average)" in refused.err
    assert accepted.code == 0, accepted.err


def test_an_unregistered_kind_is_unknown() -> None:
    (answer,) = answers(PACKAGE.parent, [["params", SPEC]])
    assert answer.code == 2
    assert "gated_window" in answer.err


# What a kind has to say


def abstract_members(kind: type) -> set[str]:
    """The members that a class leaves open."""
    return {name for name in dir(kind) if getattr(getattr(kind, name, None), "__isabstractmethod__", False)}


UNIONS = {"mixer": mixer.SingleMixer, "feed-forward": ffn.FFN, "positions": position.Positions}


@pytest.mark.parametrize("kind", [kind for union in UNIONS.values() for kind in get_args(union)])
def test_each_kind_is_final_and_complete(kind: type[Kind]) -> None:
    assert getattr(kind, "__final__", False), f"{kind.__name__} lacks @final, with which mypy names what it forgets"
    assert not abstract_members(kind)


def without(source: str, member: str, name: str) -> str:
    """The source of a module's class, renamed and without one member."""
    tree = ast.parse(source)
    (kind,) = (node for node in tree.body if isinstance(node, ast.ClassDef))

    def defines(node: ast.stmt) -> bool:
        match node:
            case ast.FunctionDef(name=defined) | ast.AnnAssign(target=ast.Name(id=defined)):
                return defined == member
            case ast.Assign(targets=[ast.Name(id=defined)]):
                return defined == member
        return False

    left = [node for node in kind.body if not defines(node)]
    assert len(left) == len(kind.body) - 1, f"{kind.name} defines {member} once"
    kind.body, kind.name = left, name
    return ast.unparse(kind)


def imports_of(source: str) -> str:
    """The imports of a module."""
    return ast.unparse(ast.Module([n for n in ast.parse(source).body if isinstance(n, ast.ImportFrom)], []))


PLANTED = [("gated_window", AttentionKind), ("leaky_average", RecurrentKind)]


def planted(file: str, base: type) -> Iterable[tuple[str, str, str]]:
    """For each demanded member: the member, a class without it, and its source."""
    source = (KINDS / f"{file}.py").read_text(encoding="utf-8")
    for member in sorted(abstract_members(base)):
        name = f"Without_{file}_{member}"
        yield member, name, without(source, member, name)


def test_mypy_names_each_omission(tmp_path: Path) -> None:
    """One run of mypy over classes that each lack one demanded member, and over a package that registers two kinds
    without ops and modules."""
    package = copy_package(tmp_path)
    sources = [(KINDS / f"{file}.py").read_text(encoding="utf-8") for file, _ in PLANTED]
    cases = [case for file, base in PLANTED for case in planted(file, base)]
    assert len(cases) > 12
    file = tmp_path / "planted.py"
    file.write_text("\n\n".join([*map(imports_of, sources), *(f"{source}" for *_, source in cases)]), encoding="utf-8")
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\n[mypy-torch.*,triton.*]\nfollow_imports = skip\n", encoding="utf-8")
    dispatches = [package / path for path in ("sizing/lower/mixers.py", "sizing/lower/recurrent.py", "model/mixers.py")]
    options = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(file), *map(str, dispatches)],
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    for member, name, _ in cases:
        assert any(f"planted.{name} has abstract" in line and f'"{member}"' in line for line in lines), done.stdout
    for path in dispatches:
        where = str(path.relative_to(tmp_path))
        unmatched = [line for line in lines if line.startswith(where) and '"assert_never"' in line]
        assert unmatched, f"{where}\n{done.stdout}"
