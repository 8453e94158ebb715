"""Damaged files become one InputError that names the file."""

from __future__ import annotations

import csv
import lzma
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcli.errors import InputError

# What zipfile, numpy, Pillow, csv and the tensor parser raise on damaged bytes. AttributeError and
# MemoryError stay out: those are our bug or the machine's limit.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    RuntimeError,
    csv.Error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)

_LONGEST_REASON = 160


@contextmanager
def refusing(path: Path, what: str, hint: str = "") -> Iterator[None]:
    """Whatever a parser raises inside becomes InputError "<path>: <what>: <reason>"; warnings are dropped.

    InputErrors pass through. Do not `yield` to a caller inside: its errors would be taken for damage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except _DAMAGE as error:
        raise InputError(f"{path}: {what}: {_reason(error)}", hint) from error


def _reason(error: BaseException) -> str:
    """The first line of the error's text, without the path that an OSError repeats."""
    text = getattr(error, "strerror", None) or str(error)
    line = text.strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"
