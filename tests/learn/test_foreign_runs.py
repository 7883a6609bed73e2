"""Folders of runs that others wrote or changed: they are refused in words, and nothing outside of them changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
import torch
from torch import Tensor

from llmbench.cli import application
from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.learn import checkpoint
from llmbench.learn.data import corpus
from llmbench.learn.faults import DivergedError
from llmbench.learn.memory import step_bytes
from llmbench.learn.metrics import Metrics, StepRow
from llmbench.learn.probe import Moment, Probe
from llmbench.learn.session import METRICS, Session, new_session, resumed_session
from llmbench.learn.state import newest
from llmbench.model.weights.checkpoint import tensors_in, write_tensors
from llmbench.sizing.params import count_parameters
from tests.learn.small import settings, spec

CPU = torch.device("cpu")
LAST = "step-00000010"
States = dict[str, Tensor]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that stopped after ten of its twenty steps."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 134)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmbench.learn.session.measured_peak", lambda device, settings: (1e11, "fixed"))
        run = new_session(spec(), corpus(str(folder / "book.txt")), settings(), device=CPU, folder=folder / "run")
        run.run(stop_at=10)
    return folder / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def resume(run: Path) -> Session:
    return resumed_session(run, device=CPU)


def change_tensors(path: Path, change: Callable[[States], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in tensors_in(path).items()}
    change(tensors)
    path.unlink()
    write_tensors(path, tensors)


def change_state(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / LAST / "state.json"
    state = json.loads(path.read_bytes())
    change(state)
    path.write_text(json.dumps(state))


KEY = "layers.1.ffn.up_proj.weight/"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({KEY + "exp_avg": torch.zeros(3)}), "exp_avg does not fit"),
        (lambda t: t.update({KEY + "step": torch.zeros(5)}), "step does not fit"),
        (lambda t: t.update({KEY + "exp_avg": t[KEY + "exp_avg"].bfloat16()}), "exp_avg does not fit"),
        (lambda t: t.update({KEY + "exp_avg": t[KEY + "exp_avg"].long()}), "exp_avg does not fit"),
        (lambda t: t.pop(KEY + "step"), "step is missing"),
        (lambda t: t.pop(KEY + "exp_avg_sq"), "exp_avg_sq is missing"),
        (lambda t: t.clear(), "is missing"),
        (lambda t: t.update({KEY + "momentum_buffer": t[KEY + "exp_avg"]}), "has no state .*momentum_buffer"),
        (lambda t: t.update({"x\x1b[31m": torch.zeros(1)}), r"has no state x\\x1b"),
        (lambda t: t[KEY + "exp_avg"][0].fill_(float("nan")), "cannot compute"),
        (lambda t: t[KEY + "exp_avg_sq"].sub_(1), "exp_avg_sq has a number that the optimizer cannot compute"),
        (lambda t: t[KEY + "step"].fill_(-1e30), "cannot compute"),
        (lambda t: t[KEY + "step"].fill_(11), "step is 11, but the state is that of step 10"),
        (lambda t: t[KEY + "step"].fill_(2.5), "step is 2.5"),
    ],
)
def test_states_that_the_optimizer_does_not_have_are_refused(
    run: Path, change: Callable[[States], object], message: str
) -> None:
    change_tensors(run / LAST / "optimizer.safetensors", change)
    with pytest.raises(SpecError, match=message):
        resume(run)


def test_a_weight_without_a_gradient_has_no_state(run: Path) -> None:
    session = resume(run)
    del session.optimizer.state[session.model.final_norm.weight]
    checkpoint.save(run, session.model, session.optimizer, msgspec.structs.replace(session.state, step=11))
    again = resume(run)
    assert again.state.without_states == ["final_norm.weight"]
    assert not again.optimizer.state[again.model.final_norm.weight]
    assert again.optimizer.state[again.model.embedding.weight].keys() == {"step", "exp_avg", "exp_avg_sq"}


def test_states_of_another_optimizer_are_refused(run: Path) -> None:
    change_state(run, lambda state: state["settings"].update(optimizer="sgd"))
    with pytest.raises(SpecError, match="momentum_buffer is missing"):
        resume(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"embedding.weight": t["embedding.weight"].to(torch.int8)}), "has the format int8"),
        (lambda t: t["embedding.weight"][3].fill_(float("nan")), "NaN or infinite"),
        (lambda t: t["embedding.weight"][3].fill_(float("inf")), "NaN or infinite"),
    ],
)
def test_weights_that_no_model_has_are_refused(run: Path, change: Callable[[States], object], message: str) -> None:
    change_tensors(run / LAST / "model.safetensors", change)
    with pytest.raises(SpecError, match=message):
        checkpoint.load_model(run / LAST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(schema="other/9"), "the schema is 'other/9'"),
        (lambda s: s.update(step=9), "the state of step 9, but the name of its folder says step 10"),
        (lambda s: s["settings"].update(steps=9), "step 10 is after the last step"),
        (lambda s: s["settings"].update(seed=-5), "seed: must be from 0 to"),
        (lambda s: s["settings"].update(seed=2**64), "seed: must be from 0 to"),
        (lambda s: s["settings"].update(batch=10**18), "batch: must be from 1 to"),
        (lambda s: s["settings"].update(warmup=10**400), "state of a checkpoint"),
        (lambda s: s["settings"].update(lr=1e308), "lr: must be above 0 and less than"),
        (lambda s: s["settings"].update(lr_end=-5), "lr_end: must be from 0 to 1"),
        (lambda s: s["settings"].update(dropout=5), "dropout: must be at least 0 and less than 1"),
    ],
)
def test_states_that_no_run_has_are_refused(
    run: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_state(run, change)
    with pytest.raises(LLMBenchError, match=message):
        resume(run)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"step":"a","tokens":1}', "line 14: .*`int`"),
        (b'{"step":11}', "line 14: .*`tokens`"),
        (b'{"step":-5,"tokens":1}', "line 14: "),
        (b'{"step":true,"tokens":1}', "line 14: "),
        (b'{"step":11,"tokens":1,"validation_loss":null}', "line 14: "),
        (b'{"step":11,"tokens":1,"loss":1e400}', "line 14: "),
        (b'{"step":11,"tokens":' + b"9" * 400 + b"}", "line 14: "),
        (b'{"step":11,"tokens":1,"validation_loss":' + b"9" * 400 + b"}", "line 14: "),
        (b"[1]", "line 14: "),
        (b"[" * 100_000, "line 14: "),
        (b"\xff\xfe", "line 14: "),
        (b"", "line 14: "),
    ],
)
def test_damaged_rows_are_refused_with_their_line(run: Path, line: bytes, message: str) -> None:
    with (run / METRICS).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(SpecError, match=message):
        resume(run).run(stop_at=11)


def test_a_file_with_too_many_rows_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbench.learn.metrics.MOST_ROWS", 12)
    with pytest.raises(SpecError, match="has more than 12 rows"):
        resume(run).run(stop_at=11)


def test_a_file_in_the_place_of_a_temporary_folder_is_removed(run: Path) -> None:
    (run / ".unfinished-step-00000011").write_text("left by another program")
    resume(run).run(stop_at=11)
    assert newest(run).name == "step-00000011"


def test_a_run_names_only_steps_that_are_saved(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = resume(run)
    monkeypatch.setattr(checkpoint, "write_tensors", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        session.run(stop_at=15)
    assert session.state.step == 10
    assert newest(run) == run / LAST


def test_nothing_outside_of_the_folder_is_written(run: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    for name in (".metrics.jsonl.new", ".unfinished-step-00000011", "step-00000001", "metrics-1.jsonl"):
        (run / name).symlink_to(outside if "step" in name else thesis)
    resume(run).run(stop_at=11)
    assert thesis.read_text() == "mine"
    assert (outside / "kept").is_dir()
    (run / METRICS).unlink()
    (run / METRICS).symlink_to(thesis)
    with pytest.raises(LLMBenchError, match=r"metrics\.jsonl is a link"):
        resume(run).run(stop_at=12)
    (run / METRICS).unlink()
    os.mkfifo(run / METRICS)
    with pytest.raises(LLMBenchError, match="it is a pipe"):
        resume(run).run(stop_at=12)
    (run / METRICS).unlink()
    (run / "tensorboard").symlink_to(outside)
    with pytest.raises(LLMBenchError, match="tensorboard is a link"):
        resume(run).run(stop_at=12, tensorboard=True)
    assert list(outside.iterdir()) == [outside / "kept"]
    assert thesis.read_text() == "mine"


def test_a_folder_belongs_to_one_run(run: Path) -> None:
    first, second = resume(run), resume(run)
    with pytest.raises(LLMBenchError, match="another process trains in"):
        first.run(stop_at=11, on_step=lambda row: second.run(stop_at=11))
    first.run(stop_at=11)
    with pytest.raises(LLMBenchError, match=r"the newest checkpoint of .* is step-00000011, not that of step 10"):
        second.run(stop_at=12)
    with pytest.raises(LLMBenchError, match="is step-00000011, not that of step 10") as caught:
        resume(run / LAST).run()
    assert f"--resume {run}`" in str(caught.value.hint)


@pytest.mark.parametrize("fault", ["removed", "replaced", "changed"])
def test_lost_metrics_are_written_to_another_file(run: Path, fault: str) -> None:
    path = run / METRICS

    def damage(row: StepRow) -> None:
        if row.step != 12:
            return
        if fault == "changed":
            path.write_bytes(b"")
        else:
            path.unlink()
        if fault == "replaced":
            path.write_text("notes of another program")

    session = resume(run)
    session.run(stop_at=15, on_step=damage)
    (note,) = session.notes
    assert note.startswith(f"{path} was {fault}")
    assert note.endswith(f"all rows are in {run / 'metrics-1.jsonl'}")
    assert Metrics.read(run / "metrics-1.jsonl") == session.rows
    assert [row["step"] for row in session.rows if "loss" in row] == list(range(1, 16))


def test_a_model_with_another_vocabulary_than_the_text_is_refused(run: Path) -> None:
    """The weights fit the smaller vocabulary, but bytes of the text do not."""
    change_state(run, lambda state: state["spec"].update(vocab_size=65))
    keep = {
        name: tensor[:65] for name, tensor in tensors_in(run / LAST / "model.safetensors").items() if len(tensor) > 65
    }
    change_tensors(run / LAST / "model.safetensors", lambda tensors: tensors.update(keep))
    with pytest.raises(SpecError, match="a vocabulary of 65 tokens, but that of the text has 256"):
        resume(run)


def test_a_compiler_starts_only_if_the_user_says_so(run: Path) -> None:
    change_state(run, lambda state: state["settings"].update(compile=True))
    with pytest.raises(LLMBenchError, match="starts a compiler") as caught:
        resume(run)
    assert "--setting compile=true" in str(caught.value.hint)
    assert resumed_session(run, device=CPU, compile=True).state.settings.compile


def test_no_more_threads_run_than_the_machine_has(run: Path) -> None:
    change_state(run, lambda state: state.update(threads=4096))
    try:
        session = resume(run)
    finally:
        torch.set_num_threads(1)
    assert session.state.threads <= max(os.cpu_count() or 1, torch.get_num_threads())
    assert "the run had 4,096 threads" in session.notes[0]


def test_a_checkpoint_outside_of_a_run_is_not_resumed(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run / LAST, tmp_path / "model")
    checkpoint.load_model(copy)
    with pytest.raises(LLMBenchError, match="outside of the folder of a run"):
        resume(copy)


def test_numbers_that_are_not_finite_are_never_saved(run: Path) -> None:
    """The loss of step 15 is finite, and its update is not. The checkpoint of step 15 would be the newest."""

    class Break(Probe):
        def updated(self, moment: Moment) -> None:
            if moment.step == 15:
                with torch.no_grad():
                    moment.model.layers[1].ffn.up_proj.weight[3, 5] = float("nan")

    with pytest.raises(DivergedError, match=r"^step 15: the weight layers\.1\.ffn\.up_proj\.weight") as caught:
        resume(run).run(stop_at=15, probes=[Break()])
    assert str(caught.value.hint).endswith(f"the last good checkpoint is {run / LAST}")
    assert newest(run) == run / LAST


def test_a_full_disk_leaves_no_parts_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, tensors: States) -> None:
        path.write_bytes(b"part")
        raise OSError(28, "No space left on device")

    book = tmp_path / "book.txt"
    book.write_text("a pattern of words " * 200)
    new = new_session(spec(), corpus(str(book)), settings(), device=CPU, folder=tmp_path / "run")
    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(LLMBenchError, match="No space left"):
        new.run(stop_at=1)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [METRICS, "step-00000000"]
    with pytest.raises(LLMBenchError, match="No space left"):
        new_session(spec(), corpus(str(book)), settings(), device=CPU, folder=tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt", "run"]


def test_too_little_memory_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = tmp_path / "book.txt"
    book.write_text("a pattern of words " * 200)
    with pytest.raises(CannotRunError, match=r"the training needs at least [0-9,.]+ (TiB|GiB)"):
        new_session(spec(), corpus(str(book)), settings(batch=2**30), device=CPU)
    small = ["train", "nanogpt-cpu", "--set", "num_hidden_layers=1", "--data", str(book), "--seq", "8", "--steps", "1"]
    for problem in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: tried to allocate 8 bytes"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("llmbench.learn.session.build", Mock(side_effect=problem))
            assert application.run(small) == 3
        assert "error: too little memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "nanogpt-cpu", "--batch", "1000000", "--set", "hidden_size=16", "--set", "head_dim=4"],
        ["ablate", "nanogpt-cpu", "--batch", "16384", "--seq", "64", "--seeds", "1"],
    ],
    ids=["train", "ablate"],
)
def test_activations_and_logits_count(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both batches need more than the memory, and their inputs of the layers alone need less."""
    free = 6 * 2**30
    monkeypatch.setattr("llmbench.learn.memory.free_bytes", lambda device: free)
    assert application.run([*words, "--data", "markov:4,1,0"]) == 3
    assert "too little memory: the training needs at least" in capsys.readouterr().err


