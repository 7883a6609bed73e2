"""Messages and hints about wrong input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from llmbench.cli import COMMANDS, run
from llmbench.cli.application import build
from llmbench.cli.hints import OTHER_COMMANDS, OTHER_NAMES
from llmbench.errors import LayoutError
from llmbench.sizing.workload import Layout

from .commands import Capture, refusal


def test_a_name_of_a_bundled_model_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    monkeypatch.chdir(tmp_path)
    assert run(["params", "gpt2"]) == 0
    text = capsys.readouterr().out
    assert "124,439,808" in text
    assert "gpt2 is the built-in model; the folder of this name is ./gpt2" in text
    assert run(["params", "./gpt2"]) == 0
    assert "124,439,808" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["params", "lama2-7b"], 2, ["`lama2-7b` not found", "did you mean `llama2-7b`?", "specs list"]),
        (["params", "zzzz"], 2, ["`zzzz` not found", "specs list"]),
        (["params", "llama3.1"], 2, ["models with this name: llama3.1-405b, llama3.1-70b, llama3.1-8b"]),
        (["params", "deepseek"], 2, ["deepseek-v2-lite and ", " more"]),
        (["params", "meta-llama/Llama-2-7b"], 2, ["`hf:meta-llama/Llama-2-7b` reads the config"]),
        (["params", "h100"], 2, ["`h100-sxm` is a device", "--device h100-sxm"]),
        (["params", "llama2-7b", "--set", "kv_heads=8"], 2, ["did you mean `num_key_value_heads`?"]),
        (["params", "llama2-7b", "--set", "n_layers=2"], 2, ["did you mean `num_hidden_layers`?"]),
        (["params", "llama2-7b", "--set", "heads=2"], 2, ["did you mean `num_attention_heads`?"]),
        (["params", "llama2-7b", "--set", "layers=2"], 2, ["use num_hidden_layers"]),
        (["params", "./nothing.toml"], 2, ["file `./nothing.toml` not found"]),
        (["params", "nothing/at/all"], 2, ["nothing/at/all"]),
        (["params"], 2, ["MODEL"]),
        (["params", "gpt2", "--sequence", "4"], 2, ["--sequence"]),
        (["flops", "gpt2", "--seq", "0"], 2, ["--seq"]),
        (["flops", "gpt2", "--seq", "x"], 2, ["--seq", "not a number of tokens, such as 8192 or 8k"]),
        (["flops", "gpt2", "--seq", "9999999m"], 2, ["--seq", "is not between 1 and"]),
        (["flops", "gpt2", "--phase", "both"], 2, ["--phase", "prefill"]),
        (["parms", "gpt2"], 2, ["parms", "did you mean `llmbench params`?"]),
        (["memory", "gpt2", "--layout", "xp=3"], 2, ["unknown item `xp`", "tp"]),
        (["memory", "gpt2", "--layout", "tp=5"], 2, ["tp=5", "12 attention heads"]),
        (["memory", "gpt2", "--layout", "pp=99"], 2, ["pp=99", "12 layers"]),
        (["memory", "gpt2", "--precision", "int4"], 2, ["int4", "mixed"]),
        (["memory", "gpt2", "--phase", "inference", "--precision", "fp8"], 2, ["--weights fp8"]),
        (["memory", "gpt2", "--weights", "fp8"], 2, ["--precision"]),
        (["params", "gpt2", "--weights", "gptp"], 2, ["did you mean `gptq`"]),
        (["kvcache", "--set", "head_dim=3"], 2, ["--set"]),
        (["specs", "check", "nowhere.toml"], 2, ["no file"]),
        (["specs", "show", "nowhere"], 2, ["not found"]),
        (["params", "hf:gpt2"], 2, ["hf:organisation/name"]),
        (["params", "gpt2", "-o", "no/such/folder/x"], 2, ["cannot write", "No such file"]),
        (["params", ""], 2, ["MODEL is empty", "specs list"]),
        (["params", "."], 2, ["no config.json in the folder `.`", str(Path.cwd())]),
        (["specs", "check", "specs/devices/h100-sxm.toml"], 2, ["describes a device", "--devices"]),
        (["specs", "check", "llmbench/spec/huggingface/defaults.json"], 2, ["not a spec", "specs import llmbench/"]),
        (["flops", "gpt2", "--recompute", "full"], 2, ["--recompute full", "prefill", "--phase train"]),
        (["flops", "gpt2", "--chunk", "512"], 2, ["--chunk 512: only a decoding step", "--phase decode"]),
        (["flops", "gpt2", "--phase", "decode", "--chunk-start", "8"], 2, ["--chunk-start 8: there is no chunk"]),
        (["flops", "gpt2", "--phase", "decode", "--chunk", "0"], 2, ["--chunk"]),
        (["flops", "t5-small", "--phase", "decode", "--chunk", "8"], 2, ["t5-small reads a prompt with its encoder"]),
        (["flops", "bert-base", "--phase", "decode"], 2, ["bert-base is an encoder"]),
        (["memory", "gpt2", "--recipe", "imbalance=1.2"], 2, ["imbalance=1.2: gpt2 has no experts", "leave out"]),
        (["memory", "gpt2", "--recipe", "recompute=layernorm+moe_act"], 2, ["no layer of gpt2", "leave out moe_act"]),
        (["memory", "mixtral-8x7b", "--recipe", "recompute=mlp"], 2, ["recompute=mlp", "no layer of mixtral-8x7b"]),
        (["fit", "gpt2", "--device", "h100", "--price", "l40s=1"], 2, ["not about l40s", "add --device l40s"]),
        (["memory", "gpt2", "--kv-dtype", "fp8"], 2, ["--kv-dtype fp8", "--phase inference"]),
        *(
            (["memory", "gpt2", "--phase", "inference", *option], 2, [" ".join(option), "--phase train"])
            for option in (("--optimizer", "sgd"), ("--recompute", "full"), ("--kernels", "eager"))
        ),
        (["memory", "gpt2", "--phase", "inference", "--layout", "dp=2,zero=1"], 2, ["zero=1", "serving"]),
    ],
)
def test_wrong_input_is_explained(arguments: list[str], code: int, says: list[str], capsys: Capture) -> None:
    err = refusal(capsys, *arguments, code=code)
    for text in says:
        assert text in err


def test_a_bug_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    import llmbench.answers.params

    def broken(*_: object) -> None:
        raise RuntimeError("inside")

    monkeypatch.setattr(llmbench.answers.params, "count_parameters", broken)
    assert run(["params", "gpt2"]) == 101
    out, err = capsys.readouterr()
    assert out == ""
    assert "RuntimeError: inside" in err
    assert "this is a bug in llmbench" in err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("kvcache llama3-8b --seq", "kvcache"),
        ("specs show gpt2 -o", "specs show"),
        ("kernels check --dtype", "kernels check"),
        ("kernels compiled", "kernels"),
        ("nonsense", ""),
        ("memory", "memory"),
    ],
)
def test_a_usage_hint_names_the_help_of_the_command(words: str, command: str, capsys: Capture) -> None:
    assert f"`llmbench {command} --help`".replace("  ", " ") in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("memory gpt2 --serve", "did you mean `--phase inference`?"),
        ("flops gpt2 --serving", "did you mean `--phase decode`?"),
        ("memory gpt2 --gpus 4", "did you mean `--layout`, for example `--layout dp=4,zero=3` or `--layout tp=4`?"),
        ("memory gpt2 --tp 2", "did you mean `--layout`, for example `--layout tp=2`?"),
        ("memory gpt2 --layout fsdp=8", "did you mean `dp=8,zero=3`?"),
        ("memory gpt2 --layout interleav=2", "did you mean `interleave=2`?"),
        ("memory gpt2 --optimizer adam", "did you mean `adamw`?"),
        ("memory gpt2 --recompute selectve", "did you mean `selective`?"),
        ("memory gpt2 --lora rank=8", "did you mean `r=8`?"),
        ("memory gpt2 --lora r=8 --base q4", "did you mean `gguf-q4-k-m` or `gguf-q4-0` or `nf4`?"),
        ("memory gpt2 --lora r=8 --weights nf4", "the frozen weights of adapters have --base nf4"),
        ("kvcache gpt2 --context=8k", "did you mean `--seq`, for example `--seq 8k`?"),
        ("flops gpt2 --batch_size 8", "did you mean `--batch`, for example `--batch 8`?"),
        ("params gpt2 --json", "did you mean `--format json`?"),
        ("memory gpt2 --optimiser sgd", "did you mean `--optimizer`?"),
        ("profile latent_attention", "did you mean `mla`?"),
        ("profile mla --model llama3-8b --device cpu", "choose another model with --model, for example deepseek-r1"),
        ("memory mixtral-8x7b --layout ep=8", "use more replicas: dp=8,ep=8."),
        (
            "memory mixtral-8x7b --layout tp=4,ep=8",
            "use more replicas: dp=2,ep=8,etp=1 (an expert is whole on one GPU) or dp=8,ep=8,etp=4.",
        ),
        ("list", "did you mean `llmbench specs list`?"),
        ("trace gpt2", "did you mean `llmbench model MODEL --trace`?"),
        ("explain gpt2", "did you mean `llmbench params MODEL --explain`?"),
        ("size gpt2", "did you mean `llmbench params`?"),
        ("estimate gpt2", "did you mean `llmbench memory`?"),
        ("specs lst", "did you mean `llmbench specs list`?"),
        ("params llama2-7b --set mixer.kind=latent", "did you mean `mla`?"),
        ("params mixtral-8x7b --set top_k=8", "did you mean `num_experts_per_tok`?"),
        (
            "params llama2-7b --set pattern=32*local",
            "choose from `block`, the entries of `layers`; to add a kind of layer",
        ),
        ("fit gpt2 --price h100=x", "for example --price 2.5, or --price h100=2.5,l40s=1.1"),
        ("params qwen3-moe", "models of this family: qwen3-235b-a22b, qwen3-30b-a3b"),
        ("params llama3.1", "models with this name: llama3.1-405b, llama3.1-70b, llama3.1-8b"),
    ],
)
def test_hints_on_other_names(words: str, hint: str, capsys: Capture) -> None:
    assert f"hint: {hint}" in refusal(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit gpt2 --utilization x", "'x' is not a number"),
        ("fit gpt2 --utilization 0_1", "'0_1' is not a number"),
        ("fit gpt2 --users 1_0", "'1_0' is not a whole number"),
        ("fit gpt2 --price h100=1,2,h100-sxm=3", "h100-sxm is given twice"),
        ("validate kv x.csv --bound -1", "-1.0 is not at least 0"),
    ],
)
def test_a_wrong_number_is_refused_without_jargon(words: str, message: str, capsys: Capture) -> None:
    assert message in refusal(capsys, *words.split())


def test_a_long_wrong_value_is_cut(capsys: Capture) -> None:
    assert len(refusal(capsys, "memory", "gpt2", "--phase", "x" * 50_000)) < 5000
    assert len(refusal(capsys, "memory", "gpt2", "--" + "x" * 50_000)) < 5000


def test_options_of_other_tools_are_options_of_a_command() -> None:
    """Each hint names an option that some command has, and a value that it accepts."""
    options: dict[str, Any] = {}
    for name in COMMANDS:
        command = typer.main.get_command(build([name])).commands[name]
        for param in [
            *command.params,
            *(p for inner in getattr(command, "commands", {}).values() for p in inner.params),
        ]:
            options |= {opt: [*options.get(opt, []), param] for opt in param.opts}
    for _, texts in OTHER_NAMES:
        for text in texts:
            option, value = text.split()
            choices = [getattr(param.type, "choices", None) for param in options[option]]
            assert any(known is None or value in known for known in choices), text


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("evaluate run --data book.txt", "did you mean `--text`"),
        ("train smollm2-135m --text book.txt", "did you mean `--data`"),
        ("extrapolate --positions rope", "did you mean `--methods`"),
        ("mfu llama2-7b --price 3", "`--price` is an option of `fit`"),
        ("mfu llama2-7b --lora r=8", "`--lora` is an option of `flops` and `memory`"),
        ("params gpt2 --seq 3", "`--seq` is an option of `flops`"),
        ("params gpt2 --xyzzy", "`llmbench params --help` shows"),
    ],
)
def test_an_option_of_another_command_is_explained(line: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    assert f"hint: {hint}" in " ".join(capsys.readouterr().err.split())


def test_other_names_of_commands_lead_to_commands() -> None:
    """No word is a command itself, and each hint begins with a command or an option of llmbench."""
    options = {opt for param in typer.main.get_command(build([])).params for opt in param.opts} | {"--help"}
    words = [word for names, _ in OTHER_COMMANDS for word in names.split()]
    assert len(words) == len(set(words))
    assert not {word for word in words if word in COMMANDS}
    for _, text in OTHER_COMMANDS:
        assert text.split()[0] in (options if text.startswith("-") else COMMANDS), text


def test_the_smallest_numbers_of_replicas_for_experts_are_valid() -> None:
    """Each layout that the hint names is accepted, and fewer replicas are refused."""
    for tp, ep, cp in ((1, 8, 1), (4, 8, 1), (4, 6, 1), (2, 16, 4)):
        with pytest.raises(LayoutError) as caught:
            Layout(tp=tp, ep=ep, cp=cp)
        named = re.findall(r"dp=(\d+),ep=\d+(?:,etp=(\d+))?", str(caught.value.hint))
        assert named
        for dp, etp in named:
            layout = Layout(tp=tp, ep=ep, cp=cp, dp=int(dp), etp=int(etp) if etp else None)
            assert layout.expert_dp >= 1
            for fewer in range(1, int(dp)):
                with pytest.raises(LayoutError):
                    Layout(tp=tp, ep=ep, cp=cp, dp=fewer, etp=int(etp) if etp else None)
