"""The shapes of `llmbench bench`: --model, --set, --seq and --batch."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from llmbench.bench.experiments import EXPERIMENTS, find_experiment, heads
from llmbench.bench.experiments.experiment import Ask, Group, Shape
from llmbench.bench.results.words import FIELDS, in_words
from llmbench.errors import LLMBenchError
from llmbench.spec.catalog import load_bundled
from llmbench.spec.override import override

MODELS = {"moe": "olmoe-1b-7b"}
"""The model of an experiment's test, if it is not Llama-3.2-3B."""

CHOSEN = {"--model": "model", "--seq": "seq_lens", "--batch": "batches"}
"""The field of `Shape` that an option sets."""


@pytest.fixture(autouse=True)
def _free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "free_bytes", lambda device: 2**37)


def groups(name: str, *, quick: bool = True, device: str = "cpu", **shape: Any) -> list[Group]:
    """The groups of an experiment for a shape."""
    ask = Ask(quick=quick, device=torch.device(device), dtype="fp32", shape=Shape(**shape))
    return find_experiment(name).groups(ask)


def value(name: str, option: str) -> dict[str, Any]:
    """A value of an option that no preset has."""
    model = load_bundled(MODELS.get(name, "llama3.2-3b"))
    return {CHOSEN[option]: {"--model": model, "--seq": (24, 40), "--batch": (3, 5)}[option]}


@pytest.mark.parametrize(("name", "option"), [*product(EXPERIMENTS, CHOSEN)])
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_experiment_follows_an_option_or_refuses_it(name: str, option: str, quick: bool, device: str) -> None:
    """Every case has the chosen numbers, every group has a key of its own, and no case is one of the preset."""
    shape = value(name, option)
    if option not in EXPERIMENTS[name].shape_options:
        with pytest.raises(LLMBenchError, match=f"`bench {name}` does not take {option}"):
            groups(name, quick=quick, device=device, **shape)
        return
    preset = {key for group in groups(name, quick=quick, device=device) for key in group.row_keys()}
    chosen = groups(name, quick=quick, device=device, **shape)
    keys = [key for group in chosen for key in group.row_keys()]
    assert keys
    assert len(set(keys)) == len(keys)
    assert not preset & {*keys}
    for group in chosen:
        words = in_words(group.case)
        assert set(group.case) <= set(FIELDS)
        match option:
            case "--model":
                assert shape["model"].name in words
            case "--seq":
                (field,) = {"seq_len", "tokens", "context"} & {*group.case}
                assert group.case[field] in (24, 40)
            case "--batch":
                assert group.case["batch"] in (3, 5)


@pytest.mark.parametrize("name", [name for name, about in EXPERIMENTS.items() if about.model])
def test_a_changed_model_has_rows_of_its_own(name: str) -> None:
    model = load_bundled(MODELS.get(name, "llama3.2-3b"))
    changed = override(model, {"num_hidden_layers": 2})
    one, two = groups(name, model=model), groups(name, model=changed, changes=("num_hidden_layers=2",))
    keys = [{key for group in some for key in group.row_keys()} for some in (one, two)]
    assert not keys[0] & keys[1]
    assert all("with num_hidden_layers=2" in in_words(group.case) for group in two)
    assert Shape(model=model).digest != Shape(model=changed).digest


def test_heads_have_the_sizes_of_the_model() -> None:
    """LLaMA-2-7B, Llama-3-8B with GQA and DeepSeek-V2-Lite with MLA. The largest batch is that of the whole model."""
    sizes = {name: heads.Size.of_model(load_bundled(name)) for name in ("llama2-7b", "llama3-8b", "deepseek-v2-lite")}
    assert {name: size[:4] for name, size in sizes.items()} == {
        "llama2-7b": (4096, 32, 128, 8),
        "llama3-8b": (4096, 32, 128, 8),
        "deepseek-v2-lite": (2048, 16, 128, 4),
    }
    latent = heads.kinds(sizes["deepseek-v2-lite"])["MLA"]
    assert latent == load_bundled("deepseek-v2-lite").layers["dense"].mixer
    (case,) = {group.case["kv_heads"] for group in groups("heads", model=load_bundled("llama3-8b"))}
    assert case == 8


def test_a_model_without_the_part_is_refused() -> None:
    for name, model, says in (
        ("moe", "llama2-7b", "llama2-7b has no experts"),
        ("activations", "mixtral-8x7b", "mixtral-8x7b has no dense or gated feed-forward"),
        ("train", "t5-base", "with an encoder"),
        ("heads", "mamba-130m", "has no attention"),
    ):
        with pytest.raises(LLMBenchError, match=says):
            groups(name, model=load_bundled(model))
    with pytest.raises(LLMBenchError, match="cover only 1,024"):
        groups("train", model=load_bundled("gpt2"), seq_lens=(2048,))
