"""The acceptance list, measured: the command line on the zoo, and onnxruntime's model beside each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.children import Child, progress, run_child
from benchmarks.commands import command_checks
from benchmarks.contenders import REFERENCE
from benchmarks.judge import interleaved_latency
from benchmarks.outcome import AcceptanceReport, Check
from benchmarks.subjects import Subject, subject
from benchmarks.targets import TARGETS, Target
from qcli.errors import QcliError, UsageError
from qcli.gates import evaluate, parse_gate
from qcli.latency import Effort
from qcli.report import Report, environment

_SPEEDUP = "latency.speedup"
_EFFORT = Effort(least=2.0, most=10.0)


def accept(zoo: Path, names: Sequence[str] | None = None) -> AcceptanceReport:
    """Every check of the list, or of the models named. A command that fails is a check that is not met.

    Raises UsageError for a name that is not in the list.
    """
    chosen = _chosen(names)
    checks: list[Check] = []
    for target in chosen:
        progress(f"{target.model}: quantize and compare")
        checks.extend(_check_model(subject(zoo, target.model), target))
    progress("bytes, shards and the command line")
    checks.extend(command_checks(zoo, [target.model for target in chosen]))
    return AcceptanceReport(environment=environment(), checks=tuple(checks), met=all(check.met for check in checks))


def _chosen(names: Sequence[str] | None) -> list[Target]:
    known = {target.model: target for target in TARGETS}
    for name in names or ():
        if name not in known:
            raise UsageError(f"'{name}' is not in the acceptance list", f"it has {', '.join(known)}")
    return [known[name] for name in names or known]


def _check_model(model: Subject, target: Target) -> Iterator[Check]:
    with TemporaryDirectory(prefix="qcli-accept-") as folder:
        ours, theirs = Path(folder) / "qcli.onnx", Path(folder) / "onnxruntime.onnx"
        child = run_child(_quantize(model, target, ours))
        yield Check(
            subject=model.name,
            what="exit code",
            target="== 0",
            measured=child.exit_code,
            met=child.exit_code == 0,
            note=child.complaint,
        )
        if child.exit_code:
            return
        report = msgspec.json.decode(child.stdout, type=Report)
        peer = _peer(model, target, theirs) if target.against_peer else None
        speedups = _speedups((model.model, ours, theirs), model) if peer is not None else None
        for gate in target.gates:
            yield _check(model.name, gate, report, peer, speedups)


def _quantize(model: Subject, target: Target, output: Path) -> list[str]:
    limit = [] if target.samples is None else ["--samples", str(target.samples)]
    command = ["-m", "qcli", "quantize", str(model.model), "-r", "int8", "-d", str(model.calibration)]
    command += ["--eval", str(model.evaluation), "-o", str(output), "--json", "-q", "--no-cache"]
    return [*command, *limit, *model.settings()]


def _peer(model: Subject, target: Target, output: Path) -> Report | None:
    """onnxruntime's model, judged by `qcli validate` on the same samples; None if there is none."""
    made = run_child(REFERENCE.command(model, output, target.samples))
    if made.exit_code:
        progress(f"{model.name}: onnxruntime: {made.complaint}")
        return None
    command = ["-m", "qcli", "validate", str(model.model), str(output), "-d", str(model.evaluation)]
    judged: Child = run_child([*command, "--json", "-q", "--no-latency", *model.settings()])
    if judged.exit_code:
        progress(f"{model.name}: onnxruntime's model: {judged.complaint}")
        return None
    return msgspec.json.decode(judged.stdout, type=Report)


def _speedups(files: Sequence[Path], model: Subject) -> tuple[float, ...]:
    """Of both quantized models over the float one, all three in one process and in turn."""
    return interleaved_latency(files, model.evaluation_set(None), _EFFORT).ratios[1:]


def _check(name: str, text: str, report: Report, peer: Report | None, speedups: tuple[float, ...] | None) -> Check:
    gate = parse_gate(text)
    side_by_side = speedups if gate.path == _SPEEDUP else None
    value, passed = _judged(text, report)
    check = Check(
        subject=name,
        what=gate.path,
        target=text.removeprefix(gate.path).strip(),
        measured=value,
        met=passed,
        onnxruntime=_judged(text, peer)[0] if peer is not None else None,
        note="" if value is not None else "not measured",
    )
    if side_by_side is None:
        return check
    ours, theirs = side_by_side
    return msgspec.structs.replace(check, onnxruntime=theirs, note=f"beside onnxruntime's: {ours:.2f}")


def _judged(gate: str, report: Report) -> tuple[float | None, bool]:
    """The number behind a gate and whether it is good enough; what was not measured is not."""
    try:
        result = evaluate([parse_gate(gate)], report)[0]
    except QcliError:
        return None, False
    return result.value, result.passed
