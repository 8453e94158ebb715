"""What the steps share."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from qcli.graph import Model
from qcli.types import Request


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of the graph that keeps its outputs. Subclasses override `run`, or `run_measured` and `requests`."""

    def requests(self, model: Model) -> tuple[Request, ...]:
        """The statistics of the current model that the step needs; none for a data-free step."""
        return ()

    def run(self, model: Model) -> int:
        """Changes the model in place; the number of changes."""
        raise NotImplementedError
