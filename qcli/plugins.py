"""A folder is a registry: `qcli/ranges/percentile.py` is what `range: percentile` means.

A plug-in is one module with one public class, a frozen `msgspec.Struct` whose fields are its options in a
recipe. A file whose name ends in a span is a family: `formats/int2_16.py` is int2, int3 and so on to int16, and its
class learns which of them it is from its class variable `width`. Third parties add theirs through entry points of the
group `qcli.<kind>`. Names are listed without importing anything; a module is imported when it is named.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any

import msgspec

from qcli.configure import convert
from qcli.errors import UsageError, did_you_mean
from qcli.types import Choice, Spec

KINDS = ("encodings", "formats", "metrics", "ranges", "roundings", "samples", "stats", "steps", "targets")


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names of all plug-ins of one kind, sorted; imports none of them."""
    return tuple(sorted({*_own(kind), *_entry_points(kind)}))


@cache
def load(kind: str, name: str) -> type[Any]:
    """The class behind a name. Raises UsageError with a suggestion if there is none."""
    if name not in names(kind):
        raise UsageError(f"unknown {kind[:-1]} '{name}'", did_you_mean(name, names(kind)))
    third_party = _entry_points(kind).get(name)
    if third_party is not None:
        loaded: type[Any] = third_party.load()
        return loaded
    file, width = _own(kind)[name]
    module = import_module(f"qcli.{kind}.{file}")
    public = [
        item
        for key, item in vars(module).items()
        if isinstance(item, type) and item.__module__ == module.__name__ and not key.startswith("_")
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must hold exactly one public class, has {len(public)}")
    return public[0] if width is None else _member(public[0], width)


def choice_of(spec: Spec, where: str = "recipe") -> Choice:
    """`mse` or `{percentile: {keep: 99.9}}` as a Choice. Raises UsageError for a mapping of several names."""
    if isinstance(spec, str):
        return Choice(name=spec)
    if len(spec) != 1:
        hint = "write it as {name: {option: value}}"
        raise UsageError(f"{where}: expected one name with its options, got {len(spec)}", hint)
    name, options = next(iter(spec.items()))
    return Choice(name=name, options=options or {})


def create(kind: str, spec: Spec) -> Any:
    """An instance of the plug-in, its options validated. Raises UsageError that names the option."""
    choice = choice_of(spec, kind)
    return convert(choice.options, load(kind, choice.name), where=f"{kind[:-1]} '{choice.name}'")


@cache
def _own(kind: str) -> dict[str, tuple[str, int | None]]:
    """The file of each plug-in of qcli's own, with its width where the file is a family's."""
    found: dict[str, tuple[str, int | None]] = {}
    for path in files(f"qcli.{kind}").iterdir():
        file = path.name.removesuffix(".py")
        if file == path.name or file.startswith("_"):
            continue
        family = _FAMILY.fullmatch(file)
        if family is None:
            found[file] = (file, None)
        else:
            first, last = int(family["first"]), int(family["last"])
            found.update({f"{family['name']}{width}": (file, width) for width in range(first, last + 1)})
    return found


_FAMILY = re.compile(r"(?P<name>[a-z_]*[a-z])(?P<first>\d+)_(?P<last>\d+)")
"""The name of a file that stands for several plug-ins."""


def _member(family: type[Any], width: int) -> type[Any]:
    """The class of one of a family."""
    name = f"{family.__name__}{width}"
    return msgspec.defstruct(
        name, [], bases=(family,), namespace={"width": width}, frozen=True, forbid_unknown_fields=True
    )


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"qcli.{kind}")}
