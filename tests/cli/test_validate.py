"""`llmbench validate`: readers, metrics, groups, refusals and exit codes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli import run

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"
KV = "source,engine,model,format,tokens_or_cells,layers,given"
Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, kind: str, file: Path, *options: str, code: int = 0) -> dict[str, Any]:
    """The JSON answer of the command."""
    assert run(["validate", kind, str(file), "--format", "json", *options]) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["schema"] == "llmbench.validate/1"
    assert result["kind"] == kind
    return result


def write(folder: Path, *lines: str) -> Path:
    """A CSV file with these lines."""
    path = folder / "rows.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_ones_own_can_lack_columns_and_its_terms_are_shown(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "own.csv"
    path.write_text("engine,version,model,gpu,tp,max_model_len,weights_gib\nvllm,0.19,llama3.1-8b,h100,1,8192,14.99\n")
    assert run(["validate", "engine", str(path), "--bound", "0.01"]) == 0
    text = capsys.readouterr().out
    assert "line 2: the terms that llmbench computes" in text
    assert re.search(r"^  weights +14\.96$", text, re.MULTILINE)
    path.write_text(
        "peak_gib,model,method,num_gpus,micro_batch,max_seq_len,dtype,optimizer,packed\n"
        "30,llama3.2-3b,full,1,1,2048,bf16,adamw,True\n"
    )
    assert run(["validate", "memory", str(path)]) == 0
    assert "answers 1 of 1 row" in capsys.readouterr().out


def test_a_training_run_of_ones_own_is_counted_as_its_framework_says(tmp_path: Path, capsys: Capture) -> None:
    """The figures are those of `llmbench memory` with the same settings, and the row says what they assume."""
    path = write(
        tmp_path,
        "source,model,seq_len,micro_batch,quantity,value,unit,framework,precision",
        "my run,smollm2-135m,512,4,peak_allocated_per_gpu,9,GiB,,",
        "my run,smollm2-135m,512,4,peak_allocated_per_gpu,9,GiB,torchtitan,fp32",
        "my run,smollm2-135m,512,4,peak_allocated_per_gpu,9,GiB,my framework,",
        "torchtitan README,smollm2-135m,512,4,peak_allocated_per_gpu,9,GiB,,bf16 with fp32 reduction",
    )
    own, torchtitan, refused, published = answer(capsys, "memory", path)["items"]
    assert "names no framework" in own["doubt"]
    assert torchtitan["doubt"] is None
    assert "gradients in fp32" in published["assumed"]  # a paper's own words for the precision are not read
    assert own["name"] == "smollm2-135m line 2"
    assert "framework llmbench" in own["assumed"]
    assert "framework torchtitan" in torchtitan["assumed"]
    assert "'torchtitan'" in refused["reason"]
    for item, options in ((own, []), (torchtitan, ["--kernels", "eager", "--precision", "fp32"])):
        assert run(["memory", "smollm2-135m", "--seq", "512", "--batch", "4", *options, "--format", "json"]) == 0
        memory = json.loads(capsys.readouterr().out)["models"][0]
        assert item["ours"] == memory["peak_bytes"]
        assert item["parts"] == memory["parts_bytes"]
    assert run(["validate", "memory", str(path)]) == 0
    text = capsys.readouterr().out
    assert "line 3: the terms that llmbench computes" in text
    assert "assumed for framework torchtitan: plain torch" in text


def test_a_row_with_tokens_shows_its_terms(tmp_path: Path, capsys: Capture) -> None:
    columns = "engine,version,model,gpu,tp,max_model_len,kv_tokens,util"
    path = write(tmp_path, columns, "vllm,0.19,llama3.1-8b,h100,1,8192,420000,0.9")
    assert run(["validate", "engine", str(path)]) == 0
    assert re.search(r"^  cache +\d+\.\d\d$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.csv")), ids=lambda path: path.stem)
def test_every_published_row_has_a_source_and_an_answer(path: Path, capsys: Capture) -> None:
    kind = {"checkpoints": "weights", "kv_formats": "kv", "engine_logs": "engine"}.get(path.stem, "memory")
    result = answer(capsys, kind, path, "--by", "source")
    assert result["file"] == path.stem
    assert result["answered"] == result["rows"] == len(result["items"])
    assert all(group["value"] for group in result["groups"])
    assert sum(group["rows"] for group in result["groups"]) == result["rows"]
    metrics = result["metrics"]
    assert kind in ("memory", "engine") or metrics["exact"] == 1, [
        item["name"] for item in result["items"] if not item["exact"]
    ]
    if path.stem == "megatron_runs":
        assert metrics["median_ape"] <= 0.01
        assert metrics["worst"] <= 0.03
        static = next(part["metrics"] for part in result["quantities"] if part["value"] == "static_bytes")
        assert static["median_ape"] <= 0.02
    if path.stem == "training_runs":
        assert all(bool(item["note"]) == (item["quantity"] == "reserved_bytes") for item in result["items"])
        assert all(sum(item["parts"].values()) == item["ours"] for item in result["items"])
    if path.stem == "torchtune_runs":
        assert metrics["worst"] <= 0.07
    assert 0 <= metrics["median_ape"] <= metrics["worst"] < 0.2
    assert 0 <= metrics["within_1pct"] <= metrics["within_3pct"] <= metrics["within_10pct"] <= 1


def test_formats_of_the_kv_cache_by_hand(tmp_path: Path, capsys: Capture) -> None:
    """Llama-3.1-8B: 8 heads × 128 for keys and as many for values. DeepSeek-V3: 512 + 64 elements."""
    bytes_of_format = {
        ("llama3.1-8b", "bf16"): 2 * 8 * 128 * 2,
        ("llama3.1-8b", "fp8_e4m3"): 2 * 8 * 128,
        ("llama3.1-8b", "int8_per_token_head"): 2 * 8 * (128 + 4),
        ("llama3.1-8b", "nvfp4"): 2 * 8 * (64 + 8),
        ("llama3.1-8b", "q8_0"): 2 * 8 * 128 // 32 * 34,
        ("llama3.1-8b", "q8_0/q4_0"): 8 * 128 // 32 * (34 + 18),
        ("llama3.1-8b", "turbomind_int4"): 2 * 8 * (64 + 4),
        ("deepseek-v3", "bf16"): 1152,
        ("deepseek-v3", "fp8"): 576,
        ("deepseek-v3", "fp8_ds_mla"): 656,
        ("deepseek-v3 without MLA", "f16"): 128 * (192 + 128) * 2,
        ("llama3.1-8b tp4", "bf16"): 2 * 2 * 128 * 2,
        ("llama3.1-8b (K only)", "f16"): 8 * 128 * 2,
        ("meta-llama/Llama-3.1-8B-Instruct-AWQ", "K q8_0 V f16"): 8 * (128 // 32 * 34 + 128 * 2),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "bf16"): 2 * 4 * 128 * 2,
    }
    rows = [f"s,e,{model},{format},,1,{size} B per token" for (model, format), size in bytes_of_format.items()]
    result = answer(capsys, "kv", write(tmp_path, KV, *rows), "--bound", "0")
    assert result["answered"] == len(rows)
    assert result["metrics"]["exact"] == 1


def test_checkpoints_by_hand(tmp_path: Path, capsys: Capture) -> None:
    """SmolLM2-135M: 30 layers of seven matrices, one tied table, and norms. 576 inputs are 5 groups of 128."""
    layers, plain = 30, 2 * (49152 * 576 + 576 * (2 * 30 + 1))
    matrices = [*[(576, 576)] * 2, *[(576, 192)] * 2, *[(576, 1536)] * 2, (1536, 576)]
    rows = {
        "bf16": plain + layers * sum(2 * a * b for a, b in matrices),
        "GPTQ 4bit g128": plain + layers * sum(a * b // 2 + -(-a // 128) * b * 5 // 2 + 4 * a for a, b in matrices),
        "fp8 per-tensor": plain + layers * sum(a * b + 4 for a, b in matrices),
    }
    lines = [f"someone/smol,smollm2-135m,{scheme},{size}" for scheme, size in rows.items()]
    refused = [
        "someone/smol,smollm2-135m,a new scheme,1",
        "someone/smol,smollm2-135m,NVFP4,1",
        "someone/smol,smollm2-135m,bf16,",
    ]
    result = answer(capsys, "weights", write(tmp_path, "model,base,scheme,bytes", *lines, *refused))
    assert (result["answered"], result["metrics"]["exact"]) == (3, 1), result["items"]
    assert "quantization_config" in result["items"][4]["reason"]
    schemes = ("fp8 block 128 (+ MTP layer)", "fp8 block", "fp8 block 64")
    lines = [f"someone/v3,deepseek-v3,{scheme},1" for scheme in schemes]
    rows = answer(capsys, "weights", write(tmp_path, "model,base,scheme,bytes", *lines))["items"]
    usual, same, smaller = (sum(row["parts"].values()) for row in rows)
    assert usual == same
    assert smaller - usual == pytest.approx(3 * (usual * 4 / 128**2), rel=0.02)  # four times as many scales of 4 bytes


def test_a_bound_and_wrong_rows(tmp_path: Path, capsys: Capture) -> None:
    rows = write(
        tmp_path,
        KV + ",extra",
        "s,e,llama3.1-8b,bf16,1024,32,128.00 MiB,ignored",
        "s,e,llama3.1-8b,bf16,1024,32,100.00 MiB",
        "s,e,a model nobody knows,bf16,1024,32,100.00 MiB",
        "s,e,llama3.1-8b,bf99,1024,32,100.00 MiB",
        "s,e,llama3.1-8b,bf16,many,32,100.00 MiB",
        "s,e,llama3.1-8b,bf16,1024,33,100.00 MiB",
        "s,e,llama3.1-8b",
        "s,e,../../etc/passwd,bf16,1,1,1 B",
        "s,e,llama3.1-8b,bf16,1024,32,0 MiB",  # no error relative to zero
        f"s,e,llama3.1-8b,bf16,1024,32,{'9' * 400} MiB",
        "s,e,llama3.1-8b,bf16,1024,٣٢,128.00 MiB",
        "s,e,llama3.1-8b tp0,bf16,1024,32,128.00 MiB",
        f"s,e,llama3.1-8b tp{'9' * 1500},bf16,1024,32,128.00 MiB",
        f"s,e,llama3.1-8b tp{'9' * 5000},bf16,1024,32,128.00 MiB",
        f's,"{"x" * 200_000}",llama3.1-8b,bf16,1024,32,128.00 MiB',  # longer than the usual limit of the module csv
        f"s,e,{'llama3.1-8b' + '-it' * 60000},bf16,1024,32,128.00 MiB",
        "",
    )
    result = answer(capsys, "kv", rows, "--bound", "0.05", "--by", "format", code=1)
    assert (result["rows"], result["answered"]) == (16, 2)
    first, second, *refused = result["items"]
    assert (first["exact"], first["error"], first["line"]) == (True, 0, 2)
    assert second["error"] == pytest.approx(0.28)
    assert all(item["reason"] and item["ours"] is None for item in refused)
    assert [group["value"] for group in result["groups"]] == ["bf16", "bf99", ""]
    assert answer(capsys, "kv", rows, "--bound", "0.3")["metrics"]["worst"] == pytest.approx(0.28)


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("memory", "a,b\n1,2\n", "needed columns"),
        ("memory", "", "is empty"),
        ("kv", KV.replace(",given", "") + "\n", "`given`"),
        ("kv", KV + "\nx," * 10_001, "at most 10,000"),
    ],
)
def test_wrong_files_are_refused_in_words(kind: str, text: str, says: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8")
    assert run(["validate", kind, str(path)]) == 2
    assert says in capsys.readouterr().err
    assert run(["validate", kind, str(tmp_path / "absent.csv")]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "file", "column", "cell"),
    [
        ("memory", "training_runs", "model", "gpt: {} layers, hidden 12288, 96 heads, ffn 4h, vocab 51200"),
        ("memory", "training_runs", "model", "deepseek-v3 cut to {} layers (1 dense)"),
        ("weights", "checkpoints", "model", "vLLM tp{}, a rank"),
    ],
)
def test_a_number_with_hundreds_of_digits_is_refused(
    kind: str, file: str, column: str, cell: str, tmp_path: Path, capsys: Capture
) -> None:
    with (PUBLISHED / f"{file}.csv").open(encoding="utf-8", newline="") as lines:
        first = next(csv.DictReader(lines))
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, [*first])
        writer.writeheader()
        writer.writerow(first | {column: cell.format("9" * 900)})
    (item,) = answer(capsys, kind, path)["items"]
    assert "is not a number from 0 to 1,000,000,000" in item["reason"]


def test_a_bound_that_is_no_number_is_refused(capsys: Capture) -> None:
    for text in ("nan", "1_0"):
        assert run(["validate", "kv", str(PUBLISHED / "kv_formats.csv"), "--bound", text]) == 2
        assert f"'{text}' is not a number" in capsys.readouterr().err


def test_megatron_defaults_and_doubts(tmp_path: Path, capsys: Capture) -> None:
    """A row with only the needed columns has Megatron's defaults, and a doubtful row stays out of the metrics."""
    needed = "mem_max_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,suspect,tied"
    path = write(tmp_path, needed, "4e9,12,512,8,1024,4,1,1,0,50257,1,,", "1,12,512,8,1024,4,1,1,0,50257,1,layout,True")
    result = answer(capsys, "memory", path)
    assert result["answered"] == 2
    assert result["metrics"]["worst"] < 1
    own, doubtful = result["items"]
    assert own["ours"] == doubtful["ours"]
    assert doubtful["doubt"] == "layout"
    assert run(["validate", "memory", str(path)]) == 0
    first, certain, uncertain, why = re.split("kind of|1 row with.*leave out|why they", capsys.readouterr().out)[:4]
    assert "without 1 row with uncertain settings, the median error" in first
    assert [re.findall(r"^ +(\d) ", part, re.MULTILINE) for part in (certain, uncertain, why)] == [["2"], ["3"], ["3"]]
    assert why.split()[-1] == "layout"


