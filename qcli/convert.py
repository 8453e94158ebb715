"""Operators that compute in 16 bits: the recipe's key `convert`, carried out on a finished model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from qcli.calibrate import Samples, collect
from qcli.conversion import Convert
from qcli.errors import NothingToDoError, RuntimeFailure, UnsupportedError
from qcli.graph import Model, Value, compute_in_half, half_trial, infer_shapes, node_key, original_name
from qcli.half_nodes import Choice, first_choice, keep_islands, keep_presumed
from qcli.plugins import create
from qcli.report import ConversionFacts
from qcli.runtime import Session
from qcli.statistics import Statistics
from qcli.types import KeptFloat, Request

_ROUNDS = 8
"""Times that the result is run and mended."""

_SPARE = 0.5
"""How much of the type's range samples may fill: others will reach further."""

_NAMED = 5

class Converted(NamedTuple):
    """The model, what the report says of it, and the nodes that compute in 16 bits, by their first outputs."""

    model: Model
    facts: ConversionFacts
    nodes: tuple[str, ...]

    def reasons(self) -> dict[str, str]:
        """What to say of each node in a list of those that compute in floats."""
        kept = {one.node: f"it stays in float32: {one.reason}" for one in self.facts.kept_float}
        return {**kept, **dict.fromkeys(self.nodes, f"it computes in {self.facts.to}")}


def convert_model(
    model: Model, convert: Convert, kept: Mapping[str, str], samples: Samples | None, threads: int = 1
) -> Converted:
    """A copy of a model of float32 that computes in 16 bits where operators, kernels and samples allow it.

    `kept` are the reasons for which rules keep nodes float, by their first outputs.

    What the samples show to leave the type's range stays in float32, with its neighbours; so does what is no longer
    finite in the result. Raises UnsupportedError for operators without kernels, if the recipe does not keep them, and
    NothingToDoError if no operator is left.
    """
    work = model.copy()
    infer_shapes(work)
    choice = first_choice(work, convert, kept)
    _keep_without_kernels(choice, work, convert)
    known = _reaches(work, _read_or_given(choice), samples, threads)
    seen = {value: one.largest for value, one in known.items()}
    keep_presumed(choice, work, convert.to, seen)
    _keep_too_large(choice, work, convert, seen)
    draft = _converted(work, choice, convert)
    for _ in range(_ROUNDS):
        if samples is None or not _mended(choice, draft, known, samples, threads):
            break
        draft = _converted(work, choice, convert)
    if not choice.nodes:
        raise NothingToDoError(f"no operator of this model can compute in {convert.to}", _why(choice))
    facts = _facts(choice, convert, len(samples) if samples is not None else None)
    return Converted(draft.model, facts, tuple(map(node_key, choice.nodes)))


class _Seen(NamedTuple):
    """How far the finite numbers of a value reach, and how many others there were."""

    largest: float
    infinite: int


def _reaches(model: Model, values: Iterable[str], samples: Samples | None, threads: int) -> dict[str, _Seen]:
    requests = tuple(Request(value=value, statistic="reach") for value in dict.fromkeys(values))
    if samples is None or not requests:
        return {}
    statistics = collect(model, Statistics.empty(requests), samples, threads=threads)
    states = {request.value: statistics.get(request).arrays() for request in requests}
    return {
        value: _Seen(float(state["largest"][0]), int(state["infinite"][0]))
        for value, state in states.items()
        if state["largest"].size
    }


def _read_or_given(choice: Choice) -> list[str]:
    """The values that would have 16 bits, constants apart."""
    found: list[str] = []
    for node, halves in choice.nodes.items():
        operands = [node.inputs[index] for index in halves.operands]
        found += [value.name or "" for value in operands if value is not None and value.const_value is None]
        found += [node.outputs[index].name or "" for index in halves.results]
    return [name for name in found if name]


