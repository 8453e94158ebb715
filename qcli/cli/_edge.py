"""The edge: whatever escapes from a command becomes an error line, a hint and an exit code."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from types import FrameType

import typer

from qcli.cli._screen import console_for, say
from qcli.errors import Interrupted, QcliError, ResourceError, did_you_mean
from qcli.files import sweep

_USAGE = 2
_BUG = 70
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Fault:
    """What a user learns of an exception."""

    code: int
    message: str
    hint: str = ""


def guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Runs `work` and returns its exit code, or that of the error that it ended with.

    Libraries that call Python from C may turn the interrupt into an error of their own, so whatever
    ends the work after a signal counts as that signal.
    """
    arrived: list[int] = []
    try:
        with _signals_raise(arrived):
            return work()
    except SystemExit:  # rich and typer leave so when the reader of a help text has gone
        return 0
    except (Exception, Interrupted) as error:
        fault = describe(Interrupted(arrived[0]) if arrived else error)
        sweep()
        if debug:
            traceback.print_exception(error, file=sys.stderr)
    console = console_for("stderr")
    say(console, "error", fault.message)
    if fault.hint:
        say(console, "hint", fault.hint)
    return fault.code


@singledispatch
def describe(error: BaseException) -> Fault:
    """The fault behind an exception; one that nobody foresaw is a bug in qcli."""
    text = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return Fault(_BUG, f"internal: {reason}", "this is a bug in qcli: run again with --debug and report what it prints")


@describe.register
def _(error: QcliError) -> Fault:
    return Fault(error.exit_code, error.message, error.hint)


@describe.register
def _(error: typer.TyperException) -> Fault:
    context = getattr(error, "ctx", None)
    hint = f"see '{context.command_path} --help'" if context is not None else "see 'qcli --help'"
    if context is not None and hasattr(error, "possibilities"):  # an unknown option
        word = getattr(error, "option_name", "")
        known = [name for parameter in context.command.get_params(context) for name in parameter.opts]
        longs = [name for name in known if name.startswith("--")]
        return Fault(_USAGE, f"no such option '{word}'", did_you_mean(word, longs) or hint)
    text = " ".join(error.format_message().split()).removesuffix(".")
    return Fault(_USAGE, text[:1].lower() + text[1:], hint)


@describe.register
def _(error: typer.Abort) -> Fault:
    """typer takes an EOFError for a prompt that was declined; qcli never prompts."""
    return describe.dispatch(BaseException)(error.__cause__ or error)


@describe.register
def _(error: Interrupted) -> Fault:
    return Fault(128 + error.number, "interrupted")


@describe.register
def _(_error: MemoryError) -> Fault:
    hint = "use fewer --threads, smaller samples or a machine with more memory"
    return Fault(ResourceError.exit_code, "out of memory", hint)


@describe.register
def _(error: OSError) -> Fault:
    if error.errno not in _DISK_FULL:
        return describe.dispatch(BaseException)(error)
    where = f" to write '{error.filename}'" if error.filename else ""
    hint = "free some space, or let TMPDIR point to another disk"
    return Fault(ResourceError.exit_code, f"no space left{where}", hint)


@contextmanager
def _signals_raise(arrived: list[int]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP unwind the work, once; further ones do not disturb the tidying up.

    The number of the one that came is added to `arrived`. One that is ignored stays so: `nohup` means what it says.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    named = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]  # Windows lacks the last
    numbers = [number for number in named if number is not None and signal.getsignal(number) is not signal.SIG_IGN]
    before = [signal.getsignal(number) for number in numbers]

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        arrived.append(number)
        raise Interrupted(number)

    for number in numbers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
