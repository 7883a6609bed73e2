"""Changes of a model: paths, kinds, the notes about them, and the hints after a wrong change."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from llmbench.errors import SpecError
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.base import Part
from llmbench.spec.catalog import load_bundled
from llmbench.spec.diagnosis import words_of
from llmbench.spec.ffn import MoE
from llmbench.spec.field_paths import HUGGING_FACE_NAMES
from llmbench.spec.mixer import Attention, LatentAttention
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.override import override, parse_assignments
from llmbench.spec.position import SCALING_FIELDS, RopeScaling
from llmbench.spec.schema import every_place, fields_of, places, plain, tag_of

SEVERAL = ("llama2-7b", "gpt2", "deepseek-v3", "jamba-v0.1", "gemma3-4b", "t5-small", "bloom-560m", "mixtral-8x7b")

BRANCHES = [{"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}]


def new_notes(name: str, spec: ModelSpec) -> str:
    """The notes that the change added."""
    return "\n".join(note for note in spec.notes if note not in load_bundled(name).notes)


def part_at(spec: ModelSpec, path: tuple[str, ...]) -> Any:
    value: Any = spec
    for step in path:
        value = (
            value[int(step)]
            if isinstance(value, tuple)
            else value[step]
            if isinstance(value, dict)
            else getattr(value, step)
        )
    return value


def attempt(spec: ModelSpec, changes: dict[str, Any]) -> tuple[ModelSpec | None, SpecError | None]:
    """The changed spec, or the error."""
    try:
        return override(spec, changes), None
    except SpecError as problem:
        return None, problem


def size(spec: ModelSpec) -> None:
    """Compute the figures that every sizing command needs."""
    assert count_parameters(spec).total > 0
    kv_cache(spec, 256)
    count_flops(spec, Workload.prefill(256))


def completed(problem: SpecError) -> dict[str, Any]:
    """The assignments that the hint of an error proposes, with values where the hint has none."""
    items = [word for word in shlex.split((problem.hint or "").partition("--set")[2]) if "=" in word]
    return {
        key: BRANCHES if key.endswith("branches") else 8 if value == "..." else value
        for key, value in parse_assignments(items).items()
    }


# Kinds


@pytest.mark.parametrize("name", SEVERAL)
def test_every_kind_of_every_part_is_sized_or_refused(name: str) -> None:
    """What a change drops, keeps and sets is in a note, and nothing else changes."""
    spec, sized, refused = load_bundled(name), 0, 0
    for place in places(plain(spec), (ModelSpec,)):
        kinds = ["rmsnorm", "layernorm"] if place.part is Norm else [tag_of(choice) for choice in place.choices]
        for kind in kinds if len(kinds) > 1 else ():
            key = ".".join((*place.path, "kind"))
            assigned: dict[str, Any] = {key: kind}
            changed, problem = attempt(spec, assigned)
            if problem is not None and "also needs" in str(problem):
                assigned |= completed(problem)
                changed, problem = attempt(spec, assigned)
                assert "also needs" not in str(problem)
            if changed is None:
                assert str(problem).startswith("--set")
                refused += 1
                continue
            size(changed)
            sized += 1
            old, new = part_at(spec, place.path), part_at(changed, place.path)
            assert new.kind == kind
            note = new_notes(name, changed)
            for field, known in fields_of(type(old)).items():
                before, after = getattr(old, field), getattr(new, field, "absent")
                if f"{key[:-4]}{field}" in assigned:
                    continue
                if before != after and before != known.default and before is not None:
                    assert re.search(rf"\b{field}\b", note), (key, kind, field, note)
            for field, known in fields_of(type(new)).items():
                after = getattr(new, field)
                if type(new) is not type(old) and after != known.default and f"{key[:-4]}{field}" not in assigned:
                    assert re.search(rf"\b{field}\b", note), (key, kind, field, note)
    assert sized > 10
    assert refused > 0 or name not in ("deepseek-v3", "jamba-v0.1")


def test_positions() -> None:
    changed = override(load_bundled("llama3.1-8b"), {"positions.kind": "alibi"})
    assert changed.positions.kind == "alibi"
    assert new_notes("llama3.1-8b", changed) == "positions.kind = alibi: dropped theta, scaling of the old kind rope"
    assert changed == override(load_bundled("llama3.1-8b"), {"positions": "alibi"})
    learned = override(load_bundled("llama2-7b"), {"positions": "learned"})
    assert learned.positions.position_limit == 4096
    assert "set num_positions = 4096 (max_position_embeddings)" in new_notes("llama2-7b", learned)
    assert override(load_bundled("llama2-7b"), {"positions": None}).positions.kind == "none"
    with pytest.raises(SpecError, match=r"`alibi` acts on scores, but layers.dense.mixer \(MLA\) does not support"):
        override(load_bundled("deepseek-v3"), {"positions.kind": "alibi"})
    with pytest.raises(SpecError, match="the kind `learned` also needs `num_positions`"):
        override(load_bundled("llama2-7b"), {"max_position_embeddings": None, "positions.kind": "learned"})


def test_layers_with_positions_of_their_own_are_named() -> None:
    changed = override(load_bundled("gemma3-4b"), {"positions": "alibi"})
    assert "layers.local.mixer.positions keeps its own kind rope" in new_notes("gemma3-4b", changed)


def test_a_kind_of_layer_is_copied() -> None:
    """The copy has the fields of the original, in any order of the changes. The original does not change."""
    spec = load_bundled("llama3-8b")
    changes = {
        "pattern": "8*(3*local block)",
        "layers.local.mixer.sliding_window": 1024,
        "layers.local": "block",
    }
    changed = override(spec, changes)
    assert changed.order == ("local", "local", "local", "block") * 8
    local, block = changed.layers["local"].mixer, changed.layers["block"].mixer
    assert local == replace(spec.layers["block"].mixer, sliding_window=1024)
    assert block == spec.layers["block"].mixer
    assert "layers.local is a copy of layers.block" in changed.notes
    for wrong, says in (({"layers.local": "blok"}, "no kind of layer `blok`"), ({"layers.block": "block"}, "already")):
        with pytest.raises(SpecError, match=says):
            override(spec, wrong)


def test_experts_get_a_size_of_their_own_in_the_hint() -> None:
    """An expert is smaller than the feed-forward that it replaces. The hint works as it is written."""
    spec = load_bundled("llama3-8b")
    with pytest.raises(SpecError) as caught:
        override(spec, {"ffn.kind": "moe"})
    options = shlex.split(str(caught.value.hint).partition(": ")[2])
    changed = override(spec, parse_assignments(options[1::2]))
    ffn = changed.layers["block"].ffn
    assert isinstance(ffn, MoE)
    assert ffn.intermediate_size < spec.layers["block"].ffn.intermediate_size


def test_norms() -> None:
    """The known counts: a norm without bias has hidden_size parameters fewer."""
    gpt2 = load_bundled("gpt2")
    changed = override(gpt2, {"norm.kind": "rmsnorm"})
    assert count_parameters(changed).total == count_parameters(gpt2).total - 25 * 768
    assert new_notes("gpt2", changed) == "norm.kind = rmsnorm: dropped bias (rmsnorm usually has none)"
    assert override(gpt2, {"norm.kind": "rmsnorm", "norm.bias": True}).norm.bias
    back = override(changed, {"norm.kind": "layernorm"})
    assert back.norm == gpt2.norm


def test_feed_forwards() -> None:
    gated = override(load_bundled("gpt2"), {"ffn.kind": "gated"})
    assert count_parameters(gated).components["mlp"] == 12 * (3 * 768 * 3072 + 2 * 3072 + 768)
    assert 'kept intermediate_size = 3072, activation = "gelu_tanh", bias = true' in new_notes("gpt2", gated)
    experts = override(load_bundled("gpt2"), {"ffn": "moe", "num_experts": 8, "num_experts_per_tok": 2})
    assert count_parameters(experts).components["experts"] == 12 * 8 * (2 * 768 * 3072 + 3072 + 768)


def test_mixers() -> None:
    with pytest.raises(SpecError) as refusal:
        override(load_bundled("llama2-7b"), {"mixer.kind": "mla"})
    needed = "`kv_lora_rank`, `qk_nope_head_dim`, `qk_rope_head_dim` and `v_head_dim`"
    assert str(refusal.value) == f"--set mixer.kind=mla: the kind `mla` also needs {needed}"
    changed = override(load_bundled("llama2-7b"), completed(refusal.value))
    mixer = changed.layers["block"].mixer
    assert isinstance(mixer, LatentAttention)
    assert (mixer.num_attention_heads, mixer.kv_lora_rank) == (32, 512)
    back = override(load_bundled("deepseek-v3"), {"layers.*.mixer.kind": "attention"})
    ordinary = back.layers["dense"].mixer
    assert isinstance(ordinary, Attention)
    assert (ordinary.num_key_value_heads, ordinary.head_dim, ordinary.v_head_dim) == (128, 192, 128)
    assert "layers.dense.mixer.kind and layers.moe.mixer.kind = attention: dropped" in back.notes[0]


def test_the_scaling_of_rope_keeps_only_its_own_fields() -> None:
    changed = override(load_bundled("deepseek-v3"), {"scaling.kind": "linear"})
    assert getattr(changed.positions, "scaling", None) == RopeScaling(kind="linear", factor=40.0)
    assert "dropped original_max_position_embeddings" in new_notes("deepseek-v3", changed)


def test_every_field_of_a_scaling_belongs_to_a_kind() -> None:
    fields = fields_of(RopeScaling)
    assert list(SCALING_FIELDS) == words_of(fields["kind"].annotation)
    assert {name for names in SCALING_FIELDS.values() for name in names} == set(fields) - {"kind", "factor"}


def test_the_order_of_changes_has_no_effect() -> None:
    changes = {"theta": 500000.0, "positions.kind": "rope", "n_embd": 512, "norm.bias": True, "norm.kind": "rmsnorm"}
    first = override(load_bundled("gpt2"), changes)
    second = override(load_bundled("gpt2"), dict(reversed(changes.items())))
    assert replace(first, notes=()) == replace(second, notes=())
    assert sorted(first.notes) == sorted(second.notes)
    assert "bias" not in new_notes("gpt2", first)
    assert (first.positions.summary, first.norm.bias, first.hidden_size) == ("RoPE (θ 500000)", True, 512)


# Paths


@pytest.mark.parametrize(
    ("name", "key", "value", "path"),
    [
        ("llama2-7b", "mixer.head_dim", 64, "layers.block.mixer.head_dim"),
        ("llama2-7b", "block.ffn.intermediate_size", 64, "layers.block.ffn.intermediate_size"),
        ("llama2-7b", "theta", 5e5, "positions.theta"),
        ("llama2-7b", "embedding.scale", 2.0, "embedding.scale"),
        ("deepseek-v3", "scores", "softmax", "layers.moe.ffn.router.scores"),
        ("deepseek-v3", "shared.intermediate_size", 64, "layers.moe.ffn.shared.intermediate_size"),
        ("deepseek-v3", "moe.intermediate_size", 64, "layers.moe.ffn.intermediate_size"),
        ("deepseek-v3", "moe_intermediate_size", 64, "layers.moe.ffn.intermediate_size"),
        ("deepseek-v3", "n_routed_experts", 512, "layers.moe.ffn.num_experts"),
        ("llama2-7b", "rope_theta", 5e5, "positions.theta"),
        ("llama2-7b", "rms_norm_eps", 1e-6, "norm.eps"),
        ("llama2-7b", "hidden_act", "gelu", "layers.block.ffn.activation"),
        ("gpt2", "n_positions", 64, "positions.num_positions"),
        ("gpt2", "n_inner", 64, "layers.block.ffn.intermediate_size"),
        ("gpt2", "n_embd", 64, "hidden_size"),
        ("gemma2-2b", "final_logit_softcapping", 7.0, "head.soft_cap"),
        ("llama2-7b", "placement", None, "layers.block.placement"),
    ],
)
def test_the_end_of_a_path_is_enough(name: str, key: str, value: Any, path: str) -> None:
    changed = override(load_bundled(name), {key: value})
    expected = "none" if value is None else value
    assert part_at(changed, tuple(path.split("."))) == expected
    assert changed == override(load_bundled(name), {path: value})


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers"])
def test_names_of_the_number_of_layers(key: str) -> None:
    assert override(load_bundled("gpt2"), {key: 3}).num_hidden_layers == 3


def test_no_name_of_hugging_face_hides_a_field() -> None:
    fields = {field for home in every_place(ModelSpec) for field in fields_of(home.part)}
    assert not fields & set(HUGGING_FACE_NAMES)
    ends = {path.rpartition(".")[2] for path in HUGGING_FACE_NAMES.values()}
    assert ends <= fields | {"num_hidden_layers"}


@pytest.mark.parametrize(
    ("name", "key", "paths", "hint"),
    [
        (
            "gemma2-2b",
            "sliding_window",
            ["layers.local.mixer.sliding_window = 4096", "layers.global.mixer.sliding_window = none"],
            "layers.*.mixer.sliding_window for all of them",
        ),
        (
            "deepseek-v3",
            "intermediate_size",
            ["layers.dense.ffn.intermediate_size = 18432", "layers.moe.ffn.shared.intermediate_size = 2048"],
            "the full path",
        ),
        ("gemma3-4b", "theta", ["positions.theta = 1000000.0", "layers.local.mixer.positions.theta"], "the full path"),
        ("gpt2", "bias", ["norm.bias = true", "layers.block.ffn.bias = true", "head.bias"], "the full path"),
        ("llama2-7b", "kind", ['norm.kind = "rmsnorm"', 'positions.kind = "rope"'], "the full path"),
    ],
)
def test_an_ambiguous_key_lists_the_full_paths(name: str, key: str, paths: list[str], hint: str) -> None:
    with pytest.raises(SpecError) as refusal:
        override(load_bundled(name), {key: 8})
    for path in paths:
        assert path in str(refusal.value)
    assert hint in (refusal.value.hint or "")


def test_at_most_eight_paths_are_listed() -> None:
    with pytest.raises(SpecError, match=r"and 1 more$") as refusal:
        override(load_bundled("llama4-scout"), {"bias": True})
    assert str(refusal.value).count(" = ") == 8


def test_equal_fields_of_several_layers_change_together() -> None:
    changed = override(load_bundled("gemma2-2b"), {"mixer.head_dim": 64})
    assert {mixer.key_dim for mixer in changed.attentions} == {64}
    paths = "layers.local.mixer.head_dim, layers.global.mixer.head_dim"
    assert new_notes("gemma2-2b", changed) == f"mixer.head_dim changed 2 fields: {paths}"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_a_full_path_changes_one_field(data: st.DataObject) -> None:
    """The default of a field, or its value, is assigned at its path: only this field can differ."""
    name = data.draw(st.sampled_from(SEVERAL))
    spec = load_bundled(name)
    place = data.draw(
        st.sampled_from([place for place in places(plain(spec), (ModelSpec,)) if place.path and len(place.node) > 1])
    )
    assert place.part is not None
    field = data.draw(st.sampled_from([name for name in fields_of(place.part) if name != "kind"]))
    path = (*place.path, field)
    assert override(spec, {".".join(path): plain(part_at(spec, path))}).layers == spec.layers
    default = fields_of(place.part)[field].default
    if isinstance(default, (bool, float)):
        try:
            changed = override(spec, {".".join(path): default})
        except SpecError:
            return
        other: Part = part_at(changed, place.path)
        before: Part = part_at(spec, place.path)
        assert getattr(other, field) == default
        assert {f for f in before.__struct_fields__ if getattr(before, f) != getattr(other, f)} <= {field}


# Hints


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "kv_heads",
            8,
            ["did you mean `num_key_value_heads`? Its full path is layers.block.mixer.num_key_value_heads"],
        ),
        ("num_key_vale_heads", 8, ["did you mean `num_key_value_heads`?", "layers.block.mixer.num_key_value_heads"]),
        ("intermediate", 8, ["did you mean `intermediate_size`?", "layers.block.ffn.intermediate_size"]),
        ("attn.head_dim", 8, ["did you mean `head_dim`?", "layers.block.mixer.head_dim"]),
        ("kv_lora_rank", 8, ["a field of layers.NAME.mixer (kind mla)", "--set mixer.kind=mla"]),
        ("num_experts", 8, ["a field of layers.NAME.ffn (kind moe)", "--set ffn.kind=moe"]),
        ("layers", 2, ["use num_hidden_layers=2"]),
        ("mixer.kind", "latent_attention", ["did you mean `mla`?", "attention, mla, compressed, mamba"]),
        ("mixer.kind", "gqa", ["did you mean `attention`?"]),
        ("ffn.kind", "swiglu", ["did you mean `gated`?", "dense, gated, moe"]),
        ("positions.kind", "rotary", ["did you mean `rope`?", "rope, learned, sinusoidal, alibi, relative_bias, none"]),
        ("norm.kind", "layer_norm", ["did you mean `layernorm`?", "rmsnorm, layernorm"]),
        ("mixer.kind", "none", ["the kinds are attention, mla"]),
        ("layers.block.mixer.qk_norm.over", "head", ["--set 'layers.block.mixer.qk_norm={}'"]),
        ("mixer.qk_norm.over", "head", ["--set 'layers.block.mixer.qk_norm={}'"]),
        ("next_token_prediction.count", 1, ["--set 'next_token_prediction={ count = …, layer = … }'"]),
        ("n_shared_experts", 1, ["`shared` is a field of", "layers.NAME.ffn (kind moe)"]),
        ("activation", "swish", ["did you mean `silu`?"]),
        ("tie_word_embeddings", "yes", []),
    ],
)
def test_hints(key: str, value: Any, says: list[str]) -> None:
    with pytest.raises(SpecError) as refusal:
        override(load_bundled("llama2-7b"), {key: value})
    assert str(refusal.value).startswith(f"--set {key}")
    for text in says:
        assert text in (refusal.value.hint or "")


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("ffn.shared_experts", "did you mean `shared`? Its full path is layers.block.ffn.shared"),
        ("ffn.shared.intermediate_size", "--set 'layers.block.ffn.shared={ intermediate_size = … }'"),
        ("layers.block.ffn.shared.intermediate_size", "--set 'layers.block.ffn.shared={ intermediate_size = … }'"),
        ("layers.block.ffn.share.intermediate_size", "did you mean `shared`?"),
    ],
)
def test_hints_for_shared_experts(key: str, says: str) -> None:
    with pytest.raises(SpecError) as refusal:
        override(load_bundled("mixtral-8x7b"), {key: 1792})
    assert says in (refusal.value.hint or "")


@pytest.mark.parametrize(
    "assignments",
    [
        {"num_hidden_layers": 4, "n_layer": 5},
        {"num_hidden_layers": 4, "pattern": "3*block"},
        {"rope_theta": 1e4, "positions.theta": 1e5},
        {"num_key_value_heads": 8, "layers.*.mixer.num_key_value_heads": 4},
    ],
)
def test_two_keys_for_one_field_are_refused(assignments: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="change the same field"):
        override(load_bundled("llama2-7b"), assignments)
