"""`compare … --vs …`: a model and its variant."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.cli import run
from llmbench.cli.versus import Side, marked, sides

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: str) -> str:
    assert run(["compare", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def document(capsys: Capture, *arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(answer(capsys, *arguments, "--format", "json"))
    return content


def refusal(capsys: Capture, *arguments: str) -> str:
    assert run(["compare", *arguments]) == 2
    return capsys.readouterr().err


def test_both_sides_are_in_the_inputs(capsys: Capture) -> None:
    content = document(
        capsys, "llama2-7b", "--set", "positions=alibi", "--vs", "--set", "num_key_value_heads=8", "--seq", "8k"
    )
    assert content["inputs"] == {
        "models": ["llama2-7b"],
        "seq_len": 8192,
        "weights": None,
        "set": ["positions=alibi"],
        "vs": {"models": ["llama2-7b"], "set": ["num_key_value_heads=8"]},
    }
    first, second = content["models"]
    assert (first["positions"], second["positions"]) == (["ALiBi"], ["RoPE (θ 10000)"])
    assert (first["changes"], second["changes"]) == (["positions=alibi"], ["num_key_value_heads=8"])
    assert second["parameters"] == first["parameters"] - 32 * 2 * 24 * 128 * 4096
    assert first["kv_bytes_per_token"] == 4 * second["kv_bytes_per_token"] == 524_288
    assert first["weights_bytes"] == 2 * first["parameters"]


def test_without_vs_a_change_applies_to_all_models(capsys: Capture) -> None:
    content = document(capsys, "llama2-7b", "mistral-7b", "--set", "num_key_value_heads=4")
    assert content["inputs"]["vs"] is None
    assert [row["kv_bytes_per_token"] for row in content["models"]] == [65_536, 65_536]
    assert [row["changes"] for row in content["models"]] == [["num_key_value_heads=4"]] * 2
    shown = " ".join(answer(capsys, "llama2-7b", "mistral-7b", "--set", "num_key_value_heads=4").split())
    assert "--set changed every model" in shown
    assert "--set changed every model" not in answer(capsys, "llama2-7b", "mistral-7b")


def test_another_model_can_follow(capsys: Capture) -> None:
    content = document(capsys, "llama2-7b", "--vs", "mistral-7b", "--set", "sliding_window=none")
    assert [row["model"] for row in content["models"]] == ["llama2-7b", "mistral-7b-v0.1"]
    assert content["inputs"]["vs"] == {"models": ["mistral-7b"], "set": ["sliding_window=none"]}


def test_memory_is_that_of_the_command_memory(capsys: Capture) -> None:
    (row, _) = document(capsys, "llama3-8b", "--vs", "--set", "norm=layernorm", "--seq", "2048")["models"]
    for phase, key in (("inference", "inference_memory_bytes"), ("train", "training_memory_bytes")):
        assert run(["memory", "llama3-8b", "--phase", phase, "--seq", "2048", "--format", "json"]) == 0
        (sized,) = json.loads(capsys.readouterr().out)["models"]
        assert row[key] == sized["peak_bytes"]


def test_rows_that_differ_are_marked(capsys: Capture) -> None:
    out = answer(capsys, "llama2-7b", "--vs", "--set", "num_key_value_heads=8", "--format", "markdown")
    marks = {
        cells[1].strip(): cells[-2].strip() for cells in (line.split("|") for line in out.splitlines()) if cells[1:]
    }
    assert marks["KV cache per token (KiB)"] == "−75.0%"
    assert marks["parameters (billions)"] == "−12.0%"
    assert marks["attention"] == "differs"
    assert marks["hidden size"] == marks["layers"] == ""
    assert "difference" not in answer(capsys, "llama2-7b", "mistral-7b", "--format", "markdown")


def test_csv_says_which_row_has_which_changes(capsys: Capture) -> None:
    out = answer(capsys, "gpt2", "--vs", "--set", "norm.kind=rmsnorm", "--format", "csv")
    first, second = csv.DictReader(io.StringIO(out))
    assert (first["changes"], second["changes"]) == ("", "norm.kind=rmsnorm")
    assert "norm.kind = rmsnorm: dropped bias" in second["notes"]


def test_models_of_one_name_have_different_headings(capsys: Capture) -> None:
    out = answer(capsys, "llama2-7b", "--vs", "--set", "num_key_value_heads=8", "--format", "markdown")
    heading = next(line for line in out.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in heading.strip("|").split("|")] == [
        "",
        "llama2-7b",
        "llama2-7b · num_key_value_heads=8",
        "difference",
    ]


def test_a_note_on_the_variant_alone_has_its_heading(capsys: Capture) -> None:
    out = answer(capsys, "deepseek-v3", "--vs", "--set", "mixer.kind=attention", "--format", "markdown")
    notes = [line for line in out.splitlines() if "multi-token prediction" in line]
    assert [note.split(": ")[1] for note in notes] == ["deepseek-v3", "deepseek-v3 · mixer.kind=attention"]


def test_models_that_do_not_differ_are_named_first(capsys: Capture) -> None:
    sentence = "gpt2 (1) and gpt2 (2) do not differ in any row."
    assert answer(capsys, "gpt2", "llama2-7b", "gpt2").startswith(sentence)
    out = answer(capsys, "llama2-7b", "--vs", "--set", "num_key_value_heads=32")
    assert out.startswith("llama2-7b and llama2-7b · num_key_value_heads=32 do not differ in any row.")
    assert "do not differ" not in answer(capsys, "gpt2", "gpt2-medium")


@pytest.mark.parametrize(
    ("models", "rows"),
    [
        (("deepseek-v3", "--vs", "deepseek-v3.2"), ["KV cache per token (KiB)", "cache and states per sequence (GiB)"]),
        (("mistral-7b", "--vs", "--set", "sliding_window=none"), ["KV cache per token beyond windows (KiB)"]),
        (("mamba2-2.7b", "--vs", "--set", "state_size=64"), ["cache and states per sequence (GiB)"]),
    ],
)
def test_caches_that_differ_differ_in_the_table(models: tuple[str, ...], rows: list[str], capsys: Capture) -> None:
    """The keys of the indexer, tokens beyond a window, and recurrent states count."""
    out = answer(capsys, *models, "--format", "markdown")
    marks = {
        cells[1].strip(): cells[-2].strip() for cells in (line.split("|") for line in out.splitlines()) if cells[1:]
    }
    for row in rows:
        assert marks[row], row


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["llama2-7b", "--vs"], "both sides are the same"),
        (["llama2-7b", "--vs", "--set", "theta=1e4", "--vs"], "--vs is given twice"),
        (["--vs", "--set", "theta=1e4"], "no model before it"),
        (["llama2-7b", "--vs", "--set"], "'--set' requires an argument"),
        (["llama2-7b", "--vs", "--set", "kv_heads=2"], "did you mean `num_key_value_heads`?"),
        (["llama2-7b", "--vs", "nothing"], "`nothing` not found"),
    ],
)
def test_refusals(arguments: list[str], says: str, capsys: Capture) -> None:
    assert says in refusal(capsys, *arguments)


WORDS = st.text("abc=-.", min_size=1, max_size=6).filter(lambda word: not word.startswith("-"))


@given(st.lists(WORDS, min_size=1), st.lists(WORDS), st.lists(WORDS), st.booleans())
def test_sides_are_read_in_any_order(models: list[str], others: list[str], changes: list[str], joined: bool) -> None:
    """Models and changes behind `--vs` may alternate. `--set=x` is the same as `--set x`."""
    second: list[str] = []
    for place in range(max(len(others), len(changes))):
        second += others[place : place + 1]
        for change in changes[place : place + 1]:
            second += [f"--set={change}"] if joined else ["--set", change]
    arguments = [word for word in marked([*models, "--vs", *second]) if word != "--vs"]
    if (others or models, changes) == (models, []):
        return
    assert sides(arguments, []) == (Side(models, []), Side(others or models, changes))
