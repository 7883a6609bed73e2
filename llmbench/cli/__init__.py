"""The command line. Each command has one module, which is imported only if the command runs.

No other package of llmbench prints text or ends the process.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # without an import of typing, the command line sooner begins to handle Ctrl-C
if TYPE_CHECKING:
    from typing import Any

GROUPS: dict[str, dict[str, str]] = {
    "Size": {
        "params": "llmbench.cli.params",
        "flops": "llmbench.cli.flops",
        "kvcache": "llmbench.cli.kvcache",
        "memory": "llmbench.cli.memory",
        "fit": "llmbench.cli.fit",
        "mfu": "llmbench.cli.mfu",
        "compare": "llmbench.cli.compare",
        "validate": "llmbench.cli.validate",
    },
    "Measure": {
        "model": "llmbench.cli.model",
        "profile": "llmbench.cli.profile",
        "bench": "llmbench.cli.bench",
        "kernels": "llmbench.cli.kernels",
        "diff": "llmbench.cli.diff",
    },
    "Learn": {
        "train": "llmbench.cli.train",
        "evaluate": "llmbench.cli.evaluate",
        "generate": "llmbench.cli.generate",
        "ablate": "llmbench.cli.ablate",
        "dynamics": "llmbench.cli.dynamics",
        "extrapolate": "llmbench.cli.extrapolate",
        "worked": "llmbench.cli.worked",
        "exercise": "llmbench.cli.exercise",
        "choose": "llmbench.cli.choose",
        "textbook": "llmbench.cli.textbook",
    },
    "Data": {
        "specs": "llmbench.cli.specs",
        "env": "llmbench.cli.env",
    },
}
"""The module of each command, by group. `llmbench --help` lists the groups and commands in this order."""

COMMANDS: dict[str, str] = {name: module for group in GROUPS.values() for name, module in group.items()}
"""The module of each command."""

COMPLETE = "_LLMBENCH_COMPLETE"
"""The environment variable with which a completion script asks for the words that can follow. It names the shell."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and end the process with the exit code of the command.

    0: the command succeeded. 1: the verdict is negative: a result is wrong, an implementation failed, `diff` found a
    regression, or a model fits on none of the named devices. 2: the input is wrong. 3: the command cannot run on this
    machine. 101: llmbench has a bug. 130: the user stopped the command.
    """
    import gc
    import signal

    # A parent process such as nohup ignores Ctrl-C. Otherwise the handler is that of Python or of llmbench.__main__.
    handles_interrupts = signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None)
    if handles_interrupts:  # until the command runs, because an import can lose a KeyboardInterrupt
        signal.signal(signal.SIGINT, _stop)
    words = sys.argv[1:] if arguments is None else arguments
    shell = os.environ.get(COMPLETE)
    if shell is not None:
        from llmbench.cli.completion import complete

        try:
            print("\n".join(complete(words, shell)), flush=True)
        except OSError:
            from llmbench.cli.messages import abandon

            abandon(sys.stdout)
        return
    _fill_closed_streams()
    import io

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() not in ("utf-8", "utf8"):
            from llmbench.cli.encodings import SIGNS  # most terminals understand UTF-8

            stream.reconfigure(errors=SIGNS)
    gc.disable()  # The imports create many objects and no garbage. A collection would only visit these objects.
    from llmbench.cli import application

    def collect() -> None:
        gc.freeze()  # what is imported stays, so no collection visits it
        gc.enable()
        if handles_interrupts:
            sys.unraisablehook = _interrupt_again
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        code = application.run(words, imported=collect)
        if handles_interrupts:
            signal.signal(signal.SIGINT, _stop)
    except KeyboardInterrupt:  # a second one, while the command was ending
        code = 130
    if "torch" not in sys.modules:
        # When the process ends, the interpreter visits every object that is not frozen. This would take a fifth of the
        # time of a sizing command. Triton reports objects that are not freed, so they are not frozen.
        gc.freeze()
    raise SystemExit(code)


def _stop(*_: object) -> None:
    """End the process at once, because the user pressed Ctrl-C. Call this only while no command runs."""
    os._exit(130)


def _interrupt_again(unraisable: Any) -> None:
    """Deliver Ctrl-C once more. Python ignores a KeyboardInterrupt in a callback that runs when an object is freed."""
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    import signal
    import threading

    # A signal at once would interrupt this function. The main thread may be waiting, so it gets a real signal.
    threading.Timer(0.01, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()


def _fill_closed_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the next file that a command opens would get the number of the stream, and answers would go into it.
    """
    numbers = [number for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)) if stream is None]
    for number in numbers:
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if sys.stdout is None:
        sys.stderr.write("error: stdout is closed, so the answer cannot be written\n")
        raise SystemExit(2)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. Errors and hints are written to stderr."""
    from llmbench.cli import application

    return application.run(arguments)
