"""What the result of a search is worth on samples that the search has not seen."""

from __future__ import annotations

from qcli.errors import UsageError
from qcli.job_files import output_path
from qcli.report import Report
from qcli.side_by_side import CompareJob, compare_models
from qcli.tuning.judge import evaluated
from qcli.tuning.metric import Metric
from qcli.tuning.nouns import TuneJob
from qcli.watch import Watch


def last_word(job: TuneJob, metric: Metric, watch: Watch) -> tuple[Report, float | None]:
    """The result beside the float model, and its metric, on the evaluation samples or without any on all others."""
    watch.phase("validate")
    compared = CompareJob(
        float_model=job.model,
        compressed=output_path(job),
        recipe=job.recipe,
        settings=job.settings,
        evaluation=job.evaluation or job.calibration,
        labels=job.labels,
        threads=job.threads,
        latency=job.cost_table is None,
        max_memory=job.max_memory,
    )
    report = compare_models(compared, Watch(on_progress=watch.on_progress))
    try:
        return report, evaluated(compared, report, metric)
    except UsageError as error:
        watch.warn(f"the result has no value of the metric on the evaluation samples: {error.message}")
        return report, None
