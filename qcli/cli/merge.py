"""`qcli merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli._screen import Screen


def merge(
    screen: Screen,
    parts: Annotated[list[Path], typer.Argument(metavar="STATS…", help="Statistics of shards of one calibration.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="STATS", help="The file to write.", show_default=False)
    ],
) -> None:
    """Join the statistics of shards of one calibration."""
    from qcli.cli._tables import show_statistics
    from qcli.stages import merge_statistics

    screen.show(merge_statistics(parts, output), show_statistics)
