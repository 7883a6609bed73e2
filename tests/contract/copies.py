"""Copies of the package with new kinds, which are written as a newcomer would write them. Commands run with such a
copy."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
KINDS = HERE / "kinds"
PACKAGE = HERE.parents[1] / "llmbench"


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


def run_python(folder: Path, program: str, text: str = "") -> str:
    """Run a Python program with the package in `folder`, and return what it printed. text: its standard input."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=text,
        env={**os.environ, "PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(folder: Path, commands: Sequence[Sequence[str]]) -> list[Answer]:
    """The answers of several commands, run in one process with the package in `folder`."""
    return [Answer(*answer) for answer in json.loads(run_python(folder, RUN, json.dumps(commands)))]


def read(kind: str) -> str:
    """The source of a kind in tests/contract/kinds."""
    return (KINDS / f"{kind}.py").read_text(encoding="utf-8")


def imports_of(source: str) -> str:
    """The imports of a module."""
    return ast.unparse(ast.Module([n for n in ast.parse(source).body if isinstance(n, ast.ImportFrom)], []))


def class_of(source: str) -> str:
    """The only class of a module, with its decorators."""
    return ast.unparse(ast.Module([n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)], []))


def insert(file: Path, mark: str, text: str) -> None:
    """Put `text` in front of the only `mark` in a file."""
    source = file.read_text(encoding="utf-8")
    assert source.count(mark) == 1, (file, mark)
    file.write_text(source.replace(mark, text + mark), encoding="utf-8")


def add_case(file: Path, function: str, case: str) -> None:
    """Put a case in front of `case _:` in the only `match` of a function."""
    source = file.read_text(encoding="utf-8")
    (start,) = (index for index in range(len(source)) if source.startswith(f"def {function}(", index))
    end = source.index("case _:", start)
    indent = " " * (end - source.rindex("\n", 0, end) - 1)
    lines = "".join(f"{indent}{line}\n" for line in case.splitlines())
    file.write_text(source[: end - len(indent)] + lines + source[end - len(indent) :], encoding="utf-8")


def copy_package(folder: Path) -> Path:
    """A copy of the package in `folder`, in which the unions have all kinds of tests/contract/kinds, and no other file
    knows of them."""
    package = folder / "llmbench"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    spec = package / "spec"
    for name in ("gated_window", "leaky_average"):
        shutil.copy(KINDS / f"{name}.py", spec / "mixer")
    union = spec / "mixer" / "__init__.py"
    imports = "from llmbench.spec.mixer.gated_window import GatedWindow\n"
    imports += "from llmbench.spec.mixer.leaky_average import LeakyAverage\n"
    insert(union, "from llmbench.spec.mixer.kind import", imports)
    insert(union, "Mamba | Mamba2 |", "LeakyAverage | ")
    insert(union, "Attention | LatentAttention |", "GatedWindow | ")
    insert(spec / "ffn.py", "FFN = Dense |", f"{class_of(read('squeezed'))}\n\n")
    insert(spec / "ffn.py", "Dense | Gated | MoE\n", "Squeezed | ")
    for name in ("span_bias", "tone"):
        insert(spec / "position.py", "Positions = ", f"{class_of(read(name))}\n\n")
    insert(spec / "position.py", "Rope | LearnedPositions | ", "SpanBias | Tone | ")
    insert(spec / "model.py", '"rmsnorm", "layernorm"] = ', '"maxnorm", ')
    insert(package / "sizing" / "dtypes.py", '"fp32", "bf16", "fp16", "fp8"', '"fp6", ')
    insert(package / "model" / "storage.py", '"int8", "fp8"]', '"int6", ')
    return package


