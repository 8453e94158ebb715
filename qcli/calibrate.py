"""One sweep over the samples that measures everything asked for, in memory that does not grow with them.

Activations are made outputs of the model in groups bounded by bytes; each sample passes through and is forgotten.
Statistics do not depend on the order, so samples run in parallel: one thread each, whose arithmetic is the same
however many there are.
"""

from __future__ import annotations

from qcli.blas import single_threaded
from qcli.by_parts import Progress, measure_by_parts
from qcli.errors import NothingToDoError, ResourceError
from qcli.graph import Model, concrete_shapes, part_bytes
from qcli.memory import Budget
from qcli.one_sweep import TAP_BYTES, Samples, Sweep, groups_of
from qcli.parallel import MOST_AT_ONCE, in_parallel
from qcli.statistics import Statistics

__all__ = ["Progress", "Samples", "check_memory", "collect"]


def collect(
    model: Model, statistics: Statistics, samples: Samples, *, threads: int = 1, progress: Progress | None = None
) -> Statistics:
    """Measures the requests of `statistics` (empty, or of other samples) on every sample.

    Raises InputError naming the sample on which a value is NaN or Inf, NothingToDoError without samples.
    """
    if model.large:
        return _collect_by_parts(model, statistics, samples, threads, progress)
    requests = statistics.header.requests
    first = next(samples.feeds(), None)
    if first is None:
        raise NothingToDoError("there are no samples to calibrate with", "name a folder of samples with -d")
    shapes = concrete_shapes(model, first[1])
    groups = groups_of(requests, shapes, TAP_BYTES)
    done = 0
    for group in groups:
        sweep = Sweep(model, statistics, group)
        done = 0
        with single_threaded():
            for _ in in_parallel(sweep.measure, samples.feeds(), min(threads, MOST_AT_ONCE)):
                done += 1
                if progress is not None:
                    progress(done, len(samples))
    return statistics.counted(statistics.header.samples + done)


def _collect_by_parts(
    model: Model, statistics: Statistics, samples: Samples, threads: int, progress: Progress | None
) -> Statistics:
    """The same for a large model, of which a part is in memory at a time."""
    if len(samples) == 0:
        raise NothingToDoError("there are no samples to calibrate with", "name a folder of samples with -d")
    requests = statistics.header.requests
    for _ in measure_by_parts(model, requests, samples, lambda _: statistics, threads=threads, progress=progress):
        pass
    return statistics.counted(statistics.header.samples + len(samples))


def check_memory(model: Model, budget: Budget) -> None:
    """Raises ResourceError where the model, or a part of a large one, may not run: nothing can be measured then."""
    needed = part_bytes(model) if model.large else model.run_bytes()
    if not budget.fits(needed):
        problem = f"calibrating needs to run the model, which {budget.shortage(needed)}"
        raise ResourceError(problem, "allow more with --max-memory, or use the preset int8-weights, which runs nothing")
