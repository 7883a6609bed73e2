"""Write the two `defaults.json`: the default of each config key that a config.json may leave out.

    python tools/huggingface_defaults.py            # write the files from the installed transformers
    python tools/huggingface_defaults.py --check    # compare; exit 1 and name the model types that differ

transformers leaves a value out of config.json if it equals the default of the configuration class. An importer
therefore needs these defaults. This tool reads them from the configuration classes of one transformers release. It
reads the defaults that the classes declare, before any ``__post_init__`` derives one key from another. The file has one
line per model type. A composite is a config with several parts, for example text and vision.

- ``class``: the language-model class. A text part that exists only inside a composite has none.
- ``defaults``: each key that the class or its parents declare, with its default. Keys that affect no result, and keys
  of other modalities, are left out (unread_keys.py). ``tie_word_embeddings`` is always included. Its value comes from
  an instance with all defaults, because a few classes override the field. The value of a composite may differ from the
  value of its text part (mistral3 is not tied). A nested configuration without its own model type is a nested object
  here.
- ``attribute_map``: for each standard name of a key, the name that the class uses. A config.json may have either name.
- ``default_theta``: the base of rotary embeddings if the config has none: a number, or a number for each kind of layer.
- ``rope_parameters``: the rotary embeddings of a config that states nothing about them, if they are not plain ones with
  the base ``default_theta``.
- ``replaces_head_dim``: the class replaces the value of ``head_dim`` by ``qk_rope_head_dim``.
- ``undeclared``: keys that ``__post_init__`` reads although no field declares them, with their literal defaults.
- ``text_config``: the key and the model type of the text part of a composite, and the values of that part if the config
  does not contain it (``when_missing``). ``sets``: the values of the keys that the text part lacks, if they are not the
  defaults of its class.
- ``flat``: the class reads the keys of the text part at the top level of a config without a text part.
- ``tied_by_text``: the head is tied if the text part says so, even if the composite says otherwise.
- ``other_modalities``: the keys of the parts of a composite for vision, audio and other modalities.
- ``sub_configs``: the model types of the other parts that belong to the language model (the encoder of t5gemma).

The second file, llmbench/spec/huggingface/towers/defaults.json, has the parts for other modalities of the composites
for which llmbench/spec/huggingface/towers/ has formulas:

- ``composites``: for each composite, the ``defaults`` of its own keys, and its ``parts``: the key and the model type of
  each part, its values if the config does not contain it (``when_missing``), whether another model type can stand there
  (``any_type``), and whether the model lacks the part if the config does not contain it (``optional``).
- ``towers``: for each model type of these parts, its ``defaults`` and its ``attribute_map``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import logging
import math
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from llmbench.spec.huggingface.unread_keys import HARMLESS_NAMES, OTHER_MODALITIES

VERSION = "5.23.0"
"""The transformers release from which the file is written."""

PATH = Path(__file__).resolve().parent.parent / "llmbench" / "spec" / "huggingface" / "defaults.json"
TOWERS_PATH = PATH.parent / "towers" / PATH.name

TEXT_KEYS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
"""Config keys of the text part of a composite. The tool uses the first of these keys that the config has."""

LISTENERS = ("moonshine", "speech_to_text", "whisper")
"""Model types of speech that are described with their encoder of sound."""


def facts() -> dict[str, dict[str, Any]]:
    """Return the record of each model type, read from the installed transformers."""
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    logging.disable(logging.WARNING)
    # A later class replaces an earlier one: an encoder-decoder is loaded whole, not its decoder alone.
    classes: dict[str, str | None] = dict(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    classes |= auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    classes |= auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classes |= auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    classes |= auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    classes |= {name: auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[name] for name in LISTENERS}
    records: dict[str, dict[str, Any]] = {}
    waiting: list[tuple[str, type]] = [(name, CONFIG_MAPPING[name]) for name in classes]
    while waiting:
        name, config_class = waiting.pop()
        if name in records:
            continue
        records[name], parts = _record(config_class, classes.get(name))
        waiting += [(part.model_type, part) for part in parts]
    return dict(sorted(records.items()))


def _record(config_class: type, model_class: str | None) -> tuple[dict[str, Any], list[type]]:
    """Return the record of one model type, and the configuration classes of its parts. These parts get their own
    records."""
    from transformers.configuration_utils import PreTrainedConfig

    # Without an instance, `_declared` reads the defaults from the fields of the class.
    instance = _instance(config_class)
    parts = {
        key: value
        for key, value in instance.items()
        if isinstance(value, PreTrainedConfig) and (key in TEXT_KEYS or not _is_dropped(key))
    }
    defaults = {key: value for key, value in _declared(config_class).items() if key not in parts}
    sources = [instance, defaults, *map(vars, parts.values())]  # a few composites leave the key to their text part
    tied = (values["tie_word_embeddings"] for values in sources if values.get("tie_word_embeddings") is not None)
    defaults["tie_word_embeddings"] = bool(next(tied, False))
    record: dict[str, Any] = {"defaults": defaults}
    if others := sorted(
        key for key, value in instance.items() if isinstance(value, PreTrainedConfig) and key not in parts
    ):
        record["other_modalities"] = others
    if model_class is not None:
        record["class"] = model_class
    if config_class.attribute_map:
        record["attribute_map"] = dict(config_class.attribute_map)
    if "rope_parameters" in _fields(config_class):
        record["default_theta"] = config_class.default_theta
        if _is_special_rope(rotation := instance.get("rope_parameters") or {}, config_class.default_theta):
            record["rope_parameters"] = _plain(rotation)
    if "qk_rope_head_dim" in instance:
        other = _instance(config_class, head_dim=2 * instance["qk_rope_head_dim"])
        if other.get("head_dim") == instance["qk_rope_head_dim"]:
            record["replaces_head_dim"] = True
    if undeclared := {k: v for k, v in _undeclared(config_class).items() if k not in defaults}:
        record["undeclared"] = undeclared

    own = {key: part for key, part in parts.items() if part.model_type}
    defaults |= {key: _declared(type(part)) for key, part in parts.items() if not part.model_type}
    text_key = next((key for key in TEXT_KEYS if key in own), None)
    if text_key is not None:
        text: dict[str, Any] = {"key": text_key, "model_type": own[text_key].model_type}
        if missing := _own_values(own[text_key]):
            text["when_missing"] = missing
        stated = _instance(config_class, **{text_key: {"model_type": text["model_type"]}}).get(text_key)
        if stated is not None and (values := _own_values(stated)):
            text["sets"] = values
        record["text_config"] = text
        tied = _instance(config_class, tie_word_embeddings=False, **{text_key: {"tie_word_embeddings": True}})
        if tied.get("tie_word_embeddings"):
            record["tied_by_text"] = True
        vocabulary = vars(own[text_key]).get("vocab_size", 0) + 1
        flat = _instance(config_class, vocab_size=vocabulary).get(text_key)
        if flat is not None and vars(flat).get("vocab_size") == vocabulary:
            record["flat"] = True
    if language := {key: part.model_type for key, part in own.items() if key != text_key}:
        record["sub_configs"] = language
    return record, [type(part) for part in own.values()]


def tower_facts() -> dict[str, dict[str, Any]]:
    """Return the records of the composites whose towers llmbench counts, and of these towers."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from llmbench.spec.huggingface.towers import COMPOSITES, TOWERS

    composites: dict[str, Any] = {}
    for name in sorted(COMPOSITES.keys() & CONFIG_MAPPING.keys()):
        specs = CONFIG_MAPPING[name].sub_configs_defaults
        own = {key: value for key, value in _sizes(CONFIG_MAPPING[name]).items() if key not in specs}
        parts = {}
        for key, spec in specs.items():
            if key in TEXT_KEYS or re.match("talker|token2wav|code2wav", key):
                continue
            part: dict[str, Any] = {"model_type": spec.model_type or spec.config_class.model_type}
            if spec.config_class is AutoConfig:
                part["any_type"] = True
            if spec.optional:
                part["optional"] = True
            if missing := _plain_sizes(spec.init_kwargs or {}):
                part["when_missing"] = missing
            parts[key] = part
        composites[name] = {"defaults": own, "parts": parts}
    described = {part["model_type"] for entry in composites.values() for part in entry["parts"].values()}
    towers: dict[str, Any] = {}
    for name in sorted({*TOWERS, *described} & set(CONFIG_MAPPING.keys())):
        towers[name] = {"defaults": _sizes(CONFIG_MAPPING[name])}
        if CONFIG_MAPPING[name].attribute_map:
            towers[name]["attribute_map"] = dict(CONFIG_MAPPING[name].attribute_map)
    return {"composites": composites, "towers": towers}


