"""`llmbench exercise`: list, show and check exercises."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from llmbench.cli.measured import need_torch
from llmbench.cli.options import As, Output, Seed, answer, prints_tables
from llmbench.errors import LLMBenchError
from llmbench.learn.exercises import EXERCISES, Exercise, load_exercise
from llmbench.learn.exercises.answer import EXAMPLES
from llmbench.learn.exercises.fault import Fault
from llmbench.learn.exercises.function import Function
from llmbench.learn.exercises.question import Asked, Draw, Question, grade
from llmbench.learn.exercises.runner import exercises_in, run_check
from llmbench.printable import printable
from llmbench.report.document import Block, Command, Document, listing, table
from llmbench.report.fields import Field, record, records
from llmbench.report.units import plural

command = typer.Typer(
    no_args_is_help=True,
    help="List, show and check exercises: accounting questions, and functions to write with torch.",
    rich_markup_mode=None,
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Exercise: a name from `llmbench exercise list`.", show_default=False)
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A question, or a Python file: my.py:rope checks one function, my.py all functions that it has.",
        show_default=False,
    ),
]
Answer = Annotated[
    str | None,
    typer.Option(
        "--answer",
        metavar="NUMBER",
        help="Answer to the question, for example 1.56B, 12.5GiB, 28.5% or 4.2ms.",
        show_default=False,
    ),
]
Solution = Annotated[
    bool, typer.Option("--solution", help="Also show how the answer is computed, and the command that shows it.")
]

TIMEOUT_S = 60.0
"""The default time limit, in seconds. The import of torch is part of it."""
LONGEST_S = 3600.0


def _seconds(text: str | float) -> float:
    """Parse the value of --timeout. Raises BadParameter unless it is a number of seconds up to LONGEST_S."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= LONGEST_S:
        raise typer.BadParameter(f"{text!r} is not a number of seconds above 0 and up to {LONGEST_S:,.0f}")
    return number


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        help="Time limit of one function, with the import of torch.",
        parser=_seconds,
    ),
]


def _kind(exercise: Exercise) -> str:
    return "function" if isinstance(exercise, Function) else "question"


class Listed(msgspec.Struct, frozen=True):
    """A row of `exercise list`, and of `exercise show` without its own fields."""

    exercise: str
    kind: str
    summary: str


