"""Run a command of llmbench inside this process, and judge what it wrote."""

from __future__ import annotations

import contextlib
import io
import random
import re
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_readers import MOST_S, TooLong, place

from llmbench.cli.application import run
from llmbench.printable import UNSAFE

ROOT = Path(__file__).resolve().parents[2]
MOST_WALL_S = 60
"""The most seconds of one try. A loaded machine gives a process only a part of them."""
MOST_MEMORY = 10 * 2**30
"""The most address space of a process, in bytes. A command that reads an endless file ends before the machine does."""
KNOWN_CODES = {0, 1, 2, 3, 130}
UNSAFE_CHARACTER = re.compile(f"[{UNSAFE}]")
FORMATS = ("table", "json", "csv", "markdown")
EVIL = "x\x1b]52;c;aGk=\x07\x1b[2K\r\x9b31m\u202e\u2028\u200b\ny"
WORDS: tuple[str, ...] = (
    EVIL,
    "\x1b[2J",
    "-",
    "--",
    "--x",
    "-h",
    "~",
    "~root/x.json",
    "$HOME",
    "a\nb",
    "\t",
    " ",
    "",
    ".",
    "..",
    "/",
    "x" * 5000,
    "x/" * 3000,
    "9" * 400,
    "-1",
    "0",
    "1e400",
    "nan",
    "١٢",
    "²",
    "1..2",
    "8k..1m",
    ",",
    "=",
    "a=b=c",
    "hidden_size=-1",
    "*=1",
    "\udcff\udc80",  # bytes of an argument that are not UTF-8
    "e\u0301" * 50,
    "🦙" * 100,
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "|`$(id)`|",
    "=cmd()",
    "%s%n{0}{x}",
    "[bold red]x[/]",
    "llama2-7b",
    "gpt2",
    "h100",
    "cpu",
    "meta",
    "cuda:99",
    "tp=8,pp=4",
    "tp=2147483647,pp=2147483647",
    "/dev/zero",
    "/dev/full",
    "/dev/null",
    "/dev/tty",
    "/proc/self/mem",
    "/proc/self/environ",
    "/proc/1/root",
    "pipe",
    "loop",
    "folder",
    "new.json",
    "new.toml",
    "missing/new.csv",
    "hf:x",
    "hf:../../etc",
    "hf:" + EVIL,
    "hf:a/b/c",
    "http://127.0.0.1:9/x.json",
    "file:///etc/passwd",
)
"""Words in place of arguments and values. A path in them is in the folder of the try, or cannot be harmed."""


class Answer(NamedTuple):
    """What a command wrote, and its exit code. `code`: negative if a signal ended the process; None after a hang."""

    code: int | None
    out: str
    err: str


Problems = list[str]
Attempt = Callable[[random.Random, Path], Problems]
"""A kind of tries: run one in an empty folder, and return what went wrong."""


def faults_of(answer: Answer, *, sent: int = 0, styles: bool = False) -> Problems:
    """Return what no command may do. `sent`: the signal that was sent. `styles`: whether stdout is a terminal."""
    problems = []
    code, out, err = answer
    if code is None:
        problems.append("hang")
    elif code == 101 or "Traceback (most recent call last)" in err:
        problems.append(f"traceback: {err.strip()[-300:]}")
    elif code not in KNOWN_CODES and code != -sent:
        problems.append(f"exit code {code}: {err[-200:]}")
    elif code == 2 and not (out if styles else err).strip():  # a terminal gets both
        problems.append("exit code 2 without a message")
    if styles:
        out = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]|\r", "", out)
    for name, text in (("stdout", out), ("stderr", err)):
        found = UNSAFE_CHARACTER.search(text.replace("\n", ""))
        if found:
            problems.append(f"unsafe character {found[0]!r} on {name}")
    if len(err) > 20_000:
        problems.append(f"{len(err):,} characters on stderr")
    return problems


def inside(arguments: Sequence[str]) -> Answer:
    """Run a command in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    code: int | None = None
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_S)
    signal.setitimer(signal.ITIMER_REAL, MOST_WALL_S)
    crash = ""
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            code = run(list(arguments))
    except TooLong:
        crash = f"too long at {place()}"
    except BaseException:
        code, crash = 101, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    texts = []
    for stream in streams:
        with contextlib.suppress(ValueError):
            stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "replace"))  # type: ignore[attr-defined]
    return Answer(code, texts[0], texts[1] + crash)


codes: Counter[int | None] = Counter()
"""The exit codes of the present kind of tries."""


def named(arguments: Sequence[str], answer: Answer, **options: Any) -> Problems:
    """Count the exit code of an answer. Return its faults, each with the command."""
    codes[answer.code] += 1
    command = " ".join(repr(word)[:120] for word in arguments)
    return [f"{fault} | {command}" for fault in faults_of(answer, **options)]
