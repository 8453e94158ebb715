"""Every model of a zoo with every preset: what became of it, or why nothing did.

Rows are kept in a file as they come, so that an interrupted sweep goes on where it was. Models are quantized several
at a time, each in a process of its own; what claims speed is timed afterwards, alone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Lock, Timer

import msgspec

from benchmarks.children import ROOT, environment_of_children, progress
from benchmarks.sweep_rows import Case, SweepReport, SweepRow, claims_speed, models_of
from qcli.errors import QcliError, UsageError, did_you_mean
from qcli.latency import measure
from qcli.recipe import preset_names
from qcli.report import environment
from qcli.runtime import Session
from qcli.types import Noun

KEPT = ROOT / "out" / "sweep.json"

_LATE = "took more than"

_TIMED_ON = 4
"""Samples that the time is measured on."""


class Options(Noun, frozen=True, kw_only=True):
    """What to sweep over, and how. Empty `models` and `presets` mean all; `models` are parts of names.

    `jobs` models are quantized at the same time, each preset for at most `time_limit` seconds. `latency` times the
    presets that claim speed. `resume` takes over the rows that the file of an earlier sweep holds.
    """

    models: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    jobs: int = 2
    time_limit: float = 600.0
    latency: bool = True
    resume: bool = False


class _Rows:
    """The rows so far, saved after each. None is asked for any more once `ended` is set."""

    def __init__(self, known: tuple[SweepRow, ...], save: Callable[[SweepReport], None]) -> None:
        self._found = {(row.model, row.preset): row for row in known}
        self._environment = environment()
        self._save, self._lock = save, Lock()
        self.ended = Event()

    def take(self, row: SweepRow) -> None:
        with self._lock:
            self._found[row.model, row.preset] = row
            self._save(self.report())

    def of(self, model: str, preset: str) -> SweepRow | None:
        return self._found.get((model, preset))

    def report(self) -> SweepReport:
        return SweepReport(environment=self._environment, rows=tuple(self._found[key] for key in sorted(self._found)))


def sweep(zoo: Path, options: Options, kept: Path, save: Callable[[SweepReport], None]) -> SweepReport:
    """Quantizes every model in `zoo`, those in its folder `odd` too, with every preset; `save` is called with each row.

    The rows of an earlier sweep are in `kept`. Raises UsageError for a preset or a model that is not there.
    """
    cases = _cases(zoo, options, kept.with_suffix(""))
    rows = _Rows(_known(kept) if options.resume else (), save)
    todo = [_rest(case, rows, options) for case in cases]
    todo.sort(key=lambda case: -Path(case.model).stat().st_size)  # so that the last one is a short one
    Path(cases[0].kept).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            list(pool.map(lambda case: _run(case, rows, options), todo))
        finally:
            rows.ended.set()
    for case in cases:
        _time_all(case, rows, options)
    report = rows.report()
    save(report)
    return report


def _cases(zoo: Path, options: Options, kept: Path) -> list[Case]:
    for preset in options.presets:
        if preset not in preset_names():
            raise UsageError(f"there is no preset '{preset}'", did_you_mean(preset, preset_names()))
    presets = options.presets or preset_names()
    cases = [Case(zoo=str(zoo), model=str(model), presets=presets, kept=str(kept)) for model in models_of(zoo)]
    wanted = [case for case in cases if not options.models or any(part in case.name for part in options.models)]
    if not wanted:
        raise UsageError(f"no model in {zoo} has {' or '.join(options.models) or 'a name'}", "see its README.md")
    return wanted


def _known(kept: Path) -> tuple[SweepRow, ...]:
    if not kept.is_file():
        return ()
    try:
        return msgspec.json.decode(kept.read_bytes(), type=SweepReport).rows
    except msgspec.MsgspecError as error:
        raise UsageError(f"'{kept}' holds no sweep: {error}", "delete it to begin anew") from error


def _rest(case: Case, rows: _Rows, options: Options) -> Case:
    """The case with those presets alone that must be run, because there is no row or one at fault."""

    def lacks(preset: str) -> bool:
        row = rows.of(case.name, preset)
        if row is None or row.fault:
            return True
        return _to_time(row, options) and not case.output(preset).is_file()

    return msgspec.structs.replace(case, presets=tuple(preset for preset in case.presets if lacks(preset)))


def _run(case: Case, rows: _Rows, options: Options) -> None:
    for row in _rows_of(case, options.time_limit):
        if rows.ended.is_set():
            return
        rows.take(row)
        if not _to_time(row, options):
            case.output(row.preset).unlink(missing_ok=True)
        progress(f"{row.model} {row.preset}: exit code {row.code}, {row.seconds:.1f} s {row.fault}".rstrip())


def _rows_of(case: Case, limit: float) -> Iterator[SweepRow]:
    """A row for each preset. Where the process ends without one, that preset is at fault, and another one goes on."""
    left = case.presets
    while left:
        fault = ""
        for line in _lines(msgspec.structs.replace(case, presets=left), limit):
            if isinstance(line, str):
                fault = line
            else:
                left = left[1:]
                yield line
        if left:
            code = 7 if fault.startswith(_LATE) else 70
            yield SweepRow(model=case.name, preset=left[0], code=code, fault=fault or "ended without a word")
            left = left[1:]


def _lines(case: Case, limit: float) -> Iterator[SweepRow | str]:
    """The rows that a process writes, and at the end what was wrong with it if it did not end by itself."""
    command = [sys.executable, "-m", "benchmarks.sweep_child", msgspec.json.encode(case).decode()]
    late = Event()
    with TemporaryFile() as complaints:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment_of_children(), stdout=subprocess.PIPE, stderr=complaints
        )
        with child as process:
            try:
                while line := _line(process, limit, late):
                    yield msgspec.json.decode(line, type=SweepRow)
            except GeneratorExit:
                process.kill()
                raise
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
    if late.is_set():
        yield f"{_LATE} {limit:.0f} seconds"
    elif process.returncode:
        yield f"the process ended with {process.returncode}: {' '.join(last)}".replace(f"{case.zoo}/", "")


def _line(process: subprocess.Popen[bytes], limit: float, late: Event) -> bytes:
    """What the process writes next, b"" at its end. Beyond the limit of seconds it is killed, and `late` is set."""
    if process.stdout is None:
        raise ValueError("the process has no pipe")

    def stop() -> None:
        late.set()
        process.kill()

    timer = Timer(limit, stop)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


def _to_time(row: SweepRow, options: Options) -> bool:
    return options.latency and row.code == 0 and not row.fault and row.speedup is None and claims_speed(row.preset)


def _time_all(case: Case, rows: _Rows, options: Options) -> None:
    for preset in case.presets:
        row = rows.of(case.name, preset)
        if row is None or not _to_time(row, options):
            continue
        try:
            timed = msgspec.structs.replace(row, speedup=_speedup(case, preset))
        except QcliError as error:
            timed = msgspec.structs.replace(row, fault=error.message)
        rows.take(timed)
        case.output(preset).unlink(missing_ok=True)
        progress(f"{row.model} {preset}: speedup {timed.speedup}")


def _speedup(case: Case, preset: str) -> float:
    from benchmarks.sweep_child import samples_of

    sessions = [Session(path, spin=False) for path in (Path(case.model), case.output(preset))]
    feeds = [sample.feeds for sample in samples_of(case.job(preset), _TIMED_ON)]
    return measure(sessions, feeds, 1).ratios[1]
