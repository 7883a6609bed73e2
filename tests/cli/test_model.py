"""`llmbench model`: building, tracing, and messages about what it cannot do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli import run
from llmbench.errors import install_hint
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled

Capture = pytest.CaptureFixture[str]


def row(capsys: Capture, *arguments: str) -> dict[str, Any]:
    """The row of a command that succeeds."""
    assert run(["model", *arguments, "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "llmbench.model/1"
    (model,) = document["models"]
    return model


def refusal(capsys: Capture, code: int, *arguments: str) -> str:
    """stderr of a command that must fail."""
    assert run(["model", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_a_model_is_built_and_run(capsys: Capture) -> None:
    model = row(
        capsys, "smollm2-135m", "--layers", "2", "--seq", "9", "--batch", "3", "--dtype", "fp32", "--device", "cpu"
    )
    assert (model["layers"], model["trace"]) == (2, None)
    built = model["built"]
    total = 49152 * 576 + 576 + 2 * 3_540_096
    assert (built["parameters"], built["parameter_bytes"]) == (total, 4 * total)
    assert built["logits_shape"] == [3, 9, 49152]
    assert built["logits_finite"]
    assert built["attention_kernels"] == ["scaled_dot_product_flash_attention_for_cpu"]
    modules = {module["name"]: module for module in built["modules"]}
    assert modules["layers.{}"]["instances"] == 2
    assert modules["layers.{}"]["parameters"] == 3_540_096
    assert modules["layers.{}.attention.q_proj"]["parameters"] == 576 * 576
    tops = [module for module in built["modules"] if module["name"] == "layers.{}" or "." not in module["name"]]
    assert sum(module["instances"] * module["parameters"] for module in tops) == total
    assert sum(module["instances"] * module["parameter_bytes"] for module in tops) == 4 * total


def test_a_model_without_attention_says_so(capsys: Capture) -> None:
    assert run(["model", "mamba-130m", "--layers", "1", "--seq", "8", "--device", "cpu"]) == 0
    assert "no layer has attention" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reason"), [("gemma2-2b", "a soft cap on scores"), ("gpt-oss-20b", "attention sinks")]
)
def test_the_implementation_is_chosen_for_the_model_and_named(name: str, reason: str, capsys: Capture) -> None:
    arguments = ("model", name, "--layers", "1", "--set", "vocab_size=64", "--device", "meta", "--seq", "4")
    assert run([*arguments]) == 0
    assert f"implementation: standard, because sdpa does not support {reason}" in capsys.readouterr().out
    assert row(capsys, *arguments[1:])["built"]["impl"] == "standard"
    assert row(capsys, "gpt2", *arguments[2:])["built"]["impl"] == "sdpa"


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "gemma3-27b", "jamba-v0.1", "t5-base", "bert-base"])
def test_the_tree_adds_up(name: str, capsys: Capture) -> None:
    """On meta, so of any size."""
    built = row(capsys, name, "--device", "meta", "--seq", "4")["built"]
    assert built["parameters"] == count_parameters(load_bundled(name)).total
    tops = [m for m in built["modules"] if m["name"].removeprefix("encoder.").count(".") == m["name"].count("{}")]
    tops = [m for m in tops if m["name"] != "encoder"]
    assert sum(m["instances"] * m["parameters"] for m in tops) == built["parameters"]


@pytest.mark.parametrize(
    ("impl", "kernels"),
    [("standard", []), ("flash", ["scaled_dot_product_flash_attention_for_cpu"]), ("flex", ["flex_attention"])],
)
def test_the_kernels_that_ran_are_named(
    impl: str, kernels: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # with it, flash runs our kernels in Triton's interpreter
    arguments = ("smollm2-135m", "--layers", "1", "--seq", "8", "--device", "cpu", "--impl", impl)
    assert row(capsys, *arguments)["built"]["attention_kernels"] == kernels
    assert run(["model", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert ("torch's own kernel on a CPU" in out) == (impl == "flash")


def test_traced_beside_analytic(capsys: Capture) -> None:
    model = row(capsys, "llama3.1-405b", "--trace", "--seq", "4096", "--batch", "2")
    assert model["built"] is None
    trace = model["trace"]
    assert run(["flops", "llama3.1-405b", "--seq", "4096", "--batch", "2", "--attention", "full", "-f", "json"]) == 0
    total = json.loads(capsys.readouterr().out)["models"][0]["total_flops"]
    assert trace["forward_flops"] == trace["traced_flops"] == total
    assert trace["traced_saved_bytes"] == pytest.approx(trace["saved_bytes"], rel=0.01)
    assert sum(op["traced_saved_bytes"] for op in trace["ops"]) == trace["traced_saved_bytes"]
    standard = row(capsys, "gpt2", "--trace", "--impl", "standard")["trace"]
    assert standard["traced_saved_bytes"] > row(capsys, "gpt2", "--trace")["trace"]["traced_saved_bytes"]


def test_notes_on_the_model(capsys: Capture) -> None:
    """A change of a kind, and a sequence above the context, have notes in `model`, as in the sizing commands."""
    small = ("smollm2-135m", "--layers", "1", "--seq", "8193")
    for way in (("--device", "meta"), ("--trace",)):
        notes = row(capsys, *small, *way, "--set", "norm.kind=layernorm")["notes"]
        assert any(note.startswith("norm.kind = layernorm: ") for note in notes), notes
        assert "a sequence of more than 8,192 tokens exceeds the context length of smollm2-135m" in notes


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["gpt2", "--impl", "flsh"], 2, "did you mean `flash`?"),
        (["gpt2", "--device", "abc"], 2, "unknown device `abc`"),
        (["gpt2", "--device", "xpu"], 2, "choose from auto, cpu, cuda, cuda:1, meta"),
        (["gpt2", "--device", "gpu"], 2, "a GPU is `cuda`"),
        (["gpt2", "--device", "cpu:1"], 2, "without a number"),
        (["gpt2", "--device", "meta", "--impl", "flex"], 3, "does not run on meta"),
        (["gpt2", "--layers", "13"], 2, "gpt2 has 12"),
        (["gpt2", "--layers", "1", "--batch", "10000000", "--device", "cpu"], 3, "10,000,000 × 128 tokens needs"),
        (
            ["gpt2", "--layers", "1", "--seq", "1025", "--device", "cpu"],
            2,
            "cannot read 1,025 tokens: its learned positions cover only 1,024",
        ),
        (["gpt2", "--trace", "--seq", "1025"], 2, "cannot read 1,025 tokens: its learned positions cover only 1,024"),
        (["llama3.1-8b", "--trace", "--seq", "2147483648"], 2, "the tensors of 1 × 2,147,483,648 tokens are too large"),
        (["llama3.1-8b", "--device", "meta", "--seq", "2147483648"], 2, "are too large for torch to count"),
        (["gpt2", "--trace", "--device", "cuda"], 2, "--trace takes no --device `cuda`"),
        (["gpt2", "--layers", "0"], 2, "--layers"),
        (
            ["gemma2-2b", "--layers", "1", "--set", "vocab_size=64", "--device", "cpu", "--impl", "sdpa"],
            3,
            "does not support a soft cap on scores",
        ),
        (["gpt2", "--set", "hidden_size=100000000"], 3, "--layers N"),
    ],
)
def test_wrong_arguments_are_explained(arguments: list[str], code: int, says: str, capsys: Capture) -> None:
    assert says in refusal(capsys, code, *arguments)


def test_the_reason_of_torch_is_shown(capsys: Capture, recwarn: pytest.WarningsRecorder) -> None:
    """The error has torch's reason, and no warnings with places in torch's source."""
    arguments = ("deepseek-v2-lite", "--layers", "1", "--set", "vocab_size=64", "--device", "cpu", "--seq", "8")
    said = refusal(capsys, 3, *arguments, "--impl", "sdpa-flash")
    assert "Query.size(-1): 192, Key.size(-1): 192, Value.size(-1): 128" in said
    assert "Triggered internally" not in said
    assert not recwarn.list


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model, saved by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=4, intermediate_size=48, vocab_size=64
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_gives_its_weights(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    arguments = (str(folder), "--device", "cpu", "--seq", "8")
    assert row(capsys, *arguments)["built"]["weights"] == str(folder)
    assert row(capsys, *arguments, "--layers", "1")["built"]["weights"] == "random"
    assert row(capsys, str(folder / "config.json"), "--device", "cpu", "--seq", "8")["built"]["weights"] == "random"
    assert run(["model", str(folder), "--device", "meta"]) == 0
    assert f"the weights in {folder} were not read" in capsys.readouterr().out
    monkeypatch.setattr("llmbench.spec.weights.families.TABLES", {})
    assert "config.json` builds the model with random weights" in refusal(capsys, 2, *arguments)
    (folder / "model.safetensors").unlink()
    assert run(["model", *arguments]) == 0
    assert f"{folder} has no .safetensors" in capsys.readouterr().out


def test_logits_that_are_not_finite_are_a_negative_verdict(folder: Path, capsys: Capture) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert run(["model", str(folder), "--device", "cpu", "--seq", "8"]) == 1
    assert "NOT ALL FINITE" in capsys.readouterr().out


def test_unknown_figures_of_meta_are_null(capsys: Capture) -> None:
    built = row(capsys, "gpt2", "--device", "meta")["built"]
    assert (built["weights"], built["forward_s"], built["logits_finite"]) == ("none", None, None)


def test_a_missing_gpu(capsys: Capture) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "no CUDA GPU" in refusal(capsys, 3, "gpt2", "--device", "cuda")


def test_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for name in [name for name in sys.modules if name.startswith("llmbench.model")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("llmbench.model", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert install_hint("gpu") in refusal(capsys, 3, "gpt2")
