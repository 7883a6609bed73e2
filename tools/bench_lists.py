"""Write the tables of pieces and experiments into docs/guides/profile-and-bench.md, between the markers of that page.

python tools/bench_lists.py            # write the tables
python tools/bench_lists.py --check    # compare; exit 1 if a table is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from llmbench.bench.experiments import EXPERIMENTS
from llmbench.bench.pieces import PIECES, describe_piece

PAGE = Path(__file__).parent.parent / "docs" / "guides" / "profile-and-bench.md"
LISTS: dict[str, Mapping[str, str]] = {
    "pieces": {name: describe_piece(name) for name in PIECES},
    "experiments": EXPERIMENTS,
}


def current(text: str) -> str:
    """Return the text of the page with up-to-date tables."""
    for name, entries in LISTS.items():
        marked = re.compile(rf"(<!-- {name}: written by tools/bench_lists\.py -->\n).*?(<!-- end -->)", re.DOTALL)
        lines = ["| name | what it is |", "|---|---|", *(f"| `{key}` | {what} |" for key, what in entries.items())]
        text = marked.sub(lambda match, lines=lines: match[1] + "\n".join(lines) + "\n" + match[2], text)
    return text


def main() -> int:
    """Write the tables. With `--check`, only compare them, and return 1 if a table is out of date."""
    text = PAGE.read_text(encoding="utf-8")
    if current(text) == text:
        return 0
    if "--check" in sys.argv[1:]:
        print(f"{PAGE} is out of date: run python tools/bench_lists.py", file=sys.stderr)
        return 1
    PAGE.write_text(current(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