def test_the_memory_of_a_step_has_weights_states_and_activations() -> None:
    """Weights, gradients and two states are 16 bytes per weight. All but the weights and the states grow with the
    micro-batch, and the batch alone changes nothing."""
    weights = count_parameters(spec()).total
    assert step_bytes(spec(), settings()) > 12 * weights
    few, many = (step_bytes(spec(), settings(batch=batch)) for batch in (64, 128))
    assert many - few == pytest.approx(few - 12 * weights, rel=0.05)
    assert step_bytes(spec(), settings(batch=128, accumulate=2)) == pytest.approx(few, abs=4 * weights)
    assert step_bytes(spec(), settings(batch=64, optimizer="sgd", beta1=0.0)) == pytest.approx(few - 8 * weights)


def test_missing_metrics_are_noticed_when_a_run_goes_on(run: Path) -> None:
    (run / METRICS).unlink()
    metrics = Metrics(run / METRICS, after=10)
    metrics.close()
    assert metrics.notes == [
        f"{run / METRICS} has no rows of the steps up to 10; they can be in another file beside it"
    ]


def test_a_loss_that_no_run_writes_is_refused(run: Path) -> None:
    with (run / METRICS).open("a") as file:
        file.write('{"step": 3, "tokens": 1, "validation_loss": 1e308}\n')
    with pytest.raises(SpecError, match="it is not a row of figures"):
        Metrics(run / METRICS, after=10)


def test_the_newest_checkpoint_stays_beside_folders_with_later_names(run: Path) -> None:
    for step in (400, 600):
        (run / f"step-{step:08}").mkdir()
    model = checkpoint.load_model(run / LAST)
    optimizer = torch.optim.SGD(model.parameters())
    state = msgspec.json.decode((run / LAST / "state.json").read_bytes(), type=checkpoint.State)
    checkpoint.save(run, model, optimizer, msgspec.structs.replace(state, step=11))
    assert (run / "step-00000011" / "model.safetensors").exists()
