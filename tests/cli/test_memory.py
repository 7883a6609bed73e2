"""The screen of `memory`: which devices can run a model, exit codes, formulas, and the timeline."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli import run
from llmbench.sizing.devices import torch_devices

Capture = pytest.CaptureFixture[str]


def result(capsys: Capture, *arguments: str) -> tuple[int, str]:
    """The exit code and stdout of `memory`."""
    code = run(["memory", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def row(capsys: Capture, *arguments: str) -> dict[str, Any]:
    """The only row of the JSON of `memory`."""
    _, out = result(capsys, *arguments, "--format", "json")
    (model,) = json.loads(out)["models"]
    return dict(model)


def test_a_device_must_compute_the_format(capsys: Capture) -> None:
    """gpt2 is small enough for every device, so only the format of the products decides."""
    serving = ("gpt2", "--phase", "inference", "--weights")
    every = {device.name for device in torch_devices()}
    v100s = {name for name in every if name.startswith("v100")}
    ampere = {name for name in every if name.startswith(("a100", "a10g", "a40", "rtx-30", "rtx-a6000"))}
    fits = {
        weights: set(row(capsys, *serving, weights)["fits_on"])
        for weights in ("bf16", "fp16", "fp32", "fp8", "int8", "int4")
    }
    assert fits["fp16"] == fits["fp32"] == fits["int4"] == every
    assert fits["bf16"] == every - v100s - {"t4"}
    assert fits["fp8"] == every - v100s - {"t4", "mi250x-gcd"} - ampere
    assert fits["int8"] == every - v100s
    assert set(row(capsys, "gpt2")["fits_on"]) == fits["bf16"]
    assert set(row(capsys, "gpt2", "--precision", "fp8")["fits_on"]) == fits["fp8"]


def test_the_fullest_device_comes_first_and_keeps_its_headroom(capsys: Capture) -> None:
    model = row(capsys, "llama2-7b")
    devices = model["devices"]
    assert [device["device"] for device in devices] == model["fits_on"]
    filled = [device["filled"] for device in devices]
    assert filled == sorted(filled, reverse=True)
    assert max(filled) <= 0.9
    needed = model["reserved_bytes"] + model["context_bytes"]
    for device in devices:
        assert device["filled"] == needed / device["memory_bytes"]
        assert (device["fits"], device["exceeds_bytes"], device["missing_format"]) == (True, 0, None)
    too_small = [device.name for device in torch_devices() if 0.9 * device.memory_bytes < needed]
    assert {device.name for device in torch_devices()} == {*model["fits_on"], *too_small}


def test_devices_of_ones_own(capsys: Capture) -> None:
    code, text = result(capsys, "llama2-7b", "--device", "h100", "--device", "H200")
    assert code == 0  # one of them fits
    needs, small, fits = text.splitlines()[:3]
    assert needs == "Training llama2-7b on one GPU needs 105.28 GiB."
    assert small.startswith(
        "h100-sxm: no. It exceeds the usable 71.68 GiB (90% of the 79.65 GiB that the driver reports) by 33.60 GiB."
    )
    assert small.endswith("2 of them suffice with --layout dp=2,zero=3: 56.32 GiB per GPU.")
    assert fits == "h200: yes. It fills 75% of the 140.40 GiB that the driver reports."
    code, text = result(capsys, "llama2-7b", "--device", "v100-sxm2-32gb")
    assert code == 1
    assert text.splitlines()[1] == "v100-sxm2-32gb: no. Its matrix units do not compute bf16."
    split = row(capsys, "llama2-7b", "--layout", "dp=2,zero=3", "--device", "h100")
    assert (split["fits_on"], split["num_gpus"]) == (["h100-sxm"], 2)
    whole = row(capsys, "llama2-7b", "--device", "h100")["devices"][0]
    assert whole["split_needed_bytes"] == split["reserved_bytes"] + split["context_bytes"]
    assert whole["split_layout"] == "dp=2,zero=3"


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("tp=8,pp=4,dp=2", ["--layout tp=8,sp,pp=4,dp=2", "--recompute every-second"]),
        ("tp=8,dp=8", ["--layout tp=8,dp=8,zero=3"]),
        ("dp=64", ["--layout dp=64,zero=3 --recompute full"]),
        ("tp=2,dp=4", []),
    ],
)
def test_changes_with_which_a_layout_fits(layout: str, options: list[str], capsys: Capture) -> None:
    """Each change is tried as a command. Its memory is that which the sentence names."""
    question = ["llama3-70b", "--seq", "8k", "--device", "h100"]
    device = row(capsys, *question, "--layout", layout)["devices"][0]
    assert device["changes"] == options
    code, text = result(capsys, *question, "--layout", layout)
    assert code == 1
    said = re.findall(r"(--\S+(?: \S+)*?) \(([\d.]+) GiB per GPU\)", " ".join(text.split()))
    assert [option for option, _ in said] == options
    for option, gib in said:
        changed = row(capsys, *question, *(["--layout", layout] if "--layout" not in option else []), *option.split())
        assert changed["fits_on"] == ["h100-sxm"]
        assert f"{(changed['reserved_bytes'] + changed['context_bytes']) / 2**30:.2f}" == gib


@pytest.mark.parametrize(
    ("question", "batch", "found", "larger"),
    [
        (
            "llama3-70b --seq 8k --layout dp=64,zero=3 --device h100",
            "--batch 8",
            "--batch 2 --micro-batches 4 --recompute full",
            "--batch 4 --micro-batches 2 --recompute full",
        ),
        (
            "llama3-8b --lora r=8 --base nf4 --device rtx-4090",
            "--batch 4",
            "--batch 2 --micro-batches 2 --recompute full",
            "--batch 4 --micro-batches 1 --recompute full",
        ),
        (
            "llama2-7b --layout tp=8,sp --recompute full --device h100",
            "--batch 600",
            "--batch 200 --micro-batches 3",
            "--batch 300 --micro-batches 2",
        ),
        ("llama3-8b --phase inference --device rtx-4090", "--batch 64", "--batch 10", "--batch 11"),
    ],
)
def test_smaller_batches_that_fit(question: str, batch: str, found: str, larger: str, capsys: Capture) -> None:
    """The change fits, and the next larger batch with as many sequences in a step does not."""
    ask = question.split()
    assert found in row(capsys, *ask, *batch.split())["devices"][0]["changes"]
    assert row(capsys, *ask, *found.split())["fits_on"]
    assert not row(capsys, *ask, *larger.split())["fits_on"]


def test_a_layout_says_how_many_layers_a_stage_has(capsys: Capture) -> None:
    said = {
        ("--layout", "tp=8,sp,pp=6"): "6 pipeline stages of 14, 14, 13, 13, 13, 13 layers",
        ("--layout", "pp=4,first=19,last=19"): "4 pipeline stages of 19, 21, 21, 19 layers",
        ("--layout", "pp=2,interleave=2"): "2 pipeline stages of 40 layers each",
        ("--layout", "pp=4", "--phase", "inference"): "4 pipeline stages of 20 layers each",
    }
    for options, line in said.items():
        assert f"  {line}\n" in result(capsys, "llama3-70b", *options)[1]


def test_more_than_two_devices_have_a_table(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    names = ["h100-sxm", "v100-sxm2-32gb", "mi300x", "h200"]
    code, text = result(capsys, "llama2-7b", *(f"--device={name}" for name in names))
    assert code == 0
    answer = " ".join(text.split("\n\n")[0].split())
    assert "It fits on 2 of 4 devices: mi300x (55% filled) and h200 (75% filled)." in answer
    lines = [next(line for line in text.splitlines() if line.startswith(f"  {name} ")) for name in names]
    assert [re.split(r"  +", line.strip())[1:5] for line in lines] == [
        ["no", "132.2%", "71.68", "33.60"],
        ["no", "329.0%", "28.80", "–"],
        ["yes", "54.8%", "172.79", "–"],
        ["yes", "75.0%", "126.36", "–"],
    ]
    assert "2 of them suffice with --layout dp=2,zero=3" in lines[0]
    assert lines[1].endswith("Its matrix units do not compute bf16.")
    none = result(capsys, "llama2-7b", "--device", "l4", "--device", "a10g", "--device", "rtx-4090")
    assert none[0] == 1
    assert "It fits on none of the 3 devices." in none[1]


def test_a_narrow_sweep_has_the_devices_that_were_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ask = ["llama3-70b", "--layout", "tp=8,sp,pp=4,dp=2", "--batch", "1,2", "--recompute", "none,full"]
    shown = result(capsys, *ask, "--device", "h100-sxm", "--device", "a100-80gb-sxm")[1]
    heading = next(line for line in shown.splitlines() if "recompute" in line and "batch" in line)
    assert heading.endswith("h100-sxm  a100-80gb-sxm")
    assert shown.count("backward pass of a layer's ffn.down_proj") == 1  # one line, because all rows have this peak


def test_a_sweep_says_in_how_many_cases_a_device_fits(capsys: Capture) -> None:
    sweep = ["llama2-7b", "--seq", "4k..32k", "--device", "h100", "--device", "h200"]
    _, text = result(capsys, *sweep)
    models = json.loads(result(capsys, *sweep, "--format", "json")[1])["models"]
    for place, name in enumerate(("h100-sxm", "h200")):
        fits = sum(model["devices"][place]["fits"] for model in models)
        assert f" on {name} in {fits}{'' if place else ' of 4 cases'}" in " ".join(text.split("\n\n")[0].split())


def test_several_devices_serve_what_one_cannot(capsys: Capture) -> None:
    asked = ("llama3-70b", "--phase", "inference", "--device", "h100")
    code, text = result(capsys, *asked)
    assert code == 1
    assert "2 of them suffice with --layout tp=2: 67.21 GiB per GPU." in " ".join(text.split())
    assert row(capsys, *asked, "--layout", "tp=2")["fits_on"] == ["h100-sxm"]
    _, text = result(capsys, "llama3.1-405b", "--device", "h100")  # 405.85 B × 16 bytes, divided by 64
    assert "states alone need 94.50 GiB on each of 64 GPUs." in " ".join(text.split())


def test_no_number_of_devices_suffices(capsys: Capture) -> None:
    code, text = result(capsys, "llama2-7b", "--seq", "1m", "--device", "h100")
    assert code == 1
    assert "to dp=64,zero=3 suffices, also with full recomputation." in " ".join(text.split())
    assert row(capsys, "llama2-7b", "--seq", "1m", "--device", "h100")["devices"][0]["split_layout"] is None


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (["qwen3-14b", "--seq", "16k"], "--layout dp=4,zero=3 --recompute full"),  # several devices in place of one
        (
            ["llama3.3-70b", "--seq", "8k", "--layout", "dp=16,zero=3", "--batch", "2", "--recompute", "full"],
            "--layout tp=8,sp,dp=2,zero=3 --micro-batches 8",  # as many GPUs and sequences per step
        ),
    ],
)
def test_a_way_to_fit_that_changes_several_options(question: list[str], options: str, capsys: Capture) -> None:
    """The options are tried as a command. Its memory is that which the sentence names."""
    code, text = result(capsys, *question, "--device", "h100")
    assert code == 1
    (device,) = row(capsys, *question, "--device", "h100")["devices"]
    assert options in (device["split_options"], *device["changes"])
    names = [word for word in options.split() if word.startswith("--")]
    kept = [word for pair in zip(question[1::2], question[2::2], strict=True) if pair[0] not in names for word in pair]
    changed = row(capsys, question[0], *kept, *options.split(), "--device", "h100")
    assert changed["fits_on"] == ["h100-sxm"]
    needed = (changed["reserved_bytes"] + changed["context_bytes"]) / 2**30
    assert re.search(rf"{options}[: (]+{needed:.2f} GiB per GPU", " ".join(text.split()))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["llama2-7b"], 0),
        (["llama3.1-405b"], 0),  # a question about bytes
        (["llama2-7b", "--device", "h200"], 0),
        (["llama2-7b", "--device", "h100"], 1),
        (["llama2-7b", "--device", "h100", "--format", "json"], 1),
        (["llama2-7b", "--device", "h100", "--device", "h200"], 0),
        (["llama3-8b", "--phase", "inference", "--weights", "fp8", "--device", "a100-80gb-sxm"], 1),
        (["llama3-8b", "--phase", "inference", "--seq", "8k,32k", "--batch", "1", "--device", "h100"], 0),
        (["llama3-8b", "--phase", "inference", "--seq", "8k,128k", "--batch", "16", "--device", "h100"], 1),
    ],
)
def test_exit_codes(arguments: list[str], code: int, capsys: Capture) -> None:
    """1 if a row fits on none of the devices that were named."""
    assert result(capsys, *arguments)[0] == code


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("h1000", ["device `h1000` not found", "did you mean"]),
        ("gaudi", ["devices with this name: gaudi2, gaudi3"]),
        ("llama3-8b", ["`llama3-8b` is a model"]),
        ("mi250x", ["two GPUs", "--device mi250x-gcd"]),
    ],
)
def test_a_wrong_device_is_refused(device: str, words: list[str], capsys: Capture) -> None:
    assert run(["memory", "gpt2", "--device", device]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err


def test_the_answer_comes_first(capsys: Capture) -> None:
    _, text = result(capsys, "llama3-70b", "--phase", "inference", "--layout", "tp=4")
    first = text.splitlines()[0]
    assert re.match(r"Serving llama3-70b on 4 GPUs needs \S+ GiB per GPU\. It fits on ", first)
    assert first.count("% filled") == 3
    assert first.endswith("larger devices (see --wide).")
    _, text = result(capsys, "llama3-70b", "--phase", "inference", "--layout", "tp=4", "--wide")
    every = row(capsys, "llama3-70b", "--phase", "inference", "--layout", "tp=4")["devices"]
    named = re.findall(r"([a-z0-9-]+) \((\d+%) filled\)", " ".join(text.split()))
    assert named == [(device["device"], f"{device['filled']:.0%}") for device in every]
    _, text = result(capsys, "llama3.1-405b")
    assert "It fits on no built-in device; the largest is mi355x with 287.98 GiB." in text.splitlines()[0]


def test_a_sweep_names_the_devices_in_columns(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    arguments = ("llama3-8b", "--phase", "inference", "--seq", "8k,128k", "--batch", "16", "--device", "a10g")
    code, text = result(capsys, *arguments, "--device", "h100", "--device", "t4")
    rows = [line for line in text.splitlines() if re.match(r" +[\d,]+ ", line)]
    assert code == 1  # 128k tokens fit on none
    assert [re.split(r"  +", line)[-3:] for line in rows] == [
        ["no, 143%", "yes, 40%", "no bf16"],
        ["no, 1,210%", "no, 342%", "no bf16"],
    ]
    _, text = result(capsys, *arguments, "--device", "h100", "--device", "t4", "--format", "csv")
    first = next(csv.DictReader(io.StringIO(text)))
    assert [first[f"{device}.fits"] for device in ("a10g", "h100-sxm", "t4")] == ["false", "true", "false"]
    alone = row(capsys, *arguments[:3], "--batch", "16", "--seq", "8k", "--device", "h100")["devices"][0]
    assert float(first["h100-sxm.filled"]) == alone["filled"]
    _, text = result(capsys, *arguments[:5], "--wide")
    few, many = (
        set(re.split(r"  +", line)[-1].split(", ")) for line in text.splitlines() if re.match(r" +[\d,]+ ", line)
    )
    assert few == {"none"} or few > many > {"h200"}


def test_formulas_in_every_format(capsys: Capture) -> None:
    formulas = row(capsys, "llama2-7b", "--explain")["formulas"]
    assert {formula["unit"] for formula in formulas} == {"bytes", "parameters"}
    peak = next(formula for formula in formulas if formula["term"] == "peak")
    assert peak["value"] == row(capsys, "llama2-7b")["peak_bytes"]
    states = "6,738,415,616 master weights × 4 bytes + 13,476,831,232 first and second moments × 4 bytes"
    for format in ("table", "markdown", "json"):
        assert states in result(capsys, "llama2-7b", "--explain", "--format", format)[1]
        assert states not in result(capsys, "llama2-7b", "--format", format)[1]


def test_formulas_of_several_caches(capsys: Capture) -> None:
    assert run(["kvcache", "llama3-8b", "deepseek-v3", "--explain"]) == 0
    text = capsys.readouterr().out
    assert "32 layers × 2 × 8 kv_heads × 128 head_dim × 4,096 tokens × 2 bytes × 1 sequence = 512.00 MiB" in text
    assert "(512 kv_lora_rank + 64 qk_rope_head_dim) × 4,096 tokens" in text
    assert run(["kvcache", "llama3-8b", "--explain", "--format", "json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert [formula["value"] for formula in model["formulas"]] == [model["bytes_total"]]


def test_the_timeline_in_json_and_csv(capsys: Capture) -> None:
    model = row(capsys, "llama2-7b", "--timeline")
    steps = model["timeline"]
    assert max(step["total_bytes"] for step in steps) == model["peak_bytes"]
    assert list(dict.fromkeys(step["part"] for step in steps)) == ["forward", "backward", "optimizer"]
    _, text = result(capsys, "llama2-7b", "--timeline", "--seq", "4096,8192", "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(text)))
    assert {line["seq_len"] for line in lines} == {"4096", "8192"}
    assert list(lines[0])[3:] == list(steps[0])
    assert [line["op"] for line in lines[: len(steps)]] == [step["op"] for step in steps]
    assert row(capsys, "llama2-7b")["timeline"] is None


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("model", ["llama2-7b", "t5-base", "deepseek-v3"])
def test_the_timeline_fits_the_terminal(
    model: str, width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row of the timeline is one line of plain characters, and one row has the peak."""
    monkeypatch.setenv("COLUMNS", str(width))
    _, text = result(capsys, model, "--timeline", "--device", "h200")
    assert max(map(len, text.splitlines())) <= width
    rows = [line for line in text.splitlines() if re.match(r"  (forward|backward|optimizer) ", line)]
    assert len(rows) <= 50
    assert len([line for line in rows if line.endswith(("#<peak", ":<peak"))]) == 1
    bars = [re.search(r"[#:]+", line) for line in rows]
    assert max(len(bar[0]) for bar in bars if bar is not None) == 12