LIST: tuple[Field[Listed], ...] = (
    Field("exercise", "exercise", description="name of the exercise"),
    Field("kind", "kind", description="`question`: an accounting question. `function`: a function to write"),
    Field("summary", "about", wraps=True, description="what is asked, or what the function computes"),
)
SHOWN: tuple[Field[dict[str, Any]], ...] = (
    Field("exercise", description="name of the exercise"),
    Field("kind", description="`question` or `function`"),
    Field("summary", description="what is asked, or what the function computes"),
    Field("hint", description="help for students"),
    Field("question", description="text of the question with the numbers of `--seed`; null for a function"),
    Field("answers", description="examples of answers with their units; null for a function"),
    Field("tolerance", description="largest relative error of an accepted answer; 0: exact. null for a function"),
    Field("solution", description="with `--solution`: how the answer is computed; else null"),
    Field("answer", description="with `--solution`: the right answer in base units; else null"),
    Field("command", description="with `--solution`: the command that shows the figure; else null"),
    Field("signature", description="name and arguments of the function; null for a question"),
    Field("arguments", description="list of the arguments with their shapes; null for a question"),
    Field("returns", description="the result; null for a question"),
    Field("formula", description="what the function computes; null for a question"),
    Field("source", description="paper of the formula; null for a question"),
)


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one exercise.

    `answer`, `tolerance`: of a question. `cases`, `fault`: of a function, see `llmbench.learn.exercises.fault`.
    """

    exercise: str
    kind: str
    passed: bool
    message: str
    answer: float | None = None
    tolerance: float | None = None
    cases: int | None = None
    fault: Fault | None = None


def _fault(name: str, description: str, *, key: str = "") -> Field[Checked]:
    """Return a field with an attribute of the fault. A number that is not finite is a text, because JSON has none."""

    def value(checked: Checked) -> Any:
        found = None if checked.fault is None else getattr(checked.fault, name)
        if isinstance(found, float) and not math.isfinite(found):
            return str(found)
        return list(found) if isinstance(found, tuple) else found or None if isinstance(found, str) else found

    return Field(key or name, value=value, description=description)


CHECKED: tuple[Field[Checked], ...] = (
    Field("exercise", "exercise", description="name of the exercise"),
    Field("kind", description="`question` or `function`"),
    Field(
        "passed", "verdict", text=lambda row: "passed" if row.passed else "FAILED", description="whether it is right"
    ),
    Field(
        "cases",
        "cases",
        "count",
        sparse=True,
        description="calls of the function with right results; null for a question",
    ),
    Field("message", "result", wraps=True, description="`right`, or what is wrong"),
    Field("answer", description="answer in base units; null for a function"),
    Field("tolerance", description="largest relative error of an accepted answer; null for a function"),
    _fault("case", "the call whose result is wrong; this field and the next ones are null if nothing is wrong"),
    _fault("output", "the result that is wrong, if the function returns several"),
    _fault("shape", "shape of this result"),
    _fault("index", "index of the first element that differs from the reference"),
    _fault("expected", "value of this element in the fp64 reference; `inf`, `-inf` and `nan` are texts"),
    _fault("got", "value of this element in the result of the student, in the same form"),
    _fault("error", "error of the result, relative to the reference"),
    _fault("budget", "largest error that the check accepts"),
    _fault("line", "line of the student's file that raised an exception"),
    _fault("code", "text of this line"),
)


@command.command("list")
@prints_tables
def list_exercises(format: As = "table", output: Output = None) -> None:
    """List the exercises.

    Examples:

      llmbench exercise list
    """
    exercises = {name: load_exercise(name) for name in EXERCISES}
    rows = [Listed(name, _kind(exercise), exercise.summary) for name, exercise in exercises.items()]
    lines = ["`llmbench exercise show NAME` shows an exercise"]
    answer(listing("exercise.list", "exercises", LIST, rows, lines=lines), format, output)


@command.command("show")
@prints_tables
def show(name: Name, seed: Seed = 0, solution: Solution = False, format: As = "table", output: Output = None) -> None:
    """Show a question with its numbers, or the signature, shapes and formula of a function.

    Examples:

      llmbench exercise show parameters

      llmbench exercise show kv-cache --seed 7 --solution

      llmbench exercise show rope
    """
    exercise, key = load_exercise(name), name.replace("_", "-")
    row: dict[str, Any] = dict.fromkeys(field.name for field in SHOWN)
    row |= {"exercise": key, "kind": _kind(exercise), "summary": exercise.summary, "hint": exercise.hint}
    if isinstance(exercise, Question):
        asked = exercise.ask(Draw(seed))
        row |= {"question": asked.text, "answers": _examples(asked), "tolerance": asked.tolerance}
        if solution:
            row |= {"solution": asked.solution, "answer": asked.answer, "command": asked.command}
        block = _question_block(key, exercise, asked, seed, solution=solution)
    else:
        if solution:
            raise LLMBenchError(
                f"--solution: {key} is a function, whose solution is not shown", hint="the formula and a hint are shown"
            )
        names = ("signature", "returns", "formula", "source")
        row |= {field: getattr(exercise, field) for field in names} | {"arguments": list(exercise.arguments)}
        block = _function_block(key, exercise)
    document = Document(
        command="exercise.show",
        inputs={"name": name, "seed": seed, "solution": solution},
        rows_key="exercises",
        rows=[record(SHOWN, row)],
        blocks=[block],
        tables=[table(SHOWN, [row])],
    )
    answer(document, format, output)


def _examples(asked: Asked) -> str:
    exact, rounded = EXAMPLES[asked.kind]
    return f"{exact}, {rounded}" if asked.tolerance else exact


def _question_block(name: str, question: Question, asked: Asked, seed: int, *, solution: bool) -> Block:
    same_numbers = f" --seed {seed}" if seed else ""
    exact = "exact" if not asked.tolerance else f"within {100 * asked.tolerance:g}% of the right answer"
    lines = [
        f"answer: {exact}, for example {_examples(asked)}",
        f"hint: {question.hint}",
    ]
    commands = [Command("check it:", f"llmbench exercise check {name}{same_numbers} --answer …")]
    if solution:
        lines.append(f"solution: {asked.solution}")
        commands += [Command("see:", asked.command)] if asked.command else []
    title = f"{name} · {question.summary} · seed {seed}"
    return Block(answer=title, headline=asked.text, lines=lines, commands=commands)


def _function_block(name: str, exercise: Function) -> Block:
    lines = [
        *exercise.arguments,
        f"returns {exercise.returns}",
        f"formula: {exercise.formula}",
        f"source: {exercise.source}",
        f"hint: {exercise.hint}",
    ]
    commands = [Command("check it:", f"llmbench exercise check my.py:{exercise.name}")]
    title = f"{name} · {exercise.summary}"
    return Block(answer=title, headline=f"def {exercise.signature}", lines=lines, commands=commands)


@command.command("check")
@prints_tables
def check(
    target: Target,
    answer_text: Answer = None,
    seed: Seed = 0,
    timeout: Timeout = TIMEOUT_S,
    format: As = "table",
    output: Output = None,
) -> None:
    """Check an answer to a question, or the functions of a Python file. The exit code is 1 if something is wrong.

    A question is graded with the tolerance that `exercise show` states. A function is called with random inputs of
    several shapes, in fp32, and compared with a reference in fp64. The error budget is four times the error of plain
    torch, plus one rounding. The first element that differs is shown. With --seed, the numbers of a question and the
    inputs of a function are others.

    The file runs in a process of its own with a time limit, with your rights: it is no sandbox. What it prints goes to
    stderr.

    Examples:

      llmbench exercise check parameters --seed 11 --answer 779,836,416

      llmbench exercise check attention-share --seed 11 --answer 6.36%

      llmbench exercise check my.py:rope
    """
    path, _, function = (target, "", "") if target.endswith(".py") else target.rpartition(":")
    if path.endswith(".py"):
        rows = _check_file(Path(path), function, answer_text, seed, timeout)
    else:
        rows = [_check_answer(target, answer_text, seed)]
    inputs = {"target": target, "answer": answer_text, "seed": seed, "timeout_s": timeout}
    document = Document(
        command="exercise",
        inputs=inputs,
        rows_key="checks",
        rows=records(CHECKED, rows),
        blocks=[Block(table=table(CHECKED, rows), lines=_summary(rows))],
    )
    answer(document, format, output)
    if not all(row.passed for row in rows):
        raise typer.Exit(1)


def _summary(rows: list[Checked]) -> list[str]:
    lines = [line for row in rows if row.fault is not None for line in _details(row)]
    if len(rows) > 1:
        lines.append(f"{sum(row.passed for row in rows)} of {plural(len(rows), 'exercise')} passed")
    return lines


def _details(row: Checked) -> list[str]:
    """Return lines about the fault of a function."""
    fault, lines = row.fault, []
    assert fault is not None
    if fault.case:
        lines.append(f"{row.exercise}: case: {fault.case}")
    if fault.index is not None:
        which = f"{fault.output}, " if fault.output else ""
        shape = f"[{', '.join(map(str, fault.shape or ()))}]"
        place = f"index [{', '.join(map(str, fault.index))}]" if fault.index else "the only element"
        lines.append(
            f"{row.exercise}: first difference at {which}{place} of shape {shape}: expected {_number(fault.expected)}, "
            f"got {_number(fault.got)}"
        )
        lines.append(f"{row.exercise}: error {fault.error:.1e}, budget {fault.budget:.1e}, relative to the reference")
    if fault.line is not None:
        lines.append(f"{row.exercise}: line {fault.line}: {fault.code}")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.9g}".replace("-", "−")


def _check_answer(name: str, text: str | None, seed: int) -> Checked:
    exercise, key = load_exercise(name), name.replace("_", "-")
    if isinstance(exercise, Function):
        raise LLMBenchError(
            f"{key} is a function",
            hint=f"write it into a file and check it with `exercise check my.py:{exercise.name}`",
        )
    if text is None:
        raise LLMBenchError(
            f"{key} is a question, so --answer is needed", hint=f"`llmbench exercise show {key}` shows it"
        )
    asked = exercise.ask(Draw(seed))
    graded = grade(asked, text)
    return Checked(
        exercise=key,
        kind="question",
        passed=graded.passed,
        message=graded.message,
        answer=graded.answer,
        tolerance=asked.tolerance,
    )


def _check_file(path: Path, function: str, text: str | None, seed: int, timeout: float) -> list[Checked]:
    if text is not None:
        raise LLMBenchError("--answer is for questions, and a file has functions", hint="leave out --answer")
    found = exercises_in(path)
    names = found
    if function:
        exercise = load_exercise(function)
        if not isinstance(exercise, Function):
            raise LLMBenchError(f"{function} is a question, not a function", hint="give its answer with --answer")
        names = [exercise.name.replace("_", "-")]
        if names[0] not in found:
            raise LLMBenchError(f"{path} defines no function `{exercise.name}`")
    need_torch("exercise check")
    rows = []
    for name in names:
        cases, fault, _ = run_check(name, path, seed=seed, timeout_s=timeout, show=_show)
        message = "right" if fault is None else fault.message
        row = Checked(exercise=name, kind="function", passed=fault is None, message=message, cases=cases, fault=fault)
        rows.append(row)
    return rows


def _show(text: str) -> None:
    """Write what the process of a student printed to stderr, because stdout has the answer only."""
    sys.stderr.write(printable(text.expandtabs(), lines=True, prose=True))
