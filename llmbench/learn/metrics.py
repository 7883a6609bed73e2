"""The figures of a training run, for each step and each validation: in a file with one JSON object per line, and on
request also in event files of TensorBoard."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import CannotRunError, LLMBenchError

__all__ = ["EventFiles", "Metrics", "StepRow", "Validation", "bits_per_byte", "perplexity"]


def perplexity(loss: float) -> float:
    """Return exp(loss): the number of equally likely tokens that are as hard to predict. `loss`: nats per token."""
    return math.exp(loss) if loss < 709.0 else math.inf  # a larger result overflows fp64


def bits_per_byte(loss: float, tokens_per_byte: float = 1.0) -> float:
    """Return loss · tokens per byte / ln 2. It compares models with different tokens. `loss`: nats per token."""
    return loss * tokens_per_byte / math.log(2.0)


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one training step.

    - `tokens`: the tokens of all steps so far. `seconds`: the time of all steps so far, without validations.
    - `loss`: the mean loss of the step's batch, before the update, in nats. `lr`: the learning rate of the update.
    - `grad_norm`: the norm of all gradients before clipping. `clipped`: whether it was larger than the limit.
    - `mfu`: model FLOPs of the step per second, as a share of the device's peak. None: the peak is unknown.
    - `figures`: the figures of probes.
    """

    step: int
    tokens: int
    seconds: float
    loss: float
    lr: float
    grad_norm: float
    clipped: bool
    tokens_per_s: float
    mfu: float | None = None
    figures: dict[str, Any] = {}

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the row. The figures of probes have keys of their own."""
        fields: dict[str, Any] = msgspec.structs.asdict(self)
        return fields | fields.pop("figures")


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """The loss on the validation part after a step, in nats. `tokens`: the tokens of all training steps so far."""

    step: int
    tokens: int
    validation_loss: float

    def as_json(self) -> dict[str, Any]:
        """Return the JSON object of the row, with the loss in all three units."""
        loss = self.validation_loss
        units = {"perplexity": perplexity(loss), "bits_per_byte": bits_per_byte(loss)}
        return msgspec.structs.asdict(self) | units


class Metrics:
    """The file of the figures, open for appending.

    A killed run can leave rows of steps after its last checkpoint, and an incomplete last line. A resumed run computes
    these steps again, so the rows are removed when the file is opened.
    """

    def __init__(self, path: Path, *, after: int) -> None:
        """Open the file, and remove the rows of all steps after step `after`."""
        self.path = path
        kept = [line for line, row in _rows(path) if row.get("step", 0) <= after] if os.path.exists(path) else []
        try:
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_bytes(b"".join(kept))
            os.replace(temporary, path)
            self._file = path.open("ab", buffering=0)
        except OSError as problem:
            raise LLMBenchError(f"cannot write {path}: {problem.strerror}") from None

    def write(self, row: StepRow | Validation) -> None:
        """Append a row."""
        try:
            self._file.write(msgspec.json.encode(row.as_json()) + b"\n")
        except OSError as problem:
            raise LLMBenchError(f"cannot write {self.path}: {problem.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """Return the rows of a file. An incomplete last line is left out."""
        return [row for _, row in _rows(path)]


class EventFiles:
    """Event files of TensorBoard. Trackio and other viewers import them too.

    Raises CannotRunError if the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, after: int) -> None:
        """Begin a new file in `folder`. Viewers then ignore what earlier files have for steps after step `after`."""
        try:
            writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            raise CannotRunError(
                "event files need the package tensorboard, which is not installed", hint="run `pip install tensorboard`"
            ) from None
        self._writer = writer(str(folder), purge_step=after + 1)

    def write(self, row: StepRow | Validation) -> None:
        """Write the numbers of a row."""
        for name, value in row.as_json().items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, row.step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each complete line of the file, and its JSON object."""
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if line.endswith(b"\n") and isinstance(row, dict):
            yield line, row
