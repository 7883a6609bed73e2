"""The screens of the measuring commands: no line is wider than the terminal, and the essential columns stay."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from llmbench.bench.experiments import EXPERIMENTS, find_experiment, heads
from llmbench.bench.experiments.experiment import Ask, Shape
from llmbench.bench.pieces import PIECES, find_piece
from llmbench.bench.profile import Profile, target_of
from llmbench.bench.results.metrics import Line, MachineLimits
from llmbench.cli import diff as diff_command
from llmbench.cli.bench_document import Measured, document
from llmbench.cli.kernels.check import CHECK
from llmbench.cli.measured import paired_notes
from llmbench.cli.profile import _document as profile_document
from llmbench.measure.memory import MemoryPeak
from llmbench.measure.regressions import diff
from llmbench.measure.results import Row
from llmbench.model.implementations.kernels import NO_MEANING
from llmbench.report.document import Block, Document, View, table
from llmbench.report.render import render
from llmbench.spec.catalog import load_bundled
from tests.measure.rows import ENVIRONMENT, references, results, timed

WIDTHS = (60, 80, 100, 160)
ESSENTIAL = ("time", "spread", "error")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "free_bytes", lambda device: 2**37)


def measured(row: Row, **extra: Any) -> Row:
    """The row with a time, a peak and figures of the usual sizes."""
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    fields |= {"status": "ok", "reason": None, "measurement": timed(*(1e-4 * (10 + n) for n in range(10)))}
    fields |= {"memory": MemoryPeak(added_bytes=123_456_789, by="tensors"), "need_bytes": 98_765_432}
    fields |= {"work_flops": 10**9, "work_bytes": 10**8, "predicted_s": 1.1e-3, "extra": {"tokens": 4096} | extra}
    return Row(**fields)


def bench_document(name: str, shape: Shape = Shape()) -> tuple[Document, list[Row]]:
    """The answer of an experiment on a CPU, with a time in every row but the last one."""
    experiment = find_experiment(name)
    ask = Ask(quick=True, device=CPU, dtype="fp32", shape=shape)
    extra = {column.key: 1_234_567 if column.unit in ("count", "bytes") else 0.789 for column in experiment.columns}
    bare = [
        Row(experiment=name, case=dict(group.case), implementation=own, status="n/a", reason="a reason of some length")
        for group in experiment.groups(ask)
        for own in group.names
    ]
    rows = [*(measured(row, **extra) for row in bare[:-1]), bare[-1]]
    inputs = {"experiment": name}
    return document(experiment, ask, Measured(rows, references(), ENVIRONMENT, {}, []), inputs), rows


def lines_of(answer: Document, width: int, monkeypatch: pytest.MonkeyPatch, *, notes: bool = True) -> list[str]:
    """The lines of an answer in a terminal of that width."""
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    render(answer, "table", out, View(notes=notes))
    return out.getvalue().splitlines()


def fits(answer: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that no line is wider than the terminal."""
    for width in WIDTHS:
        for line in lines_of(answer, width, monkeypatch):
            assert len(line) <= width, line


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "collectives"])
def test_a_screen_of_bench_fits_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = [Shape()]
    if EXPERIMENTS[name].model:
        model = load_bundled("olmoe-1b-7b" if name == "moe" else "llama3.2-3b")
        shapes.append(Shape(model=model, changes=("num_hidden_layers=2",), seq_lens=(64, 128)))
    for shape in shapes:
        answer, _ = bench_document(name, shape)
        fits(answer, monkeypatch)
        for block in answer.blocks:
            assert block.table is None or block.answer, block.headline
        text = " ".join(" ".join(lines_of(answer, 80, monkeypatch, notes=False)).split())
        assert all(heading in text for heading in ESSENTIAL)
        assert text.split(".")[0]
    first = answer.blocks[0]
    assert first.answer
    assert first.headline.startswith(f"{name}: ")
    if name == "textbook":
        assert first.table is not None
        assert first.table.columns[0].heading == "verdict"


