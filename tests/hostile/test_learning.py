"""Strangers' tokenizers, checkpoints and files: the learning commands do not crash, hang or state a wrong figure."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from llmbench.cli import run
from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.learn.continuation import continuation, stop_tokens
from llmbench.learn.data import corpus
from llmbench.learn.evaluate import evaluate
from llmbench.learn.exercises.child import _raised
from llmbench.learn.exercises.runner import exercises_in
from llmbench.learn.faults import NotFiniteError
from llmbench.learn.markov import markov_source
from llmbench.learn.memory import loss_bytes
from llmbench.learn.session import new_session
from llmbench.learn.state import newest
from llmbench.learn.tokenizer import ByteTokenizer, FileTokenizer, read_tokens
from llmbench.model.create import build
from tests.learn.small import settings, spec

Capture = pytest.CaptureFixture[str]
WORDS = ["[UNK]", "[PAD]", "the", "cat", "sat", "a"]


def tokenizer(folder: Path, **changes: Any) -> FileTokenizer:
    """A tokenizer whose tokens are words, with other parts."""
    vocab = {word: number for number, word in enumerate(WORDS)}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document | changes))
    return FileTokenizer(path)


def replace(content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": "a"}, "content": content}


@pytest.mark.parametrize(
    "changes",
    [
        {"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 2 * 10**9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 1,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        },
    ],
    ids=["truncation", "padding"],
)
def test_a_text_is_neither_cut_nor_padded(changes: dict[str, Any], tmp_path: Path) -> None:
    found = tokenizer(tmp_path, **changes).encode(b"the cat sat the cat")
    assert found.tokens.tolist() == [2, 3, 4, 2, 3]
    assert found.scored_bytes == len(b" cat sat the cat")


def test_bytes_per_token_are_unknown_if_tokens_lose_text(tmp_path: Path) -> None:
    for text in (b"the cat\nsat", b"the dog sat"):
        found = tokenizer(tmp_path).encode(text)
        assert found.scored_bytes is None
        assert "changes the text from character" in found.note


def test_a_tokenizer_that_fails_ends_with_a_message(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"the": 0}, "unk_token": "missing"}
    with pytest.raises(SpecError, match="does not work"):
        tokenizer(tmp_path, model=model).encode(b"dog")
    panics = tokenizer(tmp_path, decoder={"type": "Strip", "content": "a", "start": 5, "stop": 5})
    with pytest.raises(SpecError, match="does not work"):
        list(panics.decoded(iter([5, 5, 5]), after=[]))
    with pytest.raises(SpecError, match="is not a byte"):
        list(ByteTokenizer().decoded(iter([300]), after=[]))


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_tokenizer_that_lengthens_a_text_without_end_is_refused(part: str, tmp_path: Path) -> None:
    steps = "normalizers" if part == "normalizer" else "decoders"
    tokenizer(tmp_path, **{part: {"type": "Sequence", steps: [replace("aa")] * 7}})
    with pytest.raises(SpecError, match="more than 1,000 times longer"):
        tokenizer(tmp_path, **{part: {"type": "Sequence", steps: [replace("a" * 100)] * 2}})


A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
S = {"SpecialToken": {"id": "x", "type_id": 0}}
"""Items of a template: the first text, the second text, and a special token."""


def template(single: list[Any], *, ids: int = 1, pair: list[Any] | None = None) -> dict[str, Any]:
    special = {"id": "x", "ids": [2] * ids, "tokens": ["the"] * ids}
    pairs = {"pair": pair or [A, B]}
    return {"type": "TemplateProcessing", "single": single, "special_tokens": {"x": special}, **pairs}


def test_a_post_processor_may_add_a_few_tokens(tmp_path: Path) -> None:
    single = template([S, A, S])
    bert = {"type": "BertProcessing", "sep": ["sat", 4], "cls": ["a", 5]}
    for processor, expected in (
        (single, [2, 3, 4, 2]),
        (bert, [5, 3, 4, 4]),
        ({"type": "Sequence", "processors": [bert, single]}, [2, 5, 3, 4, 4, 2]),
    ):
        assert tokenizer(tmp_path, post_processor=processor).encode(b"cat sat").tokens.tolist() == expected


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (template([S] * 300 + [A], ids=300), "add more than 1,000 tokens"),
        (template([A], pair=[A, B] + [S] * 300), "add more than 1,000 tokens"),
        ({"type": "RobertaProcessing", "sep": ["x" * 10**6, 4], "cls": ["a", 5]}, "add more than 1,000 tokens"),
        ({"type": "Sequence", "processors": [template([S, A])] * 300}, "add more than 1,000 tokens"),
        (template([A, A]), "leaves out the text, or repeats it"),
        (template([S]), "leaves out the text, or repeats it"),
        ({"type": "Sequence", "processors": [template([S, A]), template([A], pair=[A, B, B])]}, "or repeats it"),
        (template([A, {"SpecialToken": {"id": ["x"], "type_id": 0}}, {"Sequence": 5}]), "does not work"),
    ],
    ids=["product", "pair", "long", "sequence", "twice", "never", "behind", "types"],
)
def test_a_post_processor_that_multiplies_is_refused(processor: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        tokenizer(tmp_path, post_processor=processor)


def test_tokens_much_longer_than_the_text_are_refused(tmp_path: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"x" * 10_000: 0}, "unk_token": "x" * 10_000}
    with pytest.raises(SpecError, match="more than 1,000 times longer"):
        tokenizer(tmp_path, model=model)
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["x" * 10_000, 0.0], ["a", -1.0]], "byte_fallback": False}
    found = tokenizer(tmp_path, model=unigram)
    assert found.encode(b"aa").tokens.tolist() == [1, 1]
    with pytest.raises(SpecError, match="more than 1,000 times longer than the text"):
        found.encode(b"b b b")


def test_the_tokens_of_a_text_are_not_random(tmp_path: Path) -> None:
    model = {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    found = tokenizer(tmp_path, model=model)
    assert found.encode(b"ab " * 50).tokens.tolist() == [2] * 50


def test_a_tokenizer_that_takes_hours_is_refused(tmp_path: Path) -> None:
    nested = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFD"}] * 9}] * 9}
    assert tokenizer(tmp_path, normalizer=nested).encode(b"the cat").tokens.tolist() == [2, 3]
    nested["normalizers"] *= 2
    with pytest.raises(SpecError, match="more than 100 normalizers"):
        tokenizer(tmp_path, normalizer=nested)
    words = {
        "type": "WordPiece",
        "vocab": {"[UNK]": 0, "a": 1},
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
    }
    assert tokenizer(tmp_path, model=words | {"max_input_chars_per_word": 100}).encode(b"a b").tokens.tolist() == [1, 0]
    with pytest.raises(SpecError, match="words can have more than 1,000 characters"):
        tokenizer(tmp_path, model=words | {"max_input_chars_per_word": 10**9})


def test_ctrl_c_ends_a_slow_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, never = tokenizer(tmp_path), threading.Event()
    monkeypatch.setattr(slow, "_inner", Mock(encode_batch=lambda texts: never.wait()))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    alarm = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            slow.encode(b"the cat")
    finally:
        never.set()
        alarm.join()
        signal.signal(signal.SIGINT, handler)


def test_a_panic_of_the_library_prints_nothing(tmp_path: Path, capfd: Capture) -> None:
    panics = tokenizer(tmp_path, decoder={"type": "Strip", "content": "a", "start": 5, "stop": 5})
    with pytest.raises(SpecError, match="does not work"):
        list(panics.decoded(iter([5, 5, 5]), after=[]))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1, 2, 99999999999999999999]", b"[1, -1]", b"[true]", b"\xff"])
def test_damaged_json_beside_a_model_ends_with_a_message(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(content)
    assert stop_tokens(tmp_path) == frozenset()
    with pytest.raises(SpecError, match="not a JSON list of token numbers"):
        read_tokens(path)


def test_a_model_that_computes_nan_says_so() -> None:
    model = build(spec(vocab_size=64))
    with torch.no_grad():
        model.layers[1].ffn.down_proj.weight.fill_(float("nan"))
    tokens = torch.arange(8)
    for call in (
        lambda: evaluate(model, tokens, window=4),
        lambda: list(continuation(model, tokens, count=3)),
        lambda: list(continuation(model, tokens, count=3, temperature=0.0)),
    ):
        with pytest.raises(NotFiniteError, match=r"the output of layers\.1\.ffn") as refused:
            call()
        assert refused.value.exit_code == 1


def test_another_text_than_that_of_the_checkpoint_is_refused(tmp_path: Path, capsys: Capture) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"the cat sat. " * 40)
    folder = tmp_path / "run"
    new_session(spec(), corpus(str(text)), settings(steps=2), device=torch.device("cpu"), folder=folder)
    assert run(["evaluate", str(folder)]) == 0
    secret = tmp_path / "secret.txt"
    secret.write_bytes(b"my diary. " * 60)
    path = newest(folder) / "state.json"
    state = json.loads(path.read_bytes())
    for source, message in ((secret, "has changed since"), (tmp_path / "none", "is missing")):
        path.write_text(json.dumps(state | {"data": str(source)}))
        capsys.readouterr()
        assert run(["evaluate", str(folder)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "--text" in error


def test_a_text_whose_name_no_checkpoint_can_keep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.txt")
    path.write_bytes(b"the cat sat. " * 40)
    with pytest.raises(LLMBenchError, match="the name of the file is not UTF-8"):
        new_session(spec(), corpus(str(path)), settings(), device=torch.device("cpu"), folder=tmp_path / "run")


@pytest.mark.parametrize("command", ["dynamics", "extrapolate", "ablate"])
def test_a_huge_step_is_refused_before_anything_is_built(command: str, capsys: Capture) -> None:
    for words in (["--seq", "2147483648"], ["--batch", "1000000"]):
        assert run([command, "--data", "markov:2,1,0", *words]) == 2
        assert "has more than 1,048,576 tokens" in capsys.readouterr().err


def test_work_and_memory_are_counted_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(spec(vocab_size=64, positions={"kind": "none"}, max_position_embeddings=None))
    with pytest.raises(LLMBenchError, match="GiB free"):
        next(continuation(model, torch.arange(3), count=2**40))
    monkeypatch.setattr("llmbench.learn.evaluate.MOST_INPUTS", 100)
    with pytest.raises(LLMBenchError, match="have 152 tokens together"):
        evaluate(model, torch.zeros(42, dtype=torch.int64), window=4, stride=1)
    monkeypatch.setattr("llmbench.learn.markov.MOST_PRODUCTS", 100)
    with pytest.raises(LLMBenchError, match="does not converge in time"):
        markov_source("16,1,0").entropy_rate()


@pytest.mark.parametrize("changes", [{"intermediate_size": 2**16}, {"vocab_size": 2**16}], ids=["ffn", "vocabulary"])
def test_a_window_that_needs_more_than_the_free_memory_is_refused(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(spec(**{"hidden_size": 8, "num_hidden_layers": 1, **changes}))
    tokens = torch.zeros(41, dtype=torch.int64)
    monkeypatch.setattr("llmbench.learn.memory.free_bytes", lambda device: 2**24)  # one tensor of 40 tokens has 10 MiB
    with pytest.raises(CannotRunError, match=r"a window of 40 tokens needs at least .* GiB free") as refused:
        evaluate(model, tokens, window=64)
    assert "--seq" in str(refused.value.hint)
    assert len(evaluate(model, tokens, window=8).losses) == 40
    monkeypatch.setattr("llmbench.learn.evaluate.PASS_BYTES", 2 * loss_bytes(model, 8))
    rows: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    evaluate(model, tokens, window=8)
    assert rows == [2, 2, 1]


def test_a_file_of_a_student_is_read_with_care(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    os.mkfifo(path)
    with pytest.raises(SpecError, match="it is a pipe"):
        exercises_in(path)
    path.unlink()
    path.write_text("x = " + "-" * 100_000 + "1")
    with pytest.raises(LLMBenchError, match="nested too deeply"):
        exercises_in(path)

    class BrokenError(Exception):
        def __str__(self) -> str:
            raise ValueError("no text")

    assert _raised(BrokenError(), path, None).message == "BrokenError: its text cannot be computed"


def test_choose_writes_over_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["choose", "--spec", "x.toml", "-o", "x.toml"]) == 2
    assert "are both x.toml" in capsys.readouterr().err
    Path("x.toml").write_text("mine")
    assert run(["choose", "--spec", "x.toml"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("x.toml").read_text() == "mine"


@pytest.mark.parametrize("seed", ["1" + "0" * 40, str(2**64 - 1), "-1"])
def test_a_seed_out_of_range_is_refused_as_it_was_typed(seed: str, capsys: Capture) -> None:
    assert run(["generate", "run", "--seed", seed]) == 2
    shown = seed if len(seed) <= 20 else "a number of 41 characters"
    assert f"{shown} is not between 0 and 2,147,483,648" in capsys.readouterr().err


def test_files_of_proc_are_refused_as_texts(capsys: Capture) -> None:
    assert run(["train", "nanogpt-cpu", "--data", "/proc/self/environ"]) == 2
    assert "it is a file of /proc" in capsys.readouterr().err
