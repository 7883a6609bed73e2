"""`llmbench profile`, `bench` and `diff`: rows by the schema, files, refusals. The measuring commands run in one
process of their own, where kernels are not interpreted."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llmbench.bench.experiments import EXPERIMENTS
from llmbench.bench.extra_candidates import EXTRA_CANDIDATES
from llmbench.bench.pieces import PIECES, find_piece
from llmbench.bench.profile import target_of
from llmbench.bench.profile.by_op import Recording
from llmbench.cli import run
from llmbench.errors import LLMBenchError, install_hint
from llmbench.measure import environment
from llmbench.measure.results import Row, read
from llmbench.model.implementations import IMPLEMENTATIONS
from llmbench.report import plots
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import MoE

Capture = pytest.CaptureFixture[str]

ALONE = [name for name in EXPERIMENTS if name != "collectives"]
"""Experiments that run in one process."""
SMALL = ["--model", "smollm2-135m", "--seq", "24", "--batch", "1"]
MODELS = {"mla": ["--model", "deepseek-v2-lite", "--seq", "24"], "moe": ["--seq", "8"], "loss": ["--seq", "8"]}
PROFILES = {f"profile {name}": ["profile", name, *MODELS.get(name, SMALL)] for name in PIECES}
TRACED = ["profile", "block", *SMALL, "--pass", "both", "--by", "kernel", "--trace", "trace.json"]
BENCHES = {name: ["bench", name, "--output", f"{name}.jsonl"] for name in ALONE}

MANY = """
import contextlib, functools, gc, json, sys, torch
from llmbench.bench.experiments import experiment
from llmbench.bench import profile
from llmbench.cli import run
from llmbench.measure import environment, reference
from llmbench.measure.clock import CpuClock
environment.commit = lambda root: "0" * 40
experiment.QUICK = experiment.QUICK.fixed(3)  # these tests read rows, not times
profile.profile = functools.partial(profile.profile, pace=experiment.QUICK)
measured = reference.measure_references(CpuClock(), torch.float32, budget_s=0.05)
def measure_references(clock, dtype, **options):
    assert (clock.device.type, dtype) == ("cpu", torch.float32)
    return measured  # one machine has the same rates in all commands
reference.measure_references = profile.measure_references = measure_references
for name, arguments in json.load(sys.stdin).items():
    gc.collect()
    gc.freeze()
    with open(name + ".out", "w") as out, contextlib.redirect_stdout(out):
        code = run(arguments)
    assert code == 0, (name, code)
gc.unfreeze()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the JSON of every command as NAME.out, and the files that the commands wrote."""
    where = tmp_path_factory.mktemp("measured")
    commands = {**PROFILES, "traced": TRACED, **BENCHES}
    commands = {name: [*arguments, "--device", "cpu", "--format", "json"] for name, arguments in commands.items()}
    commands["norms.table"] = ["bench", "norms", "--device", "cpu"]
    commands["block.table"] = ["profile", "block", *SMALL, "--device", "cpu"]
    commands["norm.table"] = ["profile", "norm", "--device", "cpu", "--by", "kernel"]
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    clean["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # this process resumes files with as many threads
    done = subprocess.run(
        [sys.executable, "-c", MANY], input=json.dumps(commands), cwd=where, env=clean, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return where


@pytest.fixture(autouse=True)
def _one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that writes a file and the one that resumes it see the same commit."""
    monkeypatch.setattr(environment, "commit", lambda root: "0" * 40)


def answer(folder: Path, name: str) -> dict[str, Any]:
    """The answer of a command."""
    document: dict[str, Any] = json.loads((folder / f"{name}.out").read_text())
    return document


def as_rows(rows: list[dict[str, Any]]) -> list[Row]:
    """JSON rows as rows of a result file."""
    return [msgspec.convert({k: v for k, v in row.items() if k != "derived"}, Row) for row in rows]


