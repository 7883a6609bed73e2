"""Typed access to the keys of a Hugging Face config.

If a config lacks a key, its value is the default of the model's class in transformers (`defaults.json`). The Config
records the keys that an importer reads. A key that no importer reads might change a figure, so it makes the spec
approximate. Exceptions are a key that has its default value, a harmless key, and a key that names a size: a config with
such a key is refused (`unread_keys.py`).
"""

from __future__ import annotations

from typing import Any

from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.base import LARGEST
from llmbench.spec.huggingface.activations import known_activation
from llmbench.spec.huggingface.unread_keys import is_harmless, is_unused_window, names_a_size

TOKEN_KEYS = ("_token_id", "_token_ids", "_token_index", "_token")
"""Endings of the config keys whose value is a token id."""

_NOTHING: tuple[object, ...] = (None, False, "", 0, 0.0, [], {})
"""Values that switch a feature off. A key with such a value changes no figure, even if llmbench does not know the
key."""

_SEVERAL_TYPES = frozenset({"gating", "sliding_window_pattern"})
"""Keys whose class in transformers accepts values of several types."""

_REQUIRED: Any = object()

MOST_TEXTS = 200
"""The largest number of reasons and of notes of one config. A stranger's config can have a million unknown keys."""
MOST_CHARACTERS = 500
"""The largest length of a reason or a note. A key of a stranger's config can have any length."""


