"""What is wrong with a function."""

from __future__ import annotations

import msgspec

__all__ = ["Fault"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a function.

    `message`: the fault. `case`: the call. `output`: the result that is wrong, if there are several. `shape`: its
    shape. `index`: the first element that differs. `expected`, `got`: its values.
    `error`, `budget`: the error of the whole result and the largest accepted error, both relative to the reference.
    `line`, `code`: the line of the student's file that raised an exception.

    Raises ValueError if there is an element that differs, but no error and no budget.
    """

    message: str
    case: str = ""
    output: str = ""
    shape: tuple[int, ...] | None = None
    index: tuple[int, ...] | None = None
    expected: float | None = None
    got: float | None = None
    error: float | None = None
    budget: float | None = None
    line: int | None = None
    code: str | None = None

    def __post_init__(self) -> None:
        if self.index is not None and (self.error is None or self.budget is None):
            raise ValueError("a difference has an error and a budget")