@pytest.mark.parametrize("name", PIECES)
def test_every_piece_is_profiled(folder: Path, name: str) -> None:
    document = answer(folder, f"profile {name}")
    assert document["schema"] == "llmbench.profile/2"
    assert document["environment"]["device"] == "cpu"
    assert document["reference_measurements"]["matmul"]["work"] == 2 * 1024**3
    rows = as_rows(document["implementations"])
    assert rows[-1].implementation == "standard"
    assert rows[-1].status == "ok"
    for row, shown in zip(rows, document["implementations"], strict=True):
        assert row.case["piece"] == name
        assert (row.status, shown["derived"]["seconds"]) == ("ok", row.seconds)
        assert shown["derived"]["share_of_limit"] > 0
        assert shown["derived"]["peak_bytes"] >= row.extra["input_bytes"]
        assert shown["derived"]["prediction_error"] == pytest.approx(row.predicted_s / row.seconds - 1)
    assert document["implementations"][-1]["derived"]["speedup"] == 1.0


def test_kernels_are_joined_to_ops(folder: Path) -> None:
    """Every product of the op table has kernels, forward and backward. The predictions sum to the row's."""
    document = answer(folder, "traced")
    ops = {op["op"]: op for op in document["ops"]}
    for name in ("attention.q_proj", "attention.o_proj", "ffn.gate_proj", "ffn.down_proj"):
        products = {
            launch["backward"]: launch["runs"]
            for launch in ops[f"layers.{{}}.{name}"]["launches"]
            if launch["kernel"] in ("aten::mm", "aten::addmm")
        }
        assert products == {False: 1, True: 2}, name
    (attended,) = (
        launch
        for launch in ops["layers.{}.attention.core"]["launches"]
        if launch["kernel"] == "aten::_scaled_dot_product_flash_attention_for_cpu"
    )
    assert attended["runs"] == 1
    predicted = sum(op["predicted_s"] or 0.0 for op in document["ops"])
    assert predicted == pytest.approx(document["implementations"][0]["predicted_s"])
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]


def quick_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process profile with few samples and small reference measurements."""
    from llmbench.bench import profile
    from llmbench.bench.experiments.experiment import QUICK
    from llmbench.measure.reference import Sizes

    importlib.import_module("llmbench.model.implementations.kernels")  # loaded as conftest needs them
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    small = functools.partial(profile.profile, pace=QUICK, sizes=Sizes(64, 2**16, 10))
    monkeypatch.setattr(profile, "profile", small)


def test_a_missing_trace_is_reported_after_the_answer(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_profiles(monkeypatch)
    trace = tmp_path / "trace.json"
    commands = ["profile", "attention", *SMALL, "--device", "cpu", "--trace", str(trace)]
    assert run([*commands, "--impl", "sdpa-cudnn", "--by", "kernel"]) == 3
    out, err = capsys.readouterr()
    assert "standard" in out
    assert "no kernel times: sdpa-cudnn is n/a" in out
    assert err.startswith("error: no trace: sdpa-cudnn is n/a")
    assert not trace.exists()
    assert run([*commands, "--impl", "standard"]) == 0
    assert capsys.readouterr().err == f"wrote {trace}\n"
    assert json.loads(trace.read_text())["traceEvents"]

    class Lazy:
        def export_chrome_trace(self, path: str) -> None:
            """Write nothing, as torch's profiler does where it cannot write."""

    with pytest.raises(LLMBenchError, match="the profiler wrote no trace"):
        Recording([], Lazy()).save(trace)


def test_the_help_lists_every_name() -> None:
    for command, names in (
        ("bench", EXPERIMENTS),
        ("profile", (*PIECES, *IMPLEMENTATIONS, *EXTRA_CANDIDATES)),
    ):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert run([command, "--help"]) == 0
        words = set(re.findall(r"[a-z-]+", re.sub(r"-\n *", "-", out.getvalue())))
        assert set(names) <= words, set(names) - words


