"""A process for one model: `python -m benchmarks.sweep_child CASE` writes a line of JSON for each preset as it ends.

It is a process of its own so that memory goes back after each model, and a crash of the runtime costs one row.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime

from benchmarks.sweep_rows import Case, SweepRow
from qcli import QuantizeJob, quantize
from qcli.dataset import Sample
from qcli.errors import QcliError, RuntimeFailure
from qcli.graph import load_model
from qcli.recipe import load_recipe
from qcli.report import Report
from qcli.runtime import Session
from qcli.sources import open_source, random_source
from qcli.watch import Watch


def main(case: Case) -> None:
    for preset in case.presets:
        sys.stdout.buffer.write(msgspec.json.encode(row(case, preset)) + b"\n")
        sys.stdout.buffer.flush()


def row(case: Case, preset: str) -> SweepRow:
    """What becomes of the model. An error that is no answer, of qcli or of the check of its result, is a fault."""
    job, begin = case.job(preset), perf_counter()
    made_up = "random" if job.random_samples else ""
    empty = SweepRow(model=case.name, preset=preset, code=70, samples=made_up)
    try:
        done = _measured(empty, quantize(job, Watch()))
        done = msgspec.structs.replace(done, fault=fault_of(job))
    except QcliError as error:
        reason = error.message + (f" ({error.hint})" if error.exit_code == 5 else "")
        done = msgspec.structs.replace(empty, code=error.exit_code, reason=_told(reason, case))
        if error.exit_code == RuntimeFailure.exit_code and runs(job.model):
            done = msgspec.structs.replace(done, fault="onnxruntime runs the model as it was")
    except Exception as error:
        done = msgspec.structs.replace(empty, fault=_told(f"{type(error).__name__}: {error}", case))
    return msgspec.structs.replace(done, seconds=round(perf_counter() - begin, 2))


def samples_of(job: QuantizeJob, count: int) -> list[Sample]:
    """A few of those that a result is judged by."""
    inputs = load_model(job.model).inputs()
    if job.random_samples is not None:
        return list(random_source(inputs, count))
    source = load_recipe(job.recipe, job.settings).samples.calibration
    found = open_source(source, job.evaluation, inputs, limit=count)
    return list(found) if found is not None else []


def runs(model: Path) -> bool:
    """True if onnxruntime loads the model."""
    try:
        Session(model)
    except RuntimeFailure:
        return False
    return True


def fault_of(job: QuantizeJob) -> str:
    """What is wrong with a result as a file: it is checked, loaded and run as somebody else would do it, or ''."""
    if job.output is None:
        raise ValueError("the job names no output")
    refused = _refused_by_checker(job.output)
    if refused and not _refused_by_checker(job.model):
        return f"onnx.checker: {refused}"
    (sample,) = samples_of(job, 1)
    expected, given = (_outputs(path, sample) for path in (job.model, job.output))
    return next((wrong for name in expected for wrong in [_wrong(name, expected[name], given.get(name))] if wrong), "")


def _refused_by_checker(path: Path) -> str:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return _one_line(error)
    return ""


def _outputs(path: Path, sample: Sample) -> dict[str, Any]:
    try:
        session = _session(path)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph as error:
        if "tensor(float8" not in str(error):
            raise
        session = _session(path, fusions=False)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(sample.feeds)), strict=True))


def _session(path: Path, *, fusions: bool = True) -> Any:
    """onnxruntime 1.31.1 makes kernels that do not exist of MatMuls between 8-bit floats, if it may."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not fusions:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _wrong(name: str, expected: Any, given: Any) -> str:
    if not isinstance(expected, np.ndarray):
        return "" if type(given) is type(expected) else f"the output '{name}' has another type"
    if not isinstance(given, np.ndarray) or given.dtype != expected.dtype or given.shape != expected.shape:
        return f"the output '{name}' has another shape or type"
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        return f"the output '{name}' holds NaN or Inf"
    return ""


def _measured(empty: SweepRow, report: Report) -> SweepRow:
    return msgspec.structs.replace(
        empty,
        code=0 if report.status == "passed" else 1,
        size_ratio=report.size.ratio if report.size else None,
        sqnr=report.accuracy.sqnr if report.accuracy else None,
        agreement=report.accuracy.agreement if report.accuracy else None,
        integer_share=report.kernels.integer_share if report.kernels else None,
        warnings=report.warnings,
    )


def _told(text: str, case: Case) -> str:
    return _one_line(text).replace(f"{case.zoo}/", "")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Case))
