"""Utilization of training runs against published pairs of time and MFU, and against the formulas of the papers."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.answers.mfu import Utilized, document, utilized
from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.report.render import to_json
from llmbench.sizing.flops import count_flops
from llmbench.sizing.mfu import conventions
from llmbench.sizing.workload import Recompute, Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Dense
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.position import LearnedPositions

from .test_explained import evaluate


def gpt(layers: int, hidden: int, heads: int, vocab: int, seq: int) -> ModelSpec:
    mixer = Attention(
        num_attention_heads=heads, num_key_value_heads=heads, head_dim=hidden // heads, qkv_bias=True, output_bias=True
    )
    return ModelSpec(
        name="gpt",
        source="",
        pattern=f"{layers}*block",
        layers={"block": Layer(mixer=mixer, ffn=Dense(intermediate_size=4 * hidden, bias=True))},
        vocab_size=vocab,
        hidden_size=hidden,
        tie_word_embeddings=True,
        positions=LearnedPositions(num_positions=seq),
        norm=Norm(kind="layernorm", bias=True),
    )


def shares(rows: list[Utilized]) -> dict[str, float]:
    return {row.convention.key: row.utilization for row in rows}


FOUNDRY = {
    "70b": (80, 8192, 64),
    "30b": (48, 7168, 56),
    "13b": (40, 5120, 40),
    "7b": (32, 4096, 32),
    "3b": (32, 2560, 20),
}
FOUNDRY |= {"1b": (24, 2048, 16), "760m": (24, 1536, 12)}
# mosaicml/llm-foundry, scripts/train/benchmarking/README.md (Apache-2.0): model, sequence length, GPUs, tokens/s of all
# GPUs, parameters, format, MFU and HFU in percent
PUBLISHED = [
    ("70b", 2048, 64, 66523, 64862437376, "bf16", 42.57, 56.76),
    ("30b", 8192, 8, 11072, 30019254272, "bf16", 29.92, 39.9),
    ("30b", 2048, 32, 73860, 29975214080, "bf16", 43.92, 58.57),
    ("13b", 32768, 8, 15812, 13011240960, "bf16", 31.68, 42.24),
    ("13b", 2048, 64, 307209, 12853954560, "bf16", 39.86, 39.86),
    ("7b", 65536, 8, 15654, 6918905856, "bf16", 28.59, 38.13),
    ("7b", 2048, 8, 85144, 6658859008, "bf16", 46.44, 46.44),
    ("3b", 8192, 8, 153174, 2667566080, "fp8", 23.28, 23.28),
    ("3b", 512, 8, 292217, 2647905280, "fp8", 30.25, 30.25),
    ("1b", 65536, 8, 44050, 1445974016, "bf16", 26.34, 35.12),
    ("1b", 2048, 64, 2841754, 1315950592, "bf16", 40.85, 40.85),
    ("760m", 512, 8, 669998, 758111232, "bf16", 40.42, 40.42),
]


@pytest.mark.parametrize(("name", "seq", "gpus", "rate", "parameters", "dtype", "mfu", "hfu"), PUBLISHED)
def test_llm_foundry(
    name: str, seq: int, gpus: int, rate: int, parameters: int, dtype: str, mfu: float, hfu: float
) -> None:
    """6·N and attention with all pairs. Their HFU is 4/3 of it with checkpointing, so it repeats the head too."""
    layers, hidden, heads = FOUNDRY[name]
    spec = gpt(layers, hidden, heads, 50368, seq)
    again = "full" if hfu > mfu else "none"
    rows = utilized(spec, device="h100", gpus=gpus, seq=seq, tokens_per_s=rate, precision=dtype, recompute=again)
    assert rows[0].convention.formula.startswith(f"6 × {parameters:,} parameters")
    assert 100 * shares(rows)["6n_full"] == pytest.approx(mfu, rel=1e-3)
    assert 100 * shares(rows)["hardware_full"] == pytest.approx(hfu, rel=0.04)


@pytest.mark.parametrize(
    ("model", "gpus", "batch", "step", "mfu", "hfu"),
    [
        # Korthikanti 2022 (arXiv 2205.05198), table 5: 175B and 1T with selective recomputation
        ((96, 12288, 96), 64, 64, 13.75, 0.514, 0.528),
        ((128, 25600, 160), 512, 512, 71.49, 0.563, 0.570),
    ],
)
def test_korthikanti(model: tuple[int, int, int], gpus: int, batch: int, step: float, mfu: float, hfu: float) -> None:
    spec = gpt(*model, 51200, 2048)
    found = shares(utilized(spec, device="a100", gpus=gpus, seq=2048, batch=batch, step_s=step, recompute="selective"))
    assert found["model_full"] == pytest.approx(mfu, abs=0.0006)
    # The backward pass computes the scores once more, as in the forward pass. The paper adds three times as much.
    repeated = found["hardware_full"] - found["model_full"]
    assert found["model_full"] + 3 * repeated == pytest.approx(hfu, abs=0.0006)


def test_megatron_turing() -> None:
    """530B (arXiv 2201.11990, section 2.4): TFLOP/s per GPU with full recomputation. PaLM's table 3 gives its MFU."""
    spec = gpt(105, 20480, 128, 51200, 2048)
    for gpus, step, rate in ((2240, 60.1, 126), (2800, 50.2, 121)):
        rows = utilized(spec, device="a100", gpus=gpus, seq=2048, batch=1920, step_s=step, recompute="full")
        by_key = {row.convention.key: row for row in rows}
        assert by_key["hardware_full"].flops_per_s / 1e12 == pytest.approx(rate, rel=0.006)
        if gpus == 2240:
            assert by_key["6n_full"].utilization == pytest.approx(0.302, abs=0.0006)


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(["llama3-8b", "mixtral-8x7b", "gemma3-27b", "jamba-v0.1", "deepseek-v3", "t5-small", "gpt2"]),
    seq=st.sampled_from([16, 1000, 4096]),
    recompute=st.sampled_from(["none", "selective", "every-second", "full"]),
)
def test_conventions_agree_with_each_other(model: str, seq: int, recompute: Recompute) -> None:
    """Each formula gives its FLOPs, HFU is at least MFU, and `mfu` repeats the same FLOPs as `flops`."""
    found = {each.key: each for each in conventions(load_bundled(model), seq, recompute)}
    assert all(evaluate(each.formula) == each.flops for each in found.values())
    flops = {key: each.flops for key, each in found.items()}
    assert flops["6n_no_embeddings"] <= flops.get("6n_active", flops["6n"]) <= flops["6n"]
    assert flops["6n_causal"] <= flops["6n_full"]
    assert flops["model_causal"] <= flops["model_full"]
    assert flops["model_causal"] <= flops["hardware_causal"]
    assert flops["model_full"] <= flops["hardware_full"]
    counted = count_flops(load_bundled(model), Workload.train(seq), recompute=recompute)
    assert flops["hardware_causal"] - flops["model_causal"] == counted.recompute


