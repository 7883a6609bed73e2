"""What a command imports, and what may import what: sizing needs no torch, and imports go down the house."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

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
import contextlib, io, json, sys

sys.modules.update(dict.fromkeys({HEAVY!r}))  # an import of them fails, and find_spec returns None
from llmbench.cli import run
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run(arguments)
    modules = {{name.partition(".")[0] for name, module in sys.modules.items() if module is not None}}
    print(json.dumps([arguments, code, len(out.getvalue()), sorted(modules)]), flush=True)
"""
"""A process in which the heavy packages cannot be imported. After each command, it prints what it has imported."""

COMMANDS = [
    ["params", "llama2-7b"],
    ["params", "qwen3-next-80b-a3b", "--by", "op", "--explain"],
    ["flops", "deepseek-v3", "--phase", "train"],
    ["kvcache", "gemma3-27b"],
    ["kvcache"],
    ["memory", "llama3-70b", "--layout", "tp=8,sp,pp=4,dp=2,zero=1"],
    ["memory", "jamba-v0.1", "--phase", "inference"],
    ["fit", "llama3-8b", "--device", "h100", "--explain"],
    ["fit", "gemma3-27b"],
    ["compare", "gpt2", "t5-base", "mamba2-2.7b"],
    ["specs", "list"],
    ["specs", "list", "--devices"],
    ["specs", "check", "specs/models/gpt2.toml"],
    ["env"],
    ["kernels", "list"],
    ["textbook"],
    ["worked"],
    ["choose", "--goal", "serve", "--context", "32k"],
    ["exercise", "list"],
    ["exercise", "show", "training-days", "--seed", "3", "--solution"],
    ["exercise", "check", "parameters", "--answer", "1557611200"],
    ["diff", "tests/measure/data/results-1.jsonl", "tests/measure/data/results-1.jsonl"],
    ["validate", "memory", "benchmarks/published/training_runs.csv"],
    ["params", "CONFIG"],
]
WITHOUT_FORMAT = [["specs", "show", "llama2-7b"], ["specs", "import", "CONFIG"]]


REFUSED = [
    *(["train", *words] for words in ([], ["gpt5"], ["bert-base"], ["--resume", "missing"])),
    *(["train", "nanogpt-cpu", *words] for words in (
        ["--lr", "fast"], ["--lr", "-1"], ["--seq", "65"], ["--stop-at", "3000"], ["-o", "tests"],
        ["--setting", "momentum=1"], ["--setting", "dropout=2"], ["--data", "missing"], ["--data", "markov:x"],
    )),
    *(["ablate", *words] for words in (
        ["mamba-130m"], ["--from", "gpt3"], ["--only", "dropout"], ["--set", "num_attention_heads=1"],
        ["--data", "markov:x"], ["--data", "LICENSE", "--seq", "2000"], ["-o", "missing/file"],
    )),
    *(["dynamics", *words] for words in (
        ["--arms", "middle"], ["mamba-130m", "--arms", "qk-norm"], ["--seq", "65"], ["bert-base"],
        ["--plot", "missing/file.png"], ["--plot", "a.doc"],
    )),
    *(["extrapolate", *words] for words in (
        ["--methods", "xpos"], ["mamba-130m"], ["bert-base"], ["--lengths", "16"], ["--seq", "16"],
        ["--data", "missing"],
    )),
    *([name, "missing"] for name in ("evaluate", "generate")),
    ["evaluate", "FOLDER"], ["evaluate", "FOLDER", "--text", "missing"], ["generate", "FOLDER"],
    ["generate", "FOLDER", "--top-p", "2"],
]  # fmt: skip
"""Commands with a wrong option, name or file. `FOLDER` has a config.json, and no tokenizer."""


