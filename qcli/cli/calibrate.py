"""`qcli calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def calibrate(
    screen: Screen,
    model: options.ModelArgument,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="STATS", help="The statistics file, .npz.", show_default=False),
    ],
    recipe: options.RecipeOption = "int8",
    settings: options.SetOption = None,
    calibration: options.CalibrationOption = None,
    samples: options.SamplesOption = None,
    random_samples: options.RandomSamplesOption = None,
    shard: options.ShardOption = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Measure what this plan needs.", show_default=False),
    ] = None,
    threads: options.ThreadsOption = 0,
    requantize_rest: options.RequantizeOption = False,
    max_memory: options.MaxMemoryOption = None,
) -> None:
    """Measure activations on samples, into a file."""
    from qcli.cli._tables import show_statistics
    from qcli.job import QuantizeJob
    from qcli.stages import make_statistics_file

    job = QuantizeJob(
        model=model,
        recipe=recipe,
        settings=tuple(settings or ()),
        calibration=calibration,
        samples=samples,
        random_samples=random_samples,
        shard=options.parse_shard(shard),
        plan=plan,
        threads=threads,
        max_memory=options.parse_memory(max_memory),
        output=output,
        requantize_rest=requantize_rest,
    )
    with screen.watching() as watch:
        header = make_statistics_file(job, watch)
    screen.show(header, show_statistics)
