"""Spec files that are nearly right: the message names the file, the line, the place and what is possible there."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.errors import SpecError
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.diagnosis import type_fault
from llmbench.spec.files import parse_spec, write_spec
from llmbench.spec.model import ModelSpec
from llmbench.spec.schema import fields_of, places, plain

RIGHT = """\
name = "mine"
vocab_size = 32000
hidden_size = 2048
tie_word_embeddings = true
positions = { kind = "rope" }
pattern = "16*block"

[layers.block]
mixer = { kind = "attention", num_attention_heads = 16, num_key_value_heads = 4, head_dim = 128 }
ffn = { kind = "gated", intermediate_size = 5632 }
"""
MIXER = RIGHT.splitlines()[8]
MIXER_KINDS = "attention, mla, compressed, mamba, mamba2, gated_delta_net, kimi_delta, lightning, rg_lru"


def test_a_file_of_ones_own_needs_no_source() -> None:
    spec = parse_spec(RIGHT, "mine.toml")
    assert spec.source == ""
    assert "source" not in write_spec(spec)


@pytest.mark.parametrize(
    ("old", "new", "begins", "hints"),
    [
        ('"attention"', '"latent_attention"', "line 9: layers.block.mixer.kind: there", ["`mla`", MIXER_KINDS]),
        ('"attention"', '"atention"', "line 9: layers.block.mixer.kind: there", ["`attention`", MIXER_KINDS]),
        ('"attention"', '"gqa"', "line 9: layers.block.mixer.kind: there", ["`attention`", MIXER_KINDS]),
        ('kind = "attention", ', "", "line 9: layers.block.mixer: lacks `kind`", ['kind = "attention"', MIXER_KINDS]),
        ('"gated"', '"swiglu"', "line 10: layers.block.ffn.kind: there", ["`gated`", "dense, gated, moe"]),
        ('"rope"', '"rotary"', "line 5: positions.kind: there", ["`rope`", "rope, learned, sinusoidal, alibi"]),
        ('{ kind = "rope" }', '"rope"', "line 5: positions: must be a table", ['positions = { kind = "rope" }']),
        ("hidden_size", "hiden_size", "line 3: the model has no field `hiden_size`", ["`hidden_size`?", "vocab_size"]),
        (
            "num_key_value_heads",
            "num_key_value_head",
            "line 9: layers.block.mixer: the kind `attention` has no field `num_key_value_head`",
            ["`num_key_value_heads`?", "the fields of `layers.block.mixer` are kind, num_attention_heads"],
        ),
        ("head_dim = 128", "sinks = true", "line 9: layers.block.mixer: the kind `attention` lacks `head_dim`", []),
        ("head_dim = 128", "head_dim = 128, kv_lora_rank = 512", "line 9: layers.block.mixer: ", ["(kind mla)"]),
        ("vocab_size = 32000\n", "", "the model lacks `vocab_size`", ["specs show llama2-7b"]),
        ("= 2048", '= "2048"', 'line 3: hidden_size: must be a whole number, but is "2048"', ["without quotes: 2048"]),
        ("= true", '= "true"', "line 4: tie_word_embeddings: must be true or false, but is", ["true without quotes"]),
        ("= 32000", "= 0", "line 2: vocab_size: must be a whole number of at least 1, but is 0", []),
        ("= 32000", "= 4294967296", "line 2: vocab_size: must be a whole number of at most 2,147,483,648, but is", []),
        ('"mine"', '""', "line 1: name: must be a text of at least 1 character, but is", []),
        ('"mine"', f'"{"m" * 201}"', "line 1: name: must be a text of at most 200 characters, but is", []),
        ('"mine"', '"a\\u001bb"', "line 1: name: must be a text of letters, digits, spaces and other visible", []),
        ("[layers.block]", '[layers.""]', "line 8: layers: a name must be a text of at least 1 character", []),
        ("[layers.block]", '[layers."a\\nb"]', "layers: a name must be a text of letters, digits, spaces and", []),
        ('"mine"', '"mine"\nnotes = ["a", 3]', "line 2: notes: each value must be a text, but value 2 is 3", []),
        ('pattern = "16*block"', "num_hidden_layers = 16", "line 6: the model has no field", ['pattern = "32*block"']),
        ('positions = { kind = "rope" }', "rope_theta = 1e4", "line 5: the model has no", ["`positions.theta`"]),
        ("16*block", "16*blok", "line 6: pattern: `layers` has no entry `blok`", ["`block`"]),
        ("16*block", "16 x block", "line 6: pattern `16 x block`: cannot read", ["`32*block`"]),
        ("16*block", "", "line 6: pattern: has no layers", ["32*block"]),
        ("[layers.block]", "[layers.other]\n[layers.block]", "line 8: layers.other: is not used", ["`other`"]),
        ("num_key_value_heads = 4", "num_key_value_heads = 5", "line 9: layers.block.mixer.num_key", ["4 and 8"]),
        ("[layers.block]", "[block]", "line 8: the model has no field `block`", ["[layers.block] instead of [block]"]),
        ("[layers", "[mixer]\n[layers", "line 8: the model has no field `mixer`", ["a field of layers.NAME"]),
        ("[layers.block]", "[[layers]]", "line 8: layers: must be a table of tables", ["[layers.block]"]),
        (
            MIXER,
            "num_attention_heads = 16",
            "line 9: layers.block: has no field",
            ["layers.NAME.mixer (kind attention"],
        ),
        (MIXER, "attention = {}", "line 9: layers.block: has no field", ['mixer = { kind = "attention", ... }']),
        ("= 5632", '= 5632, activation = "swish"', "line 10: layers.block.ffn.activation: unk", ["`silu`", "relu2"]),
        ("positions", 'norm = { kind = "layer_norm" }\npositions', "line 5: norm.kind: unknown", ["`layernorm`"]),
        ("positions", 'norm = "rmsnorm"\npositions', "line 5: norm: must be a table", ['norm = { kind = "rmsnorm" }']),
        ("[layers.block]", '[layers.block]\nplacement = "prenorm"', "line 9: layers.block.placement", ["`pre`"]),
        ('"mine"', "mine", "is not valid TOML: Invalid value (at line 1", ['"name = mine"']),
    ],
)
def test_nearly_right(old: str, new: str, begins: str, hints: list[str]) -> None:
    assert old in RIGHT
    with pytest.raises(SpecError) as refusal:
        parse_spec(RIGHT.replace(old, new, 1), "mine.toml")
    message = str(refusal.value).removeprefix("mine.toml").removeprefix(",").removeprefix(":").strip()
    assert message.startswith(begins)
    for hint in hints:
        assert hint in (refusal.value.hint or "")


@pytest.mark.parametrize(("old", "field"), [("shared", "shared_experts"), ("num_experts_per_tok", "top_k")])
def test_a_field_with_the_name_of_a_paper(old: str, field: str) -> None:
    """The hint is that of `--set`, although `shared_experts` has more letters in common with `zero_experts`."""
    text = write_spec(load_bundled("deepseek-v3"))
    with pytest.raises(SpecError, match=f"has no field `{field}`") as refusal:
        parse_spec(re.sub(rf"\b{old}\b", field, text), "mine.toml")
    assert f"did you mean `{old}`?" in (refusal.value.hint or "")


def test_a_field_of_the_model_below_a_table() -> None:
    line = "vocab_size = 32000\n"
    with pytest.raises(SpecError, match=r"^mine.toml, line 10: layers.block: has no field `vocab_size`") as refusal:
        parse_spec(RIGHT.replace(line, "") + line, "mine.toml")
    assert "above the first [table]" in (refusal.value.hint or "")


def test_no_fault_in_a_right_spec() -> None:
    for name in bundled_models():
        assert type_fault(plain(load_bundled(name))) is None, name


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_wrong_field_is_named(data: st.DataObject) -> None:
    """Whatever field of a model is misspelt, lost or a text: the message has its path and its line has its name."""
    name = data.draw(st.sampled_from(("llama2-7b", "deepseek-v3.2", "recurrentgemma-2b", "t5-base", "gemma3-4b")))
    text = write_spec(load_bundled(name))
    tree: dict[str, Any] = tomllib.loads(text)
    place = data.draw(st.sampled_from([place for place in places(tree, (ModelSpec,)) if len(place.node) > 1]))
    assert place.part is not None
    field = data.draw(st.sampled_from(sorted(set(place.node) & set(fields_of(place.part)))))
    if data.draw(st.booleans()):
        place.node[f"{field}_zzz"] = place.node.pop(field)
        expected = [f"`{field}_zzz`"]
    else:
        place.node[field] = {"zzz": 1}
        expected = [f"`{field}`", ".".join((*place.path, field))]
    fault = type_fault(tree)
    assert fault is not None
    path, (at, what, _) = fault
    assert path[: len(place.path)] == place.path
    assert any(word in f"{at}: {what}" for word in expected), (at, what, expected)
