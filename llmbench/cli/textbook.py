"""`llmbench textbook`: the claims of a textbook, and which of them arithmetic and trainings confirm or refute."""

from __future__ import annotations

from typing import Annotated

import typer

from llmbench.cli.measured import listed
from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.errors import unknown
from llmbench.report.document import Block, Document, table
from llmbench.textbook import CLAIMS, TOPICS
from llmbench.textbook.claim import decide
from llmbench.textbook.table import FIELDS, as_json, notes, sentence

Named = Annotated[
    str | None,
    typer.Argument(metavar="[TOPIC]", help="The topic, from the list above. Default: all.", show_default=False),
]


@prints_tables
def command(topic: Named = None, format: As = "table", output: Output = None) -> None:
    """Check a textbook's claims on language models: each claim with our figure, a verdict and the reason.

    Arithmetic decides most claims. Recorded trainings of small models decide those about learning. `llmbench bench
    textbook` measures the others. This command needs no torch, because it reads the records.

    TOPIC is one of

    {TOPICS}

    Examples:

      llmbench textbook

      llmbench textbook cache

      llmbench textbook scores --format json
    """
    if topic is not None and topic not in TOPICS:
        raise unknown("topic", topic, TOPICS)
    chosen = CLAIMS if topic is None else [claim for claim in CLAIMS if claim in TOPICS[topic].claims]
    outcomes = [decide(claim) for claim in chosen]
    block = Block(answer=sentence(outcomes), table=table(FIELDS, outcomes), notes=notes(outcomes))
    answer(
        Document(
            command="textbook", inputs={"topic": topic}, rows_key="claims", rows=as_json(outcomes), blocks=[block]
        ),
        format,
        output,
    )


command.__doc__ = (command.__doc__ or "").replace(
    "{TOPICS}", listed({name: topic.title for name, topic in TOPICS.items()})
)
