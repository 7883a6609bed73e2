"""The command line: one module a command, imported only when it is called. The only place that prints or exits."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer

from llmbench._version import __version__
from llmbench.errors import LLMBenchError

COMMANDS = {
    "specs": "llmbench.cli.specs",
    "params": "llmbench.cli.params",
    "flops": "llmbench.cli.flops",
    "kvcache": "llmbench.cli.kvcache",
    "memory": "llmbench.cli.memory",
    "compare": "llmbench.cli.compare",
    "model": "llmbench.cli.model",
    "kernels": "llmbench.cli.kernels",
    "profile": "llmbench.cli.profile",
    "bench": "llmbench.cli.bench",
    "diff": "llmbench.cli.diff",
    "env": "llmbench.cli.env",
}
"""Every command and the module that has it, in the order of the help."""

BUG = 101


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 negative verdict, 2 bad input, 3 cannot run here, 101 a bug of ours."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="replace")  # a × becomes a ?, where the terminal has none
    raise SystemExit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; the exit code. Errors go to stderr, with a hint where there is one."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except (SystemExit, BrokenPipeError):  # typer leaves by the first
        _leave_stdout()
        return 0  # the reader went away, as `head` does; nothing is wrong
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as problem:
        if isinstance(problem, OSError) and problem.filename is None and problem.strerror:  # no file: a stream
            _leave_stdout()
            _complain(f"cannot write the answer: {problem.strerror}")
            return 2
        import traceback

        traceback.print_exc()
        _complain("this is a bug in llmbench", "please report it with the lines above and the command you ran")
        return BUG


def _run(arguments: list[str]) -> int:
    # What every complaint of the parser descends from; typer does not export it.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        result = build(arguments)(args=arguments, prog_name="llmbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LLMBenchError as problem:
        _complain(str(problem), problem.hint)
        return problem.exit_code
    except usage_error as problem:
        message = problem.format_message()
        if message.startswith("Usage:"):  # nothing was asked for, so the help is the answer
            print(message)
            return 0
        _complain(message, _usage_hint(problem))
        return 2
    except typer.Exit as stop:
        return stop.exit_code


def _leave_stdout() -> None:
    """Nothing more can be written: what is left in the buffer must not fail again at the end of the process."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def build(arguments: list[str]) -> Any:
    """The application with the command that `arguments` name, or with all of them for help."""
    app = typer.Typer(
        name="llmbench",
        help="Size, profile and benchmark language models: one description, every figure from it.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    names = [wanted] if wanted in COMMANDS else list(COMMANDS)
    for name in names:
        command = import_module(COMMANDS[name]).command
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"llmbench {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def _complain(message: str, hint: str | None = None) -> None:
    text = f"error: {message}\n"
    if hint:
        text += f"\nhint: {hint}\n"
    sys.stderr.write(text)


def _usage_hint(problem: Any) -> str:
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "llmbench"
    message = problem.format_message()
    if message.startswith("No such command '"):
        return "`llmbench --help` lists all commands"
    return f"`{path} --help` shows what it takes"
