"""`qcli plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def plan(
    screen: Screen,
    model: options.ModelArgument,
    recipe: options.RecipeOption = "int8",
    settings: options.SetOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the plan as YAML, to edit and use.",
            show_default=False,
        ),
    ] = None,
    calibration: options.CalibrationOption = None,
    requantize_rest: options.RequantizeOption = False,
) -> None:
    """Show what would be quantized, how and why."""
    from qcli.cli._tables import show_plan
    from qcli.job import QuantizeJob
    from qcli.stages import make_plan_file

    job = QuantizeJob(
        model=model,
        recipe=recipe,
        settings=tuple(settings or ()),
        calibration=calibration,
        output=output,
        requantize_rest=requantize_rest,
    )
    with screen.watching() as watch:
        made = make_plan_file(job, watch)
    screen.show(made, show_plan)