def type_check(folder: Path, files: Iterable[Path]) -> list[str]:
    """The messages of mypy about some files. mypy reads the spec types, and no other file, beside them."""
    config = folder / "mypy.ini"
    config.write_text(
        "[mypy]\nfollow_imports = skip\n[mypy-llmbench.spec.*,llmbench.sizing.op,llmbench.sizing.workload]\n"
        "follow_imports = normal\n",
        encoding="utf-8",
    )
    options = ["--config-file", str(config), "--cache-dir", str(folder / "cache"), "--no-error-summary"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, files)],
        env={**os.environ, "MYPYPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


class Place(NamedTuple):
    """A function that distinguishes all kinds of a union, and the cases that an author adds to it.

    file: path inside of the package.
    """

    file: str
    function: str
    cases: str


BOTH = "case SpanBias() | Tone():\n    "
PLACES = {
    "mixer": [
        Place(
            "sizing/lower/mixers.py",
            "lower_mixer",
            "case GatedWindow():\n    from llmbench.sizing.lower.gated_window import gated_window\n\n"
            "    gated_window(b, mixer)",
        ),
        Place("sizing/lower/recurrent.py", "recurrent", "case LeakyAverage():\n    _leaky_average(b, mixer)"),
        Place(
            "model/mixers.py",
            "build_mixer",
            "case GatedWindow() | LeakyAverage():\n"
            '    raise UnsupportedError(f"{spec.name}: {where} of kind {mixer.kind} is not implemented yet")',
        ),
    ],
    "feed-forward": [
        Place(
            "sizing/lower/ffn.py",
            "feed_forward",
            "case Squeezed():\n"
            '    rank, width = Dim(ffn.rank, "rank"), Dim(ffn.intermediate_size, "intermediate_size")\n'
            '    b.linear("ffn.squeeze_proj", "mlp", b.hidden, rank)\n'
            '    b.linear("ffn.up_proj", "mlp", rank, width)\n'
            '    b.linear("ffn.down_proj", "mlp", width, b.hidden)',
        ),
        Place(
            "model/ffn.py",
            "feed_forward",
            'case Squeezed():\n    raise UnsupportedError("a squeezed feed-forward is not implemented yet")',
        ),
    ],
    "positions": [
        Place("spec/check.py", "_position_faults", f"{BOTH}pass"),
        Place("spec/check.py", "_shared_table", f"{BOTH}return None"),
        Place("spec/mixer/latent.py", "score_scale", f"{BOTH}return scale"),
        Place(
            "sizing/lower/__init__.py",
            "_added_positions",
            'case Tone():\n    b.vector("tone", "position_embedding", width)\ncase SpanBias():\n    pass',
        ),
        Place(
            "sizing/lower/attention.py",
            "apply_positions",
            'case SpanBias():\n    b.vector(f"{name}.span_bias", "attention_extra", heads)\ncase Tone():\n    pass',
        ),
        Place(
            "model/attention_steps.py",
            "position_scores",
            'case SpanBias():\n    raise UnsupportedError("a span bias is not implemented yet")\n'
            "case Tone():\n    return unchanged",
        ),
        Place("model/attention_steps.py", "relative_bias_table", f"{BOTH}return None"),
        Place("sizing/launches/eager.py", "_positions", f"{BOTH}return None"),
        Place("sizing/launches/eager.py", "before_scores", f"{BOTH}return None"),
        Place("sizing/launches/vllm.py", "_inside_attention", f"{BOTH}return False"),
        Place(
            "model/embeddings.py",
            "_position_table",
            'case Tone():\n    raise UnsupportedError(f"{positions.kind} positions are not implemented yet")\n'
            "case SpanBias():\n    return None",
        ),
        Place("model/embeddings.py", "_position_vectors", f"{BOTH}return None"),
        Place("model/positions.py", "rotation_of", f"{BOTH}return None"),
        Place(
            "bench/pieces/attention.py",
            "_alibi_factor",
            'case SpanBias():\n    raise _needs_layer(f"{spec.name}: a span bias needs")\n'
            "case Tone():\n    return None",
        ),
    ],
    "norm": [
        Place("spec/model.py", "label", 'case "maxnorm":\n    return "MaxNorm"'),
        Place("spec/model.py", "statistics", 'case "maxnorm":\n    return 1'),
        Place("spec/model.py", "stepwise", 'case "maxnorm":\n    return False'),
        Place("spec/model.py", "usual_bias", 'case "maxnorm":\n    return False'),
        Place(
            "model/implementations/plain.py",
            "_normed",
            'case "maxnorm":\n    raise UnsupportedError("MaxNorm is not implemented yet")',
        ),
        Place(
            "model/implementations/kernels.py",
            "norm",
            'case "maxnorm":\n    raise UnsupportedError("MaxNorm is not implemented yet")',
        ),
    ],
    "format": [
        Place("sizing/dtypes.py", "bits_of", 'case "fp6":\n    return 6'),
        Place(
            "model/storage.py",
            "format_of",
            'case "int6":\n    return QuantisedFormat(torch.int8, torch.int8, 31.0)',
        ),
    ],
}
"""Every function that distinguishes all kinds of a union, by union. `test_omissions.py` looks for such functions, and
requires that mypy names each of them if a kind of tests/contract/kinds has no case there."""

IMPORTS = {
    "mixer": "from llmbench.spec.mixer.gated_window import GatedWindow\n"
    "from llmbench.spec.mixer.leaky_average import LeakyAverage\n",
    "feed-forward": "from llmbench.spec.ffn import Squeezed\n",
    "positions": "from llmbench.spec.position import SpanBias, Tone\n",
    "norm": "",
    "format": "",
}


def register(package: Path) -> None:
    """Write in a copy of the package what the authors of the new kinds write outside of their types."""
    for union, places in PLACES.items():
        for place in places:
            add_case(package / place.file, place.function, place.cases)
        for file in {place.file for place in places}:
            path = package / file
            source = path.read_text(encoding="utf-8")
            errors = "from llmbench.errors import UnsupportedError\n"
            added = IMPORTS[union] + (errors if "UnsupportedError" in source and errors not in source else "")
            path.write_text(source.replace("annotations\n", f"annotations\n\n{added}", 1), encoding="utf-8")
    lower = package / "sizing" / "lower"
    shutil.copy(KINDS / "gated_window_ops.py", lower / "gated_window.py")
    ops = (KINDS / "leaky_average_ops.txt").read_text(encoding="utf-8")
    recurrent = lower / "recurrent.py"
    recurrent.write_text(recurrent.read_text(encoding="utf-8") + ops, encoding="utf-8")
    attention = package / "spec" / "mixer" / "attention.py"
    insert(attention, "Alibi, RelativeBias)\n", "SpanBias, ")
    insert(attention, "from llmbench.spec.position import", IMPORTS["positions"])
    insert(package / "cli" / "options.py", '"bf16", "fp16", "fp32", "fp8", "int8", "int4", KVFormatName]', '"fp6", ')
    insert(
        package / "model" / "cache.py",
        'CacheKind("fp8", storage="fp8"),',
        'CacheKind("int6", storage="int6"),\n        ',
    )
