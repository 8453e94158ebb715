"""`qcli doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli import _options as options
from qcli.cli._screen import Screen


def doctor(
    screen: Screen,
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="With --kernels: the model whose nodes count.", show_default=False),
    ] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Measure what single kernels cost, and show the table.")
    ] = False,
    recipe: options.RecipeOption = "int8",
    calibration: options.CalibrationOption = None,
    cost_table: Annotated[
        Path | None,
        typer.Option(
            "--cost-table", metavar="FILE", help="Show a table that was measured elsewhere.", show_default=False
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option("-o", "--save", metavar="FILE", help="Write the table, for --cost-table.", show_default=False),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", metavar="N", min=1, max=1024, help="Threads inside a kernel (1).", show_default=False
        ),
    ] = None,
) -> None:
    """Show versions, the processor and integer kernels, or what kernels cost."""
    from qcli.cli._tables import show_diagnosis, show_kernels
    from qcli.cost_listing import KernelsJob, list_kernels
    from qcli.doctor import examine

    job = KernelsJob(
        kernels=kernels,
        model=model,
        recipe=recipe,
        calibration=calibration,
        cost_table=cost_table,
        save=save,
        threads=threads,
    )
    if job == KernelsJob(kernels=False):
        screen.show(examine(), show_diagnosis)
        return
    with screen.watching() as watch:
        listing = list_kernels(job, watch)
    screen.show(listing, show_kernels)
