"""What each part costs in each way on another machine: from a table of its kernels, without any measurement here."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from qcli.analysis.simulate import Simulation
from qcli.costs.keys import key_of
from qcli.costs.lookup import load_costs
from qcli.costs.nouns import CostTable, KernelKey, Mode, WeightForm
from qcli.dataset import Sample
from qcli.errors import UsageError
from qcli.graph import Model, Node, concrete_shapes, infer_shapes, node_key
from qcli.plugins import choice_of
from qcli.tuning.base import Base
from qcli.tuning.cost_sums import Costs
from qcli.tuning.costs import bytes_of, crossings, outer, static_parts
from qcli.tuning.nouns import TuneJob
from qcli.tuning.part_noise import noise_of
from qcli.tuning.parts import Network, Part
from qcli.tuning.stored_bytes import float_bytes
from qcli.tuning.uniform import Uniform
from qcli.tuning.ways import UNTOUCHED, WAYS
from qcli.types import Plan, Role
from qcli.watch import Watch


class Elsewhere(NamedTuple):
    """A machine that is known by its table alone, and the cores of this one."""

    table: CostTable
    cores: int


def foretold_costs(
    base: Base,
    found: tuple[Network, Simulation],
    others: Sequence[Uniform],
    samples: Sequence[Sample],
    machine: Elsewhere,
) -> tuple[Costs, int]:
    """Costs by kernels, and how many the table lacks; what it lacks takes no time, or is a way that is not taken.

    A part's activation and its Add take no time of their own, in float and in integers.
    """
    network, _ = found
    kernels = _Kernels(base.prepared.model, samples[0], machine.table)
    static = static_parts(network, base.plan)
    rates = _rates(machine.table)
    times: list[list[float | None]] = []
    for place, part in enumerate(network.parts):
        row: list[float | None] = [None] * len(WAYS)
        own = kernels.ms(part, _form(part, base.plan))
        row[0] = None if own is None else own + (sum(outer(network, place, rates)) if static[place] else 0.0)
        row[WAYS.index(UNTOUCHED)] = kernels.ms(part, (Mode.FLOAT, WeightForm())) or 0.0
        row[0] = row[WAYS.index(UNTOUCHED)] if row[0] is None else row[0]
        for one in others:
            if place in one.parts:
                row[one.way] = kernels.ms(part, _form(part, one.solved.plan))
        times.append(row)
    rest = kernels.others({name for part in network.parts for name in part.names})
    usual = sum(row[WAYS.index(UNTOUCHED)] or 0.0 for row in times)
    costs = Costs(
        ms=tuple(tuple(row) for row in times),
        noise=noise_of(base, found, others, samples, machine.cores),
        bytes=bytes_of(base, network, others),
        crossings=crossings(network, static, rates),
        rest=(rest, rest),
        float_ms=usual + rest,
        float_bytes=float(float_bytes(base.prepared.model)),
    )
    return costs, len(kernels.missing)


def table_for(job: TuneJob, watch: Watch) -> CostTable | None:
    """The table that a job names. Raises UsageError for what is none, and if it is for another number of threads."""
    if job.cost_table is None:
        return None
    table = load_costs(job.cost_table, watch)
    threads = table.environment.threads
    if job.threads not in (0, threads):
        problem = f"cost table '{job.cost_table}' is for {threads} threads, not for {job.threads}"
        raise UsageError(problem, f"run with --threads {threads}, or measure a table for {job.threads}")
    return table


class _Kernels:
    """The nodes of a model as rows of a table."""

    def __init__(self, model: Model, sample: Sample, table: CostTable) -> None:
        model = model.copy()
        infer_shapes(model)
        self._nodes = {node_key(node): node for node in model.graph}
        self._shapes = concrete_shapes(model, sample.feeds)
        self._table = table
        self.missing: set[KernelKey] = set()

    def ms(self, part: Part, form: tuple[Mode, WeightForm] | None) -> float | None:
        """The time of a part whose node computes so; None if the table does not know it."""
        return None if form is None else self._time(self._nodes[part.key], form)

    def others(self, names: set[str]) -> float:
        """The time of all nodes that are not named, in float."""
        left = (node for key, node in self._nodes.items() if key not in names)
        return sum(self._time(node, (Mode.FLOAT, WeightForm())) or 0.0 for node in left)

    def _time(self, node: Node, form: tuple[Mode, WeightForm]) -> float | None:
        mode, weights = form
        key = key_of(node, mode, self._shapes, self._table.environment.threads, weights)
        if key is not None and weights == WeightForm() and self._table.cost(key) is None:
            self.missing.add(key)
        return self._table.ms(key)


def _form(part: Part, plan: Plan) -> tuple[Mode, WeightForm] | None:
    """How a part computes under a plan; None for a kernel that tables do not hold."""
    entries = [entry for entry in plan.entries if entry.site.node in part.names]
    weight = next((entry for entry in entries if entry.site.role is Role.WEIGHT), None)
    if weight is not None and choice_of(weight.encoding).name != "qdq":
        name = choice_of(weight.encoding).name
        if name == "dynamic":
            return Mode.DYNAMIC, WeightForm()
        if name == "lookup_table":
            return Mode.FLOAT, WeightForm()
        if name != "weight_only":
            return None
        return Mode.WEIGHT_ONLY, WeightForm(bits=weight.grid.bits or 8, block=weight.grid.block)
    if any(entry.site.role is Role.OUTPUT for entry in entries):
        return Mode.STATIC, WeightForm()
    reads = weight is not None or any(entry.site.role is Role.INPUT for entry in entries)
    return (Mode.STATIC_FLOAT_RESULT if reads else Mode.FLOAT), WeightForm()


def _rates(table: CostTable) -> tuple[float, float]:
    """What it takes to quantize one number, and to turn one back, in ms."""
    return _rate(table, Mode.QUANTIZE), _rate(table, Mode.DEQUANTIZE)


def _rate(table: CostTable, mode: Mode) -> float:
    rows = [row for row in table.rows if row.key.mode is mode and row.ms is not None]
    elements = sum(prod(row.key.inputs[0].shape) for row in rows if row.key.inputs[0] is not None)
    return sum(row.ms or 0.0 for row in rows) / elements if elements else 0.0
