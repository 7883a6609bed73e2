"""Every table of weight names has a test that compares logits with those of transformers."""

from __future__ import annotations

from llmbench.model.weights import supported_families
from llmbench.model.weights.transforms import TRANSFORMS
from llmbench.spec.weights.families import TABLES

from . import test_encoders, test_latent, test_multimodal, test_parity, test_recurrent

TESTED_UNDER_ANOTHER_NAME = {
    "kimi_k2"
}  # no class in transformers: test_latent reads DeepSeek-V3's files under its name
WITHOUT_A_MODEL = {"speech_to_text", "whisper"}  # tests/spec/test_speech.py reads the sizes of their files


def test_every_table_is_tested() -> None:
    modules = (test_parity, test_latent, test_recurrent, test_encoders, test_multimodal)
    tried = {case[0] for module in modules for case in module.CASES.values()}
    assert tried | TESTED_UNDER_ANOTHER_NAME | WITHOUT_A_MODEL == set(supported_families())


def test_every_transform_of_a_table_exists() -> None:
    named = {name for table in TABLES.values() for rule in table.rules for name in rule.transforms}
    assert named
    assert named <= set(TRANSFORMS)
