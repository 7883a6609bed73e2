"""`llmbench evaluate`: the loss of a trained model on a text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from llmbench.cli.measured import Device, DType, check_file, need_torch, place
from llmbench.cli.options import As, Output, answer, prints_tables, token_count, working
from llmbench.errors import LLMBenchError
from llmbench.learn.refusals import refuse_other_folders, refuse_without_tokenizer
from llmbench.learn.state import is_checkpoint, newest, read_state
from llmbench.report.describe import headline
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, records
from llmbench.report.units import fixed, plural
from llmbench.spec.reading import open_regular

if TYPE_CHECKING:
    from llmbench.learn.evaluate import Evaluation, PositionLoss
    from llmbench.learn.tokenizer import Encoded
    from llmbench.measure.environment import Environment

TrainedModel = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="Folder of `llmbench train` or one of its checkpoints, or a Hugging Face folder with config.json, "
        "safetensors files and tokenizer.json.",
        show_default=False,
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        "--text",
        metavar="FILE",
        help="Text to predict. Default for a folder of `llmbench train`: the validation part of its text.",
        show_default=False,
    ),
]
Tokens = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        metavar="FILE",
        help="JSON list of token numbers to predict, in place of a text.",
        show_default=False,
    ),
]
Window = Annotated[
    int | None,
    typer.Option(
        "--seq",
        metavar="TOKENS",
        help="Tokens per window. Default: the length of the sequences in the training, if it is known, else the "
        "context length of the model, but at most 2048.",
        parser=token_count,
        show_default=False,
    ),
]
Stride = Annotated[
    int | None,
    typer.Option(
        "--stride",
        metavar="TOKENS",
        help="Distance of two windows. A smaller one gives each token more context, and takes longer. Default: --seq.",
        parser=token_count,
        show_default=False,
    ),
]
ByPosition = Annotated[
    bool,
    typer.Option(
        "--by-position",
        help="Also show the loss by the number of tokens before the predicted one. JSON and CSV always have it.",
    ),
]
LONGEST = 2048
"""The largest default of --seq for a folder without a training length, in tokens."""


FIELDS: tuple[Field[PositionLoss], ...] = (
    Field("first", description="least number of tokens before the predicted one in its window"),
    Field("last", description="largest number of tokens before the predicted one in its window"),
    Field(
        "context",
        "tokens before",
        value=lambda row: f"{row.first:,}" if row.first == row.last else f"{row.first:,}–{row.last:,}",
        in_json=False,
    ),
    Field("tokens", "predicted tokens", "count", description="number of predicted tokens"),
    Field(
        "loss", "loss (nats)", "number", text=lambda row: f"{row.loss:.3f}", description="mean loss in nats per token"
    ),
)


class Units(NamedTuple):
    """A loss in the units that people use, and the entropy of the token frequencies of the text, in nats.

    `bits_per_byte`: None if the text of the tokens is unknown.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    unigram: float


