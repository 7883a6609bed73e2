"""The comparison of one row: measured figures, what llmbench computes for them, and the reason of a refusal."""

from __future__ import annotations

import re

import msgspec

from llmbench.validation.rows import RefusedError, in_range


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured figure of a row, and the figure of llmbench.

    quantity: what was measured, with its unit: `peak_bytes`.
    tolerance: largest difference that the rounding of the printed figure explains, in the unit of the figure.
    """

    quantity: str
    measured: float
    ours: float
    tolerance: float = 0

    @property
    def error(self) -> float:
        """(ours - measured) / |measured|, or 0 if both are zero. `Answer` refuses another measured zero."""
        return (self.ours - self.measured) / abs(self.measured or 1)

    @property
    def exact(self) -> bool:
        """Whether the figures are equal, up to the rounding of the measured figure."""
        return abs(self.ours - self.measured) <= self.tolerance


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a reader for one row.

    figures: the compared figures. The first one is the figure of the row.
    doubt: why the settings of the row are uncertain. "": they are not.
    parts: named terms of our first figure, in its unit. The terms of a number of tokens are the bytes of the memory
        that the engine divides.
    assumed: what llmbench assumes about the run, because the row does not say it, or "".
    note: what our first figure leaves out, or "".
    """

    figures: tuple[Figure, ...]
    doubt: str = ""
    parts: dict[str, float] = {}
    assumed: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for figure in self.figures:
            if figure.measured == 0 != figure.ours:
                raise RefusedError(f"the measured {figure.quantity} is 0, and nothing can be compared with it")


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A row of a file with its answer, or with the reason why there is none.

    line: line of the row in the file. name: what the row is about. group: value of the column of `--by`.
    """

    line: int
    name: str
    group: str | None
    answer: Answer | None
    reason: str | None


def printed(text: str, scale: float) -> tuple[float, float]:
    """Return a printed number times `scale`, and the largest difference that the rounding of the text explains.

    >>> printed("8.23", 1)
    (8.23, 0.005)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.([0-9]+))?)\s*", text)
    if match is None:
        raise RefusedError(f"{text[:40]!r} is not a number")
    number = in_range(float(match[1]), text)
    return number * scale, 0.5 * 10.0 ** -len(match[2] or "") * scale * (1 + 1e-9)
