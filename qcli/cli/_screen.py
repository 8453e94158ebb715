"""What a command writes: the result on stdout, everything else on stderr."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    import msgspec
    from rich.console import Console

    from qcli.cli._live import Live
    from qcli.watch import Standing, Watch

Result = TypeVar("Result", bound="msgspec.Struct")

_UNBOUNDED = 10_000
"""The width of what is not a terminal: nothing is folded or cut."""


class Screen:
    """The two streams of one run, as its common options want them."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self._json = json
        self._quiet = quiet
        self._verbose = verbose and not quiet

    def show(self, result: Result, table: Callable[[Result, Console], None]) -> None:
        """The result as one JSON document with `--json`, else as `table` prints it."""
        if self._json:
            from qcli.report import encode_report

            self.data(encode_report(result))
            return
        console = console_for("stdout")
        with console.capture() as captured:
            table(result, console)
        self.text("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def text(self, text: str) -> None:
        """Writes to stdout as its encoding allows."""
        self.data(text.encode(sys.stdout.encoding or "utf-8", errors="replace"))

    def data(self, data: bytes) -> None:
        """Writes to stdout; that its reader has gone changes nothing about the work."""
        try:
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """A Watch that shows warnings, and progress where somebody looks on."""
        from qcli.watch import Watch

        with self._progress() as progress:
            console = progress.console if progress is not None else console_for("stderr")
            watch = Watch()
            if not self._quiet:
                watch.on_warning = lambda text: say(console, "warning", text)
                watch.on_standing = _said_when_better(console)
            if self._verbose:
                watch.on_phase = lambda name: console.print(name, soft_wrap=True)
            if progress is not None:
                _follow(watch, progress, self._verbose)
            yield watch

    def _progress(self) -> AbstractContextManager[Live | None]:
        if self._quiet or os.environ.get("CI") or not sys.stderr.isatty():
            return nullcontext()
        from qcli.cli._live import live_progress

        return live_progress(console_for("stderr"))


def console_for(stream: str) -> Console:
    """A console that takes nothing for markup. NO_COLOR and FORCE_COLOR count."""
    from rich.console import Console

    terminal = getattr(sys, stream).isatty()
    return Console(
        stderr=stream == "stderr",
        width=None if terminal else _UNBOUNDED,
        markup=False,
        highlight=False,
        emoji=False,
    )


def say(console: Console, level: str, text: str) -> None:
    """`warning: …` on one line of stderr."""
    from rich.text import Text

    style = {"error": "bold red", "warning": "bold yellow"}.get(level, "bold cyan")
    console.print(Text.assemble((f"{level}:", style), f" {text}"), soft_wrap=True)


def on_screen(work: Callable[..., None]) -> Callable[..., None]:
    """Makes a command of a function: adds the common options, and hands it the Screen that they describe."""

    @wraps(work)
    def command(*, json: bool, quiet: bool, verbose: bool, debug: bool, **options: object) -> None:
        del debug  # the edge looks for it itself, since it counts for errors in the other options too
        work(Screen(json=json, quiet=quiet, verbose=verbose), **options)

    own = list(inspect.signature(work, eval_str=True).parameters.values())[1:]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in _COMMON.items()
    ]
    command.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *common)}
    return command


_COMMON = {
    "json": Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no warnings.")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="Say what is done.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
}


def _said_when_better(console: Console) -> Callable[[Standing | None], None]:
    """A line whenever a search has another best."""
    last = ""

    def said(standing: Standing | None) -> None:
        nonlocal last
        if standing is not None and standing.best != last:
            last = standing.best
            console.print(f"{standing}", soft_wrap=True)

    return said


def _follow(watch: Watch, progress: Live, verbose: bool) -> None:
    """One line of progress that always shows the phase at hand, and one below it for how far a search is."""
    task = progress.add_task("", total=None)

    def phase(name: str) -> None:
        nonlocal task
        progress.remove_task(task)  # a reset would keep the total of the phase before
        task = progress.add_task(name, total=None)
        if verbose:
            progress.console.print(name)

    watch.on_phase = phase
    watch.on_standing = progress.stand
    watch.on_progress = lambda name, done, total: progress.update(task, description=name, completed=done, total=total)
