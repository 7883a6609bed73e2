"""The textbook's claims: the rule of the verdicts, our figures compared with figures worked out by hand, and the
commands that the claims name."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from llmbench.cli import COMMANDS, run
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.textbook import CLAIMS, TOPICS
from llmbench.textbook.claim import Bound, Claim, Figure, Measured, Reading, Unit, decide
from llmbench.textbook.models import style
from llmbench.textbook.table import as_json, claimed_text, figure_text, sentence

BY_NAME = {claim.name: claim for claim in CLAIMS}
DECIDED = {claim.name: decide(claim) for claim in CLAIMS}
SIZING = ("params", "flops", "kvcache", "memory", "mfu", "compare", "specs", "textbook")


def claim(claimed: float, *figures: float, bound: Bound = "near", unit: Unit = "ratio") -> Claim:
    """A claim, and the figures that arithmetic gives."""
    ours = tuple(Figure("by hand", lambda figure=figure: figure, f"case {figure}") for figure in figures)
    return Claim(
        name="a", says="a", claimed=claimed, at="here", source="a test", why="b", unit=unit, bound=bound, figures=ours
    )


@pytest.mark.parametrize(
    ("statement", "verdict"),
    [
        (claim(100, 105), "holds"),
        (claim(100, 95), "holds"),
        (claim(100, 106), "refuted"),
        (claim(100, 94), "refuted"),
        (claim(26, 25.9, bound="exact"), "refuted"),
        (claim(26, 26, bound="exact"), "holds"),
        (claim(2, 2.0, 4.0), "holds if"),
        (claim(2, 3.0, 4.0), "refuted"),
        # a change of −50% is the ratio 0.5, of which 5% are 0.025
        (claim(-0.5, -0.52, unit="change"), "holds"),
        (claim(-0.5, -0.53, unit="change"), "refuted"),
        # a gain may be larger
        (claim(-0.5, -0.9, unit="change", bound="or better"), "holds"),
        (claim(2, 5, bound="or better"), "holds"),
        (claim(2, 1.8, bound="or better"), "refuted"),
        (claim(2, 2.01, bound="at most"), "refuted"),
        (claim(2, 2.01, bound="at least"), "holds"),
        (claim(2, 1, 3, bound="between"), "holds if"),
        (claim(2, 2, 3, bound="between"), "holds if"),
        (claim(2, 3, 4, bound="between"), "refuted"),
    ],
)
def test_verdicts_of_computed_figures(statement: Claim, verdict: str) -> None:
    assert decide(statement).verdict == verdict


def test_verdicts_of_measured_figures() -> None:
    """A measured figure has twice the tolerance. It decides only if it was measured at the setting of the claim."""
    statement = replace(claim(2.0), reading=Reading("a", "time ratio", "b", "c"))
    assert decide(statement).verdict == "needs a GPU"
    assert decide(statement, Measured(1.81)).verdict == "holds"
    assert decide(statement, Measured(1.79)).verdict == "refuted"
    smaller = decide(statement, Measured(2.0, "smaller"))
    assert (smaller.verdict, smaller.reason, smaller.results[0].figure) == ("needs a GPU", "smaller", 2.0)
    assert decide(statement, Measured(None, "not run")).reason == "not run"


def test_texts() -> None:
    assert figure_text(-0.635, "change") == "−63.5%"
    assert figure_text(3.9511e-05, "share") == "0.00395%"
    assert [figure_text(value, "yes") for value in (0.0, 1.0)] == ["no", "yes"]
    assert claimed_text(claim(40e9, unit="bytes", bound="at most")) == "≤ 40 GB"
    assert [figure_text(value, "bytes") for value in (103_079_215_104, 1.2e9, 999.6e6)] == ["103 GB", "1.2 GB", "1 GB"]
    assert [figure_text(value, "count") for value in (26, 25_165_824, 25.2e6)] == ["26", "25,165,824", "25.2 million"]
    assert figure_text(3.14e23, "flops") == "3.14 · 10²³ FLOP"
    outcomes = [decide(claim(2, 2)), decide(claim(2, 2)), decide(claim(2, 3))]
    assert sentence(outcomes) == "Of 3 claims, 2 hold, 1 is refuted."


def test_every_claim_is_complete() -> None:
    assert len(BY_NAME) == len(CLAIMS) == sum(len(topic.claims) for topic in TOPICS.values()) >= 60
    assert len({row["says"] + row["at"] for row in as_json(list(map(decide, CLAIMS)))}) >= len(CLAIMS) - 1
    for statement in CLAIMS:
        assert statement.at
        assert statement.source
        assert statement.why.endswith(".")
        assert sum(map(bool, (statement.figures, statement.trainings, statement.reading))) == 1, statement.name
        assert statement.shown_by or statement.figures, statement.name
        settings = [figure.setting for figure in (*statement.figures, *statement.trainings)]
        assert len(set(settings)) == len(settings), statement.name
        assert all(settings) or len(settings) <= 1, statement.name
    order = [statement.settled_by for statement in CLAIMS]
    assert order == sorted(order, key=("arithmetic", "CPU", "GPU").index)


@pytest.mark.parametrize("command", sorted({claim.shown_by for claim in CLAIMS if claim.shown_by}))
def test_commands_of_the_claims(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    assert program == "llmbench"
    assert words[0] in COMMANDS
    if words[0] in SIZING:
        assert run(words) == 0, capsys.readouterr().err


def figures(name: str) -> list[float]:
    return [result.figure for result in DECIDED[name].results]


def test_figures_by_hand() -> None:
    assert figures("score elements") == [32 * 2048**2]
    assert figures("scores in training") == [2 * 12 * 8 * 32 * 2048**2 * 4]
    assert figures("KV elements") == [2 * 8 * 2048 * 768]
    assert figures("MQA cache") == pytest.approx([1 / 12 - 1, 1 / 32 - 1])
    whole = 6_738_415_616
    saved = 2 * 32 * 4096 * 4096
    assert figures("GQA parameters") == pytest.approx([1 - saved * 7 / 8 / whole])
    assert figures("MQA parameters") == pytest.approx([1 - saved * 31 / 32 / whole])
    assert figures("MQA projections") == pytest.approx([(12 + 2) / 36 - 1, (24 + 2) / 48 - 1])
    assert figures("GPT-2 size") == [124_439_808, 124_439_808 + 50257 * 768]
    assert figures("LLaMA-2-7B embedding")[0] == pytest.approx(262_144_000 / whole)
    assert figures("LLaMA-2-7B norm weights") == pytest.approx([266_240 / whole])
    assert figures("attention 4·d²") == [4, 2 + 2 / 4]
    assert figures("LLaMA-style size") == pytest.approx([10_646_784 / 10_745_088 - 1, 9_467_136 / 10_745_088 - 1])
    assert [round(figures(f"RoPE θ{index}")[0], 6) for index in (1, 2, 31)] == [0.749894, 0.562341, 0.000133]
    assert figures("ALiBi slopes") == [2**-8, pytest.approx(2**-3.5), 2**-8]
    assert figures("16 bytes per parameter") == [16, 16, 8]
    assert figures("GPT-3 FLOPs")[1] == pytest.approx(6 * 174.6e9 * 300e9, rel=0.05)
    assert figures("A100 SRAM") == pytest.approx([108 * 128 * 1.41e9 / 1.555e12])
    # Mistral-7B with two feed-forwards instead of one, its other products and the scores of 2,048 tokens
    ffn, others = 32 * 3 * 4096 * 14336, 32 * (2 * 4096 + 2 * 1024) * 4096 + 32000 * 4096
    scores = 32 * 2 * 32 * 128 * 1024.5
    assert figures("MoE compute")[1] == pytest.approx((2 * ffn + others + scores) / (ffn + others + scores), rel=1e-3)
    # at least the probabilities in fp32: 12 layers, 8 sequences, 12 heads
    assert figures("standard at 8,192")[0] > 12 * 8 * 12 * 8192**2 * 4
    assert figures("standard at 4,096")[1] > 12 * 8 * 12 * 4096**2 * 2
    assert figures("teaching code")[1] == pytest.approx(256 / 64 - 1, rel=0.1)


def test_verdicts_of_the_textbook() -> None:
    verdicts = {name: outcome.verdict for name, outcome in DECIDED.items()}
    refuted = {
        "MQA parameters",
        "GPT-2 size",
        "GPT-2 norms",
        "LLaMA-2-7B norms",
        "LLaMA-style size",
        "Mistral-7B heads",
    }
    assert {verdicts[name] for name in refuted} == {"refuted"}
    assert {verdicts[name] for name in ("GQA cache", "GQA parameters", "standard at 8,192")} == {"holds"}
    assert {verdicts[name] for name in ("MoE compute", "MQA cache", "teaching code", "12·L·d²")} == {"holds if"}


def test_the_gpt2_style_is_nanogpt() -> None:
    small, whole = (count_parameters(style("GPT-2", layers=layers)) for layers in (2, 6))
    assert whole.total == 10_745_088
    assert whole.components == count_parameters(load_bundled("nanogpt-shakespeare")).components
    assert small.layers == whole.layers


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["textbook", "models"]) == 0
    assert capsys.readouterr().out.startswith(f"Of {len(TOPICS['models'].claims)} claims, ")
    assert run(["textbook", "modles"]) == 2
    assert "did you mean `models`" in capsys.readouterr().err
