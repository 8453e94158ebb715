"""What the acceptance run found, check by check."""

from __future__ import annotations

from qcli.report import Environment
from qcli.types import Noun


class Check(Noun, frozen=True, kw_only=True):
    """One line: `measured` against `target` ("<= 0.28"), and what onnxruntime min-max reaches there, if compared.

    `measured` is null where nothing could be measured; `note` then says why.
    """

    subject: str
    what: str
    target: str
    measured: float | None
    met: bool
    onnxruntime: float | None = None
    note: str = ""


class AcceptanceReport(Noun, frozen=True, kw_only=True):
    """What `--json` holds; see README.md."""

    schema: int = 1
    benchmark: str = "acceptance"
    environment: Environment
    met: bool
    checks: tuple[Check, ...]
