"""A training run: it learns, stops and goes on to the bit, survives a kill, names what diverged, and runs on ranks."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llmbench.errors import CannotRunError, LLMBenchError, SpecError, UnsupportedError
from llmbench.learn import checkpoint
from llmbench.learn.data import corpus, corpus_of
from llmbench.learn.faults import DivergedError
from llmbench.learn.loop import optimizer_for, train, validation_loss
from llmbench.learn.metrics import Metrics, StepRow
from llmbench.learn.probe import Moment, Probe
from llmbench.learn.session import METRICS, Session, new_session, resumed_session
from llmbench.learn.state import checkpoints, newest, read_state
from llmbench.model.create import build
from llmbench.model.routing import record_routing
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override
from tests.learn.small import settings, spec

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def session(book: Path, folder: Path | None, **changes: Any) -> Session:
    return new_session(spec(), corpus(str(book)), settings(**changes), device=CPU, folder=folder)


def contents(folder: Path) -> dict[str, bytes]:
    """The tensors of a run's last checkpoint, and its state without times."""
    last = newest(folder)
    state = json.loads((last / "state.json").read_bytes())
    state.pop("seconds")
    files = {name: (last / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")}
    return files | {"state": json.dumps(state).encode()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(book: Path, tmp_path: Path, optimizer: Any) -> None:
    session(book, tmp_path / "whole", optimizer=optimizer).run()
    session(book, tmp_path / "halves", optimizer=optimizer).run(stop_at=10)
    assert newest(tmp_path / "halves").name == "step-00000010"
    resumed_session(tmp_path / "halves", device=CPU).run()
    assert contents(tmp_path / "whole") == contents(tmp_path / "halves")
    whole, halves = (Metrics.read(tmp_path / name / METRICS) for name in ("whole", "halves"))

    def numbers(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """The rows of the steps, and the validations at steps that both runs have."""
        rows = [row for row in rows if "validation_loss" not in row or (row["step"] % 5 == 0 and row["step"] != 10)]
        return [(row["step"], row.get("loss"), row.get("grad_norm"), row.get("validation_loss")) for row in rows]

    assert numbers(whole) == numbers(halves)
    assert [row["step"] for row in whole if "loss" in row] == list(range(1, 21))


def test_a_run_that_stopped_before_its_first_checkpoint_has_each_row_once(book: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(row: StepRow) -> None:
        if row.step == 3:
            raise StoppedError

    session(book, tmp_path / "whole", steps=5).run()
    with pytest.raises(StoppedError):
        session(book, tmp_path / "halves", steps=5).run(on_step=stop)
    resumed_session(tmp_path / "halves", device=CPU).run()
    whole, halves = (
        [
            {name: row[name] for name in row if name not in ("seconds", "tokens_per_s", "mfu")}
            for row in Metrics.read(tmp_path / name / METRICS)
        ]
        for name in ("whole", "halves")
    )
    assert whole == halves
    assert [row["step"] for row in whole] == [0, 1, 2, 3, 4, 5, 5]


def test_dropout_masks_do_not_depend_on_an_interruption(book: Path) -> None:
    data, losses, rates = corpus(str(book)), [], settings(dropout=0.3)
    for parts in ([(0, 6)], [(0, 2), (2, 6)]):
        model = build(spec(vocab_size=256), seed=0)
        optimizer, found = optimizer_for(model, rates), []
        for after, stop_at in parts:
            torch.manual_seed(after)
            before = torch.get_rng_state()
            found += train(model, data, rates, optimizer=optimizer, after=after, stop_at=stop_at).losses
            assert torch.equal(before, torch.get_rng_state())
        losses.append(found)
    assert losses[0] == losses[1]
    assert losses[0] != train(build(spec(vocab_size=256), seed=0), data, settings(), stop_at=6).losses


def test_a_run_learns_and_its_metrics_are_consistent(book: Path, tmp_path: Path) -> None:
    run = session(book, tmp_path / "run", steps=60, lr=1e-2)
    trained = run.run()
    assert trained.validations[0].validation_loss == pytest.approx(math.log(256), abs=0.2)
    assert trained.validations[-1].validation_loss < run.data.unigram - 1.0
    rows = [row for row in Metrics.read(tmp_path / "run" / METRICS) if "loss" in row]
    assert [row["tokens"] for row in rows] == [64 * step for step in range(1, 61)]
    assert all(row["clipped"] == (row["grad_norm"] > 1.0) for row in rows)
    assert {row["clipped"] for row in rows} == {True, False}
    assert all(0 < row["mfu"] < 2 for row in rows)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    again = validation_loss(checkpoint.load_model(newest(tmp_path / "run")), run.data, run.state.settings)
    assert again == trained.validations[-1].validation_loss


def test_the_gradients_of_micro_batches_are_those_of_the_batch(book: Path) -> None:
    data = corpus(str(book))
    runs = [
        train(build(spec(vocab_size=256), seed=0), data, settings(accumulate=parts, steps=3)).losses
        for parts in (1, 2, 4)
    ]
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], rel=1e-5)


def test_probes_see_gradients_before_clipping_and_weights_after_the_update(book: Path) -> None:
    class Look(Probe):
        first: torch.Tensor

        def __init__(self) -> None:
            self.norms: list[float] = []

        def gradients(self, moment: Moment) -> None:
            self.norms.append(float(torch.nn.utils.get_total_norm([w.grad for w in moment.model.parameters()])))
            self.first = moment.model.embedding.weight.detach().clone()

        def updated(self, moment: Moment) -> dict[str, float]:
            return {"moved": float((moment.model.embedding.weight.detach() - self.first).abs().max())}

    data, probe = corpus(str(book)), Look()
    trained = train(build(spec(vocab_size=256), seed=0), data, settings(clip=0.01, steps=3), probes=[probe])
    assert probe.norms == [row.grad_norm for row in trained.steps]
    assert all(row.clipped and row.as_json()["moved"] > 0 for row in trained.steps)
    unseen = train(build(spec(vocab_size=256), seed=0), data, settings(clip=0.01, steps=3))
    assert unseen.losses == trained.losses


def test_only_matrices_and_tables_have_weight_decay() -> None:
    model = build(spec())
    decayed, plain = optimizer_for(model, settings()).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {weight.dim() for weight in decayed["params"]} == {2}
    assert {weight.dim() for weight in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_the_largest_seed_of_a_model_also_trains(book: Path) -> None:
    largest = settings(steps=1, seed=2**64 - 1, dropout=0.1)
    trained = train(build(spec(vocab_size=256), seed=largest.seed), corpus(str(book)), largest)
    assert math.isfinite(trained.losses[0])


def test_the_biases_of_experts_have_no_weight_decay() -> None:
    """They are one tensor with two dimensions for all experts of a layer."""
    model = build(load_bundled("gpt-oss-20b"), device="meta")
    names = {weight: name for name, weight in model.named_parameters()}
    decayed, plain = (
        [names[weight] for weight in group["params"]] for group in optimizer_for(model, settings()).param_groups
    )
    assert not [name for name in decayed if "bias" in name or "norm" in name]
    assert "layers.0.ffn.experts.up_bias" in plain
    assert "layers.0.ffn.experts.up_proj" in decayed


def test_a_run_that_diverges_names_the_layer_and_keeps_its_checkpoint(book: Path, tmp_path: Path) -> None:
    class Break(Probe):
        def updated(self, moment: Moment) -> None:
            if moment.step == 7:
                with torch.no_grad():
                    moment.model.layers[1].ffn.up_proj.weight[3, 5] = float("inf")

    run = session(book, tmp_path / "run")
    with pytest.raises(DivergedError, match=r"^step 8: the output of layers\.1\.ffn\.up_proj is the first") as caught:
        run.run(probes=[Break()])
    assert (caught.value.step, caught.value.exit_code) == (8, 1)
    assert newest(tmp_path / "run").name == "step-00000005"
    assert all(
        weight.isfinite().all() for weight in checkpoint.load_model(tmp_path / "run" / "step-00000005").parameters()
    )


def test_a_gradient_that_is_not_finite_is_named(book: Path) -> None:
    model = build(spec(vocab_size=256))
    model.layers[0].attention.q_proj.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DivergedError, match=r"the gradient of layers\.0\.attention\.q_proj\.weight is not"):
        train(model, corpus(str(book)), settings())


def test_nothing_is_overwritten(book: Path, tmp_path: Path) -> None:
    session(book, tmp_path / "run").run(stop_at=1)
    with pytest.raises(LLMBenchError, match="exists already") as caught:
        session(book, tmp_path / "run")
    assert f"llmbench train --resume {tmp_path / 'run'}" in caught.value.hint
    (tmp_path / "notes").mkdir()
    with pytest.raises(LLMBenchError, match="exists already"):
        session(book, tmp_path / "notes")
    resumed_session(tmp_path / "run", device=CPU).run()
    finished = resumed_session(tmp_path / "run", device=CPU)
    with pytest.raises(LLMBenchError, match="it has all of its 20 steps"):
        finished.run()
    book.write_text("another text " * 500)
    with pytest.raises(LLMBenchError, match="has changed since"):
        resumed_session(tmp_path / "run", device=CPU)


def test_two_checkpoints_are_kept_and_damage_is_refused(book: Path, tmp_path: Path) -> None:
    session(book, tmp_path / "run").run()
    kept = [path.name for path in checkpoints(tmp_path / "run")]
    assert kept == ["step-00000015", "step-00000020"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted([*kept, METRICS])
    from safetensors.torch import load_file, save_file

    last = tmp_path / "run" / kept[1]
    tensors, model = load_file(last / "model.safetensors"), checkpoint.load_model(last)
    assert tensors.keys() == {name for name, _ in model.named_parameters()}
    assert all(torch.equal(tensors[name], weight) for name, weight in model.named_parameters())
    whole = (last / "model.safetensors").read_bytes()
    (last / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(SpecError, match="truncated or damaged"):
        checkpoint.load_model(last)
    (last / "model.safetensors").write_bytes(whole)
    states = load_file(last / "optimizer.safetensors")
    states["final_norm.weight/exp_avg"] = states["final_norm.weight/exp_avg"][:-1].clone()
    save_file(states, last / "optimizer.safetensors")
    with pytest.raises(SpecError, match=r"final_norm\.weight/exp_avg does not fit the weight"):
        checkpoint.load_optimizer(last, model, optimizer_for(model, settings()))
    state = json.loads((last / "state.json").read_bytes())
    state["spec"]["hidden_size"] = 2**20
    (last / "state.json").write_text(json.dumps(state))
    with pytest.raises(SpecError, match="but the spec describes"):
        checkpoint.load_model(last)
    (last / "state.json").write_text(json.dumps(state | {"threads": 10**9}))
    with pytest.raises(SpecError, match="1000000000 threads"):
        read_state(last)
    (last / "state.json").write_text('{"step": 1}')
    with pytest.raises(SpecError, match="is not the state of a checkpoint"):
        read_state(last)


KILLED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llmbench.learn.data import corpus
from llmbench.learn.session import new_session
from tests.learn.small import settings, spec
book, folder = sys.argv[1:]
run = new_session(spec(), corpus(book), settings(steps=100_000, validate_every=1, validation_batches=1),
                  device=torch.device("cpu"), folder=Path(folder))
print("started", flush=True)
run.run()
"""


def kill_at_random(book: Path, folder: Path, delays: list[float]) -> None:
    """Start a run per delay, kill it after so many seconds, and check that its last checkpoint is whole."""
    for index, delay in enumerate(delays):
        run = folder / f"run{index}"
        command = [sys.executable, "-c", KILLED, str(book), str(run)]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        before = newest(run)
        resumed = resumed_session(run, device=CPU)
        after = resumed.state.step
        assert before.name == f"step-{after:08d}"
        resumed.run(stop_at=after + 2)
        rows = [row["step"] for row in Metrics.read(run / METRICS) if "loss" in row]
        assert rows == list(range(1, after + 3))


def test_a_killed_run_leaves_a_whole_checkpoint(book: Path, tmp_path: Path) -> None:
    kill_at_random(book, tmp_path, [0.13])


RANKED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import llmbench.learn.session as sessions
from llmbench.cli.train_document import document
from llmbench.learn.data import corpus
from llmbench.measure.environment import environment
from llmbench.measure.ranks import join
from tests.learn.small import settings, spec
sessions.measured_peak = lambda device, settings: (1e11, "fixed")
book, out = sys.argv[1], Path(sys.argv[2])
ranks, device = join("any", torch.device("cpu"), "train")
found = {}
for sharding in ("ddp", "fsdp"):
    chosen = settings(steps=6, accumulate=2, clip=0.5, sharding=sharding)
    run = sessions.new_session(spec(), corpus(book), chosen, device=device, folder=out / sharding, ranks=ranks)
    first = run.run(stop_at=3)
    rest = sessions.resumed_session(out / sharding, device=device, ranks=ranks).run()
    found[sharding] = [first.losses + rest.losses, rest.validations[-1].validation_loss]
    if ranks.first:
        row, answer = first.steps[-1], document(run, first, {}, "", environment(device))
        found[sharding] += [row.mfu / row.tokens_per_s, answer.blocks[0].lines[0]]
print(json.dumps(found))
"""


def test_two_ranks_train_like_one(book: Path, tmp_path: Path) -> None:
    """With the whole model on each rank, and with a part of each weight. Both runs stop and go on after three steps."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RANKED, str(book), str(tmp_path)],
            env={**os.environ, **where, "RANK": rank, "LOCAL_RANK": rank},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0]
    found, other = map(json.loads, said)
    assert all(found[name][:2] == other[name] for name in found)
    alone = session(book, tmp_path / "alone", steps=6, accumulate=2, clip=0.5).run()
    row = alone.steps[-1]
    assert row.mfu is not None
    weights = dict(checkpoint.load_model(newest(tmp_path / "alone")).named_parameters())
    for sharding, (losses, validation, mfu_of_a_token, said_of_speed) in found.items():
        assert mfu_of_a_token == pytest.approx(row.mfu / row.tokens_per_s / 2, rel=1e-9)
        assert " · 2 processes · " in said_of_speed
        assert said_of_speed.endswith(" of 2 × 100.00 GFLOP/s (fixed)")
        assert losses == pytest.approx(alone.losses, abs=1e-6)
        assert validation == pytest.approx(alone.validations[-1].validation_loss, abs=1e-6)
        theirs = checkpoint.load_model(newest(tmp_path / sharding)).named_parameters()
        assert all(torch.allclose(weights[name], weight, atol=1e-5) for name, weight in theirs)
        assert (tmp_path / sharding / "step-00000006" / "optimizer.safetensors").stat().st_size > 4 * 2 * sum(
            weight.numel() for weight in weights.values()
        )


def test_the_last_validation_of_a_long_text_reads_a_part(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """18 of the 37 windows, at equal distances."""
    data, short = corpus(str(book)), settings(steps=1)
    model = build(spec(vocab_size=data.vocab_size), seed=0)
    monkeypatch.setattr("llmbench.learn.loop.LAST_VALIDATION", 18 * 16 + 5)
    text = data.validation.tolist()
    read = [text[first : first + 16] for first in (index * 37 // 18 * 16 for index in range(18))]
    seen: list[list[int]] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0].tolist()))
    validation_loss(model, data, short)
    assert (len(data.windows(16)[0]), seen) == (37, read)


def test_the_load_of_experts_is_balanced_on_request(book: Path) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    small |= {"head_dim": 8, "intermediate_size": 32, "vocab_size": 256, "published_parameters": None}
    experts = override(load_bundled("mixtral-8x7b"), small)
    data, imbalances, losses = corpus(str(book)), [], []
    for factor in (0.0, 1.0):
        model = build(experts, seed=0)
        with torch.no_grad():
            model.layers[0].ffn.router.weight[3] += 1.0  # most tokens choose one expert
        run = train(model, data, settings(balance=factor, steps=30, lr=1e-2, seq_len=16))
        losses.append(run.losses)
        with record_routing(model) as routings, torch.no_grad():
            model(data.windows(16)[0])
        imbalances.append(float(max(routings["layers.0.ffn.router"].load)))
    assert losses[0][0] == losses[1][0]  # the reported loss is that of the tokens alone
    assert losses[0][5] != losses[1][5]
    assert imbalances[1] < imbalances[0] - 0.05
    with pytest.raises(CannotRunError):
        train(build(spec(vocab_size=256)), data, settings(balance=0.01))


def test_models_that_do_not_predict_the_next_token_are_refused(book: Path) -> None:
    with pytest.raises(UnsupportedError, match="does not predict the next token"):
        train(build(spec(vocab_size=256, causal=False)), corpus(str(book)), settings())


def test_a_batch_that_cannot_be_divided_is_refused(book: Path) -> None:
    with pytest.raises(LLMBenchError, match="cannot be divided into 3 equal micro-batches"):
        settings(accumulate=3)
    short = corpus_of("short", b"abc" * 40)
    with pytest.raises(LLMBenchError, match="its validation part has 12 tokens, too few for a sequence of 16"):
        train(build(spec(vocab_size=256)), short, settings())