def test_megatron_workspaces_of_each_gpu(tmp_path: Path, capsys: Capture) -> None:
    """cuBLAS has two workspaces of 8.125 MiB before Hopper, else 32 MiB. Transformer Engine has one of 4 or 32 MiB."""
    needed = "mem_max_last,mem_allocated_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,"
    run = "4e9,2e9,12,512,8,1024,4,1,1,0,50257,1"
    kinds = ("H100,False", "A100,False", "A100,True", "GB200,False", "GB200,True", "a card,True", "mi300x,True")
    result = answer(
        capsys, "memory", write(tmp_path, needed + "gpu,deterministic", *(f"{run},{kind}" for kind in kinds))
    )
    *items, unknown, other = result["items"]
    hopper, *rest = (item["figures"][1]["ours"] for item in items)
    mib = 2**20
    assert [hopper - ours for ours in rest] == [(2 * 32 + 32 - 2 * 8.125 - 4) * mib, 28 * mib, 0, 0]
    assert [bool(item["doubt"]) for item in items] == [False, False, False, True, False]
    assert "a card" in unknown["reason"]
    assert "NVIDIA" in other["reason"]


def test_megatron_copies_16_bit_gradients_with_every_optimizer(tmp_path: Path, capsys: Capture) -> None:
    """The copy has 4 bytes per parameter, and 16-bit gradients have 2 bytes less than fp32 gradients."""
    needed = "mem_max_last,mem_allocated_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,"
    run = "4e9,2e9,12,512,8,1024,4,1,1,0,50257,1"
    rows = [f"{run},{dtype},{name},H100" for name in ("adam", "muon") for dtype in ("bf16", "fp32")]
    result = answer(capsys, "memory", write(tmp_path, needed + "grad_dtype,optimizer,gpu", *rows))
    adam, adam_fp32, muon, muon_fp32 = (item["figures"][1]["ours"] for item in result["items"])
    parameters = (50304 + 1024) * 512 + 12 * (12 * 512**2 + 13 * 512) + 2 * 512
    assert adam - adam_fp32 == muon - muon_fp32 == 2 * parameters


