"""`extrapolate`: scores past the training length."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.experiments.lengths import SEQUENCES, Score, extrapolate
from llmbench.learn.experiments.positions import METHODS, SCORED, methods_of
from llmbench.learn.experiments.statistics import Difference
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.settings import Settings
from llmbench.spec.model import ModelSpec
from tests.learn.small import spec, text

SETTINGS = Settings(steps=4, batch=4, seq_len=32, warmup=0, lr=3e-3)


@pytest.fixture(scope="module")
def data() -> Corpus:
    return text()


@pytest.fixture(scope="module")
def base(data: Corpus) -> ModelSpec:
    return spec(num_hidden_layers=1, vocab_size=data.vocab_size)


@pytest.fixture(scope="module")
def scores(base: ModelSpec, data: Corpus) -> dict[tuple[str, int], Score]:
    found = extrapolate(base, data, SETTINGS, METHODS, [48, 64])
    return {(score.method, score.length): score for score in found}


def test_every_method_is_scored_at_every_length(scores: dict[tuple[str, int], Score]) -> None:
    assert set(scores) == {(method.name, length) for method in METHODS for length in (32, 48, 64)}
    for (method, length), score in scores.items():
        assert (score.loss is None) == (method == "learned" and length > 32)
        assert (score.change is None) == (length == 32 or score.loss is None)


def test_the_methods_of_rope_share_their_training(scores: dict[tuple[str, int], Score]) -> None:
    losses = {method: scores[method, 32].loss for method in ("rope", "interpolation", "ntk", "yarn")}
    assert len(set(losses.values())) == 1
    assert len({scores[method, 64].loss for method in ("rope", "interpolation", "ntk")}) == 3


def test_a_score_is_the_loss_of_the_same_tokens(
    scores: dict[tuple[str, int], Score], base: ModelSpec, data: Corpus
) -> None:
    model, _ = trained_arm(base, Arm("alibi", {"positions": {"kind": "alibi"}}), data, SETTINGS)
    tokens, targets = data.windows(64, SEQUENCES)
    for length in (32, 64):
        with torch.no_grad():
            logits = model.eval()(tokens[:, -length:])[:, -SCORED:]
        expected = F.cross_entropy(logits.flatten(0, 1), targets[:, -SCORED:].flatten())
        assert scores["alibi", length].loss == pytest.approx(float(expected), rel=1e-5)


def test_only_sines_get_scaled_embeddings(base: ModelSpec) -> None:
    """By √width, as in the original Transformer. Small embeddings would vanish beside sines and cosines."""
    for method in METHODS:
        scale = Arm(method.name, method.changes(base, 32, 64)).spec(base).embedding.scale
        assert scale == (base.hidden_size**0.5 if method.name == "sinusoidal" else 1.0), method.name


def test_ntk_scales_the_base_of_rope(data: Corpus) -> None:
    """The base for d dimensions is base · (longer / length)^(d / (d - 2)) (NTK-aware scaling)."""
    (ntk,) = methods_of(["ntk"])
    base = spec(num_hidden_layers=1, vocab_size=data.vocab_size, max_position_embeddings=32)
    trained, _ = trained_arm(base, Arm("rope", {"positions": {"kind": "rope"}}), data, SETTINGS)
    width = 8
    larger = {"positions": {"kind": "rope", "theta": 10000.0 * 2 ** (width / (width - 2))}}
    tokens, _ = data.windows(64, 2)
    logits = []
    for changes in (ntk.changes(base, 32, 64), larger):
        model, _ = trained_arm(base, Arm("", changes), data, SETTINGS)
        model.load_state_dict(trained.state_dict())
        with torch.no_grad():
            logits.append(model.eval()(tokens))
    assert torch.allclose(*logits, atol=1e-5)


def test_lengths_that_cannot_be_scored_are_refused(base: ModelSpec, data: Corpus) -> None:
    with pytest.raises(LLMBenchError, match="the last 32 tokens"):
        extrapolate(base, data, SETTINGS, METHODS, [16])
    with pytest.raises(LLMBenchError, match="too few for a sequence"):
        extrapolate(base, data, SETTINGS, METHODS, [10**6])


def test_the_command_answers_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "markov:8,2,0", "--steps", "2", "--batch", "2", "--seq", "32", "--lengths", "48"]
    small = ["--set", "num_hidden_layers=1", "--methods", "learned,alibi"]
    assert run(["extrapolate", *options, *small]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "learned cannot read more than 32 tokens" in out
    assert "Nothing is decided" in out
    assert re.search(r"guessing by frequency gets \d\.\d{3}, and a table of token pairs \d\.\d{3}\.", out)
    assert "alibi reads" not in out
    picture = tmp_path / "lengths.svg"
    assert run(["extrapolate", *options, *small, "--plot", str(picture), "--format", "json"]) == 0
    assert "<svg" in picture.read_text()
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "llmbench.extrapolate/1"
    assert [(row["method"], row["length"], row["verdict"]) for row in answer["scores"]][:2] == [
        ("learned", 32, "trained length"),
        ("learned", 48, "cannot read"),
    ]
    assert run(["extrapolate", *options, *small, "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [float(row["loss"] or "nan") for row in rows] == pytest.approx(
        [math.nan if row["loss"] is None else row["loss"] for row in answer["scores"]], nan_ok=True
    )
    assert run(["extrapolate", *options, *small, "-o", str(tmp_path / "lengths.json")]) == 0
    assert " ".join(capsys.readouterr().out.split()).startswith("Nothing is decided")  # the screen shows the answer too
    assert json.loads((tmp_path / "lengths.json").read_text())["pairs"] == answer["pairs"] < answer["unigram"]
    assert run(["extrapolate", *options, "--methods", "rotary"]) == 2
    assert "choose from learned" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.02, "as well"),
        (-0.02, 0.01, "as well"),
        (0.01, 0.2, "worse"),
        (-0.3, -0.2, "better"),
        (-1, 1, "within noise"),
    ],
)
def test_a_small_change_is_as_well(low: float, high: float, verdict: str) -> None:
    change = Difference((low + high) / 2, low, high, 0.5)
    assert Score("rope", 64, 2.0, change).verdict == verdict
