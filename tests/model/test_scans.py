"""Scans equal their recurrences, computed token by token in fp64."""

from __future__ import annotations

import pytest
import torch

from llmbench.model.recurrent.scan import channel_scan, elementwise_scan, matrix_scan


@pytest.mark.parametrize("length", [1, 2, 7, 16, 37])
def test_elementwise_scan_equals_the_recurrence(length: int) -> None:
    torch.manual_seed(length)
    decay, inputs = torch.rand(2, length, 5, 3), torch.randn(2, length, 5, 3)
    start = torch.randn(2, 5, 3)
    h, expected = start.double(), []
    for step in range(length):
        h = decay[:, step].double() * h + inputs[:, step].double()
        expected.append(h)
    actual = elementwise_scan(decay, inputs, start)
    torch.testing.assert_close(actual.double(), torch.stack(expected, dim=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_gradients_of_the_elementwise_scan_equal_finite_differences(length: int) -> None:
    torch.manual_seed(length)
    shape = (2, length, 3)
    tensors = (torch.rand(shape), torch.randn(shape), torch.randn(2, 3))
    assert torch.autograd.gradcheck(elementwise_scan, tuple(x.double().requires_grad_() for x in tensors))


@pytest.mark.parametrize("delta", [False, True])
@pytest.mark.parametrize("length", [1, 5, 8, 21])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_matrix_scan_equals_the_recurrence(delta: bool, length: int, groups: int) -> None:
    torch.manual_seed(length)
    q, k = torch.randn(2, length, groups, 6), torch.randn(2, length, groups, 6)
    k = k / k.norm(dim=-1, keepdim=True)
    v, log_decay = torch.randn(2, length, 4, 3), -3 * torch.rand(2, length, 4)
    beta = torch.rand(2, length, 4) if delta else None
    state = torch.randn(2, 4, 6, 3)
    actual, last = matrix_scan(q, k, v, log_decay, state, chunk=8, beta=beta)
    carried, expected = state.double(), []
    wide_q, wide_k = (x.double().repeat_interleave(4 // groups, dim=2) for x in (q, k))
    for step in range(length):
        carried = log_decay[:, step].double().exp()[..., None, None] * carried
        key, value = wide_k[:, step], v[:, step].double()
        if beta is not None:
            value = beta[:, step].double()[..., None] * (value - torch.einsum("bhn,bhnp->bhp", key, carried))
        carried = carried + key[..., :, None] * value[..., None, :]
        expected.append(torch.einsum("bhn,bhnp->bhp", wide_q[:, step], carried))
    torch.testing.assert_close(actual.double(), torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.double(), carried, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 5, 8, 21])
def test_channel_scan_equals_the_recurrence(length: int) -> None:
    torch.manual_seed(length)
    q, k, log_decay = torch.randn(2, length, 3, 6), torch.randn(2, length, 3, 6), -3 * torch.rand(2, length, 3, 6)
    k = k / k.norm(dim=-1, keepdim=True)
    v, beta, state = torch.randn(2, length, 3, 4), torch.rand(2, length, 3), torch.randn(2, 3, 6, 4)
    actual, last = channel_scan(q, k, v, log_decay, beta, state, chunk=8)
    carried, expected = state.double(), []
    for step in range(length):
        carried = log_decay[:, step].double().exp()[..., None] * carried
        key = k[:, step].double()
        value = v[:, step].double() - torch.einsum("bhn,bhnp->bhp", key, carried)
        carried = carried + key[..., :, None] * (beta[:, step].double()[..., None] * value)[..., None, :]
        expected.append(torch.einsum("bhn,bhnp->bhp", q[:, step].double(), carried))
    torch.testing.assert_close(actual.double(), torch.stack(expected, dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last.double(), carried, rtol=1e-4, atol=1e-5)


def test_results_and_gradients_are_finite_under_strong_decay() -> None:
    log_decay = torch.full((1, 64, 2), -50.0, requires_grad=True)
    q, k, v = torch.randn(1, 64, 1, 4), torch.randn(1, 64, 1, 4), torch.randn(1, 64, 2, 4)
    out, _ = matrix_scan(q, k, v, log_decay, torch.zeros(1, 2, 4, 4), chunk=64)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert log_decay.grad is not None
    assert torch.isfinite(log_decay.grad).all()
