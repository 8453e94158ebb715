"""The error tree. Every error a user can meet is one of these, and each owns its exit code.

    QcliError
    ├── UsageError          2   unknown option, unreadable or invalid recipe, a rule that matches nothing
    ├── InputError          3   model or sample unreadable, wrong name, shape or dtype, NaN or Inf
    ├── UnsupportedError    4   valid, but the target has no way to run it; already quantized
    ├── NothingToDoError    5   no samples found, nothing quantizable matched
    ├── RuntimeFailure      6   onnxruntime could not load or run a model
    └── ResourceError       7   out of memory, disk or time without a usable result

A failed gate is a result, not an error: the command line turns it into exit code 1. Anything else that
escapes is a bug in qcli and leaves with 70.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class QcliError(Exception):
    """An error for the user: `message` names the thing, `hint` says what to do about it."""

    exit_code = 70

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(QcliError):
    exit_code = 2


class InputError(QcliError):
    exit_code = 3


class UnsupportedError(QcliError):
    exit_code = 4


class NothingToDoError(QcliError):
    exit_code = 5


class RuntimeFailure(QcliError):
    exit_code = 6


class ResourceError(QcliError):
    exit_code = 7


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for a wrong word: the nearest known one, or the list of all."""
    choices = sorted(known)
    near = get_close_matches(word, choices, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(choices)}" if choices else ""


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived: unwinds everything, as no `except Exception` holds it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
