"""Completion: the words that can follow at the cursor, the scripts of the shells, and what an answer imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
from llmbench.spec.catalog import bundled_devices, bundled_models


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
        ("model --impl flash ", bundled_models()),
        ("bench ", EXPERIMENTS),
        ("bench heads --device ", ("auto", "cpu", "cuda")),
        ("kernels ", ("bench", "list", "check", "inspect")),
        ("kernels check norm ", KERNELS),
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


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "names"), [(["params", "gpt-j"], ["gpt-j-6b"]), (["specs", ""], ["list", "show", "import", "check"])]
)
def test_bash_asks_and_gets_an_answer(words: list[str], names: list[str], tmp_path: Path) -> None:
    program = tmp_path / "llmbench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m llmbench "$@"\n')
    program.chmod(0o755)
    typed = " ".join(f"'{word}'" for word in ("llmbench", *words))
    text = f"""{SCRIPTS["bash"]}
        COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _llmbench llmbench; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines() == names


def test_an_answer_imports_no_typer() -> None:
    """An answer takes a third of the time of a minimal typer app: `benchmarks/startup.sh` shows it."""
    code = "import sys; from llmbench.cli import main; main(['params', 'gpt-j']); print(*sys.modules)"
    environment = {**os.environ, "_LLMBENCH_COMPLETE": "bash"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    answer, modules = done.stdout.splitlines()
    assert answer == "gpt-j-6b"
    assert not {"typer", "rich", "msgspec", "torch", "llmbench.spec"} & set(modules.split())
