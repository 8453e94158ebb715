"""What each part costs, integer and not: times from profiles of both whole models, noise from a simulation.

Kernels timed alone mislead, since the runtime fuses and lays out whole networks. Conversions are known by the values
between parts: what a number takes to convert is found in the profile as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from qcli.analysis.measure import Variant, run_variants
from qcli.analysis.simulate import Simulation, simulate
from qcli.apply import apply_plan
from qcli.dataset import Sample
from qcli.files import scratch_folder
from qcli.graph import Model, concrete_shapes, save_model
from qcli.profile import NodeTime, profiles
from qcli.tuning.base import Base
from qcli.tuning.front import Costs
from qcli.tuning.parts import Network, Part, network_of
from qcli.types import Array, Plan, Role
from qcli.watch import Watch


class Machine(NamedTuple):
    """Threads inside an operator, where time is measured, and cores to spread other work over."""

    threads: int
    cores: int


_COMPARED = 6
"""Samples that noise is measured on: it ranks parts, whole candidates are measured on all samples."""

_QUANTIZE_MS, _DEQUANTIZE_MS = 3e-7, 2e-7
"""For one number, where the profile shows no conversion."""


def network_for(base: Base, sample: Sample) -> tuple[Network, Simulation]:
    """The network of a base, and the simulation that measures the noise of its parts."""
    model, plan = base.prepared.model, base.plan
    simulation = simulate(model, plan, base.solution)
    return network_of(model, plan, simulation, concrete_shapes(model, sample.feeds)), simulation


def costs_of(
    base: Base, found: tuple[Network, Simulation], samples: Sequence[Sample], machine: Machine, watch: Watch
) -> Costs:
    """What the parts of a base's network cost."""
    model, plan = base.prepared.model, base.plan
    (network, simulation), (threads, cores) = found, machine
    noise = _noise(network, simulation, tuple(islice(samples, _COMPARED)), cores, watch)
    quantized, floats = _profiled(apply_plan(model, plan, base.solution), model, samples[0].feeds, threads)
    static = _static(network, plan)
    rates = _rates(network, static, quantized)
    own = [
        (integer + sum(_outer(network, number, rates) if static[number] else ()), usual)
        for number, (integer, usual) in enumerate(
            zip(_by_part(network.parts, quantized), _by_part(network.parts, floats), strict=True)
        )
    ]
    return Costs(tuple(own), noise, _borders(network, static, rates))


def _noise(
    network: Network, simulation: Simulation, samples: Iterable[Sample], cores: int, watch: Watch
) -> tuple[tuple[float, float], ...]:
    """Of each part alone, with all its quantizers and with those of its weights only."""
    wanted = [_variants(part) for part in network.parts]
    everything = frozenset(switch for pair in wanted for switch in pair[0])
    variants = {variant for pair in wanted for variant in pair if variant} | {everything}
    losses = run_variants(simulation, samples, sorted(variants, key=sorted), cores, watch.progress)
    power = {variant: 10 ** (-loss / 10) for variant, loss in losses.items()}
    found = [(power.get(both, 0.0), power.get(weights, 0.0)) for both, weights in wanted]
    total = sum(both for both, _ in found)
    scale = power[everything] / total if total else 1.0  # noise of several parts adds up but roughly
    return tuple((both * scale, weights * scale) for both, weights in found)


def _variants(part: Part) -> tuple[Variant, Variant]:
    weights = frozenset(switch for switch in (part.weights,) if switch is not None)
    return weights | frozenset(switch for switch in (part.activations,) if switch is not None), weights


def _profiled(
    quantized: Model, source: Model, feeds: Mapping[str, Array], threads: int
) -> tuple[tuple[NodeTime, ...], ...]:
    """The nodes of the quantized model and of its float form, run in turn."""
    with scratch_folder() as folder:
        paths = []
        for name, model in (("quantized", quantized), ("float", source)):
            (folder / name).mkdir()
            paths.append(folder / name / "model.onnx")
            save_model(model, paths[-1])
        return profiles(paths, source, feeds, threads=threads)


def _by_part(parts: Sequence[Part], rows: Iterable[NodeTime]) -> list[float]:
    """The ms of each part. A kernel that does the work of several counts to the one that is most of it."""
    homes = {name: number for number, part in enumerate(parts) for name in part.names}
    found = [0.0] * len(parts)
    for row in rows:
        owners = [homes[name] for name in (row.main, *row.sources) if name in homes]
        if owners:
            found[owners[0]] += row.ms
    return found


def _static(network: Network, plan: Plan) -> list[bool]:
    """Which parts read and write codes."""
    coded = {entry.site.node for entry in plan.entries if entry.site.role in (Role.INPUT, Role.OUTPUT)}
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


def _outer(network: Network, number: int, rates: tuple[float, float]) -> Iterable[float]:
    """The conversions between a part and what is float anyway."""
    for edge in network.edges:
        if edge.reader == number and edge.giver is None:
            yield edge.elements * rates[0]
        if edge.giver == number and edge.reader is None:
            yield edge.elements * rates[1]


def _borders(
    network: Network, static: Sequence[bool], rates: tuple[float, float]
) -> tuple[tuple[int, int, float], ...]:
    """What two neighbours pay if one of them is not integer: half a conversion either way, and a bit for its launch."""
    found: dict[tuple[int, int], float] = {}
    for edge in network.edges:
        if edge.giver is not None and edge.reader is not None and static[edge.giver] and static[edge.reader]:
            pair = (min(edge.giver, edge.reader), max(edge.giver, edge.reader))
            found[pair] = found.get(pair, 0.0) + edge.elements * sum(rates) / 2
    return tuple((one, other, cost) for (one, other), cost in found.items())
