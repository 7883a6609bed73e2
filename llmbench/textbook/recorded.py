"""The recorded trainings: what the commands that train small models answered, kept as JSON.

A training takes minutes. So the textbook reads the answers from `runs/`, and each file names the command that gives the
same figures again. `tools/record_textbook.py` writes the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

__all__ = ["Run", "Text", "names", "recorded"]


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The text of the trainings.

    - `sha256`: the hash of its train part.
    - `unigram`: the loss of guessing each token by its frequency, in nats (`llmbench.learn.data.Corpus`).
    """

    name: str
    sha256: str
    unigram: float


class Run(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A recorded run of one command.

    - `command`: the command line.
    - `llmbench`: the version of llmbench. `machine`: the kind of machine, and the versions of Python and torch.
    - `settings`: the settings of the trainings, as in the JSON of the command. Variants can have another learning rate,
      seed and warm-up.
    - `rows`: the rows of the answer, without times, memory and details. Their fields are those of the JSON of the
      command. `courses` is added to the rows of `dynamics`: for some probes, pairs of an observed step and the smallest
      value over all layers and heads. Of the condensation, it is the largest value.
    """

    command: str
    llmbench: str
    machine: dict[str, Any]
    text: Text
    settings: dict[str, Any]
    rows: tuple[dict[str, Any], ...]

    def where(self, **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the rows that have these values."""
        return (row for row in self.rows if all(row[name] == value for name, value in fields.items()))


FOLDER = files("llmbench.textbook") / "runs"


def names() -> list[str]:
    """Return the names of all recorded runs."""
    return sorted(file.name.removesuffix(".json") for file in FOLDER.iterdir() if file.name.endswith(".json"))


@cache
def recorded(name: str) -> Run:
    """Return a recorded run."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Run)
