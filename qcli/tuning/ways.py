"""The ways in which a part can compute, and the rules that make it so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape

import msgspec

from qcli.plugins import choice_of
from qcli.tuning.parts import Part
from qcli.types import Entry, Grid, Match, Role, Rule, Spec

_MATRICES = ("MatMul", "Gemm")
_BLOCK = 32
_EIGHT_BITS = 4
"""The accuracy level of MatMulNBits that quantizes its inputs, in blocks as well."""


@dataclass(frozen=True, eq=False)
class Way:
    """`rules` name no nodes yet. `ops` are the operators that have such kernels, None is all of them."""

    name: str
    rules: tuple[Rule, ...] = ()
    ops: tuple[str, ...] | None = None

    def takes(self, part: Part) -> bool:
        return self.ops is None or (part.op in self.ops and part.weights is not None)

    def is_said_by(self, entries: Sequence[Entry]) -> bool:
        """Whether a part with these entries has become what the way says; planning refuses what would not pay."""
        wanted = {choice_of(rule.encoding).name for rule in self.rules if rule.encoding is not None}
        return wanted <= {choice_of(entry.encoding).name for entry in entries}

    def of(self, parts: Sequence[Part]) -> tuple[Rule, ...]:
        """The rules for these parts."""
        names = tuple(escape(part.key) for part in parts)
        if not names:
            return ()
        return tuple(
            msgspec.structs.replace(rule, match=msgspec.structs.replace(rule.match, name=names)) for rule in self.rules
        )


def _of_weights(encoding: Spec, grid: Grid | None = None) -> tuple[Rule, ...]:
    """Weights in integers for a kernel that reads floats."""
    stored = Rule(match=Match(role=Role.WEIGHT), encoding=encoding, grid=grid)
    return (stored, Rule(match=Match(role=Role.INPUT), keep="float"))


RECIPE = Way("as the recipe says")
STORED = Way("float, weights stored", _of_weights("weight_only"))
UNTOUCHED = Way("float", (Rule(keep="float"),))
DYNAMIC = Way("dynamic", _of_weights("dynamic"), _MATRICES)
_IN_BLOCKS = Grid(format="int8", symmetric=True, granularity="block", block=_BLOCK)
BLOCKS = Way("float, weights in blocks", _of_weights("weight_only", _IN_BLOCKS), _MATRICES)
NBITS = Way("dynamic in blocks", _of_weights({"matmul_nbits": {"accuracy_level": _EIGHT_BITS}}, _IN_BLOCKS), _MATRICES)

WAYS = (RECIPE, STORED, DYNAMIC, NBITS, BLOCKS, UNTOUCHED)
"""From here on a way is known by its number; the first is what every plan begins with."""


def rules_for(parts: Sequence[Part], ways: Sequence[int]) -> tuple[Rule, ...]:
    """The rules on top of a recipe that make each of the parts compute in its way."""
    rules: list[Rule] = []
    for number, way in enumerate(WAYS):
        rules += way.of([part for part, chosen in zip(parts, ways, strict=True) if chosen == number])
    return tuple(rules)


def told(ways: Sequence[int]) -> str:
    """A division in words: `4 dynamic, 3 float, of 30 parts`."""
    counts = ((way.name, sum(chosen == number for chosen in ways)) for number, way in enumerate(WAYS))
    changed = [f"{count} {name}" for name, count in counts if count and name != RECIPE.name]
    return f"{'; '.join(changed)}; of {len(ways)} parts" if changed else "as it is"
