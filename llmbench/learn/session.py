"""A training run of the command line: a model, a text, settings, and a folder with the checkpoints and the metrics."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch

from llmbench._version import __version__
from llmbench.errors import LLMBenchError, SpecError
from llmbench.learn import checkpoint
from llmbench.learn.data import Corpus, corpus_of_checkpoint
from llmbench.learn.faults import DivergedError
from llmbench.learn.folder import locked, refuse_link
from llmbench.learn.loop import Trained, optimizer_for, train
from llmbench.learn.memory import refuse_without_memory
from llmbench.learn.metrics import EventFiles, Metrics, StepRow, Validation
from llmbench.learn.parallel import shard
from llmbench.learn.probe import Probe
from llmbench.learn.refusals import refuse_run, refuse_stop
from llmbench.learn.settings import Settings
from llmbench.learn.state import State, checkpoints, newest, resumable, step_of
from llmbench.learn.threads import choose_threads
from llmbench.measure.clock import clock_for
from llmbench.measure.environment import environment
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.measure.reference import measure_matmul
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.sizing.mfu import peak_flops_per_s
from llmbench.spec.catalog import load_device
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["METRICS", "Session", "measured_peak", "new_session", "resumed_session"]

METRICS = "metrics.jsonl"
EVENTS = "tensorboard"


@dataclass(kw_only=True)
class Session:
    """A training run that can start now.

    - `state`: what the next checkpoint says. Its step is the last finished step.
    - `folder`: where checkpoints and metrics are kept. None: nothing is kept.
    - `rows`: after `run`, the rows of the metrics of all sessions. `notes`: what the user should know about the run.
    - `peak`: the FLOP/s of one device, from which MFU is computed, and `peak_source`: where the figure comes from.
    """

    model: Decoder
    optimizer: torch.optim.Optimizer
    data: Corpus
    state: State
    folder: Path | None
    ranks: Ranks
    peak: float
    peak_source: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(
        self,
        *,
        stop_at: int | None = None,
        probes: Sequence[Probe] = (),
        tensorboard: bool = False,
        on_step: Callable[[StepRow], object] = lambda row: None,
        on_validation: Callable[[Validation], object] = lambda validation: None,
    ) -> Trained:
        """Train until step `stop_at`, or until the end of the schedule.

        `tensorboard`: whether to write event files into the folder too.

        Raises LLMBenchError if the run is finished, if another process trains in the folder, or if the folder has a
        later checkpoint, DivergedError if a number is not finite, and CannotRunError if a package is missing.
        """
        refuse_stop(stop_at, self.state.step, self.state.settings.steps)
        with ExitStack() as stack:
            files = self.ranks.agreed(lambda: self._open_files(stack, tensorboard))
            try:
                return self._train(files, stop_at, probes, on_step, on_validation)
            except DivergedError as problem:
                kept = [] if self.folder is None else checkpoints(self.folder)
                raise DivergedError(problem.step, problem.cause, kept[-1] if kept else None) from None
            finally:
                for file in files:
                    file.close()
                for metrics in files:
                    if isinstance(metrics, Metrics):
                        self.rows = metrics.rows
                        self.notes += metrics.notes

    def _train(
        self,
        files: Sequence[Metrics | EventFiles],
        stop_at: int | None,
        probes: Sequence[Probe],
        on_step: Callable[[StepRow], object],
        on_validation: Callable[[Validation], object],
    ) -> Trained:
        """Train, write each row to the files, and save checkpoints."""
        seconds = self.state.seconds

        def step_done(row: StepRow) -> None:
            nonlocal seconds
            seconds = row.seconds
            for file in files:
                file.write(row)
            on_step(row)

        def validated(validation: Validation) -> None:
            for file in files:
                file.write(validation)
            on_validation(validation)

        def save(step: int, optimizer: torch.optim.Optimizer) -> None:
            state = msgspec.structs.replace(self.state, step=step, seconds=seconds)
            folder, first = self.folder, self.ranks.first
            if folder is not None:  # all ranks wait for the files, and learn if they could not be written
                self.ranks.agreed(lambda: checkpoint.save(folder, self.model, optimizer, state, writes=first))
            self.state = state

        return train(
            self.model,
            self.data,
            self.state.settings,
            probes=probes,
            optimizer=self.optimizer,
            after=self.state.step,
            stop_at=stop_at,
            seconds=seconds,
            peak_flops_per_s=self.peak,
            on_step=step_done,
            on_validation=validated,
            save=save,
            ranks=self.ranks,
        )

    def _open_files(self, stack: ExitStack, tensorboard: bool) -> list[Metrics | EventFiles]:
        """Return the open files that get every row. Only the first rank writes files, and locks the folder."""
        if self.folder is None or not self.ranks.first:
            return []
        stack.enter_context(locked(self.folder))
        last = newest(self.folder)
        if step_of(last) != self.state.step:
            raise LLMBenchError(
                f"the newest checkpoint of {self.folder} is {last.name}, not that of step {self.state.step:,}",
                hint=f"`llmbench train --resume {self.folder}` goes on after it; to go back, remove later checkpoints",
            )
        refuse_link(self.folder / EVENTS)
        metrics = Metrics(self.folder / METRICS, after=self.state.step)
        return [metrics, EventFiles(self.folder / EVENTS, after=self.state.step)] if tensorboard else [metrics]


def new_session(
    spec: ModelSpec,
    data: Corpus,
    settings: Settings,
    *,
    device: torch.device,
    folder: Path | None = None,
    command: str = "",
    ranks: Ranks = ALONE,
) -> Session:
    """Build the model with the vocabulary of the text, and prepare its training.

    `folder`: a folder that does not exist. It gets the checkpoint of step 0 at once,
    so that it has a checkpoint at every moment.

    Raises LLMBenchError if the folder exists, or if the text or the model is too short for the sequences.
    """
    refuse_run(spec, settings, folder)
    if folder is not None and data.source != data.source.encode(errors="replace").decode():
        raise LLMBenchError(
            f"--data {data.name}: the name of the file is not UTF-8, so no checkpoint can name it",
            hint="rename the file, or a folder above it",
        )
    data.refuse_short(settings.seq_len)
    if spec.vocab_size != data.vocab_size:
        spec = override(spec, {"vocab_size": data.vocab_size, "published_parameters": None})
    refuse_without_memory(spec, settings, device, ranks)
    model = build(spec, device=device, seed=settings.seed)
    threads = choose_threads(model, data, settings) if device.type == "cpu" else torch.get_num_threads()
    state = State(
        step=0,
        seconds=0.0,
        spec=spec,
        settings=settings,
        data=data.source,
        data_sha256=data.train_sha256(),
        threads=ranks.gathered(threads)[0],
        command=command,
        versions={"llmbench": __version__, "python": platform.python_version(), "torch": str(torch.__version__)},
    )
    if folder is not None:
        ranks.agreed(lambda: _create(folder, model, state) if ranks.first else None)
    shard(model, settings, ranks)
    return _session(model, optimizer_for(model, settings), data, state, folder, ranks)


def resumed_session(folder: Path, *, device: torch.device, ranks: Ranks = ALONE, compile: bool = False) -> Session:
    """Load the last checkpoint of a run, and prepare to go on.

    `compile`: see `resumable`.

    Raises the errors of `resumable`, LLMBenchError if the text has changed, and SpecError if the model has another
    vocabulary than the text.
    """
    found, run, state = resumable(folder, compile=compile)
    data = corpus_of_checkpoint(state.data, state.data_sha256)
    if state.spec.vocab_size != data.vocab_size:  # `new_session` gives the model the vocabulary of the text
        raise SpecError(
            f"{found}: the model has a vocabulary of {state.spec.vocab_size:,} tokens, but that of the text has "
            f"{data.vocab_size:,}"
        )
    refuse_without_memory(state.spec, state.settings, device, ranks)
    model = checkpoint.load_model(found, device=device)
    shard(model, state.settings, ranks)
    optimizer = optimizer_for(model, state.settings)
    checkpoint.load_optimizer(found, model, optimizer)
    threads = min(state.threads, max(os.cpu_count() or 1, torch.get_num_threads()))
    session = _session(model, optimizer, data, msgspec.structs.replace(state, threads=threads), run, ranks)
    if threads < state.threads:
        session.notes.append(
            f"the run had {state.threads:,} threads, and this machine has {threads:,}: the last bits of sums may differ"
        )
    return session


def _session(
    model: Decoder,
    optimizer: torch.optim.Optimizer,
    data: Corpus,
    state: State,
    folder: Path | None,
    ranks: Ranks,
) -> Session:
    torch.set_num_threads(state.threads)
    peak, source = measured_peak(model.embedding.weight.device, state.settings)
    return Session(
        model=model,
        optimizer=optimizer,
        data=data,
        state=state,
        folder=folder,
        ranks=ranks,
        peak=peak,
        peak_source=source,
    )


def _create(folder: Path, model: Decoder, state: State) -> None:
    """Create the folder of a run with the checkpoint of step 0, under a temporary name first."""
    temporary = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        checkpoint.save(temporary, model, optimizer_for(model, state.settings), state)
        os.rename(temporary, folder)
    except BaseException as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(problem, (OSError, ValueError)):  # ValueError: a character that no file name can have
            raise
        raise LLMBenchError(f"cannot create {folder}: {getattr(problem, 'strerror', problem)}") from None


def measured_peak(device: torch.device, settings: Settings) -> tuple[float, str]:
    """Return the peak FLOP/s of a device and its source: the datasheet, else a matrix product of this moment."""
    name = environment(device).datasheet
    if name is not None:
        return peak_flops_per_s(load_device(name), settings.precision), f"datasheet ({name})"
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    measured = measure_matmul(clock_for(device), dtype)
    return measured.per_s, f"measured: {measured.description}"
