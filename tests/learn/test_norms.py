"""`dynamics`: variants of the norms at several learning rates."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llmbench.cli import run
from llmbench.cli.dynamics import document, panels
from llmbench.cli.learning import progress_of_trainings
from llmbench.learn.data import Corpus
from llmbench.learn.experiments.norms import Outcome, dynamics, failed
from llmbench.learn.experiments.placements import ARMS, SETTINGS, arms_of, base_of
from llmbench.learn.probes.warnings import Warning
from llmbench.model.create import build
from tests.learn.small import spec, text
from tests.measure.rows import ENVIRONMENT

SMALL = msgspec.structs.replace(SETTINGS, steps=50, batch=8, seq_len=16, validate_every=30)


@pytest.fixture(scope="module")
def data() -> Corpus:
    return text()


def test_every_arm_trains_a_shallow_model(data: Corpus) -> None:
    """With two layers, no variant fails at a moderate rate, and 50 steps gain at least 0.05 nats."""
    base = spec(vocab_size=data.vocab_size)
    outcomes = dynamics(base, data, SMALL, list(ARMS), [2], [3e-3], [0])
    assert [outcome.arm for outcome in outcomes] == list(ARMS)
    for outcome in outcomes:
        assert [step for step, _ in outcome.losses] == [0, 30, 50]
        assert not failed(outcome, data.unigram), outcome
        assert outcome.warnings == []


def test_the_seed_decides_a_training_whatever_ran_before(data: Corpus) -> None:
    """Also with σReparam, whose estimates of singular values start from random vectors."""
    settings = msgspec.structs.replace(SMALL, steps=2, validate_every=2)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        (found,) = dynamics(spec(vocab_size=data.vocab_size), data, settings, ["sigma-reparam"], [1], [1e-2], [0])
        losses.append(found.losses)
    assert losses[0] == losses[1]


def test_a_training_that_diverges_is_an_outcome(data: Corpus) -> None:
    base = spec(vocab_size=data.vocab_size)
    (outcome,) = dynamics(base, data, SMALL, ["post"], [1], [1e30], [0])
    assert outcome.loss is None
    assert "step" in outcome.diverged
    assert failed(outcome, data.unigram)


def test_the_arms_are_what_they_say() -> None:
    base = base_of(spec(), 8)
    placements = {arm.name: arm.spec(base).layers["block"].placement for arm in arms_of(list(ARMS), 8)}
    assert {name for name, placement in placements.items() if placement == "post"} == {
        "post",
        "post-warmup",
        "deepnorm",
        "post-gpt2",
    }
    assert placements["sandwich"] == "sandwich"
    (deepnorm,) = arms_of(["deepnorm"], 8)
    assert deepnorm.spec(base).layers["block"].skip_scale == pytest.approx(16**0.25)
    assert sum(p.numel() for p in build(deepnorm.spec(base), init=deepnorm.init).parameters()) > 0


def outcome(loss: float) -> Outcome:
    return Outcome("pre", 2, 1e-3, 0, [(10, loss)], "", {}, [], 1.0)


def test_a_model_that_only_counts_bytes_has_failed() -> None:
    assert failed(outcome(3.18), 3.147)
    assert failed(outcome(3.13), 3.147)
    assert not failed(outcome(2.9), 3.147)


def test_the_command_answers_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "markov:8,2,0", "--steps", "60", "--batch", "2", "--seq", "16", "--layers", "1"]
    assert run(["dynamics", "--arms", "pre", "--lr", "1e-3,1e30", *options]) == 0
    shown = capsys.readouterr().out
    assert "With 1 layer: pre trains at 0.001 and fails at 1e+30." in shown
    assert "not finite fails" in shown
    picture = tmp_path / "norms.svg"
    shown = ["--plot", str(picture), "--format", "json"]
    assert run(["dynamics", "--arms", "pre", "--lr", "1e-3", *options, *shown]) == 0
    assert "<svg" in picture.read_text()
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "llmbench.dynamics/1"
    (training,) = answer["trainings"]
    assert set(training["probes"]) == {"1", "2", "5", "10", "20", "50"}
    assert len(training["probes"]["50"]["token_cosine"]) == 1
    assert run(["dynamics", "--arms", "pre", "--lr", "1e-3", *options, "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["arm"], float(row["loss"]), row["failed"]) == ("pre", training["loss"], str(training["failed"]).lower())


def test_failed_seeds_are_marked_in_the_plot_and_counted_in_words() -> None:
    found = [outcome(loss)._replace(lr=rate) for rate, loss in ((0.1, 2.0), (0.1, 3.1), (0.2, 2.0), (0.2, 2.2))]
    (panel,) = panels(found, 3.147)
    (points, crossed) = panel.series[0].points, panel.series[0].crossed
    assert points == [(0.1, pytest.approx(2.55)), (0.2, pytest.approx(2.1))]
    assert (crossed, panel.cross) == ({0.1}, "a seed failed")
    said = document(found, 3.147, {}, "", ENVIRONMENT).blocks[0].answer
    assert said == "With 2 layers: pre trains at 0.2 and fails at 0.1 (1 of 2 seeds)."


def test_a_warning_has_its_first_step_for_each_variant() -> None:
    """The first step of all seeds. The depth is named if there are several."""
    found = [
        outcome(3.1)._replace(layers=layers, seed=seed, warnings=[Warning("rank collapse", step, "equal tokens")])
        for layers, seed, step in ((12, 0, 20), (12, 1, 10), (24, 0, 5))
    ]
    both, one = (document(some, 3.147, {}, "", ENVIRONMENT).blocks[1].notes for some in (found, found[:2]))
    assert both == [
        "rank collapse: equal tokens: pre with 12 layers at 0.001 from step 10, pre with 24 layers at 0.001 from step 5"
    ]
    assert one == ["rank collapse: equal tokens: pre at 0.001 from step 10"]


def test_a_run_that_is_too_short_has_a_note() -> None:
    def notes(*losses: float) -> list[str]:
        return document([outcome(loss) for loss in losses], 3.147, {}, "", ENVIRONMENT).blocks[0].notes

    assert "3.140 nats, is not clearly below the 3.147 nats" in notes(3.18, 3.14)[0]
    assert not notes(3.18, 2.9)


def test_nothing_is_decided_if_every_training_of_a_depth_fails() -> None:
    def block(*outcomes: Outcome) -> Any:
        return document(list(outcomes), 3.147, {}, "", ENVIRONMENT).blocks[0]

    pre, post = outcome(3.14), outcome(3.14)._replace(arm="post")
    both = block(pre, post)
    assert both.answer == "With 2 layers, nothing is decided: every training fails."
    assert "More --steps would show" in both.notes[0]
    assert "the variant pre in --arms" in block(post).notes[0]
    deeper = pre._replace(layers=24, losses=[(400, 2.0)])
    assert block(pre, deeper).answer.endswith("every training fails. With 24 layers: pre trains at 0.001.")


def test_the_progress_of_trainings_is_a_few_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = 0.0
    with progress_of_trainings(40, 8, now=lambda: clock) as advance:
        for training in range(40):
            for step in range(1, 5 if training == 1 else 9):  # one training stops early
                advance(step, "loss 3.0")
                clock += 0.5
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "40 trainings of 8 steps each"
    assert len(lines) == 9
    assert lines[0] == "4 of 40 trainings, 14.0 seconds, about 2.1 minutes left"  # 14 s / 4 · 36
    assert lines[-1].startswith("36 of 40 trainings")
    clock = 0.0
    with progress_of_trainings(5, 1, now=lambda: clock) as advance:
        for _ in range(5):
            advance(1, "loss 3.0")
            clock += 1.0
    assert capsys.readouterr().err == "5 trainings of 1 step each\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "before"], "choose from pre, post"),
        (["--lr", "fast"], "not a number, such as 1e-3"),
        (["--lr", "0"], "above 0"),
        (["--seeds", "1000"], "trainings are more than"),
        (["mamba-130m", "--arms", "qk-norm"], "qk_norm"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dynamics", "--data", "markov:8,2,0", *arguments]) == 2
    assert message in capsys.readouterr().err
