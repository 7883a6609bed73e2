"""Completion: the words that can follow at the cursor, the scripts of the shells, and what an answer imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from typer.main import get_command

from llmbench.bench.experiments import EXPERIMENTS
from llmbench.bench.extra_candidates import CANDIDATES
from llmbench.bench.pieces import PIECES
from llmbench.cli import COMMANDS, run
from llmbench.cli.application import build
from llmbench.cli.completion import SCRIPTS, candidates, complete
from llmbench.kernels.registry import KERNELS
from llmbench.model.implementations import IMPLEMENTATIONS
from llmbench.sizing.dtypes import KVDType
from llmbench.spec.catalog import bundled_devices, bundled_models
from llmbench.spec.engine import engine_names
from llmbench.spec.weights.formats import format_names
from llmbench.textbook import TOPICS as TEXTBOOK_TOPICS


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("", COMMANDS),
        ("params ", bundled_models()),
        ("params gpt2 --explain ", bundled_models()),
        ("kvcache gpt2 bert-base ", bundled_models()),
        ("memory gpt2 ", ()),
        ("specs show ", (*bundled_models(), *bundled_devices())),
        ("profile ", PIECES),
        ("profile mla --model ", bundled_models()),
        ("profile mla --impl ", CANDIDATES),
        ("model gpt2 --impl ", IMPLEMENTATIONS),
        ("memory gpt2 --device ", bundled_devices()),
        ("mfu gpt2 --device ", bundled_devices()),
        ("fit gpt2 --device ", bundled_devices()),
        ("fit gpt2 --engine ", engine_names()),
        ("fit gpt2 --weights ", format_names()),
        ("fit gpt2 --kv-dtype ", get_args(KVDType)),
        ("memory gpt2 --base ", format_names()),
        ("model --impl flash ", bundled_models()),
        ("bench ", EXPERIMENTS),
        ("bench heads --device ", ("auto", "cpu", "cuda")),
        ("kernels ", ("bench", "list", "check", "inspect")),
        ("kernels check norm ", KERNELS),
        ("textbook ", TEXTBOOK_TOPICS),
        ("params --format ", ("table", "json", "csv", "markdown")),
        ("params --format = ", ("table", "json", "csv", "markdown")),  # as bash splits --format=
        ("params --format=", [f"--format={name}" for name in ("table", "json", "csv", "markdown")]),
        ("params --output ", ()),
        ("params --set ", ()),
        ("env ", ()),
    ],
)
def test_names_that_can_follow(words: str, names: tuple[str, ...]) -> None:
    assert sorted(candidates(words.split(" "))) == sorted(names)


def test_words_begin_with_what_was_typed() -> None:
    assert [*candidates(["ker"])] == ["kernels"]
    assert [*candidates(["params", "gpt-j"])] == ["gpt-j-6b"]
    assert [*candidates(["profile", "mla", "--impl", "fu"])] == ["fused"]
    assert [*candidates(["nothing", "like", "this"])] == []


@pytest.mark.parametrize("command", [*COMMANDS, "specs list", "specs show", "kernels check", "kernels bench"])
def test_every_option_is_completed(command: str) -> None:
    described = get_command(build([command.split()[0]]))
    for word in command.split():
        described = described.commands[word]
    options = {name for option in described.params for name in option.opts if name.startswith("--")}
    assert {*candidates([*command.split(), "--"])} == options | {"--help"}


def test_the_lines_of_each_shell() -> None:
    assert complete(["par"], "bash") == ["params"]
    assert complete(["par"], "zsh") == ["params:Count the parameters of a model exactly"]
    assert complete(["par"], "fish") == ["params\tCount the parameters of a model exactly"]
    assert complete(["params", "gpt-j"], "zsh") == ["gpt-j-6b"]


@pytest.mark.parametrize("shell", SCRIPTS)
def test_a_script_is_shown(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--show-completion", shell]) == 0
    assert capsys.readouterr().out == SCRIPTS[shell] + "\n"


ASK = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _llmbench llmbench"
    "; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    "zsh": "words=({words}); CURRENT=$#words; _llmbench",
    "fish": 'complete -C "{words}"',
}
"""Code that asks the script of a shell for words, and prints them. {words} stands for the words up to the cursor."""


@pytest.mark.parametrize("shell", SCRIPTS)
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("llmbench params gpt-j", {"gpt-j-6b"}),
        ("llmbench specs ''", {"list", "show", "import", "check"}),
        ("llmbench fit gpt2 --device h20", {"h20", "h200"}),
    ],
)
def test_a_shell_asks_and_gets_an_answer(shell: str, words: str, names: set[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    program = tmp_path / "llmbench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmbench "$@"\n')
    program.chmod(0o755)
    # Outside of a completion, zsh has neither the function that shows words nor the one that registers a script.
    stubs = "compdef() {}; _describe() { print -l -- $names }\n" if shell == "zsh" else ""
    words = words.replace("''", "") if shell == "fish" else words
    text = f"{stubs}{SCRIPTS[shell]}\n{ASK[shell].format(words=words)}"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", text], capture_output=True, text=True, env=environment, check=True)
    assert {line.partition("\t")[0].partition(":")[0] for line in done.stdout.splitlines()} == names


def test_an_answer_imports_no_typer() -> None:
    """An answer takes a third of the time of a minimal typer app: `benchmarks/startup.sh` shows it."""
    code = "import sys; from llmbench.cli import main; main(['params', 'gpt-j']); print(*sys.modules)"
    environment = {**os.environ, "_LLMBENCH_COMPLETE": "bash"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    answer, modules = done.stdout.splitlines()
    assert answer == "gpt-j-6b"
    assert not {"typer", "rich", "msgspec", "torch", "llmbench.spec"} & set(modules.split())
