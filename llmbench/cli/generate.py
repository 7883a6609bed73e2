"""`llmbench generate`: continue a text with a trained model."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

import msgspec
import typer

from llmbench.cli.evaluate import TrainedModel
from llmbench.cli.measured import Device, DType, check_file, need_torch
from llmbench.cli.options import As, Output, Seed, answer, not_negative, positive_integer, prints_tables, probability
from llmbench.learn.refusals import refuse_other_folders, refuse_without_tokenizer
from llmbench.printable import printable
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, records
from llmbench.sizing.dtypes import COLDEST


def temperature_of(text: str | float) -> float:
    """Parse the value of an option as a temperature. Raises BadParameter unless it is 0, or at least COLDEST."""
    number = not_negative(text)
    if 0 < number < COLDEST:
        raise typer.BadParameter(f"{text} is above 0 and below {COLDEST:.1e}. 0: always take the most likely token")
    return number


def share_of_draws(text: str | float) -> float:
    """Parse the value of an option as a sum of probabilities. Raises BadParameter unless it is above 0, at most 1."""
    share = probability(text)
    if not share:
        raise typer.BadParameter("0 leaves no token to draw from. --temperature 0 takes the most likely token")
    return share


Prompt = Annotated[
    str, typer.Option("--prompt", metavar="TEXT", help="Text to continue. Default: a line break.", show_default=False)
]
Count = Annotated[
    int,
    typer.Option("--tokens", metavar="N", help="Largest number of new tokens.", parser=positive_integer),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temperature",
        metavar="T",
        help="Logits are divided by T. 0: always take the most likely token.",
        parser=temperature_of,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        metavar="K",
        help="Draw only from the K most likely tokens.",
        parser=positive_integer,
        show_default=False,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        metavar="P",
        help="Draw only from the most likely tokens whose probabilities sum to P.",
        parser=share_of_draws,
        show_default=False,
    ),
]


class Continuation(NamedTuple):
    """A continued text. `seconds`: the time of all new tokens together."""

    prompt: str
    text: str
    tokens: int
    seconds: float


FIELDS: tuple[Field[Continuation], ...] = (
    Field("prompt", "prompt", description="value of `--prompt`"),
    Field("text", "text", description="the text after the prompt", wraps=True),
    Field("tokens", "tokens", "count", description="number of new tokens"),
    Field(
        "tokens_per_s",
        "tokens/s",
        "number",
        lambda row: row.tokens / row.seconds,
        description="new tokens per second, the prompt included in the time",
    ),
)


@prints_tables
def command(
    folder: TrainedModel,
    prompt: Prompt = "\n",
    tokens: Count = 500,
    temperature: Temperature = 0.8,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Continue a text with a trained model. The text appears as it is generated.

    A Hugging Face model stops early at its end-of-text token. A model with learned positions that are used up reads the
    last half of the text again, and goes on.

    Examples:

      llmbench generate run --prompt "KING RICHARD:" --tokens 200

      llmbench generate run --temperature 0 --format json
    """
    refuse_other_folders(folder)
    refuse_without_tokenizer(folder, "prompt")
    check_file("--output", output)
    need_torch("generate")
    from llmbench.learn.continuation import continuation, stop_tokens
    from llmbench.learn.tokenizer import opened
    from llmbench.measure.environment import environment
    from llmbench.model.devices import device_of
    from llmbench.model.formats import DTYPES

    where = device_of(device)
    model, tokenizer = opened(folder, device=where, dtype=None if dtype is None else DTYPES[dtype])
    assert tokenizer is not None
    before = tokenizer.encode(prompt.encode(errors="surrogateescape")).tokens
    count = 0

    def counted(numbers: Iterator[int]) -> Iterator[int]:
        nonlocal count
        for number in numbers:
            count += 1
            yield number

    new = continuation(
        model,
        before,
        count=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stops=stop_tokens(folder),
    )
    streams = format == "table" and output is None
    parts: list[str] = []
    start = time.perf_counter()
    for part in tokenizer.decoded(counted(new), after=before.tolist()):
        if streams and not parts:
            sys.stdout.write(printable(prompt, lines=True, prose=True))
        parts.append(part)
        if streams:
            sys.stdout.write(printable(part, lines=True, prose=True))
            sys.stdout.flush()
    if streams:
        sys.stdout.write("\n")
        return
    row = Continuation(prompt, "".join(parts), count, time.perf_counter() - start)
    inputs: dict[str, Any] = {
        "folder": str(folder),
        "prompt": prompt,
        "tokens": tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "device": str(where),
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
    }
    document = Document(
        command="generate",
        inputs=inputs,
        environment=msgspec.structs.asdict(environment(where)),
        rows_key="continuations",
        rows=records(FIELDS, [row]),
        blocks=[Block(table=table(FIELDS, [row]))],
    )
    answer(document, format, output)
