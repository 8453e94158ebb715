"""What each part costs in each way: times from profiles of whole models, noise from a simulation.

Kernels timed alone mislead, since the runtime fuses and lays out whole networks. So for each way the whole model is
profiled with every part in it that can be. Conversions are known by the values between parts: what a number takes to
convert is found in the profile as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from qcli.analysis.simulate import Simulation
from qcli.apply import apply_plan
from qcli.dataset import Sample
from qcli.files import scratch_folder
from qcli.graph import Model, save_model
from qcli.plugins import create
from qcli.profile import NodeTime, profiles
from qcli.solve import Solved
from qcli.tuning.base import Base
from qcli.tuning.cost_sums import Costs
from qcli.tuning.part_noise import noise_of
from qcli.tuning.parts import Network, Part
from qcli.tuning.stored_bytes import float_bytes, plan_bytes
from qcli.tuning.uniform import Uniform
from qcli.tuning.ways import STORED, UNTOUCHED, WAYS
from qcli.types import Array, Plan, Role


class Machine(NamedTuple):
    """Threads inside an operator, where time is measured, and cores to spread other work over."""

    threads: int
    cores: int


_QUANTIZE_MS, _DEQUANTIZE_MS = 3e-7, 2e-7
"""For one number, where the profile shows no conversion."""


def costs_of(
    base: Base,
    found: tuple[Network, Simulation],
    others: Sequence[Uniform],
    samples: Sequence[Sample],
    machine: Machine,
) -> Costs:
    """What the parts of a base's network cost. UNTOUCHED is there for each part, with no noise."""
    network, _ = found
    model = base.prepared.model
    plans = [apply_plan(model, base.plan, base.solution)]
    timed = [one for one in others if WAYS[one.way] not in (STORED, UNTOUCHED)]
    plans += [apply_plan(model, *one.solved) for one in timed]
    quantized, floats, *rest = _profiled([plans[0], model, *plans[1:]], model, samples[0].feeds, machine.threads)
    static = static_parts(network, base.plan)
    rates = _rates(network, static, quantized)
    own, usual = _by_part(network.parts, quantized), _by_part(network.parts, floats)
    times: list[list[float | None]] = [[None] * len(WAYS) for _ in network.parts]
    for place, part_times in enumerate(times):
        part_times[0] = own[place] + (sum(outer(network, place, rates)) if static[place] else 0.0)
        part_times[WAYS.index(UNTOUCHED)] = usual[place]
    for one in others:
        rows = rest[timed.index(one)] if one in timed else floats
        for place, ms in enumerate(_by_part(network.parts, rows)):
            if place in one.parts:
                times[place][one.way] = ms
    return Costs(
        ms=tuple(tuple(part_times) for part_times in times),
        noise=noise_of(base, found, others, samples, machine.cores),
        bytes=bytes_of(base, network, others),
        crossings=crossings(network, static, rates),
        rest=(_total(quantized) - sum(own) - sum(_conversions(quantized)), _total(floats) - sum(usual)),
        float_ms=_total(floats),
        float_bytes=float(float_bytes(model)),
    )


def _total(rows: Iterable[NodeTime]) -> float:
    return sum(row.ms for row in rows)


def _conversions(rows: Iterable[NodeTime]) -> Iterable[float]:
    return (row.ms for row in rows if row.op in ("QuantizeLinear", "DequantizeLinear") and not row.sources)


def bytes_of(base: Base, network: Network, others: Sequence[Uniform]) -> tuple[tuple[float, ...], ...]:
    model = base.prepared.model
    columns = {0: plan_bytes(model, network.parts, Solved(base.plan, base.solution))}
    columns |= {one.way: plan_bytes(model, network.parts, one.solved) for one in others}
    columns[WAYS.index(UNTOUCHED)] = plan_bytes(model, network.parts, None)
    usual = columns[WAYS.index(UNTOUCHED)]
    return tuple(
        tuple(columns.get(way, usual)[place] for way in range(len(WAYS))) for place in range(len(network.parts))
    )


def _profiled(
    models: Sequence[Model], source: Model, feeds: Mapping[str, Array], threads: int
) -> tuple[tuple[NodeTime, ...], ...]:
    """The nodes of models, run in turn."""
    with scratch_folder() as folder:
        paths = []
        for number, model in enumerate(models):
            (folder / str(number)).mkdir()
            paths.append(folder / str(number) / "model.onnx")
            save_model(model, paths[-1])
        return profiles(paths, source, feeds, threads=threads)


def _by_part(parts: Sequence[Part], rows: Iterable[NodeTime]) -> list[float]:
    """The ms of each part. A kernel that does the work of several counts to the one that is most of it."""
    homes = {name: number for number, part in enumerate(parts) for name in part.names}
    found = [0.0] * len(parts)
    for row in rows:
        beside = row.beside if row.op == "DynamicQuantizeLinear" else ()
        owners = [homes[name] for name in (row.main, *row.sources, *beside) if name in homes]
        if owners:
            found[owners[0]] += row.ms
    return found


def static_parts(network: Network, plan: Plan) -> list[bool]:
    """Which parts read or write codes. The grid of an input stands with the part that gives it, so weights tell too."""
    coded = {
        entry.site.node
        for entry in plan.entries
        if entry.site.role in (Role.INPUT, Role.OUTPUT) or create("encodings", entry.encoding).calibrated
    }
    return [any(name in coded for name in part.names) for part in network.parts]


def _rates(network: Network, static: Sequence[bool], rows: Sequence[NodeTime]) -> tuple[float, float]:
    """What it takes to quantize one number, and to turn one back, in ms."""
    made = sum(edge.elements for edge in network.edges if edge.giver is None and _is(static, edge.reader))
    left = sum(edge.elements for edge in network.edges if edge.reader is None and _is(static, edge.giver))
    first = sum(row.ms for row in rows if row.op == "QuantizeLinear")
    second = sum(row.ms for row in rows if row.op == "DequantizeLinear")
    return (first / made if made and first else _QUANTIZE_MS), (second / left if left and second else _DEQUANTIZE_MS)


def _is(static: Sequence[bool], number: int | None) -> bool:
    return number is not None and static[number]


def outer(network: Network, number: int, rates: tuple[float, float]) -> Iterable[float]:
    """The conversions between a part and what is float anyway."""
    for edge in network.edges:
        if edge.reader == number and edge.giver is None:
            yield edge.elements * rates[0]
        if edge.giver == number and edge.reader is None:
            yield edge.elements * rates[1]


def crossings(
    network: Network, static: Sequence[bool], rates: tuple[float, float]
) -> tuple[tuple[int, int, float], ...]:
    """What two neighbours pay if one of them is not integer: half a conversion either way, and a bit for its launch."""
    found: dict[tuple[int, int], float] = {}
    for edge in network.edges:
        if edge.giver is not None and edge.reader is not None and static[edge.giver] and static[edge.reader]:
            pair = (min(edge.giver, edge.reader), max(edge.giver, edge.reader))
            found[pair] = found.get(pair, 0.0) + edge.elements * sum(rates) / 2
    return tuple((one, other, cost) for (one, other), cost in found.items())
