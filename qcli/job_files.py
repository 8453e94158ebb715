"""The files that a job names, and all those that its result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qcli.graph.optimized import external_files
from qcli.job import QuantizeJob
from qcli.recipe import recipe_files
from qcli.sources import SampleStream


def dependencies(job: QuantizeJob, streams: Iterable[SampleStream | None]) -> tuple[Path, ...]:
    """Every file that the result of a job depends on: a change of one makes it stale."""
    named = (job.plan, job.stats, job.labels)
    files = [job.model, *external_files(job.model), *recipe_files(job.recipe), *(path for path in named if path)]
    return (*files, *(path for stream in streams if stream is not None for path in stream.files()))