def test_megatron_settings_that_a_row_does_not_give(tmp_path: Path, capsys: Capture) -> None:
    needed = "mem_max_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,"
    more = "experts,topk,router_balance,capacity_factor,mem_max_step_of_last_rise,overlap_other,wgrad_deferral_limit"
    run = "4e9,12,512,8,1024,4,1,2,1,50257,1"
    kinds = {
        "8,2,aux_loss,,75,,": "routing",
        "8,2,aux_loss,,2,,": "",
        "8,2,aux_loss,1.0,75,,": "",
        "8,2,sinkhorn,,75,,": "",
        ",,,,75,,": "",
        ",,,,2,defer-embedding-wgrad-compute,": "--wgrad-deferral-limit",
        ",,,,2,defer-embedding-wgrad-compute,2": "",
    }
    items = answer(capsys, "memory", write(tmp_path, needed + more, *(f"{run},{kind}" for kind in kinds)))["items"]
    for item, word in zip(items, kinds.values(), strict=True):
        assert (word in item["doubt"]) if word else not item["doubt"], item
    plain, every, two = (item["ours"] for item in items[4:])
    assert every - plain == 3 * 2 * 4096 * (50304 + 512)  # three earlier micro-batches of four
    assert two - plain == 2 * 2 * 4096 * (50304 + 512)


