"""The recorded trainings behind claims of the textbook: their commands train with the recorded settings, the verdicts
follow from the recorded figures, and the pages show these figures."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from llmbench.cli import ablate_document, dynamics, extrapolate, run
from llmbench.learn.data import Corpus
from llmbench.learn.experiments import ablate, lengths, norms
from llmbench.learn.experiments.placements import NARROW
from llmbench.learn.experiments.positions import METHODS
from llmbench.learn.experiments.statistics import has_learned
from llmbench.learn.settings import Settings
from llmbench.sizing.params import count_parameters
from llmbench.textbook import CLAIMS, estimates, learning, positions
from llmbench.textbook.claim import Outcome, decide
from llmbench.textbook.recorded import Run, names, recorded
from llmbench.textbook.table import figures_text

BY_NAME = {claim.name: claim for claim in CLAIMS}
ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "guides"
DYNAMICS = [name for name in names() if recorded(name).command.startswith("llmbench dynamics")]
STUDENT_2, STUDENT_1 = 4.302653, 12.706205
"""The quantiles of Student's distribution that hold 95% with 2 and with 1 degrees of freedom (published tables)."""


def test_every_run_decides_a_claim_or_a_page_shows_it() -> None:
    assert {run for claim in CLAIMS for run in claim.runs} == set(names())


# The commands


class Asked(NamedTuple):
    """What a command would train."""

    text: Corpus
    settings: Settings
    rows: set[tuple[Any, ...]]


class TrainingStartsError(BaseException):
    """Stops a command before its first training. No handler of errors catches it."""


