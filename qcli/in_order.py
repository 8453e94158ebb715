"""Layer after layer, in the order of the graph: each learns from what the quantized layers before it really give.

What a layer reads differs from what it read in float, x, by the errors of everything before it: y. Its codes V learn
from H = cov(y, y), and its bias takes in what its output is off on average (Nagel et al. 2019, section 4.2):

    c = b + W E[x] - V E[y]

Half of the samples finds candidates, the other half chooses among them for each output channel, the old one included.

W itself stays the target of V. The weights W cov(x, y) H^-1 that predict the float outputs best from y (Li et al. 2025,
"GPTAQ") shrink them where y is noisy; over fifty layers of MobileNetV2 that cost 4 dB, since pooling averages the noise
away at the end, but not the shrinking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from qcli.apply import apply_plan
from qcli.blas import single_threaded
from qcli.calibrate import Progress, Samples
from qcli.graph import Model, Node, node_key
from qcli.learn import learners, rounding_of
from qcli.learnable import LayerRows, Learnable, learnable
from qcli.paired import Paired
from qcli.roundings._learned import LearnedRounding
from qcli.runtime import Session, on_sample
from qcli.solve import Solution, site_key
from qcli.types import Array, Plan
from qcli.windows import patches_of

Float64Array = npt.NDArray[np.float64]


class _Moments(msgspec.Struct, frozen=True):
    """What a rounding asks of a statistic."""

    products: Float64Array
    mean: Float64Array

    def moments(self) -> tuple[Float64Array, Float64Array]:
        return self.products, self.mean


class _Halves(NamedTuple):
    fit: Paired
    judge: Paired

    @classmethod
    def of(cls, layer: Learnable) -> _Halves:
        """Empty ones, which hold what the layer needs to learn."""
        products = layer.rounding is not None
        return cls(Paired(products=products), Paired(products=products))


def learn_in_order(
    model: Model, plan: Plan, solution: Solution, samples: Samples, *, biases: bool, progress: Progress | None = None
) -> Solution:
    """A solution in which sequential roundings, and with `biases` all biases, make up for the layers before them.

    The solution given stays as it is, and is what comes back where no layer can learn. Looks at up to 64 samples,
    spread evenly.
    """
    levels = _levels(model, plan, solution, biases)
    if not levels:
        return solution
    better = Solution(dict(solution.scales), dict(solution.codes))
    few = _Few(samples)
    for done, level in enumerate(levels, 1):
        with single_threaded():
            halves = _measured(model, apply_plan(model, plan, better), level, few)
            for layer in level:
                _improve(layer, halves[node_key(layer.node)], better)
        if progress is not None:
            progress(done, len(levels))
    return better


def has_order(plan: Plan, model: Model) -> bool:
    """True if some weight's rounding learns from the layers before it; in a large model all learn by themselves."""
    return not model.large and any(rounding_of(entry).sequential for entry in learners(plan, model))


def _levels(model: Model, plan: Plan, solution: Solution, biases: bool) -> list[list[Learnable]]:
    """Layers in groups that do not depend on each other, in the order of the graph."""
    layers = {node_key(layer.node): layer for layer in learnable(model, plan, solution, biases=biases)}
    depths: dict[str, int] = {}
    levels: dict[int, list[Learnable]] = {}
    for node in model.graph:
        read = [depths.get(value.name or "", 0) for value in node.inputs if value is not None]
        depth = max(read, default=0)
        layer = layers.get(node_key(node))
        if layer is not None:
            depth += 1
            levels.setdefault(depth, []).append(layer)
        depths.update({value.name or "": depth for value in node.outputs})
    return [levels[depth] for depth in sorted(levels)]


def _measured(model: Model, quantized: Model, level: list[Learnable], samples: _Few) -> dict[str, _Halves]:
    """What the layers read on the samples: every other one finds, the rest judges."""
    written = {node_key(node): node for node in quantized.nodes()}
    places = [(layer, _input_name(layer.node), _input_name(_written(layer.node, written))) for layer in level]
    runs = (_Run(model, {exact for _, exact, _ in places}), _Run(quantized, {given for *_, given in places}))
    halves = {node_key(layer.node): _Halves.of(layer) for layer in level}
    for number, (file, feeds) in enumerate(samples.feeds()):
        with on_sample(file):
            exact, given = (run.values(feeds) for run in runs)
        for layer, read, through in places:
            x, y = exact[read], given[through]
            if x.size and x.shape == y.shape:
                part = halves[node_key(layer.node)][number % 2]
                part.add(patches_of(x, layer.window), patches_of(y, layer.window))
    return halves


