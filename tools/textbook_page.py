"""Write docs/textbook.md: the claims of the textbook, our figures, the verdicts and the reasons.

Arithmetic gives most figures. The others come from docs/examples/textbook.jsonl, which has recorded runs of
`llmbench bench textbook --preset full`.

python tools/textbook_page.py            # write the page
python tools/textbook_page.py --check    # compare; exit 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from llmbench.bench.experiments.textbook import outcomes
from llmbench.measure.results import read
from llmbench.textbook import TOPICS, Topic
from llmbench.textbook.claim import Outcome
from llmbench.textbook.table import NOTES, claimed_text, figure_text, sentence

DOCS = Path(__file__).parent.parent / "docs"
TARGET, RECORDED = DOCS / "textbook.md", DOCS / "examples" / "textbook.jsonl"

HEAD = """# The textbook, corrected

<!-- Written by tools/textbook_page.py from llmbench/textbook/. Do not edit; run it again. -->

Textbooks, blogs and lectures on language models are full of figures. Flash attention is 7.9 times as fast. GPT-2 has
117 million parameters. Post-norm fails beyond 24 layers. Some of these figures are right. Some are right in one setting
only. Some are wrong, and have been copied for years.

This page takes such claims one by one. llmbench computes the same figure from its description of the model. The two
figures decide, and nobody typed the verdicts. Before you look at a verdict, guess it.

"""

TAIL = """
## Check it yourself

```bash
llmbench textbook                              # all claims, at once and without torch
llmbench textbook positions                    # one topic
llmbench bench textbook --preset full          # measure the other claims on this machine
```

See also [Why post-norm fails](guides/why-post-norm-fails.md),
[Past the training length](guides/past-the-training-length.md) and [worked examples](guides/teach-and-learn.md).

Measured figures come from a [recorded run](examples/textbook.jsonl). The claims are data in `llmbench/textbook`: one
row each, with a function that computes our figure. If your textbook has another figure, add a row.
"""


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*")


def ours(outcome: Outcome) -> str:
    """Return our figures with their settings and formulas, one per line of the cell."""
    lines = []
    for result in outcome.results:
        figure = f"**{cell(figure_text(result.figure, outcome.claim.unit))}**"
        mark = " ✓" if outcome.verdict == "holds if" and result.agrees else ""
        parts = (cell(result.setting), cell(result.formula or "measured"))
        lines.append(f"{figure}{mark} {': '.join(filter(None, parts))}")
    return "<br>".join(lines)


def section(topic: Topic, decisions: dict[str, Outcome]) -> Iterator[str]:
    """Yield the lines about one topic: a table of the claims that are decided, and a table of the others."""
    yield f"\n## {topic.title}\n\n{topic.about}\n"
    decided = [decisions[claim.name] for claim in topic.claims if decisions[claim.name].results]
    others = [claim for claim in topic.claims if not decisions[claim.name].results]
    if decided:
        yield "\n| verdict | claim | claimed | llmbench | why |\n|---|---|---|---|---|\n"
    for outcome in decided:
        claim = outcome.claim
        about = f"{claim.says[:1].upper()}{claim.says[1:]}.<br>*{cell(claim.at)}*"
        command = f"<br>`{claim.command}`" if claim.command else ""
        why = f"{cell(claim.why)}{command}"
        yield f"| **{outcome.verdict}** | {about} | {cell(claimed_text(claim))} | {ours(outcome)} | {why} |\n"
    if others:
        yield "\nThese claims are not decided yet:\n\n| decided by | claim | claimed | why |\n|---|---|---|---|\n"
    for claim in others:
        about = f"{claim.says[:1].upper()}{claim.says[1:]}.<br>*{cell(claim.at)}*"
        work = "a training on a CPU" if claim.settled_by == "CPU" else "a GPU"
        command = f"<br>`{claim.command}`" if claim.command else ""
        yield f"| {work}{command} | {about} | {cell(claimed_text(claim))} | {cell(claim.why)} |\n"
    sources = sorted({source for claim in topic.claims for source in claim.source.split("; ")})
    yield f"\nSources: {'; '.join(sources)}.\n"


def reference() -> str:
    """Return the text of the whole page."""
    recorded = read(RECORDED)
    decided = outcomes(recorded.rows)
    by_name = {outcome.claim.name: outcome for outcome in decided}
    rules = "".join(f"- {note[:1].upper()}{note[1:]}.\n" for note in NOTES)
    topics = "".join(line for topic in TOPICS.values() for line in section(topic, by_name))
    return f"{HEAD}{sentence(decided)}\n\n{rules}{topics}{TAIL}"


def main() -> int:
    """Write the page. With `--check`, only compare it, and return 1 if it is out of date."""
    text = reference()
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET} is out of date: run python tools/textbook_page.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
