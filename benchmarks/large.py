"""Peak memory and time for a model of some gigabytes: 48 matrices in a file beside it, quantized to int8 weights.

Peaks are resident memory as `ru_maxrss` counts it, pages of mapped files included, above that of a process that
imports the same libraries and does nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import TensorProto, helper

from benchmarks.children import Child, progress, run_child
from qcli.errors import ResourceError
from qcli.report import Environment, environment
from qcli.types import Noun

_SIZE = 4096
_LAYERS = 48
_LIMITS = ("600MB", None)
_MOST_MEGABYTES = 600.0
_LIBRARIES = "import numpy, onnx, onnx_ir, onnxruntime, qcli.cli, qcli.pipeline"


class LargeRun(Noun, frozen=True, kw_only=True):
    """One run of `qcli quantize -r int8-weights`; `above_mb` is its peak above the libraries alone.

    Without `max_memory` the models run if the machine has the memory, and `met` is null.
    """

    max_memory: str | None
    wall_s: float
    peak_mb: float | None
    above_mb: float | None
    output_bytes: int
    met: bool | None
    message: str = ""


class LargeReport(Noun, frozen=True, kw_only=True):
    """What `--json` holds; see README.md."""

    schema: int = 1
    benchmark: str = "large"
    layers: int
    float_bytes: int
    libraries_mb: float | None
    peak_target_mb: float = _MOST_MEGABYTES
    environment: Environment
    runs: tuple[LargeRun, ...]


def measure_large(size: int = _SIZE, layers: int = _LAYERS) -> LargeReport:
    """Writes the model to a temporary folder, quantizes it with and without a limit, and deletes it all.

    Raises ResourceError if the disk has no room for it.
    """
    with TemporaryDirectory(prefix="qcli-bench-") as name:
        folder = Path(name)
        _check_room(folder, size * size * 4 * layers)
        progress(f"writing {layers} matrices of {size} x {size}")
        model = write_chain(folder, size=size, layers=layers)
        libraries = run_child(["-c", _LIBRARIES]).peak_mb
        return LargeReport(
            layers=layers,
            float_bytes=size * size * 4 * layers,
            libraries_mb=libraries,
            environment=environment(),
            runs=tuple(_run(model, limit, libraries) for limit in _LIMITS),
        )


def write_chain(folder: Path, *, size: int, layers: int) -> Path:
    """A chain of matrix products, written one matrix at a time; `x` [n, size] goes in, `y` comes out."""
    path = folder / "m.onnx"
    data = path.with_name("m.onnx.data")
    spread = np.float32(size**0.5)
    names = ["x", *(f"h{layer}" for layer in range(layers - 1)), "y"]
    with data.open("wb") as stream:
        for layer in range(layers):
            matrix = np.random.default_rng(layer).standard_normal((size, size), dtype=np.float32)
            matrix /= spread
            stream.write(matrix.data)
    nodes = [
        helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]], name=f"/m{layer}")
        for layer in range(layers)
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name in ("x", "y")]
    weights = [_outside(f"w{layer}", data.name, layer, size) for layer in range(layers)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def _outside(name: str, location: str, number: int, size: int) -> TensorProto:
    """The matrix of this number in the file of weights."""
    length = size * size * 4
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[size, size])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", number * length), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        problem = f"the benchmark needs {2 * needed / 1e9:.0f} GB in '{folder.parent}', {free / 1e9:.0f} GB are free"
        raise ResourceError(problem, "let TMPDIR point to another disk")


def _run(model: Path, limit: str | None, libraries: float | None) -> LargeRun:
    progress(f"quantizing with {f'--max-memory {limit}' if limit else 'what is free'}")
    output = model.with_name("q.onnx")
    arguments = ["-m", "qcli", "quantize", str(model), "-r", "int8-weights", "-o", str(output), "-q"]
    child = run_child([*arguments, *(("--max-memory", limit) if limit else ())])
    written = (path for path in model.parent.iterdir() if path.name.startswith(output.name))
    above = _above(child, libraries)
    return LargeRun(
        max_memory=limit,
        wall_s=child.seconds,
        peak_mb=child.peak_mb,
        above_mb=above,
        output_bytes=sum(path.stat().st_size for path in written),
        met=None if limit is None else child.exit_code == 0 and above is not None and above <= _MOST_MEGABYTES,
        message=child.complaint,
    )


def _above(child: Child, libraries: float | None) -> float | None:
    return child.peak_mb - libraries if child.peak_mb is not None and libraries is not None else None