def test_megatron_precision_aware_optimizer(tmp_path: Path, capsys: Capture) -> None:
    """Without columns, its states are fp32, and 16 bits of the master copy are stored."""
    needed = "mem_max_last,mem_allocated_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,"
    more = "precision_aware_optimizer,exp_avg_dtype,exp_avg_sq_dtype,main_params_dtype"
    run = "4e9,2e9,12,512,8,1024,4,1,1,0,50257,1"
    rows = (f"{run},{kind}" for kind in ("False,,,", "True,,,", "True,bf16,fp8,fp16", "True,fp4,,"))
    plain, default, small, refused = answer(capsys, "memory", write(tmp_path, needed + more, *rows))["items"]
    parameters = (50304 + 1024) * 512 + 12 * (12 * 512**2 + 13 * 512) + 2 * 512
    static = [item["figures"][1]["ours"] for item in (plain, default, small)]
    assert [static[0] - ours for ours in static] == [0, 2 * parameters, (2 + 2 + 3) * parameters]
    assert [bool(item["doubt"]) for item in (plain, default, small)] == [False, True, False]
    assert "exp_avg_dtype" in refused["reason"]


def test_megatron_runs_with_graphs_or_fsdp_stand_apart(tmp_path: Path, capsys: Capture) -> None:
    """Their rows do not give all settings. The figure is that of a step without graphs."""
    needed = "mem_max_last,mem_allocated_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,"
    run = "4e9,2e9,12,512,8,1024,4,1,1,0,50257,8"
    kinds = (",", "none,", "transformer_engine,", ",megatron-fsdp no_shard", ",megatron-fsdp optim_grads_params")
    rows = (f"{run},{kind}" for kind in (*kinds, ",torch-fsdp2"))
    result = answer(capsys, "memory", write(tmp_path, needed + "cuda_graph,fsdp", *rows))
    plain, none, graph, whole, split, other = result["items"]
    assert plain["ours"] == none["ours"] == graph["ours"] == whole["ours"]
    assert [bool(item["doubt"]) for item in result["items"]] == [False, False, True, True, True, False]
    assert "which modules the CUDA graphs capture" in graph["doubt"]
    parameters = (50304 + 1024) * 512 + 12 * (12 * 512**2 + 13 * 512) + 2 * 512
    static = [item["figures"][1]["ours"] for item in (whole, split)]
    assert static[0] - static[1] == pytest.approx(7 / 8 * 18 * parameters, rel=1e-4)
    assert "megatron-fsdp with one of no_shard" in other["reason"]
    assert result["metrics"]["worst"] == abs(plain["error"])