@prints_tables
def command(
    folder: TrainedModel,
    text: Text = None,
    tokens: Tokens = None,
    seq: Window = None,
    stride: Stride = None,
    by_position: ByPosition = False,
    device: Device = "auto",
    dtype: DType = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compute the loss of a trained model on a text: nats per token, perplexity and bits per byte.

    The text is read in windows. Each token but the first is predicted once, from the tokens before it in its window.

    Examples:

      llmbench evaluate run --text book.txt

      llmbench evaluate run --by-position --stride 16

      llmbench evaluate run --text book.txt --format json
    """
    if text is not None and tokens is not None:
        raise LLMBenchError("--text and --tokens cannot be used together")
    refuse_other_folders(folder)
    if not is_checkpoint(folder) and tokens is None:
        if text is None:
            raise LLMBenchError(
                "--text is missing", hint="give a file with text, or a file of token numbers with --tokens"
            )
        refuse_without_tokenizer(folder, "text", ", or give a JSON list of token numbers with --tokens")
    for path in (text, tokens):
        if path is not None:
            os.close(open_regular(path))
    check_file("--output", output)
    need_torch("evaluate")
    from llmbench.learn.data import unigram_entropy
    from llmbench.learn.evaluate import evaluate
    from llmbench.learn.metrics import perplexity
    from llmbench.learn.tokenizer import opened
    from llmbench.measure.environment import environment
    from llmbench.model.devices import device_of
    from llmbench.model.formats import DTYPES

    where = device_of(device)
    model, tokenizer = opened(folder, device=where, dtype=None if dtype is None else DTYPES[dtype])
    name, encoded = _encoded(folder, text, tokens, tokenizer)
    trained = read_state(newest(folder)).settings.seq_len if is_checkpoint(folder) else None
    window = seq or trained or min(model.spec.max_position_embeddings or LONGEST, LONGEST)
    with working(f"predicting {plural(len(encoded.tokens) - 1, 'token')}"):
        found = evaluate(model, encoded.tokens, window=window, stride=stride)
    bits = found.bits_per_byte(encoded.scored_bytes)
    units = Units(found.loss, perplexity(found.loss), bits, unigram_entropy(encoded.tokens))
    inputs = {
        "folder": str(folder),
        "text": None if text is None else str(text),
        "tokens": None if tokens is None else str(tokens),
        "seq_len": window,
        "stride": stride or window,
        "by_position": by_position,
        "device": str(where),
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
    }
    windows = _windows(len(found.losses), window, stride or window, trained)
    about = f"{headline(model.spec)}\n{plural(len(found.losses), 'predicted token')} · {windows} · {inputs['dtype']}"
    answer(_document(found, units, name, inputs, about, environment(where), by_position, encoded.note), format, output)


def _windows(count: int, window: int, stride: int, trained: int | None) -> str:
    """Return a text that says how `count` predicted tokens were read. `trained`: the training length, if known."""
    if count <= window:
        return "one window"
    as_in_training = ", as in training" if window == trained else ""
    return f"windows of {window:,} tokens{as_in_training}, {stride:,} apart"


def _encoded(folder: Path, text: Path | None, tokens: Path | None, tokenizer: Any) -> tuple[str, Encoded]:
    """Return the name of the text, and its tokens."""
    from llmbench.learn.data import corpus_of_checkpoint
    from llmbench.learn.tokenizer import MOST_BYTES, ByteTokenizer, read_tokens
    from llmbench.spec.reading import read_bytes

    if tokens is not None:
        return tokens.name, read_tokens(tokens)
    if text is None and isinstance(tokenizer, ByteTokenizer):
        state = read_state(newest(folder))
        data = corpus_of_checkpoint(state.data, state.data_sha256, hint="give another text with --text")
        return f"the validation part of {data.name}", tokenizer.encode(data.validation.numpy().tobytes())
    assert text is not None
    encoded: Encoded = tokenizer.encode(read_bytes(text, MOST_BYTES))
    return text.name, encoded


def _document(
    found: Evaluation,
    units: Units,
    name: str,
    inputs: dict[str, Any],
    about: str,
    environment: Environment,
    by_position: bool,
    note: str,
) -> Document:
    """Return the document of an evaluation. `about`: the model and the windows."""
    rows = found.by_position()
    bits = "" if units.bits_per_byte is None else f", {units.bits_per_byte:.3f} bits per byte"
    block = Block(
        answer=f"The loss on {name} is {units.loss:.4f} nats per token "
        f"(perplexity {fixed(units.perplexity, 3)}{bits}). "
        f"The entropy of its token frequencies is {units.unigram:.3f} nats.",
        headline=about,
        table=table(FIELDS, rows) if by_position else None,
        lines=[place(environment)],
        notes=[note] if note else [],
    )
    return Document(
        command="evaluate",
        inputs=inputs,
        environment=msgspec.structs.asdict(environment),
        also={**units._asdict(), "tokens": len(found.losses)},
        rows_key="positions",
        rows=records(FIELDS, rows),
        tables=[table(FIELDS, rows)],
        blocks=[block],
    )
