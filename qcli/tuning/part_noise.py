"""How much noise each part makes at the output in each way, by simulation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

from qcli.analysis.measure import Variant, run_variants
from qcli.analysis.simulate import Layer, Simulation, simulate
from qcli.dataset import Sample
from qcli.tuning.base import Base
from qcli.tuning.parts import Network, Part
from qcli.tuning.uniform import Uniform
from qcli.tuning.ways import BLOCKS, DYNAMIC, NBITS, STORED, WAYS

_COMPARED = 6
"""Samples that noise is measured on: it ranks parts, whole candidates are measured on all samples."""


_OF_BLOCKS = 0.5
"""The noise of inputs quantized in blocks of 32, relative to that with one scale for all; measured on minilm."""


def noise_of(
    base: Base, found: tuple[Network, Simulation], others: Sequence[Uniform], samples: Sequence[Sample], cores: int
) -> tuple[tuple[float, ...], ...]:
    """Of each part alone: with all its quantizers, with those of its weights, with those of another way."""
    network, simulation = found
    few = tuple(islice(samples, _COMPARED))
    whole, alone = _powers(simulation, [_switches(part) for part in network.parts], few, cores)
    stored = [frozenset(switch for switch in (part.weights,) if switch is not None) for part in network.parts]
    columns = {0: alone, WAYS.index(STORED): _powers(simulation, stored, few, cores)[1]}
    for one in others:
        if WAYS[one.way] in (DYNAMIC, NBITS, BLOCKS):
            columns[one.way] = _other_noise(base, network, one, few, cores)
    within = [max(both - weights, 0.0) for both, weights in zip(alone, columns[WAYS.index(STORED)], strict=True)]
    if WAYS.index(NBITS) in columns:  # whose inputs are quantized inside of the kernel, where nothing sees them
        own = columns[WAYS.index(NBITS)]
        columns[WAYS.index(NBITS)] = [a + _OF_BLOCKS * b for a, b in zip(own, within, strict=True)]
    total = sum(alone)
    scale = whole / total if total else 1.0  # noise of several parts adds up but roughly
    silent = [0.0] * len(network.parts)
    return tuple(
        tuple(scale * columns.get(way, silent)[place] for way in range(len(WAYS)))
        for place in range(len(network.parts))
    )


def _other_noise(base: Base, network: Network, one: Uniform, samples: Sequence[Sample], cores: int) -> list[float]:
    simulation = simulate(base.prepared.model, *one.solved)
    layers: dict[str, Layer] = {layer.key: layer for layer in simulation.layers}
    chosen = [
        frozenset(layers[part.key].switches()) if place in one.parts and part.key in layers else frozenset()
        for place, part in enumerate(network.parts)
    ]
    return _powers(simulation, chosen, samples, cores)[1]


def _powers(
    simulation: Simulation, chosen: Sequence[Variant], samples: Iterable[Sample], cores: int
) -> tuple[float, list[float]]:
    """The noise of all variants at once, and of each."""
    everything: Variant = frozenset(switch for variant in chosen for switch in variant)
    variants = {variant for variant in (*chosen, everything) if variant}
    losses = run_variants(simulation, samples, sorted(variants, key=sorted), cores, lambda *_: None) if variants else {}
    power = {variant: 10 ** (-loss / 10) for variant, loss in losses.items()}
    return power.get(everything, 0.0), [power.get(variant, 0.0) for variant in chosen]


def _switches(part: Part) -> Variant:
    return frozenset(switch for switch in (part.weights, part.activations) if switch is not None)
