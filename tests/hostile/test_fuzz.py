"""Each kind of input for which `tools/fuzz_readers.py` found a traceback, and a few tries of each of its readers."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

import llmbench
from llmbench.bench.results.words import FIELDS
from llmbench.cli import run
from llmbench.errors import LLMBenchError, SpecError
from llmbench.measure.results import read
from llmbench.model.weights import Checkpoint
from llmbench.sizing.weights import stored_weights
from llmbench.spec.catalog import find_model, load_bundled
from llmbench.spec.huggingface import load_config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.model import Layer

from ..measure.rows import header, references, results, row

ROOT = Path(__file__).parent.parent.parent
TOO_LONG = "x" * 5000


@pytest.fixture(scope="module")
def tool() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz_readers", ROOT / "tools" / "fuzz_readers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["config", "spec", "set", "name", "results", "weights"])
def test_a_few_damaged_inputs_of_each_reader(name: str, tool: Any, tmp_path: Path) -> None:
    reader = tool.READERS[name]()
    rng = random.Random(f"test {name}")
    for _ in range(10):
        content = reader.damaged(rng)
        (tmp_path / "config.json").write_bytes(content)
        assert tool.problem_of(reader, tmp_path / "config.json") is None, content[:1000]


def test_the_tool_reports_a_traceback_and_a_long_message(tool: Any, tmp_path: Path) -> None:
    def long(_: Path) -> None:
        problem = LLMBenchError("x")
        problem.args = ("x" * 5000,)
        raise problem

    for read_file, what in ((lambda _: 1 / 0, "ZeroDivisionError"), (long, "5000 characters")):
        assert what in tool.problem_of(tool.Reader(lambda rng: b"", read_file), tmp_path)


@pytest.mark.parametrize("path", [TOO_LONG, f"{TOO_LONG}.json", f"{TOO_LONG}.toml", f"{TOO_LONG}/config.json"])
def test_a_path_beyond_the_limit_of_the_system(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for call in (lambda: find_model(path), lambda: load_config(Path(path))):
        with pytest.raises(LLMBenchError):
            call()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": TOO_LONG}}))
    with pytest.raises(LLMBenchError, match="missing"):
        Checkpoint(tmp_path)
    for arguments in (["params"], ["model"], ["specs", "check"], ["diff", "x"], ["bench", "norms", "--resume"]):
        assert run([*arguments, path]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_an_empty_tensor_of_an_impossible_shape(tmp_path: Path) -> None:
    fields = {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    text = json.dumps(fields).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(SpecError, match=r"impossible shape|not a safetensors file"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("work", [0, -1, 10**400])
def test_an_impossible_reference_measurement_is_damage(work: int, tmp_path: Path) -> None:
    lines = [msgspec.json.encode(header(reference_measurements=references())), msgspec.json.encode(row())]
    assert b'"work":1000000000' in lines[0]
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines[0].replace(b'"work":1000000000', f'"work":{work}'.encode()) + b"\n" + lines[1] + b"\n")
    assert len(read(path).damaged) == 1
    assert read(path).headers == []
    assert len(results(row()).rows) == len(read(path).rows)


def test_a_layer_without_parts_has_a_size() -> None:
    spec = load_bundled("falcon-mamba-7b")
    empty = msgspec.structs.replace(spec, layers={"block": Layer()})
    assert llmbench.memory(empty, seq=1024).rows


def test_a_message_of_control_characters_is_cut_after_the_escapes() -> None:
    assert len(str(LLMBenchError("\x1b" * 10_000))) <= 4001


def test_a_text_in_place_of_a_number_of_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    case = dict.fromkeys(FIELDS, "s")
    lines = (header(), msgspec.structs.replace(row(), case=case))
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    assert run(["diff", str(path), str(path), "--all"]) == 0
    assert "tokens s" in capsys.readouterr().out


@pytest.mark.parametrize("digits", ["9" * 5000, "²", "٣"])
def test_digits_that_python_does_not_convert(digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`int` refuses more than 4,300 digits and superscripts, and reads the digits of every script."""
    config = {"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    text = json.dumps({f"model.layers.{digits}.self_attn.q_proj.weight": tensor}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    assert run(["params", str(tmp_path)]) == 0
    assert "no tensor with a known name" in " ".join(capsys.readouterr().out.split())
    run(["fit", "gpt2", "--device", "h100", "--engine", f"vllm@0.11.{digits}"])
    assert "Traceback" not in capsys.readouterr().err
    path = tmp_path / "step.json"
    step = facts()["step3p5"]["defaults"]
    path.write_text(json.dumps({"model_type": "step3p5", **step, "moe_layers_enum": f"3,{digits}"}))
    assert run(["params", str(path)]) == 0


@pytest.mark.parametrize("ratio", [0, 1e-320, 1e-300, -1, 7])
def test_a_ratio_outside_its_range_makes_the_bytes_approximate(ratio: float, tmp_path: Path) -> None:
    text = {"model_type": "qwen2", **facts()["qwen2"]["defaults"]}
    config = {"model_type": "internvl", "text_config": text, "vision_config": {}, "downsample_ratio": ratio}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert any("downsample_ratio: must be" in reason for reason in stored_weights(load_config(path)).doubts)
