"""Options with several values: a row for each combination."""

from __future__ import annotations

import csv
import re

import pytest

from .commands import Capture, answer, refusal, rows


def test_a_sweep_has_a_row_per_model_length_and_batch(capsys: Capture) -> None:
    sweep = rows(capsys, "kvcache", "llama3-8b", "gemma3-4b", "--seq", "8k,32k", "--batch", "1,8")
    alone = [
        rows(capsys, "kvcache", model, "--seq", seq, "--batch", batch)[0]
        for model in ("llama3-8b", "gemma3-4b")
        for seq in ("8192", "32768")
        for batch in ("1", "8")
    ]
    assert sweep == alone
    table = answer(capsys, "kvcache", "llama3-8b", "--seq", "8k,32k")
    assert table.startswith("llama3-8b · ")


@pytest.mark.parametrize("command", ["flops", "memory"])
def test_a_sweep_over_lengths(command: str, capsys: Capture) -> None:
    sweep = rows(capsys, command, "llama3-8b", "--seq", "1k..8k")
    assert [row["seq_len"] for row in sweep] == [1024, 2048, 4096, 8192]
    assert sweep[1] == rows(capsys, command, "llama3-8b", "--seq", "2048")[0]
    table = answer(capsys, command, "llama3-8b", "--seq", "1k..8k")
    assert [line.split()[0] for line in table.splitlines() if "8,192" in line] == ["8,192"]
    lines = answer(capsys, command, "llama3-8b", "--seq", "1k..8k", "--format", "csv").splitlines()
    assert len(lines) == 5
    assert len(set(lines[0].split(","))) == len(lines[0].split(","))


@pytest.mark.parametrize(
    ("words", "option", "values", "field"),
    [
        ("kvcache llama3-8b gemma3-4b", "--kv-dtype", "bf16,fp8", "kv_dtype"),
        ("memory llama3-8b --phase inference", "--kv-dtype", "bf16,fp8,int4", "kv_dtype"),
        ("memory llama3-8b", "--recompute", "none,full", "recompute"),
        ("flops llama3-8b --phase train", "--recompute", "none,full", "recompute"),
    ],
)
def test_a_sweep_over_choices(words: str, option: str, values: str, field: str, capsys: Capture) -> None:
    """Each row equals the row of the command with one value, and the table has a column for the option."""
    arguments, each = words.split(), values.split(",")
    sweep = rows(capsys, *arguments, option, values)
    assert [row[field] for row in sweep] == each * (len(sweep) // len(each))
    assert sweep[1] == rows(capsys, *arguments, option, each[1])[0]
    sheet = list(csv.DictReader(answer(capsys, *arguments, option, values, "-f", "csv").splitlines()))
    assert [line[field] for line in sheet] == [row[field] for row in sweep]
    table = answer(capsys, *arguments, option, values)
    for value in each:
        lines = [line for line in table.splitlines() if re.search(rf"(^| ) {value}  ", line)]
        assert len(lines) == len(sweep) // len(each), table
    assert f"'x' is not one of '{'none' if field == 'recompute' else 'bf16'}'" in refusal(
        capsys, *arguments, option, f"{values},x"
    )


def test_each_row_of_a_sweep_has_its_own_notes(capsys: Capture) -> None:
    """GPT-2 has learned positions for 1,024 tokens."""
    for command in ("memory", "flops", "kvcache"):
        text = answer(capsys, command, "gpt2", "--seq", "512,4096", "--format", "csv")
        short, long = csv.DictReader(text.splitlines())
        assert "cannot read" not in short["notes"]
        assert "gpt2 cannot read 4,096 tokens" in long["notes"]
        assert "gpt2 cannot read 4,096 tokens" in answer(capsys, command, "gpt2", "--seq", "512,4096")


def test_a_length_above_the_context_has_a_note(capsys: Capture) -> None:
    """Llama 3 was trained with 8,192 tokens. The note is said once in a sweep."""
    note = "a sequence of more than 8,192 tokens exceeds the context length of llama3-8b"
    for command in ("memory", "flops", "kvcache"):
        assert [row["notes"] for row in rows(capsys, command, "llama3-8b", "--seq", "8k,16k,32k")] == [
            [],
            [note],
            [note],
        ]
        assert answer(capsys, command, "llama3-8b", "--seq", "8k,16k,32k").count(note) == 1
    assert note in answer(capsys, "compare", "llama3-8b", "gpt2", "--seq", "16k")
    names = "palm-540b, llama3-8b, mixtral-8x7b, llama2-7b, gpt3-175b"
    assert f"131,072 tokens exceed the context length of 5 models: {names}" in answer(
        capsys, "kvcache", "--seq", "128k"
    )
    assert "exceed" not in answer(capsys, "kvcache", "--seq", "2k")


def test_sweeps_that_make_no_sense(capsys: Capture) -> None:
    assert "ends before it begins" in refusal(capsys, "kvcache", "llama3-8b", "--seq", "8k..4k")
    assert "not a number of tokens" in refusal(capsys, "kvcache", "llama3-8b", "--seq", "8k,")
    assert "more than 64" in refusal(capsys, "kvcache", "llama3-8b", "--seq", ",".join(map(str, range(1, 67))))


def test_a_range_ends_with_its_last_number(capsys: Capture) -> None:
    sweep = rows(capsys, "kvcache", "llama3-8b", "--seq", "4k..10k")
    assert [row["seq_len"] for row in sweep] == [4096, 8192, 10_240]
