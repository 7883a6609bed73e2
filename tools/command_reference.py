"""Write docs/commands.md from the help texts of the commands.

python tools/command_reference.py            # write the page
python tools/command_reference.py --check    # compare; exit 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from llmbench.cli import build

TARGET = Path(__file__).parent.parent / "docs" / "commands.md"
WIDTH = 100

HEAD = """\
# Commands

<!-- Written by tools/command_reference.py from the help texts. Do not edit; run it again. -->

[Read the JSON](guides/read-the-json.md) describes the JSON of each command.

**Exit codes.** 0: done. 1: the verdict is negative (does not fit, a regression, a row that is INCORRECT or FAILED).
2: wrong usage or input. 3: cannot run here (no GPU, a missing extra, no network). 101: a bug of llmbench. Data goes to
stdout; errors, hints and progress go to stderr.
"""


def commands() -> Iterator[tuple[str, Any, str]]:
    """Return the full name, the object and the help text of llmbench and of each command, in the order of the help."""
    yield from _walk(get_command(build([])), "llmbench", None)


def _walk(command: Any, name: str, parent: Any) -> Iterator[tuple[str, Any, str]]:
    settings = {"terminal_width": WIDTH, "color": False, "resilient_parsing": True}
    context = command.make_context(name.rpartition(" ")[2], [], parent=parent, **settings)
    text = "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())
    yield name, command, text
    for word, inner in getattr(command, "commands", {}).items():
        yield from _walk(inner, f"{name} {word}", context)


def reference() -> str:
    """Return the text of the whole page."""
    parts = [HEAD]
    for name, _, text in commands():
        depth = "##" if name.count(" ") < 2 else "###"
        parts.append(f"{depth} {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write the page. With `--check`, only compare it, and return 1 if it is out of date."""
    text = reference()
    if "--check" in sys.argv[1:]:
        if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
            return 0
        print(f"{TARGET} is out of date: run python tools/command_reference.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