def test_the_other_phase_and_other_devices_of_a_name_are_named(capsys: Capture) -> None:
    _, text = result(capsys, "gpt2", "--device", "a100", "--device", "h200", "--device", "H100-SXM")
    assert "--phase inference" in text
    note = (
        "a100 is taken as a100-80gb-sxm; the other devices of this name: a100-40gb-pcie, a100-40gb-sxm, a100-80gb-pcie"
    )
    assert f"note: {note}\n" in text
    assert text.count(" is taken as ") == 1
    assert note in row(capsys, "gpt2", "--device", "a100")["notes"]
    assert "--phase" not in result(capsys, "gpt2", "--phase", "inference")[1]


def test_a_layout_that_cannot_serve_names_one_that_can(capsys: Capture) -> None:
    for layout, served in (("dp=2,zero=3", "tp=2"), ("tp=8,dp=2,zero=1", "tp=8,dp=2")):
        arguments = ["memory", "llama2-7b", "--phase", "inference", "--layout"]
        assert run([*arguments, layout]) == 2
        assert capsys.readouterr().err.endswith(f"for example --layout {served}\n")
        assert run([*arguments, served]) == 0
        capsys.readouterr()
    assert run(["memory", "gpt2", "--layout", "auto"]) == 2
    examples = re.findall(r"[td]p=\S*\w", capsys.readouterr().err)
    assert len(examples) == 3
    for example in examples:
        assert result(capsys, "llama3-70b", "--layout", example)[0] == 0


