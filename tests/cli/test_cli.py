"""The command line in this process: answers, JSON fields, names of models, and options."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import llmbench
from llmbench.cli import COMMANDS, run
from llmbench.cli.application import build
from llmbench.report.render import to_json
from llmbench.sizing.op import Component
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.files import write_spec
from llmbench.spec.mixer import LatentAttention

from ..oracles.huggingface_export import to_config
from .commands import Capture, answer, refusal, rows

# JSON

INT, FLOAT, BOOL, TEXT = "int", "float", "bool", "str"
COUNTS = dict.fromkeys(Component.__args__, INT)
PARTS = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "logits", "kv_cache", "overhead"), INT)
MARK = {"model": TEXT, "approximate": BOOL, "approximate_because": "list", "notes": "list"}
FIELDS: dict[str, dict[str, Any]] = {
    "params": MARK
    | {
        "parameters": dict.fromkeys(
            ("total", "active", "active_no_embeddings", "active_no_input_embedding", "active_matmul"), INT
        ),
        "components": COUNTS,
        "layers": {"block": {"count": INT, "parameters": INT}},
        "persistent_buffers": INT,
        "next_token_prediction": INT,
        "towers": {},  # a model of text has none
        "published_parameters": INT,
        "rule_12_l_d2": INT,
        "bf16_bytes": INT,
        "weights_format": TEXT,
        "weights_from": TEXT,
        "stored_bytes": INT,
        "stored_components": dict.fromkeys(("embedding", "attention", "mlp", "norms", "lm_head"), INT),
        "stored_approximate_because": "list",
        "stored_unknown_because": "NoneType",
    },
    "flops": MARK
    | {"phase": TEXT, "attention": TEXT, "recompute": TEXT, "absorbed_mla": BOOL, "flops_per_token": FLOAT}
    | {"lora": "NoneType", "launches": "NoneType", "ops": "NoneType"}  # the last two have values with --by op
    | {"chunk": "NoneType", "chunk_start": "NoneType"}
    | dict.fromkeys(
        (
            "seq_len",
            "batch",
            "total_flops",
            "matmul_flops",
            "attention_flops",
            "recurrent_flops",
            "recompute_flops",
            "weight_bytes",
            "kv_read_bytes",
            "kv_written_bytes",
            "tokens",
            "rule_of_thumb_flops",
        ),
        INT,
    )
    | {"components": {"attention": INT, "mlp": INT, "lm_head": INT}},
    "kvcache": MARK
    | {"kv_dtype": TEXT, "layers": {"block": INT}, "formulas": "NoneType"}
    | dict.fromkeys(
        (
            "seq_len",
            "batch",
            "block_size",
            "bytes_per_token",
            "bytes_per_token_beyond_windows",
            "bytes_per_sequence",
            "state_bytes_per_sequence",
            "indexer_bytes_per_sequence",
            "cross_bytes_per_sequence",
            "bytes_total",
            "reserved_bytes",
        ),
        INT,
    ),
    "memory": MARK
    | {"phase": TEXT, "layout": TEXT, "moment": TEXT, "stage_peak_bytes": "list", "fits_on": "list"}
    | {"devices": "list", "communication": "list", "formulas": "NoneType", "timeline": "NoneType"}
    | dict.fromkeys(
        ("seq_len", "micro_batch", "num_gpus", "peak_bytes", "reserved_bytes", "context_bytes", "stage"), INT
    )
    | {"steady_bytes": INT, "stage_steady_bytes": "list", "host_bytes": {}, "micro_batches": INT, "dropout": BOOL}
    | dict.fromkeys(("batch_is", "precision", "optimizer", "recompute", "kernels", "loss", "recipe"), TEXT)
    | dict.fromkeys(("weights_format", "weights_from", "kv_dtype", "lora", "base"), "NoneType")
    | dict.fromkeys(("trained_parameters", "frozen_parameters"), "NoneType")
    | {"parts_bytes": PARTS}
    | {"full_bytes": dict.fromkeys(("weights", "gradients", "optimizer", "activations"), INT)},
}
"""Every field of a row and its type, on which programs rely."""


def shape(value: Any) -> Any:
    """The types of a value, field by field."""
    return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value).__name__


@pytest.mark.parametrize("command", FIELDS)
def test_json_has_exactly_its_fields(command: str, capsys: Capture) -> None:
    document = json.loads(answer(capsys, command, "llama2-7b", "--format", "json"))
    assert set(document) == {"schema", "inputs", "environment", "models"}
    assert document["schema"] == f"llmbench.{command}/{ {'memory': 3, 'compare': 2}.get(command, 1) }"
    assert document["environment"] == {
        "llmbench": llmbench.__version__,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
    assert [shape(row) for row in document["models"]] == [FIELDS[command]]


@pytest.mark.parametrize(
    ("command", "inputs"),
    [
        ("params", "models weights set"),
        ("flops", "models phase seq_len batch chunk chunk_start attention recompute lora by set"),
        ("kvcache", "models all seq_len batch kv_dtype block_size set"),
        (
            "memory",
            "model phase seq_len micro_batch precision weights optimizer recompute layout kernels loss dropout "
            "micro_batches recipe lora base kv_dtype devices set",
        ),
    ],
)
def test_json_repeats_the_arguments(command: str, inputs: str, capsys: Capture) -> None:
    text = answer(capsys, command, "gpt2", "--set", "num_hidden_layers=3", "--format", "json")
    document = json.loads(text)
    assert " ".join(document["inputs"]) == inputs
    assert document["inputs"]["set"] == ["num_hidden_layers=3"]


def test_figures_of_the_readme(capsys: Capture) -> None:
    (params,) = rows(capsys, "params", "llama2-7b")
    assert params["parameters"]["total"] == params["published_parameters"] == 6_738_415_616
    assert params["rule_12_l_d2"] == 12 * 32 * 4096**2
    (cache,) = rows(capsys, "kvcache", "deepseek-v3", "--seq", "100", "--batch", "3")
    assert (cache["bytes_per_token"], cache["bytes_total"]) == (70_272, 3 * 7_027_200)
    (flops,) = rows(capsys, "flops", "llama2-7b", "--phase", "decode", "--seq", "4096", "--batch", "8")
    assert (flops["phase"], flops["tokens"]) == ("decode", 8)
    (memory,) = rows(capsys, "memory", "llama2-7b", "--layout", "tp=8,sp", "--seq", "512")
    assert memory["layout"] == "tp=8,sp"
    assert memory["peak_bytes"] == sum(memory["parts_bytes"].values())
    assert "h100-sxm" in memory["fits_on"]


def test_inference_is_its_own_phase(capsys: Capture) -> None:
    (row,) = rows(capsys, "memory", "llama2-7b", "--phase", "inference", "--weights", "int4", "--batch", "2")
    assert row["phase"] == "inference"
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    scales = matrices // 128 * 5 // 2  # a bf16 scale and a 4-bit zero point for every 128 inputs
    assert row["parts_bytes"]["weights"] == matrices // 2 + scales + 2 * (6_738_415_616 - matrices)
    assert row["full_bytes"] == {
        "weights": row["parts_bytes"]["weights"],
        "kv_cache": row["parts_bytes"]["kv_cache"],
    }


def test_numbers_keep_full_precision(capsys: Capture) -> None:
    out = answer(capsys, "flops", "deepseek-v3", "--phase", "train", "--seq", "131072", "--format", "json")
    total = json.loads(out)["models"][0]["total_flops"]
    assert f'"total_flops": {total}' in out
    assert total > 2**53
    assert "e+" not in out.split('"flops_per_token"')[0]


# Models


@pytest.mark.parametrize(
    "typed",
    [
        "llama2-7b",
        "llama-2-7b",
        "LLaMA2_7B",
        "Llama 2 7B",
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/llama-2-7b-HF",
    ],
)
def test_a_model_has_many_names(typed: str, capsys: Capture) -> None:
    assert rows(capsys, "params", typed)[0]["model"] == "llama2-7b"


def test_several_models_in_their_order(capsys: Capture) -> None:
    wanted = ["gpt2", "deepseek-v3", "mamba-130m"]
    for command in ("params", "flops", "kvcache", "compare"):
        assert [row["model"] for row in rows(capsys, command, *wanted)] == wanted


def test_models_from_files(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "some-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_config(load_bundled("qwen3-8b"))))
    (tmp_path / "other.toml").write_text(write_spec(load_bundled("gpt2")))
    models = rows(capsys, "params", str(folder), str(folder / "config.json"), str(tmp_path / "other.toml"))
    assert [row["parameters"]["total"] for row in models] == [8_190_735_360, 8_190_735_360, 124_439_808]
    assert [row["model"] for row in models] == ["some-model", "some-model", "gpt2"]


def test_without_a_model_a_dozen_kinds_of_caches_are_compared(capsys: Capture) -> None:
    from llmbench.sizing.kvcache import kv_cache

    every = {row["model"]: row["bytes_total"] for row in rows(capsys, "kvcache", "--all")}
    assert list(every) == list(bundled_models())
    some = {row["model"]: row["bytes_total"] for row in rows(capsys, "kvcache", "--seq", "8k")}
    assert 8 <= len(some) <= 14
    assert some == {name: kv_cache(load_bundled(name), 8192).bytes_total for name in some}
    shown = answer(capsys, "kvcache")
    for kind in ("MHA", "GQA", "MQA", "MLA", "window", "Mamba"):
        assert kind in shown
    assert "takes no MODEL" in refusal(capsys, "kvcache", "gpt2", "--all")


def test_a_list_of_specs_is_filtered(capsys: Capture) -> None:
    def listed(*options: str) -> list[dict[str, Any]]:
        return rows(capsys, "specs", "list", *options)

    families = {row["model"]: row["family"] for row in listed("--family", "Qwen3")}
    assert set(families.values()) == {"qwen3", "qwen3_moe", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
    assert len(families) == len([name for name in bundled_models() if name.startswith("qwen3")])
    assert [row["model"] for row in listed("--filter", "coder", "--family", "starcoder2")] == [
        "starcoder2-15b",
        "starcoder2-3b",
        "starcoder2-7b",
    ]
    assert [row["name"] for row in listed("--devices", "--filter", "blackwell")]
    assert "nothing in the list matches --filter zzz" in refusal(capsys, "specs", "list", "--filter", "zzz")
    assert "--family is for models" in refusal(capsys, "specs", "list", "--devices", "--family", "x")
    assert "exclude each other" in refusal(capsys, "specs", "list", "--devices", "--model-types")


# --set


@pytest.mark.parametrize(
    ("change", "total"),
    [
        ("num_key_value_heads=8", 6_738_415_616 - 32 * 2 * 24 * 128 * 4096),
        ("layers.block.mixer.num_key_value_heads=8", 6_738_415_616 - 32 * 2 * 24 * 128 * 4096),
        ("layers.*.mixer.num_key_value_heads=8", 6_738_415_616 - 32 * 2 * 24 * 128 * 4096),
        ("num_hidden_layers=16", 6_738_415_616 - 16 * 202_383_360),
        ("tie_word_embeddings=true", 6_738_415_616 - 131_072_000),
        ("vocab_size=32_001", 6_738_415_616 + 2 * 4096),
        ("layers.block.ffn=none", 6_738_415_616 - 32 * (3 * 4096 * 11008 + 4096)),
    ],
)
def test_a_field_is_changed(change: str, total: int, capsys: Capture) -> None:
    (row,) = rows(capsys, "params", "llama2-7b", "--set", change)
    assert row["parameters"]["total"] == total
    assert row["published_parameters"] is None


def test_none_removes_a_field(capsys: Capture) -> None:
    arguments = ("kvcache", "mistral-7b-v0.1", "--seq", "10000")
    assert rows(capsys, *arguments)[0]["bytes_per_sequence"] == 4096 * 131_072
    assert rows(capsys, *arguments, "--set", "sliding_window=none")[0]["bytes_per_sequence"] == 10_000 * 131_072


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("hidden_sise=1", ["--set hidden_sise", "did you mean `hidden_size`?"]),
        ("layers.blok.mixer.head_dim=64", ["no `layers.blok`", "did you mean `block`?"]),
        ("layers.block.mixer.hed_dim=64", ["hed_dim", "did you mean `head_dim`?"]),
        ("hidden_size=x", ["hidden_size", "must be a whole number"]),
        ("hidden_size=0", ["hidden_size", "at least 1"]),
        ("num_key_value_heads=7", ["num_key_value_heads", "7 does not divide"]),
        ("num_hidden_layers=0", ["num_hidden_layers", "from 1 to 10000"]),
        ("hidden_size", ["does not have the form key=value"]),
    ],
)
def test_a_wrong_change_is_explained(change: str, says: list[str], capsys: Capture) -> None:
    err = refusal(capsys, "params", "llama2-7b", "--set", change)
    for text in says:
        assert text in err


@pytest.mark.parametrize(("text", "tokens"), [("8k", 8192), ("128K", 131072), ("1m", 2**20), ("500", 500)])
def test_units_of_tokens(text: str, tokens: int, capsys: Capture) -> None:
    assert rows(capsys, "kvcache", "llama2-7b", "--seq", text)[0]["seq_len"] == tokens


@pytest.mark.parametrize(
    ("name", "options", "begins"),
    [
        ("x.csv", [], "model,"),
        ("x.json", [], "{"),
        ("x.md", [], "**llama2-7b"),
        ("x.txt", [], "llama2-7b ·"),
        ("x.csv", ["--format", "json"], "{"),
        ("x.json", ["--format", "table"], "llama2-7b ·"),
    ],
)
def test_the_format_follows_the_file_name(name: str, options: list[str], begins: str, tmp_path: Path) -> None:
    file = tmp_path / name
    for arguments in (["-o", str(file), *options], [*options, "-o", str(file)]):
        assert run(["params", "llama2-7b", *arguments]) == 0
        assert file.read_text(encoding="utf-8").startswith(begins)


def test_json_holds_any_argument() -> None:
    from llmbench.report.document import Document

    text = to_json(Document(command="x", inputs={"models": ["\udcff"]}, rows_key="models", rows=[], blocks=[]))
    assert json.loads(text)["inputs"] == {"models": ["\udcff"]}


def test_every_command_has_a_module_and_help(capsys: Capture) -> None:
    for name in COMMANDS:
        text = answer(capsys, name, "--help")
        assert "Usage: llmbench" in text
        if name not in ("specs", "kernels", "exercise"):  # groups: their commands have the examples
            assert f"llmbench {name}" in text.split("Examples:")[1]
    for name in ("list", "show", "import", "check"):
        assert f"llmbench specs {name}" in answer(capsys, "specs", name, "--help").split("Examples:")[1]
    for name in ("list", "check", "inspect"):
        assert f"llmbench kernels {name}" in answer(capsys, "kernels", name, "--help").split("Examples:")[1]


# The options are frozen: a new one must serve more than one user

SHARED = ["--wide", "--notes"]
"""The options of every command that prints tables. `prints_tables` adds them behind the command's own."""
OPTIONS = {
    "params": "--by --weights --explain --set --format --output",
    "flops": "--phase --seq --batch --chunk --chunk-start --attention --recompute --lora --by --explain --set "
    "--format --output",
    "kvcache": "--all --seq --batch --kv-dtype --block-size --explain --set --format --output",
    "memory": "--phase --seq --batch --precision --weights --optimizer --recompute --layout --kernels --loss --dropout "
    "--micro-batches --recipe --lora --base --kv-dtype --device --explain --timeline --set --format --output",
    "fit": "--device --gpus --layout --engine --utilization --seq --users --weights --kv-dtype --draft --price "
    "--explain --set --format --output",
    "compare": "--vs --seq --weights --set --format --output",
    "model": "--impl --device --dtype --layers --trace --seq --batch --set --format --output",
    "profile": "--impl --model --set --seq --batch --dtype --pass --device --by --trace --format --output",
    "bench": "--preset --model --set --seq --batch --device --dtype --output --resume --plot --format",
    "diff": "--all --format --output",
    "train": "--data --steps --batch --seq --lr --warmup --schedule --optimizer --dtype --device --seed --setting "
    "--set --stop-at --resume --output --tensorboard --format",
    "ablate": "--from --to --only --view --lr --seeds --data --steps --batch --seq --set --plot --format --output",
    "dynamics": "--arms --layers --lr --seeds --data --steps --batch --seq --set --plot --format --output",
    "extrapolate": "--methods --lengths --seq --data --steps --batch --lr --seed --set --plot --format --output",
    "evaluate": "--text --tokens --seq --stride --by-position --device --dtype --format --output",
    "generate": "--prompt --tokens --temperature --top-k --top-p --seed --device --dtype --format --output",
    "env": "--format --output",
    "kernels list": "--format --output",
    "kernels check": "--device --dtype --seeds --fuzz --seed --format --output",
    "kernels inspect": "--arch --dtype --shipped --jobs --format --output",
    "specs list": "--devices --model-types --formats --family --filter --format --output",
    "specs show": "--set --output",
    "specs import": "--output",
    "specs check": "--format --output",
    "choose": "--goal --context --device --params --spec --format --output",
    "exercise list": "--format --output",
    "exercise show": "--seed --solution --format --output",
    "exercise check": "--answer --seed --timeout --format --output",
    "worked": "--tokens --dim --seed --format --output",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_frozen(command: str) -> None:
    import typer.main

    current = typer.main.get_command(build([command.split()[0]]))
    for name in command.split():
        current = current.commands[name]
    options = [option for option in current.params if option.param_type_name == "option"]
    names = [option.opts[0] for option in options if "--help" not in option.opts]
    own = OPTIONS[command].split()
    assert names == own + (SHARED if "--format" in own else [])
    assert len(own) <= {"memory": 22, "fit": 15, "flops": 13, "train": 18, "ablate": 14}.get(command, 12)
    assert all(option.help for option in options)


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("mla", lambda spec: any(isinstance(mixer, LatentAttention) for mixer in spec.mixers)),
        ("window", lambda spec: any(mixer.sliding_window for mixer in spec.attentions)),
    ],
)
def test_the_list_is_filtered_by_kinds_of_layers(text: str, has: Any, capsys: Capture) -> None:
    found = json.loads(answer(capsys, "specs", "list", "--filter", text, "--format", "json"))["specs"]
    assert [model["model"] for model in found] == [name for name in bundled_models() if has(load_bundled(name))]