@pytest.mark.parametrize("name", ALONE)
def test_every_experiment_runs(folder: Path, name: str) -> None:
    document = answer(folder, name)
    assert document["schema"] == "llmbench.bench/2"
    rows = as_rows(document["rows"])
    assert {row.experiment for row in rows} == {name}
    assert {row.status for row in rows} <= {"ok", "n/a"}, [row.reason for row in rows]
    assert sum(row.status == "ok" for row in rows) >= 3
    for row in rows:
        if row.status == "n/a":
            assert any(lack in str(row.reason) for lack in ("GPU", "positions"))
    written = read(folder / f"{name}.jsonl")
    assert {row.key: row for row in rows} == written.by_key()
    assert written.damaged == []
    (header,) = written.headers
    assert (header.command, header.inputs["experiment"]) == ("bench", name)


def test_equal_parameters_are_equal(folder: Path) -> None:
    """Equal within the rounding of a gated width to 64."""
    for row in as_rows(answer(folder, "activations")["rows"]):
        assert row.extra["parameters"] == pytest.approx(2 * 4 * 192 * 192, rel=0.05)


def test_heads_have_the_caches_they_should(folder: Path) -> None:
    """8 heads of 32 at width 256 in fp32, worked out by hand."""
    by_name = {row.implementation: row.extra for row in as_rows(answer(folder, "heads")["rows"])}
    assert {name: figures["kv_bytes_per_token"] for name, figures in by_name.items()} == {
        "MHA": 2 * 8 * 32 * 4,
        "GQA": 2 * 2 * 32 * 4,
        "MQA": 2 * 32 * 4,
        "MLA": (128 + 16) * 4,
    }
    assert by_name["MHA"]["parameters"] == 4 * 256 * 256
    assert by_name["GQA"]["parameters"] == 2 * 256 * 256 + 2 * 256 * 64
    batches = [by_name[name]["largest_batch"] for name in ("MHA", "MLA", "GQA", "MQA")]
    assert batches == sorted(batches)


def test_tables_describe_themselves(folder: Path) -> None:
    bench, profile = ((folder / f"{name}.table.out").read_text() for name in ("norms", "norm"))
    for text in (bench, profile):
        assert "reference measurements of this run" in text
        assert re.search(r"predicted time \((ms|µs)\)", text)
        assert "datasheet" not in text  # a CPU has none, and an empty column is left out
    assert "quick preset, with the shapes for a CPU" in bench
    assert "defaults on a CPU are small" in profile
    assert "time of standard by op and kernel" in profile


def test_the_headline_of_profile_describes_the_whole_model(folder: Path) -> None:
    """The model as it was named, not as it is reduced to the piece. The default of `moe` says what was left out."""
    lines = (folder / "block.table.out").read_text().splitlines()
    assert any(line.startswith("smollm2-135m · 30 layers · ") and "vocab 49152" in line for line in lines)
    moe = find_piece("moe")
    target = target_of(moe, None, seq_len=8, batch=1, dtype=None, direction="forward", device="cpu")
    experts, whole = (spec.layers["block"].ffn for spec in (target.model, load_bundled("olmoe-1b-7b")))
    assert isinstance(experts, MoE)
    assert isinstance(whole, MoE)
    assert f"{experts.num_experts} of {whole.num_experts} experts" in target.change
    assert f"{experts.num_experts_per_tok} of {whole.num_experts_per_tok} per token" in target.change
    named = target_of(
        moe, load_bundled("olmoe-1b-7b"), seq_len=8, batch=1, dtype=None, direction="forward", device="cpu"
    )
    assert (named.change, named.model) == ("", load_bundled("olmoe-1b-7b"))
    assert named.setting.spec.layers == named.model.layers


def test_memory_is_near_what_was_predicted(folder: Path) -> None:
    """Where the op table counts all weights, states, caches and activations, the peak is near its prediction."""
    cases = {("train", None, None), ("generate", None, None), ("heads", "phase", "decode")}
    cases |= {("textbook", "run", run) for run in ("style train", "decode 1", "decode 16")}
    for name, field, value in cases:
        rows = [row for row in answer(folder, name)["rows"] if field is None or row["case"][field] == value]
        assert rows
        for row in rows:
            values = row["derived"]
            assert values["peak_bytes"] == pytest.approx(values["need_bytes"], rel=0.2), (name, row["implementation"])