@pytest.mark.parametrize("name", PIECES)
def test_a_screen_of_profile_fits_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = find_piece(name)
    target = target_of(piece, None, seq_len=64, batch=None, dtype=None, direction="forward", device="cpu")
    case = {"piece": name, "model": target.model.name}
    rows = [
        measured(Row(experiment="profile", case=case, implementation=impl, status="n/a", reason="none"))
        for impl in (piece.impl, "standard")
    ]
    profile = Profile(rows, MachineLimits(references(), None), ENVIRONMENT, ["a note"])
    answer = profile_document(piece, target, profile, {"by": None})
    fits(answer, monkeypatch)
    assert answer.blocks[0].answer.endswith(".")
    meaningless = profile_document(piece, target, profile._replace(caution=NO_MEANING), {"by": None})
    assert meaningless.blocks[0].answer.startswith(NO_MEANING)
    text = " ".join(lines_of(answer, 80, monkeypatch))
    assert all(heading in text for heading in ESSENTIAL)
    subject = {"norm": "RMSNorm of 4,096 values", "add_norm": "RMSNorm of", "glu": "SwiGLU 11008"}
    assert subject.get(name, "") in text


def test_a_speed_up_that_is_not_the_ratio_of_the_times_has_a_note() -> None:
    """The machine is ten times slower during most samples of one row."""
    case = {"seq_len": 64}
    steady, slowed = (
        Row(experiment="attention", case=case, implementation=name, status="ok", measurement=timed(*samples))
        for name, samples in (("standard", [1e-3] * 10), ("flash", [0.5e-3] * 4 + [5e-3] * 2 + [0.5e-3] * 4))
    )
    drifting = msgspec.structs.replace(
        steady, implementation="drifting", measurement=timed(*[1e-3] * 4, *[3e-3] * 2, *[2e-3] * 4)
    )
    limits = MachineLimits(references(), None)
    assert paired_notes([Line(row, limits, steady) for row in (steady, slowed)]) == []
    base = msgspec.structs.replace(steady, measurement=timed(*[1e-3] * 6, *[9e-3] * 4))
    (note,) = paired_notes([Line(row, limits, base) for row in (base, drifting)])
    assert note.startswith("the speed-up of drifting is not the ratio of the times")


def test_the_check_of_kernels_keeps_the_verdict_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    worst = SimpleNamespace(tensor="dweight", error=3.5e-3, plain_error=2.4e-3, budget=4.7e-3)
    case = "rows=2, width=300, weights=wbf, residual=True"
    row = SimpleNamespace(
        kernel="linear_cross_entropy", dtype=torch.bfloat16, checks=27, case=case, worst=worst, passed=True
    )
    rows: list[Any] = [row]
    answer = Document(
        command="kernels.check", inputs={}, rows_key="kernels", rows=[], blocks=[Block(table=table(CHECK, rows))]
    )
    text = "\n".join(lines_of(answer, 80, monkeypatch))
    for essential in ("verdict", " ok", "error", "3.5e-03", "budget", "4.7e-03"):
        assert essential in text, essential
    fits(answer, monkeypatch)


def test_a_screen_of_diff_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = bench_document("attention")
    before, after = results(*rows[:-2]), results(*rows[1:])
    difference = diff(before, after)
    answer = Document(
        command="diff",
        inputs={},
        rows_key="changes",
        rows=[],
        blocks=[diff_command._block(difference, [], everything=True)],
    )
    fits(answer, monkeypatch)
    assert answer.blocks[0].answer.startswith("The files do not show whether a row became worse. 21 rows are unclear")


def test_times_of_interpreted_kernels_open_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert NO_MEANING not in bench_document("attention")[0].blocks[0].answer
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert bench_document("attention")[0].blocks[0].answer.startswith(NO_MEANING)
