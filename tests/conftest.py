"""Without a GPU, kernels run in Triton's interpreter, which must be chosen before the first of them is loaded."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()

if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))