def test_cards_of_megatron_bridge_say_what_is_missing(tmp_path: Path, capsys: Capture) -> None:
    rows = {
        'c,m,"{""parallelism"": ""TP2"", ""gbs"": 4}",36.6,peak allocated': "give the sequence length, the micro",
        "c,m,{},,peak allocated": "no peak",
        "c,m,[],1,peak allocated": "not a JSON object",
        "c,m,{,1,peak allocated": "not a JSON object",
    }
    result = answer(capsys, "memory", write(tmp_path, "card,model,settings,peak_mem_gb,mem_quantity", *rows))
    assert result["file"] == "megatron_bridge_memory"
    for item, words in zip(result["items"], rows.values(), strict=True):
        assert words in item["reason"]


def test_megatron_puts_modules_that_a_notation_leaves_out_on_the_last_stage(tmp_path: Path, capsys: Capture) -> None:
    needed = "mem_max_last,layers,hidden,heads,seq_len,micro_batch,tp,pp,logging_stage,vocab,dp,mtp,pp_layout"
    run = "4e9,4,512,8,1024,4,1,2,1,50257,1"
    rows = (f"{run},{kind}" for kind in ("1,Ett|ttL", "1,Ett|ttmL", ",Ett|ttL", "2,Ett|ttL"))
    items = answer(capsys, "memory", write(tmp_path, needed, *rows))["items"]
    without, written, none, two = (item["ours"] for item in items)
    assert none < without == written < two


