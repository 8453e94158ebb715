"""A job whose model is ready for calibration."""

from __future__ import annotations

from dataclasses import dataclass

from qcli.graph import Model
from qcli.recipe import Recipe
from qcli.sources import SampleStream
from qcli.types import Plan


@dataclass(frozen=True)
class Prepared:
    """A job up to its plan."""

    recipe: Recipe
    source: Model
    model: Model
    plan: Plan
    calibration: SampleStream | None
