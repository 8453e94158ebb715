"""What the work tells whoever watches it: phases, progress, warnings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Standing:
    """How far a search is: its best in words, how many it tried, and when its time is over, by `perf_counter`."""

    best: str
    tried: int
    ends: float

    def __str__(self) -> str:
        left = max(0.0, self.ends - time.perf_counter())
        return f"best {self.best}; {self.tried} tried, {left:.0f} s left"


@dataclass
class Watch:
    """Collects warnings and the seconds of each phase. The command line adds its own `on_*` functions.

    `on_progress` gets the phase, the steps done and the steps in all; `on_standing` gets None when a search is over.
    """

    on_phase: Callable[[str], None] = lambda _: None
    on_progress: Callable[[str, int, int], None] = lambda _, done, total: None
    on_standing: Callable[[Standing | None], None] = lambda _: None
    on_warning: Callable[[str], None] = lambda _: None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    _phase: str = ""
    _since: float = field(default_factory=time.perf_counter)
    _start: float = field(default_factory=time.perf_counter)

    def phase(self, name: str) -> None:
        """Ends the phase before and begins `name`."""
        self._close()
        self._phase = name
        self.on_phase(name)

    def progress(self, done: int, total: int) -> None:
        self.on_progress(self._phase, done, total)

    def warn(self, text: str) -> None:
        """A warning for the user and the report, once."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.on_warning(text)

    def finish(self) -> dict[str, float]:
        """The seconds of each phase, and `total`."""
        self._close()
        self._phase = ""
        return {**self.seconds, "total": time.perf_counter() - self._start}

    def _close(self) -> None:
        now = time.perf_counter()
        if self._phase:
            self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + now - self._since
        self._since = now


def watched(items: Iterable[_T], count: int, watch: Watch) -> Iterator[_T]:
    """The items, of which there are `count`, with progress after each."""
    for done, item in enumerate(items, 1):
        yield item
        watch.progress(done, count)
