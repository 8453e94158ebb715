"""Cells of characters to draw on, with dots finer than a cell where the characters can show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Cell = tuple[int, int]
"""Column and row, from the top left."""

_BRAILLE = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The dots of a braille character, four rows of two."""


@dataclass(frozen=True)
class Script:
    """The characters to draw with."""

    kept: str
    missed: str
    tried: str
    level: str
    upright: str
    corners: tuple[str, str]
    limits: tuple[str, str]
    exact: str
    fine: bool
    best: str = "*"
    float_: str = "F"


UNICODE = Script(
    kept="●",
    missed="○",
    tried="⠂",
    level="─",
    upright="│",
    corners=("└", "┌"),
    limits=("┈", "┊"),
    exact="exact",
    fine=True,
)
ASCII = Script(
    kept="@",
    missed="o",
    tried=".",
    level="-",
    upright="|",
    corners=("+", "+"),
    limits=("~", ":"),
    exact="exact",
    fine=False,
)


def is_drawable(encoding: str) -> bool:
    """Whether an encoding has the characters of the finer script."""
    script = UNICODE
    try:
        "".join((script.kept, script.missed, script.tried, *script.corners, *script.limits)).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@dataclass
class Canvas:
    """What is drawn first stays: points, then dots, then lines."""

    script: Script
    _cells: dict[Cell, str] = field(default_factory=dict)
    _dots: dict[Cell, int] = field(default_factory=dict)

    def put(self, cell: Cell, mark: str) -> bool:
        """Whether the mark can be seen there."""
        return self._cells.setdefault(cell, mark) == mark

    def dot(self, place: tuple[int, int]) -> bool:
        """A dot at a place among two in each column and four in each row; whether it can be seen."""
        cell = place[0] // 2, place[1] // 4
        if cell in self._cells and cell not in self._dots:
            return False
        self._dots[cell] = self._dots.get(cell, 0) | _BITS[place[1] % 4][place[0] % 2]
        self._cells[cell] = chr(_BRAILLE | self._dots[cell]) if self.script.fine else self.script.tried
        return True

    def line(self, mark: str, cells: Iterable[Cell]) -> None:
        for cell in cells:
            self.put(cell, mark)

    def steps(self, cells: Sequence[Cell]) -> None:
        """From each cell up or down to the height of the next one on the right, then along to it."""
        for (left, start), (right, end) in pairwise(cells):
            self.line(self.script.upright, [(left, row) for row in range(min(start, end) + 1, max(start, end))])
            self.put((left, end), self.script.corners[0 if start < end else 1])
            self.line(self.script.level, [(column, end) for column in range(left + 1, right)])

    def row(self, row: int) -> str:
        """The characters of a row, up to the last that is not blank."""
        columns = [column for column, at in self._cells if at == row]
        return "".join(self._cells.get((column, row), " ") for column in range(max(columns, default=-1) + 1))