NO_SIZE = re.compile(r"dropout|layerdrop|initializer|_init|_eps$|^use_cache$|_token_(ids?|index)$|^tie_|suppress")
"""Patterns of keys that change the size of no tower."""


def _sizes(config_class: type) -> dict[str, Any]:
    """Return the declared default of each key of a tower that can change the size of a weight."""
    defaults = {}
    for name, f in _fields(config_class).items():
        defaults[name] = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    return _plain_sizes(defaults)


def _plain_sizes(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _one_side(value) if key in ("image_size", "patch_size") else _plain(value)
        for key, value in values.items()
        if _has_json_form(value) and not NO_SIZE.search(key) and key != "model_type"
    }


def _one_side(value: Any) -> Any:
    """Return one number for equal height and width. A reader accepts a list instead of a number, not the reverse."""
    return value[0] if isinstance(value, (list, tuple)) and len(set(value)) == 1 else value


def _instance(config_class: type, **values: Any) -> dict[str, Any]:
    """Return the keys of a configuration with these values. The dict is empty if the values contradict each other, or
    if the defaults of the class do."""
    try:
        # Use vars instead of getattr. getattr raises an error for a key whose value differs between layers.
        return vars(config_class(**values))
    except Exception:
        return {}


def _own_values(part: Any) -> dict[str, Any]:
    """Return the keys of a text part from which its class derives the same text part."""
    stated: dict[str, Any] = {}
    while missing := {
        key: _plain(value)
        for key, value in vars(part).items()
        if key not in stated and key in _fields(type(part)) and not _is_dropped(key) and _has_json_form(value)
        if value != _instance(type(part), **stated).get(key)
    }:
        stated |= missing
    return stated


