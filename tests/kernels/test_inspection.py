"""An inspection finds what must not ship. In a process of its own, where kernels are not interpreted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FAULTY = """
import torch, triton, triton.language as tl
from typing import NamedTuple
from llmbench.errors import CannotRunError
from llmbench.kernels import registry
from llmbench.kernels.proof import inspect as inspection
from llmbench.kernels.kernel import Cost, Kernel
from llmbench.kernels.launching import Config, architecture, choose, launch

@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    x = tl.load(a + m[:, None] * K + k[None, :])
    y = tl.load(b + k[:, None] * N + n[None, :])
    tl.store(c + m[:, None] * N + n[None, :], tl.dot(x, y))

class Case(NamedTuple):
    size: int

def run(x, size):
    if architecture(x.device) < 90:
        raise CannotRunError("needs more")
    config = choose("product", [
        Config(M=64, N=64, K=64, num_warps=4),
        Config(M=16, N=64, K=64, num_warps=4, note="too few rows for wgmma"),
        Config(M=128, N=256, K=64, num_warps=4, note="more accumulators than registers"),
        Config(M=128, N=128, K=1024, num_warps=8, note="more than a block's shared memory"),
    ])
    out = torch.empty(128, 256)
    launch(product, (1,), config, x, x, out)
    return out

reasons = {"product: mma.sync": "few rows", "product: spills in fp32": "not of this format"}
registry.NAMES = ("product",)
found = Kernel(name="product", summary="", run=run, reference=run, cost=lambda *_: Cost(0, 0), cases=[],
               shapes=[Case(1)], allowances=reasons,
               inputs=lambda case, random: {"x": random.normal(256, 256), "size": case.size})
inspection.kernel = lambda name: found
for row in inspection.inspect(["product"], [90, 80], [torch.bfloat16]):
    print(row.instruction, row.spilled_bytes > 0, "|".join(row.faults), "|".join(row.allowed), sep=";")
"""


def test_faults_are_found(tmp_path: Path) -> None:
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    good, narrow, spilling, large, refused = done.stdout.splitlines()
    assert good == "wgmma;False;;"
    assert narrow == "mma.sync;False;;uses mma.sync instead of wgmma: few rows"
    assert spilling.startswith("wgmma;True;spills ")
    assert "shared memory" in large
    assert refused == "None;False;;refused: needs more"


def test_the_page_of_configurations_is_up_to_date() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    tool = Path(__file__).parents[2] / "tools" / "kernel_reference.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
