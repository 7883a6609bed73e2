"""Low-rank adapters (LoRA, arXiv 2106.09685): the text of `--lora`, and what it says."""

from __future__ import annotations

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.items import Reader, decimal, flag, read_items

ALIASES = {"wq": "q", "wk": "k", "wv": "v", "output": "o", "out": "o", "w1": "gate", "w2": "down", "w3": "up"}
"""Other names of matrices, in PEFT and torchtune."""

_OTHER_NAMES = {
    "rank": "r={}",
    "lora_r": "r={}",
    "lora_rank": "r={}",
    "lora_alpha": "alpha={}",
    "lora_dropout": "dropout={}",
    "target_modules": "targets={}",
    "modules": "targets={}",
    "target": "targets={}",
    "use_dora": "dora",
}
"""Names of the items in PEFT and torchtune."""

MOST = 2**20
"""The largest rank."""


DEFAULT_TARGETS = ("q", "v")
"""The matrices with adapters if the user names none, as in the paper."""


class Adapters(msgspec.Struct, frozen=True, kw_only=True):
    """Low-rank adapters on some matrices of a model whose own weights are frozen.

    A matrix W with `in` inputs and `out` outputs becomes W + alpha/r · B A, with A of r × in and B of out × r elements.

    r: rank of an adapter. alpha: scale of an adapter; it changes no figure of llmbench.
    targets: names of the adapted matrices, such as q or q_proj. `attention` and `mlp` stand for all matrices of these
        parts, and `all-linear` for all matrices of the layers except routers and experts.
    dropout: share of the inputs of an adapter that dropout sets to 0. With dropout, each adapter saves its own copy of
        the input, and a mask.
    dora: whether each adapter also trains the magnitude of every output (DoRA, arXiv 2402.09353).
    """

    r: int
    alpha: float = 16.0
    targets: tuple[str, ...] = DEFAULT_TARGETS
    dropout: float = 0.0
    dora: bool = False

    @classmethod
    def parse(cls, text: str) -> Adapters:
        """Parse a text such as `r=16,alpha=32,targets=q,v,dropout=0.05,dora`. Targets may also be joined by `+`.

        Raises SpecError if an item is unknown or has a wrong value. The message names the item.
        """
        items: list[str] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            if items and items[-1].startswith("targets=") and "=" not in item and item != "dora":
                items[-1] += f"+{item}"
            else:
                items.append(item)
        readers: dict[str, Reader] = {
            "r": _rank,
            "alpha": _alpha,
            "targets": _targets,
            "dropout": _dropout,
            "dora": flag,
        }
        example = "r=16,alpha=32,targets=q,v"
        fields = read_items(
            ",".join(items), "lora", readers, error=SpecError, example=example, other_names=_OTHER_NAMES
        )
        if "r" not in fields:
            raise SpecError("lora: the rank is missing", hint=f"like {example}")
        return cls(**fields)

    def __str__(self) -> str:
        parts = [f"r={self.r}", f"alpha={self.alpha:g}", f"targets={','.join(self.targets)}"]
        parts += [f"dropout={self.dropout:g}"] if self.dropout else []
        return ",".join([*parts, *(["dora"] if self.dora else [])])


def _rank(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 8 or not 1 <= int(text) <= MOST:
        raise ValueError(f"must be a whole number from 1 to {MOST:,}")
    return int(text)


def _alpha(text: str) -> float:
    value = decimal(text)
    if value <= 0:
        raise ValueError("must be above 0")
    return value


def _dropout(text: str) -> float:
    value = decimal(text)
    if not 0 <= value < 1:
        raise ValueError("must be at least 0 and below 1")
    return value


def _targets(text: str) -> tuple[str, ...]:
    names = [name.lower().removesuffix("_proj") for name in text.split("+") if name]
    if not names:
        raise ValueError("needs names of matrices")
    return tuple(dict.fromkeys(ALIASES.get(name, name) for name in names))
