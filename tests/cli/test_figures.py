"""The figures in tables: rows add up, formulas give their figures, and notes say what a reader must know."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmbench.answers.kvcache import cached, document
from llmbench.cli import run
from llmbench.sizing.kvcache import kv_cache
from llmbench.spec.catalog import bundled_models, load_bundled

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: str) -> str:
    """stdout of a command that succeeds and says nothing on stderr."""
    code = run([*arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), err
    return out


def row(capsys: Capture, *arguments: str) -> dict[str, Any]:
    """The only row of a command's JSON."""
    (model,) = json.loads(answer(capsys, *arguments, "--format", "json"))["models"]
    return model


def table(capsys: Capture, *arguments: str) -> list[dict[str, str]]:
    """The rows of a command's CSV."""
    return list(csv.DictReader(io.StringIO(answer(capsys, *arguments, "--format", "csv"))))


# kvcache


def test_rows_of_a_cache_add_up(capsys: Capture) -> None:
    for name in bundled_models():
        *rows, total = [int(line["bytes_per_sequence"]) for line in table(capsys, "kvcache", name, "--seq", "3000")]
        assert sum(rows) == total == kv_cache(load_bundled(name), 3000).bytes_total, name


def test_parallel_branches_have_a_row_each(tmp_path: Path, capsys: Capture) -> None:
    from llmbench.sizing.kvcache import sequence_bytes
    from llmbench.sizing.lower import lower
    from llmbench.sizing.params import ONE_TOKEN
    from llmbench.sizing.workload import Layout
    from llmbench.spec.files import write_spec
    from llmbench.spec.huggingface import from_config

    spec = from_config({"model_type": "falcon_h1"}, name="falcon-h1")
    file = tmp_path / "h1.toml"
    file.write_text(write_spec(spec), encoding="utf-8")
    rows = table(capsys, "kvcache", str(file), "--seq", "3000")
    cache_bytes = {True: 0, False: 0}
    for op in lower(spec, ONE_TOKEN):
        if op.cache:
            cache_bytes[".attention." in op.name] += op.count * sequence_bytes(op.cache, 3000, "bf16", Layout()).total
    shown = {line["kind"]: int(line["bytes_per_sequence"]) for line in rows[:-1]}
    assert shown == {"GQA": cache_bytes[True], "Mamba-2": cache_bytes[False]}


def test_an_encoder_has_no_cache(capsys: Capture) -> None:
    text = answer(capsys, "kvcache", "bert-base")
    assert "bert-base keeps no cache: it reads all tokens at once" in text
    assert "if attention were" not in text
    assert row(capsys, "kvcache", "bert-base")["bytes_total"] == 0
    assert "bert-base keeps no cache" in answer(capsys, "kvcache", "bert-base", "gpt2")


def test_latent_attention_as_other_heads() -> None:
    _, variants = document(cached([load_bundled("deepseek-v3")], 4096), {}).blocks
    assert variants.table is not None
    assert [column.name for column in variants.table.columns] == [
        "attention",
        "bytes_per_token",
        "bytes_total",
        "ratio",
    ]
    as_heads = {name: (per_token, ratio) for name, per_token, _, ratio in variants.table.rows}
    assert list(as_heads) == ["MHA", "GQA, 8 KV heads", "MQA", "as it is (MLA)"]
    assert as_heads["MHA"] == (61 * 128 * (192 + 128) * 2, 128 * 320 / 576)


# params


def value(formula: str) -> int:
    """The number to which an explained formula comes: the sum over its layers, and what exists once."""
    inside = re.findall(r"([\d,]+) in (?:one|each of (\d+)) layers?", formula)
    once = re.findall(r"([\d,]+) once", formula) if inside else [formula.removesuffix(" once").rpartition(" = ")[2]]
    whole = [(number, "1") for number in once]
    return sum(int(number.replace(",", "")) * int(count or 1) for number, count in inside + whole)


@pytest.mark.parametrize("name", ["llama2-7b", "t5-base", "bert-base", "gemma3-4b", "jamba-v0.1", "deepseek-v3"])
def test_formulas_of_components_come_to_the_model(name: str, capsys: Capture) -> None:
    for line in table(capsys, "params", name, "--explain")[:-1]:
        formula = line["formula"]
        assert value(formula) == int(line["parameters"]), line
        if each := line["parameters_per_layer"]:
            numbers = re.findall(r"([\d,]+) in (?:one|each of \d+) layers?", formula)
            assert {number.replace(",", "") for number in numbers} == {each}, line


