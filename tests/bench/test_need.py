"""The analytic need of a piece against what its call really takes on a CPU, inputs included."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from llmbench.bench.candidates import call_of, piece_group, way_of
from llmbench.bench.experiments.experiment import QUICK
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.decode import STEP
from llmbench.bench.pieces.moe import FFN
from llmbench.bench.pieces.piece import Piece, Setting, held
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.measure.memory import peak_memory
from llmbench.model.formats import Format
from llmbench.sizing.work import Pass, need_bytes
from llmbench.spec.catalog import find_model
from llmbench.spec.ffn import Dense, Gated, MoE
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import Norm
from llmbench.spec.position import Alibi, Rope
from tests.measure.rows import references

CPU = torch.device("cpu")
LATENT = LatentAttention(
    num_attention_heads=8, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
)
GROUPED, WINDOW = heads(8, 2, 64), heads(8, 8, 64, sliding_window=32)
LAYERNORM = Norm(kind="layernorm", bias=True)
MIXTURE = MoE(num_experts=8, num_experts_per_tok=2, intermediate_size=512)
ATTENTION = ("standard", "sdpa", "flash")
PLAIN = ("standard",)

CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("attention", {}, ATTENTION),
    ("attention", {"mixer": GROUPED}, ATTENTION),
    ("attention", {"positions": Alibi()}, ATTENTION),
    ("attention", {"mixer": WINDOW}, ATTENTION),
    ("attention", {"mixer": GROUPED, "positions": Alibi()}, ATTENTION),
    ("attention", {"mixer": heads(8, 8, 64, logit_soft_cap=30.0)}, PLAIN),
    ("attention", {"mixer": heads(8, 8, 64, sinks=True)}, PLAIN),
    ("attention", {"mixer": LATENT}, ("standard", "sdpa")),
    ("decode", {}, ATTENTION),
    ("decode", {"mixer": GROUPED}, ATTENTION),
    ("decode", {"positions": Alibi()}, ATTENTION),
    ("decode", {"mixer": WINDOW}, ATTENTION),
    ("mla", {"mixer": LATENT}, ("standard", "sdpa")),
    ("norm", {}, PLAIN),
    ("norm", {"norm": LAYERNORM}, PLAIN),
    ("norm", {"norm": Norm(unit_offset=True)}, PLAIN),
    ("add_norm", {}, PLAIN),
    ("rope", {}, PLAIN),
    ("rope", {"mixer": GROUPED}, PLAIN),
    ("rope", {"positions": Rope(interleaved=True)}, PLAIN),
    ("glu", {}, PLAIN),
    ("ffn", {}, PLAIN),
    ("ffn", {"ffn": Dense(intermediate_size=2048, activation="gelu")}, PLAIN),
    ("moe", {"ffn": MIXTURE}, PLAIN),
    ("loss", {"vocab": 8192}, PLAIN),
    ("block", {}, ATTENTION),
    ("block", {"mixer": GROUPED, "ffn": Dense(intermediate_size=2048, activation="gelu")}, ATTENTION),
    ("block", {"norm": LAYERNORM, "positions": Alibi()}, ATTENTION),
    ("block", {"mixer": WINDOW, "ffn": MIXTURE}, ATTENTION),
    ("model", {"layers": 3, "vocab": 2048}, ATTENTION),
    ("step", {"mixer": GROUPED}, ATTENTION),
    ("step", {"mixer": LATENT}, ("standard", "sdpa")),
]


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash` is torch's kernel for CPUs, as users have it there."""
    way_of("flash")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def found(name: str) -> Piece:
    return {"step": STEP, "add_norm": ADD_NORM, "ffn": FFN}.get(name) or find_piece(name)


def setting(of: Piece, dtype: Format, passed: Pass, batch: int = 2, **parts: Any) -> Setting:
    """A layer that is small, but whose parts are not lost beside each other."""
    spec = model_of("x", 512, **({"mixer": heads(8, 8, 64), "ffn": Gated(intermediate_size=1024)} | parts))
    length = 1024 if of.phase == "decode" else 256
    return Setting(spec=of.alone(spec), batch=batch, seq_len=length, dtype=dtype, device=CPU, of=passed)


def need_and_peak(of: Piece, at: Setting, impl: str) -> tuple[int, int]:
    made = of.make(at)
    call = call_of(made, way_of(impl), at)
    call()
    peak = made.nbytes(at.format) + peak_memory(call, CPU).added_bytes
    return need_bytes(of.ops(at, impl), at.of, element_bytes=at.format.itemsize), peak


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
@pytest.mark.parametrize(
    ("name", "parts", "impl"), [(name, parts, impl) for name, parts, impls in CASES for impl in impls]
)
def test_the_need_is_what_is_taken(name: str, parts: dict[str, Any], impl: str, passed: Pass, dtype: str) -> None:
    of = found(name)
    if of.phase == "decode" and passed != "forward":
        pytest.skip("a cache has no backward pass")
    need, peak = need_and_peak(of, setting(of, cast(Format, dtype), passed, **parts), impl)
    assert 0.9 < need / peak < 1.12


@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
def test_a_single_sequence_is_not_copied(passed: Pass) -> None:
    of = found("attention")
    need, peak = need_and_peak(of, setting(of, "fp32", passed, batch=1), "standard")
    assert 0.9 < need / peak < 1.1


def test_a_dense_bias_is_no_flash_attention() -> None:
    """ALiBi over 8,192 tokens of 16 heads of 128, as an H200 would be asked for: an fp32 bias of 4 GiB, and of it one
    in bf16, and that masked, beside q, k, v and the result of 32 MiB each."""
    of = found("attention")
    spec = of.alone(model_of("x", 2048, mixer=heads(16, 16, 128), positions=Alibi()))
    at = Setting(spec=spec, batch=1, seq_len=8192, dtype="bf16", device=torch.device("cuda"))
    pairs = 16 * 8192**2
    assert need_bytes(of.ops(at, "sdpa"), "forward", element_bytes=2) == 3 * 2**25 + (4 + 2) * pairs
    assert need_bytes(of.ops(at, "flash"), "forward", element_bytes=2) == 4 * 2**25  # the kernel adds slopes as it goes


def test_what_a_gpu_does_at_once_a_cpu_does_in_steps() -> None:
    of = found("norm")
    at = setting(of, "fp32", "forward")
    on_a_gpu = at.but(device=torch.device("cuda"))
    x, weight = 4 * 2 * 256 * 512, 4 * 512
    assert need_bytes(of.ops(at, "standard"), "forward", element_bytes=4) == 3 * x + weight
    assert need_bytes(of.ops(on_a_gpu, "standard"), "forward", element_bytes=4) == 2 * x + weight
    assert not held("standard", at.spec, on_a_gpu.device)["on_cpu"]


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-2.7b"])
def test_of_a_scan_no_need_is_given(name: str) -> None:
    """Plain torch computes it step by step, and nothing says what that holds."""
    of = found("block")
    at = Setting(spec=of.alone(find_model(name)), batch=1, seq_len=8, dtype="fp32", device=torch.device("cpu"))
    (rival,) = piece_group(of, at, ["standard"], experiment="x", case={}, pace=QUICK).rivals(references())
    assert rival.need_bytes is None
    assert rival.work_flops
