"""Peaks of memory are compared with arithmetic and with an independent tracker."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llmbench.measure.memory import GraphedCall, LiveTensors, RepeatableBackward, peak_memory, reserved_bytes
from tests.measure.fake_cuda import FakeCuda
from tests.oracles.training_memory import StorageTracker

CPU = torch.device("cpu")


def test_a_peak_by_hand() -> None:
    x = torch.randn(1000)

    def call() -> torch.Tensor:
        a = x + 1  # 4,000 bytes
        b = torch.cat([a, a])  # 8,000 more
        del a
        c = b.view(2, 1000)[0].clone()  # a view costs nothing, a clone 4,000
        c.add_(1)
        return c

    peak = peak_memory(call, CPU)
    assert (peak.added_bytes, peak.resident_bytes, peak.reserved_bytes) == (12_000, None, None)
    assert (peak.by, peak.resident_bytes) == ("tensors", None)


def test_inputs_are_not_counted() -> None:
    x = torch.randn(1000)
    assert peak_memory(lambda: x.mul_(2).view(10, 100).t(), CPU).added_bytes == 0


def test_a_training_step_agrees_with_another_tracker() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 10))
    x, y = torch.randn(32, 64), torch.randint(10, (32,))

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        torch.autograd.grad(loss, list(model.parameters()))

    tracker = StorageTracker()
    for tensor in (*model.parameters(), x, y):
        tracker.add(tensor, "inputs")
    inputs = tracker.total
    with tracker:
        step()
    assert peak_memory(step, CPU).added_bytes == tracker.peak - inputs


def test_saved_activations_count_for_a_backward_pass() -> None:
    """By hand: 4,000 bytes are saved. Forward has a temporary of three times that, backward allocates twice that."""
    x = torch.randn(1000)
    repeated: list[bool] = []

    def forward() -> torch.Tensor:
        return torch.cat([x, x, x])[:1000].clone()

    def backward(saved: torch.Tensor, again: bool) -> torch.Tensor:
        repeated.append(again)
        return torch.cat([saved, saved])

    call = RepeatableBackward(forward, backward)
    call()
    assert peak_memory(call, CPU).added_bytes == 12_000
    call()  # it still works
    assert repeated == [True, False, False, True]


def test_a_backward_pass_agrees_with_another_tracker() -> None:
    """The peak of torch's backward pass, with the saved activations that it frees as it uses them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10))
    x = torch.randn(128, 64)
    weights = list(model.parameters())

    def backward(loss: torch.Tensor, again: bool) -> object:
        return torch.autograd.grad(loss, weights, retain_graph=again)

    def forward() -> torch.Tensor:
        return model(x).square().mean()

    tracker = StorageTracker()
    for tensor in (*weights, x):
        tracker.add(tensor, "inputs")
    inputs = tracker.total
    with tracker:
        loss = forward()
        tracker.peak = tracker.total
        backward(loss, False)
    assert peak_memory(RepeatableBackward(forward, backward), CPU).added_bytes == tracker.peak - inputs


def test_freed_memory_is_subtracted() -> None:
    with LiveTensors() as live:
        for _ in range(5):
            x = torch.zeros(100)
        del x
    assert (live.live_bytes, live.peak_bytes) == (0, 800)  # the new tensor exists before the old one is freed


def test_compiled_calls_are_tracked() -> None:
    """torch.compile refuses to run under other modes, and flex_attention is not a plain op."""
    from torch.nn.attention.flex_attention import flex_attention

    x = torch.randn(1000)
    compiled = torch.compile(lambda: (x * 2).sin().sum(), backend="aot_eager", fullgraph=True)
    assert peak_memory(compiled, CPU).added_bytes == 8000  # two of 4,000; the sum is allocated after the first is freed
    q = torch.randn(1, 2, 32, 16)
    flex = torch.compile(flex_attention, backend="eager", fullgraph=True)
    assert peak_memory(lambda: flex(q, q, q), CPU).added_bytes >= q.nbytes


def test_a_simulated_gpu() -> None:
    fake = FakeCuda()
    fake.allocate(10**9)
    fake.allocate(-(10**9))

    def call() -> None:
        fake.allocate(5000)
        fake.allocate(-5000)

    peak = peak_memory(call, torch.device("cuda"), cuda=fake)
    assert (peak.resident_bytes, peak.added_bytes) == (1000, 5000)
    assert (peak.reserved_bytes, peak.by) == (2**21, "allocator")


def test_saved_activations_count_on_a_gpu() -> None:
    fake = FakeCuda()

    def forward() -> int:
        fake.allocate(7000)
        fake.allocate(-4000)  # 3,000 are saved
        return 3000

    def backward(saved: int, again: bool) -> None:
        fake.allocate(2000)
        fake.allocate(-2000 if again else -2000 - saved)

    peak = peak_memory(RepeatableBackward(forward, backward), torch.device("cuda"), cuda=fake)
    assert (peak.resident_bytes, peak.added_bytes) == (1000, 5000)


def test_a_graph_has_the_peak_of_its_eager_call() -> None:
    """A graph receives its memory at capture; a replay allocates nothing."""
    fake = FakeCuda()

    def eager() -> None:
        fake.allocate(5000)
        fake.allocate(-5000)

    fake.allocate(5000)  # at the capture
    replay = GraphedCall(lambda: fake.log.append("replayed"), eager)
    peak = peak_memory(replay, torch.device("cuda"), cuda=fake)
    assert (peak.resident_bytes, peak.added_bytes) == (6000, 5000)
    replay()
    assert fake.log.count("replayed") == 1


def test_reserved_bytes_do_not_include_cached_blocks() -> None:
    fake = FakeCuda()
    fake.allocate(3 * 2**20)
    assert reserved_bytes(torch.device("cuda"), cuda=fake) == 4 * 2**20
    assert fake.log == ["empty_cache"]
    assert reserved_bytes(CPU) == 0


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    device = torch.device("cuda")
    x: Any = torch.randn(2**20, device=device)
    peak = peak_memory(lambda: (x + 1) * 2, device)
    assert peak.added_bytes == 2 * x.nbytes
    assert peak.resident_bytes is not None
    assert peak.resident_bytes >= x.nbytes
    assert (peak.reserved_bytes or 0) >= (peak.resident_bytes or 0) + peak.added_bytes
