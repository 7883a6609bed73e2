"""Write docs/textbook.md: the claims of the textbook, our figures, the verdicts and the reasons.

Arithmetic gives most figures. The others come from recorded trainings: see tools/record_textbook.py.

python tools/textbook_page.py            # write the page
python tools/textbook_page.py --check    # compare; exit 1 if the page is out of date
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from llmbench.report.units import plural
from llmbench.textbook import CLAIMS, TOPICS, Topic
from llmbench.textbook.claim import MEASURES, Claim, Outcome, Result, decide
from llmbench.textbook.recorded import names, recorded
from llmbench.textbook.table import NOTES, claimed_text, figure_text, interval_text, mark, sentence

TARGET = Path(__file__).parent.parent / "docs" / "textbook.md"

HEAD = """# The textbook, corrected

<!-- Written by tools/textbook_page.py from llmbench/textbook/. Do not edit; run it again. -->

Textbooks, blogs and lectures on language models are full of figures. Flash attention is 7.9 times as fast. GPT-2 has
117 million parameters. Post-norm fails beyond 24 layers. Some of these figures are right. Some are right in one setting
only. Some are wrong, and have been copied for years.

This page takes such claims one by one. llmbench computes the same figure from its description of the model, or reads it
from [small models that it trained](#the-trainings). llmbench computes each verdict from the two figures. Before you
look at a verdict, guess it.

"""

TRAININGS = """
## The trainings

Small models on a CPU decide the claims about learning and about longer texts. These commands trained them, and
`llmbench textbook` reads their recorded figures. A figure has the mean over seeds and, in brackets, the 95% interval of
the mean. A single seed has no interval.

| commands | text | machine |
|---|---|---|
"""

TAIL = """
On the same kind of machine, the commands give the same losses. The sources of Python's standard library (`stdlib`)
change with the version of Python, and so do the losses on them.

## Check it yourself

```bash
llmbench textbook                              # all claims, at once and without torch
llmbench textbook positions                    # one topic
llmbench bench textbook --preset full          # measure the claims that need a GPU
```

See also [Why post-norm fails](guides/why-post-norm-fails.md),
[Past the training length](guides/past-the-training-length.md),
[From GPT-2 to LLaMA, measured](guides/from-gpt2-to-llama.md) and [worked examples](guides/teach-and-learn.md).

The claims are data in `llmbench/textbook`: one row each, with a function that computes our figure. If your textbook has
another figure, add a row.
"""


def cell(text: str) -> str:
    """Return a text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*")


def ours(outcome: Outcome) -> str:
    """Return our figures with their settings and formulas, one per line of the cell. A common formula stands below."""
    formulas = list(dict.fromkeys(result.formula for result in outcome.results))
    common = len(formulas) == 1 < len(outcome.results)
    lines = [line(outcome, result, "" if common else result.formula) for result in outcome.results]
    return "<br>".join([*lines, f"*{cell(formulas[0])}*"] if common else lines)


def line(outcome: Outcome, result: Result, formula: str) -> str:
    """Return one of our figures with its interval, its setting and its formula."""
    unit = outcome.claim.unit
    figure = f"**{cell(figure_text(result.figure, unit))}**{interval_text(result, unit)}{mark(outcome, result)}"
    about = ": ".join(filter(None, (cell(result.setting), cell(formula))))
    seeds = "" if result.seeds is None else f" ({plural(result.seeds, 'seed')})"
    return f"{figure} {about}{seeds}"


def about(claim: Claim) -> str:
    """Return what a claim says, and its setting."""
    return f"{claim.says[:1].upper()}{claim.says[1:]}.<br>*{cell(claim.at)}*"


def section(topic: Topic, decisions: dict[str, Outcome]) -> Iterator[str]:
    """Yield the lines about one topic: a table of the claims that are decided, and a table of the others."""
    yield f"\n## {topic.title}\n\n{topic.about}\n"
    decided = [decisions[claim.name] for claim in topic.claims if decisions[claim.name].results]
    others = [claim for claim in topic.claims if not decisions[claim.name].results]
    if decided:
        yield "\n| verdict | claim | claimed | llmbench | why |\n|---|---|---|---|---|\n"
    for outcome in decided:
        claim = outcome.claim
        command = f"<br>`{claim.shown_by}`" if claim.shown_by else ""
        reason = f"{outcome.reason[:1].upper()}{outcome.reason[1:]}. " if outcome.reason else ""
        why = f"{cell(reason + claim.why)}{command}"
        yield f"| **{outcome.verdict}** | {about(claim)} | {cell(claimed_text(claim))} | {ours(outcome)} | {why} |\n"
    if others:
        yield f"\nThese claims need a GPU. `{MEASURES}` measures them:\n"
        yield "\n| claim | claimed | why |\n|---|---|---|\n"
    for claim in others:
        assert claim.shown_by == MEASURES
        yield f"| {about(claim)} | {cell(claimed_text(claim))} | {cell(claim.why)} |\n"
    sources = sorted({source for claim in topic.claims for source in claim.source.split("; ")})
    yield f"\nSources: {'; '.join(sources)}.\n"


def trainings() -> Iterator[str]:
    """Yield a row for all recorded runs on the same text and the same kind of machine."""
    places: dict[tuple[str, str], list[str]] = {}
    for name in names():
        run = recorded(name)
        machine = run.machine
        kind = (
            f"{machine['cpu']}, {plural(machine['threads'], 'thread')} · llmbench {run.llmbench} · torch"
            f" {machine['torch']} · Python {machine['python']}"
        )
        text = f"{run.text.name} (SHA-256 of its train part: `{run.text.sha256[:16]}…`)"
        places.setdefault((text, kind), []).append(f"`{run.command}`")
    for (text, kind), commands in places.items():
        yield f"| {'<br>'.join(commands)} | {text} | {kind} |\n"


def reference() -> str:
    """Return the text of the whole page."""
    by_name = {claim.name: decide(claim) for claim in CLAIMS}
    rules = "".join(f"- {note[:1].upper()}{note[1:]}.\n" for note in NOTES)
    topics = "".join(part for topic in TOPICS.values() for part in section(topic, by_name))
    parts = (HEAD, sentence(list(by_name.values())), "\n\n", rules, topics, TRAININGS, *trainings(), TAIL)
    return "".join(parts)


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
