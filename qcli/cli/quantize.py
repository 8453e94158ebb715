"""`qcli quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def quantize(
    screen: Screen,
    model: options.ModelArgument,
    recipe: options.RecipeOption = "int8",
    settings: options.SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="Where to write. Default: the model's stem and the recipe's name, in the current folder.",
            show_default=False,
        ),
    ] = None,
    keep_failing: Annotated[
        bool,
        typer.Option("--keep-failing", help="Keep a model that missed a gate as OUT.rejected.onnx."),
    ] = False,
    reports: options.ReportOption = None,
    depfile: Annotated[
        Path | None,
        typer.Option(
            "--depfile",
            metavar="FILE",
            help="Write what OUT depends on, in make's syntax.",
            show_default=False,
        ),
    ] = None,
    encodings: Annotated[
        Path | None,
        typer.Option(
            "--encodings",
            metavar="FILE",
            help="Write all scales and offsets as JSON, in the format of AIMET.",
            show_default=False,
        ),
    ] = None,
    encodings_version: Annotated[
        str, typer.Option("--encodings-version", metavar="V", help="The version of that format: 1.0.0 or 0.6.1.")
    ] = "1.0.0",
    calibration: options.CalibrationOption = None,
    samples: options.SamplesOption = None,
    random_samples: options.RandomSamplesOption = None,
    evaluation: options.EvaluationOption = None,
    labels: options.LabelsOption = None,
    gates: options.GateOption = None,
    no_latency: options.NoLatencyOption = False,
    memory: options.MemoryOption = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Use this plan and make none.", show_default=False),
    ] = None,
    stats: Annotated[
        Path | None,
        typer.Option("--stats", metavar="FILE", help="Use these statistics and measure none.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and plan; write nothing.")] = False,
    requantize_rest: options.RequantizeOption = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure anew what was measured before.")] = False,
    target_bpw: Annotated[
        float | None,
        typer.Option(
            "--target-bpw",
            metavar="BITS",
            help="Give each weight the width that serves best, with BITS a weight on average, scales included.",
            show_default=False,
        ),
    ] = None,
    threads: options.ThreadsOption = 0,
    max_memory: options.MaxMemoryOption = None,
) -> None:
    """Quantize a model, run the result and judge it."""
    from qcli.fallback import quantize as work
    from qcli.job import QuantizeJob
    from qcli.render import show_report

    job = QuantizeJob(
        model=model,
        recipe=recipe,
        settings=options.with_target(settings, target_bpw),
        calibration=calibration,
        evaluation=evaluation,
        labels=labels,
        output=output,
        plan=plan,
        stats=stats,
        gates=tuple(gates or ()),
        reports=tuple(reports or ()),
        samples=samples,
        random_samples=random_samples,
        threads=threads,
        max_memory=options.parse_memory(max_memory),
        latency=not no_latency,
        memory=memory,
        cache=not no_cache,
        keep_failing=keep_failing,
        dry_run=dry_run,
        depfile=depfile,
        encodings=encodings,
        encodings_version=options.parse_encodings_version(encodings_version),
        requantize_rest=requantize_rest,
    )
    with screen.watching() as watch:
        report = work(job, watch)
    screen.show(report, show_report)
    if report.status == "failed":
        raise typer.Exit(1)
