"""Progress on a terminal: a bar for the phase at hand, and below it how far a search is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from qcli.watch import Standing


class Live(Progress):
    """A bar, and a line that counts down while a search has time."""

    _standing: Standing | None = None

    def stand(self, standing: Standing | None) -> None:
        self._standing = standing

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn at each refresh."""
        yield from super().get_renderables()
        if self._standing is not None:
            yield Text(f"{self._standing}", no_wrap=True, overflow="ellipsis")


def live_progress(console: Console) -> Live:
    """Gone from the terminal when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Live(*columns, console=console, transient=True)
