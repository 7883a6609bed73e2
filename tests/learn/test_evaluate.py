"""The loss of a text equals that of transformers, every token is predicted once, and texts continue."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from llmbench import model as models
from llmbench.cli import run
from llmbench.errors import LLMBenchError, SpecError, UnsupportedError
from llmbench.learn.continuation import continuation, stop_tokens
from llmbench.learn.data import corpus
from llmbench.learn.evaluate import evaluate
from llmbench.learn.session import new_session
from llmbench.learn.tokenizer import ByteTokenizer, FileTokenizer, opened, read_tokens
from llmbench.model.create import build
from llmbench.model.generation import generate
from tests.learn.small import settings, spec
from tests.model.test_parity import config_of, saved

FAMILIES = ["gpt2", "llama", "mistral", "qwen3", "stablelm", "gpt_neox", "opt", "bloom", "phi3", "mixtral"]
TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer élan."


def loss_of_transformers(model: Any, tokens: torch.Tensor, window: int, stride: int) -> float:
    """The mean loss over sliding windows, which share one padded batch. Labels of earlier windows are ignored."""
    pairs, end, rows, labels, masks = len(tokens) - 1, 0, [], [], []
    for start in range(0, pairs, stride):
        last = min(start + window, pairs)
        row = tokens[start : last + 1]
        label = torch.where(torch.arange(start, last + 1) > end, row, -100)
        fill = window + 1 - len(row)
        rows.append(torch.nn.functional.pad(row, (0, fill)))
        labels.append(torch.nn.functional.pad(label, (0, fill), value=-100))
        masks.append(torch.nn.functional.pad(torch.ones_like(row), (0, fill)))
        end = last
        if end == pairs:
            break
    with torch.no_grad():
        out = model(torch.stack(rows), attention_mask=torch.stack(masks), labels=torch.stack(labels))
    assert int((torch.stack(labels)[:, 1:] != -100).sum()) == pairs
    return float(out.loss)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_equals_that_of_transformers(family: str, tmp_path: Path) -> None:
    theirs = saved(config_of(family, {}), tmp_path)
    ours = models.load(tmp_path)
    tokens = torch.randint(3, 96, (61,), generator=torch.Generator().manual_seed(2))
    for window, stride in ((16, 16), (16, 5), (60, 60)):
        expected = loss_of_transformers(theirs, tokens, window, stride)
        assert evaluate(ours, tokens, window=window, stride=stride).loss == pytest.approx(expected, abs=1e-5)


def test_every_token_is_predicted_once_from_the_tokens_of_its_window() -> None:
    model = build(spec(vocab_size=64), seed=1)
    tokens = torch.randint(64, (40,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for window, stride in ((8, 8), (8, 3), (39, 39), (50, 1)):
            found = evaluate(model, tokens, window=window, stride=stride)
            done = []
            for target in range(1, 40):
                count = int(found.context[target - 1])
                logits = model(tokens[None, target - count : target])[0, -1]
                done.append(float(torch.nn.functional.cross_entropy(logits, tokens[target])))
                assert count == target if target <= window else window - stride < count <= window
            assert found.losses.tolist() == pytest.approx(done, abs=1e-5)
            rows = found.by_position()
            assert sum(row.tokens for row in rows) == 39
            assert sum(row.tokens * row.loss for row in rows) / 39 == pytest.approx(found.loss)


def test_what_cannot_be_evaluated_is_refused() -> None:
    model, tokens = build(spec(vocab_size=64)), torch.arange(10)
    with pytest.raises(LLMBenchError, match="needs at least 2"):
        evaluate(model, tokens[:1], window=8)
    with pytest.raises(LLMBenchError, match="would leave out tokens"):
        evaluate(model, tokens, window=4, stride=5)
    with pytest.raises(SpecError, match="cover only 64"):
        evaluate(model, torch.zeros(100, dtype=torch.int64), window=65)
    with pytest.raises(SpecError, match="token 64 is not in the vocabulary"):
        evaluate(model, torch.tensor([1, 64]), window=8)
    with pytest.raises(UnsupportedError, match="does not predict the next token"):
        evaluate(build(spec(vocab_size=64, causal=False)), tokens, window=8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of transformers with a tokenizer whose tokens are pieces of words, after a special first token."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE

    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<s>"], initial_alphabet=alphabet)
    inner.train_from_iterator([TEXT], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    saved(config_of("llama", {"vocab_size": 290}), tmp_path / "hub")
    inner.save(str(tmp_path / "hub" / "tokenizer.json"))
    return tmp_path / "hub"


def test_the_tokens_of_a_text_are_those_of_transformers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))(TEXT).input_ids
    model, tokenizer = opened(folder, device=torch.device("cpu"))
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.encode(TEXT.encode()).tokens.tolist() == theirs
    text = folder.parent / "text.txt"
    text.write_text(TEXT)
    assert run(["evaluate", str(folder), "--text", str(text), "--seq", "16", "--stride", "4", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = evaluate(model, torch.tensor(theirs), window=16, stride=4).loss
    assert found["schema"] == "llmbench.evaluate/1"
    assert found["tokens"] == len(theirs) - 1
    assert found["loss"] == expected
    assert found["perplexity"] == pytest.approx(math.exp(expected))
    shares = [theirs.count(token) / len(theirs) for token in set(theirs)]
    assert found["unigram"] == pytest.approx(-math.fsum(share * math.log(share) for share in shares))
    # The special token in front has no bytes, so all bytes of the text are predicted.
    bits = expected * found["tokens"] / math.log(2) / len(TEXT.encode())
    assert found["bits_per_byte"] == pytest.approx(bits)
    numbers = folder.parent / "tokens.json"
    numbers.write_text(json.dumps(theirs))
    assert run(["evaluate", str(folder), "--tokens", str(numbers), "--seq", "16", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["bits_per_byte"]) == (len(theirs) - 1, None)
    assert read_tokens(numbers).tokens.tolist() == theirs
    (folder / "tokenizer.json").unlink()
    assert run(["evaluate", str(folder), "--text", str(text)]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err


def test_a_trained_model_is_evaluated_and_continues_a_text(
    book: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = corpus(str(book))
    session = new_session(
        spec(), data, settings(steps=80, lr=1e-2), device=torch.device("cpu"), folder=tmp_path / "run"
    )
    last = session.run().validations[-1].validation_loss
    assert run(["evaluate", str(tmp_path / "run"), "--seq", "16", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == len(data.validation) - 1
    assert found["loss"] == pytest.approx(last, abs=0.02)  # training leaves out the tokens behind the last window
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2), rel=1e-12)
    assert run(["evaluate", str(tmp_path / "run"), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] == found["loss"]  # the windows are those of the training
    assert run(["evaluate", str(tmp_path / "run")]) == 0
    assert "windows of 16 tokens, as in training, 16 apart" in capsys.readouterr().out
    assert run(["evaluate", str(tmp_path / "run"), "--seq", "16", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert sum(int(row["tokens"]) * float(row["loss"]) for row in rows) / found["tokens"] == pytest.approx(
        found["loss"]
    )
    words = ["generate", str(tmp_path / "run"), "--prompt", "the quick", "--tokens", "150", "--temperature", "0"]
    assert run(words) == 0  # twice as long as the table of positions
    streamed = capsys.readouterr().out
    assert run([*words, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["inputs"]["dtype"] == "float32"
    assert document["environment"]["torch"] == torch.__version__
    (row,) = document["continuations"]
    assert row["tokens"] == 150
    assert streamed == f"the quick{row['text']}\n"
    assert run(["generate", str(tmp_path / "run"), "--prompt", ""]) == 2
    assert "the prompt has no token" in capsys.readouterr().err
    (tmp_path / "empty.txt").touch()
    assert run(["evaluate", str(tmp_path / "run"), "--text", str(tmp_path / "empty.txt")]) == 2
    assert "a loss needs at least 2" in capsys.readouterr().err
    assert run(["evaluate", str(tmp_path)]) == 2
    assert "is neither a folder of `llmbench train`" in capsys.readouterr().err


def test_a_continuation_is_that_of_generation_and_goes_on_when_positions_are_used_up() -> None:
    model = build(spec(vocab_size=64), seed=3, init="xavier")
    prompt = torch.tensor([5, 6, 7])
    drawn = list(continuation(model, prompt, count=100, temperature=0.9, top_k=20, seed=4))
    first = generate(model, prompt[None], max_new_tokens=62, temperature=0.9, top_k=20, seed=4).tokens[0].tolist()
    assert len(drawn) == 100
    assert drawn[:62] == first
    assert drawn[62:] != first[:38]
    stop = frozenset([drawn[10]])
    stopped = list(continuation(model, prompt, count=100, temperature=0.9, top_k=20, seed=4, stops=stop))
    assert stopped == drawn[: drawn.index(drawn[10])]
    with pytest.raises(LLMBenchError, match="the prompt has no token"):
        next(continuation(model, prompt[:0], count=1))


def test_the_stop_token_of_a_checkpoint_is_read(folder: Path) -> None:
    assert stop_tokens(folder) == {2}
    (folder / "generation_config.json").write_text('{"eos_token_id": [4, 5]}')
    assert stop_tokens(folder) == {4, 5}


def test_characters_appear_when_all_of_their_bytes_are_known(folder: Path) -> None:
    for tokenizer in (ByteTokenizer(), FileTokenizer(folder / "tokenizer.json")):
        tokens = tokenizer.encode(TEXT.encode()).tokens.tolist()
        parts = list(tokenizer.decoded(iter(tokens[3:]), after=tokens[:3]))
        assert TEXT.endswith("".join(parts))
        assert len("".join(parts)) > len(TEXT) - 12
        assert not any("\ufffd" in part for part in parts)
