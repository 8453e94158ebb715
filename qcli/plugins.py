"""A folder is a registry: `qcli/ranges/percentile.py` is what `range: percentile` means.

A plug-in is one module with one public class, a frozen `msgspec.Struct` whose fields are its options in a
recipe. Third parties add theirs through entry points of the group `qcli.<kind>`. Names are listed without
importing anything; a module is imported when it is named.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from typing import Any

from qcli.configure import convert
from qcli.errors import UsageError, did_you_mean
from qcli.types import Choice, Spec

KINDS = ("encodings", "formats", "metrics", "ranges", "roundings", "samples", "stats", "steps", "targets")


@cache
def names(kind: str) -> tuple[str, ...]:
    """The names of all plug-ins of one kind, sorted; imports none of them."""
    own = (path.name for path in files(f"qcli.{kind}").iterdir() if path.name.endswith(".py"))
    ours = {name.removesuffix(".py") for name in own if not name.startswith("_")}
    return tuple(sorted(ours | set(_entry_points(kind))))


@cache
def load(kind: str, name: str) -> type[Any]:
    """The class behind a name. Raises UsageError with a suggestion if there is none."""
    if name not in names(kind):
        raise UsageError(f"unknown {kind[:-1]} '{name}'", did_you_mean(name, names(kind)))
    third_party = _entry_points(kind).get(name)
    if third_party is not None:
        loaded: type[Any] = third_party.load()
        return loaded
    module = import_module(f"qcli.{kind}.{name}")
    public = [
        item
        for key, item in vars(module).items()
        if isinstance(item, type) and item.__module__ == module.__name__ and not key.startswith("_")
    ]
    if len(public) != 1:
        raise TypeError(f"{module.__name__} must hold exactly one public class, has {len(public)}")
    return public[0]


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
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"qcli.{kind}")}
