"""`qcli bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli._screen import Screen


def bench(
    screen: Screen,
    models: Annotated[
        list[Path], typer.Argument(metavar="MODEL…", help="The first is what the others are compared with.")
    ],
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", min=1, max=1024, help="Threads inside an operator.")
    ] = 1,
) -> None:
    """Measure the latency of models side by side."""
    from qcli.cli._tables import show_bench
    from qcli.latency import bench as work

    screen.show(work(models, threads=threads), show_bench)