class Config:
    """A Hugging Face config, or a nested object of a config.

    - values: the keys of the config with their values.
    - defaults: the values of missing keys, from the model's config class in transformers.
    - aliases: maps the standard name of a key to its name in the model's config class (hidden_size: n_embd).
    - path: the prefix of key names in messages. It is empty, or the key of the nested object and a dot.

    Each method that returns a number, a string, a list or an object raises SpecError if the value has another type.
    """

    def __init__(
        self,
        values: dict[str, Any],
        *,
        model_type: str,
        defaults: dict[str, Any],
        aliases: dict[str, str],
        path: str = "",
    ) -> None:
        self.model_type = model_type
        self.path = path
        self.approximate: list[str] = []
        self.undescribed: list[str] = []
        self.notes: list[str] = []
        self._standard = {own: standard for standard, own in aliases.items()}
        self._values: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        for key, value in values.items():
            name = self._name(key)
            first = spelled.setdefault(name, key)
            if not _same(self._values.setdefault(name, value), value):
                self.doubt(f"config keys {path}{first} and {path}{key} mean the same but have different values")
        self._spelled = frozenset(values)
        if aliases:
            defaults = {self._name(key): value for key, value in defaults.items()}
        self._defaults = defaults
        self._for_layers: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._read: set[str] = set()
        for key, value in self._values.items():
            self._check_type(key, value, self._defaults.get(key))

    def _name(self, key: str) -> str:
        """Return the standard name of a key (hidden_size for n_embd)."""
        return self._standard.get(key, key)

    def __contains__(self, key: str) -> bool:
        """Return whether the config contains the key, under the standard name or under the name in the config class.

        The result is false if the config lacks the key and only transformers has a default value for it.
        """
        return self._name(key) in self._values

    def spells(self, key: str) -> bool:
        """Return whether the config has the key under exactly this name."""
        return key in self._spelled

    @property
    def has_class(self) -> bool:
        """Whether transformers has a class for the config, whose default values are known."""
        return bool(self._defaults)

    def declares(self, key: str) -> bool:
        """Return whether the class of the config has a default value for the key."""
        return self._defaults.get(self._name(key)) is not None

    @property
    def read(self) -> frozenset[str]:
        """The keys that were read, by their standard names."""
        return frozenset(self._read)

    def put(self, key: str, value: Any) -> None:
        """Set the value of a key. Importers use it if they derive the value from other keys."""
        self._values[self._name(key)] = value
        self._for_layers = None

    def rename(self, **keys: str) -> None:
        """Copy the value of each `alias` to `key`, for the given pairs `alias=key`, if the config has no `key`."""
        for alias, key in keys.items():
            if alias in self and key not in self:
                self.put(key, self.get(alias))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key: first from the config, then from the defaults of the class, then `default`."""
        key = self._name(key)
        self._read.add(key)
        if key in self._values:
            return self._values[key]
        return self._defaults.get(key, default)

    def first(self, *keys: str) -> Any:
        """Return the first value among `keys` that is not null, or None. All `keys` are marked as read."""
        values = [self.get(key) for key in keys]
        return next((value for value in values if value is not None), None)

    def ignore(self, *keys: str) -> None:
        """Mark keys as read, because they change no figure of this model type.

        Each string contains one key, or several keys separated by spaces.
        """
        self._read.update(self._name(key) for text in keys for key in text.split())

    def size(self, key: str, default: Any = _REQUIRED) -> int:
        """Return the value of `key`, a whole number of at least 1. If the key is null or absent, return `default`."""
        value = self.get(key)
        if value is None and default is not _REQUIRED:
            return int(default)
        return self._whole(key, value, 1)

    def size_or_none(self, key: str) -> int | None:
        """Return the value of `key`, a whole number of at least 1. Return None if it is null or absent."""
        return None if self.get(key) is None else self.size(key)

    def size_or_auto(self, key: str, automatic: int) -> int:
        """Return the value of `key`, a whole number of at least 1. "auto", null and absent mean `automatic`."""
        return automatic if self.get(key) in ("auto", None) else self.size(key)

    def optional_size(self, key: str) -> int | None:
        """Return the value of `key`, a whole number of at least 1. Return None if it is null, absent or 0."""
        return self.count(key) or None

    def window(self, key: str = "sliding_window") -> int | None:
        """Return the sliding window: the most attention keys that a query can see. None means no window.

        `key` is the config key of the window. If its value is 0, transformers hides all attention keys from all
        queries. The result is then None, and the model is marked as not buildable. -1 means no window.
        """
        if self.get(key) == 0 and self.get(key) is not False:
            self.unbuildable(f"{key} = 0: transformers then hides all attention keys from all queries")
        return None if self.get(key) == -1 else self.optional_size(key)

    def count(self, key: str, default: int = 0) -> int:
        """Return the value of `key`, a whole number of at least 0. If the key is null or absent, return `default`."""
        value = self.get(key)
        return default if value is None else self._whole(key, value, 0)

    def flag(self, key: str, default: bool = False) -> bool:
        """Return the value of `key`, true or false. If the key is null or absent, return `default`."""
        value = self.get(key)
        if value is None:
            return default
        if value not in (0, 1) or not isinstance(value, (bool, int)):
            raise self.error(key, f"must be true or false, not {_shown(value)}")
        return bool(value)

    def first_number(self, *keys: str, default: float) -> float:
        """Return the first number among `keys` that is not null, or `default`. All `keys` are marked as read."""
        numbers = [self.optional_number(key) for key in keys]
        return next((number for number in numbers if number is not None), default)

    def number(self, key: str, default: float) -> float:
        """Return the value of `key`, a finite number. If the key is null or absent, return `default`."""
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"must be a number, not {_shown(value)}")
        if not -LARGEST <= value <= LARGEST:
            raise self.error(key, f"must be between {-LARGEST:g} and {LARGEST:g}, not {_shown(value)}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """Return the value of `key`, a finite number. If the key is null or absent, return None."""
        return None if self.get(key) is None else self.number(key, 0.0)

    def first_text(self, *keys: str, default: str) -> str:
        """Return the first string among `keys` that is not null, or `default`. All `keys` are marked as read."""
        texts = [self.text(key) for key in keys]
        return next(filter(None, texts), default)

    def text(self, key: str, default: str = "") -> str:
        """Return the value of `key`, a string. If the key is null or absent, return `default`."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, not {_shown(value)}")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """Return the value of `key`, a JSON object. If the key is null or absent, return an empty dict."""
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(key, f"must be an object, not {_shown(value)}")
        return value

    def entries(self, key: str, length: int | None = None, *, nested: bool = False) -> list[Any] | None:
        """Return the value of `key`, a list. If the key is null or absent, return None.

        - length: the number of entries that the list must have. None: any number.
        - nested: the entries may be lists or objects. Otherwise they must be plain values.

        Raises SpecError if the value does not satisfy these conditions.
        """
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.error(key, f"must be a list, not {_shown(value)}")
        if not nested and any(isinstance(entry, (list, dict)) for entry in value):
            raise self.error(key, f"must be a list of plain values, not {_shown(value)}")
        if length is not None and len(value) != length:
            raise self.error(key, f"must have {length} entries, one per layer, not {len(value)}")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return the value of `key`, a list of finite numbers. If the key is null or absent, return no number."""
        entries = self.entries(key) or []
        listed = self.nested(key, {str(place): entry for place, entry in enumerate(entries)})
        return tuple(listed.number(str(place), 0.0) for place in range(len(entries)))

    def sub(self, key: str, *, defaults: dict[str, Any] | None = None) -> Config:
        """Return the object under `key` as a Config of its own.

        `defaults`: the values of keys that the object lacks. Without this argument, transformers' defaults apply.
        The caller must call `doubt_unread` on the returned Config too.
        """
        return self.nested(key, self.table(key), defaults or self._defaults.get(key) or {})

    def nested(self, path: str, values: dict[str, Any], defaults: dict[str, Any] | None = None) -> Config:
        """Return an object inside the config as a Config of its own. `path`: its key, or its keys joined by dots."""
        nested = Config(
            values, model_type=self.model_type, defaults=defaults or {}, aliases={}, path=f"{self.path}{path}."
        )
        nested.approximate, nested.undescribed, nested.notes = self.approximate, self.undescribed, self.notes
        return nested

    def layer(self, index: int, derived: dict[str, Any] | None = None) -> Config:
        """Return the config of one layer: this config, in which other values replace some values.

        The key `per_layer_config` states these values. It maps the index of a layer to an object.

        - index: the index of the layer.
        - derived: the values that replace others if the config has no `per_layer_config`.

        The caller must call `doubt_unread` on the returned Config too.
        """
        if self._for_layers is None:  # the same tables for all layers: a config can have many keys and many layers
            by_index = {layer.lstrip("0") or "0": values for layer, values in self.table("per_layer_config").items()}
            self._for_layers = by_index, {**self._defaults, **self._values}
        stated, defaults = self._for_layers
        own = stated.get(str(index), {}) if "per_layer_config" in self else derived or {}
        if not isinstance(own, dict):
            raise self.error("per_layer_config", f"must have an object for layer {index}, not {_shown(own)}")
        own = {self._name(key): value for key, value in own.items()}
        return self.nested("per_layer_config", own, defaults)

    def require(self, key: str, *allowed: Any) -> None:
        """Mark the spec as approximate if the value of `key` is not in `allowed`. A null or absent key is always
        accepted."""
        value = self.get(key)
        if value is not None and value not in allowed:
            known = " or ".join(map(_shown, allowed))
            self.doubt(f"config key {self.path}{key} = {_shown(value)} is not understood; only {known} is supported")

    def doubt(self, reason: str) -> None:
        """Mark the spec as approximate. Every output shows the reason."""
        _add(self.approximate, reason)

    def unbuildable(self, reason: str) -> None:
        """Mark the PyTorch model as one that llmbench cannot build, and add a note with the reason.

        All shapes are exact, but the spec does not describe the whole computation.
        """
        _add(self.undescribed, reason)
        self.note(f"figures only, the PyTorch model cannot be built: {reason}")

    def note(self, text: str) -> None:
        """Add a note that is shown below the figures."""
        _add(self.notes, text)

    def doubt_unread(self, *, of_tower: bool = False) -> None:
        """Mark the spec as approximate for each key that was not read and might change a figure.

        Each of these keys gives one reason. A key whose value is an activation function changes no figure, but then
        the spec does not describe the whole computation. Raises UnsupportedError for a key that names a size.

        `of_tower`: this is the config of a tower for another modality. Its unknown sizes are doubts.
        """
        for key, value in self._values.items():
            if key in self._read or key.endswith(TOKEN_KEYS):
                continue
            if is_harmless(key, value, of_tower=of_tower) or is_unused_window(key, value, self._values):
                continue
            if key in self._defaults:
                if _same(value, self._defaults[key]):
                    continue
            elif any(value is nothing or value == nothing for nothing in _NOTHING):
                continue
            what = f"config key {self.path}{key} = {_shown(value)}"
            if names_a_size(key, value) and not of_tower:
                raise UnsupportedError(
                    f"{what} names a size that llmbench does not know for the model type `{self.model_type[:60]}`",
                    hint="for the figures without it, remove the key from a copy of config.json",
                )
            if isinstance(value, str) and known_activation(value):
                self.unbuildable(f"{what} is not understood")
            else:
                self.doubt(f"{what} is not understood")

    def _check_type(self, key: str, value: Any, default: Any) -> None:
        """Raise SpecError if a value cannot have the type of its default. A null, and the id of a token, may.

        A list may replace a number: some models have one number per layer. The reader of the key then decides.
        """
        if value is None or default is None or key.endswith(TOKEN_KEYS) or key in _SEVERAL_TYPES:
            return
        if isinstance(default, bool):
            fits, what = value in (0, 1) and isinstance(value, int), "true or false"
        elif isinstance(default, (int, float)):
            fits, what = isinstance(value, (int, float, list)) and not isinstance(value, bool), "a number"
        elif isinstance(default, str):
            fits, what = isinstance(value, str) or (default == "auto" and type(value) is int), "a string"
        else:
            fits = isinstance(value, type(default))
            what = "a list" if isinstance(default, list) else "an object"
        if not fits:
            raise self.error(key, f"must be {what}, not {_shown(value)}")

    def error(self, key: str, what: str) -> SpecError:
        """Return a SpecError whose message begins with the key."""
        return SpecError(f"config {self.path}{key}: {what}")

    def _whole(self, key: str, value: Any, least: int) -> int:
        if value is None:
            raise self.error(key, f"is missing; `{self.model_type}` needs it")
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not least <= value <= 2**31:
            raise self.error(key, f"must be a whole number from {least} to 2^31, not {_shown(value)}")
        return value


def _same(left: Any, right: Any) -> bool:
    return bool(left == right) and isinstance(left, bool) == isinstance(right, bool)


def _add(texts: list[str], text: str) -> None:
    """Append a text that is not in the list yet. If the list is full, its last text says so."""
    if len(texts) > MOST_TEXTS:
        return
    text = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
    if text not in texts:
        texts.append(text if len(texts) < MOST_TEXTS else "there are more, which are not listed")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