def test_devices_have_prices_of_their_own(capsys: Capture) -> None:
    devices = ["--device", "h100", "--device", "l40s", "--device", "a10g"]
    text = answer(capsys, "fit", "llama3-8b", *devices, "--price", "h100=2.5,3,l40s=1.1", "--format", "csv")
    prices = {row["device"]: row["price_per_hour"] for row in csv.DictReader(io.StringIO(text))}
    assert prices == {"h100-sxm": "2.5", "l40s": "1.1", "a10g": "3.0"}
    table = answer(capsys, "fit", "llama3-8b", *devices, "--price", "h100=2.5,3,l40s=1.1")
    assert "The cheapest choice is 1 × l40s, for 1.10 per hour." in " ".join(table.split())


def test_several_devices_that_are_too_small_name_the_number_that_suffices(capsys: Capture) -> None:
    """The number that the table names is the one that the command then accepts."""
    question = ["fit", "qwen3-32b", "--users", "16", "--seq", "32k"]
    assert run([*question, "--device", "h100", "--device", "l40s"]) == 1
    text = " ".join(capsys.readouterr().out.split())
    found = dict(re.findall(r"(\S+) --gpus (\d+)", text))
    assert set(found) == {"h100-sxm", "l40s"}
    for device, gpus in found.items():
        assert run([*question, "--device", device, "--gpus", gpus]) == 0
        assert run([*question, "--device", device, "--gpus", str(int(gpus) // 2)]) == 1
