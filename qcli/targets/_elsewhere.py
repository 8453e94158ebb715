"""What the targets for other runtimes than onnxruntime's CPU provider share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from qcli.plugins import choice_of
from qcli.targets._support import STANDARD_ONLY, Support, Traits
from qcli.types import Grid


class Elsewhere(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of operators, with reasons for those that are not in it."""

    table: ClassVar[Mapping[str, Support]]
    reasons: ClassVar[Mapping[str, str]] = {}
    otherwise: ClassVar[str]
    weights: ClassVar[tuple[str, ...]]
    activations: ClassVar[tuple[str, ...]]

    def support(self, operator: str, domain: str) -> Support | None:
        """The row of an operator, or None where it stays float."""
        return self.table.get(operator) if domain in STANDARD_ONLY else None

    def refusal(self, operator: str, domain: str) -> str:
        """Why an operator stays float."""
        if domain not in STANDARD_ONLY:
            return f"operators of the domain '{domain}' have no integer form"
        return self.reasons.get(operator, self.otherwise)

    def formats(self, role: str) -> tuple[str, ...]:
        """The formats that it takes for a role, the usual ones first."""
        return self.weights if role == "weight" else self.activations

    def pair_limited(self) -> bool:
        """Sums of products never saturate."""
        return False

    def traits(self) -> Traits:
        """What the runtime is like as a whole."""
        raise NotImplementedError

    def misfit(self, role: str, grid: Grid, encoding: str) -> str | None:
        """Why the runtime does not take this grid in this encoding for a role, or None."""
        return None


def asymmetric(role: str, grid: Grid) -> str | None:
    """The reason of runtimes whose zero points are all zero."""
    unsigned = choice_of(grid.format).name.startswith("u")
    return (
        f"its zero points are all 0, so the {role} grid must be signed and symmetric"
        if (unsigned or not grid.symmetric)
        else None
    )


def not_stored(grid: Grid, encoding: str) -> str | None:
    """The reason of runtimes that take 4 bits in weights that are only stored."""
    if choice_of(grid.format).name.endswith("int4") and encoding != "weight_only":
        return "it takes 4 bits only in weights that are stored: encoding: weight_only"
    return None
