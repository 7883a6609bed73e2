"""The texts that models train on. A token is one byte, so every file has the same vocabulary.

The first 90% of a text are for training, and the last 10% for validation, as in nanoGPT. The batch of a step depends on
the seed and the step only. Two runs with equal seeds therefore see the same batches, whatever their models are, and a
resumed run needs no state of the data.

Dimensions: B sequences, S tokens per sequence, N tokens of a text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmbench.errors import LLMBenchError
from llmbench.learn.markov import source_of
from llmbench.learn.texts import MARKOV_LENGTH, Text, refuse_short, text_of, train_tokens

__all__ = [
    "Corpus",
    "corpus",
    "corpus_of",
    "corpus_of_checkpoint",
    "corpus_of_text",
    "pair_loss",
    "unigram_entropy",
    "unigram_loss",
]

BYTES = 256
"""The vocabulary of a text: all values of a byte."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A text as tokens, in a train part and a validation part.

    - `name`: the name of the text for people: the value of --data, without the folder of a file.
    - `source`: with this name, `corpus` returns the text again. It has the whole path of a file.
    - `train` [N], `validation` [N]: the tokens, one byte each (uint8).
    - `vocab_size`: the number of different tokens that can occur.
    - `unigram`: the loss on the validation part of a model that knows only how often each token occurs in the train
      part, in nats (see `unigram_loss`).
    - `floor`: the lowest expected loss of any model, in nats. None: unknown.
    - `notes`: facts that a reader of a loss on this text needs.
    """

    name: str
    source: str
    train: Tensor
    validation: Tensor
    vocab_size: int
    unigram: float
    floor: float | None = None
    notes: tuple[str, ...] = ()

    def train_sha256(self) -> str:
        """Return the hash of the train part, with which a checkpoint recognises its text."""
        return hashlib.sha256(self.train.numpy().data).hexdigest()

    def batch(self, step: int, *, seed: int, sequences: int, seq_len: int) -> tuple[Tensor, Tensor]:
        """Return the tokens [B, S] of a training step, and the token that follows each of them [B, S].

        The sequences begin at random places of the train part. They depend on `seed`, `step`, B and S only.
        """
        generator = random.Random(f"{seed} {step}")
        last = len(self.train) - seq_len - 1
        places = torch.tensor([generator.randint(0, last) for _ in range(sequences)])
        rows = self.train[places[:, None] + torch.arange(seq_len + 1)].to(torch.int64)
        return rows[:, :-1], rows[:, 1:]

    def windows(self, seq_len: int, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the validation part as windows [B, S] without overlap, and the token that follows each token [B, S].

        `most`: the largest number of windows. If there are more, windows at equal distances are chosen. The tokens
        behind the last whole window are left out.
        """
        count = (len(self.validation) - 1) // seq_len
        chosen = count if most is None else min(count, most)
        places = torch.tensor([index * count // chosen * seq_len for index in range(chosen)])
        rows = self.validation[places[:, None] + torch.arange(seq_len + 1)].to(torch.int64)
        return rows[:, :-1], rows[:, 1:]

    def refuse_short(self, seq_len: int) -> None:
        """Raise LLMBenchError if one of the parts is shorter than a sequence and the token after it."""
        refuse_short(self.name, len(self.train), len(self.validation), seq_len)


def corpus(name: str) -> Corpus:
    """Return the text that --data names. Raises the errors of `text_of`."""
    return corpus_of_text(text_of(name))


def corpus_of_text(text: Text) -> Corpus:
    """Return a text as tokens. Raises LLMBenchError for a text that is too short, and for some synthetic texts."""
    if isinstance(text.content, bytes):
        return corpus_of(text.name, text.content, source=text.source, notes=text.notes)
    source = source_of(text.content)
    content = source.text(MARKOV_LENGTH)
    return corpus_of(text.name, content, vocab_size=source.symbols, floor=source.entropy_rate())


def corpus_of_checkpoint(source: str, sha256: str, *, hint: str | None = None) -> Corpus:
    """Return the text that a checkpoint names. `hint`: of the error.

    Raises LLMBenchError unless the hash of its train part is `sha256`. A stranger's checkpoint can name any file, so
    nothing else of a file with other content is used or shown.
    """
    try:
        found = corpus(source)
    except LLMBenchError as problem:
        raise LLMBenchError(f"the text of the checkpoint is missing: {problem}", hint=hint or problem.hint) from None
    if found.train_sha256() != sha256:
        raise LLMBenchError(f"the text {source} has changed since the checkpoint was written", hint=hint)
    return found


def corpus_of(
    name: str,
    text: bytes,
    *,
    source: str | None = None,
    vocab_size: int = BYTES,
    floor: float | None = None,
    notes: Sequence[str] = (),
) -> Corpus:
    """Return a Corpus with the bytes of `text` as tokens. `source`: see Corpus; None: `name`.

    Raises LLMBenchError for a text that is too short to be split.
    """
    cut = train_tokens(name, len(text))
    tokens = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return Corpus(
        name=name,
        source=name if source is None else source,
        train=tokens[:cut],
        validation=tokens[cut:],
        vocab_size=vocab_size,
        unigram=unigram_loss(tokens[:cut], tokens[cut:], vocab_size),
        floor=floor,
        notes=tuple(notes),
    )


def unigram_loss(train: Tensor, validation: Tensor, vocab_size: int) -> float:
    """Return the mean loss on `validation` [M] of guessing each token by its frequency in `train` [N], in nats.

    The probability of token t is (n_t + 1) / (N + V), where n_t counts it in `train` and V is `vocab_size`. The added
    one (Laplace's rule of succession) keeps the loss finite if a token occurs in `validation` only.
    """
    counts = torch.bincount(train, minlength=vocab_size).to(torch.float64)
    losses = -((counts + 1) / (len(train) + vocab_size)).log()
    return float(losses[validation.to(torch.int64)].mean())


def pair_loss(train: Tensor, validation: Tensor, vocab_size: int) -> float:
    """Return the mean loss on `validation` [M] of guessing each token from the token before it, in nats.

    The model is a table of the pairs in `train` [N]: p(t | s) = (n_st + p_t) / (n_s + 1), where n_st counts the pair
    and p_t is the probability of `unigram_loss`. So a pair that occurs in `validation` only has a finite loss.
    """
    before, after = (part.to(torch.int64) for part in (train[:-1], train[1:]))
    pairs = torch.bincount(before * vocab_size + after, minlength=vocab_size**2).view(vocab_size, vocab_size)
    shares = (torch.bincount(train, minlength=vocab_size).to(torch.float64) + 1) / (len(train) + vocab_size)
    losses = -((pairs + shares) / (pairs.sum(dim=1, keepdim=True) + 1)).log()
    return float(losses[validation[:-1].to(torch.int64), validation[1:].to(torch.int64)].mean())


def unigram_entropy(tokens: Tensor) -> float:
    """Return the entropy of the frequencies of tokens [N], in nats: −Σ f ln f over all different tokens."""
    shares = torch.bincount(tokens).to(torch.float64) / len(tokens)
    return float(torch.special.entr(shares).sum())
