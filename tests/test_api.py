"""The Python interface: the figures of the commands, without their text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

import llmbench as lb
from llmbench.cli import run
from llmbench.errors import LLMBenchError


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        (lb.params("llama2-7b", "mixtral-8x7b"), ("params", "llama2-7b", "mixtral-8x7b")),
        (
            lb.flops("gemma3-4b", phase="train", seq=8192, batch=2),
            ["flops", "gemma3-4b", "--phase", "train", "--seq", "8192", "--batch", "2"],
        ),
        (
            lb.flops("deepseek-v3", phase="decode", chunk=512, chunk_start=1024, by="op"),
            ["flops", "deepseek-v3", "--phase", "decode", "--chunk", "512", "--chunk-start", "1k", "--by", "op"],
        ),
        (lb.kv_cache("deepseek-v3", kv_dtype="fp8"), ("kvcache", "deepseek-v3", "--kv-dtype", "fp8")),
        (lb.memory("llama3-8b", layout="tp=2,sp"), ("memory", "llama3-8b", "--layout", "tp=2,sp")),
        (
            lb.memory("llama3-8b", lora="r=8,targets=q,v", base="nf4"),
            ["memory", "llama3-8b", "--lora", "r=8,targets=q,v", "--base", "nf4"],
        ),
        (
            lb.fit("llama3.1-8b", device=["h100", "l4"], weights="fp8", draft="llama3.2-1b"),
            ["fit", "llama3.1-8b", "--device", "h100", "--device", "l4", "--weights", "fp8", "--draft", "llama3.2-1b"],
        ),
        (
            lb.mfu("llama3-8b", device="h100", gpus=8, batch=64, step_s=6.5),
            ["mfu", "llama3-8b", "--device", "h100", "--gpus", "8", "--batch", "64", "--step-time", "6.5"],
        ),
    ],
)
def test_answers_are_those_of_the_commands(
    answer: lb.Answer[object], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert repr(answer) == printed(capsys, *arguments)
    assert answer._repr_markdown_() == printed(capsys, *arguments, "--format", "markdown")
    of_command = json.loads(printed(capsys, *arguments, "--format", "json"))
    rows = {"mfu": "conventions", "fit": "fits"}.get(arguments[0], "models")
    assert answer.to_dict()[rows] == of_command[rows]
    assert answer.to_dict()["schema"] == of_command["schema"]


def test_values_are_typed_and_rows_are_flat() -> None:
    answer = lb.params("llama2-7b")
    assert answer.value.total == 6_738_415_616
    [row] = answer.rows
    assert row["model"] == "llama2-7b"
    assert row["parameters.total"] == 6_738_415_616
    assert not any(isinstance(value, dict) for value in row.values())
    with pytest.raises(ValueError, match="about 2 models"):
        _ = lb.params("llama2-7b", "llama3-8b").value


def test_a_spec_with_changes() -> None:
    spec = lb.load("llama2-7b", {"num_key_value_heads": 8})
    assert lb.kv_cache(spec).value.bytes_total * 4 == lb.kv_cache("llama2-7b").value.bytes_total
    assert lb.load(spec) is spec
    with pytest.raises(LLMBenchError, match="no_such_field"):
        lb.load("llama2-7b", {"no_such_field": 1})
    with pytest.raises(LLMBenchError, match="llama9"):
        lb.params("llama9")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: lb.params("gpt2", by="layers"), "unknown by `layers`"),
        (lambda: lb.flops("gpt2", phase="training"), "unknown phase `training`"),
        (lambda: lb.flops("gpt2", attention="all"), "unknown attention `all`"),
        (lambda: lb.flops("gpt2", recompute="full"), "--phase prefill has no backward pass"),
        (lambda: lb.flops("gpt2", seq=0), "must be at least 1"),
        (lambda: lb.kv_cache("gpt2", kv_dtype="bf17"), "unknown kv_dtype `bf17`"),
        (lambda: lb.kv_cache("gpt2", batch=0), "must be at least 1"),
        (lambda: lb.memory("gpt2", optimizer="adam"), "unknown optimizer `adam`"),
        (lambda: lb.memory("gpt2", kernels="flash"), "unknown kernels `flash`"),
        (lambda: lb.memory("gpt2", precision="bf8"), "unknown precision `bf8`"),
        (lambda: lb.memory("gpt2", layout="tp=5"), "tp=5"),
    ],
)
def test_values_that_the_command_line_refuses_are_refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(LLMBenchError, match=re.escape(says)):
        call()


def test_html_is_a_table_without_markup_of_others() -> None:
    spec = lb.load("llama2-7b", {"name": "a<b>&c"})
    html = lb.params(spec)._repr_html_()
    assert html.count("<table>") == 1
    assert "a&lt;b&gt;&amp;c" in html
    assert "<b>" not in html
    assert "6,738,415,616" in html


def test_build_gives_the_pytorch_model() -> None:
    pytest.importorskip("torch")
    model = lb.build("llama3.2-1b", device="meta")
    assert sum(p.numel() for p in model.parameters()) == lb.params("llama3.2-1b").value.total


def test_the_import_is_cheap() -> None:
    script = "import sys, llmbench; print(sorted({'typer', 'rich', 'msgspec', 'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'parms'"):
        _ = lb.parms  # type: ignore[attr-defined]
    assert {"params", "build"} <= set(dir(lb))
