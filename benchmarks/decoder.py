"""A generated decoder of some gigabytes in 4-bit blocks, data-free and learned, beside a copy of its file.

Also the speed of one of its layers with MatMulNBits, for one token, against float. Peaks are resident memory as
`ru_maxrss` counts it, pages of mapped files included, above that of a process that imports the same libraries.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.children import progress, run_child
from benchmarks.decoder_model import DecoderShape, shape_of, write_decoder, write_samples
from qcli.errors import ResourceError
from qcli.report import Environment, environment
from qcli.types import Noun

_LIBRARIES = "import numpy, onnx, onnx_ir, onnxruntime, qcli.cli, qcli.pipeline"
_BLOCKS = "grid: {format: int4, granularity: block, block: 32}"


class _Way(NamedTuple):
    """How it is quantized: `memory` may be used, `target_mb` above the libraries are wanted at most."""

    name: str
    recipe: tuple[str, ...]
    memory: str = "1GB"
    target_mb: float = 1000.0
    learns: bool = False


def _rule(more: str) -> tuple[str, ...]:
    return ("int8-weights", "--set", f"rules=[{{match: {{role: weight}}, {_BLOCKS}, {more}}}]")


_WAYS = (
    _Way("nearest", _rule("range: minmax, rounding: nearest")),
    _Way("int4-weights", ("int4-weights",)),
    _Way("gptq", _rule("rounding: gptq"), memory="1.5GB", target_mb=2000.0, learns=True),
)

_SAMPLES, _LENGTH = 8, 64
_NBITS = f"{_BLOCKS}, encoding: {{matmul_nbits: {{accuracy_level: 4}}}}"


class DecoderRun(Noun, frozen=True, kw_only=True):
    """One way to quantize it; `above_mb` is the peak above the libraries alone.

    `copy_s` is how long the fastest copy of the weights took, `copy_share` that over the time of the run. With `synced`
    they are those of a copy that lies on the disk when it is done, as the result does.
    """

    name: str
    wall_s: float
    copy_s: float
    copy_share: float
    synced_copy_s: float | None = None
    synced_share: float | None = None
    above_mb: float | None
    target_mb: float
    message: str = ""


class DecoderReport(Noun, frozen=True, kw_only=True):
    """What `--json` holds; see README.md."""

    schema: int = 1
    benchmark: str = "decoder"
    shape: DecoderShape
    float_bytes: int
    environment: Environment
    runs: tuple[DecoderRun, ...]
    layer_speedup: float | None


def measure_decoder(size: int, *, learned: bool = True) -> DecoderReport:
    """Writes a decoder of about `size` bytes to a temporary folder, measures, and deletes it all.

    Without `learned`, only what needs no samples is measured. Raises ResourceError if the disk has no room for it.
    """
    shape = shape_of(size)
    with TemporaryDirectory(prefix="qcli-bench-") as name:
        folder = Path(name)
        _check_room(folder, 3 * shape.weight_bytes)
        progress(f"writing a decoder of {shape.layers} layers, {shape.weight_bytes / 1e9:.1f} GB")
        model = write_decoder(folder, shape)
        write_samples(folder / "calib", shape, count=_SAMPLES, length=_LENGTH)
        libraries = run_child(["-c", _LIBRARIES]).peak_mb
        _sync(model.with_name("model.onnx.data"))
        runs = tuple(_run(model, way, libraries) for way in _WAYS if learned or not way.learns)
    return DecoderReport(
        shape=shape,
        float_bytes=shape.weight_bytes,
        environment=environment(),
        runs=runs,
        layer_speedup=_layer_speedup(),
    )


def decoder_markdown(report: DecoderReport) -> str:
    """The report as a Markdown table."""
    lines = [
        f"{report.float_bytes / 1e9:.1f} GB, {report.shape.layers} layers; {report.environment.cpu}",
        "",
        "| blocks of 32 | seconds | a copy | share | a copy on the disk | share | MB above the libraries | wanted |",
        "|--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run in report.runs:
        peak = "-" if run.above_mb is None else f"{run.above_mb:.0f}"
        share = f"{run.copy_s:.1f} | {run.copy_share:.0%}"
        synced = (
            f"{run.synced_copy_s:.1f} | {run.synced_share:.0%}" if run.synced_copy_s and run.synced_share else "- | -"
        )
        lines.append(f"| {run.name} | {run.wall_s:.1f} | {share} | {synced} | {peak} | {run.target_mb:.0f} |")
    speed = "-" if report.layer_speedup is None else f"{report.layer_speedup:.2f}x"
    return (
        "\n".join([*lines, "", f"One layer with MatMulNBits, one token, one thread: {speed} the float speed."]) + "\n"
    )


def _run(model: Path, way: _Way, libraries: float | None) -> DecoderRun:
    progress(f"quantizing, {way.name}")
    before = _copies(model)
    samples = ["-d", str(model.parent / "calib"), "--no-cache"] if way.learns else []
    output = ["-o", str(model.with_name("q.onnx")), "-q", "--max-memory", way.memory]
    child = run_child(["-m", "qcli", "quantize", str(model), "-r", *way.recipe, *samples, *output])
    copied, synced = (min(pair) for pair in zip(before, _copies(model), strict=True))
    known = child.peak_mb is not None and libraries is not None
    return DecoderRun(
        name=way.name,
        wall_s=child.seconds,
        copy_s=copied,
        copy_share=copied / child.seconds,
        synced_copy_s=synced,
        synced_share=synced / child.seconds,
        above_mb=(child.peak_mb or 0) - (libraries or 0) if known else None,
        target_mb=way.target_mb,
        message=child.complaint,
    )


def _copies(model: Path) -> tuple[float, float]:
    return min(_copy_seconds(model) for _ in range(2)), _copy_seconds(model, synced=True)


def _copy_seconds(model: Path, *, synced: bool = False) -> float:
    """How long it takes to copy the weights beside themselves; `synced`, until the copy lies on the disk."""
    data, copy = model.with_name("model.onnx.data"), model.with_name("copy")
    begin = time.perf_counter()
    shutil.copyfile(data, copy)
    if synced:
        _sync(copy)
    seconds = time.perf_counter() - begin
    copy.unlink()
    return seconds


def _sync(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _layer_speedup() -> float | None:
    """Of one layer 2048 wide with a small vocabulary, for one token; None if it could not be measured."""
    progress("timing one layer")
    shape = DecoderShape(layers=1, vocabulary=64)
    with TemporaryDirectory(prefix="qcli-bench-") as name:
        folder = Path(name)
        model, fast = write_decoder(folder, shape), folder / "nbits.onnx"
        write_samples(folder / "token", shape, count=1, length=1)
        rule = f"rules=[{{match: {{op: MatMul, role: weight}}, {_NBITS}}}]"
        arguments = ["quantize", str(model), "-r", "int8-weights", "--set", rule, "--set", "prepare=[normalize]"]
        run_child(["-m", "qcli", *arguments, "-o", str(fast), "-q", "--no-latency"])
        timed = run_child(["-m", "qcli", "bench", str(model), str(fast), "-d", str(folder / "token"), "--json"])
    if timed.exit_code != 0:
        return None
    rows = json.loads(timed.stdout)["models"]
    return float(rows[-1]["speedup"])


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        problem = f"the benchmark needs {needed / 1e9:.0f} GB in '{folder.parent}', {free / 1e9:.0f} GB are free"
        raise ResourceError(problem, "let TMPDIR point to another disk")
