"""The defaults file agrees with the configuration classes of the pinned transformers."""

import importlib.util
import json
from pathlib import Path

import pytest

from llmbench.spec.huggingface.unread_keys import HARMLESS_NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    """The generator, loaded from its file: tools/ is no package."""
    spec = importlib.util.spec_from_file_location("huggingface_defaults", ROOT / "tools" / "huggingface_defaults.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def types(tool):
    """Model type -> record, from the file."""
    return json.loads(tool.PATH.read_text(encoding="utf-8"))["types"]


def test_file_matches_installed_transformers(tool):
    """`--check` finds no difference."""
    transformers = pytest.importorskip("transformers")
    if transformers.__version__ != tool.VERSION:
        pytest.skip(f"the file states the facts of transformers {tool.VERSION}, not {transformers.__version__}")
    assert tool.check() == []


def test_file_is_sorted_with_one_type_a_line(tool, types):
    """A diff of the file names the types that changed."""
    text = tool.PATH.read_text(encoding="utf-8")
    assert text == tool.render(types)
    assert list(types) == sorted(types)
    assert text.count("\n") == len(types) + 2


def test_references_lead_to_records(types):
    """Every text part, and every other part, has a record."""
    for name, record in types.items():
        parts = [record["text_config"]["model_type"]] if "text_config" in record else []
        for part in [*parts, *record.get("sub_configs", {}).values()]:
            assert part in types, f"{name} -> {part}"


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        # Published configs of these families leave the key out.
        ("llama", "tie_word_embeddings", False),
        ("gemma", "tie_word_embeddings", True),
        ("falcon", "multi_query", True),
        ("t5", "tie_word_embeddings", True),
        ("t5", "feed_forward_proj", "relu"),
        ("gpt_neox", "attention_bias", True),
        ("mistral", "num_key_value_heads", 8),
        ("mixtral", "num_local_experts", 8),
        ("deepseek_v3", "first_k_dense_replace", 3),
        ("qwen2_moe", "shared_expert_intermediate_size", 5632),
        ("opt", "word_embed_proj_dim", None),
        ("bert", "type_vocab_size", 2),
    ],
)
def test_a_missing_key_means(types, model_type, key, value):
    """Defaults that published configs rely on, as declared."""
    assert types[model_type]["defaults"][key] == value


def test_other_names_and_undeclared_keys(types):
    """Aliases, keys without a field, and rotary bases are facts too."""
    assert types["gpt2"]["attribute_map"]["hidden_size"] == "n_embd"
    assert types["qwen3_next"]["undeclared"]["full_attention_interval"] == 4
    assert types["gemma3_text"]["default_theta"] == {"global": 1000000.0, "local": 10000.0}
    assert types["kimi_k25"]["text_config"] == {"key": "text_config", "model_type": "deepseek_v3"}
    assert types["dbrx"]["defaults"]["ffn_config"]["moe_num_experts"] == 4


def test_dropped_keys_stay_out_and_sizes_stay_in(tool, types):
    """Keys that change no figure are dropped, and keys that change one are kept."""
    keys = {key for record in types.values() for key in record["defaults"]}
    assert not {"pad_token_id", "attention_dropout", "initializer_range", "use_cache", "vision_config"} & keys
    for key in (
        "vocab_size",
        "norm_topk_prob",
        "conv_kernel",
        "use_task_id",
        "projectors_bias",
        "classifier_bias",
    ):
        assert key in keys
        assert not HARMLESS_NAMES.search(key)
