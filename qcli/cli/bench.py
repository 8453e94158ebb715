"""`qcli bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen

_LONGEST = 86_400
_MOST_RUNS = 1_000_000


def bench(
    screen: Screen,
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL…", help="The first is what the others are compared with.")
    ],
    threads: Annotated[
        str,
        typer.Option("--threads", metavar="N[,N…]", help="Threads inside an operator; several numbers to try in turn."),
    ] = "1",
    min_time: Annotated[
        float | None,
        typer.Option(
            "--min-time",
            metavar="SECONDS",
            min=0,
            max=_LONGEST,
            help="Measure for at least this long.",
            show_default=False,
        ),
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(
            "--warm-up",
            metavar="N",
            min=0,
            max=_MOST_RUNS,
            help="Runs of each model before the clock starts.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "-d",
            "--data",
            metavar="DIR",
            help="Samples to run on: a folder or a file. Default: made-up ones.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "-r",
            "--recipe",
            metavar="RECIPE",
            help="Says how samples become inputs, as for images.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Show what each node takes in each model.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure how much memory each model takes, in a process of its own.")
    ] = False,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", metavar="FILE", help="Write the figures as .json, .csv or .md. Repeatable.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure the latency of models side by side."""
    from qcli.benching.nouns import BenchJob
    from qcli.benching.work import bench_job
    from qcli.cli._tables import show_bench
    from qcli.latency import effort_of

    job = BenchJob(
        models=tuple(models),
        threads=options.parse_threads(threads),
        effort=effort_of(min_time, warm_up),
        data=data,
        recipe=recipe,
        profile=profile,
        memory=memory,
        reports=tuple(reports or ()),
    )
    with screen.watching() as watch:
        report = bench_job(job, watch)
    screen.show(report, show_bench)
