"""Refuse a training run or a model that cannot work. No torch: a command asks before it imports torch."""

from __future__ import annotations

import os
from pathlib import Path

from llmbench.errors import LLMBenchError, UnsupportedError
from llmbench.learn.settings import Settings
from llmbench.learn.state import is_checkpoint
from llmbench.sizing.lengths import refuse_beyond_positions
from llmbench.spec.model import ModelSpec

__all__ = ["refuse_other_folders", "refuse_other_models", "refuse_run", "refuse_stop", "refuse_without_tokenizer"]

TOKENIZER = "tokenizer.json"


def refuse_run(spec: ModelSpec, settings: Settings, folder: Path | None) -> None:
    """Raise LLMBenchError if the model cannot be trained, or if `folder`, where its run should be kept, exists."""
    refuse_other_models(spec)
    refuse_beyond_positions(spec, settings.seq_len)
    if folder is not None and os.path.lexists(folder):
        hint = f"`llmbench train --resume {folder}` continues the run" if is_checkpoint(folder) else None
        raise LLMBenchError(f"-o {folder} exists already", hint=hint or "give the name of a new folder")


def refuse_other_models(spec: ModelSpec) -> None:
    """Raise UnsupportedError for a model that does not predict the next token from the tokens before it.

    A model with an encoder needs two texts. BERT sees the token that it should predict.
    """
    if spec.encoder is not None or not spec.decodes:
        raise UnsupportedError(f"{spec.name} does not predict the next token from the tokens before it")


def refuse_stop(stop_at: int | None, done: int, steps: int) -> None:
    """Raise LLMBenchError if a run of `steps` steps that has finished step `done` cannot go on to step `stop_at`."""
    if done >= steps:
        raise LLMBenchError(f"the run is finished: it has all of its {steps:,} steps")
    if stop_at is not None and stop_at > steps:
        raise LLMBenchError(f"the schedule ends after step {steps:,}, so it cannot stop at step {stop_at:,}")
    if stop_at is not None and stop_at <= done:
        raise LLMBenchError(f"the run has finished step {done:,} already, so it cannot stop at step {stop_at:,}")


def refuse_other_folders(folder: Path) -> None:
    """Raise LLMBenchError if a folder is neither that of a run of `train` nor that of a model of transformers."""
    if not is_checkpoint(folder) and not os.path.isfile(folder / "config.json"):
        raise LLMBenchError(
            f"{folder} is neither a folder of `llmbench train` nor a folder with config.json and weights",
            hint="`llmbench train nanogpt-cpu -o run` makes the folder run",
        )


def refuse_without_tokenizer(folder: Path, what: str, other: str = "") -> None:
    """Raise LLMBenchError if the folder of a model of transformers has no tokenizer.

    `what`: what should become tokens. `other`: another way to give it.
    """
    if not is_checkpoint(folder) and not os.path.isfile(folder / TOKENIZER):
        raise LLMBenchError(
            f"{folder} has no {TOKENIZER}, so the {what} cannot become tokens",
            hint=f"copy the file from the model's repository{other}",
        )
