"""Worked examples: their numbers are those of torch, and each printed formula gives the value behind it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from llmbench.cli import run
from llmbench.learn.worked import TOPICS, work

Capture = pytest.CaptureFixture[str]
SIZES = [(None, None, 0), (1, 2, 1), (8, 8, 3), (5, 6, 4)]


def values(worked: Any, name: str) -> torch.Tensor:
    """The values of the step with this name."""
    (step,) = (step for step in worked.steps if step.name == name)
    return torch.tensor(step.values, dtype=torch.float64)


@pytest.mark.parametrize("topic", TOPICS)
def test_the_modules_of_the_model_compute_the_same(topic: str) -> None:
    """Only the router and the table of RoPE are in fp32."""
    for tokens, dim, seed in SIZES:
        for check in work(topic, tokens=tokens, dim=dim, seed=seed).checks:
            assert check.difference < (1e-5 if "fp32" in check.module else 1e-12), (topic, tokens, dim, check)


@pytest.mark.parametrize("topic", TOPICS)
def test_each_example_gives_its_value(topic: str) -> None:
    """Python computes the formula with its numbers, which are rounded to four decimals or digits."""
    count = 0
    for tokens, dim, seed in SIZES:
        for step in work(topic, tokens=tokens, dim=dim, seed=seed).steps:
            if not step.example:
                continue
            _, *_, formula, value = plain(step.example).split(" = ")
            computed = eval(formula, {"sqrt": math.sqrt, "exp": math.exp, "max": max})
            terms = [abs(float(number)) for number in re.findall(r"\d+\.?\d*", formula)]
            assert computed == pytest.approx(float(value), rel=2e-3, abs=2e-4 * max(terms)), step.example
            assert any(abs(float(value) - cell) < 1e-4 for row in step.values for cell in row if cell is not None)
            count += 1
    assert count >= len(SIZES) * 2


def plain(text: str) -> str:
    """The text of a formula as Python writes it."""
    text = re.sub(r"√(\([^()]*\)|[\d.]+)", r"sqrt(\1)", text.replace("−", "-").replace("×", "*"))
    return text.replace("^", "**").replace("²", "**2").replace(",000", "000")


def test_attention_is_that_of_torch() -> None:
    for tokens, dim, seed in SIZES[1:]:
        worked = work("attention", tokens=tokens, dim=dim, seed=seed)
        x = values(worked, "input")
        q, k, v = (x @ values(worked, f"W_{name}") for name in "QKV")
        exact = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        torch.testing.assert_close(values(worked, "output"), exact, rtol=1e-12, atol=1e-12)


def test_rmsnorm_of_the_odd_numbers() -> None:
    worked = work("rmsnorm")
    assert values(worked, "input")[0].tolist() == [1, 3, 5, 7]
    assert values(worked, "rms")[0, 0] == pytest.approx(4.583, abs=5e-4)
    x, gain = values(worked, "input"), values(worked, "gain")[0]
    torch.testing.assert_close(values(worked, "output"), F.rms_norm(x, (4,), gain, 1e-5), rtol=1e-12, atol=1e-12)


def test_a_score_of_rope_depends_on_the_distance_alone() -> None:
    scores = values(work("rope", tokens=8, dim=8, seed=5), "scores")
    for distance in range(-7, 8):
        diagonal = scores.diagonal(distance)
        assert float(diagonal.max() - diagonal.min()) < 1e-12
    assert len({round(float(scores.diagonal(distance)[0]), 9) for distance in range(-7, 8)}) == 15


def test_slopes_of_twelve_heads_end_with_every_second_of_sixteen() -> None:
    slopes = values(work("alibi"), "slopes of 12 heads").flatten()
    assert [round(float(slope), 3) for slope in slopes[8:]] == [0.707, 0.354, 0.177, 0.088]


def test_the_online_softmax_is_exact_and_a_sum_of_softmaxes_is_not() -> None:
    worked = work("flash", tokens=7, seed=6)
    standard = values(worked, "standard attention")
    torch.testing.assert_close(values(worked, "output"), standard, rtol=1e-12, atol=1e-12)
    wrong = values(worked, "a common error")
    assert float((wrong - standard).norm() / standard.norm()) > 0.5


def test_the_load_counts_every_pair() -> None:
    worked = work("moe", tokens=8, seed=1)
    pairs, share, mean = values(worked, "load")
    assert pairs.sum() == 8 * 2
    assert share.tolist() == (pairs / 16).tolist()  # in fp64
    assert float(mean.sum()) == pytest.approx(1)
    assert float(values(worked, "balance loss")) == pytest.approx(4 * float(share @ mean), rel=1e-15)


def test_the_cache_grows_by_one_row_per_token() -> None:
    table = values(work("kv-cache", tokens=4, dim=4), "the cache after each token")
    assert table[:, 0].tolist() == [1, 1, 1, 1]
    assert table[:, 1].tolist() == [0, 1, 2, 3]
    assert table[:, 3].tolist() == [2 * 4 * 2 * tokens for tokens in (1, 2, 3, 4)]


@pytest.mark.parametrize("topic", TOPICS)
def test_an_example_fits_into_80_columns(topic: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for tokens, dim in (("3", "4"), ("8", "8")):
        assert run(["worked", topic, "--tokens", tokens, "--dim", dim]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert not [line for line in lines if "--wide" in line]


def test_json_and_csv_have_every_value(capsys: Capture) -> None:
    assert run(["worked", "moe", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "llmbench.worked/1"
    assert document["inputs"] == {"topic": "moe", "tokens": None, "dim": None, "seed": 0}
    assert list(document["steps"][0]) == ["name", "formula", "example", "note", "row", "rows", "columns", "values"]
    cells = sum(len(row) for step in document["steps"] for row in step["values"])
    assert run(["worked", "moe", "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == cells + 1


def test_the_selection_of_experts_is_never_a_tie() -> None:
    """One channel and drawn numbers with one decimal give many equal logits."""
    for seed in range(20):
        (check,) = work("moe", tokens=8, dim=1, seed=seed).checks
        assert check.difference < 1e-5


def test_without_torch_the_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr("llmbench.cli.measured.util.find_spec", lambda name: None)
    assert run(["worked", "rope"]) == 3
    assert "`llmbench worked` needs PyTorch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ropes"], "unknown topic `ropes`"),
        (["rope", "--dim", "3"], "--dim 3: RoPE rotates pairs of channels"),
        (["attention", "--tokens", "9"], "--tokens 9: must be from 1 to 8"),
        (["attention", "--tokens", "0"], "0 is not between 1 and"),
    ],
)
def test_wrong_input_is_refused(arguments: list[str], message: str, capsys: Capture) -> None:
    assert run(["worked", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_headline_of_adamw_counts_steps(capsys: Capture) -> None:
    assert run(["worked", "adamw"]) == 0
    assert " · steps 3 · dim 4 · " in capsys.readouterr().out.splitlines()[0]
