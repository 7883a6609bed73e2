"""The names of texts (`--data`), and the bytes of each text. No torch: a command reads them before it imports torch."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

from llmbench.errors import CannotRunError, LLMBenchError, UnknownNameError
from llmbench.learn.shakespeare import plays
from llmbench.spec.reading import read_bytes

__all__ = [
    "MARKOV_LENGTH",
    "MarkovName",
    "Text",
    "default_text",
    "markov_name",
    "refuse_short",
    "text_of",
    "train_tokens",
]

TRAIN_SHARE = 0.9
MARKOV_LENGTH = 2**20
"""The length of a synthetic text, in symbols."""

MOST_BYTES = 2**31
"""The largest size of a text, in bytes."""
MOST_PROBABILITIES = 2**20
"""The largest number of transition probabilities of a Markov source, V^(k+1)."""
TINYSHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
"""The sha256 of tinyshakespeare (github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt)."""
PUBLISHED = (
    "published for this text (nanoGPT's README): validation loss 1.88 with its settings for a CPU, 1.4697 with those "
    "for a GPU. Its tokens are 65 characters, one byte each",
)


class MarkovName(NamedTuple):
    """The numbers that describe a Markov source: V symbols, the order k, and the seed of its probabilities."""

    symbols: int
    order: int
    seed: int


class Text(NamedTuple):
    """A text before it becomes tokens. `name`, `source`, `notes`: see `llmbench.learn.data.Corpus`.

    `content`: the bytes of the text, or the numbers of the source that writes a synthetic text.
    """

    name: str
    source: str
    content: bytes | MarkovName
    notes: tuple[str, ...] = ()

    def refuse_short(self, seq_len: int) -> None:
        """Raise LLMBenchError if one of the parts is shorter than a sequence and the token after it."""
        length = len(self.content) if isinstance(self.content, bytes) else MARKOV_LENGTH
        train = train_tokens(self.name, length)
        refuse_short(self.name, train, length - train, seq_len)


def train_tokens(name: str, length: int) -> int:
    """Return the length of the train part of a text. Raises LLMBenchError for a text that is too short to be split."""
    train = int(TRAIN_SHARE * length)
    if train < 2 or length - train < 2:
        raise LLMBenchError(f"{name}: a text of {length:,} bytes is too short to train on")
    return train


def refuse_short(name: str, train: int, validation: int, seq_len: int) -> None:
    """Raise LLMBenchError if a part of a text is shorter than a sequence of `seq_len` tokens and the token after it."""
    if min(train, validation) <= seq_len:
        raise LLMBenchError(
            f"{name}: its validation part has {validation:,} tokens, too few for a sequence of {seq_len:,} tokens and "
            "the token after it",
            hint="use a longer text, or a smaller --seq",
        )


def text_of(name: str) -> Text:
    """Return the text that --data names: `shakespeare`, `stdlib`, `markov:V,order,seed`, or the path of a file.

    Raises CannotRunError if `shakespeare` is asked for and its package is missing, UnknownNameError for a file that
    does not exist, SpecError for a file that cannot be read, and LLMBenchError for wrong numbers of a Markov source.
    """
    if name == "shakespeare":
        return Text(name, name, plays())
    if name == "stdlib":
        return Text(name, name, _stdlib(), ("the text changes with the version of Python",))
    kind, _, rest = name.partition(":")
    if kind == "markov":
        return Text(name, name, markov_name(rest))
    path = Path(name)
    if not os.path.exists(path):
        raise UnknownNameError(
            f"--data {name}: no such file", hint="give a file, or shakespeare, stdlib, markov:V,order,seed"
        )
    content = read_bytes(path, MOST_BYTES)
    published = PUBLISHED if hashlib.sha256(content).hexdigest() == TINYSHAKESPEARE else ()
    return Text(path.name, str(path.absolute()), content, published)


def default_text() -> tuple[Text, str | None]:
    """Return the default text. If its package is missing, return `stdlib`, and the reason as the second value."""
    try:
        return text_of("shakespeare"), None
    except CannotRunError as problem:
        reason = f"{problem}. The sources of Python's standard library are used instead"
        return text_of("stdlib"), f"{reason} ({problem.hint})"


def markov_name(text: str) -> MarkovName:
    """Return the numbers in `V,order,seed`, for example `16,2,0`. The order and the seed may be left out.

    Raises LLMBenchError for a wrong description, and for a source with too many transition probabilities.
    """
    parts = text.split(",")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise LLMBenchError(
            f"markov:{text}: needs the number of symbols, the order and the seed", hint="for example markov:16,2,0"
        )
    symbols, order, seed = [*map(int, parts), *(1, 0)[len(parts) - 1 :]]
    if not 2 <= symbols <= 256 or not 1 <= order <= 20 or symbols ** (order + 1) > MOST_PROBABILITIES:
        raise LLMBenchError(
            f"markov:{text}: needs 2 to 256 symbols, an order of at least 1, and symbols^(order + 1) of at most "
            f"{MOST_PROBABILITIES:,}"
        )
    return MarkovName(symbols, order, seed)


def _stdlib() -> bytes:
    """Return the Python files in the top folder of the standard library, joined in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
