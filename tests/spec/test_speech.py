"""Whisper, Speech2Text and Moonshine, against transformers. Types that llmbench refuses with a reason."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmbench.cli import run
from llmbench.errors import UnsupportedError
from llmbench.model.refusals import refuse_spec
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.weights import stored_weights
from llmbench.sizing.workload import Workload
from llmbench.spec.huggingface import from_config, load_config
from llmbench.spec.huggingface.families import FAMILIES
from llmbench.spec.huggingface.refused import REFUSED
from llmbench.spec.huggingface.towers import TOWERS

# Width, layers, heads, mel bins, vocabulary. Source: config.json of openai/whisper-* on the Hugging Face hub.
WHISPERS = {
    "tiny": (384, 4, 6, 80, 51865),
    "tiny.en": (384, 4, 6, 80, 51864),
    "base": (512, 6, 8, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "medium": (1024, 24, 16, 80, 51865),
    "large-v2": (1280, 32, 20, 80, 51865),
    "large-v3": (1280, 32, 20, 128, 51866),
}
SMALL_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 112,
    "vocab_size": 300,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SMALL_WHISPER = {**SMALL_BART, "num_mel_bins": 10, "max_source_positions": 50, "max_target_positions": 40}
SMALL_LISTENER = {**SMALL_BART, "conv_channels": 24, "conv_kernel_sizes": [5, 3, 3], "num_conv_layers": 3}
SMALL_MOONSHINE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "encoder_num_hidden_layers": 3,
    "decoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 4,
    "encoder_num_key_value_heads": 2,
    "decoder_num_attention_heads": 4,
    "decoder_num_key_value_heads": 2,
    "attention_bias": True,
    "pad_token_id": 0,
}
CLASSES = {
    "whisper": "WhisperForConditionalGeneration",
    "speech_to_text": "Speech2TextForConditionalGeneration",
    "moonshine": "MoonshineForConditionalGeneration",
}


def model(model_type: str, keys: dict[str, Any], device: str = "meta") -> torch.nn.Module:
    with torch.device(device):
        config = CONFIG_MAPPING[model_type](**keys)
        return getattr(transformers, CLASSES[model_type])._from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("size", WHISPERS)
def test_whisper_has_the_parameters_of_its_class(size: str) -> None:
    width, layers, heads, bins, vocab = WHISPERS[size]
    keys = {"d_model": width, "num_mel_bins": bins, "vocab_size": vocab}
    for side in ("encoder", "decoder"):
        keys |= {f"{side}_layers": layers, f"{side}_attention_heads": heads, f"{side}_ffn_dim": 4 * width}
    spec = from_config({"model_type": "whisper", **keys}, name="x")
    assert count_parameters(spec).total == sum(p.numel() for p in model("whisper", keys).parameters())
    assert not spec.approximate


@pytest.mark.parametrize(
    ("model_type", "keys"),
    [
        ("whisper", SMALL_WHISPER),
        ("speech_to_text", {}),
        ("speech_to_text", SMALL_LISTENER),
        ("moonshine", {}),
        ("moonshine", SMALL_MOONSHINE),
    ],
)
def test_parameters(model_type: str, keys: dict[str, Any]) -> None:
    spec = from_config({"model_type": model_type, **keys}, name="x")
    assert count_parameters(spec).total == sum(p.numel() for p in model(model_type, keys).parameters())
    assert not spec.approximate


def test_flops_and_cache_of_whisper() -> None:
    """torch counts the FLOPs of every product and convolution, all (query, key) pairs included."""
    whisper = model("whisper", SMALL_WHISPER, "cpu")
    batch, tokens = 2, 20
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = whisper(
            input_features=torch.zeros(batch, 10, 100),
            decoder_input_ids=torch.zeros(batch, tokens, dtype=torch.long),
            use_cache=True,
        )
    spec = from_config({"model_type": "whisper", **SMALL_WHISPER}, name="x")
    step = Workload(
        phase="prefill", batch=batch, query_len=tokens, kv_len=tokens, encoder_len=tokens, masked_pairs=True
    )
    assert sum(op.count * op.forward_flops for op in lower(spec, step)) == counter.get_total_flops()
    cache, caches = kv_cache(spec, tokens, batch=batch, kv_dtype="fp32"), out.past_key_values
    stored = [
        sum(layer.keys.nbytes + layer.values.nbytes for layer in each.layers)
        for each in (caches.self_attention_cache, caches.cross_attention_cache)
    ]
    assert [batch * cache.bytes_per_sequence, batch * cache.cross_bytes_per_sequence] == stored
    assert kv_cache(spec, 2 * tokens).cross_bytes_per_sequence == kv_cache(spec, tokens).cross_bytes_per_sequence


def test_formulas_have_the_positions_of_the_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each formula gives the FLOPs of its row: products with the encoder's positions, and with the tokens."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "whisper", **SMALL_WHISPER}))
    assert run(["flops", str(tmp_path), "--seq", "20", "--explain", "--format", "csv"]) == 0
    rows = {row["component"]: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    for component in ("other", "attention", "mlp", "lm_head"):
        numbers = rows[component]["formula"].partition(" = ")[2]
        products = [math.prod(map(int, term.replace(",", "").split(" × "))) for term in numbers.split(" + ")]
        assert sum(products) == int(rows[component]["flops"]), component
    assert "2 × 50 × " in rows["mlp"]["formula"]
    assert "recurrence" not in rows


def test_flops_of_speech_to_text() -> None:
    listener = model("speech_to_text", SMALL_LISTENER, "cpu")
    steps, tokens = 40, 6
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        listener(
            input_features=torch.zeros(1, 8 * steps, 80),
            decoder_input_ids=torch.zeros(1, tokens, dtype=torch.long),
            use_cache=False,
        )
    spec = from_config({"model_type": "speech_to_text", **SMALL_LISTENER}, name="x")
    step = Workload(phase="prefill", batch=1, query_len=tokens, kv_len=tokens, encoder_len=steps, masked_pairs=True)
    assert sum(op.count * op.forward_flops for op in lower(spec, step)) == counter.get_total_flops()


@pytest.mark.parametrize(("model_type", "keys"), [("whisper", SMALL_WHISPER), ("speech_to_text", SMALL_LISTENER)])
def test_the_files_have_a_tensor_for_every_weight(model_type: str, keys: dict[str, Any], tmp_path: Path) -> None:
    saved = model(model_type, keys, "cpu")
    saved.save_pretrained(tmp_path)
    stored = stored_weights(load_config(tmp_path))
    assert stored.total_bytes == sum(4 * p.numel() for p in saved.parameters())
    assert not stored.doubts
    assert stored.components["other"]


def test_the_pytorch_model_is_refused_in_words() -> None:
    with pytest.raises(UnsupportedError, match="reads sound"):
        refuse_spec(from_config({"model_type": "whisper"}, name="x"), has_encoder=True)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("clip", "compares images"),
        ("siglip", "compares images"),
        ("vit", "reads images"),
        ("dinov2", "reads images"),
        ("wav2vec2", "encodes sound"),
        ("hubert", "encodes sound"),
        ("seamless_m4t", "vocoder"),
        ("sam", "segments"),
    ],
)
def test_a_model_without_language_is_refused_with_the_reason(model_type: str, reason: str) -> None:
    values = {"model_type": model_type, "text_config": {"hidden_size": 512}, "vision_config": {"hidden_size": 768}}
    with pytest.raises(UnsupportedError, match=reason) as refused:
        from_config(values, name="x")
    assert "text" in (refused.value.hint or "")


def test_refused_types_are_types_of_transformers_without_an_importer() -> None:
    assert not REFUSED.keys() & FAMILIES.keys()
    assert REFUSED.keys() <= set(CONFIG_MAPPING.keys())
    assert {"clip_vision_model", "siglip_vision_model"} <= REFUSED.keys() & TOWERS.keys()
