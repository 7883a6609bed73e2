"""From text to tokens and back: the bytes of a model that `train` has trained, or the tokenizer.json of a checkpoint.

N number of tokens.
"""

from __future__ import annotations

import base64
import codecs
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.learn import checkpoint
from llmbench.learn.refusals import TOKENIZER, refuse_other_folders
from llmbench.learn.settings import LARGEST
from llmbench.learn.state import is_checkpoint, newest
from llmbench.model.create import load
from llmbench.model.decoder import Decoder
from llmbench.spec.reading import read_bytes

__all__ = ["ByteTokenizer", "Encoded", "FileTokenizer", "Tokenizer", "opened", "read_tokens"]

MOST_BYTES = 2**28
"""The largest size of a tokenizer.json, of a text and of a file of tokens, in bytes."""
MOST_GROWTH = 1000
"""The largest factor by which the replacements of a tokenizer.json may lengthen a text. The tables of
SentencePiece have 33: NFKC turns one Arabic ligature into 33 bytes."""
MOST_ADDED = 1000
"""The largest number of tokens and of their characters that a tokenizer.json may add around a text."""
MOST_STEPS = 100
"""The largest number of normalizers, pre-tokenizers, decoders and post-processors of a tokenizer.json together. Each
reads the whole text."""
LONGEST_WORD = 1000
"""The largest `max_input_chars_per_word` of WordPiece. The time for a word grows faster than its length. BERT has
100."""
LONGEST_PART = 2**20
"""The largest number of characters that one token may add to a text."""
STEPS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
"""The parts of a tokenizer.json that can be a sequence of others."""
STDERR = 2
"""The file descriptor of stderr."""


class Encoded(NamedTuple):
    """A text as tokens [N].

    - `scored_bytes`: the bytes of the text without those of the first token, which no model predicts. None: unknown.
    - `note`: why the bytes are unknown, although the text is known.
    """

    tokens: Tensor
    scored_bytes: int | None
    note: str = ""


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
        """Yield the characters. A byte that is not UTF-8 becomes the replacement character.

        Raises SpecError for a token that is not a byte: the vocabulary of the model is not that of `llmbench train`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            if token > 255:
                raise SpecError(f"token {token:,} of the model is not a byte, so it has no text")
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
        text = read_bytes(path, MOST_BYTES)
        try:
            document = msgspec.json.decode(text)
            parts = document if isinstance(document, dict) else {}
            growth, decoding = _growth(document), _growth(parts.get("decoder"))
            frame = _frame(parts.get("post_processor"))
            steps, longest = sum(_steps(parts.get(name)) for name in STEPS), _longest_word(parts.get("model"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as problem:
            raise SpecError(f"{path} is not a tokenizer: {problem}") from None
        if growth > MOST_GROWTH:
            raise SpecError(f"{path}: its replacements can make a text more than {MOST_GROWTH:,} times longer")
        if not frame.whole:
            raise SpecError(f"{path}: its post-processor leaves out the text, or repeats it")
        if frame.added > MOST_ADDED:
            raise SpecError(
                f"{path}: its post-processor can add more than {MOST_ADDED:,} tokens and characters to a text"
            )
        if steps > MOST_STEPS:
            raise SpecError(
                f"{path}: it has more than {MOST_STEPS:,} normalizers, pre-tokenizers, decoders and post-processors"
            )
        if longest > LONGEST_WORD:
            raise SpecError(f"{path}: its words can have more than {LONGEST_WORD:,} characters, which can take hours")
        self._path, self._decoding = path, decoding
        self._inner: Any = self._call(import_module("tokenizers").Tokenizer.from_str, text.decode())
        self._inner.no_truncation()  # a file can ask for both, but a loss needs the whole text and nothing else
        self._inner.no_padding()
        if hasattr(self._inner.model, "dropout"):  # BPE's merges are left out at random, so each call has other tokens
            self._inner.model.dropout = None

    def encode(self, text: bytes) -> Encoded:
        """Return the tokens of a text. Raises LLMBenchError if it is not UTF-8 or the tokenizer fails.

        The bytes are unknown if the tokens do not decode to the same text. The model then predicts another text.
        """
        try:
            characters = text.decode()
        except UnicodeDecodeError as problem:
            raise LLMBenchError(f"the text is not UTF-8: {problem.reason} at byte {problem.start:,}") from None
        # encode() keeps Python's lock, so that Ctrl-C would wait for its end. encode_batch() does not.
        (encoding,) = self._call(_interruptible, lambda: self._inner.encode_batch([characters]))
        tokens = torch.tensor(encoding.ids, dtype=torch.int64)
        own = [token for token, added in zip(encoding.ids, encoding.special_tokens_mask, strict=True) if not added]
        lengths = (len(self._inner.id_to_token(token) or "") * count for token, count in Counter(own).items())
        if self._decoding * sum(lengths) > MOST_GROWTH * len(characters):
            raise SpecError(f"{self._path}: its tokens are more than {MOST_GROWTH:,} times longer than the text")
        back = self._call(lambda: self._inner.decode(own, skip_special_tokens=False))
        if back != characters:
            pairs = enumerate(zip(back, characters, strict=False))
            same = next((index for index, (one, other) in pairs if one != other), min(len(back), len(characters)))
            note = f"the tokenizer changes the text from character {same + 1:,} on, so bits per byte are unknown"
            return Encoded(tokens, None, note)
        first = encoding.offsets[0][1] if encoding.offsets else 0  # a special token has the end 0
        return Encoded(tokens, len(characters[first:].encode()))

    def decoded(self, tokens: Iterator[int], *, after: Sequence[int]) -> Iterator[str]:
        """Yield the new characters after each token. Raises SpecError if the tokenizer fails."""
        stream = import_module("tokenizers.decoders").DecodeStream(skip_special_tokens=True)
        for token in after:
            self._call(stream.step, self._inner, token)
        for token in tokens:
            part: str = self._call(stream.step, self._inner, token) or ""
            if len(part) > LONGEST_PART:
                raise SpecError(f"{self._path}: token {token} adds {len(part):,} characters to the text")
            yield part

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a function of the library. Raises SpecError if the function fails.

        The library raises Exception itself. A failed assertion of its Rust code raises PanicException, which is only a
        BaseException and has no public name.
        """
        try:
            with _silent_stderr():  # before the exception, Rust prints the place in its code and a backtrace
                return function(*arguments)
        except BaseException as problem:
            if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
                raise
            reason = " ".join(str(problem).split())[:200]
            raise SpecError(f"{self._path}: the tokenizer does not work: {reason}") from None


