"""Gates: conditions on the report, such as `accuracy.top1.drop <= 0.01`, that decide over the exit code."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

import msgspec

from qcli.errors import UsageError, did_you_mean
from qcli.report import GateResult, Report
from qcli.types import Noun

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

_SYNTAX = re.compile(r"\s*(?P<path>[^<>=!]+?)\s*(?P<comparison><=|>=|==|!=|<|>)\s*(?P<number>[^\s<>=!]+)\s*")

_ANY = "*"
"""Stands in a path for the name of an output or an operator."""

_COUNTS = ("kernels.by_kernel.", "size.bytes_by.weights.")
"""What counts kinds of things: of a kind that is not there, there are none."""

_LANGUAGE = "it is defined for samples with token ids [batch, length] and logits [batch, length, vocabulary] alone"

_NEEDS = (
    ("accuracy.top1", "labels", "give --labels FILE, or a labels.csv beside the samples"),
    ("accuracy.top5", "labels", "give --labels FILE, or a labels.csv beside the samples"),
    ("accuracy.agreement", "a classifier", "it is defined for an output of shape [N, C] alone"),
    ("accuracy.perplexity", "a language model", _LANGUAGE),
    ("accuracy.nll", "a language model", _LANGUAGE),
    ("accuracy", "validation samples", "give --eval DIR"),
    ("latency", "latency", "leave out --no-latency"),
    ("memory", "memory", "ask for it with --memory"),
    ("fallback", "a fallback", "name one in the recipe, as in fallback: {max_drop: 0.01}"),
    ("kernels", "a validated model", "use it with quantize, validate or tune"),
    ("size", "a validated model", "use it with quantize, validate or tune"),
)
"""What a part of the report is measured with: path, need, hint."""


class Gate(Noun, frozen=True, kw_only=True):
    """One condition: the number at `path` in the report, compared with `limit`."""

    text: str
    path: str
    comparison: str
    limit: float


def check_gates(texts: Sequence[str], lacking: Collection[str] = ()) -> tuple[Gate, ...]:
    """The gates, checked before the work.

    `lacking` says what will not be there ("labels", "latency", "validation samples"), so that a gate that
    needs it is refused now and not after an hour. Raises UsageError for a malformed gate, for a path that
    no report has, and for what is lacking.
    """
    gates = tuple(parse_gate(text) for text in texts)
    for gate in gates:
        for need, hint in _needs(gate.path):
            if need in lacking:
                raise UsageError(f"gate '{gate.text}' needs {need}", hint)
    return gates


def refuse_unrun(gates: Sequence[Gate], sections: Collection[str], why: str) -> None:
    """Raises UsageError for a gate on a section of the report that will be empty because models do not run."""
    for gate in gates:
        section = gate.path.partition(".")[0]
        if section in sections:
            hint = "allow more with --max-memory, or leave the gate out"
            raise UsageError(f"gate '{gate.text}' needs what will not be measured: {why}", hint)


def unmeasured(latency: bool, memory: bool) -> tuple[str, ...]:
    """What a run lacks that measures latency and memory or does not, as `check_gates` wants it."""
    return tuple(name for name, measured in (("latency", latency), ("memory", memory)) if not measured)


def parse_gate(text: str) -> Gate:
    """Raises UsageError that says what is wrong with the text."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise UsageError(
            f"gate '{text}' is not a path, a comparison and a number",
            f"write it as accuracy.top1.drop <= 0.01; comparisons are {' '.join(_COMPARISONS)}",
        )
    path = match["path"]
    if not any(_matches(path, known) for known in known_paths()):
        raise UsageError(f"gate '{text}': the report has no number '{path}'", did_you_mean(path, _shown_paths()))
    return Gate(text=text.strip(), path=path, comparison=match["comparison"], limit=_number(text, match["number"]))


def evaluate(gates: Sequence[Gate], report: Report) -> tuple[GateResult, ...]:
    """Every gate with the number that it was judged by.

    Raises UsageError for a gate on something that this run did not measure: neither passed nor failed.
    """
    data = msgspec.to_builtins(report)
    return tuple(_judged(gate, data) for gate in gates)


def known_paths() -> tuple[str, ...]:
    """The dotted paths of all numbers in a report, with `*` for the names of outputs and operators."""
    return tuple(sorted(_paths(Report, "")))


def _judged(gate: Gate, data: Mapping[str, Any]) -> GateResult:
    value = _find(data, gate.path)
    if value is None and gate.path.startswith(_COUNTS) and data.get(gate.path.partition(".")[0]):
        value = 0
    if value is None:
        raise _unmeasured(gate, data)
    number = float(value)
    return GateResult(gate=gate.text, value=number, passed=_COMPARISONS[gate.comparison](number, gate.limit))


def _find(data: Any, path: str) -> Any:
    """What lies at a dotted path; names of outputs may hold dots themselves."""
    if not path or not isinstance(data, dict):
        return data if not path else None
    for key, inner in data.items():
        if path == key or path.startswith(f"{key}."):
            found = _find(inner, path[len(key) + 1 :])
            if found is not None:
                return found
    return None


def _unmeasured(gate: Gate, data: Mapping[str, Any]) -> UsageError:
    outputs = (data.get("accuracy") or {}).get("outputs")
    if outputs and gate.path.startswith("accuracy.outputs."):
        word = gate.path.removeprefix("accuracy.outputs.").rpartition(".")
        if word[0] in outputs:
            return UsageError(f"gate '{gate.text}': '{word[2]}' is not defined for the output '{word[0]}'")
        return UsageError(f"gate '{gate.text}': there is no output '{word[0]}'", did_you_mean(word[0], outputs))
    for need, hint in _needs(gate.path if data.get("accuracy") else gate.path.partition(".")[0]):
        return UsageError(f"gate '{gate.text}' needs {need}", hint)
    return UsageError(f"gate '{gate.text}': '{gate.path}' was not measured in this run", "leave the gate out")


def _needs(path: str) -> list[tuple[str, str]]:
    """What a path is measured with and how to get it, the most particular first."""
    return [(need, hint) for prefix, need, hint in _NEEDS if path == prefix or path.startswith(f"{prefix}.")]


def _number(text: str, word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"gate '{text}': '{word}' is not a number", "shares are written as 0.01, not as 1%")
    return number


def _matches(path: str, known: str) -> bool:
    before, star, after = known.partition(_ANY)
    if not star:
        return path == known
    return path.startswith(before) and path.endswith(after) and len(path) > len(before) + len(after)


def _shown_paths() -> Iterator[str]:
    return (path.replace(_ANY, "NAME") for path in known_paths())


def _paths(kind: Any, prefix: str) -> Iterator[str]:
    """The paths below a type: fields of structs, values of dicts, and numbers as leaves."""
    if kind in (int, float, bool):
        yield prefix
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for field in msgspec.structs.fields(kind):
            yield from _paths(field.type, f"{prefix}.{field.encode_name}" if prefix else field.encode_name)
    elif get_origin(kind) is dict:
        yield from _paths(get_args(kind)[1], f"{prefix}.{_ANY}")
    elif get_origin(kind) is not tuple:
        for choice in get_args(kind):
            yield from _paths(choice, prefix)
