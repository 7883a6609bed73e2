"""`build` and `load` accept right arguments and files, and refuse others with a reason."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import llmbench.model.create
from llmbench import model as models
from llmbench.errors import CannotRunError, LLMBenchError, SpecError, UnknownNameError, UnsupportedError
from llmbench.model.devices import device_of
from llmbench.model.weights import Checkpoint

from . import small

UP = "model.layers.0.mlp.up_proj.weight"
Edit = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"init": "gtp2"}, UnknownNameError, "unknown initialisation `gtp2`"),
        ({"init": None}, UnknownNameError, "unknown initialisation `None`"),
        ({"device": "abc"}, LLMBenchError, "unknown device `abc`"),
        ({"device": None}, LLMBenchError, "unknown device `None`"),
        ({"device": "cpu:1"}, LLMBenchError, "unknown device `cpu:1`"),
        ({"device": "mps"}, CannotRunError, "only cpu, cuda and meta"),
        ({"device": "cuda:99"}, CannotRunError, "GPU"),
        ({"dtype": "fp32"}, SpecError, "the format `fp32`"),
        ({"dtype": torch.int8}, SpecError, "the format `torch.int8`"),
        ({"dtype": torch.complex64}, SpecError, "the format `torch.complex64`"),
        ({"dtype": torch.float8_e4m3fn}, SpecError, "the format `torch.float8_e4m3fn`"),
        ({"seed": 2**70}, SpecError, "seed must be a whole number"),
        ({"seed": 1.5}, SpecError, "seed must be a whole number"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], error: type[LLMBenchError], says: str, llama: Path
) -> None:
    with pytest.raises(error, match=says):
        models.build(small.SPECS["gqa"], **arguments)
    if not {"init", "seed"} & set(arguments):
        with pytest.raises(error, match=says):
            models.load(llama, **arguments)


def test_auto_is_a_gpu_if_there_is_one() -> None:
    assert device_of("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert next(models.build(small.SPECS["gqa"], device="auto").parameters()).device.type == device_of("auto").type


# Folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that transformers writes for a tiny LLaMA."""
    folder: Path = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def llama(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "llama"))


def change_tensors(folder: Path, change: Edit) -> None:
    """Change the tensors in the file."""
    file = folder / "model.safetensors"
    save_file({name: tensors.contiguous() for name, tensors in change(load_file(file)).items()}, file, {"format": "pt"})


def change_config(folder: Path, **keys: Any) -> None:
    """Change keys in config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "bool", "float8_e4m3fn", "float8_e5m2"])
def test_weights_that_are_not_floating_are_refused(dtype: str, llama: Path) -> None:
    change_tensors(llama, lambda tensors: {**tensors, UP: tensors[UP].to(getattr(torch, dtype))})
    with pytest.raises(UnsupportedError, match=rf"quantised weights are not supported: {UP} \({dtype}\)"):
        models.load(llama)


def test_integer_buffers_are_ignored(tmp_path: Path) -> None:
    """Older versions of transformers saved BERT's position ids."""
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    theirs = transformers.BertForMaskedLM(config).eval()
    theirs.save_pretrained(tmp_path)
    change_tensors(tmp_path, lambda tensors: {**tensors, "bert.embeddings.position_ids": torch.arange(512)[None]})
    tokens = small.prompt(1, 5)
    with torch.no_grad():
        torch.testing.assert_close(models.load(tmp_path)(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("formats", "wanted"),
    [
        (["float16"], "float16"),
        (["bfloat16"], "bfloat16"),
        (["float16", "bfloat16"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float64", "float16"], "float64"),
    ],
)
def test_the_model_has_the_narrowest_format_for_all_tensors(formats: list[str], wanted: str, llama: Path) -> None:
    """Every value of the file is in the model, unrounded."""
    kinds = [getattr(torch, name) for name in formats]
    change_tensors(
        llama,
        lambda tensors: {name: x.to(kinds[at % len(kinds)]) for at, (name, x) in enumerate(sorted(tensors.items()))},
    )
    model = models.load(llama)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, wanted)}
    tensors = load_file(llama / "model.safetensors")
    assert torch.equal(model.layers[0].ffn.up_proj.weight.double(), tensors[UP].double())
    assert torch.equal(model.embedding.weight.double(), tensors["model.embed_tokens.weight"].double())


def test_a_config_stands_for_its_folder(llama: Path) -> None:
    whole, named = models.load(llama), models.load(llama / "config.json")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), named.parameters(), strict=True))
    for nothing in (llama / "model.safetensors", llama / "none" / "config.json"):
        with pytest.raises(SpecError, match="cannot read"):
            models.load(nothing)


@pytest.mark.parametrize("stated", [3, {"LlamaForCausalLM": 1}, [3]])
def test_architectures_are_names(stated: Any, llama: Path) -> None:
    change_config(llama, architectures=stated)
    with pytest.raises(SpecError, match="a list of names"):
        models.load(llama)


