"""Deciding `range: auto`: each activation gets the method whose grid does least harm on samples.

Two measurements, on different samples where there are enough of them:

1. By site. All methods' grids of a value are tried in the float model, and their errors are measured in the outputs of
   the layers that read it (`trial.py`), over the power of those outputs, summed over layers and over tied values. What
   a few samples say of the layers is scaled by what all of them say of the value. The first method of the list stays
   where no other is clearly better: choices by small margins fit the samples that they were made on.
2. As a whole. What is best for each layer is not always best for the network, whose errors add up. So the model with
   these choices, and with each method everywhere, is run with quantized activations and float weights. Where one method
   is clearly better for the outputs, it is taken for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import log

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.apply import apply_plan
from qcli.calibrate import Samples
from qcli.distribution import from_weights
from qcli.errors import RuntimeFailure
from qcli.graph import Model, Node, Value, constant_of, node_key
from qcli.measured import seen
from qcli.plugins import choice_of, create
from qcli.ranges._error import SquaredError
from qcli.solve import SiteKey, Solution, activation_scales, site_key
from qcli.statistics import Statistics
from qcli.ties import tied
from qcli.trial import Errors, output_errors, relative_errors
from qcli.trial_graph import Trial
from qcli.types import Array, Entry, Plan, Role, Scale, Spec
from qcli.watch import Watch

Float64Array = npt.NDArray[np.float64]

_HELD_OUT = 4
"""From this many samples on, every second one is kept for the comparison of whole models."""

_BY_SITE = "by site"

_HEAT = 4
"""On so many samples all methods run; only those that err less than the choice by site run on the others."""

_SITE_GAIN = 0.63
"""A method replaces the first of all where it leaves at most this share of its error (2 dB). Methods that are nearly as
good for each layer add up differently for the network, and one for all is more even; what clips least and yet ignores
single outliers fits samples to come best."""

_LEAST_SHARE = 1e-3
"""Samples that err less than this share of the mean count as if they erred so much: saturated outputs are exact."""

_GAIN = 0.9
_SIGMAS = 3.0
_LEAST_COMPARED = 4
"""One method for all replaces the choice by site where it leaves at most this share of its error (0.5 dB), and does so
sample by sample: a few large errors among few outputs decide nothing. Measured: without the test, classifiers of two
classes took the worse choice."""

_NEAR = 100
"""Scales that agree when their logarithm is rounded to 1/100 count as one: trying both would tell nothing."""

_Key = tuple[tuple[int, int], ...]
"""Logarithms of scales, and zero points: what makes two grids the same."""


@dataclass
class _Group:
    """Activations that share one scale, with the scales that each method gives them.

    `values` [methods] are the relative error powers of each entry's own values on all that was measured, `errors`
    those by which the choice is made; `by` says of what.
    """

    entries: list[Entry] = field(default_factory=list)
    methods: tuple[Spec, ...] = ()
    scales: list[dict[SiteKey, Scale]] = field(default_factory=list)
    values: dict[SiteKey, Float64Array] = field(default_factory=dict)
    errors: Float64Array = field(default_factory=lambda: np.zeros(0))
    by: str = "of its own values"
    chosen: int = 0

    def grids(self, number: int) -> _Key:
        own = [self.scales[number][site_key(entry)] for entry in self.entries]
        return tuple((round(_NEAR * log(scale.scale[0])), int(scale.zero_point[0])) for scale in own)

    def distinct(self) -> dict[_Key, list[int]]:
        """The methods by the grids that they lead to."""
        found: dict[_Key, list[int]] = {}
        for number in range(len(self.methods)):
            found.setdefault(self.grids(number), []).append(number)
        return found


def choose(
    model: Model, plan: Plan, statistics: Statistics, samples: Samples | None, watch: Watch, *, threads: int = 1
) -> Plan:
    """The plan with a method in place of every activation's `auto`, and `because` with the ratios in dB.

    Without samples, or where the trials do not run, values are judged by themselves and a warning says so.
    """
    groups = _groups(model, plan, statistics)
    if not groups:
        return plan
    _judge_values(model, groups, statistics)
    problem = "there are no samples; name some with -d"
    if samples is not None:
        try:
            _judge_readers(model, plan, groups, _Part(samples, 0), threads)
            return _decided(plan, groups, _judge_whole(model, plan, groups, _Part(samples, 1), threads))
        except RuntimeFailure as error:
            problem = error.message
    watch.warn(f"auto ranges were chosen by the error of the values alone, not of the layers behind: {problem}")
    return _decided(plan, groups, "")


def is_undecided(entry: Entry) -> bool:
    """True for an activation whose method samples have to decide."""
    return entry.site.role in (Role.INPUT, Role.OUTPUT) and choice_of(entry.range).name == "auto"


class _Part:
    """Every second sample, from the given one on; all of them where there are few."""

    def __init__(self, samples: Samples, first: int) -> None:
        self._samples = samples
        self._first, self._step = (first, 2) if len(samples) >= _HELD_OUT else (0, 1)
        self._count: int | None = None

    def some(self, count: int) -> _Part:
        """The first few of these."""
        few = _Part(self._samples, self._first)
        few._count = count
        return few

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        end = None if self._count is None else self._first + self._count * self._step
        yield from islice(self._samples.feeds(), self._first, end, self._step)


def _groups(model: Model, plan: Plan, statistics: Statistics) -> list[_Group]:
    """The undecided activations, those that share a scale together."""
    shared = tied(plan)
    found: dict[str, _Group] = {}
    for entry in plan.entries:
        if is_undecided(entry):
            found.setdefault(shared.get(entry.site.value, entry.site.value), _Group()).entries.append(entry)
    scales: dict[str, dict[SiteKey, Scale]] = {}
    for group in found.values():
        group.methods = create("ranges", group.entries[0].range).methods
        for method in group.methods:
            if repr(method) not in scales:
                scales[repr(method)] = activation_scales(model, _everywhere(plan, method), statistics)
        group.scales = [scales[repr(method)] for method in group.methods]
    return list(found.values())


def _everywhere(plan: Plan, method: Spec) -> Plan:
    entries = [msgspec.structs.replace(entry, range=method) if is_undecided(entry) else entry for entry in plan.entries]
    return msgspec.structs.replace(plan, entries=tuple(entries))


def _judge_values(model: Model, groups: Sequence[_Group], statistics: Statistics) -> None:
    """The errors of the values themselves, over their power, from the statistics alone."""
    nodes = {node_key(node): node for node in model.nodes()}
    for group in groups:
        for entry in group.entries:
            array = constant_of(_value(nodes, entry))
            known = seen(entry.site.value, "histogram", statistics) if array is None else from_weights(array, None)
            power = float((known.counts * known.points**2).sum()) if known is not None else 0.0
            if known is not None and power > 0:
                error = SquaredError.of(known)
                powers = [error.of_grids(scales[site_key(entry)])[0, 0] for scales in group.scales]
                group.values[site_key(entry)] = np.array(powers) / power
        group.errors = np.sum([*group.values.values(), np.zeros(len(group.methods))], axis=0)
        group.chosen = _clear_choice(group.errors)


def _clear_choice(errors: Float64Array) -> int:
    """The method with the least of the errors [methods] if it is clearly better than the first; else the first."""
    best = int(np.argmin(errors))
    return best if errors[best] < _SITE_GAIN * errors[0] else 0


def _value(nodes: Mapping[str, Node], entry: Entry) -> Value | None:
    node, operand = nodes[entry.site.node], entry.site.operand
    return node.outputs[operand] if entry.site.role is Role.OUTPUT else node.inputs[operand]


def _judge_readers(model: Model, plan: Plan, groups: Sequence[_Group], samples: _Part, threads: int) -> None:
    """Replaces the errors of what can be tried in the float model by those of the layers behind."""
    nodes = {node_key(node): node for node in model.graph}
    moved = {tie.node for tie in plan.ties}
    trials: list[tuple[_Group, Entry, Trial]] = []
    for group in groups:
        for entry in group.entries if len(group.distinct()) > 1 else ():
            if _can_be_tried(entry, nodes, moved):
                trials.append((group, entry, _trial(group, entry, nodes[entry.site.node])))
    found = relative_errors(model, [trial for _, _, trial in trials], samples, threads=threads)
    for group in groups:
        own = [(entry, errors) for (owner, entry, _), errors in zip(trials, found, strict=True) if owner is group]
        known = [_of_all(group, entry, errors) for entry, errors in own if errors is not None]
        if known:
            group.errors, group.by = np.sum(known, axis=0), "of what reads it"
            group.chosen = _clear_choice(group.errors)


def _of_all(group: _Group, entry: Entry, errors: Errors) -> Float64Array:
    """The errors [methods] in what reads a value, as they would be on all samples instead of the few that were run.

    A ratio estimate: rare values that are clipped may lie in other samples, and the statistics know of them.
    """
    result = np.zeros(len(group.methods))
    own = group.values.get(site_key(entry), result)
    for number, methods in enumerate(group.distinct().values()):
        seen_here, everywhere = errors.own[number], own[methods[0]]
        known = seen_here > 0 and everywhere > 0
        result[methods] = errors.readers[number] * (everywhere / seen_here if known else 1.0)
    return result


def _can_be_tried(entry: Entry, nodes: Mapping[str, Node], moved: set[str]) -> bool:
    """True for activations of the main graph; a result that a node only moved is tried where it comes from."""
    if entry.site.node not in nodes or (entry.site.role is Role.OUTPUT and entry.site.node in moved):
        return False
    return constant_of(_value(nodes, entry)) is None


def _trial(group: _Group, entry: Entry, node: Node) -> Trial:
    """Each distinct grid of an entry; a result is read by all through its grid, an operand by its node alone."""
    scales = tuple(group.scales[methods[0]][site_key(entry)] for methods in group.distinct().values())
    if entry.site.role is Role.INPUT:
        return Trial(entry.site.value, scales, ((entry.site.node, entry.site.operand),))
    readers = ((reader, operand) for reader, operand in node.outputs[entry.site.operand].uses())
    inside = tuple((node_key(reader), operand) for reader, operand in readers if reader.graph is node.graph)
    return Trial(entry.site.value, scales, inside)


def _judge_whole(model: Model, plan: Plan, groups: Sequence[_Group], samples: _Part, threads: int) -> str:
    """Sets every group to one method if the model's outputs then err less; what the comparison found."""
    by_site = [group.chosen for group in groups]
    choices = {_BY_SITE: by_site}
    for method in {repr(method): method for group in groups for method in group.methods}.values():
        choices[_label(method)] = [_number(group, method) for group in groups]

    def errors_of(names: Sequence[str], part: _Part) -> list[Float64Array]:
        candidates = (_simulated(model, plan, groups, choices[name]) for name in names)
        return output_errors(model, candidates, part, threads=threads)

    heat = errors_of(list(choices), samples.some(_HEAT))
    names = [name for name, error in zip(choices, heat, strict=True) if name == _BY_SITE or _is_less(error, heat[0])]
    errors = errors_of(names, samples) if len(names) > 1 else heat[:1]
    better = [number for number, error in enumerate(errors) if _clearly_better(error, errors[0])]
    best = min(better, key=lambda number: float(errors[number].mean()), default=0)
    for group, number in zip(groups, choices[names[best]], strict=True):
        group.chosen = number
    if not best:
        return ""
    ratios = ", ".join(f"{name} {_db(float(error.mean()))}" for name, error in zip(names, errors, strict=True))
    return f"; of the model's outputs: {ratios}"