def asked(command: str, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Run a command until it would train."""
    found = []

    def of_dynamics(
        base: Any, text: Any, settings: Any, arms: Any, depths: Any, rates: Any, seeds: Any, **_: Any
    ) -> None:
        rows = {(arm, depth, rate, seed) for arm in arms for depth in depths for rate in rates for seed in seeds}
        found.append(Asked(text, settings, rows))
        raise TrainingStartsError

    def of_extrapolate(base: Any, text: Any, settings: Any, methods: Any, longer: Any, **_: Any) -> None:
        rows = {(method.name, length) for method in methods for length in (settings.seq_len, *longer)}
        found.append(Asked(text, settings, rows))
        raise TrainingStartsError

    def of_ablate(size: Any, text: Any, settings: Any, designs: Any, rates: Any, seeds: Any, **_: Any) -> None:
        rows = {(count_parameters(design.spec(size)).total, len(rates), len(seeds)) for design in designs}
        found.append(Asked(text, settings, rows))
        raise TrainingStartsError

    monkeypatch.setattr(norms, "dynamics", of_dynamics)
    monkeypatch.setattr(lengths, "extrapolate", of_extrapolate)
    monkeypatch.setattr(ablate, "ablate", of_ablate)
    program, *words = shlex.split(command)
    assert program == "llmbench"
    with pytest.raises(TrainingStartsError):
        run(words)
    return found[0]


def rows_of(record: Run) -> set[tuple[Any, ...]]:
    """What was trained, in the form of `Asked.rows`."""
    kind = shlex.split(record.command)[1]
    if kind == "dynamics":
        return {(row["arm"], row["layers"], row["lr"], row["seed"]) for row in record.rows}
    if kind == "extrapolate":
        return {(row["method"], row["length"]) for row in record.rows}
    return {(row["parameters"], 1, len(row["losses"])) for row in record.rows}


@pytest.mark.parametrize("name", names())
def test_the_command_trains_what_was_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(name)
    found = asked(record.command, monkeypatch)
    assert msgspec.convert(record.settings, Settings) == found.settings
    assert rows_of(record) == found.rows
    assert found.text.name == record.text.name
    if found.text.name != "stdlib":  # which differs between builds of Python
        assert found.text.train_sha256() == record.text.sha256
        assert found.text.unigram == pytest.approx(record.text.unigram, rel=1e-12)


@pytest.mark.parametrize("name", names())
def test_a_record_names_the_kind_of_machine_only(name: str) -> None:
    record = recorded(name)
    assert set(record.machine) == {"os", "cpu", "threads", "python", "torch"}
    assert "/" not in json.dumps(record.machine)


def test_three_seeds_are_paired() -> None:
    seeds = [recorded(name).settings["seed"] for name in positions.RUNS]
    assert seeds == [0, 1, 2]
    for name in ("depth-6", "depth-12", "depth-12-low-rate", "small-weights", "sigma-reparam"):
        assert {row["seed"] for row in recorded(name).rows} == {0, 1, 2}


def test_the_claims_state_the_recorded_settings() -> None:
    """The texts of the claims have numbers, for example of steps. They are those of the records."""
    assert {recorded(name).settings["seq_len"] for name in positions.RUNS} == {positions.TRAINED}
    assert NARROW["head_dim"] == learning.HEAD_DIM
    for name in DYNAMICS:
        settings = recorded(name).settings
        tokens = settings["batch"] * settings["seq_len"]
        assert f"width {NARROW['hidden_size']}, {settings['steps']} steps of {tokens:,} bytes" == learning.TRAINED
        rates = {"depth-12-low-rate": (3e-4,), "sigma-reparam": learning.COLLAPSING}.get(name, (1e-3,))
        assert {row["lr"] for row in recorded(name).rows} == set(rates)
    for claim in (BY_NAME["activation loss"], BY_NAME["LLaMA loss"]):
        for training in claim.trainings:
            (record,) = map(recorded, training.runs)
            assert f"{record.settings['steps']} steps" in training.setting
            assert {round(row["parameters"] / 1e6, 1) for row in record.rows} == {0.8}
            assert record.settings["batch"] * record.settings["seq_len"] == 768


def test_the_trainings_are_what_the_claims_say() -> None:
    """Without σReparam, the entropy collapses in each training. Models of 2 layers with small first weights learn."""
    for row in recorded("sigma-reparam").where(arm="pre"):
        assert min(value for _, value in row["courses"]["normalised_entropy"]) < 0.05
    small = recorded("small-weights")
    assert all(has_learned(row["loss"], small.text.unigram) for row in small.rows)


# The verdicts


def edited(monkeypatch: pytest.MonkeyPatch, claim: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Outcome:
    """The outcome of a claim, after a change of all rows of its records."""

    def other(name: str) -> Run:
        record = recorded(name)
        rows = tuple(change({"seed": record.settings["seed"], **row}) for row in record.rows)
        return msgspec.structs.replace(record, rows=rows)

    monkeypatch.setattr(estimates, "recorded", other)
    return decide(BY_NAME[claim])


def where(found: dict[str, Any], **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A change of the rows that have some values."""
    return lambda row: {**row, **values} if found.items() <= row.items() else row


def least(entropies: tuple[float, float, float]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {**row, "courses": {"normalised_entropy": [(1, 1.0), (50, entropies[row["seed"]])]}}


def stages(*courses: tuple[int, float, float]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Courses of all trainings: steps with the rank and the condensation."""
    ranks, shares = ([(course[0], course[at]) for course in courses] for at in (1, 2))
    return lambda row: {**row, "courses": {"qk_rank": ranks, "condensation": shares}}


def reparam(entropy: float, *losses: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The smallest entropy with σReparam, and its loss for each seed. Both are 0.2 and 3 without it."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        with_it = row["arm"] == "sigma-reparam"
        course = [(1, 1.0), (50, entropy if with_it else 0.2)]
        loss = losses[row["seed"]] if with_it else 3.0
        return {**row, "loss": loss, "courses": {"normalised_entropy": course}}

    return change


def growth(*factors: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The factor of the perplexity for each seed, at the longest length. It is 1 at the others."""
    return lambda row: {**row, "change": math.log(factors[row["seed"]]) if row["length"] == 512 else 0.0}


def gain(*nats: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """How much lower the loss of SwiGLU is than that of the other activations, for each seed."""
    swiglu = [2.0 - each for each in nats]
    return lambda row: {**row, "losses": swiglu if row["step"] in ("ffn", "cs336", "llama") else [2.0, 2.0, 2.0]}


@pytest.mark.parametrize(
    ("claim", "change", "verdict"),
    [
        ("post-norm fails", where({"arm": "post"}, loss=3.0), "holds if"),
        ("post-norm fails", where({}, loss=3.0), "refuted"),
        ("post-norm fails", where({}, loss=3.12), "holds"),
        ("pre-norm trains", where({"arm": "pre", "layers": 24}, loss=3.2), "holds if"),
        ("pre-norm trains", where({"arm": "pre"}, loss=None), "refuted"),
        ("pre-norm speed", where({"arm": "pre"}, losses=[[0, 6.0], [10, 1.0]]), "holds"),
        ("entropy collapse", least((0.30, 0.31, 0.32)), "holds"),
        ("entropy collapse", least((0.60, 0.61, 0.62)), "refuted"),
        ("entropy collapse", least((0.30, 0.50, 0.71)), "within noise"),
        ("rank collapse", stages((1, 15.0, 0.0), (50, 1.0, 0.0)), "holds"),
        ("rank stage", stages((1, 15.0, 0.0), (50, 9.0, 0.0)), "refuted"),
        # the neurons condense before the rank falls, after it falls, and while it stays
        ("condensation stage", stages((1, 15.0, 0.0), (50, 15.0, 0.7), (100, 5.0, 0.7)), "holds"),
        ("condensation stage", stages((1, 15.0, 0.0), (50, 5.0, 0.1), (100, 5.0, 0.7)), "refuted"),
        ("condensation stage", stages((1, 15.0, 0.0), (50, 15.0, 0.0), (100, 15.0, 0.7)), "holds"),
        ("σReparam loss", reparam(0.4, 2.0, 2.1, 2.2), "holds"),
        ("σReparam loss", reparam(0.4, 3.3, 3.4, 3.5), "refuted"),
        ("σReparam loss", reparam(0.4, 2.9, 2.0, 3.9), "within noise"),
        ("σReparam entropy", reparam(0.4, 2.0, 2.0, 2.0), "holds"),
        ("σReparam entropy", reparam(0.1, 2.0, 2.0, 2.0), "refuted"),
        ("learned length", where({"method": "learned"}, loss=2.0), "refuted"),
        ("RoPE length", where({"method": "rope"}, loss=None), "refuted"),
        ("learned perplexity", where({"method": "learned"}, loss=2.0, change=math.log(5.9)), "holds"),
        ("learned perplexity", where({"method": "learned"}, loss=2.0, change=math.log(4.0)), "refuted"),
        ("ALiBi perplexity", growth(1.4, 1.41, 1.39), "holds if"),
        ("ALiBi perplexity", growth(1.1, 1.2, 1.5), "within noise"),
        ("ALiBi perplexity", growth(1.1, 1.11, 1.09), "refuted"),
        ("YaRN extension", growth(1.1, 1.11, 1.09), "holds if"),
        ("activation loss", where({"step": "cs336"}, losses=[2.05, 1.98, 2.11]), "holds if"),
        # no effect, and a tenth of the claimed effect, both without noise
        ("activation loss", gain(0.0, 0.0, 0.0), "refuted"),
        ("activation loss", gain(0.008, 0.009, 0.01), "refuted"),
        ("activation loss", gain(0.09, 0.095, 0.085), "holds"),
        ("activation loss", gain(0.3, 0.095, -0.2), "within noise"),
    ],
)
def test_the_verdict_follows_from_the_figures(
    claim: str, change: Callable[[dict[str, Any]], dict[str, Any]], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edited(monkeypatch, claim, change).verdict == verdict


def test_figures_by_hand() -> None:
    """The mean and the interval of a figure, from the recorded rows and a published quantile."""
    changes = [
        next(row["change"] for row in recorded(name).rows if (row["method"], row["length"]) == ("rope", 256))
        for name in positions.RUNS
    ]
    half = STUDENT_2 * statistics.stdev(changes) / math.sqrt(3)
    mean = statistics.fmean(changes)
    result = decide(BY_NAME["RoPE perplexity"]).results[1]
    assert (result.setting, result.seeds) == ("256 tokens", 3)
    assert [result.figure, result.low, result.high] == pytest.approx([math.exp(mean + end) for end in (0, -half, half)])
    rise = estimates.perplexity_rise(positions.RUNS, "rope", 256)
    assert rise[:3] == pytest.approx([math.exp(mean + end) - 1 for end in (0, -half, half)])

    gelu, swiglu = (
        next(row["losses"] for row in recorded("gpt2-to-llama").rows if row["step"] == step)
        for step in ("heads", "ffn")
    )
    logarithms = [new - old for new, old in zip(swiglu, gelu, strict=True)]
    assert decide(BY_NAME["activation loss"]).results[0].figure == pytest.approx(
        math.exp(statistics.fmean(logarithms)) - 1
    )

    rows = [[row for row in recorded("sigma-reparam").rows if row["lr"] == 0.1][first::3] for first in range(3)]
    assert [[(row["arm"], row["seed"]) for row in pair] for pair in rows] == [
        [("pre", seed), ("sigma-reparam", seed)] for seed in range(3)
    ]
    ratio = math.prod(new["loss"] / old["loss"] for old, new in rows) ** (1 / 3)
    assert decide(BY_NAME["σReparam loss"]).results[1].figure == pytest.approx(ratio)


def test_a_figure_within_noise_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here that of the design in which SwiGLU gains 0.09 nats with one seed and loses as many with another."""
    noisy = where({"step": "llama − ffn"}, losses=[2.118, 2.226, 2.053])
    shown = figures_text(edited(monkeypatch, "activation loss", noisy))
    assert [part.partition(" (")[0][-1] for part in shown.split("; ")] == ["✓", "✓", "?"]


def test_steps_until_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """One reaches 2.5 at step 150, the other at step 200. Then the other way round."""
    quick, slow = [[0, 4.0], [100, 3.0], [200, 2.0]], [[0, 4.0], [100, 3.5], [200, 2.5]]
    rows = tuple({"arm": arm, "layers": 3, "losses": losses} for arm, losses in (("quick", quick), ("slow", slow)))
    record = msgspec.structs.replace(recorded("depth-12"), rows=rows)
    monkeypatch.setattr(estimates, "recorded", lambda name: record)
    assert estimates.steps_ratio("any", "quick", "slow", 3) == (pytest.approx(150 / 200), None, None, 1)
    assert estimates.steps_ratio("any", "slow", "quick", 3).mean == pytest.approx(200 / 150)


# The pages


def table_row(page: str, name: str) -> list[str]:
    """The words of a line that begins with this name in the recorded screen of a guide."""
    screen = (GUIDES / page).read_text(encoding="utf-8").partition('title="recorded"')[2].partition("\n```\n")[0]
    return next(line.split() for line in screen.splitlines() if line.startswith(f"  {name} "))


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_the_guide_shows_the_recorded_losses_of_longer_texts(method: str) -> None:
    rows = list(recorded("length-0").where(method=method))
    shown = ["–" if row["loss"] is None else f"{row['loss']:.3f}" for row in rows]
    assert table_row("past-the-training-length.md", method)[1 : len(shown) + 1] == shown


@pytest.mark.parametrize("step", ["norm", "biases", "positions", "heads", "ffn"])
def test_the_guide_shows_the_recorded_losses_of_designs(step: str) -> None:
    (row,) = recorded("gpt2-to-llama").where(step=step)
    words = table_row("from-gpt2-to-llama.md", step)
    half = f"{row['high'] - row['change']:.3f}"
    assert words[1:-1][: len(row["about"].split())] == row["about"].split()
    at = words.index("±")
    assert words[at - 2 : at + 2] == [f"{row['loss']:.3f}", f"{row['change']:+.3f}".replace("-", "−"), "±", half]


def test_the_guide_shows_the_recorded_losses_of_deep_models() -> None:
    page = (GUIDES / "why-post-norm-fails.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    shown = {tuple(cells[:4]) for cells in lines if len(cells) == 5 and cells[0].isdigit()}
    losses: dict[tuple[int, str, float], list[str]] = {}
    for name in DYNAMICS:
        for row in recorded(name).rows:
            losses.setdefault((row["layers"], row["arm"], row["lr"]), []).append(f"{row['loss']:.3f}")
    assert shown == {(f"{n}", arm, f"{lr:g}", ", ".join(found)) for (n, arm, lr), found in losses.items()}
    assert all(recorded(name).command in page for name in DYNAMICS)


# The tool


def test_the_tool_records_an_answer() -> None:
    """The record has the smallest or largest value of some probes at each step, no times, and can be read again."""
    spec = importlib.util.spec_from_file_location("record_textbook", ROOT / "tools" / "record_textbook.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    for command, fields in (("dynamics", dynamics), ("extrapolate", extrapolate), ("ablate", ablate_document)):
        assert set(tool.KEPT[command]) <= {field.name for field in fields.FIELDS}

    record = recorded("depth-24")
    text = {"data": "markov:4,1,0", "settings": record.settings}
    machine = {**record.machine, "llmbench": "0.1", "memory_bytes": 1}
    probes = {
        "1": {"normalised_entropy": [[0.9, 0.5], [0.7, 0.8]], "qk_rank": [[9.0, 8.0], []], "condensation": [0.1, None]},
        "2": {"normalised_entropy": [[0.4, 0.9], [0.9, 0.9]], "qk_rank": [[9.0, 7.0], []], "condensation": [0.0, 0.2]},
    }
    courses = {
        "normalised_entropy": [[1, 0.5], [2, 0.4]],
        "qk_rank": [[1, 8.0], [2, 7.0]],
        "condensation": [[1, 0.1], [2, 0.2]],
    }
    training = {**record.rows[0], "probes": probes, "seconds": 1.0}
    kept = tool.run_of("llmbench dynamics", {"inputs": text, "environment": machine, "trainings": [training]})
    assert msgspec.json.decode(tool.text_of(kept), type=Run).rows == ({**record.rows[0], "courses": courses},)
    assert (kept.llmbench, kept.machine) == ("0.1", record.machine)
    assert kept.text.name == "markov:4,1,0"
