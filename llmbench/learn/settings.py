"""The settings of a training run. The defaults are those of nanoGPT's README for a computer without a GPU."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.learn.schedule import Schedule

__all__ = ["LARGEST", "Optimizer", "Precision", "Settings", "Sharding"]

Optimizer = Literal["adamw", "sgd"]
Precision = Literal["fp32", "bf16"]
Sharding = Literal["ddp", "fsdp"]

LARGEST = 2**31
"""The largest whole number in the settings, as for the options of the commands."""
LARGEST_SEED = 2**64 - 1
"""The largest seed of torch's random generators."""
LARGEST_RATE = 3.4e38
"""Learning rates are below the largest number of fp32, the format of the weights."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides the course of a training run, beside the model and the text.

    - `steps`: the number of steps of the whole schedule.
    - `batch`: the sequences of a step, of all micro-batches and ranks together.
    - `seq_len`: the tokens per sequence.
    - `accumulate`: the number of micro-batches of a step, whose gradients are added up.
    - `lr`, `warmup`, `schedule`: see `llmbench.learn.schedule`. `lr_end`: the rate of the last step as a share of `lr`.
    - `optimizer`: adamw, or sgd with momentum `beta1`.
    - `weight_decay`: applied to matrices and tables only, and not to biases and the weights of norms.
    - `dropout`: the share of elements that dropout sets to 0 in training.
    - `balance`: the factor of the loss that balances the load of experts (see `llmbench.model.routing`). 0: not used.
    - `clip`: the largest norm of all gradients together. 0: gradients are not clipped.
    - `precision`: bf16 computes the products of the forward pass in bf16 (autocast). The weights stay in fp32.
    - `sharding`: what each of several ranks keeps: the whole model (ddp), or a part of each weight, gradient and
      optimizer state (fsdp).
    - `compile`: whether torch.compile compiles the model.
    - `seed`: decides the first weights, the batches and the dropout masks.
    - `validate_every`: the number of steps between two validations.
    - `validation_batches`: the number of batches of each validation but the last, which reads the whole validation
      part, or 524,288 tokens of a longer one.

    Raises LLMBenchError for values outside their ranges, and for values that contradict each other.
    """

    steps: int = 2000
    batch: int = 12
    seq_len: int = 64
    accumulate: int = 1
    lr: float = 1e-3
    lr_end: float = 0.1
    warmup: int = 100
    schedule: Schedule = "cosine"
    optimizer: Optimizer = "adamw"
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    dropout: float = 0.0
    balance: float = 0.0
    clip: float = 1.0
    precision: Precision = "fp32"
    sharding: Sharding = "ddp"
    compile: bool = False
    seed: int = 0
    validate_every: int = 250
    validation_batches: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "seq_len", "accumulate", "validate_every", "validation_batches"):
            self._refuse_outside(name, 1, LARGEST)
        self._refuse_outside("warmup", 0, LARGEST)
        self._refuse_outside("seed", 0, LARGEST_SEED)
        for name in ("weight_decay", "balance", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise LLMBenchError(f"{name}: must be at least 0 and finite, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise LLMBenchError(f"{name}: must be at least 0 and less than 1, not {getattr(self, name)}")
        if not 0 <= self.lr_end <= 1:
            raise LLMBenchError(f"lr_end: must be from 0 to 1, as a share of the highest rate, not {self.lr_end}")
        if not 0 < self.lr < LARGEST_RATE:
            raise LLMBenchError(f"lr: must be above 0 and less than {LARGEST_RATE:g}, not {self.lr}")
        if self.batch % self.accumulate:
            raise LLMBenchError(
                f"a batch of {self.batch} sequences cannot be divided into {self.accumulate} equal micro-batches"
            )

    def _refuse_outside(self, name: str, least: int, most: int) -> None:
        """Raise LLMBenchError if a whole number is outside the range. It may have too many digits to be shown."""
        value = getattr(self, name)
        if not least <= value <= most:
            shown = f", not {value:,}" if abs(value) < 10**30 else ""
            raise LLMBenchError(f"{name}: must be from {least} to {most:,}{shown}")

    @property
    def tokens(self) -> int:
        """The tokens of a step."""
        return self.batch * self.seq_len