def _interruptible(function: Callable[[], Any]) -> Any:
    """Return the result of native code that runs in a thread, so that Ctrl-C ends the wait for it.

    The process does not wait for a daemon thread when it ends.
    """
    results: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    def compute() -> None:
        try:
            results.put((function(), None))
        except BaseException as problem:
            results.put((None, problem))

    Thread(target=compute, daemon=True).start()
    result, problem = results.get()
    if problem is not None:
        raise problem
    return result


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what native code prints to stderr, until the block ends."""
    try:
        kept = os.dup(STDERR)
    except OSError:  # the process has no stderr
        yield
        return
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, STDERR)
        os.close(nothing)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


def _growth(part: Any) -> float:
    """Return the largest factor by which a part of a tokenizer.json can lengthen a text.

    Replacements follow each other, so their factors are multiplied. A regular expression can match once between any two
    characters, and an empty pattern does. A token can be one character with the prefix or the suffix of the model, or
    the token that stands for an unknown character.
    """
    if isinstance(part, list):
        return math.prod(map(_growth, part))
    if not isinstance(part, dict):
        return 1.0
    own = 1.0
    match part:
        case {"type": "Replace", "content": str(content), "pattern": {"String": str(pattern)}} if pattern:
            own = max(1.0, len(content) / len(pattern))
        case {"type": "Replace", "content": str(content)}:
            own = 1.0 + len(content)
        case {"type": "Prepend", "prepend": str(content)}:
            own = 1.0 + len(content)
        case {"type": "Precompiled", "precompiled_charsmap": str(encoded)}:
            own = _longest_replacement(base64.b64decode(encoded))
        case {"vocab": _}:
            affixes = (part.get(name) for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
            own = max([1.0, *(1.0 + len(text) for text in affixes if isinstance(text, str))])
    return own * math.prod(map(_growth, part.values()))


def _steps(part: Any) -> int:
    """Return the number of steps of a part of a tokenizer.json. A sequence can contain sequences."""
    if isinstance(part, list):
        return sum(map(_steps, part))
    if not isinstance(part, dict):
        return 0
    return ("type" in part) + sum(map(_steps, part.values()))


def _longest_word(model: Any) -> float:
    """Return the number of characters of the longest word that WordPiece divides. 0: the model has no such limit."""
    match model:
        case {"max_input_chars_per_word": int() | float() as longest}:
            return longest
    return 0


class _Frame(NamedTuple):
    """What a post-processor puts around a text.

    `added`: the number of tokens, and of their characters, at most. `whole`: whether the text then stands there once.
    """

    added: int = 0
    whole: bool = True


def _frame(processor: Any) -> _Frame:
    """Return what a post-processor of a tokenizer.json puts around a text.

    A template lists the items around the text A, and those around the texts A and B. In a sequence of post-processors,
    the library can use the second list for a single text.
    """
    match processor:
        case {"processors": list(parts)}:
            frames = [_frame(part) for part in parts]
            return _Frame(sum(frame.added for frame in frames), all(frame.whole for frame in frames))
        case {"single": list(single), "special_tokens": dict(special)}:
            pair = processor.get("pair")
            one, two = _items(single), _items(pair if isinstance(pair, list) else [])
            sizes = {name: _size(token) for name, token in special.items()}
            added = max(sum(sizes.get(name, 0) for name in items["SpecialToken"]) for items in (one, two))
            return _Frame(added, one["Sequence"] == ["A"] and len(set(two["Sequence"])) == len(two["Sequence"]))
        case {"sep": [str(sep), _], "cls": [str(cls), _]}:  # of BERT and RoBERTa: one token on each side
            return _Frame(2 + len(sep) + len(cls))
    return _Frame()


def _items(template: list[Any]) -> dict[str, list[str]]:
    """Return the ids of the texts and of the special tokens in a template."""
    found: dict[str, list[str]] = {"Sequence": [], "SpecialToken": []}
    for item in template:
        match item:
            case {"Sequence": {"id": str(name)}}:
                found["Sequence"].append(name)
            case {"SpecialToken": {"id": str(name)}}:
                found["SpecialToken"].append(name)
    return found


def _size(special: Any) -> int:
    """Return how many tokens a special token of a template stands for, and characters in them."""
    match special:
        case {"ids": list(ids), "tokens": list(tokens)}:
            return len(ids) + sum(len(token) for token in tokens if isinstance(token, str))
    return 0


def _longest_replacement(charsmap: bytes) -> float:
    """Return the length in bytes of the longest text in a table of SentencePiece.

    The table has the size of a trie, the trie, and the texts, each with a zero byte behind it
    (github.com/google/sentencepiece, src/normalizer.cc).
    """
    texts = charsmap[4 + int.from_bytes(charsmap[:4], "little") :]
    return max(1.0, *map(len, texts.split(b"\0")))


def opened(
    folder: Path, *, device: torch.device, dtype: torch.dtype | None = None, impl: str | None = None
) -> tuple[Decoder, Tokenizer | None]:
    """Load a model from a folder of `llmbench train`, or from a folder of transformers, with its tokenizer.

    `dtype`: the number format of the model. None: that of the files. The tokenizer is None if a folder of transformers
    has no tokenizer.json. Raises LLMBenchError if the folder has neither, and the errors of `llmbench.model.load`.
    """
    refuse_other_folders(folder)
    if is_checkpoint(folder):
        model = checkpoint.load_model(newest(folder), impl=impl, device=device)
        return (model if dtype is None else model.to(dtype)).eval(), ByteTokenizer()
    model = load(folder, impl=impl, device=device, dtype=dtype)
    path = folder / TOKENIZER
    return model, FileTokenizer(path) if os.path.isfile(path) else None


def read_tokens(path: Path) -> Encoded:
    """Return the tokens in a JSON file with a list of numbers. Raises SpecError for another file."""
    try:
        numbers = msgspec.json.decode(
            read_bytes(path, MOST_BYTES), type=list[Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]]
        )
        return Encoded(torch.tensor(numbers, dtype=torch.int64), None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as problem:
        raise SpecError(f"{path} is not a JSON list of token numbers: {problem}") from None
