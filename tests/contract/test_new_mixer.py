"""The contract of a mixer: every command gives right figures for a kind that says only what its base demands, or
refuses it in words."""

from __future__ import annotations

from pathlib import Path

from tests.contract.copies import KINDS, answers, run_python

SPEC = str(KINDS / "new-kinds.toml")

# The model of new-kinds.toml, by hand.
D, VOCAB, N, K, H, WINDOW, W = 40, 96, 4, 2, 6, 5, 24
WINDOW_LAYERS, AVERAGE_LAYERS = 2, 1
WINDOW_MATRICES = D * N * H + 2 * D * K * H + D * N * H + N * H * D  # q, k and v, gate, o
AVERAGE_MATRICES = D * W + W * D
NORMS = (WINDOW_LAYERS + AVERAGE_LAYERS + 1) * D  # one before each mixer, one before the head
PARAMETERS = VOCAB * D + NORMS + WINDOW_LAYERS * WINDOW_MATRICES + AVERAGE_LAYERS * (AVERAGE_MATRICES + W)
SEQ = 9


def visible(length: int) -> int:
    """Pairs of a query and a key that it sees, counted one by one."""
    return sum(0 <= query - key < WINDOW for query in range(length) for key in range(length))


def test_figures_are_right(folder: Path) -> None:
    params, flops, train, decode, cache, inference = (
        answer.row
        for answer in answers(
            folder,
            [
                ["params", SPEC, "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--phase", "train", "--format", "json"],
                ["flops", SPEC, "--seq", str(SEQ), "--phase", "decode", "--format", "json"],
                ["kvcache", SPEC, "--seq", str(SEQ), "--format", "json"],
                ["memory", SPEC, "--seq", str(SEQ), "--phase", "inference", "--format", "json"],
            ],
        )
    )
    assert params["parameters"]["total"] == PARAMETERS
    matrices = VOCAB * D + WINDOW_LAYERS * WINDOW_MATRICES + AVERAGE_LAYERS * AVERAGE_MATRICES
    scan = 6 * W * AVERAGE_LAYERS
    scores = WINDOW_LAYERS * N * 2 * (H + H)
    assert flops["total_flops"] == SEQ * (2 * matrices + scan) + scores * visible(SEQ)
    assert train["total_flops"] >= 3 * flops["total_flops"]
    assert decode["total_flops"] == 2 * matrices + scan + scores * WINDOW
    row, state = 2 * K * H, 4 * W
    assert cache["bytes_per_token"] == WINDOW_LAYERS * row * 2
    assert cache["bytes_per_sequence"] == WINDOW_LAYERS * row * WINDOW * 2
    assert cache["state_bytes_per_sequence"] == AVERAGE_LAYERS * state
    assert inference["parts_bytes"]["weights"] == 2 * PARAMETERS
    assert inference["parts_bytes"]["kv_cache"] == cache["bytes_total"]


def test_words_are_right(folder: Path) -> None:
    table, compare, training, absorbed = answers(
        folder,
        [
            ["kvcache", SPEC, "--seq", str(SEQ), "--explain"],
            ["compare", SPEC, "--format", "json"],
            ["memory", SPEC, "--seq", str(SEQ), "--format", "json"],
            ["flops", SPEC, "--seq", str(SEQ), "--phase", "decode", "--format", "json"],
        ],
    )
    assert "4 heads (gated window)" in table.out
    assert "leaky average" in table.out
    assert "the last 5" in table.out
    assert "2 × 2 kv_heads × 6 head_dim × 5 tokens" in " ".join(table.out.split())
    assert "a fixed state" in table.out
    assert "fixed size" in table.out
    assert "MHA" in table.out  # the cache with other heads
    words = compare.row
    assert words["positions"] == ["RoPE (θ 10000)"]
    assert words["attention"] == ["4 heads (gated window)", "leaky average"]
    assert words["head_dim"] == [H]
    assert words["window"] == [WINDOW]
    assert training.row["approximate"]
    doubts = " ".join(training.row["approximate_because"])
    assert "gated window" in doubts
    assert "recurrent" in doubts
    assert absorbed.row["absorbed_mla"] is False


REFUSED = [
    ("layers.window.mixer.head_dim=33", ("head_dim", "33 is odd", "rotary_dim")),
    ("positions.kind=alibi", ("positions", "`alibi`", "gated window", "choose `rope`")),
    ("positions.kind=relative_bias", ("positions", "`relative_bias`", "gated window", "choose `rope`")),
    (
        'layers.window.mixer.positions={kind = "learned", num_positions = 9}',
        ("layers.window.mixer.positions", "`learned`", "set the positions of the model"),
    ),
    ("positions.rotary_dim=8", ("positions.rotary_dim", "8 is more than", "head_dim 6")),
    ("layers.window.mixer.windows=3", ("layers.window.mixer.windows",)),
]


