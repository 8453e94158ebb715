"""`qcli tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def tune(
    screen: Screen,
    model: options.ModelArgument,
    recipes: Annotated[
        list[str] | None,
        typer.Option("-r", "--recipe", metavar="RECIPE", help="A preset or a file; repeat it to try several."),
    ] = None,
    settings: options.SetOption = None,
    calibration: options.CalibrationOption = None,
    samples: options.SamplesOption = None,
    evaluation: options.EvaluationOption = None,
    labels: options.LabelsOption = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Where the best model goes.", show_default=False),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="X", help="Top-1 that may be lost: 0.01 is 1 %.", show_default=False),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option("--min-sqnr", metavar="DB", help="Signal-to-noise ratio of the worst output.", show_default=False),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            metavar="NAME|FILE.py",
            help="What accuracy is: sqnr, agreement, top1, perplexity, or a file with a function of yours.",
            show_default=False,
        ),
    ] = None,
    min_metric: Annotated[
        float | None,
        typer.Option("--min-metric", metavar="X", help="The metric's least value.", show_default=False),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the file that --metric names, with all your rights.")
    ] = False,
    max_size: Annotated[
        float | None,
        typer.Option("--max-size", metavar="X", help="Bytes relative to the float model's.", show_default=False),
    ] = None,
    max_latency: Annotated[
        float | None,
        typer.Option("--max-latency", metavar="X", help="Time relative to the float model's.", show_default=False),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", metavar="AIM", help="What to improve: latency, size or accuracy.")
    ] = "latency",
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="S", help="Seconds after which nothing new is tried.")
    ] = 300.0,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write all that was tried as .json, .csv or .md. Repeatable.",
            show_default=False,
        ),
    ] = None,
    search: Annotated[
        str,
        typer.Option("--search", metavar="WAY", help="How parts are searched: front, greedy or exhaustive."),
    ] = "front",
    jobs: Annotated[
        int, typer.Option("-j", "--jobs", metavar="N", help="Plans that are judged at a time, each in a process.")
    ] = 1,
    cost_table: Annotated[
        Path | None,
        typer.Option(
            "--cost-table",
            metavar="FILE",
            help="Kernels of another machine ('doctor --kernels --save'), in place of timing on this one.",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure anew what was measured before.")] = False,
    threads: options.ThreadsOption = 0,
    max_memory: options.MaxMemoryOption = None,
) -> None:
    """Search for the fastest or smallest plan within limits."""
    from qcli.cli._tune import show_tuning
    from qcli.tuning.nouns import Limits, TuneJob, objective_of, strategy_of
    from qcli.tuning.work import tune as work

    first, *more = recipes or ("int8", "int8-weights", "int8-transformer", "int8-accurate")
    job = TuneJob(
        model=model,
        recipe=first,
        recipes=tuple(more),
        settings=tuple(settings or ()),
        calibration=calibration,
        samples=samples,
        evaluation=evaluation,
        labels=labels,
        output=output,
        limits=Limits(
            max_drop=max_drop,
            min_sqnr=min_sqnr,
            min_metric=min_metric,
            max_size=max_size,
            max_latency=max_latency,
        ),
        objective=objective_of(objective),
        time_limit=time_limit,
        search=strategy_of(search),
        jobs=jobs,
        cost_table=cost_table,
        metric=metric,
        allow_code=allow_code,
        reports=tuple(reports or ()),
        cache=not no_cache,
        threads=threads,
        max_memory=options.parse_memory(max_memory),
    )
    with screen.watching() as watch:
        report = work(job, watch)
    screen.show(report, show_tuning)
    if not report.met:
        raise typer.Exit(1)
