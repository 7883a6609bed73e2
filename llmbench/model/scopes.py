"""Whose work is going on: of what runs inside a model, which op of the sizing table each step belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_OWN_FUNCTIONS: dict[Any, str] = {Tensor.clamp: "clip", F.rms_norm: "v_norm"}
"""Functions that a module calls for an op without a module."""

_AFTER = {
    "up_proj": "act",
    "transform": "act",
    "core": "gate",
    "g_proj": "gate",
    "shared_gate": "shared_scale",
    "lm_head": "soft_cap",
}
"""The op without a module that a module's own work is, once the part named before it has run."""


class Scopes(TorchFunctionMode):
    """Says whose work is going on: the module's whose forward runs, and within it the op's whose parameter is used, or
    that a function or what ran before it tells. `outputs`: storages that are an op of their own."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        super().__init__()
        self.names = names
        self.stack = [""]
        self.last: dict[str, str] = {}
        self.outputs: dict[int, str] = {}
        self.held: list[torch.UntypedStorage] = []  # so that no address of an output is used twice
        self.owners: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            op = name.removesuffix(".weight").removesuffix(".bias")
            if op in names:
                self.owners[parameter.untyped_storage()._cdata] = op

    @property
    def here(self) -> str:
        """The innermost scope."""
        return self.stack[-1]

    def enter(self, name: str) -> None:
        """Work from here on belongs to `name`."""
        self.last.pop(name, None)
        self.stack.append(name)

    def leave(self) -> None:
        """And now to what it did before."""
        part = self.stack.pop().rpartition(".")[2]
        self.last[self.here] = part

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Work inside belongs to `name`."""
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` in the scope of the parameter it is given, or of what it is."""
        owner = self._inside(_OWN_FUNCTIONS.get(func, ""))
        for argument in args:
            if isinstance(argument, Tensor):
                owner = self.owners.get(argument.untyped_storage()._cdata, owner)
        if not owner.startswith(f"{self.here}."):
            return func(*args, **(kwargs or {}))
        with self.within(owner):
            return func(*args, **(kwargs or {}))

    def output(self, name: str, result: Tensor) -> None:
        """This is the result of the op of that name, if there is one, whoever saves it."""
        if name in self.names:
            storage = result.untyped_storage()
            self.outputs[storage._cdata] = name
            self.held.append(storage)

    @property
    def own(self) -> str:
        """The innermost scope, or the op that its own work is."""
        return self._inside(_AFTER.get(self.last.get(self.here, ""), "")) or self.here

    def _inside(self, part: str) -> str:
        """The op of that name in the innermost scope, or nothing."""
        name = f"{self.here}.{part}".lstrip(".")
        return name if name in self.names else ""


class Attributed(TorchDispatchMode):
    """Adds what the counter counts to the scope it happens in; enter it after the counter."""

    def __init__(self, counter: FlopCounterMode, scopes: Scopes, found: dict[str, int]) -> None:
        super().__init__()
        self.counter, self.scopes, self.found = counter, scopes, found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, and see what was added."""
        before = self.counter.get_total_flops()
        out = func(*args, **(kwargs or {}))
        added = self.counter.get_total_flops() - before
        if added:
            here = self.scopes.here
            self.found[here] = self.found.get(here, 0) + added
        return out
