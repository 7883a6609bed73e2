"""The checkpoints in the folder of a training run, and what a checkpoint says besides its tensors. No torch.

A command reads them before it imports torch, so that it refuses a wrong folder at once.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgspec

from llmbench.errors import LLMBenchError, SpecError
from llmbench.learn.settings import Settings
from llmbench.spec.model import ModelSpec
from llmbench.spec.reading import read_bytes

__all__ = ["STATE", "State", "checkpoints", "is_checkpoint", "name_of", "newest", "read_state", "resumable", "step_of"]

STATE = "state.json"
MOST_THREADS = 4096
"""The largest number of threads that a checkpoint may ask for."""
SCHEMA = "llmbench.checkpoint/1"

_NAME = re.compile(r"step-([0-9]{8,12})")


class State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint says besides its tensors.

    - `step`: the last finished step. `seconds`: the training time of all steps so far.
    - `data`: the source of the text (see Corpus). `data_sha256`: the hash of its train part.
    - `threads`: the number of CPU threads. It decides the order of sums, so a resumed run keeps it.
    - `versions`: the versions of llmbench, Python and torch.
    - `without_states`: the weights that have no state of the optimizer, because they never had a gradient, such as an
      expert that got no token. After step 0, all other weights have states.

    Everything random in a step depends on `settings.seed` and the step, so there is no state of a random generator.
    """

    schema: str = SCHEMA
    step: int
    seconds: float
    spec: ModelSpec
    settings: Settings
    data: str
    data_sha256: str
    threads: int
    command: str
    versions: dict[str, str]
    without_states: list[str] = []

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ValueError(f"the schema is {self.schema[:60]!r}, not {SCHEMA!r}")
        if self.step > self.settings.steps:
            raise ValueError(f"step {self.step} is after the last step of the settings, {self.settings.steps}")
        if self.step < 0 or not 1 <= self.threads <= MOST_THREADS or not 0 <= self.seconds < float("inf"):
            raise ValueError(
                f"step {self.step}, {self.threads} threads and {self.seconds} seconds are no state of a run"
            )


def name_of(step: int) -> str:
    """Return the name of the folder of a checkpoint."""
    return f"step-{step:08d}"


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    try:
        names = os.listdir(folder)
    except (OSError, ValueError):  # ValueError: the path contains a character that no file name can have
        return []
    steps = {int(match[1]): folder / name for name in names if (match := _NAME.fullmatch(name))}
    return [steps[step] for step in sorted(steps)]


def is_checkpoint(folder: Path) -> bool:
    """Return whether the folder is a checkpoint, or the folder of a run with checkpoints."""
    return os.path.isfile(folder / STATE) or bool(checkpoints(folder))


def newest(folder: Path) -> Path:
    """Return `folder` if it is a checkpoint, else its last checkpoint. Raises LLMBenchError if it has none."""
    if os.path.isfile(folder / STATE):
        return folder
    found = checkpoints(folder)
    if not found:
        raise LLMBenchError(f"{folder} has no checkpoint of `llmbench train`", hint="give the folder of its -o option")
    return found[-1]


def read_state(checkpoint: Path) -> State:
    """Return the state of a checkpoint. Raises SpecError if the file is missing or damaged."""
    path = checkpoint / STATE
    try:
        state = msgspec.json.decode(read_bytes(path), type=State)
        state.spec.check()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LLMBenchError) as problem:
        raise SpecError(f"{path} is not the state of a checkpoint: {problem}") from None
    if (named := step_of(checkpoint)) not in (None, state.step):
        raise SpecError(f"{path}: it is the state of step {state.step}, but the name of its folder says step {named}")
    return state


def step_of(checkpoint: Path) -> int | None:
    """Return the step in the name of a checkpoint, or None if the folder has another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return None if match is None else int(match[1])


def resumable(folder: Path, *, compile: bool = False) -> tuple[Path, Path, State]:
    """Return the newest checkpoint of a run, the folder of the run, and the state of the checkpoint.

    `compile`: whether the checkpoint may ask for torch.compile, which starts a compiler.

    Raises LLMBenchError if the folder has no checkpoint, or if the checkpoint is not in the folder of a run.
    """
    found = newest(folder)
    if step_of(Path(os.path.abspath(found))) is None:
        raise LLMBenchError(
            f"{found} is a checkpoint outside of the folder of a run", hint="give the folder of the -o option"
        )
    state = read_state(found)
    if state.settings.compile and not compile:
        raise LLMBenchError(
            f"{found} asks for torch.compile, which starts a compiler",
            hint="if you trust the folder, add `--setting compile=true`",
        )
    return found, folder if found != folder else Path(os.path.abspath(folder)).parent, state
