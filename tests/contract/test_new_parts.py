"""The contract of a feed-forward, a position encoding, a norm and a number format: every command gives right figures
for a kind that says only what its base demands, or refuses it in words."""

from __future__ import annotations

from pathlib import Path

from tests.contract.copies import KINDS, answers, run_python

SPEC = str(KINDS / "new-parts.toml")

# The model of new-parts.toml, by hand.
D, VOCAB, N, K, H, RANK, INNER, LAYERS = 40, 96, 4, 2, 6, 3, 16, 2
ATTENTION = D * N * H + 2 * D * K * H + N * H * D
SQUEEZED = D * RANK + RANK * INNER + INNER * D
VECTORS = D + LAYERS * (N + 2 * D) + D  # the tone, the span biases and norms of the layers, the norm before the head
PARAMETERS = VOCAB * D + LAYERS * (ATTENTION + SQUEEZED) + VECTORS
SEQ = 9


def test_figures_are_right(folder: Path) -> None:
    params, flops, cache, narrow, inference = (
        answer.row
        for answer in answers(
            folder,
            [
                ["params", SPEC, "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--format", "json"],
                ["kvcache", SPEC, "--seq", str(SEQ), "--format", "json"],
                ["kvcache", SPEC, "--seq", str(SEQ), "--kv-dtype", "fp6", "--format", "json"],
                ["memory", SPEC, "--seq", str(SEQ), "--phase", "inference", "--format", "json"],
            ],
        )
    )
    assert params["parameters"]["total"] == PARAMETERS
    assert params["components"]["position_embedding"] == D
    assert params["components"]["mlp"] == LAYERS * SQUEEZED
    assert params["components"]["attention_extra"] == LAYERS * N
    matrices = VOCAB * D + LAYERS * (ATTENTION + SQUEEZED)
    scores = LAYERS * N * 2 * (H + H) * SEQ * (SEQ + 1) // 2
    assert flops["total_flops"] == SEQ * 2 * matrices + scores
    row = LAYERS * 2 * K * H
    assert cache["bytes_per_sequence"] == SEQ * row * 2
    assert narrow["bytes_per_sequence"] == SEQ * row * 6 // 8
    assert inference["parts_bytes"]["weights"] == 2 * PARAMETERS
    assert inference["parts_bytes"]["kv_cache"] == cache["bytes_total"]


def test_words_are_right(folder: Path) -> None:
    compare, shown, checked, table, long = answers(
        folder,
        [
            ["compare", SPEC, "--format", "json"],
            ["specs", "show", SPEC],
            ["specs", "check", SPEC],
            ["params", SPEC, "--by", "op", "--explain"],
            ["flops", SPEC, "--seq", "65"],
        ],
    )
    assert compare.row["positions"] == ["span bias (3)"]
    assert compare.row["norm"] == "MaxNorm"
    assert "squeezed 3 → 16" in str(compare.row)
    assert (shown.code, checked.code, table.code, long.code) == (0, 0, 0, 0)
    for kind in ("tone", "maxnorm", "span_bias", "squeezed"):
        assert f'"{kind}"' in shown.out
    assert f"{PARAMETERS:,}" in checked.out
    assert "rank × intermediate" in table.out
    assert "new-parts cannot read 65 tokens: its tone positions cover only 64" in long.out


TONE = '{kind = "tone", period = 2, longest = 9}'
REFUSED = [
    (["params", "llama2-7b", "--set", "positions={kind = 'tone'}"], ("positions", "period")),
    (["params", "deepseek-v3", "--set", "positions={kind = 'span_bias', near = 2}"], ("span_bias", "MLA")),
    (
        ["params", SPEC, "--set", f"layers.block.mixer.positions={TONE}"],
        ("`tone` is added to the embedding", "set the positions of the model"),
    ),
    (["model", SPEC, "--seq", "8"], ("tone positions are not implemented yet",)),
    (["model", "llama2-7b", "--layers", "1", "--device", "meta", "--set", "norm.kind=maxnorm"], ("MaxNorm",)),
    (
        [
            "model",
            "t5-small",
            "--device",
            "meta",
            "--set",
            f"encoder.positions={TONE}",
        ],
        ("tone positions are not implemented yet",),
    ),
    (["profile", "attention", "--model", SPEC, "--device", "cpu"], ("new-parts: a span bias needs other parts",)),
    (["profile", "rope", "--model", SPEC, "--device", "cpu"], ("new-parts has no rotary positions",)),
    (["profile", "glu", "--model", SPEC, "--device", "cpu"], ("new-parts has no gated feed-forward",)),
    (["profile", "block", "--model", SPEC, "--device", "cpu", "--seq", "8"], ("not implemented yet",)),
]


def test_other_commands_refuse_in_true_words(folder: Path) -> None:
    for (command, words), refusal in zip(REFUSED, answers(folder, [command for command, _ in REFUSED]), strict=True):
        assert refusal.code != 0, command
        for word in words:
            assert word in refusal.err, (command, refusal.err)


STORED = """
import torch
from llmbench.model.cache import CACHE_KINDS
from llmbench.model.storage import dequantise, quantise
x = torch.linspace(-3, 3, 24).view(2, 12)
stored, scales = quantise(x, CACHE_KINDS["int6"].storage, (8, 4))
error = (dequantise(stored, scales, "int6", (8, 4), torch.float32) - x).abs().max()
print(stored.dtype, stored.abs().max().item(), bool(error <= scales.max() / 2))
"""


def test_a_new_storage_format_stores_rows(folder: Path) -> None:
    assert run_python(folder, STORED).split() == ["torch.int8", "31", "True"]