def test_palm_by_its_own_formula() -> None:
    """6·N + 12·L·H·Q·T per token, for a model of the usual shape."""
    spec, seq = load_bundled("llama2-7b"), 2048
    (row,) = [row for row in conventions(spec, seq) if row.key == "6n_full"]
    assert row.flops == (6 * 6_738_415_616 + 12 * 32 * 4096 * seq) * seq


def test_both_ways_to_say_the_speed() -> None:
    spec = load_bundled("llama3-8b")
    step = shares(utilized(spec, device="h100", gpus=8, seq=8192, batch=64, step_s=2.0))
    assert step == shares(utilized(spec, device="h100", gpus=8, seq=8192, tokens_per_s=64 * 8192 / 2))
    assert step["6n"] == pytest.approx(6 * 8_030_261_248 * 64 * 8192 / 2 / 8 / 989.4e12)


def test_the_time_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    """6·N·tokens / (GPUs × peak × MFU) by the model's own FLOPs. An expected MFU gives itself back."""
    spec = load_bundled("llama3-8b")
    rows = utilized(spec, device="h100", gpus=64, seq=8192, batch=512, mfu=0.4, training_tokens=300e9)
    assert shares(rows)["model_causal"] == pytest.approx(0.4)
    (row,) = (row for row in rows if row.convention.key == "model_causal")
    assert row.training_s == pytest.approx(row.flops_per_token * 300e9 / (64 * 989.4e12 * 0.4))
    assert row.step_s == pytest.approx(512 * 8192 / row.tokens_per_s)
    again = utilized(spec, device="h100", gpus=64, seq=8192, batch=512, step_s=row.step_s, training_tokens=300e9)
    assert again[0].training_s == pytest.approx(row.training_s)
    assert shares(again) == pytest.approx(shares(rows))
    base = ["mfu", "llama3-8b", "--device", "h100", "--gpus", "64", "--seq", "8k"]
    assert run([*base, "--mfu", "40%", "--tokens", "300B"]) == 0
    assert capsys.readouterr().out.startswith("At the expected MFU, 300.00 B tokens take 7.1 days, which are 10,")
    assert run([*base, "--tokens-per-s", "1,000k", "--tokens", "90M"]) == 0
    assert capsys.readouterr().out.startswith("At the measured speed, 90.0 M tokens take 90.0 seconds.")


