"""Write the tables of pieces, experiments and implementations into the docs, between the markers of each page.

python tools/bench_lists.py            # write the tables
python tools/bench_lists.py --check    # compare; exit 1 if a table is out of date
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmbench.bench.experiments import EXPERIMENTS
from llmbench.bench.extra_candidates import EXTRA_CANDIDATES
from llmbench.bench.pieces import PIECES
from llmbench.model.implementations import IMPLEMENTATIONS

DOCS = Path(__file__).parent.parent / "docs"


def table(headings: Sequence[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table. The first cell of a row is a name."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return lines + [f"| `{name}` | {' | '.join(cells)} |" for name, *cells in rows]


TABLES: dict[str, dict[str, list[str]]] = {
    "guides/profile-and-bench.md": {
        "pieces": table(
            ("name", "what it is", "default `--impl` on a GPU", "on a CPU"),
            ((name, piece.what, f"`{piece.impl}`", f"`{piece.cpu_impl}`") for name, piece in PIECES.items()),
        ),
        "candidates": table(
            ("`--impl`", "what it is"), ((name, candidate.what) for name, candidate in EXTRA_CANDIDATES.items())
        ),
        "experiments": table(
            ("name", "what it is", "`--model`", "`--seq`", "`--batch`"),
            (
                (name, about.what, about.model or "–", about.seq or "–", about.batch or "–")
                for name, about in EXPERIMENTS.items()
            ),
        ),
    },
    "guides/build-the-model.md": {
        "implementations": table(
            ("`--impl`", "computes with"), ((name, about.what) for name, about in IMPLEMENTATIONS.items())
        ),
    },
    "components/attention.md": {
        "implementations": table(
            ("`impl`", "scores in memory", "soft cap, sinks", "biases (ALiBi, T5)", "runs on"),
            ((name, about.scores, about.caps, about.biases, about.devices) for name, about in IMPLEMENTATIONS.items()),
        ),
    },
}
"""The tables of each page, by the name in the marker."""


def current(page: str, text: str) -> str:
    """Return the text of the page with up-to-date tables."""
    for name, lines in TABLES[page].items():
        marked = re.compile(rf"(<!-- {name}: written by tools/bench_lists\.py -->\n).*?(<!-- end -->)", re.DOTALL)
        assert marked.search(text), f"{page} has no marker for the table of {name}"
        text = marked.sub(lambda match, lines=lines: match[1] + "\n".join(lines) + "\n" + match[2], text)
    return text


def main() -> int:
    """Write the tables. With `--check`, only compare them, and return 1 if a table is out of date."""
    stale = 0
    for page in TABLES:
        path = DOCS / page
        text = path.read_text(encoding="utf-8")
        if current(page, text) == text:
            continue
        stale += 1
        if "--check" in sys.argv[1:]:
            print(f"{path} is out of date: run python tools/bench_lists.py", file=sys.stderr)
        else:
            path.write_text(current(page, text), encoding="utf-8")
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
