"""A program that compiles a kernel ahead in a child process, then compiles it as a launch with tensors does, and prints
the number of compiled kernels in Triton's cache after each step. It runs in a process without Triton's interpreter."""

import os
import tempfile
import time
from pathlib import Path

import torch

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")

    from benchmarks.gpu.children import Child, wait_for
    from benchmarks.gpu.compiling import compilers, recorded
    from llmbench.kernels.kernel import Random
    from llmbench.kernels.launching import captured
    from llmbench.kernels.norm.norm import RMS_NORM, Case

    def compiled() -> int:
        return len(list((folder / "cache").glob("*/*.cubin")))

    case = Case(5, 64, "w")
    launches = recorded(RMS_NORM, case, "forward", torch.bfloat16, 90).launches
    print(*(launch.name for launch in launches))
    (work,) = compilers([*launches, *launches], 90, 4)
    print(wait_for([Child(work, folder / "log")], 60.0), compiled())
    with captured(90) as capture:
        RMS_NORM.run(**RMS_NORM.inputs(case, Random(0, torch.bfloat16, torch.device("cpu"))))
    (work,) = compilers(capture.launches, 90, 1)
    start = time.monotonic()
    print(wait_for([Child(work, folder / "log")], 60.0), compiled(), time.monotonic() - start < 30)
