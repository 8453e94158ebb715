"""`qcli inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcli.cli._screen import Screen


def inspect(
    screen: Screen,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any .onnx file.", show_default=False)],
    memory: Annotated[
        bool, typer.Option("--memory", help="Measure how much memory the model takes, in a process of its own.")
    ] = False,
) -> None:
    """Show what a model is made of and what it runs as."""
    from qcli.cli._tables import show_inspection
    from qcli.inspect import inspect_model

    screen.show(inspect_model(model, memory=memory), show_inspection)
