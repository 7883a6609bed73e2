"""From text to tokens and back: the bytes of a model that `train` has trained, or the tokenizer.json of a checkpoint.

N number of tokens.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.learn import checkpoint
from llmbench.model.create import load
from llmbench.model.decoder import Decoder
from llmbench.spec.reading import read_bytes, read_text

__all__ = ["ByteTokenizer", "Encoded", "FileTokenizer", "Tokenizer", "opened", "read_tokens"]

TOKENIZER = "tokenizer.json"
MOST_BYTES = 2**28
"""The largest size of a tokenizer.json, of a text and of a file of tokens, in bytes."""


class Encoded(NamedTuple):
    """A text as tokens [N]. `scored_bytes`: the bytes of the text without those of the first token, which no model
    predicts. None: the text is unknown."""

    tokens: Tensor
    scored_bytes: int | None


class Tokenizer(Protocol):
    """A tokenizer of a model."""

    def encode(self, text: bytes) -> Encoded:
        """Return the tokens of a text."""
        ...

    def decoded(self, tokens: Iterator[int], *, after: Sequence[int]) -> Iterator[str]:
        """Yield the text of tokens as they come. A character is yielded when all of its bytes are known.

        `after`: the tokens before them, which decide whether the text begins with a space.
        """
        ...


class ByteTokenizer:
    """A token is one byte."""

    def encode(self, text: bytes) -> Encoded:
        """Return the bytes of a text as tokens."""
        if not text:  # torch makes no tensor of an empty buffer
            return Encoded(torch.empty(0, dtype=torch.int64), 0)
        return Encoded(torch.frombuffer(bytearray(text), dtype=torch.uint8).to(torch.int64), len(text) - 1)

    def decoded(self, tokens: Iterator[int], *, after: Sequence[int]) -> Iterator[str]:
        """Yield the characters. A byte that is not UTF-8 becomes the replacement character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", final=True)


class FileTokenizer:
    """The tokenizer in a tokenizer.json, computed by the library `tokenizers`. It adds the same special tokens as
    transformers.

    Raises CannotRunError if the library is not installed, and SpecError for a file that it cannot read.
    """

    def __init__(self, path: Path) -> None:
        if find_spec("tokenizers") is None:
            raise CannotRunError(
                f"{path} needs the package tokenizers, which is not installed", hint="run `pip install tokenizers`"
            )
        text = read_text(path, MOST_BYTES)
        try:
            self._inner: Any = import_module("tokenizers").Tokenizer.from_str(text)
        except Exception as problem:  # the library raises Exception itself
            raise SpecError(f"{path} is not a tokenizer: {' '.join(str(problem).split())[:200]}") from None

    def encode(self, text: bytes) -> Encoded:
        """Return the tokens of a text. Raises LLMBenchError if it is not UTF-8."""
        try:
            characters = text.decode()
        except UnicodeDecodeError as problem:
            raise LLMBenchError(f"the text is not UTF-8: {problem.reason} at byte {problem.start:,}") from None
        encoding = self._inner.encode(characters)
        first = encoding.offsets[0][1] if encoding.offsets else 0  # a special token has the end 0
        return Encoded(torch.tensor(encoding.ids, dtype=torch.int64), len(characters[first:].encode()))

    def decoded(self, tokens: Iterator[int], *, after: Sequence[int]) -> Iterator[str]:
        """Yield the new characters after each token."""
        stream = import_module("tokenizers.decoders").DecodeStream(skip_special_tokens=True)
        for token in after:
            stream.step(self._inner, token)
        for token in tokens:
            yield stream.step(self._inner, token) or ""


def opened(
    folder: Path, *, device: torch.device, dtype: torch.dtype | None = None, impl: str | None = None
) -> tuple[Decoder, Tokenizer | None]:
    """Load a model from a folder of `llmbench train`, or from a folder of transformers, with its tokenizer.

    `dtype`: the number format of the model. None: that of the files. The tokenizer is None if a folder of transformers
    has no tokenizer.json. Raises LLMBenchError if the folder has neither, and the errors of `llmbench.model.load`.
    """
    if checkpoint.is_checkpoint(folder):
        model = checkpoint.load_model(checkpoint.newest(folder), impl=impl, device=device)
        return (model if dtype is None else model.to(dtype)).eval(), ByteTokenizer()
    if not os.path.isfile(folder / "config.json"):
        raise LLMBenchError(
            f"{folder} is neither a folder of `llmbench train` nor a folder with config.json and weights",
            hint="`llmbench train nanogpt-cpu -o run` makes the folder run",
        )
    model = load(folder, impl=impl, device=device, dtype=dtype)
    path = folder / TOKENIZER
    return model, FileTokenizer(path) if os.path.isfile(path) else None


def read_tokens(path: Path) -> Encoded:
    """Return the tokens in a JSON file with a list of numbers. Raises SpecError for another file."""
    try:
        numbers = msgspec.json.decode(read_bytes(path, MOST_BYTES), type=list[int])
        return Encoded(torch.tensor(numbers, dtype=torch.int64), None)
    except (msgspec.DecodeError, UnicodeDecodeError, RuntimeError, OverflowError) as problem:
        raise SpecError(f"{path} is not a JSON list of token numbers: {problem}") from None