def _written(node: Node, written: Mapping[str, Node]) -> Node:
    """The node in the quantized model. What makes an output of the model is called otherwise there."""
    key = node_key(node)
    same = written.get(key)
    return same if same is not None and same.op_type == node.op_type else written[f"{key}_float"]


_SAMPLES = 64

_KEPT_BYTES = 1 << 27
"""Of samples that are kept from level to level; the rest is read again each time."""


class _Few:
    """Up to 64 samples, spread evenly."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        count = len(samples)
        self._chosen = frozenset(np.linspace(0, count - 1, min(count, _SAMPLES)).astype(int).tolist())
        self._kept: list[tuple[str, Mapping[str, Array]]] = []
        self._bytes = 0

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        yield from self._kept
        known = len(self._kept)
        if known == len(self._chosen):
            return
        chosen = (sample for place, sample in enumerate(self._samples.feeds()) if place in self._chosen)
        for sample in islice(chosen, known, None):
            self._bytes += sum(getattr(array, "nbytes", 0) for array in sample[1].values())
            if self._bytes <= _KEPT_BYTES:
                self._kept.append(sample)
            yield sample


class _Run:
    """The values asked for and what leads to them, as a session; inputs are handed through."""

    def __init__(self, model: Model, names: set[str]) -> None:
        inputs = {spec.name for spec in model.inputs()}
        self._inputs = sorted(names & inputs)
        self._names = sorted(names - inputs)
        self._session = Session(model.ending_in(self._names).runnable(), threads=1) if self._names else None

    def values(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: np.asarray(feeds[name], np.float32) for name in self._inputs}
        return {**given, **self._session.run(feeds, self._names)} if self._session is not None else given


def _input_name(node: Node) -> str:
    return (node.inputs[0].name if node.inputs[0] is not None else "") or ""


class _Candidate(msgspec.Struct, frozen=True):
    """Codes as real weights [groups, R, K] and the bias [groups, R] that goes with them."""

    codes: Float64Array
    bias: Float64Array


def _improve(layer: Learnable, halves: _Halves, solution: Solution) -> None:
    """Gives the layer, output channel by output channel, the best of its candidates."""
    if halves.fit.empty or halves.judge.empty:
        return
    work = _Work(layer, solution)
    candidates = work.candidates(halves.fit)
    best = work.losses(candidates, halves.judge).argmin(axis=0)
    work.keep(work.candidates(halves.fit.joined(halves.judge)), best, solution)


class _Work(LayerRows):
    """One layer with its candidates."""

    def candidates(self, pair: Paired) -> list[_Candidate]:
        """The old codes and bias first."""
        found = [_Candidate(self.codes, self.stored_bias)]
        if self._layer.bias is not None:
            found.append(self._with_bias(self.codes, pair))
        if self._layer.rounding is None:
            return found
        codes = self._learned(self._layer.rounding, pair)
        found.append(_Candidate(codes, self.stored_bias))
        return [*found, self._with_bias(codes, pair)] if self._layer.bias is not None else found

    def losses(self, candidates: list[_Candidate], pair: Paired) -> Float64Array:
        """E (f(W x + b) - f(V y + c))^2 of each candidate, [candidates, groups, R]; f saturates."""
        found = np.zeros((len(candidates), *self.exact.shape[:2]))
        for exact, quantized in pair.rows:
            wanted = (self.exact @ exact + self.bias[..., None]).clip(*self._layer.bounds)
            for number, tried in enumerate(candidates):
                given = (tried.codes * self.steps) @ quantized + tried.bias[..., None]
                found[number] += np.square(wanted - given.clip(*self._layer.bounds)).sum(axis=2)
        return found

    def keep(self, candidates: list[_Candidate], best: Array, solution: Solution) -> None:
        """Gives each output channel [groups, R] the candidate of this number."""
        rows = np.arange(best.shape[0])[:, None], np.arange(best.shape[1])[None]
        if self._layer.rounding is not None:
            codes = np.array([candidate.codes for candidate in candidates])[(best, *rows)]
            solution.codes[site_key(self._layer.weight)] = self.problem.codes(codes, self.scale)
        bias = np.array([candidate.bias for candidate in candidates])[(best, *rows)]
        self.keep_bias(bias, best > 0, solution)

    def _learned(self, rounding: LearnedRounding, pair: Paired) -> Float64Array:
        products = pair.covariance() if self._layer.bias is not None else pair.products()
        return rounding.learn(self.problem.rows(self.scale), _Moments(products, pair.means()[1]))

    def _with_bias(self, codes: Float64Array, pair: Paired) -> _Candidate:
        return _Candidate(codes, self.corrected(codes, *pair.means()))
