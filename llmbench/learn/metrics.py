"""The figures of a training run, for each step and each validation: in a file with one JSON object per line, and on
request also in event files of TensorBoard."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import msgspec

from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.learn.folder import refuse_link
from llmbench.learn.settings import LARGEST
from llmbench.measure.results import MOST_BYTES
from llmbench.measure.store import names_beside
from llmbench.spec.reading import read_bytes

__all__ = ["EventFiles", "Metrics", "StepRow", "Validation", "bits_per_byte", "perplexity"]


def perplexity(loss: float) -> float:
    """Return exp(loss): the number of equally likely tokens that are as hard to predict. `loss`: nats per token."""
    return math.exp(loss) if loss < 709.0 else math.inf  # a larger result overflows fp64


def bits_per_byte(loss: float, tokens_per_byte: float = 1.0) -> float:
    """Return loss · tokens per byte / ln 2. It compares models with different tokens. `loss`: nats per token."""
    return loss * tokens_per_byte / math.log(2.0)


MOST_ROWS = 2**21
"""The largest number of rows in a file. A row takes at least 270 bytes of memory, also one of 22 bytes in the file."""


LARGEST_LOSS = 1e15
"""The largest loss of a row, in nats. A run stops if its loss is not finite."""


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one training step.

    - `tokens`: the tokens of all steps so far. `seconds`: the time of all steps so far, without validations.
    - `loss`: the mean loss of the step's batch, before the update, in nats. `lr`: the learning rate of the update.
    - `grad_norm`: the norm of all gradients before clipping. `clipped`: whether it was larger than the limit.
    - `mfu`: model FLOPs of the step per second, as a share of the peak of all devices. None: the peak is unknown.
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


class _Row(msgspec.Struct, frozen=True):
    """The fields of a row that the answer of a run shows."""

    step: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)]
    tokens: Annotated[int, msgspec.Meta(ge=0, le=LARGEST**2)]
    loss: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_LOSS)] | msgspec.UnsetType = msgspec.UNSET
    validation_loss: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_LOSS)] | msgspec.UnsetType = msgspec.UNSET


class Metrics:
    """The file of the figures, open for appending.

    `path`: the path of the file. It changes if the file is lost during the run. `notes`: that it was lost.

    A killed run can leave rows of steps after its last checkpoint, and an incomplete last line. A resumed run computes
    these steps again, so the rows are removed when the file is opened. A run computes the validation of step 0 after it
    has written the checkpoint of step 0, so this row is removed too if no later checkpoint exists.

    Another program can remove, replace or change the file. Before each write and at the end, its inode, size and time
    are compared with those after the last write. If they differ, all rows are written to a new file.
    """

    def __init__(self, path: Path, *, after: int) -> None:
        """Open the file, and remove the rows of all steps after step `after`.

        Raises LLMBenchError if the file is a link or no regular file, if a row is damaged, or if it cannot be written.
        """
        self.path, self.notes = path, list[str]()
        rows = _rows(path) if os.path.lexists(path) else ()
        self._lines = [line for line, row in rows if row["step"] <= after and after > 0]
        if after > 0 and not self._lines:
            self.notes.append(f"{path} has no rows of the steps up to {after}; they can be in another file beside it")
        try:
            for left in path.parent.glob(f".{path.name}.*"):  # a killed run left it
                left.unlink()
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            self._file = _new_file(temporary, self._lines)
            try:
                os.replace(temporary, path)
            except OSError:
                os.close(self._file)
                temporary.unlink()
                raise
        except OSError as problem:
            raise LLMBenchError(f"cannot write {path}: {problem.strerror}") from None
        self._written = _fingerprint(os.fstat(self._file))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of all sessions of the run."""
        return [msgspec.json.decode(line) for line in self._lines]

    def write(self, row: StepRow | Validation) -> None:
        """Append a row. If the file is lost, write all rows to a new file."""
        line = msgspec.json.encode(row.as_json()) + b"\n"
        self._lines.append(line)
        loss = self._loss()
        if loss is None:
            try:
                _write(self._file, line)
            except OSError as problem:
                loss = f"cannot be written any more ({problem.strerror})"
            self._written = _fingerprint(os.fstat(self._file))
        if loss is not None:
            self._move(loss)

    def close(self) -> None:
        """Close the file. If it is lost, write all rows to a new file first."""
        try:
            if (loss := self._loss()) is not None:
                self._move(loss)
        finally:
            os.close(self._file)

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """Return the rows of a file. An incomplete last line is left out. Raises LLMBenchError for a damaged row."""
        return [row for _, row in _rows(path)]

    def _loss(self) -> str | None:
        """Return what happened to the file if it is no longer as it was written, else None."""
        try:
            there = _fingerprint(os.lstat(self.path))
        except OSError:
            return "was removed"
        if there[:2] != self._written[:2]:
            return "was replaced by another file"
        return None if there == self._written else "was changed by another program"

    def _move(self, loss: str) -> None:
        """Write the rows to a new file, which becomes the file of these metrics."""
        for path in names_beside(self.path):
            try:
                file = _new_file(path, self._lines)
            except OSError:
                continue
            os.close(self._file)
            self.notes.append(f"{self.path} {loss}; all rows are in {path}")
            self.path, self._file, self._written = path, file, _fingerprint(os.fstat(file))
            return
        raise LLMBenchError(f"{self.path} {loss}, and no other file can be written", hint="free space on the disk")


class EventFiles:
    """Event files of TensorBoard. Trackio and other viewers import them too.

    Raises CannotRunError if the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, *, after: int) -> None:
        """Begin a new file in `folder`. Viewers then ignore what earlier files have for steps after step `after`, and
        for step 0 if the run begins again.
        """
        try:
            writer: Any = import_module("torch.utils.tensorboard").SummaryWriter
        except ImportError:
            raise CannotRunError(
                "event files need the package tensorboard, which is not installed", hint="run `pip install tensorboard`"
            ) from None
        self._writer = writer(str(folder), purge_step=after + 1 if after else 0)

    def write(self, row: StepRow | Validation) -> None:
        """Write the numbers of a row."""
        for name, value in row.as_json().items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, row.step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _rows(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each complete line of the file with its line break, and its JSON object. Raises LLMBenchError."""
    refuse_link(path)
    for number, line in enumerate(read_bytes(path, MOST_BYTES).split(b"\n")[:-1], 1):
        if number > MOST_ROWS:
            raise SpecError(f"{path} has more than {MOST_ROWS:,} rows")
        try:
            row = msgspec.json.decode(line)
            msgspec.convert(row, _Row)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
            raise SpecError(
                f"{path}, line {number}: it is not a row of figures: {problem}", hint="remove the line"
            ) from None
        yield line + b"\n", row


def _new_file(path: Path, lines: list[bytes]) -> int:
    """Create a file with these lines and return its descriptor. Raises OSError, also if a link has this name."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o666)
    try:
        _write(file, b"".join(lines))
    except OSError:
        os.close(file)
        path.unlink()
        raise
    return file


def _write(file: int, text: bytes) -> None:
    while text:  # the first write writes the whole text, unless the disk is full
        text = text[os.write(file, text) :]


def _fingerprint(file: os.stat_result) -> tuple[int, int, int, int]:
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns
