"""Rules as text. They map the tensors in a file to the parameters of a model.

A family's table has one rule per line:

    ours                      theirs                    transforms
    attention.q_proj.*        self_attn.q_proj.*
    attention.q_proj.*        attn.c_attn.*             t plain.q
    ffn.experts.gate_proj     mlp.experts.{e}.w1.weight

`ours` is the name of a parameter, `theirs` the name of a tensor in the file. Names may contain these signs:

- `{i}`: the number of the layer.
- `*`: the last part of the name (weight or bias), which is equal on both sides.
- `{e}`: the number of an expert or of a head. The tensors of all experts or heads are stacked along the first
  dimension.
- `a+b`: the tensors a and b, joined along the first dimension.
- `-` instead of a tensor: the files do not store the parameter. The transforms compute its values.

One parameter may have several rules, because files differ. The first rule whose tensors exist in the file applies.
`llmbench.model.weights.transforms` defines the transforms.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Rule(NamedTuple):
    """One line of a table.

    - `pattern`: matches the names of parameters.
    - `theirs`: the names of the tensors in the file, which are joined. Empty: the transforms compute the values.
    - `transforms`: the names of the transforms, in order.
    """

    pattern: re.Pattern[str]
    theirs: tuple[str, ...]
    transforms: tuple[str, ...]

    def names(self, ours: str, copies: int) -> list[list[str]] | None:
        """Return the names of the tensors that fill the parameter `ours`. None: the rule does not match.

        The result is a list of lists. If the rule stacks tensors, there is one inner list per expert or head. Otherwise
        there is only one inner list. The tensors in an inner list are joined.
        """
        match = self.pattern.fullmatch(ours)
        if match is None:
            return None
        parts = match.groupdict()
        names = [name.replace("{i}", parts.get("i", "")).replace("*", parts.get("rest", "")) for name in self.theirs]
        if not any("{e}" in name for name in names):
            return [names]
        return [[name.replace("{e}", str(expert)) for name in names] for expert in range(copies)]

    @property
    def stacked(self) -> bool:
        """Whether the rule stacks the tensors of experts or heads."""
        return any("{e}" in name for name in self.theirs)


def rules(text: str, *, ours: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """Parse the rules of a table.

    - `ours`: a prefix that is added to the names of the parameters.
    - `theirs`: a prefix that is added to the names of the tensors in the file.
    """
    table = []
    for line in text.strip().splitlines():
        words = line.split()
        if not words:
            continue
        assert len(words) >= 2, line
        pattern = re.escape(ours + words[0]).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", r"(?P<rest>\w+)")
        sources = () if words[1] == "-" else tuple(theirs + name for name in words[1].split("+"))
        table.append(Rule(re.compile(pattern), sources, tuple(words[2:])))
    return tuple(table)
