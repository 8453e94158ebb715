"""The acceptance list, measured: the command line on the zoo, and onnxruntime's model beside each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.children import Child, progress, run_child
from benchmarks.commands import command_checks
from benchmarks.contenders import FULL_RANGE, REFERENCE, Contender, reduces_range
from benchmarks.judge import interleaved_latency
from benchmarks.outcome import AcceptanceReport, Check
from benchmarks.subjects import Subject, subject
from benchmarks.targets import TARGETS, Target
from qcli.errors import QcliError, UsageError
from qcli.gates import evaluate, parse_gate
from qcli.latency import Effort
from qcli.report import Report, environment
from qcli.types import Noun

_SPEEDUP = "latency.speedup"
_EFFORT = Effort(least=2.0, most=10.0)


def accept(zoo: Path, names: Sequence[str] | None = None) -> AcceptanceReport:
    """Every check of the list, or of the models named. A command that fails is a check that is not met.

    Raises UsageError for a name that is not in the list.
    """
    chosen = _chosen(names)
    checks: list[Check] = []
    for target in chosen:
        progress(f"{target.model}: quantize with {target.recipe} and compare")
        checks.extend(_check_model(subject(zoo, target.model), target))
    progress("bytes, shards and the command line")
    checks.extend(command_checks(zoo, [target.model for target in chosen]))
    return AcceptanceReport(environment=environment(), checks=tuple(checks), met=all(check.met for check in checks))


def _chosen(names: Sequence[str] | None) -> list[Target]:
    known = dict.fromkeys(target.model for target in TARGETS)
    for name in names or ():
        if name not in known:
            raise UsageError(f"'{name}' is not in the acceptance list", f"it has {', '.join(known)}")
    return [target for target in TARGETS if not names or target.model in names]


def _check_model(model: Subject, target: Target) -> Iterator[Check]:
    with TemporaryDirectory(prefix="qcli-accept-") as folder:
        ours, theirs = Path(folder) / "qcli.onnx", Path(folder) / "onnxruntime.onnx"
        child = run_child(_quantize(model, target, ours))
        yield Check(
            subject=_title(target),
            what="exit code",
            target="== 0",
            measured=child.exit_code,
            met=child.exit_code == 0,
            note=child.complaint,
        )
        if child.exit_code:
            return
        report = msgspec.json.decode(child.stdout, type=Report)
        beside = _beside(model, target, (ours, theirs)) if target.against_peer else _Beside()
        for gate in target.gates:
            yield _check(_title(target), gate, report, beside)


def _title(target: Target) -> str:
    return target.model if target.recipe == "int8" else f"{target.model}, {target.recipe}"


def _quantize(model: Subject, target: Target, output: Path) -> list[str]:
    limit = [] if target.samples is None else ["--samples", str(target.samples)]
    command = ["-m", "qcli", "quantize", str(model.model), "-r", target.recipe, "-d", str(model.calibration)]
    command += ["--eval", str(model.evaluation), "-o", str(output), "--json", "-q", "--no-cache"]
    return [*command, *limit, *model.settings()]


class _Beside(Noun, frozen=True, kw_only=True):
    """What onnxruntime's models reach: `full_range` is the one with 8-bit weights, where `peer` has 7.

    `speedups` are qcli's and the peer's over the float model, all three in one process and in turn.
    """

    peer: Report | None = None
    full_range: Report | None = None
    speedups: tuple[float, float] | None = None


def _beside(model: Subject, target: Target, files: tuple[Path, Path]) -> _Beside:
    ours, theirs = files
    peer = _peer(model, target, theirs, REFERENCE)
    if peer is None:
        return _Beside()
    wide = theirs.with_name("full-range.onnx")
    latency = interleaved_latency((model.model, ours, theirs), model.evaluation_set(None), _EFFORT)
    return _Beside(
        peer=peer,
        full_range=_peer(model, target, wide, FULL_RANGE) if reduces_range() else None,
        speedups=(latency.ratios[1], latency.ratios[2]),
    )


def _peer(model: Subject, target: Target, output: Path, contender: Contender) -> Report | None:
    """onnxruntime's model, judged by `qcli validate` on the same samples; None if there is none."""
    made = run_child(contender.command(model, output, target.samples))
    if made.exit_code:
        progress(f"{model.name}: {contender.name}: {made.complaint}")
        return None
    command = ["-m", "qcli", "validate", str(model.model), str(output), "-d", str(model.evaluation)]
    judged: Child = run_child([*command, "--json", "-q", "--no-latency", *model.settings()])
    if judged.exit_code:
        progress(f"{model.name}: {contender.name}: {judged.complaint}")
        return None
    return msgspec.json.decode(judged.stdout, type=Report)


def _check(name: str, text: str, report: Report, beside: _Beside) -> Check:
    gate = parse_gate(text)
    value, passed = _judged(text, report)
    timed = beside.speedups if gate.path == _SPEEDUP else None
    peer = timed[1] if timed is not None else _judged(text, beside.peer)[0]
    notes = ["not measured"] if value is None else []
    if timed is not None:
        notes.append(f"beside onnxruntime's: {timed[0]:.2f}")
    wide = _judged(text, beside.full_range)[0]
    if wide is not None and gate.path.startswith("accuracy."):
        notes.append(f"onnxruntime with 8-bit weights: {wide:.3f}")
    return Check(
        subject=name,
        what=gate.path,
        target=text.removeprefix(gate.path).strip(),
        measured=value,
        met=passed,
        onnxruntime=peer,
        note="; ".join(notes),
    )


def _judged(gate: str, report: Report | None) -> tuple[float | None, bool]:
    """The number behind a gate and whether it is good enough; what was not measured is not."""
    if report is None:
        return None, False
    try:
        result = evaluate([parse_gate(gate)], report)[0]
    except QcliError:
        return None, False
    return result.value, result.passed