def test_what_a_kind_does_not_support_is_refused(folder: Path) -> None:
    refusals = answers(folder, [["params", SPEC, "--set", change] for change, _ in REFUSED])
    for (change, words), refusal in zip(REFUSED, refusals, strict=True):
        assert refusal.code == 2, change
        for word in words:
            assert word in refusal.err, change


def test_positions_that_no_layer_uses_are_refused(folder: Path, tmp_path: Path) -> None:
    text = Path(SPEC).read_text(encoding="utf-8").replace("2*window average", "average")
    text = text[: text.index("[layers.window")] + text[text.index("[layers.average") :]
    with_rope, without = tmp_path / "rope.toml", tmp_path / "none.toml"
    with_rope.write_text(text, encoding="utf-8")
    without.write_text(text.replace('"rope"', '"none"'), encoding="utf-8")
    refused, accepted = answers(folder, [["params", str(with_rope)], ["params", str(without)]])
    assert refused.code == 2
    assert "positions: `rope` needs attention, but all mixers are recurrent (such as leaky average)" in refused.err
    assert accepted.code == 0, accepted.err


def test_profile_and_model_refuse_in_true_words(folder: Path) -> None:
    refused = {
        "mla": "new-kinds has no latent attention that can be timed alone",
        "glu": "new-kinds has no gated feed-forward",
        "moe": "new-kinds has no experts",
        "block": "new-kinds: layers.window.mixer of kind gated_window is not implemented yet",
    }
    run = ["--device", "cpu", "--seq", "8"]
    commands = [["profile", piece, "--model", SPEC, *run] for piece in refused]
    *profiles, model = answers(folder, [*commands, ["model", SPEC]])
    for words, answer in zip(refused.values(), profiles, strict=True):
        assert answer.code != 0
        assert words in answer.err
    assert model.code != 0
    assert "layers.window.mixer of kind gated_window is not implemented yet" in model.err


TIMED = f"""
from pathlib import Path
import msgspec
import torch
from llmbench.bench.correctness import check_setting
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.attention import heads_of
from llmbench.bench.pieces.piece import Setting
from llmbench.spec.files import read_spec
spec = read_spec(Path({SPEC!r}))
for name in ("attention", "decode", "rope"):
    piece = find_piece(name)
    setting = Setting(spec=piece.reduce(spec), batch=1, seq_len=9, dtype="fp32", device=torch.device("cpu"))
    print(name, [op.name for op in piece.ops_of(setting)], piece.work(setting).flops)
heads = heads_of(find_piece("attention").reduce(spec))
print(heads.heads, heads.kv_heads, heads.head_dim, heads.value_dim, heads.window, heads.scale)
piece = find_piece("attention")
wide = spec.layers["window"].mixer.__class__(
    num_attention_heads=8, num_key_value_heads=4, head_dim=6, window_size=4096
)
layer = msgspec.structs.replace(spec.layers["window"], mixer=wide)
model = msgspec.structs.replace(piece.reduce(spec), layers={{"window": layer}})
setting = Setting(spec=model, batch=1, seq_len=8192, dtype="fp32", device=torch.device("cpu"))
checked = check_setting(piece, setting)
(mixer,) = checked.spec.mixers
print(mixer.window_size, mixer.num_attention_heads, mixer.num_key_value_heads, checked.seq_len)
"""


def test_profile_times_a_new_attention(folder: Path) -> None:
    attention, decode, rope, heads, checked = run_python(folder, TIMED).splitlines()
    assert attention == f"attention ['layers.{{}}.attention.core'] {N * 2 * (H + H) * visible(SEQ)}"
    assert decode == f"decode ['layers.{{}}.attention.core'] {N * 2 * (H + H) * WINDOW}"
    assert rope == "rope ['layers.{}.attention.rope'] 0"
    assert heads == f"{N} {K} {H} {H} {WINDOW} {H**-0.5}"
    assert checked == "1024 4 2 2049"


def test_specs_show_and_check(folder: Path) -> None:
    shown, checked = answers(folder, [["specs", "show", SPEC], ["specs", "check", SPEC]])
    assert (shown.code, checked.code) == (0, 0)
    assert 'kind = "gated_window"' in shown.out
    assert f"{PARAMETERS:,}" in checked.out
