"""Untrusted plain data (YAML, JSON, options) into frozen typed values, with errors made for people."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from qcli.errors import UsageError, did_you_mean

T = TypeVar("T")

_UNKNOWN_FIELD = re.compile(r"unknown field `([^`]*)`")
_PATH = re.compile(r" - at `\$?\.?([^`]*)`")


def convert(data: Any, kind: type[T], *, where: str) -> T:
    """`data` as a `kind`. Raises UsageError that names the key, the expected type and the nearest known key."""
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _usage_error(str(error), kind, where) from None


def _usage_error(text: str, kind: type[Any], where: str) -> UsageError:
    path = _PATH.search(text)
    place = f"{where}: {path.group(1)}" if path and path.group(1) else where
    unknown = _UNKNOWN_FIELD.search(text)
    if unknown:
        return UsageError(f"{place}: unknown key '{unknown.group(1)}'", _suggestion(unknown.group(1), kind))
    reason = _PATH.sub("", text).replace("`", "'")
    return UsageError(f"{place}: {reason[0].lower()}{reason[1:]}", "see 'qcli recipe schema' for what each key takes")


def _suggestion(word: str, kind: type[Any]) -> str:
    return did_you_mean(word, _field_names(kind, set())) or "it takes no options"


def _field_names(kind: Any, seen: set[Any]) -> set[str]:
    """The names of all fields of `kind` and of the structs nested in it."""
    names: set[str] = set()
    for item in (kind, *getattr(kind, "__args__", ())):
        if item in seen or not (isinstance(item, type) and issubclass(item, msgspec.Struct)):
            continue
        seen.add(item)
        for field in msgspec.structs.fields(item):
            names.add(field.encode_name)
            names |= _field_names(field.type, seen)
    return names
