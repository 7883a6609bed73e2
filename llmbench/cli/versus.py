"""The option `--vs` of `compare`. The models and the changes after it are the second side of the comparison."""

from __future__ import annotations

from typing import Any, NamedTuple

from llmbench.cli.help import HelpfulCommand
from llmbench.errors import LLMBenchError

_VS, _SET = "\0vs", "\0set "
"""Marks in the list of models for `--vs`, and for a change after it. No argument of a process contains \\0."""


class Side(NamedTuple):
    """One side of a comparison: the models as the user named them, and the values of `--set` for all of them."""

    models: list[str]
    changes: list[str]


class VersusCommand(HelpfulCommand):
    """A command whose arguments and `--set` options after `--vs` belong to the second side.

    typer does not say whether an option stood before or after another one. So each `--set` after `--vs` becomes an
    argument with a mark.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, after those of the second side have their marks."""
        return super().parse_args(ctx, marked(args))


def marked(arguments: list[str]) -> list[str]:
    """Return the arguments with marks: `--vs` gets one, and each `--set KEY=VALUE` after it becomes one argument."""
    if "--vs" not in arguments:
        return arguments
    at = arguments.index("--vs") + 1
    before, after = arguments[:at], arguments[at:]
    if "--vs" in after:
        raise LLMBenchError("--vs is given twice", hint="a comparison has two sides")
    second: list[str] = []
    words = iter(after)
    for word in words:
        value = next(words, None) if word == "--set" else word[6:] if word.startswith("--set=") else None
        second.append(word if value is None else f"{_SET}{value}")
    return [*before, _VS, *second]


def sides(arguments: list[str], changes: list[str]) -> tuple[Side, Side | None]:
    """Return the two sides of a comparison. The second side is None without `--vs`.

    arguments: the models, with the marks of `marked`. changes: the values of `--set` before `--vs`.

    Raises LLMBenchError if both sides are the same.
    """
    if _VS not in arguments:
        return Side(arguments, changes), None
    at = arguments.index(_VS)
    first = Side(arguments[:at], changes)
    models = [word for word in arguments[at + 1 :] if not word.startswith(_SET)]
    second = Side(
        models or first.models, [word.removeprefix(_SET) for word in arguments[at + 1 :] if word.startswith(_SET)]
    )
    if not first.models:
        raise LLMBenchError("--vs: no model before it", hint="llmbench compare llama2-7b --vs --set positions=alibi")
    if first == second:
        what = "--vs: both sides are the same"
        raise LLMBenchError(what, hint="write --set KEY=VALUE, or another model, after --vs")
    return first, second