def header(text: str | bytes) -> bytes:
    """A file of a header and four bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + bytes(4)


ENTRY = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        header("[]"),
        header("{"),
        header(b'{"\xff": 1}'),
        header('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
        header('{"a": 3}'),
        header('{"a": {"dtype": "F32"}}'),
        header(f'{{"a": {ENTRY.replace("[1]", "[-1]")}}}'),
        header(f'{{"a": {ENTRY.replace("[1]", "[2]")}}}'),
        header(f'{{"a": {ENTRY.replace("4]", "8]")}}}'),
        header(f'{{"a": {ENTRY.replace("F32", "X99")}}}'),
        header(f'{{"a": {ENTRY.replace("[0, 4]", "[0]")}}}'),
        header(f'{{"a": {ENTRY}, "b": {ENTRY}}}'),
        header(f'{{"a": {ENTRY}}}') + bytes(4),
        header(f'{{"a": {ENTRY}}}')[:-1],
    ],
)
def test_a_damaged_file(content: bytes, llama: Path) -> None:
    file = llama / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        SpecError, match=f"{file} is not a safetensors file, or it is truncated or damaged: ."
    ) as raised:
        models.load(llama)
    assert raised.value.hint == "copy or download the file again"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (ENTRY.replace("F32", "U16").replace("[1]", "[2]"), "tensor a has the format U16, which is not supported"),
        (ENTRY, "the files have 1 weights, but the config describes"),
        (ENTRY.replace("[1]", "[0, 9223372036854775808]").replace("4]", "0]"), "the impossible shape"),
        (f'{ENTRY}, "a": {ENTRY}', "the header has the name a twice"),
    ],
)
def test_a_file_without_the_right_tensors(entry: str, says: str, llama: Path) -> None:
    data = header(f'{{"a": {entry}}}')
    (llama / "model.safetensors").write_bytes(data[:-4] if "[0, 0]" in entry else data)
    with pytest.raises(SpecError, match=says):
        models.load(llama)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"weight_map": 3}', "Expected `object`, got `int`"),
        (b"{}", "missing required field `weight_map`"),
        (b"\xff\xfe", "is not an index of safetensors"),
        (b'{"weight_map": {"a": "../model.safetensors"}}', "is not the name of a file in the folder"),
        (b'{"weight_map": {"a": "b.safetensors"}}', "names b.safetensors, which is missing"),
    ],
)
def test_a_damaged_index(content: bytes, says: str, llama: Path) -> None:
    (llama / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(SpecError, match=says):
        models.load(llama)


def test_a_tensor_in_two_files(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    save_file(tensors, llama / "a.safetensors")
    save_file({UP: tensors[UP]}, llama / "b.safetensors")
    index = {"weight_map": {**dict.fromkeys(tensors, "a.safetensors"), UP: "b.safetensors"}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SpecError, match=rf"b.safetensors: tensor {UP} is also in another file of the folder"):
        models.load(llama)


def test_a_file_without_permission_is_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is simulated, because the tests may run with every permission."""
    normal = os.open

    def refused(file: Path, *args: Any, **more: Any) -> Any:
        if Path(file).name == "model.safetensors":
            raise PermissionError(13, "Permission denied", str(file))
        return normal(file, *args, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(SpecError, match=r"cannot read .*model.safetensors: Permission denied"):
        models.load(llama)


def test_a_missing_tensor_is_named(llama: Path) -> None:
    change_tensors(llama, lambda tensors: {name: x for name, x in tensors.items() if name != UP})
    with pytest.raises(SpecError, match=r"the files have no tensor for layers\.0\.ffn\.up_proj\.weight"):
        models.load(llama)


def test_a_config_with_too_many_layers_is_refused_before_a_model_is_built(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(llama, num_hidden_layers=10_000)
    monkeypatch.setattr(llmbench.model.create, "model_of", None)  # calling None fails
    with pytest.raises(SpecError, match=r"the files have [\d,]+ weights, but the config describes [\d,]+"):
        models.load(llama)


def test_a_file_may_be_larger_than_the_memory(tmp_path: Path) -> None:
    """A sparse file of 1 TiB, of which one tensor is read."""
    size = 2**40
    entries = (
        f'"large": {{"dtype": "U8", "shape": [{size}], "data_offsets": [0, {size}]}}',
        f'"small": {{"dtype": "BF16", "shape": [1, 2], "data_offsets": [{size}, {size + 4}]}}',
        f'"odd": {{"dtype": "I8", "shape": [1], "data_offsets": [{size + 4}, {size + 5}]}}',
        f'"behind": {{"dtype": "F32", "shape": [2], "data_offsets": [{size + 5}, {size + 13}]}}',
    )
    front = header("{" + ", ".join(entries) + "}")[:-4]
    end = struct.pack("<HHbff", 0x3F80, 0x4000, 7, 1.5, -2.0)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(front)
        file.seek(size, os.SEEK_CUR)
        file.write(end)
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.elements == size + 5
    assert checkpoint.tensor("small").tolist() == [[1.0, 2.0]]
    assert checkpoint.tensor("odd").tolist() == [7]
    assert checkpoint.tensor("behind").tolist() == [1.5, -2.0]  # its address is not a multiple of 4
