"""Run the examples of README.md and docs/, and compare their output with the pages.

    python tools/doc_examples.py [PAGE...]             # write the actual output into the pages (default: all pages)
    python tools/doc_examples.py --check [PAGE...]     # compare; exit 1 and show the differences
    python tools/doc_examples.py --record PAGE...      # also run the recorded examples

An example is a fenced block marked `console`. Each command in it begins with one of PROMPTS. The output of a command
(stdout, then stderr) follows the command, as in a terminal of 80 columns. A line that contains only `…` stands for any
number of lines. The examples of a page run in order, in one temporary folder that has only links to benchmarks/ and
docs/ at first. A block marked `json title="NAME"`, `toml …` or `python …` is first written to the file NAME in that
folder.

A block marked `console title="recorded"` shows measured times, which differ in every run, or figures that take long and
that a test computes too. It runs with --record only.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llmbench.cli import run

ROOT = Path(__file__).parent.parent
RECORDED = 'console title="recorded"'
BLOCK = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
PROMPTS = ("$ llmbench", "$ python", "$ torchrun")
ANYTHING = "…"


def pages() -> list[Path]:
    """Return every page that may contain examples."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def in_own_process(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` in a process of its own."""
    own = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, env=own)


def output_of(command: str) -> str:
    """Return the output of a command when stdout is not a terminal.

    `llmbench ...` runs in this process, or in a new process if the command measures or compiles. `python FILE` runs a
    file of this repository.
    """
    if command.startswith("python "):
        words = [sys.executable, *command.split()[1:]]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if command.startswith("torchrun "):
        done = in_own_process(["torch.distributed.run", *shlex.split(command)[1:]])
        return done.stdout + done.stderr
    kernels = tuple(f"llmbench kernels {name}" for name in ("bench", "check", "inspect"))
    # The imports of these commands decide whether kernels run in the interpreter, so each command needs a new process.
    measuring = ("profile", "bench", "train")
    if command.startswith(tuple(f"llmbench {name}" for name in ("ablate", "dynamics", "extrapolate"))):
        done = in_own_process(shlex.split(command))
        return done.stdout or done.stderr  # stderr also has lines about the progress
    if command.startswith((*(f"llmbench {name}" for name in measuring), *kernels)):
        done = in_own_process(shlex.split(command))
        return done.stdout + done.stderr
    text = io.StringIO()
    problems = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(problems):
        run(shlex.split(command)[1:])
    return text.getvalue() + problems.getvalue()


def commands(body: str) -> Iterator[tuple[str, str]]:
    """Return the commands of a console block, each with the output that the page shows below the command."""
    for part in re.split(r"^(?=\$ )", body, flags=re.MULTILINE):
        first, _, rest = part.partition("\n")
        if first.startswith("$ "):
            yield first.removeprefix("$ "), rest


@contextlib.contextmanager
def folder() -> Iterator[None]:
    """Use a temporary folder as the working directory inside the `with` block, and 80 columns as the width."""
    before, width = Path.cwd(), os.environ.get("COLUMNS")
    with tempfile.TemporaryDirectory() as path:
        for name in ("benchmarks", "docs"):
            Path(path, name).symlink_to(ROOT / name)
        os.chdir(path)
        os.environ["COLUMNS"] = "80"
        try:
            yield
        finally:
            os.chdir(before)
            del os.environ["COLUMNS"]
            os.environ |= {} if width is None else {"COLUMNS": width}


def actual(page: str, record: bool = False) -> str:
    """Return the text of the page with the actual output of its examples. With `record`, run recorded examples too."""
    runs = ("console", RECORDED) if record else ("console",)

    def filled(match: re.Match[str]) -> str:
        info, body = match["info"].strip(), match["body"]
        if named := re.fullmatch(r'(?:json|toml|python) title="(.+)"', info):
            Path(named[1]).parent.mkdir(parents=True, exist_ok=True)
            Path(named[1]).write_text(body, encoding="utf-8")
        if info not in runs:
            return match[0]
        done = []
        for command, shown in commands(body):
            printed = output_of(command)
            done.append(f"$ {command}\n{shown if agrees(shown, printed) else printed}")
        return f"```{info}\n{''.join(done)}```"

    with folder():
        return BLOCK.sub(filled, page)


def agrees(shown: str, printed: str) -> bool:
    """Return whether the output on the page equals the printed output. A `…` line matches any number of lines."""
    first, *others = re.split(rf"^{ANYTHING}\n", shown.rstrip() + "\n", flags=re.MULTILINE)
    text = printed.rstrip() + "\n"
    if not others:
        return text == first
    if not text.startswith(first):
        return False
    end = len(first)  # the end of what is already matched; each part is matched as early as possible
    for part in others[:-1]:
        at = end if text.startswith(part, end) else text.find(f"\n{part}", end) + 1
        if not text.startswith(part, at):
            return False
        end = at + len(part)
    start = len(text) - len(others[-1])
    return start >= end and text.endswith(others[-1]) and (start == 0 or text[start - 1] == "\n")


def main() -> int:
    """Write the pages. With `--check`, only print the differences, and return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("pages", metavar="PAGE", nargs="*", type=Path)
    asked = parser.parse_args()
    stale = 0
    for path in [page.resolve() for page in asked.pages] or pages():
        before = path.read_text(encoding="utf-8")
        after = actual(before, asked.record)
        if after == before:
            continue
        stale += 1
        if asked.check:
            name = str(path.relative_to(ROOT))
            sys.stdout.writelines(
                difflib.unified_diff(before.splitlines(True), after.splitlines(True), name, "real output")
            )
        else:
            path.write_text(after, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} rewritten")
    return 1 if stale and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