def test_formulas_of_llama(capsys: Capture) -> None:
    by_name = {line["component"]: line for line in table(capsys, "params", "llama2-7b")}
    assert list(by_name) == ["embedding", "attention", "mlp", "norms", "lm_head", "total"]
    assert by_name["norms"]["formula"] == "2 × hidden, + hidden once"
    assert by_name["embedding"]["parameters_per_layer"] == ""
    assert "–" not in answer(capsys, "params", "llama2-7b")


def test_formulas_stand_at_80_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long formula leaves out small tensors. The number of layers stands there if components differ in it."""
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("llama3-8b", "deepseek-v3", "jamba-v0.1", "qwen3-next-80b-a3b", "t5-base"):
        text = answer(capsys, "params", name)
        assert "formula (one layer)" in text, text
        lines = table(capsys, "params", name)
        counts = {line["layers"] for line in lines if line["layers"]}
        assert (len(counts) > 1) == bool(re.search(r"share  layers", text)), text
        assert ("… stands for" in text) == (name in ("jamba-v0.1", "qwen3-next-80b-a3b"))
        assert not any("…" in line["formula"] for line in lines)
        for line in lines:
            if line["parameters_per_layer"] and "once" not in line["formula"]:
                assert int(line["layers"]) * int(line["parameters_per_layer"]) == int(line["parameters"]), line
    assert "…" not in answer(capsys, "params", "jamba-v0.1", "--explain")


def test_formulas_of_both_stacks(capsys: Capture) -> None:
    by_name = {line["component"]: line for line in table(capsys, "params", "t5-base")}
    assert by_name["attention_extra"]["formula"] == "2 × heads × num_buckets"
    assert by_name["attention"]["formula"] == "encoder.block: 4 × hidden²; block: 8 × hidden²"
    assert by_name["attention"]["parameters_per_layer"] == ""
    assert by_name["mlp"]["parameters_per_layer"] == "4718592"


def test_numbers_without_names_are_not_shown(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3n_text"}))
    by_name = {line["component"]: line for line in table(capsys, "params", str(tmp_path))}
    layer, once = "2 × hidden × per_layer.size + …", "hidden × num_hidden_layers × per_layer.size + …"
    assert by_name["other"]["formula"] == f"{layer}, + {once} once"
    assert by_name["norms"]["formula"] == "5 × hidden, + per_layer.size + hidden once"


def test_published_counts_with_their_difference(capsys: Capture) -> None:
    assert "published 220.0 M (−1.3%)" in answer(capsys, "params", "t5-base")
    assert "published 671.00 B (−0.004%)" in answer(capsys, "params", "deepseek-v3")
    assert "equal to the published total" in answer(capsys, "params", "llama2-7b")


@pytest.mark.parametrize("command", ["params", "flops"])
def test_ops_say_their_kind_of_layer_where_there_are_several(command: str, capsys: Capture) -> None:
    for model, several in (("llama2-7b", False), ("jamba-v0.1", True)):
        lines = answer(capsys, command, model, "--by", "op").splitlines()
        (heading,) = [line for line in lines if line.endswith(" formula")]
        assert ("layers" in heading) == several
    kinds = {line["layers"] for line in table(capsys, command, "jamba-v0.1", "--by", "op")}
    assert kinds == {"", "mamba_dense", "mamba_moe", "attention_dense"}
    assert "encoder.block" in {line["layers"] for line in table(capsys, command, "t5-base", "--by", "op")}


# flops


def test_the_rule_of_thumb_is_per_token_too(capsys: Capture) -> None:
    model = row(capsys, "flops", "llama2-7b")
    text = answer(capsys, "flops", "llama2-7b")
    assert model["seq_len"] == 4096
    assert f"{model['flops_per_token'] / 1e9:.2f} GFLOPs per token ·" in text
    assert f"= {model['rule_of_thumb_flops'] / 4096 / 1e9:.2f} GFLOPs per token (−9.3%)" in text


def test_absorbed_latent_attention_is_noted(capsys: Capture) -> None:
    for model, phase, absorbed in (
        ("deepseek-v3", "decode", True),
        ("deepseek-v3", "prefill", False),
        ("llama2-7b", "decode", False),
    ):
        assert row(capsys, "flops", model, "--phase", phase)["absorbed_mla"] is absorbed
        assert ("absorbed" in answer(capsys, "flops", model, "--phase", phase)) is absorbed


@pytest.mark.parametrize("command", ["flops", "kvcache", "memory", "compare"])
@pytest.mark.parametrize("format", ["table", "markdown", "csv", "json"])
def test_positions_that_end_are_noted(command: str, format: str, capsys: Capture) -> None:
    note = "gpt2 cannot read 1,025 tokens: its learned positions cover only 1,024"
    assert note in answer(capsys, command, "gpt2", "--seq", "1025", "--format", format)
    assert "its learned positions" not in answer(capsys, command, "gpt2", "--seq", "1024", "--format", format)


def test_a_decoded_token_follows_the_cached_ones(capsys: Capture) -> None:
    assert "cannot read 1,025" in answer(capsys, "flops", "gpt2", "--seq", "1024", "--phase", "decode")


# memory


def test_memory_states_its_assumptions(capsys: Capture) -> None:
    text = answer(capsys, "memory", "llama2-7b", "--recompute", "full", "--layout", "dp=2", "--batch", "1000")
    for assumption in ("weights bf16", "master weights fp32", "adamw", "recompute full", "fused", "flash"):
        assert assumption in text.split("\n\n")[0]
    assert "micro-batch 1,000 per replica" in text
    served = ("memory", "llama2-7b", "--phase", "inference", "--weights", "int8", "--kv-dtype", "fp8")
    assert "weights: int8 weights and activations (w8a8), one scale per output (--weights) · cache fp8" in answer(
        capsys, *served
    )
    model = row(capsys, *served)
    assert (model["precision"], model["kv_dtype"], model["optimizer"]) == (None, "fp8", None)
    assert (model["weights_format"], model["weights_from"]) == ("int8", "--weights")
    assert model["parts_bytes"]["kv_cache"] * 2 == row(capsys, *served[:-2])["parts_bytes"]["kv_cache"]
    assert row(capsys, "memory", "llama2-7b")["precision"] == "mixed"


def test_fsdp_shows_no_weights_of_its_own(capsys: Capture) -> None:
    arguments = ("memory", "llama2-7b", "--layout", "dp=8,zero=3")
    weights = table(capsys, *arguments)[0]
    assert (weights["part"], weights["full_bytes"]) == ("weights", "")
    assert "fp32 shards are counted with the optimizer" in answer(capsys, *arguments)


def test_approximate_memory_has_a_reason(capsys: Capture) -> None:
    model = row(capsys, "memory", "mamba-130m")
    assert model["approximate"] is True
    (reason,) = model["approximate_because"]
    text = answer(capsys, "memory", "mamba-130m")
    assert text.splitlines()[1].startswith("mamba-130m (approximate)")
    assert f"approximate: {reason}" in text
    assert row(capsys, "params", "mamba-130m")["approximate"] is False


# compare


def test_compare_says_why_the_files_are_larger_than_the_weights_of_inference(capsys: Capture) -> None:
    """Both are in the format of the published files, and inference does not load the multi-token prediction."""
    models = json.loads(answer(capsys, "compare", "deepseek-v3", "llama3-8b", "--format", "json"))["models"]
    assert models[0]["weights_bytes"] > models[0]["inference_memory_bytes"]
    text = " ".join(answer(capsys, "compare", "deepseek-v3", "llama3-8b").split())
    (said,) = re.findall(r"deepseek-v3: ([\d.]+) GiB of the files are multi-token prediction", text)
    parts = answer(capsys, "params", "deepseek-v3")
    assert f"({said} GiB in files)" in " ".join(parts.split())
    assert "llama3-8b:" not in text


def test_compare_gives_values_not_texts(capsys: Capture) -> None:
    bert, gemma = json.loads(answer(capsys, "compare", "bert-base", "gemma3-4b", "--format", "json"))["models"]
    assert bert["decode_flops_per_token"] is None
    assert gemma["decode_flops_per_token"] > 0
    assert (gemma["window"], gemma["head_dim"], gemma["parallel_block"]) == ([1024, None], [256], False)
    assert bert["biases"] == ["q, k, v", "attention output", "feed-forward"]
    assert (bert["window"], bert["moe"], bert["layers"], bert["encoder_layers"]) == ([], [], 12, None)
    assert bert["approximate_because"] == []
    (line,) = re.findall(r"decode per token \(GFLOPs\) +(.*)", answer(capsys, "compare", "bert-base", "gemma3-4b"))
    assert line.split()[0] == "–"


def test_inexact_bytes_are_marked_in_the_json(tmp_path: Path, capsys: Capture) -> None:
    """The number of parameters is exact also if the bytes in the files are not."""
    linear = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}
    methods = {
        "unsaid": {"quant_method": "compressed-tensors", "config_groups": {"a": linear}},
        "unknown": {"quant_method": "hqq"},
    }
    for name, quantization in methods.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantization}))
    unsaid, unknown = (row(capsys, "params", str(tmp_path / f"{name}.json")) for name in methods)
    assert not unsaid["approximate"]
    (reason,) = unsaid["stored_approximate_because"]
    assert "does not name lm_head" in reason
    assert (unsaid["stored_unknown_because"], unknown["stored_bytes"]) == (None, None)
    assert "hqq" in unknown["stored_unknown_because"]
    assert unknown["stored_approximate_because"] == []
    compared = row(capsys, "compare", str(tmp_path / "unsaid.json"))["approximate_because"]
    assert compared == [f"bytes of the weights: {reason}"]
    doubts = row(capsys, "memory", "mamba-130m")["approximate_because"]
    assert row(capsys, "compare", "mamba-130m")["approximate_because"] == [f"memory in training: {doubts[0]}"]


@pytest.mark.parametrize("command", ["flops", "kvcache", "memory", "compare", "mfu --device h100 --tokens-per-s 9"])
def test_a_note_says_how_many_tokens_an_encoder_reads(command: str, tmp_path: Path, capsys: Capture) -> None:
    whisper = tmp_path / "whisper.json"
    whisper.write_text(json.dumps({"model_type": "whisper"}), encoding="utf-8")
    for model, read in (("t5-base", "as many tokens as the decoder"), (str(whisper), "1,500 tokens"), ("gpt2", "")):
        text = " ".join(answer(capsys, *command.split(), model, "--seq", "64", "--notes").split())
        assert (f"the encoder of {Path(model).stem} reads {read}" in text) == bool(read), model


# Wording and units


def test_one_is_singular(capsys: Capture) -> None:
    one = ("--set", "num_hidden_layers=1")
    assert " · 1 layer · " in answer(capsys, "params", "gpt2", *one)
    assert "prefill of 1 token · batch 20,000 ·" in answer(capsys, "flops", "gpt2", "--seq", "1", "--batch", "20000")
    assert "· 1 token ·" in answer(capsys, "kvcache", "gpt2", "--seq", "1")


def test_dense_models_use_all_their_parameters(capsys: Capture) -> None:
    by_name = {line["model"]: line for line in table(capsys, "specs", "list")}
    assert by_name["llama2-7b"]["active_parameters"] == by_name["llama2-7b"]["parameters"] == "6738415616"
    assert f"{int(by_name['mixtral-8x7b']['active_parameters']) / 1e9:.2f}" == "12.88"
    (line,) = [line for line in answer(capsys, "specs", "list").splitlines() if line.startswith("  llama2-7b ")]
    assert line.split()[1:5] == ["6.74", "6.74", "32", "4,096"]


def test_units_of_headings(capsys: Capture) -> None:
    """People see a unit in the heading; machines see it in the name of the field."""
    for arguments, heading, name in (
        (("memory", "gpt2"), "at the peak (GiB)", "peak_bytes"),
        (("specs", "list", "--devices"), "bandwidth (GB/s)", "memory_bandwidth_bytes_per_s"),
        (("specs", "list", "--devices"), "bf16 peak (TFLOP/s)", "dense_flops_per_s.bf16"),
        (("flops", "gpt2"), "step (GFLOPs)", "flops"),
    ):
        assert heading in answer(capsys, *arguments)
        assert heading in answer(capsys, *arguments, "--format", "markdown")
        assert name in answer(capsys, *arguments, "--format", "csv").splitlines()[0].split(",")
    devices = csv.DictReader(io.StringIO(answer(capsys, "specs", "list", "--devices", "--format", "csv")))
    (h100,) = [line for line in devices if line["name"] == "h100-sxm"]
    assert (float(h100["memory_bandwidth_bytes_per_s"]), int(h100["memory_bytes"])) == (3.35e12, 80 * 2**30)


def test_bytes_per_token_are_said_for_both_sides_of_a_window(capsys: Capture) -> None:
    def shown(*arguments: str) -> str:
        return " ".join(answer(capsys, "kvcache", *arguments).split())

    assert "48.00 KiB per token up to 128 tokens, 24.00 KiB beyond" in shown("gpt-oss-20b")
    assert "128.00 KiB per token up to 4,096 tokens, nothing beyond" in shown("mistral-7b")
    assert "128.00 KiB per token · " in shown("llama3-8b")
    assert "beyond windows" in shown("gpt-oss-20b", "llama3-8b")
    assert "beyond windows" not in shown("llama2-7b", "llama3-8b")


def test_the_list_of_formats_has_the_bits_of_a_whole_model(capsys: Capture) -> None:
    """A format that mixes types, or leaves the tables in 16 bits, needs other bits than one of its matrices."""
    formats = {line["format"]: float(line["bits_per_weight"]) for line in table(capsys, "specs", "list", "--formats")}
    for name in ("gguf-q4-k-m", "gguf-q4-k-s", "gguf-mxfp4-moe", "awq"):
        model = row(capsys, "params", "mixtral-8x7b", "--weights", name)
        assert formats[name] == 8 * model["stored_bytes"] / model["published_parameters"]
    assert 4.5 < formats["gguf-q4-k-s"] < formats["gguf-q4-k-m"] < 5
    assert 4.25 < formats["gguf-mxfp4-moe"] < 4.5  # most weights are those of experts
