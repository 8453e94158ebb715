"""`qcli analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def analyze(
    screen: Screen,
    model: options.ModelArgument,
    recipe: options.RecipeOption = "int8",
    settings: options.SetOption = None,
    calibration: options.CalibrationOption = None,
    samples: options.SamplesOption = None,
    random_samples: options.RandomSamplesOption = None,
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", metavar="DIR", help="Samples to compare on, not those of CALIB.", show_default=False),
    ] = None,
    compared: Annotated[
        int, typer.Option("--compare", metavar="N", min=1, help="Compare on N of the samples, spread evenly.")
    ] = 8,
    by: Annotated[str, typer.Option("--by", metavar="PART", help="What to put together: node, op or block.")] = "node",
    top: Annotated[
        int | None,
        typer.Option("--top", metavar="N", min=1, help="Show the N worst rows only.", show_default=False),
    ] = None,
    no_suggestions: Annotated[
        bool, typer.Option("--no-suggestions", help="Do not try which rules would help.")
    ] = False,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", metavar="FILE", help="Write the analysis as .json, .csv or .md. Repeatable.", show_default=False
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure anew what was measured before.")] = False,
    threads: options.ThreadsOption = 0,
    requantize_rest: options.RequantizeOption = False,
    max_memory: options.MaxMemoryOption = None,
) -> None:
    """Find what quantization costs where, and what helps."""
    from qcli.analysis.nouns import AnalyzeJob
    from qcli.analysis.work import analyze as work
    from qcli.cli._tables import show_analysis

    job = AnalyzeJob(
        model=model,
        recipe=recipe,
        settings=tuple(settings or ()),
        calibration=calibration,
        samples=samples,
        random_samples=random_samples,
        evaluation=evaluation,
        compared=compared,
        by=by,
        top=top,
        suggest=not no_suggestions,
        reports=tuple(reports or ()),
        cache=not no_cache,
        threads=threads,
        requantize_rest=requantize_rest,
        max_memory=options.parse_memory(max_memory),
    )
    with screen.watching() as watch:
        analysis = work(job, watch)
    screen.show(analysis, lambda result, console: show_analysis(result, console, top))
