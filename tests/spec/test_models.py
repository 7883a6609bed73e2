"""The bundled models: their files, their published counts, and transformers' counts of the same models."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from llmbench.errors import UnsupportedError
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import bundled_models, find_model, load_bundled
from llmbench.spec.files import parse_spec, write_spec
from llmbench.spec.huggingface import from_config
from llmbench.spec.override import override

from ..oracles import transformers_meta as oracle
from ..oracles.huggingface_export import exportable_model_types, same_model, to_config

FOLDER = Path(__file__).parents[2] / "specs" / "models"
NAMES = sorted(file.stem for file in FOLDER.glob("*.toml"))
each_model = pytest.mark.parametrize("name", NAMES)

NO_CLASS = {name for name in NAMES if not load_bundled(name).family}
"""Models that no class of transformers describes. Their specs have no `family`."""

STANDS_FOR = {"kimi_k2": "deepseek_v3"}
"""A model type of the hub's remote code, and the type whose class its repository names."""

DIFFERS = {
    "gemma-2b": -128 * 2048,
    "gemma-7b": -128 * 3072,
    "gemma2-2b": -128 * 2304,
    "gemma2-9b": -128 * 3584,
    "gemma2-27b": -128 * 4608,
    "gemma3-4b": -3_736_832,
    "gemma3-12b": -4_965_824,
    "gemma3-27b": -6_653_696,
    "glm-4.5": -2_202_185_216,
    "glm-4.7": -2_202_185_216,
    "gpt-j-6b": -2_498_560,
    "llama4-scout": -1_230_138_880,
    "nanogpt-shakespeare": 95_088,
    "phi-1.5": 118_270_720,
    "qwen2-7b": 545_616_512,
    "qwen2.5-32b": 263_876_352,
    "stablelm-2-1.6b": 98_304,
    "transformer-base": -1_954_368,
    "transformer-big": 1_171_648,
}
"""Our count minus the published one, where the notes of the file explain the difference and rounding does not."""


# The files


def test_there_are_enough() -> None:
    assert len(NAMES) >= 100
    assert tuple(NAMES) == bundled_models()


@each_model
def test_file(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    spec = parse_spec(text, name)
    assert spec.name == name
    assert spec.source, "fill in `source`: the page or paper that the figures come from"
    assert spec.published_parameters, "fill in `published_parameters`: the count that the source states"
    assert spec.family == "" or spec.family in exportable_model_types()
    assert write_spec(spec) == text, f"write this text into the file:\n{write_spec(spec)}"
    first, _, rest = text.partition("\n[")
    assert "aliases" not in rest, "aliases must stand before the first table"
    top = tomllib.loads(first)
    assert (top["name"], top.get("aliases", [])) == (name, list(spec.aliases))
    assert spec == load_bundled(name)


def test_names_and_aliases_are_unique_and_found() -> None:
    owner: dict[str, str] = {}
    for name in NAMES:
        for known in (name, *load_bundled(name).aliases):
            plain = re.sub(r"[-_. ]", "", known.lower())
            assert plain not in owner, f"{known} of {name} is also {owner[plain]}"
            owner[plain] = name
    for typed in (
        "meta-llama/Llama-2-7b-hf",
        "LLaMA-2_7B",
        "mixtral",
        "openai/GPT-OSS-20b",
        "Qwen3_8B",
        "gpt-3",
    ):
        assert find_model(typed).name == owner[re.sub(r"[-_. ]", "", typed.lower())]


@pytest.mark.parametrize("text", ['a "quoted" \\ name', "tab\tnew\nline", "delete \x7f", "größe – ≤ 漢字"])
def test_any_text_is_written(text: str) -> None:
    name = text if text.isprintable() else "a name"  # control characters are refused in names
    spec = override(
        load_bundled("gpt2"),
        {
            "source": text,
            "notes": [text],
            "layers.block.extra": [{"name": name, "shape": [3, 4], "role": "vector"}],
        },
    )
    assert parse_spec(write_spec(spec), "text") == spec


# The counts


@each_model
def test_published_count(name: str) -> None:
    """Exact figures are equal. A figure that ends in five zeros or more is rounded or cut off: ours
    is within one unit of its last digit, and within a tenth."""
    spec = load_bundled(name)
    published = spec.published_parameters
    assert published is not None
    difference = count_parameters(spec).total - published
    zeros = len(str(published)) - len(str(published).rstrip("0"))
    unit = 10**zeros if zeros >= 5 else 0
    if name in DIFFERS:
        assert difference == DIFFERS[name]
        assert abs(difference) > unit
        assert spec.notes, "say why"
    else:
        assert abs(difference) <= min(unit, published // 10)


@pytest.mark.parametrize("name", sorted(set(NAMES) - NO_CLASS))
def test_transformers_counts_the_same(name: str) -> None:
    """spec -> config -> transformers' class on the meta device: the same integers, and the same spec back."""
    spec = load_bundled(name)
    config = to_config(spec)
    again = from_config(config, name=name)
    assert same_model(again) == same_model(spec)
    assert again.approximate == ()

    truth = oracle.measure(config | {"model_type": STANDS_FOR.get(spec.family, spec.family)})
    ours = count_parameters(spec)
    theirs = dict(truth.components)
    if spec.family == "bert":  # we leave the vocabulary's bias with the head's transform, where BERT names it
        theirs["other"] += theirs["lm_head"]
        theirs["lm_head"] = 0
    else:
        assert ours.active_no_embeddings == truth.active_no_embeddings
        assert ours.active_no_input_embedding == truth.active_no_input_embedding
    assert ours.total == truth.total
    assert ours.components == theirs
    assert ours.active == truth.active
    assert ours.active_matmul == truth.active_matmul
    assert ours.buffers == sum(truth.persistent_buffers.values())
    assert spec.tie_word_embeddings == truth.tied


@pytest.mark.parametrize("name", sorted(NO_CLASS))
def test_a_model_without_a_class_says_so(name: str) -> None:
    with pytest.raises(UnsupportedError, match="no Hugging Face form"):
        to_config(load_bundled(name))


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("llama2-7b", {"layers.block.mixer.sinks": True}, "sinks"),
        ("mistral-7b-v0.1", {"qkv_bias": True}, "qkv_bias"),
        ("gpt2", {"num_key_value_heads": 4}, "num_key_value_heads"),
        ("mixtral-8x7b", {"layers.block.ffn": {"kind": "gated", "intermediate_size": 64}}, "another kind"),
        ("bloom-560m", {"positions": {"kind": "rope"}}, "positions"),
    ],
)
def test_export_refuses_what_a_config_cannot_state(name: str, change: dict[str, object], field: str) -> None:
    with pytest.raises(UnsupportedError, match=field):
        to_config(override(load_bundled(name), change))
