"""What a search looks like on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcli.cli._tables import _table

if TYPE_CHECKING:
    from rich.console import Console

    from qcli.tuning.nouns import TuneReport

_PICTURE_WIDTH = 72


def show_tuning(report: TuneReport, console: Console) -> None:
    """The fronts as a table and as pictures, the best of them marked, and what the evaluation samples say of it."""
    from qcli.tuning.canvas import is_drawable
    from qcli.tuning.files import cells, columns, shown, verdict
    from qcli.tuning.picture import draw, views

    rows = [(mark, *cells(outcome)) for mark, outcome in shown(report)]
    console.print(_table(("", *columns(report)), rows))
    for view in views(report):
        console.print()
        for line in draw(view, min(console.width, _PICTURE_WIDTH), plain=not is_drawable(console.encoding)):
            console.print(line, soft_wrap=True)
    console.print(f"\n{len(report.tried)} plans tried on {report.samples} samples")
    if report.reason:
        console.print(report.reason, soft_wrap=True)
    if verdict(report):
        console.print(verdict(report), soft_wrap=True)
