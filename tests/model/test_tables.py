"""Every table of weights is proven: a family that can be read has a case whose logits equal transformers'."""

from __future__ import annotations

from llmbench.model.weights import supported_families

from . import test_encoders, test_latent, test_parity, test_recurrent

ALSO_TRIED = {"kimi_k2"}  # no class in transformers: test_latent reads DeepSeek-V3's files under its name


def test_every_table_is_tried() -> None:
    modules = (test_parity, test_latent, test_recurrent, test_encoders)
    tried = {case[0] for module in modules for case in module.CASES.values()}
    assert tried | ALSO_TRIED == set(supported_families())
