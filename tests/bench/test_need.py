"""The analytic need of a piece, compared with what its call really allocates on a CPU, inputs included."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmbench.bench.candidates import call_of, piece_group
from llmbench.bench.experiments.experiment import QUICK
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.extra_candidates import binder_of, traits_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.blocks import STEP
from llmbench.bench.pieces.moe import FFN
from llmbench.bench.pieces.piece import Piece, Setting
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
    """`flash` is torch's kernel for CPUs, as it is for users."""
    binder_of("flash")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def named_piece(name: str) -> Piece:
    return {"step": STEP, "add_norm": ADD_NORM, "ffn": FFN}.get(name) or find_piece(name)


def setting(piece: Piece, dtype: Format, passed: Pass, batch: int = 2, **parts: Any) -> Setting:
    """A small layer whose parts are of similar size."""
    spec = model_of("x", 512, **({"mixer": heads(8, 8, 64), "ffn": Gated(intermediate_size=1024)} | parts))
    length = 1024 if piece.phase == "decode" else 256
    return Setting(spec=piece.reduce(spec), batch=batch, seq_len=length, dtype=dtype, device=CPU, direction=passed)


def need_and_peak(piece: Piece, at: Setting, impl: str) -> tuple[int, int]:
    built = piece.build(at)
    call = call_of(built, binder_of(impl)(built.run), at)
    call()
    peak = built.nbytes(at.format) + peak_memory(call, CPU).added_bytes
    return need_bytes(piece.ops(at, traits_of(impl)), at.direction, element_bytes=at.format.itemsize), peak


PASSES: tuple[Pass, ...] = ("forward", "backward", "both")
FORMATS: tuple[Format, ...] = ("fp32", "bf16")


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_need_is_what_is_allocated(case: int) -> None:
    """Every pass of every implementation, in one format and the other in turn, so that each pass of a case with several
    implementations has both."""
    name, parts, impls = CASES[case]
    piece = named_piece(name)
    for index, impl in enumerate(impls):
        for number, passed in enumerate(PASSES if piece.phase != "decode" else PASSES[:1]):  # a cache has no gradients
            dtype = FORMATS[(case + index + number) % 2]
            need, peak = need_and_peak(piece, setting(piece, dtype, passed, **parts), impl)
            assert 0.9 < need / peak < 1.12, (name, parts, impl, passed, dtype)


@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
def test_a_single_sequence_is_not_copied(passed: Pass) -> None:
    piece = named_piece("attention")
    need, peak = need_and_peak(piece, setting(piece, "fp32", passed, batch=1), "standard")
    assert 0.9 < need / peak < 1.1


def test_a_dense_bias_is_no_flash_attention() -> None:
    """ALiBi over 8,192 tokens and 16 heads of 128 on a GPU: an fp32 bias of 4 GiB, its bf16 copy, and the masked copy,
    besides q, k, v and the result of 32 MiB each."""
    piece = named_piece("attention")
    spec = piece.reduce(model_of("x", 2048, mixer=heads(16, 16, 128), positions=Alibi()))
    at = Setting(spec=spec, batch=1, seq_len=8192, dtype="bf16", device=torch.device("cuda"))
    pairs = 16 * 8192**2
    assert need_bytes(piece.ops(at, traits_of("sdpa")), "forward", element_bytes=2) == 3 * 2**25 + (4 + 2) * pairs
    assert (
        need_bytes(piece.ops(at, traits_of("flash")), "forward", element_bytes=2) == 4 * 2**25
    )  # the kernel adds the slopes itself


def test_a_cpu_computes_a_norm_in_steps() -> None:
    piece = named_piece("norm")
    at = setting(piece, "fp32", "forward")
    on_a_gpu = at.changed(device=torch.device("cuda"))
    x, weight = 4 * 2 * 256 * 512, 4 * 512
    assert need_bytes(piece.ops(at, traits_of("standard")), "forward", element_bytes=4) == 3 * x + weight
    assert need_bytes(piece.ops(on_a_gpu, traits_of("standard")), "forward", element_bytes=4) == 2 * x + weight
    assert not traits_of("standard").temporaries(at.spec, on_a_gpu.device)["on_cpu"]


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-2.7b"])
def test_a_scan_has_no_analytic_need(name: str) -> None:
    """Plain torch computes it step by step, and the op table does not know its temporaries."""
    piece = named_piece("block")
    at = Setting(spec=piece.reduce(find_model(name)), batch=1, seq_len=8, dtype="fp32", device=torch.device("cpu"))
    (candidate,) = piece_group(piece, at, ["standard"], case={}, pace=QUICK).candidates(references())
    assert candidate.need_bytes is None
    assert candidate.work_flops