def test_serving_has_no_timeline(capsys: Capture) -> None:
    assert run(["memory", "gpt2", "--phase", "inference", "--timeline"]) == 2
    assert "--phase train" in capsys.readouterr().err


def test_an_unknown_quantisation_has_no_bytes(capsys: Capture, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    quantised = {"quantization_config": {"quant_method": "new"}}
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    config.write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **shape, **quantised}))
    assert run(["memory", str(config), "--phase", "inference"]) == 2
    assert "say the format with --weights" in capsys.readouterr().err
    assert run(["memory", str(config), "--phase", "inference", "--weights", "awq"]) == 0
    assert "AWQ, 4 bits, groups of 128 (--weights)" in capsys.readouterr().out
    assert run(["params", str(config)]) == 0
    assert "bytes of the weights not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("llama2-7b",),
        ("llama3-8b", "--kernels", "eager"),
        ("llama3-8b", "--layout", "dp=8,zero=3"),
        ("llama3-8b", "--phase", "inference", "--batch", "8"),
    ],
)
def test_the_rows_add_up_to_the_needed_memory_of_the_headline(arguments: tuple[str, ...], capsys: Capture) -> None:
    known = row(capsys, *arguments)
    *parts, total = csv.DictReader(io.StringIO(result(capsys, *arguments, "--format", "csv")[1]))
    sizes = {part["part"]: int(part["peak_bytes"]) for part in parts}
    assert total["part"] == "needed"
    assert int(total["peak_bytes"]) == sum(sizes.values()) == known["reserved_bytes"] + known["context_bytes"]
    assert sizes["context"] == known["context_bytes"]
    assert sizes.get("free", 0) == known["reserved_bytes"] - known["peak_bytes"]
    _, out = result(capsys, *arguments)
    assert f"needs {int(total['peak_bytes']) / 2**30:.2f} GiB" in out
    assert f"the peak of PyTorch's tensors is {known['peak_bytes'] / 2**30:.2f} GiB" in out


def test_a_sweep_of_recomputation_says_where_the_peak_is(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    choices = ("none", "selective", "full")
    _, out = result(capsys, "llama2-7b", "--recompute", ",".join(choices))
    lines = {line.split()[0]: line for line in out.splitlines() if line.split()[:1] and line.split()[0] in choices}
    for recompute in choices:
        moment = row(capsys, "llama2-7b", "--recompute", recompute)["moment"].replace("layers.{}.", "a layer's ")
        assert f"backward of {moment}" in lines[recompute]
    assert "flash attention never stores" in out
    _, out = result(capsys, "llama2-7b", "--recompute", ",".join(choices), "--kernels", "standard")
    assert "flash attention never stores" not in out


def test_the_default_of_etp_is_shown(capsys: Capture) -> None:
    for layout, shown in (
        ("tp=4,ep=2,dp=4", "tp=4,dp=4,ep=2,etp=4"),
        ("tp=4,ep=2,dp=4,etp=2", "tp=4,dp=4,ep=2,etp=2"),
        ("ep=2,dp=4", "4 GPUs: dp=4,ep=2,etp=1"),
    ):
        assert shown in " ".join(result(capsys, "mixtral-8x7b", "--layout", layout)[1].split())
