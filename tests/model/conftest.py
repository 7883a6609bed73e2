"""One thread for each test process: the models are tiny, and more threads would slow them and other processes. Tests of
FlexAttention begin without compiled calls."""

from __future__ import annotations

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_compiled_calls_of_earlier_tests(request: pytest.FixtureRequest) -> None:
    """Forget the calls of FlexAttention that earlier tests compiled. torch compares a new call with them, and fails if
    a tensor of theirs is gone."""
    if "flex" in request.node.name:
        torch._dynamo.reset()