def test_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["mfu", "llama3-8b", "--device", "a100"]
    for more, named in (
        ([], "exactly one of them is needed"),
        (["--step-time", "1s"], "--step-time needs the sequences per step"),
        (["--tokens-per-s", "9", "--step-time", "1s"], "exactly one of them is needed"),
        (["--tokens-per-s", "9", "--mfu", "40%"], "exactly one of them is needed"),
        (["--mfu", "40"], "is more than the peak"),
        (["--mfu", "0%"], "is not a share"),
        (["--mfu", "1e-30"], "--mfu 1e-30: must be from 1e-09 to 1"),
        (["--mfu", "40%", "--tokens", "1,5"], "is not a number of tokens"),
        (["--mfu", "40%", "--tokens", "0"], "is not a number of tokens"),
        (["--mfu", "40%", "--tokens", "1e19"], "--tokens 1e+19: must be from 1 to 1e+18"),
        (["--tokens-per-s", "1,5"], "is not a number of tokens per second"),
        (["--tokens-per-s", "1,,500"], "is not a number of tokens per second"),
        (["--tokens-per-s", "9", "--precision", "fp8"], "its matrix units do not compute fp8"),
        (["--tokens-per-s", "nan"], "is not a number of tokens per second"),
        (["--tokens-per-s", "0"], "is not a number of tokens per second"),
        (["--step-time", "-1s", "--batch", "8"], "is not a time"),
        (["--step-time", "3 weeks", "--batch", "8"], "is not a time"),
        (["--step-time", "1e999", "--batch", "8"], "is not a time"),
        (["--step-time", "1e-320us", "--batch", "8"], "--step-time 0: must be from 1e-09 to 1e+15"),
        (["--tokens-per-s", "1e300"], "--tokens-per-s 1e+300: must be from"),
    ):
        assert run([*base, *more]) == 2, more
        assert named in " ".join(capsys.readouterr().err.split()), more
    with pytest.raises(LLMBenchError, match="no source states its peak") as refusal:
        utilized(load_bundled("llama3-8b"), device="m3-max-128gb", tokens_per_s=1.0)
    assert refusal.value.hint is None  # no format of this device has a peak
    with pytest.raises(LLMBenchError, match="h1000"):
        utilized(load_bundled("llama3-8b"), device="h1000", tokens_per_s=1.0)


def test_a_share_above_one_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["mfu", "llama3-8b", "--device", "h100", "--step-time", "1ms", "--batch", "4"]) == 0
    assert "which is not possible: the time, --gpus" in " ".join(capsys.readouterr().out.partition("\n\n")[0].split())
    assert run(["mfu", "llama2-7b", "--device", "h100", "--tokens-per-s", "22k"]) == 0
    assert capsys.readouterr().out.startswith("Warning: model FLOPs, full gives 102% of the peak")
    assert run(["mfu", "mixtral-8x7b", "--device", "a100", "--tokens-per-s", "2000"]) == 0
    answer, _, below = capsys.readouterr().out.partition("\n\n")
    assert answer.startswith("mixtral-8x7b on 1 GPU")  # only a count of all experts exceeds the peak
    assert "warning: 6·N, N: all parameters gives 180% of the peak" in below
    assert run(["mfu", "llama2-7b", "--device", "h100", "--tokens-per-s", "2k"]) == 0
    assert "Warning" not in capsys.readouterr().out


def test_the_screen_says_why_hfu_is_higher(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        assert run(["mfu", *arguments, "--device", "h100", "--tokens-per-s", "2000"]) == 0
        return " ".join(capsys.readouterr().out.split())

    again = "HFU also counts what the backward pass computes again:"
    flash = "of scores that flash attention repeats"
    assert re.search(rf"{again} [\d.]+ MFLOPs {flash} share", shown("llama2-7b"))
    assert re.search(
        rf"{again} [\d.]+ GFLOPs of recomputed layers and [\d.]+ MFLOPs {flash}",
        shown("llama2-7b", "--recompute", "full"),
    )
    assert again not in shown("mamba-130m")
    rows = utilized(load_bundled("llama3-8b"), device="h100", gpus=8, tokens_per_s=70_000)
    text = to_json(document(rows, {}, tables=False))
    assert '"schema": "llmbench.mfu/1"' in text
    assert math.isclose(rows[0].flops_per_s, rows[0].utilization * rows[0].peak)