def test_refusals_do_not_wait_for_torch(tmp_path: Path) -> None:
    """Without torch, a command that reaches its import has the exit code 3."""
    (tmp_path / "config.json").write_text("{}")
    commands = [[str(tmp_path) if word == "FOLDER" else word for word in words] for words in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(commands)
    assert [words for words, code, _, _ in answers if code != 2] == []


def test_sizing_needs_nothing_heavy(tmp_path: Path) -> None:
    """The commands share a process. The first command that imports a heavy package, or the library of tables, is
    named."""
    config = tmp_path / "config.json"
    config.write_text(
        '{"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, '
        '"num_attention_heads": 4, "intermediate_size": 96}'
    )
    formats = [[*arguments, "--format", format] for arguments in COMMANDS for format in ("table", "json")]
    commands = [
        [str(config) if argument == "CONFIG" else argument for argument in arguments]
        for arguments in (*WITHOUT_FORMAT, *formats)
    ]
    process = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(process, input=json.dumps(commands), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [arguments for arguments, *_ in answers] == commands
    for arguments, code, length, modules in answers:
        assert code == 0, (arguments, done.stderr)
        assert length > 0, arguments
        assert not set(modules) & {*HEAVY, "rich"}, arguments


def test_the_block_works() -> None:
    """The check above can fail: an import of torch is noticed."""
    code = WITHOUT.replace("from llmbench.cli import run", "import torch")
    done = subprocess.run([sys.executable, "-c", code], input="[]", capture_output=True, text=True, check=False)
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
    "textbook": {"errors", "spec", "sizing", "report", "learn"},
    "bench": {"textbook", "errors", "_version", "spec", "sizing", "model", "kernels", "measure", "report"},
    "report": {"errors", "printable", "_version", "spec"},
    "validation": {"errors", "spec", "sizing"},
    "learn": {"errors", "_version", "spec", "sizing", "model", "measure", "kernels"},
    "answers": {"errors", "spec", "sizing", "report", "validation"},
    "api": {"errors", "answers", "report", "sizing", "spec", "model"},
    "__init__": {"_version", "api"},
    "cli": {
        *("errors", "printable", "_version", "spec", "sizing", "report"),
        *("validation", "answers", "model", "kernels", "measure", "bench", "learn", "textbook"),
    },
}
"""Each part of the package and what it may import beside itself: the parts below it."""

THIRD_PARTY = {
    "spec": {"msgspec", "huggingface_hub"},
    "sizing": {"msgspec"},
    "validation": {"msgspec"},
    "report": {"msgspec", "matplotlib"},
    "answers": {"msgspec"},
    "textbook": {"msgspec"},
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


def test_variants_of_a_sweep_are_as_by_hand() -> None:
    """`benchmarks/sweep.py` sizes 10,000 variants and prints the seconds. Here one of 37 is computed by hand too. 37
    has no factor in common with the number of values of a field, so each value of each field is among them."""
    where = importlib.util.spec_from_file_location("sweep", ROOT / "benchmarks" / "sweep.py")
    assert where is not None
    assert where.loader is not None
    sweep = importlib.util.module_from_spec(where)
    where.loader.exec_module(sweep)

    from llmbench.sizing.params import count_parameters
    from llmbench.spec.catalog import load_bundled
    from llmbench.spec.override import override

    spec = load_bundled("llama2-7b")
    variants = list(zip(range(sweep.VARIANTS), sweep.variants(), strict=False))
    assert len(variants) == sweep.VARIANTS == 10_000
    tried = [changes for _, changes in variants[::37]]
    for field in tried[0]:
        assert {changes[field] for changes in tried} == {changes[field] for _, changes in variants}
    for changes in tried:
        hidden, kv = changes["hidden_size"], changes["num_key_value_heads"]
        attention = 2 * hidden * 4096 + 2 * hidden * kv * 128
        layer = attention + 3 * hidden * changes["intermediate_size"] + 2 * hidden
        outside = 2 * changes["vocab_size"] * hidden + hidden
        total = count_parameters(override(spec, changes)).total
        assert total == changes["num_hidden_layers"] * layer + outside, changes
