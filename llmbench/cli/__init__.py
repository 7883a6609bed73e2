"""The command line: one module per command, imported only if the command runs. No other package prints or exits."""

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
"""Each command with its module, in the order of `llmbench --help`."""

BUG = 101
"""Exit code of an unexpected exception."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its exit code.

    0: done. 1: negative verdict. 2: wrong input. 3: cannot run here. 101: a bug in llmbench.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="replace")  # prints ? for × if the terminal has no ×
    raise SystemExit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command and return the exit code. Errors and hints go to stderr."""
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except (SystemExit, BrokenPipeError):  # typer raises SystemExit if the pipe is broken
        _leave_stdout()
        return 0  # `llmbench … | head` closes the pipe early, which is no error
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as problem:
        # An OSError without a file name comes from writing to stdout.
        if isinstance(problem, OSError) and problem.filename is None and problem.strerror:
            _leave_stdout()
            _report(f"cannot write the answer to stdout: {problem.strerror}")
            return 2
        import traceback

        traceback.print_exc()
        _report("this is a bug in llmbench", "please report it with the lines above and your command")
        return BUG


def _run(arguments: list[str]) -> int:
    # Typer does not export the base class of the parser's errors, so take it from the bases of an exported error.
    usage_error: Any = typer.BadParameter.__mro__[2]
    try:
        result = build(arguments)(args=arguments, prog_name="llmbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LLMBenchError as problem:
        _report(str(problem), problem.hint)
        return problem.exit_code
    except usage_error as problem:
        message = problem.format_message()
        if message.startswith("Usage:"):  # the user gave no command, so the message is the help
            print(message)
            return 0
        _report(message, _usage_hint(problem))
        return 2
    except typer.Exit as stop:
        return stop.exit_code


def _leave_stdout() -> None:
    """Redirect stdout to the null device, so that writing its buffer does not fail again when the process ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def build(arguments: list[str]) -> Any:
    """Build the application with the one command that `arguments` name. For the help, build it with all commands."""
    app = typer.Typer(
        name="llmbench",
        help="Size, profile and benchmark language models. All figures come from one description of the model.",
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


def _report(message: str, hint: str | None = None) -> None:
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
    return f"`{path} --help` shows its arguments and options"