def _is_special_rope(rotation: dict[str, Any], theta: Any) -> bool:
    """Return whether rotary embeddings are other than plain ones with the base `theta`."""
    return bool(rotation) and rotation != {"rope_type": "default", "rope_theta": theta}


def _fields(config_class: type) -> dict[str, Any]:
    """Return the fields that the class and its parents declare, without the fields of PreTrainedConfig."""
    from transformers.configuration_utils import PreTrainedConfig

    common = set(PreTrainedConfig.__mro__)
    own = [c for c in config_class.__mro__ if c not in common]
    declared = {name for c in own for name in inspect.get_annotations(c)}
    return {f.name: f for f in dataclasses.fields(config_class) if f.name in declared}


def _declared(config_class: type) -> dict[str, Any]:
    """Return the declared default of each key, without dropped keys and without values that JSON cannot express."""
    defaults: dict[str, Any] = {}
    for name, f in _fields(config_class).items():
        value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if not _is_dropped(name) and _has_json_form(value):
            defaults[name] = _plain(value)
    return defaults


def _undeclared(config_class: type) -> dict[str, Any]:
    """Return the keys that ``__post_init__`` reads from its ``kwargs``, with their defaults. The value is None for a
    default that is computed."""
    from transformers.configuration_utils import PreTrainedConfig

    defaults: dict[str, Any] = {}
    for parent in config_class.__mro__:
        if parent is PreTrainedConfig:
            break
        method = parent.__dict__.get("__post_init__")
        if method is None:
            continue
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method)))):
            if not (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("pop", "get", "setdefault")
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "kwargs"
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                continue
            key = node.args[0].value
            try:
                default = ast.literal_eval(node.args[1]) if len(node.args) > 1 else None
            except ValueError:
                default = None
            if not _is_dropped(key) and _has_json_form(default):
                defaults.setdefault(key, _plain(default))
    return defaults


def _is_dropped(key: str) -> bool:
    return bool(HARMLESS_NAMES.search(key) or OTHER_MODALITIES.search(key))


def _has_json_form(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, (list, tuple)):
        return all(_has_json_form(v) for v in value)
    if isinstance(value, dict):
        return all(_has_json_form(v) for v in value.values())
    return value is None or isinstance(value, (bool, int, str))


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not _is_dropped(str(k)) and _has_json_form(v)}
    return value


def render(records: dict[str, dict[str, Any]]) -> str:
    """Return the text of the file. It is sorted and compact, with one model type per line, so that a diff shows which
    types change."""
    return f'{{"transformers":{json.dumps(VERSION)},"types":{{\n{_lines(records)}\n}}}}\n'


def _lines(records: dict[str, dict[str, Any]]) -> str:
    return ",\n".join(
        f"{json.dumps(name)}:{json.dumps(record, sort_keys=True, separators=(',', ':'))}"
        for name, record in records.items()
    )


def render_towers(records: dict[str, dict[str, Any]]) -> str:
    """Return the text of the second file, with one model type per line."""
    groups = []
    for group, entries in records.items():
        groups.append(f"{json.dumps(group)}:{{\n{_lines(entries)}\n}}")
    return f'{{"transformers":{json.dumps(VERSION)},\n' + ",\n".join(groups) + "}\n"


def check() -> list[str]:
    """Return the differences between the files and the installed transformers, one line per model type."""
    fresh = json.loads(render(facts()))["types"]
    problems = _differences(fresh, json.loads(PATH.read_text(encoding="utf-8"))["types"])
    stored = json.loads(TOWERS_PATH.read_text(encoding="utf-8"))
    for group, records in json.loads(render_towers(tower_facts())).items():
        if group != "transformers":
            problems += _differences(records, stored[group])
    return sorted(problems)


def _differences(fresh: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    problems = [f"{name}: in transformers, but not in the file" for name in fresh.keys() - stored.keys()]
    problems += [f"{name}: in the file, but not in transformers" for name in stored.keys() - fresh.keys()]
    for name in fresh.keys() & stored.keys():
        if fresh[name] != stored[name]:
            parts = [p for p in {**fresh[name], **stored[name]} if fresh[name].get(p) != stored[name].get(p)]
            problems.append(f"{name}: {', '.join(sorted(parts))}")
    return problems


def main() -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(description="Write or check the two defaults.json of llmbench.")
    parser.add_argument("--check", action="store_true", help="compare with the installed transformers")
    arguments = parser.parse_args()
    import transformers

    if transformers.__version__ != VERSION:
        print(
            f"error: transformers {transformers.__version__} is installed, but this tool needs {VERSION}",
            file=sys.stderr,
        )
        return 3
    if arguments.check:
        problems = check()
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1 if problems else 0
    PATH.write_text(render(facts()), encoding="utf-8")
    TOWERS_PATH.write_text(render_towers(tower_facts()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
