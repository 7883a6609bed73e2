"""`ablate`: designs, paths between them, and what each step changes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import torch

from benchmarks.designs import every_design, pairs, result_of
from llmbench.cli import ablate_document, run
from llmbench.errors import LLMBenchError, SpecError, UnknownNameError
from llmbench.learn.data import Corpus
from llmbench.learn.experiments.ablate import Costs, Outcome, ablate, difference
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.experiments.designs import DESIGNS, QUESTIONS, Design, Size, path, questions, size_of
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.settings import Settings
from llmbench.measure.environment import environment
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import write_spec
from tests.learn.small import text

SIZE = Size(hidden=16, layers=1, heads=4, head_dim=4, vocab=8, context=16)
SETTINGS = Settings(steps=3, batch=2, seq_len=16, warmup=0, validate_every=3, validation_batches=2)
MOST = [design for design in every_design() if design.ffn not in ("ReLU", "SiLU") and design.biases == "none"]


@pytest.fixture(scope="module")
def data() -> Corpus:
    return text()


@pytest.mark.parametrize("design", pairs(MOST), ids=", ".join)
def test_200_steps_lower_the_loss(design: Design, data: Corpus) -> None:
    """These designs have each pair of choices. `benchmarks/designs.py` trains all designs."""
    result = result_of(design, data)
    assert result.good(data.unigram), result


def test_a_design_at_the_size_of_a_model_is_this_model() -> None:
    for name, design in (("gpt2", "gpt2"), ("llama3-8b", "llama"), ("deepseek-v2-lite", "deepseek")):
        model = load_bundled(name)
        size = size_of(model, vocab=model.vocab_size, context=model.max_position_embeddings or 0)
        if name == "deepseek-v2-lite":
            size = size._replace(head_dim=128)  # without the rotated part
        ours = DESIGNS[design].spec(size)
        theirs = model.layers["moe" if name == "deepseek-v2-lite" else "block"]
        assert msgspec.structs.replace(theirs.mixer, positions=None) == ours.layers["block"].mixer
        assert (theirs.placement, model.norm.kind, model.norm.bias, model.final_norm) == (
            ours.layers["block"].placement,
            ours.norm.kind,
            ours.norm.bias,
            ours.final_norm,
        )
        assert type(model.positions) is type(ours.positions)
        if name == "gpt2":
            assert count_parameters(ours).total == count_parameters(model).total == 124_439_808


def test_gated_and_mixed_feed_forwards_match_the_plain_one() -> None:
    """At width 768: equal parameters within 1%, and experts of a token that are as wide as SwiGLU within 5%."""
    size = Size(hidden=768, layers=12, heads=12, head_dim=64, vocab=50257, context=1024)
    parameters = {ffn: count_parameters(DESIGNS["cs336"]._replace(ffn=ffn).spec(size)) for ffn in ("GELU", "SwiGLU")}
    mlp = {ffn: found.components["mlp"] for ffn, found in parameters.items()}
    assert mlp["SwiGLU"] == pytest.approx(mlp["GELU"], rel=0.01)
    assert 3 * size.expert == pytest.approx(size.gated, rel=0.05)


def test_each_step_changes_one_part() -> None:
    steps = path(["transformer", "gpt2", "llama", "deepseek"])
    for view in ("cumulative", "added", "removed"):
        first, *others = [step for step in steps if step.view == view]
        assert first.before is None
        for step in others:
            assert step.before is not None
            changed = [part for part, a, b in zip(Design._fields, step.before, step.design, strict=True) if a != b]
            assert len(changed) == 1
            assert step.name.endswith(changed[0])
            assert step.about == f"{getattr(step.before, changed[0])} → {getattr(step.design, changed[0])}"
            assert step.before == first.design or view == "cumulative"
    cumulative = [step.design for step in steps if step.view == "cumulative"]
    assert (cumulative[0], cumulative[-1]) == (DESIGNS["transformer"], DESIGNS["deepseek"])
    assert [step.name for step in path(["gpt2", "llama"], ["cumulative"])] == [
        "gpt2",
        "norm",
        "biases",
        "positions",
        "heads",
        "ffn",
    ]


def test_the_questions_of_the_course() -> None:
    base, *steps = questions(list(QUESTIONS))
    specs = {step.name: step.design.spec(SIZE) for step in steps}
    assert specs["layer_norm_ablation"].layers["block"].placement == "none"
    assert not specs["layer_norm_ablation"].final_norm
    assert specs["pre_norm_ablation"].layers["block"].placement == "post"
    assert specs["no_pos_emb"].positions.summary == "none"
    assert specs["swiglu_ablation"].layers["block"].ffn.summary == "SiLU 64"
    assert all(step.before == base.design for step in steps)


def test_bad_paths_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="gpt3"):
        path(["gpt2", "gpt3"])
    with pytest.raises(LLMBenchError, match="two different designs"):
        path(["llama", "llama"])
    with pytest.raises(UnknownNameError, match="dropout"):
        questions(["dropout"])
    with pytest.raises(SpecError, match="7 query heads cannot share"):
        DESIGNS["llama"].spec(SIZE._replace(heads=7))
    with pytest.raises(SpecError, match="has no attention"):
        size_of(load_bundled("mamba-130m"), vocab=8, context=16)


def test_designs_train_on_the_same_batches(data: Corpus) -> None:
    first, second = DESIGNS["gpt2"], DESIGNS["llama"]
    trained = []
    outcomes = ablate(
        SIZE,
        data,
        SETTINGS,
        [first, second, first],
        [1e-3, 1e-2],
        range(2),
        on_step=lambda design, row: trained.append(design),
    )
    assert len(trained) == 2 * 2 * 2 * SETTINGS.steps
    settings = msgspec.structs.replace(SETTINGS, lr=1e-2, seed=1)
    _, alone = trained_arm(second.spec(SIZE), Arm("alone"), data, settings)
    assert outcomes[second].losses[1e-2][1] == alone.validations[-1].validation_loss
    assert all(outcome.costs.step_s > outcome.costs.decode_s_per_token > 0 for outcome in outcomes.values())


def outcome(**losses: list[float | None]) -> Outcome:
    """Trainings on a text on which guessing by frequency has a loss of 3 nats."""
    costs = SimpleNamespace(**dict.fromkeys(Costs._fields), step_s=1.0, decode_s_per_token=1.0, remarks=[])
    return Outcome(cast(Costs, costs), {float(rate.replace("_", ".")): found for rate, found in losses.items()}, 3.0)


def test_the_best_rate_is_compared() -> None:
    good = outcome(**{"0_1": [2.0, 2.2], "0_2": [1.9, 2.1], "0_3": [1.0, None], "0_4": [2.99, 1.0]})
    assert good.rate == 0.2
    assert (good.loss, good.failed) == (pytest.approx(2.0), 0)
    other = outcome(**{"0_1": [1.8, 2.1]})
    found, pairs = difference(other, good)
    assert found is not None
    assert (found.mean, pairs) == (pytest.approx(-0.05), 2)


def test_a_pair_with_a_failed_training_does_not_count() -> None:
    good, half = outcome(**{"0_1": [1.8, 2.1, 1.9]}), outcome(**{"0_1": [2.0, None, 2.96]})
    found, pairs = difference(half, good)
    assert found is not None
    assert (found.mean, found.low, pairs) == (pytest.approx(0.2), None, 1)
    assert (half.loss, half.failed) == (2.0, 2)
    none = outcome(**{"0_1": [3.2, 3.4, None]})
    assert difference(none, good) == difference(good, none) == (None, 0)
    assert (none.loss, none.failed) == (pytest.approx(3.3), 3)
    assert outcome(**{"0_1": [None]}).loss is None


def answer_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run([*arguments, "--format", "json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_the_command_answers_in_words_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    book.write_text("to be, or not to be: that is the question. " * 50)
    short = ["--data", str(book), "--steps", "40", "--batch", "4", "--seq", "16", "--lr", "1e-2"]
    short += ["--set", "num_hidden_layers=1"]
    assert run(["ablate", "--only", "no_pos_emb", "--seeds", "1", *short]) == 0
    shown = capsys.readouterr().out
    assert "Not decided, because there is one seed to compare: no_pos_emb (RoPE → no positions)." in shown
    picture = tmp_path / "steps.svg"
    answer = answer_of(capsys, "ablate", "--from", "cs336", "--seeds", "2", "--plot", str(picture), *short)
    assert "<svg" in picture.read_text()
    assert answer["schema"] == "llmbench.ablate/1"
    first, last = answer["steps"]
    assert (first["verdict"], first["change"], last["step"]) == ("first", None, "heads")
    assert (first["failed"], last["failed"], last["pairs"]) == (0, 0, 2)
    assert last["low"] <= last["change"] <= last["high"]
    assert last["change"] == pytest.approx(last["loss"] - first["loss"])
    size = size_of(load_bundled("nanogpt-cpu"), vocab=256, context=16)._replace(layers=1)
    file = tmp_path / "llama.toml"
    file.write_text(write_spec(DESIGNS["llama"].spec(size)))
    model = str(file)
    training = ["--phase", "train", "--seq", "16", "--batch", "4"]
    (params,) = answer_of(capsys, "params", model)["models"]
    (flops,) = answer_of(capsys, "flops", model, *training)["models"]
    (cache,) = answer_of(capsys, "kvcache", model)["models"]
    (memory,) = answer_of(capsys, "memory", model, *training, "--precision", "fp32", "--kernels", "eager")["models"]
    assert last["parameters"] == params["parameters"]["total"]
    assert last["train_flops_per_token"] == flops["flops_per_token"]
    assert last["kv_bytes_per_token"] == cache["bytes_per_token"]
    assert last["memory_bytes"] == memory["peak_bytes"] - memory["parts_bytes"]["overhead"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "gpt3"], "choose from transformer, gpt2"),
        (["--to", "gpt2"], "two different designs"),
        (["--only", "no_pos_emb", "--to", "llama"], "leave out --from"),
        (["--only", "dropout"], "choose from layer_norm_ablation"),
        (["--lr", "fast"], "is not a number"),
        (["--seeds", "1000"], "trainings are more than"),
        (["--set", "num_attention_heads=1", "--set", "num_key_value_heads=1"], "cannot share KV heads"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ablate", "--data", "markov:8,2,0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_verdict_of_a_row_names_its_failed_seeds() -> None:
    """With these losses of post-norm, the interval over all seeds contains 0: noise would hide two failures."""
    steps = questions(["pre_norm_ablation", "no_pos_emb", "swiglu_ablation"])
    losses: list[list[float | None]] = [[2.0, 2.1, 2.0], [2.4, 3.3, None], [2.2, 2.31, 2.21], [3.1, 3.2, 3.3]]
    outcomes = {step.design: outcome(**{"0_1": found}) for step, found in zip(steps, losses, strict=True)}
    answer = ablate_document.document(steps, outcomes, 3.0, {"seeds": 3}, "", environment(torch.device("cpu")))
    first, post, none, silu = answer.rows
    assert (first["verdict"], none["verdict"], none["pairs"]) == ("first", "worse", 3)
    assert (post["verdict"], post["failed"], post["pairs"]) == ("2 of 3 seeds failed", 2, 1)
    assert (post["loss"], post["change"], post["low"]) == (2.4, pytest.approx(0.4), None)
    assert (silu["verdict"], silu["change"]) == ("3 of 3 seeds failed", None)
    assert "Failed: pre_norm_ablation (pre-norm → post-norm): 2 of 3 seeds failed" in answer.blocks[0].answer
    assert any("Seeds left for Δ: pre_norm_ablation (1 of 3)" in note for note in answer.blocks[0].notes)
    (picture,) = ablate_document.panels(steps, outcomes, 3.0)
    assert [(column.mean, column.values, column.crossed) for column in picture.columns[1::2]] == [
        (2.4, [2.4], [3.3]),
        (None, [], [3.1, 3.2, 3.3]),
    ]
    assert picture.columns[2].half == pytest.approx(none["high"] - none["change"])
    outcomes[steps[0].design] = outcome(**{"0_1": [3.0, None, 3.1]})
    answer = ablate_document.document(steps, outcomes, 3.0, {"seeds": 3}, "", environment(torch.device("cpu")))
    assert [row["verdict"] for row in answer.rows[:3:2]] == ["3 of 3 seeds failed", "not compared"]