def _is_less(error: Float64Array, known: Float64Array) -> bool:
    return bool(error.mean() < known.mean())


def _clearly_better(error: Float64Array, known: Float64Array) -> bool:
    """True if the errors [samples] are smaller by half a decibel, and so by more than chance (a paired t-test)."""
    count = error.size
    if count < _LEAST_COMPARED or not error.mean() < _GAIN * known.mean():
        return False
    least = max(_LEAST_SHARE * float(known.mean()), np.finfo(np.float64).tiny)
    gains = np.log(np.maximum(known, least) / np.maximum(error, least))
    return bool(gains.mean() > _SIGMAS * gains.std(ddof=1) / np.sqrt(count))


def _number(group: _Group, method: Spec) -> int:
    """The place of a method, or of the choice made where the group's recipe does not name it."""
    return group.methods.index(method) if method in group.methods else group.chosen


def _simulated(model: Model, plan: Plan, groups: Sequence[_Group], choice: Sequence[int]) -> Model:
    """The model with its activations on their grids, and float weights."""
    scales = dict(groups[0].scales[0])
    for group, number in zip(groups, choice, strict=True):
        scales.update({site_key(entry): group.scales[number][site_key(entry)] for entry in group.entries})
    nodes = {node_key(node): node for node in model.nodes()}
    activations = [entry for entry in plan.entries if site_key(entry) in scales]
    entries = [entry for entry in activations if constant_of(_value(nodes, entry)) is None]
    return apply_plan(model, msgspec.structs.replace(plan, entries=tuple(entries)), Solution(scales=scales))


def _decided(plan: Plan, groups: Sequence[_Group], whole: str) -> Plan:
    decided: dict[SiteKey, Entry] = {}
    for group in groups:
        order = sorted(range(len(group.methods)), key=lambda number: (number != group.chosen, group.errors[number]))
        ratios = ", ".join(f"{_label(group.methods[number])} {_db(group.errors[number])}" for number in order)
        for entry in group.entries:
            because = f"{entry.because}; auto, dB {group.by}: {ratios}{whole}"
            changed = msgspec.structs.replace(entry, range=group.methods[group.chosen], because=because)
            decided[site_key(entry)] = changed
    entries = tuple(decided.get(site_key(entry), entry) for entry in plan.entries)
    return msgspec.structs.replace(plan, entries=entries)


def _label(method: Spec) -> str:
    choice = choice_of(method)
    return " ".join([choice.name, *(str(value) for value in choice.options.values())])


def _db(error: float) -> str:
    return f"{-10 * np.log10(error):.1f}" if error > 0 else "exact"