def _keep_without_kernels(choice: Choice, model: Model, convert: Convert) -> None:
    """Asks onnxruntime about every kind of node, by loading it alone."""
    known: dict[str, bool] = {}
    lacking: dict[str, None] = {}
    for node, halves in tuple(choice.nodes.items()):
        kinds = [value.dtype.name if value is not None and value.dtype is not None else "" for value in node.inputs]
        key = f"{node.op_type} {kinds} {halves}"
        if key not in known:
            known[key] = _loads(half_trial(model, node, halves, convert.to))
        if not known[key]:
            choice.keep(node, f"onnxruntime's CPU provider has no {convert.to} kernel for {node.op_type}")
            lacking[node.op_type] = None
    if lacking and convert.without_kernel == "refuse":
        more = f" and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        problem = f"onnxruntime's CPU provider has no {convert.to} kernel for {', '.join(list(lacking)[:_NAMED])}{more}"
        hint = "leave them in float32 with --set convert.without_kernel=keep, or convert to float16"
        raise UnsupportedError(problem, hint)


def _loads(model: bytes) -> bool:
    try:
        Session(model)
    except RuntimeFailure:
        return False
    return True


def _keep_too_large(choice: Choice, model: Model, convert: Convert, seen: Mapping[str, float]) -> None:
    most = _SPARE * create("formats", convert.to).largest
    ends = (*model.graph.inputs, *model.graph.outputs) if convert.io == "convert" else ()
    for value in _values(model):
        reached = seen.get(value.name or "", 0.0)
        if reached > most:
            part = "" if reached > 2 * most else "half of "
            reason = f"'{value.name}' reaches {reached:.3g} in the samples, beyond {part}what {convert.to} holds"
            if value in ends:
                raise UnsupportedError(reason, "leave inputs and outputs as they are: --set convert.io=keep")
            for node in tuple(choice.touching(value)):
                choice.keep(node, reason)


def _values(model: Model) -> Iterator[Value]:
    yield from model.graph.inputs
    for node in model.graph:
        yield from node.outputs


class _Draft(NamedTuple):
    """The converted model, with the names that values of the model before it have there."""

    model: Model
    names: dict[str, str]


def _converted(work: Model, choice: Choice, convert: Convert) -> _Draft:
    """The graph that `choice` describes; the model given stays as it is."""
    keep_islands(choice, work, ends=convert.io == "convert")
    result = work.copy()
    nodes = {node_key(node): node for node in result.graph}
    chosen = {nodes[node_key(node)]: halves for node, halves in choice.nodes.items()}
    given = {nodes[node_key(node)].outputs[index] for node, halves in choice.nodes.items() for index in halves.results}
    before = {value: value.name or "" for value in given}
    compute_in_half(result, chosen, convert.to, ends=convert.io == "convert")
    result.import_domains()
    result.sort()
    result.forget_shapes()
    result.fix_names()
    left = {value for node in result.graph for value in node.outputs}
    return _Draft(result, {value.name or "": name for value, name in before.items() if value in left})


def _mended(choice: Choice, draft: _Draft, known: Mapping[str, _Seen], samples: Samples, threads: int) -> bool:
    """Keeps in float32 what gives Inf or NaN in the draft though it did not before; False if nothing does."""
    found = _reaches(draft.model, draft.names, samples, threads)
    lost = {draft.names[new] for new, one in found.items() if one.infinite and not _infinite(known, draft.names[new])}
    for node, halves in tuple(choice.nodes.items()):
        results = [node.outputs[index] for index in halves.results]
        fed_by_lost = any(value is not None and value.name in lost for value in node.inputs)
        for value in results:
            if value.name in lost and not fed_by_lost:
                for touched in (node, *choice.touching(value)):
                    choice.keep(touched, f"'{value.name}' is Inf or NaN in 16 bits")
    return bool(lost)


def _infinite(known: Mapping[str, _Seen], value: str) -> bool:
    return value in known and known[value].infinite > 0


def _facts(choice: Choice, convert: Convert, samples: int | None) -> ConversionFacts:
    kept = (
        KeptFloat(node=node_key(node), name=original_name(node), op=node.op_type, reason=reason)
        for node, reason in choice.reasons.items()
    )
    return ConversionFacts(
        to=convert.to, io=convert.io, nodes=len(choice.nodes), kept_float=tuple(kept), samples=samples
    )


def _why(choice: Choice) -> str:
    reasons = dict.fromkeys(f"{node.op_type}: {reason}" for node, reason in choice.reasons.items())
    return "; ".join(list(reasons)[:_NAMED]) or "it has no operators on float32"
