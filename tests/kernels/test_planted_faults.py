"""Faults planted in copies of the kernels: the check must find each of them with the kernel's own cases.

The test of far strides must find offsets that have 32 bits only."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from llmbench.kernels import launching
from llmbench.kernels.proof.check import check
from llmbench.kernels.registry import load_kernel
from tests.kernels.test_offsets import CASES, Memory, case_of, check_far_strides

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not launching.interpreted(), reason="the copies run in Triton's interpreter")


class Fault(NamedTuple):
    """A kernel, the file below kernels/ in which the fault is planted, and the text that replaces another."""

    kernel: str
    file: str
    right: str
    wrong: str


FAULTS = {
    "swapped strides of rope": Fault(
        "rope", "pointwise/rope.py", "q + batch * q_batch + at * q_token", "q + batch * q_token + at * q_batch"
    ),
    "swapped strides of queries in attention": Fault(
        "attention", "attention/tiles.py", "x + batch * batch_stride", "x + batch * head_stride"
    ),
    "swapped indices of a descriptor in attention": Fault(
        "attention", "attention/tiles.py", "tiles.load([batch, head, row, 0])", "tiles.load([head, batch, row, 0])"
    ),
    "swapped strides of a cache": Fault(
        "decode_attention",
        "decoding/attention.py",
        "row_offsets(page, slot, k_outer, k_slot",
        "row_offsets(page, slot, v_outer, v_slot",
    ),
    "swapped strides of a gradient in a norm": Fault(
        "rms_norm",
        "norm/row.py",
        "at_outer * dout_outer + at_inner * dout_inner",
        "at_outer * x_outer + at_inner * x_inner",
    ),
    "an output that is not rescaled in attention": Fault(
        "attention",
        "attention/forward.py",
        "o = dot(p.to(v.dtype), v, o * shrink[:, None])",
        "o = dot(p.to(v.dtype), v, o)",
    ),
    "a sum that is not rescaled in decoding": Fault(
        "decode_attention", "decoding/merge.py", "total * shrink + tl.sum(weights, 1)", "total + tl.sum(weights, 1)"
    ),
    "an output that is not rescaled in latent decoding": Fault(
        "mla_decode",
        "decoding/latent.py",
        "acc = dot(weights, c, acc * shrink[:, None])",
        "acc = dot(weights, c, acc)",
    ),
    "a sum that is not rescaled in the loss": Fault(
        "cross_entropy", "loss/cross_entropy.py", "sums = sums * tl.exp2((tops - higher) * LOG2E) +", "sums = sums +"
    ),
    "a window with one key too few": Fault(
        "attention",
        "attention/tiles.py",
        "seen = seen & (keys >= positions - before)",
        "seen = seen & (keys > positions - before)",
    ),
    "a causal mask that hides the own key": Fault(
        "attention",
        "attention/tiles.py",
        "seen = seen & (keys <= positions + after)",
        "seen = seen & (keys < positions + after)",
    ),
    "a tile on the diagonal without its mask": Fault(
        "attention",
        "attention/tiles.py",
        "b = tl.maximum(a, whole_hi // BLOCK * BLOCK)",
        "b = tl.maximum(a, (whole_hi + 1) // BLOCK * BLOCK)",
    ),
    "a tile at the start of a window without its mask": Fault(
        "attention",
        "attention/tiles.py",
        "shift - before, 0) + BLOCK - 1) // BLOCK",
        "shift - before, 0) + BLOCK - 2) // BLOCK",
    ),
    "a window with one key too many in decoding": Fault(
        "decode_attention",
        "decoding/merge.py",
        "low = tl.maximum(low, position - window + 1)",
        "low = tl.maximum(low, position - window)",
    ),
    "a row of the vocabulary without its last column": Fault(
        "cross_entropy",
        "loss/cross_entropy.py",
        'value = tl.where(column < vocabulary, value, float("-inf"))',
        'value = tl.where(column < vocabulary - 1, value, float("-inf"))',
    ),
    "the wrong head of a group in attention": Fault(
        "attention", "attention/forward.py", "kv_head = head // GROUP", "kv_head = head % (heads // GROUP)"
    ),
    "the wrong head of a group in the gradient of keys": Fault(
        "attention",
        "attention/backward.py",
        "do_rows = head_rows(dout, batch, first_head,",
        "do_rows = head_rows(dout, batch, kv_head,",
    ),
    "the wrong head of a group in decoding": Fault(
        "decode_attention",
        "decoding/attention.py",
        "token, head = row // GROUP, kv_head * GROUP + row % GROUP",
        "token, head = row // GROUP, row % GROUP * kv_heads + kv_head",
    ),
    "the wrong group of experts": Fault(
        "moe_routing",
        "experts/routing.py",
        "in_best = tl.where(hit, 1, in_best)",
        "in_best = tl.where(group == best[:, None] + 1, 1, in_best)",
    ),
    "a product without the router's weight": Fault(
        "moe",
        "experts/grouped.py",
        "acc *= tl.load(scale + to, mask=live, other=0.0).to(tl.float32)[:, None]",
        "acc *= 1.0",
    ),
    "splits that are merged without their weights": Fault(
        "decode_attention", "decoding/merge.py", "other=0.0) * weights[:, None], 0)", "other=0.0), 0)"
    ),
    "a gradient without the router's weight": Fault("moe", "experts/gated.py", "dy = dh * weight[:, None]", "dy = dh"),
}


FAR_FAULTS = {
    "heads of rope": Fault("rope", "pointwise/rope.py", "head = head.to(tl.int64)", "head = head.to(tl.int32)"),
    "heads of attention": Fault(
        "attention",
        "attention/forward.py",
        "head = tl.cast(head % heads, tl.int64)",
        "head = tl.cast(head % heads, tl.int32)",
    ),
    "slots of a cache": Fault(
        "decode_attention", "decoding/merge.py", "slot.to(tl.int64) * inner", "slot.to(tl.int32) * inner"
    ),
    "rows of the loss": Fault("cross_entropy", "loss/cross_entropy.py", "row = token.to(tl.int64)", "row = token"),
}
"""Offsets that are computed in 32 bits."""


def plant(fault: Fault, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the Triton functions of a file by those of a copy with the fault, in every module that uses them."""
    name = "llmbench.kernels." + fault.file.removesuffix(".py").replace("/", ".")
    load_kernel(fault.kernel)
    original = sys.modules[name]
    text = Path(str(original.__file__)).read_text(encoding="utf-8")
    assert text.count(fault.right) >= 1, f"{fault.file} no longer has the text {fault.right!r}"
    namespace = "planted" + folder.name.replace("-", "_")  # torch knows the name of an op once only
    text = text.replace(fault.right, fault.wrong)
    text = text.replace("llmbench::", f"{namespace}::").replace("ops.llmbench.", f"ops.{namespace}.")
    copy = load(folder / "planted.py", text, monkeypatch)
    functions = {
        id(value): getattr(copy, key) for key, value in vars(original).items() if type(value) is type(launching._probe)
    }
    for module in [module for key, module in sys.modules.items() if key.startswith("llmbench.kernels.")]:
        for key, value in list(vars(module).items()):
            if id(value) in functions:
                monkeypatch.setattr(module, key, functions[id(value)])


def load(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import `text` as a module. Triton reads the source of its functions, so the module needs a file."""
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("planted_fault", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def memory() -> Memory:
    return Memory()


@pytest.mark.parametrize("name", FAR_FAULTS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_an_offset_of_32_bits_is_found(
    name: str, memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAR_FAULTS[name]
    plant(fault, tmp_path, monkeypatch)
    kernel = load_kernel(fault.kernel)
    with pytest.raises(AssertionError, match="not equal"):
        [check_far_strides(kernel, case_of(kernel, fields), memory) for fields in CASES[fault.kernel]]


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    kernel = load_kernel(fault.kernel)
    plant(fault, tmp_path, monkeypatch)
    dtype = kernel.formats([torch.float32])[0]
    assert any(
        not verdict.passed for case in kernel.cases for verdict in check(kernel, case, dtype, seed=0, device=CPU)
    )
