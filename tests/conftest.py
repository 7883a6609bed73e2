"""Without a GPU, kernels run in Triton's interpreter, which must be chosen before the first of them is loaded."""

import gc
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores. Without these settings the threads of one worker wait for those of another, and each
    # process that compiles starts a pool of further processes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables would have this width

import torch

# `benchmarks` is a package of this tree. The root of the tree is not on the path, because its folder `kernels` would
# hide the package that transformers imports.
if "benchmarks" not in sys.modules:
    spec = spec_from_file_location("benchmarks", Path(__file__).parents[1] / "benchmarks" / "__init__.py")
    assert spec is not None
    sys.modules["benchmarks"] = module_from_spec(spec)

GPU = torch.cuda.is_available()

if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none."""
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> None:
    """Freeze the objects that live at the start of each file, so that the garbage collector does not visit them again.

    A worker has millions of them: modules, collected tests, and torch's tables. One collection of all of them takes a
    second, and measurements collect garbage before each candidate."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter free everything at its exit. Triton's bindings report what it leaves behind as a leak."""
    gc.unfreeze()


TOGETHER = ("tests/bench/test_ranks.py", "tests/cli/test_bench.py")
"""Files with an expensive fixture: one worker runs such a file whole, and makes it once. (With pytest 9.2 the mark
xdist_group has no effect.)"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """Under pytest-xdist each test goes to the next free worker, but files of `TOGETHER` go whole."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class OneByOne(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in TOGETHER else nodeid

    return OneByOne(config, log)
