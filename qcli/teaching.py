"""Solving a plan for a large model: weights learn from the part of the model that runs, which is then forgotten."""

from __future__ import annotations

from typing import NamedTuple

from qcli.blas import single_threaded
from qcli.by_parts import measure_by_parts
from qcli.energies import energy_requests
from qcli.graph import Model
from qcli.learn import learned_requests, some_of, was_seen
from qcli.measured import weight_requests
from qcli.one_sweep import Samples
from qcli.solve import Solution, Solver
from qcli.statistics import Statistics
from qcli.types import Entry, Plan, Request
from qcli.watch import Watch


class Teaching(NamedTuple):
    """The samples that weights learn from, and who is told how far it got."""

    samples: Samples
    watch: Watch


def solve_taught(
    model: Model, plan: Plan, statistics: Statistics, threads: int = 1, teaching: Teaching | None = None
) -> Solution:
    """Scales for all entries and codes for all constants of the plan; the same on any number of threads.

    `statistics` know what weights learn from, but for those of a large model. Without `teaching` these are rounded
    without samples, and their ranges are not weighted.
    """
    solver = _PartSolver(model, plan, statistics, threads=threads)
    solver.activations()
    with single_threaded():
        if model.large and teaching is not None:
            solver.learn_by_parts(teaching, threads)
        solver.weights()
    solver.biases()
    return solver.solution


class _PartSolver(Solver):
    def learn_by_parts(self, teaching: Teaching, threads: int) -> None:
        """Gives codes to the weights that need samples, as soon as what they need was measured."""
        self.learned, self.energies = learned_requests(self.plan, self.model), energy_requests(self.plan, self.model)
        waiting = [entries for entries in self.groups() if self._wants(entries[0])]
        whole, unseen = self.statistics, list[str]()
        parts = measure_by_parts(
            self.model,
            weight_requests(self.plan, self.model),
            teaching.samples,
            Statistics.empty,
            threads=threads,
            progress=teaching.watch.progress,
        )
        measured: frozenset[Request] = frozenset()
        for statistics in parts:
            self.statistics, measured = statistics, frozenset(statistics.header.requests)
            ready = [entries for entries in waiting if self._wants(entries[0]) <= measured]
            unseen += [entries[0].site.value for entries in ready if not self._informed(entries[0])]
            self.keep(ready)
            self.known_moments.clear()
            waiting = [entries for entries in waiting if entries not in ready]
        self.statistics, self.learned, self.energies = whole, {}, {}
        if unseen:
            said = f"{len(unseen)} weights are rounded without samples, as no sample reaches them: {some_of(unseen)}"
            teaching.watch.warn(said)

    def _informed(self, entry: Entry) -> bool:
        """True if a sample reached what the weight needs."""
        return all(was_seen(self.statistics.get(request)) for request in self._wants(entry))

    def _wants(self, entry: Entry) -> frozenset[Request]:
        """What has to be measured for a weight."""
        node = entry.site.node
        found = (self.learned.get(node), self.energies.get(node))
        return frozenset(request for request in found if request is not None)
