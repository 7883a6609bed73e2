"""What a command imports, and what may import what: sizing needs no torch, and imports go down the house."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llmbench"

HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "pydantic",
    "matplotlib",
    "pandas",
    "scipy",
    "triton",
    "huggingface_hub",
)

WITHOUT = f"""
import json, sys

sys.modules.update(dict.fromkeys({HEAVY!r}))  # an import of them fails, and find_spec returns None
from llmbench.cli import run
code = run(sys.argv[1:])
modules = {{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}}
sys.stderr.write(json.dumps(sorted(modules)))
sys.exit(code)
"""
"""A process in which the heavy packages cannot be imported; it ends with what it has imported instead."""

COMMANDS = [
    ["params", "llama2-7b"],
    ["params", "qwen3-next-80b-a3b", "--by", "op", "--explain"],
    ["flops", "deepseek-v3", "--phase", "train"],
    ["kvcache", "gemma3-27b"],
    ["kvcache"],
    ["memory", "llama3-70b", "--layout", "tp=8,sp,pp=4,dp=2,zero=1"],
    ["memory", "jamba-v0.1", "--phase", "inference"],
    ["compare", "gpt2", "t5-base", "mamba2-2.7b"],
    ["specs", "list"],
    ["specs", "list", "--devices"],
    ["specs", "check", "specs/models/gpt2.toml"],
    ["env"],
    ["kernels", "list"],
    ["diff", "tests/measure/data/results-1.jsonl", "tests/measure/data/results-1.jsonl"],
    ["validate", "memory", "benchmarks/published/training_runs.csv"],
    ["params", "CONFIG"],
]


def imported(arguments: list[str], tmp_path: Path) -> set[str]:
    """The top-level modules a command has imported when it is done."""
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, '
        '"num_attention_heads": 4, "intermediate_size": 96}'
    )
    arguments = [str(config) if argument == "CONFIG" else argument for argument in arguments]
    command = [sys.executable, "-c", WITHOUT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize("format", ["table", "json"])
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_sizing_needs_nothing_heavy(arguments: list[str], format: str, tmp_path: Path) -> None:
    modules = imported([*arguments, "--format", format], tmp_path)
    assert not modules & {*HEAVY, "rich"}


def test_a_spec_is_shown_without_a_table_library(tmp_path: Path) -> None:
    assert "rich" not in imported(["specs", "show", "llama2-7b"], tmp_path)
    assert "rich" not in imported(["specs", "import", "CONFIG"], tmp_path)


def test_the_block_works() -> None:
    """The check above can fail: an import of torch is noticed."""
    code = WITHOUT.replace("from llmbench.cli import run", "import torch")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "import of torch halted" in done.stderr


# The house

FLOORS = {
    "printable": set(),
    "errors": {"printable"},
    "_version": set(),
    "__main__": {"cli"},
    "spec": {"errors", "printable"},
    "sizing": {"errors", "spec"},
    "kernels": {"errors"},
    "model": {"errors", "spec", "sizing", "kernels"},
    "measure": {"errors", "printable", "_version", "spec", "sizing", "model", "kernels"},
    "bench": {"errors", "_version", "spec", "sizing", "model", "kernels", "measure", "report"},
    "report": {"errors", "printable", "_version", "spec"},
    "validation": {"errors", "spec", "sizing"},
    "answers": {"errors", "spec", "sizing", "report", "validation"},
    "api": {"errors", "answers", "report", "sizing", "spec", "model"},
    "__init__": {"_version", "api"},
    "cli": {
        *("errors", "printable", "_version", "spec", "sizing", "report"),
        *("validation", "answers", "model", "kernels", "measure", "bench"),
    },
}
"""Each part of the package and what it may import beside itself: the parts below it."""

THIRD_PARTY = {
    "spec": {"msgspec", "huggingface_hub"},
    "sizing": {"msgspec"},
    "validation": {"msgspec"},
    "report": {"msgspec", "matplotlib"},
    "answers": {"msgspec"},
    "api": set(),
    "cli": {"typer", "rich", "msgspec", "pynvml"},
    "errors": set(),
    "printable": set(),
    "_version": set(),
    "__init__": set(),
}
"""What else the parts that work without torch may import; the others are free."""

FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if not {"kernels", "specs"} & set(path.relative_to(PACKAGE).parts)
) + sorted((ROOT / "kernels").rglob("*.py"))


def part_of(path: Path) -> str:
    """The floor a file stands on."""
    if path.is_relative_to(ROOT / "kernels"):
        return "kernels"
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports_of(tree: ast.AST) -> list[str]:
    """Every module that a file imports, wherever in it."""
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return modules


TREES = {str(path.relative_to(ROOT)): (part_of(path), ast.parse(path.read_text(encoding="utf-8"))) for path in FILES}
"""Each file's part of the package and its syntax tree."""


def test_imports_go_down_the_house() -> None:
    faults = []
    for file, (part, tree) in TREES.items():
        assert part in FLOORS, f"say in FLOORS what `{part}` may import"
        for name in imports_of(tree):
            top, *rest = name.split(".")
            if top == "llmbench":
                target = "_version" if rest[:1] == ["__version__"] else rest[0]
                if target != part and target not in FLOORS[part]:
                    faults.append(f"{file} imports {name}")
            elif part in THIRD_PARTY and top not in sys.stdlib_module_names and top not in THIRD_PARTY[part]:
                faults.append(f"{file} imports {name}")
    assert not faults


def test_only_the_command_line_prints_or_exits() -> None:
    faults = []
    for file, (part, tree) in TREES.items():
        for node in ast.walk(tree) if part != "cli" else ():
            calls = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if calls and node.func.id in ("print", "exit", "quit", "input"):
                faults.append(f"{file}:{node.lineno} calls {node.func.id}")
            of_sys = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys"
            if of_sys and node.attr in ("exit", "stdout", "stderr", "stdin", "argv"):
                faults.append(f"{file}:{node.lineno} uses sys.{node.attr}")
    assert not faults


def test_errors_are_ours() -> None:
    """A bare `except:` or `raise Exception` hides the cause of an error."""
    faults = []
    for file, (_, tree) in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                faults.append(f"{file}:{node.lineno} has a bare except")
            raised = node.exc.func if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else None
            if isinstance(raised, ast.Name) and raised.id in ("Exception", "BaseException"):
                faults.append(f"{file}:{node.lineno} raises {raised.id}")
    assert not faults


# Speed, without a clock


def test_ten_thousand_variants_are_sized() -> None:
    """`benchmarks/sweep.py` prints the seconds; here every variant is sized and some are checked by hand."""
    where = importlib.util.spec_from_file_location("sweep", ROOT / "benchmarks" / "sweep.py")
    assert where is not None
    assert where.loader is not None
    sweep = importlib.util.module_from_spec(where)
    where.loader.exec_module(sweep)

    from llmbench.sizing.params import count_parameters
    from llmbench.spec.catalog import load_bundled
    from llmbench.spec.override import override

    spec = load_bundled("llama2-7b")
    checked = 0
    for number, changes in zip(range(sweep.VARIANTS), sweep.variants(), strict=False):
        total = count_parameters(override(spec, changes)).total
        checked += 1
        if number % 100 == 0:
            hidden, kv = changes["hidden_size"], changes["num_key_value_heads"]
            attention = 2 * hidden * 4096 + 2 * hidden * kv * 128
            layer = attention + 3 * hidden * changes["intermediate_size"] + 2 * hidden
            outside = 2 * changes["vocab_size"] * hidden + hidden
            assert total == changes["num_hidden_layers"] * layer + outside
    assert checked == sweep.VARIANTS == 10_000
