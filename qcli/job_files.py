"""The files that a job names, and all those that its result depends on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qcli.errors import UsageError
from qcli.files import check_distinct, check_writable, same_file
from qcli.graph.optimized import external_files
from qcli.job import QuantizeJob, named_inputs
from qcli.recipe import recipe_files
from qcli.render import report_writer
from qcli.sources import SampleStream


def dependencies(job: QuantizeJob, streams: Iterable[SampleStream | None]) -> tuple[Path, ...]:
    """Every file that the result of a job depends on: a change of one makes it stale."""
    named = (job.plan, job.stats, job.labels)
    files = [job.model, *external_files(job.model), *recipe_files(job.recipe), *(path for path in named if path)]
    return (*files, *(path for stream in streams if stream is not None for path in stream.files()))


def output_path(job: QuantizeJob) -> Path:
    """`-o`, or the model's stem with the recipe's name in the current folder."""
    return job.output or Path(f"{job.model.stem}.{Path(job.recipe).stem}.onnx")


def check_outputs(job: QuantizeJob) -> None:
    """What cannot be written is refused before the work, not after it."""
    output = output_path(job)
    if same_file(output, job.model):
        raise UsageError(f"output '{output}' is the input", "the input is never changed; name another file with -o")
    outputs = (*job.reports, *(path for path in (job.depfile, job.encodings) if path is not None))
    rejected = [output.with_name(f"{output.stem}.rejected.onnx")] if job.keep_failing else []
    check_distinct((output, *rejected, *outputs), named_inputs(job))
    for path in () if job.dry_run else (output, *outputs):
        check_writable(path)
    for path in job.reports:
        report_writer(path)
