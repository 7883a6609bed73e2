"""Code that several commands share: options, loading a model, fields about a model, and writing an answer."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import typer

from llmbench.cli.help import OUTPUT
from llmbench.cli.written import write_file
from llmbench.errors import LLMBenchError
from llmbench.report.document import NOTES, Document, View
from llmbench.report.render import Format, render
from llmbench.sizing.dtypes import KVFormatName
from llmbench.sizing.items import decimal
from llmbench.spec.catalog import bundled_models, find_model
from llmbench.spec.model import ModelSpec

Item = TypeVar("Item")

MODEL_HELP = (
    "Model: a name from `llmbench specs list`, a spec .toml, a Hugging Face config.json or its folder, or "
    "hf:organisation/name."
)
LARGEST = 2**31
"""The largest number that an option with a number accepts."""


def positive_integer(text: str | int) -> int:
    """Parse the value of an option as a whole number. Raises BadParameter unless it is from 1 to LARGEST."""
    return _whole_number(text, 1)


def number_from_zero(text: str | int) -> int:
    """Parse the value of an option as a whole number. Raises BadParameter unless it is from 0 to LARGEST."""
    return _whole_number(text, 0)


def _whole_number(text: str | int, least: int) -> int:
    """Parse a whole number from `least` to LARGEST. The digits are ASCII, without the underscores of Python."""
    digits = str(text).strip()
    if not re.fullmatch(r"[+-]?\d+", digits, re.ASCII):
        raise typer.BadParameter(f"{text!r} is not a whole number")
    number = int(digits[:20])  # Python refuses to convert thousands of digits
    if not least <= number <= LARGEST:
        shown = digits if len(digits) <= 20 else f"a number of {len(digits):,} characters"
        raise typer.BadParameter(f"{shown} is not between {least} and {LARGEST:,}")
    return number


def decimal_number(text: str | float) -> float:
    """Parse the value of an option as a number such as 0.9. Raises BadParameter for another text."""
    try:
        return decimal(str(text).strip())
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None


def not_negative(text: str | float) -> float:
    """Parse the value of an option as a number. Raises BadParameter if it is below 0."""
    number = decimal_number(text)
    if number < 0:
        raise typer.BadParameter(f"{text} is below 0")
    return number


def probability(text: str | float) -> float:
    """Parse the value of an option as a number. Raises BadParameter unless it is from 0 to 1."""
    number = decimal_number(text)
    if not 0 <= number <= 1:
        raise typer.BadParameter(f"{text} is not between 0 and 1")
    return number


def token_count(text: str | int) -> int:
    """Parse the value of an option as a number of tokens. `128k` stands for 128 × 1024, and `1m` for 1024 × 1024.

    Raises BadParameter unless the number is from 1 to LARGEST.
    """
    number, unit = str(text).strip(), 1
    if number[-1:].lower() in ("k", "m"):
        number, unit = number[:-1], {"k": 1024, "m": 1024**2}[number[-1].lower()]
    if not number.isascii() or not number.isdigit():
        raise typer.BadParameter(f"{text!r} is not a number of tokens, such as 8192 or 8k")
    return positive_integer(number if unit == 1 else int(number[:40]) * unit)


class _Values(tuple[Item, ...]):
    """The values of an option that takes one value, or several values for a sweep."""

    @property
    def as_input(self) -> Item | list[Item]:
        """The only value, or the list of the values. JSON repeats it in `inputs`."""
        return self[0] if len(self) == 1 else list(self)


class Counts(_Values[int]):
    """One or several numbers."""


class Choices(_Values[Any]):
    """One or several of the choices of an option."""


MOST_STEPS = 64
"""The largest number of values of one option in a sweep."""


def _counts(text: str | Counts, parse: Callable[[str], int]) -> Counts:
    """Parse `8,32`, or `8..100`, which doubles up to the last number and ends with it: 8, 16, 32, 64, 100."""
    if isinstance(text, Counts):  # the default
        return text
    values: list[int] = []
    for part in str(text).split(","):
        first, dots, last = part.partition("..")
        values.append(parse(first))
        end = parse(last) if dots else 0
        if dots and end < values[-1]:
            raise typer.BadParameter(f"{part!r}: the range ends before it begins")
        while values[-1] * 2 <= end:
            values.append(values[-1] * 2)
        if dots:
            values.append(end)  # a repetition is removed below
    values = list(dict.fromkeys(values))
    if len(values) > MOST_STEPS:
        raise typer.BadParameter(f"{len(values)} values are more than {MOST_STEPS}")
    return Counts(values)


def token_counts(text: str | Counts) -> Counts:
    """Parse one or several numbers of tokens: `8k`, `8k,32k`, or `8k..128k`."""
    return _counts(text, token_count)


def sequence_counts(text: str | Counts) -> Counts:
    """Parse one or several numbers of sequences: `8`, `1,8,64`, or `1..64`."""
    return _counts(text, positive_integer)


def names(text: str | Choices) -> Choices:
    """Parse one or several names, separated by commas: `bf16,fp8`."""
    if isinstance(text, Choices):  # the default
        return text
    values = [part.strip() for part in text.split(",")]
    if not all(values):
        raise typer.BadParameter(f"{text!r} has an empty name")
    return Choices(dict.fromkeys(values))


class _ChoicesParser:
    """Parse one or several of the values `choices`, separated by commas: `bf16,fp8`."""

    __name__ = "choices"  # typer shows this name

    def __init__(self, choices: tuple[str, ...]) -> None:
        self.choices = choices

    def __call__(self, text: str | Choices) -> Choices:
        if isinstance(text, Choices):  # the default
            return text
        values = [part.strip() for part in text.split(",")]
        for value in values:
            if value not in self.choices:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, self.choices))}")
        return Choices(dict.fromkeys(values))


LONG_CHOICES = 50
"""The largest length of the choices that a help text shows behind the name of an option, in characters."""


def choices_of(kind: Any, help: str) -> dict[str, Any]:
    """Return the arguments of `typer.Option` for one or several choices of the Literal type `kind`.

    Choices that are too long for the column of the option's name stand in the help text.
    """
    known = get_args(kind)
    metavar = f"<{'|'.join(known)}>"
    if len(metavar) > LONG_CHOICES:
        metavar, help = "NAME", f"{help} Choices: {', '.join(known)}."
    return {"parser": _ChoicesParser(known), "metavar": metavar, "help": help}


Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP, show_default=False)]
OneModel = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the model's spec, for example num_key_value_heads=8. Can be repeated.",
        show_default=False,
    ),
]
FORMAT_OF_SUFFIX: dict[str, Format] = {".json": "json", ".csv": "csv", ".md": "markdown", ".markdown": "markdown"}
"""The format of a file that --output names, if --format is not given."""


def _format(context: typer.Context, value: Format) -> Format:
    """Return the value of --format. If it is not given, the name of the file of --output decides."""
    source = context.get_parameter_source("format")
    output = context.params.get("output")
    if output is None or source is None or source.name != "DEFAULT":
        return value
    return FORMAT_OF_SUFFIX.get(Path(output).suffix.lower(), value)


As = Annotated[
    Format,
    typer.Option(
        "--format",
        "-f",
        help="Format of the answer. With --output, the default follows the file name: .json, .csv or .md.",
        callback=_format,
        rich_help_panel=OUTPUT,
    ),
]


_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def _stdout(value: Path | None) -> Path | None:
    """Return the value of --output, or None if it stands for stdout, such as `-` in other programs."""
    return None if str(value) in _STDOUT else value


Output = Annotated[
    Path | None,
    # eager, because the callback of --format reads the value
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the answer to a file. It replaces only an earlier answer of the command.",
        show_default=False,
        is_eager=True,
        callback=_stdout,
        rich_help_panel=OUTPUT,
    ),
]
Explain = Annotated[bool, typer.Option("--explain", help="Also show each formula with its numbers filled in.")]
Seq = Annotated[
    int,
    typer.Option("--seq", metavar="TOKENS", help="Tokens per sequence, for example 8192 or 8k.", parser=token_count),
]
Seqs = Annotated[
    Counts,
    typer.Option(
        "--seq",
        metavar="TOKENS",
        help="Tokens per sequence, for example 8192 or 8k. A sweep: 8k,32k,128k, or 8k..128k, which doubles up to the "
        "last.",
        parser=token_counts,
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", metavar="N", help="Seed of the random numbers, from 0.", parser=number_from_zero)
]
SEQ = 4096
"""The default of --seq, in tokens."""
SEQS = Counts([SEQ])
ONE = Counts([1])
CacheType = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4", KVFormatName]
BF16 = Choices(["bf16"])
NO_RECOMPUTE = Choices(["none"])
Batch = Annotated[int, typer.Option("--batch", metavar="N", help="Number of sequences.", parser=positive_integer)]
Batches = Annotated[
    Counts,
    typer.Option(
        "--batch",
        metavar="N",
        help="Number of sequences. A sweep: 1,8,64, or 1..64, which doubles up to the last.",
        parser=sequence_counts,
    ),
]


WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help="Format of the stored weights, for example bf16, fp8, awq, gptq,bits=8,group=32, or the path of a .gguf "
        "file. `llmbench specs list --formats` shows all. Default: the format of the published files.",
        show_default=False,
    ),
]


def load(text: str, changes: list[str] | None) -> ModelSpec:
    """Return the spec of the model that `text` names. `changes`: values of --set, which replace fields of the spec."""
    spec = find_model(text)
    if changes:
        from llmbench.spec.override import override, parse_assignments

        spec = override(spec, parse_assignments(changes))
    return spec


def working(activity: str) -> AbstractContextManager[object]:
    """Show on stderr what a slow command is doing, until the block ends. Do nothing if stderr is not a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{activity} …")