def refusal(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """The stderr of a command that refuses and writes no answer."""
    assert run([*arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["profile", "attention", "--impl", "flsh"], ["unknown implementation `flsh`", "did you mean `flash`"]),
        (["profile", "atention"], ["unknown piece `atention`", "did you mean `attention`"]),
        (["profile", "decode", "--device", "cpu", "--pass", "both"], ["decode: only --pass forward is supported"]),
        (["profile", "glu", "--model", "gpt2"], ["gpt2 has no gated feed-forward", "--model"]),
        (["profile", "rope", "--model", "gpt2"], ["gpt2 has no rotary positions"]),
        (["profile", "moe", "--model", "llama2-7b"], ["llama2-7b has no experts"]),
        (["profile", "model", "--model", "t5-base"], ["with an encoder"]),
        (
            ["profile", "model", "--model", "gpt2", "--seq", "2048"],
            ["its learned positions cover only 1,024"],
        ),
        (["profile", "norm", "--set", "hidden_size=8"], ["--set changes a model", "--model"]),
        (["profile", "norm", "--device", "meta"], ["cannot be timed"]),
        (
            ["profile", "norm", "--device", "cpu", "--trace", "no/such/trace.json"],
            ["no/such/trace.json", "no such folder"],
        ),
        (["bench", "norm"], ["unknown experiment `norm`", "did you mean `norms`"]),
        (["profile", "norm", "--device", "cpu", "--trace", "."], ["--trace . is a folder", "give the path of a file"]),
        (["profile", "norm", "--device", "cpu", "-o", "."], ["--output . is a folder"]),
        (["profile", "norm", "--trace", "x" * 300], ["the file cannot be written"]),
        (
            ["bench", "norms", "-o", "a.jsonl", "--resume", "b.jsonl"],
            ["--output and --resume cannot be used together", "--output starts a new result file"],
        ),
        (["bench", "norms", "--resume", "nowhere.jsonl"], ["no such file", "--output"]),
        (["bench", "textbook", "--seq", "8", "--device", "cpu"], ["does not take --seq", "fixed shapes"]),
        (
            ["bench", "norms", "--batch", "2"],
            ["does not take --batch", "it takes --model (hidden size)"],
        ),
        (["bench", "norms", "--set", "hidden_size=8"], ["--set changes a model", "--model"]),
        (["bench", "moe", "--model", "gpt2"], ["gpt2 has no experts"]),
        (["bench", "norms", "--plot", "curve.jpg"], ["unknown picture format", ".png"]),
        (["bench", "norms", "--plot", "no/such/curve.png"], ["no such folder"]),
        (["bench", "norms", "--plot", "."], ["--plot . is a folder"]),
        (["bench", "activations", "--device", "cpu", "--plot", "a.png"], ["activations has no sweep to plot"]),
        (["bench", "norms", "--device", "cpu", "--plot", "a.png"], ["norms has no sweep to plot in the quick preset"]),
        (["diff", "nowhere.jsonl", "nowhere.jsonl"], ["cannot read nowhere.jsonl"]),
    ],
)
def test_wrong_input_is_explained(
    arguments: list[str], says: list[str], capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    err = refusal(capsys, *arguments)
    for text in says:
        assert text in err


def test_missing_packages_are_named(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    gone = {"matplotlib", "torch"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    for command in (["profile", "norm"], ["bench", "norms"]):
        assert "needs PyTorch" in refusal(capsys, *command, code=3)
    gone.remove("torch")
    monkeypatch.chdir(tmp_path)
    assert install_hint("plot") in refusal(capsys, "bench", "norms", "--plot", "curve.png", code=3)


def test_a_results_file_is_never_overwritten_or_mixed(folder: Path, capsys: Capture) -> None:
    path = str(folder / "norms.jsonl")
    before = Path(path).read_bytes()
    assert "contains results, which would be lost" in refusal(capsys, "bench", "norms", "--device", "cpu", "-o", path)
    assert "other inputs" in refusal(capsys, "bench", "activations", "--device", "cpu", "--resume", path)
    for shape in (["--seq", "8"], ["--model", "gpt2"], ["--model", "gpt2", "--set", "num_hidden_layers=2"]):
        assert "other inputs" in refusal(capsys, "bench", "norms", "--device", "cpu", *shape, "--resume", path)
    assert Path(path).read_bytes() == before


def test_a_finished_run_is_only_shown_again(folder: Path) -> None:
    path = folder / "positions.jsonl"
    rows = read(path).by_key()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert run(["bench", "positions", "--device", "cpu", "--resume", str(path), "--format", "json"]) == 0
    shown = json.loads(out.getvalue())["rows"]
    assert {row.key: row for row in as_rows(shown)} == rows
    assert shown == answer(folder, "positions")["rows"]  # compared with the reference measurements of their session
    assert f"{len(rows)} rows in " in err.getvalue()


def test_curves_are_drawn_after_the_answer(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module("llmbench.model.implementations.kernels")  # loaded as conftest needs them
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows, picture = tmp_path / "attention.jsonl", tmp_path / "curve.svg"
    rows.write_bytes((folder / "attention.jsonl").read_bytes())
    again = ["bench", "attention", "--device", "cpu", "--resume", str(rows)]
    assert run([*again, "--notes"]) == 0  # on a busy machine, notes on noise come before others
    out = capsys.readouterr().out
    assert "time, causal, forward" in out
    assert "the first of 4 panels is shown; --plot draws all panels" in out
    assert "flash, sdpa ran aten::_scaled_dot_product_flash_attention_for_cpu\n" in out
    assert "autograd" not in out
    assert run([*again, "--plot", str(picture)]) == 0
    assert f"wrote {picture}" in capsys.readouterr().err
    assert picture.read_text().startswith("<?xml")

    def full(*args: Any, **options: Any) -> None:
        raise LLMBenchError("cannot write curve.svg: No space left on device")

    monkeypatch.setattr(plots, "save", full)
    assert run([*again, "--plot", str(picture)]) == 2
    out, err = capsys.readouterr()
    assert "causal, backward" in out.lower()
    assert "No space left" in err


@pytest.mark.parametrize("lost", [False, True])
def test_ctrl_c_keeps_rows_and_says_how_to_continue(
    lost: bool, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmbench.bench.experiments.experiment as frame

    path = tmp_path / "norms.jsonl"
    whole = frame.run

    def interrupted(*args: Any, **options: Any) -> Any:
        for count, row in enumerate(whole(*args, **options)):
            if lost and count == 1:
                path.unlink()
            yield row
            if count == 1:
                raise KeyboardInterrupt

    importlib.import_module("llmbench.model.implementations.kernels")  # loaded as conftest needs them
    monkeypatch.setattr(frame, "run", interrupted)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert run(["bench", "attention", "--device", "cpu", "-o", str(path), "--format", "json"]) == 130
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 2
    present = tmp_path / "norms-1.jsonl" if lost else path
    assert f"--resume {present}" in err
    assert f"2 rows in {present}" in err
    assert len(read(present).rows) == 2


def test_joules_are_shown_where_a_counter_measures_them(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmbench.measure import check_and_time
    from llmbench.measure.energy import Energy

    quick_profiles(monkeypatch)
    arguments = ["profile", "norm", *SMALL, "--device", "cpu"]
    assert run(arguments) == 0
    assert "energy" not in capsys.readouterr().out
    monkeypatch.setattr(check_and_time, "energy_of", lambda call, device: Energy(joules=3.0, calls=2, seconds=1.0))
    assert run([*arguments, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["implementations"]
    assert {row["derived"]["joules_per_call"] for row in rows} == {1.5}
    assert run([*arguments, "--format", "csv"]) == 0
    assert ",joules_per_call," in capsys.readouterr().out.partition("\n")[0]
