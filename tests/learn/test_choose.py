"""Choices: figures that other commands confirm, one rule for all decisions, and models of the right size."""

from __future__ import annotations

import csv
import io
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli import run
from llmbench.learn.choose import DECISIONS, GAIN, choose
from llmbench.learn.choose.blueprint import first_blueprint
from llmbench.learn.choose.candidate import Setting
from llmbench.learn.choose.decisions.positions import base_for
from llmbench.learn.choose.goals import GOALS
from llmbench.sizing.params import count_parameters
from llmbench.spec.files import read_spec

Capture = pytest.CaptureFixture[str]
SETTINGS = [
    Setting(2048, "rtx-4090", 350_000_000),
    Setting(32768, "h100-sxm", 7_000_000_000),
    Setting(131072, "h200", 70_000_000_000),
]


def answer(capsys: Capture, *arguments: str) -> Any:
    assert run(["choose", *arguments, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_rule_holds_for_every_decision(goal: str, setting: Setting) -> None:
    """Computed again, from the figures alone."""
    choice = choose(goal, setting)
    assert [decided.name for decided in choice.decided] == [*DECISIONS]
    sign = 1 if choice.goal.large else -1
    for decided in choice.decided:
        assert decided.options[0].alternative.quality == "first"
        assert decided.chosen.alternative.quality != "loss"
        scores = [sign * math.log(max(choice.goal.figure(option.candidate), 1e-300)) for option in decided.options]
        place = decided.options.index(decided.chosen)
        better = [
            score - scores[place]
            for score, option in zip(scores[place + 1 :], decided.options[place + 1 :], strict=True)
            if option.alternative.quality == "close"
        ]
        assert all(gain < math.log(GAIN) for gain in better), decided
        assert place == 0 or scores[place] - scores[0] >= math.log(GAIN)
        for option in decided.options:
            assert option.candidate.parameters == pytest.approx(setting.parameters, rel=0.011), option.alternative


@pytest.mark.parametrize("parameters", [10**7, 10**8, 124 * 10**6, 10**9, 13 * 10**9, 175 * 10**9, 10**12])
def test_the_first_model_has_a_usual_shape(parameters: int) -> None:
    blueprint = first_blueprint(parameters, 2048)
    assert count_parameters(blueprint.spec).total == pytest.approx(parameters, rel=0.011)
    assert 40 <= blueprint.hidden / blueprint.layers <= 300
    assert 1.5 <= blueprint.width / blueprint.hidden <= 4.5


def test_figures_follow_from_the_sizes() -> None:
    setting = SETTINGS[1]
    for decided in choose("serve", setting).decided:
        for option in decided.options:
            model, blueprint = option.candidate, option.candidate.blueprint
            row = 2 * blueprint.kv_heads * blueprint.head_dim * 2
            local = blueprint.layers - blueprint.layers // (blueprint.local + 1) if blueprint.window else 0
            local = blueprint.layers if blueprint.window and not blueprint.local else local
            kept = local * min(setting.context, blueprint.window or 0) + (blueprint.layers - local) * setting.context
            assert model.cache_bytes == row * kept
            assert model.kv_bytes_per_token == (blueprint.layers - local) * row
            embedding = blueprint.vocab * blueprint.hidden
            assert model.position_parameters == (
                setting.context * blueprint.hidden if blueprint.positions == "learned" else 0
            )
            if not blueprint.experts and blueprint.positions != "learned":
                read = 2 * (model.parameters - embedding) + model.cache_bytes
                assert model.token_s == pytest.approx(read / 3.35e12, rel=1e-3)


def test_goals_lead_to_other_choices() -> None:
    def taken(goal: str, setting: Setting) -> dict[str, str]:
        return {decided.name: decided.chosen.alternative.name for decided in choose(goal, setting).decided}

    setting = SETTINGS[1]
    assert taken("serve", setting)["kv_heads"].startswith("GQA")
    assert taken("train", setting)["kv_heads"].startswith("MHA")
    assert taken("train", setting)["experts"] != "dense"
    assert taken("serve", setting)["experts"] == "dense"
    assert taken("serve", setting)["window"] != "full attention"
    assert taken("serve", Setting(1024, "h100-sxm", setting.parameters))["window"] == "full attention"
    assert taken("small-device", setting)["experts"] == "dense"


def test_the_base_of_rope_grows_with_the_context() -> None:
    """The bound is that of the paper's fit: 0.0424 · tokens^1.628."""
    bases = [base_for(context) for context in (1024, 4096, 32768, 131072, 2**20)]
    assert bases == sorted(bases)
    assert bases[0] == 10_000
    assert all(base >= 0.0424 * context**1.628 for base, context in zip(bases[1:3], (4096, 32768), strict=True))


def test_other_commands_confirm_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The commands that the answer names run on the spec that it writes, and give its figures."""
    monkeypatch.chdir(tmp_path)
    document = answer(capsys, "--goal", "serve", "--context", "32k", "--spec", "mine.toml")
    model = document["model"]
    spec = read_spec(Path("mine.toml"))
    assert spec.name == "mine"
    for decision in document["decisions"]:
        assert "mine.toml" in decision["command"]
        assert run([*shlex.split(decision["command"])[1:], "--format", "json"]) == 0
        row = json.loads(capsys.readouterr().out)["models"][0]
        for found in (row.get("parameters", {}).get("total"), row.get("parameters", {}).get("active")):
            assert found in (None, model["parameters"], model["active_parameters"])
        assert row.get("bytes_total", model["cache_bytes"]) == model["cache_bytes"]
        assert row.get("flops_per_token", model["train_flops_per_token"]) == model["train_flops_per_token"]
        standard = decision["decision"] == "attention"
        figures = decision["options"][1]["figures"] if standard else model
        assert row.get("peak_bytes", figures["train_peak_bytes"]) == figures["train_peak_bytes"]
        if standard:
            assert figures["train_peak_bytes"] > model["train_peak_bytes"]
    fit = ["fit", "mine.toml", "--seq", "32768", "--device", "h100-sxm", "--engine", "ideal", "--weights", "bf16"]
    assert run([*fit, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"][0]["capacity"] == model["users"]


def test_a_large_model_uses_the_devices_that_it_needs(capsys: Capture) -> None:
    document = answer(capsys, "--params", "70b", "--context", "8k")
    assert document["devices"] == 2  # 140 GB of weights, and 80 GiB per device
    assert document["model"]["users"] >= 1


def test_an_impossible_alternative_is_left_out(capsys: Capture) -> None:
    """A learned table of a million rows has more parameters than the whole model."""
    document = answer(capsys, "--params", "10m", "--context", "1m")
    positions = next(decision for decision in document["decisions"] if decision["decision"] == "positions")
    assert [option["name"].partition(",")[0] for option in positions["options"]] == ["RoPE", "ALiBi"]
    assert positions["why"].endswith("Not possible with these parameters and devices: learned table")


def test_the_answer_fits_into_80_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for goal in GOALS:
        assert run(["choose", "--goal", goal, "--context", "128k"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        assert not [line for line in lines if "--wide" in line]


def test_csv_has_a_row_per_alternative(capsys: Capture) -> None:
    document = answer(capsys)
    assert run(["choose", "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    options = [option for decision in document["decisions"] for option in decision["options"]]
    assert [row["name"] for row in rows] == [option["name"] for option in options]
    assert [int(row["users"]) for row in rows] == [option["figures"]["users"] for option in options]
    assert all("arXiv" in option["report"] for option in options if option["quality"] == "loss")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--goal", "win"], "'win' is not one of 'serve'"),
        (["--seq", "8k"], "did you mean `--context`"),
        (["--params", "many"], "'many' is not a number of parameters, such as 7b"),
        (["--params", "1m"], "--params 1,000,000: must be from 10,000,000 to"),
        (["--params", "900b", "--device", "t4"], "do not fit on 64 × t4"),
        (["--context", "1000m"], "--context 1,048,576,000: at most"),
        (["--device", "h1000"], "device `h1000` not found"),
        (["--spec", "model.json"], "--spec model.json: the name of a spec ends with .toml"),
    ],
)
def test_wrong_input_is_refused(arguments: list[str], message: str, capsys: Capture) -> None:
    assert run(["choose", *arguments]) == 2
    assert message in capsys.readouterr().err
