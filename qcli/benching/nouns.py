"""What `qcli bench` is told and what it answers."""

from __future__ import annotations

from pathlib import Path

from qcli.latency import NORMAL_EFFORT, Effort
from qcli.node_costs import NodeCost
from qcli.types import Noun


class BenchJob(Noun, frozen=True, kw_only=True):
    """Everything that `qcli bench` can be told.

    `data` names the samples to run on, `recipe` how they become inputs; it can name the samples too. Without any they
    are made up. `threads` holds one count or several to try one after the other.
    """

    models: tuple[Path, ...]
    threads: tuple[int, ...] = (1,)
    effort: Effort = NORMAL_EFFORT
    data: Path | None = None
    recipe: str | None = None
    profile: bool = False
    memory: bool = False
    reports: tuple[Path, ...] = ()


class BenchRow(Noun, frozen=True, kw_only=True):
    """One model at one number of threads; `speedup` is relative to the first model at as many threads.

    `outliers` is the share of runs that took more than three times the median. `peak_memory_mb` (10^6 bytes) is the
    most memory that a process took which does nothing but run this model, `base_memory_mb` what it took before it
    loaded the model; None if they were not measured or cannot be.
    """

    path: str
    bytes: int
    threads: int
    rounds: int
    ms: float
    spread_ms: float
    fastest_ms: float
    slowest_ms: float
    outliers: float
    speedup: float
    peak_memory_mb: float | None = None
    base_memory_mb: float | None = None


class BenchReport(Noun, frozen=True, kw_only=True):
    """Models side by side, in the order given, for each number of threads in turn.

    `rounds` is the fewest of any row and `threads` the first count, at which `nodes` were measured too: what each node
    of the first model takes in each of the models. `samples` counts those that were run on.
    """

    schema: int = 1
    command: str = "bench"
    models: tuple[BenchRow, ...]
    rounds: int
    threads: int
    samples: int
    invented_samples: bool
    nodes: tuple[NodeCost, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """The models, each once, in the order of the times in `nodes`."""
        return tuple(row.path for row in self.models if row.threads == self.threads)
