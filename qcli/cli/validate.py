"""`qcli validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def validate(
    screen: Screen,
    float_model: options.ModelArgument,
    compressed: Annotated[
        Path, typer.Argument(metavar="COMPRESSED", help="The model made from it.", show_default=False)
    ],
    evaluation: Annotated[
        Path | None,
        typer.Option(
            "-d",
            "--eval",
            metavar="EVAL",
            help="Samples to run both on: a folder or a file. The recipe may name them instead.",
            show_default=False,
        ),
    ] = None,
    labels: options.LabelsOption = None,
    recipe: options.RecipeOption = "int8",
    settings: options.SetOption = None,
    gates: options.GateOption = None,
    no_latency: options.NoLatencyOption = False,
    memory: options.MemoryOption = False,
    reports: options.ReportOption = None,
    threads: options.ThreadsOption = 0,
    max_memory: options.MaxMemoryOption = None,
) -> None:
    """Compare two models: accuracy, size, kernels, latency, gates."""
    from qcli.render import show_report
    from qcli.side_by_side import CompareJob, compare_models

    job = CompareJob(
        float_model=float_model,
        compressed=compressed,
        recipe=recipe,
        settings=tuple(settings or ()),
        evaluation=evaluation,
        labels=labels,
        gates=tuple(gates or ()),
        reports=tuple(reports or ()),
        threads=threads,
        max_memory=options.parse_memory(max_memory),
        latency=not no_latency,
        memory=memory,
    )
    with screen.watching() as watch:
        report = compare_models(job, watch)
    screen.show(report, show_report)
    if report.status == "failed":
        raise typer.Exit(1)
