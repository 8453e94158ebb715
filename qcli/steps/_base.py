"""What the steps share."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from qcli.contracts import FinishingWork
from qcli.graph import Model
from qcli.statistics import Statistics
from qcli.types import Request


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the graph that keeps its outputs. Data-free steps override `run`.

    One that `changes_precision` keeps them as far as the precision of the model before it goes.
    """

    changes_precision: ClassVar[bool] = False

    finishes: ClassVar[bool] = False

    domain: ClassVar[str] = ""
    """That of the operators that it makes, which a target may lack."""

    looks_for: ClassVar[tuple[str, ...]] = ()
    """Operators without any of which it has nothing to do; none if that is not known."""

    worth_db: ClassVar[float | None] = None
    """How much the quantized model must gain by the step, for steps that are there for that; None for others."""

    def run(self, model: Model) -> int:
        """Changes the model in place; the number of changes."""
        raise NotImplementedError


class MeasuredStep(Step, frozen=True, kw_only=True):
    """A step that looks at statistics of the model's activations. Subclasses override `requests`, `run_measured`."""

    def works_blindly(self) -> bool:
        """True if `run` can do something without samples."""
        return False

    def requests(self, model: Model) -> tuple[Request, ...]:
        """What must be measured; nothing if the step has nothing to do."""
        raise NotImplementedError

    def run_measured(self, model: Model, statistics: Statistics) -> int:
        """Changes the model in place; the number of changes."""
        raise NotImplementedError


class FinishStep(Step, frozen=True, kw_only=True):
    """A step that mends a quantized model; it stands under `finish` in a recipe."""

    finishes: ClassVar[bool] = True

    def finish(self, work: FinishingWork) -> bool:
        """False if there was nothing that it could do, be it for want of samples."""
        raise NotImplementedError