def reading(*models: str | None) -> AbstractContextManager[object]:
    """Show that the Hugging Face hub is asked, until the block ends, if one of the models is there."""
    remote = any(text is not None and text.startswith("hf:") for text in models)
    return working("reading from the Hugging Face hub") if remote else nullcontext()


Wide = Annotated[
    bool,
    typer.Option("--wide", help="Show all columns of the tables, however long the lines are.", rich_help_panel=OUTPUT),
]
Notes = Annotated[
    bool,
    typer.Option("--notes", help=f"Show all notes below a table, not only the first {NOTES}.", rich_help_panel=OUTPUT),
]
_view: ContextVar[View] = ContextVar("view")
"""The values of --wide and --notes of the running command."""


def prints_tables(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with the options --wide and --notes added. `answer` follows these options."""

    @wraps(command)
    def with_view(*, wide: bool, notes: bool, **options: Any) -> Any:
        _refuse_many(options)
        _view.set(View(wide=wide, notes=notes))
        return command(**options)

    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in (("wide", Wide), ("notes", Notes))
    ]
    with_view.__annotations__ = {}
    with_view.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), *added]
    )
    return with_view


MOST_CASES = 1000
"""The largest number of cases of a sweep: combinations of models and of the values of its options."""


def _refuse_many(options: dict[str, Any]) -> None:
    """Raise LLMBenchError if the options of a command ask for more cases than a few seconds suffice for."""
    models = options.get("models") or (bundled_models() if options.get("all") else ())
    counts = {name: len(value) for name, value in options.items() if isinstance(value, _Values)} | {
        "models": max(1, len(models))
    }
    cases = math.prod(counts.values())
    if cases > MOST_CASES:
        several = " × ".join(f"{count:,} of {name}" for name, count in counts.items() if count > 1)
        raise LLMBenchError(
            f"the sweep has {cases:,} cases, and a command computes at most {MOST_CASES:,}: {several}",
            hint="divide the sweep, or name fewer models",
        )


def answer_and_show(document: Document, format: Format, output: Path | None) -> None:
    """Write a document as `answer` does, and show it on the screen too if it goes to a file.

    A command that trains for minutes shows what it found.
    """
    answer(document, format, output)
    if output is not None:
        answer(document, "table", None)


def answer(document: Document, format: Format, output: Path | None) -> None:
    """Write a document to the file `output`, or to stdout if `output` is None.

    The command needs the decorator `prints_tables`.
    """
    if output is None:
        render(document, format, sys.stdout, _view.get(View()))
        return
    write_file(output, lambda stream: render(document, format, stream, _view.get(View())))
