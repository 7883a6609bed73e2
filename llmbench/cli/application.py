"""The application of the command line: it runs the command that the arguments name, and reports errors."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, Literal

import typer

from llmbench._version import __version__
from llmbench.cli import COMMANDS
from llmbench.cli.help import HelpfulCommand, HelpfulGroup
from llmbench.cli.messages import abandon, say
from llmbench.errors import CannotRunError, LLMBenchError

BUG = 101
"""The exit code after an unexpected exception."""

HELP = """Size, profile and benchmark language models. All figures come from one description of the model.

Examples:

  llmbench params llama2-7b

  llmbench memory llama3-70b --layout tp=8 --seq 8k

  llmbench profile attention --device cpu

  llmbench flops --help
"""
WIDEST_HELP = 120
"""The largest number of columns of a help text. A narrower terminal gets a narrower help text."""


def run(arguments: list[str], *, imported: Callable[[], None] = lambda: None) -> int:
    """Run one command and return its exit code. Errors and hints are written to stderr.

    `imported`: called when the module of the command is imported, before the command runs.
    """
    try:
        code = _run(arguments, imported)
        sys.stdout.flush()
        return code
    except (SystemExit, BrokenPipeError):  # typer raises SystemExit if the pipe is broken
        abandon(sys.stdout)
        return 0  # a closed pipe is not an error: `llmbench … | head` closes it early
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as problem:
        # An OSError without a file name means that writing to stdout failed.
        if isinstance(problem, OSError) and problem.filename is None and problem.strerror:
            abandon(sys.stdout)
            _report(f"cannot write the answer to stdout: {problem.strerror}")
            return 2
        if _is_out_of_memory(problem):
            amount = re.search(r"tried to allocate ([0-9.]+ ?[A-Za-z]+)", str(problem), re.IGNORECASE)
            needed = f": {amount[1]} more could not be allocated" if amount else ""
            _report(f"too little memory{needed}", "try a smaller model, a smaller batch or shorter sequences")
            return CannotRunError.exit_code
        import traceback

        traceback.print_exc()
        _report("this is a bug in llmbench", "please report the lines above and the command that you ran")
        return BUG


def _is_out_of_memory(problem: Exception) -> bool:
    """Return whether a command needed more memory than the system or a GPU gave it."""
    if isinstance(problem, MemoryError):
        return True
    if "torch" not in sys.modules:  # torch's errors have classes and texts of their own
        return False
    from llmbench.measure.faults import is_out_of_memory

    return is_out_of_memory(problem)


def _run(arguments: list[str], imported: Callable[[], None]) -> int:
    # Typer does not export the base class of its usage errors, so we take the class from the bases of an exported
    # error.
    usage_error: Any = typer.BadParameter.__mro__[2]
    app = build(arguments)
    imported()
    try:
        result = app(args=arguments, prog_name="llmbench", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except LLMBenchError as problem:
        if problem.exit_code != LLMBenchError.exit_code or _speaks():
            _report(str(problem), problem.hint)
        return problem.exit_code
    except usage_error as problem:
        message = problem.format_message()
        if "Usage:" in message[:20]:  # if no command is given, typer raises the help text as an error
            print(message)
            return 0
        from llmbench.cli.hints import usage_error as described  # only a failing command needs it

        if _speaks():
            _report(*described(problem, arguments, app))
        return 2
    except typer.Exit as stop:
        return stop.exit_code


def _speaks() -> bool:
    """Return whether this process reports that the input is wrong.

    All processes of torchrun have this error, so only the first one on a machine reports it. A lost GPU or a missing
    one can be the problem of one process, which reports it itself.
    """
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0"


def build(arguments: list[str]) -> Any:
    """Build the typer application with only the command that `arguments` name, so that no other module is imported.

    If `arguments` name no command, the application has all commands, because the help lists them.
    """
    app = typer.Typer(
        name="llmbench",
        help=HELP,
        no_args_is_help=True,
        add_completion=False,  # llmbench.cli.completion answers without typer
        rich_markup_mode=None,  # rich lengthens the help of a command by the time of its import
        cls=HelpfulGroup,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST_HELP},
    )
    app.callback()(_root)
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    names = [wanted] if wanted in COMMANDS else list(COMMANDS)
    for name in names:
        module = import_module(COMMANDS[name])
        command = module.command
        if isinstance(command, typer.Typer):
            for inner in command.registered_commands:
                inner.cls = HelpfulCommand
            app.add_typer(command, name=name, cls=HelpfulGroup)
        else:
            app.command(name, cls=getattr(module, "COMMAND_CLASS", HelpfulCommand))(command)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"llmbench {__version__}")
        raise typer.Exit


def _show_completion(shell: str | None) -> None:
    if shell is not None:
        from llmbench.cli.completion import SCRIPTS

        print(SCRIPTS[shell])
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
    show_completion: Annotated[
        Literal["bash", "zsh", "fish"] | None,
        typer.Option(
            "--show-completion",
            help="Show the script that completes commands, options and names in a shell, and exit.",
            is_eager=True,
            callback=_show_completion,
            show_default=False,
        ),
    ] = None,
) -> None:
    pass


def _report(message: str, hint: str | None = None) -> None:
    say(f"error: {message}" + (f"\n\nhint: {hint}" if hint else ""))
