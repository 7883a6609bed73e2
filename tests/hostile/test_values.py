"""Values of options that could be read in two ways are refused, and no part of a value is dropped."""

from __future__ import annotations

import pytest

from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.learn.exercises.answer import parse_answer
from llmbench.validation.kv import _given
from llmbench.validation.rows import RefusedError

MFU = ["mfu", "llama2-7b", "--device", "h100", "--gpus", "8", "--format", "csv", "--tokens-per-s"]


@pytest.mark.parametrize("number", ["1,5", "1,,200", "12,34", "1,000,", ",500", "1,2345", "1234,567", "1.5,000"])
def test_a_comma_stands_only_between_groups_of_three_digits(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*MFU, number]) == 2
    assert "512,000" in capsys.readouterr().err
    with pytest.raises(LLMBenchError):
        parse_answer(number, "number")


def test_groups_of_three_digits_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [(run([*MFU, number]), capsys.readouterr().out) for number in ("1,234,500", "1234500", "1,234.5k")]
    assert answers == [(0, answers[0][1])] * 3
    assert parse_answer("1,234,567", "number") == 1_234_567
    assert _given("35,136 + 1,024.5 B").parts == [(35136, pytest.approx(0.5)), (1024.5, pytest.approx(0.05))]
    with pytest.raises(RefusedError, match="comma only between groups"):
        _given("8,23 GiB")


@pytest.mark.parametrize("value", ["4096\nvocab_size=9", "4096\n[x]\ny=3", "4096\r\nvocab_size=9"])
def test_a_value_of_set_is_one_value(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["params", "llama2-7b", "--set", f"hidden_size={value}"]) == 2
    assert "--set hidden_size: has more than one line" in capsys.readouterr().err
