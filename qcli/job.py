"""What a user asks for, as one value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from qcli.types import Noun


class QuantizeJob(Noun, frozen=True, kw_only=True):
    """Everything that `qcli quantize` can be told.

    `recipe` is a preset's name or a path, `settings` are `key=value` on top of it. `calibration` and `evaluation`
    are folders of samples; they default to those of the recipe. `samples` takes that many of the calibration
    samples. `plan` and `stats` are files made earlier, used in place of planning and measuring. `random_samples`
    calibrates on that many random inputs, for smoke tests. `threads` 0 means one for each core. `requantize_rest`
    accepts a model that is quantized in part, and quantizes only what is still float. `max_memory` are the bytes that
    models may take while they run; None means what is free. `memory` measures what both models take.
    `encodings` is a file for all scales, see `qcli.aimet`.
    """

    model: Path
    recipe: str = "int8"
    settings: tuple[str, ...] = ()
    calibration: Path | None = None
    evaluation: Path | None = None
    labels: Path | None = None
    output: Path | None = None
    plan: Path | None = None
    stats: Path | None = None
    gates: tuple[str, ...] = ()
    reports: tuple[Path, ...] = ()
    samples: int | None = None
    random_samples: int | None = None
    threads: int = 0
    max_memory: int | None = None
    latency: bool = True
    memory: bool = False
    cache: bool = True
    keep_failing: bool = False
    dry_run: bool = False
    depfile: Path | None = None
    encodings: Path | None = None
    encodings_version: Literal["1.0.0", "0.6.1"] = "1.0.0"
    requantize_rest: bool = False
    shard: tuple[int, int] | None = None


def named_inputs(job: QuantizeJob) -> tuple[Path, ...]:
    """The files and folders that a job names."""
    named = (job.model, Path(job.recipe), job.calibration, job.evaluation, job.plan, job.stats, job.labels)
    return tuple(path for path in named if path is not None)


def threads_of(job: QuantizeJob) -> int:
    """The threads that a job works with: those it names, or as many as there are cores."""
    return job.threads or os.cpu_count() or 1