def test_an_engine_log_says_which_setting_is_missing(tmp_path: Path, capsys: Capture) -> None:
    head = "engine,version,model,scheme,gpu,tp,total_gib,util,max_model_len,weights_gib,kv_gib,notes"
    rows = {
        "vLLM,0.19,llama3.1-8b,,H100,1,,,8192,,58,": "util",
        "vLLM,0.19,llama3.1-8b,,H100,1,,0.9,,,58,": "max_model_len",
        "vLLM,2026-09,llama3.1-8b,,H100,1,,0.9,8192,,58,": "version",
        "vLLM,0.2,llama3.1-8b,,H100,1,,0.9,8192,,58,": "the oldest one is",
        "vLLM,0.19,Llama-3.1-8B-FP8,,H100,1,,0.9,8192,,58,": "scheme",
        "vLLM,0.19,llama3.1-8b,,a card,1,,0.9,8192,,58,": "gpu",
        "vLLM,0.19,llama3.1-8b,,H100,,,0.9,8192,,58,": "tp",
        "vLLM,0.19,llama3.1-8b,,H100,0,,0.9,8192,,58,": "at least 1",
        "vLLM,0.19,llama3.1-8b,,H100,1,,1.9,8192,,58,": "utilization",
        "Other,0.19,llama3.1-8b,,H100,1,,0.9,8192,,58,": "profile",
        "vLLM,0.19,llama3.1-8b,,H100,1,,0.9,8192,,,": "no measured figure",
    }
    items = answer(capsys, "engine", write(tmp_path, head, *rows))["items"]
    for item, word in zip(items, rows.values(), strict=True):
        assert item["measured"] is None
        assert word in item["reason"], item["reason"]
    weights = "vLLM,0.19,llama3.1-8b,,H100,1,,,,14.99,,"  # without `util`, the weights can still be compared
    sglang = "SGLang,0.5,qwen3-235b-a22b,fp8 block 128,H100,4,,0.93,,,15.33,K 8.23 GB + V 8.23 GB"
    guessed = "vLLM,0.11,not named; Qwen3-8B-FP8 by weights,,24G,1,23.53,0.8,1024,8.8,8.6,"
    items = answer(capsys, "engine", write(tmp_path, head, weights, sglang, guessed))["items"]
    assert items[0]["quantity"] == "weights_bytes"
    assert items[1]["measured"] == 2 * 8.23 * 2**30
    assert abs(items[2]["error"]) < 0.002
    assert items[2]["doubt"]


def test_names_of_devices_and_versions_in_engine_logs(tmp_path: Path, capsys: Capture) -> None:
    """Spellings of public logs. From 0.21 on, the printed peak has the estimate of CUDA graphs."""
    head = "engine,version,model,scheme,gpu,tp,total_gib,util,max_model_len,activation_peak_gib,notes"
    names = ("H100-80G", "H100 SXM 80GB", "A100-80GB", "H200-141G", "RTX 4090 24G", "L40S-48G", "RTX PRO 6000", "24G")
    rows = [f"vLLM,v0.19.0.post1,llama3.1-8b,,{name},1,{24 if name == '24G' else ''},0.9,8192,2," for name in names]
    items = answer(capsys, "engine", write(tmp_path, head, *rows))["items"]
    assert all(item["measured"] for item in items), [item["reason"] for item in items]
    rows = [f"vLLM,0.22 (V1),llama3.1-8b,,H100,1,,0.9,8192,2,{notes}" for notes in ("", "eager", "max_num_seqs=64")]
    counted, eager, few = (item["ours"] for item in answer(capsys, "engine", write(tmp_path, head, *rows))["items"])
    assert counted - eager == 451_000_000
    assert few < counted
