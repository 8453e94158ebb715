"""`qcli check`."""

from __future__ import annotations

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def check(
    screen: Screen,
    model: options.ModelArgument,
    recipe: options.RecipeOption = "int8",
    settings: options.SetOption = None,
    calibration: options.CalibrationOption = None,
    evaluation: options.EvaluationOption = None,
    labels: options.LabelsOption = None,
    gates: options.GateOption = None,
) -> None:
    """Find all problems before the work."""
    from qcli.check import check_job
    from qcli.cli._tables import show_findings
    from qcli.job import QuantizeJob

    job = QuantizeJob(
        model=model,
        recipe=recipe,
        settings=tuple(settings or ()),
        calibration=calibration,
        evaluation=evaluation,
        labels=labels,
        gates=tuple(gates or ()),
    )
    findings = check_job(job)
    screen.show(findings, show_findings)
    if findings.status == "failed":
        raise typer.Exit(1)
