"""A candidate: a model in a setting, and its figures from the sizing code."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import msgspec

from llmbench.errors import LayoutError, LLMBenchError
from llmbench.learn.choose.blueprint import Blueprint
from llmbench.sizing.devices import device_fit
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.lower import lower
from llmbench.sizing.memory import Memory
from llmbench.sizing.params import count_parameters
from llmbench.sizing.serving.fit import Fit, Question, Sizer, best_fit
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.catalog import find_device, find_device_head
from llmbench.spec.engine import find_engine

__all__ = ["Candidate", "Setting"]

COUNTS = (1, 2, 4, 8, 16, 32, 64)
"""The numbers of devices that are tried."""
ENGINE = "ideal"
"""The engine whose memory counts: weights, the widest op of a prefill, and a CUDA context."""


class Setting(NamedTuple):
    """What is given: tokens of a request, name of the device, number of parameters, and number of devices."""

    context: int
    device: str
    parameters: int
    devices: int = 1

    @property
    def bandwidth_bytes_per_s(self) -> float:
        """The rate at which the devices together read their memory. Raises LLMBenchError if no source states it."""
        rate = find_device(self.device).memory_bandwidth_bytes_per_s
        if rate is None:
            raise LLMBenchError(f"{self.device}: no source states its memory bandwidth", hint="choose another device")
        return float(rate.value) * self.devices

    def on_enough_devices(self, candidate: Candidate) -> Setting:
        """Return the setting with the smallest number of devices on which the candidate serves one request.

        Raises LLMBenchError if no number of COUNTS suffices.
        """
        for devices in COUNTS:
            setting = self._replace(devices=devices)
            try:
                if Candidate(candidate.blueprint, setting).users >= 1:
                    return setting
            except LayoutError:
                continue
        raise LLMBenchError(
            f"a model of {self.parameters:,} parameters and a request of {self.context:,} tokens do not fit on "
            f"{COUNTS[-1]} × {self.device}",
            hint="use fewer parameters, a shorter context or a larger device",
        )


class Candidate:
    """A model in a setting. Figures are computed when they are first read."""

    def __init__(self, blueprint: Blueprint, setting: Setting) -> None:
        self.blueprint, self.setting = blueprint, setting
        self.spec = blueprint.spec

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return count_parameters(self.spec).total

    @cached_property
    def active_parameters(self) -> int:
        """Number of parameters that one token uses."""
        return count_parameters(self.spec).active

    @property
    def width(self) -> int:
        """Width of the feed-forward, or of one expert."""
        return self.blueprint.width

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.blueprint.layers

    @cached_property
    def position_parameters(self) -> int:
        """Number of parameters of the position table."""
        return count_parameters(self.spec).components["position_embedding"]

    @property
    def longest_position(self) -> int | None:
        """The last position that the encoding has, counted from 1. None: it has no end."""
        return self.spec.positions.position_limit

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes that one more token adds to the cache, in bf16. A layer whose window is full needs none."""
        cache = kv_cache(self.spec, self.setting.context)
        window = self.blueprint.window
        full = window is not None and window <= self.setting.context
        return cache.bytes_per_token_beyond_windows if full else cache.bytes_per_token

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of the cache of one request, in bf16."""
        return kv_cache(self.spec, self.setting.context).bytes_total

    @cached_property
    def footprint_bytes(self) -> int:
        """Bytes of the weights and of the cache of one request, in bf16."""
        return 2 * self.parameters + self.cache_bytes

    @cached_property
    def users(self) -> int:
        """Number of requests for which the devices have memory."""
        return self._fit.room

    @cached_property
    def longest_tokens(self) -> int:
        """Tokens of the longest request that memory allows, up to the last position, whatever the context length."""
        limit = self.longest_position
        return self._unlimited.longest if limit is None else min(limit, self._unlimited.longest)

    @cached_property
    def token_s(self) -> float:
        """Least seconds of a decoding step of one request: its bytes, divided by the bandwidth of the devices."""
        ops = lower(self.spec, Workload.decode(self.setting.context))
        read = sum(op.count * (op.weight_bytes + op.kv_read_bytes) for op in ops if op.kind != "embedding")
        return read / self.setting.bandwidth_bytes_per_s

    @cached_property
    def train_flops_per_token(self) -> float:
        """FLOPs of a training step per token, without recomputation."""
        return count_flops(self.spec, Workload.train(self.setting.context)).per_token

    @property
    def train_peak_bytes(self) -> int:
        """Peak bytes of a training step with one sequence on one device: mixed precision, AdamW."""
        return self._training.peak_bytes

    @property
    def activation_bytes(self) -> int:
        """Bytes of the activations that this training step saves for its backward pass."""
        return self._training.full_bytes["activations"]

    @property
    def trains_on_one_device(self) -> bool:
        """Whether this training step fits on one device that computes bf16."""
        return device_fit(find_device_head(self.setting.device), self._training.needed_bytes, "bf16").fits

    @cached_property
    def _training(self) -> Memory:
        if self.blueprint.flash:
            return training_memory(self.spec, self.setting.context)
        return training_memory(self.spec, self.setting.context, attention="standard", kernels="eager")

    @cached_property
    def score_share(self) -> float:
        """Share of attention scores in the FLOPs of a prefill."""
        flops = count_flops(self.spec, Workload.prefill(self.setting.context))
        return flops.attention / flops.total

    @cached_property
    def _fit(self) -> Fit:
        return self._fitted(Sizer(self.spec))

    @cached_property
    def _unlimited(self) -> Fit:
        """The answer for the same model without a limit of its context length."""
        return self._fitted(Sizer(msgspec.structs.replace(self.spec, max_position_embeddings=None)))

    def _fitted(self, sizer: Sizer) -> Fit:
        question = Question(
            engine=find_engine(ENGINE),
            device=find_device_head(self.setting.device),
            layout=Layout(),
            seq=self.setting.context,
            users=1,
            weights="bf16",
        )
        return best_fit(sizer, question, self.setting.devices)
