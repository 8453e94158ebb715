"""The door to onnxruntime: sessions on the CPU, with errors made for people.

onnxruntime reports its use to its makers unless told not to, before it is imported; qcli does not.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from qcli.errors import ResourceError, RuntimeFailure, UnsupportedError
from qcli.types import Array, Runnable

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

_SILENT = 4
"""onnxruntime's log severity "fatal": its warnings are not for qcli's users; errors arrive as exceptions."""

_NO_FUSION = ("session.disable_quant_qdq", "1")

_CODE = re.compile(r"^\d+ : [A-Z_]+ : ")
"""How onnxruntime's messages begin, e.g. `1 : FAIL : `."""

_LOCATION = re.compile(r"/\S+\.(?:cc|h):\d+ [^()]*\([^()]*\)(?:::<lambda\(\)>)? (?:const )?")
"""Where in its sources onnxruntime met the problem, with the function's signature."""

_NO_MEMORY = ("bad allocation", "bad_alloc", "failed to allocate memory")

_RUNTIME_ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
    RuntimeError,
    ValueError,
)


class Session:
    """A model loaded for running.

    `threads` counts the threads inside an operator. With `optimize` off the graph runs as written, every
    QuantizeLinear and DequantizeLinear included; with `fuse_qdq` off these alone stay as they are, and what stands
    between them computes in float. `optimized_to` saves the graph that really runs. `arena` off trades speed for memory
    that is given back after each run; `spin` off lets idle threads sleep, so that two sessions timed in turn do not
    steal each other's cores. `lean` leaves the weights in the files that they lie in, at the cost of speed, instead of
    laying copies of them out for the kernels. `profile_to` is how the name of onnxruntime's profile begins.
    """

    def __init__(
        self,
        model: Runnable | bytes | Path,
        *,
        threads: int = 1,
        optimize: bool = True,
        optimized_to: Path | None = None,
        arena: bool = True,
        spin: bool = True,
        lean: bool = False,
        fuse_qdq: bool = True,
        profile_to: Path | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        options.enable_cpu_mem_arena = arena
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        if not fuse_qdq:
            options.add_session_config_entry(*_NO_FUSION)
        level = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if optimized_to is not None:
            options.optimized_model_filepath = str(optimized_to)
            weights = f"{optimized_to.name}.data"  # protobuf ends at 2 GiB
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to)
        source = Runnable(model) if isinstance(model, bytes) else model
        kept_out: list[str] = []
        if lean or (isinstance(source, Runnable) and source.folder):
            kept_out = _spare_memory(options)
        try:
            self._weights = _hand_over(source, options) if isinstance(source, Runnable) else []
            content = source.content if isinstance(source, Runnable) else str(source)
            self._session = _loaded(content, options, kept_out)
        except _RUNTIME_ERRORS as error:
            _refuse_lack_of_memory(error)
            _refuse_newer(error)
            hint = "run 'qcli doctor' to see this onnxruntime's version"
            raise RuntimeFailure(f"onnxruntime cannot load the model: {_reason(error)}", hint) from error

        self._kinds = {item.name: _HALVES[item.type] for item in self._session.get_inputs() if item.type in _HALVES}

    def input_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self._session.get_inputs())

    def output_names(self) -> tuple[str, ...]:
        return tuple(item.name for item in self._session.get_outputs())

    def end_profile(self) -> Path:
        """Writes the profile of all runs so far; the file lies where `profile_to` said, and is the caller's."""
        return Path(self._session.end_profiling())

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The outputs by name. Raises RuntimeFailure if the model does not run on these inputs."""
        names = list(outputs) if outputs is not None else list(self.output_names())
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        try:
            given = {name: _feed(value, self._kinds.get(name)) for name, value in feeds.items()}
            values = self._run(names, given, options)
        except _RUNTIME_ERRORS as error:
            _refuse_lack_of_memory(error)
            hint = "compare the inputs with what 'qcli inspect' shows"
            raise RuntimeFailure(f"onnxruntime cannot run the model: {_reason(error)}", hint) from error
        return dict(zip(names, values, strict=True))

    def _run(self, names: list[str], feeds: dict[str, Any], options: Any) -> list[Any]:
        kinds = {item.name: item.type for item in self._session.get_outputs()}
        if _BFLOAT16 not in [kinds.get(name) for name in names]:
            values: list[Any] = self._session.run(names, feeds, options)
            return values
        own = onnxruntime.OrtValue
        wrapped = {
            name: value if isinstance(value, own) else own.ortvalue_from_numpy(value) for name, value in feeds.items()
        }
        return [_array(value) for value in self._session.run_with_ort_values(names, wrapped, options)]


_BFLOAT16 = "tensor(bfloat16)"
_BFLOAT16_CODE = 16
"""onnx.TensorProto.BFLOAT16. numpy has no such type, so onnxruntime takes and gives it as bytes alone."""


_HALVES = {"tensor(float16)": "float16", _BFLOAT16: "bfloat16"}


def _feed(value: Any, half: str | None) -> Any:
    """What an input takes. Samples of a float32 model also run one that takes them in 16 bits, named by `half`."""
    if half is not None and isinstance(value, np.ndarray) and value.dtype == np.float32:
        with np.errstate(over="ignore"):
            value = value.astype(ml_dtypes.bfloat16 if half == "bfloat16" else np.float16)
    if isinstance(value, np.ndarray) and value.dtype.name == "bfloat16":
        codes = np.require(value, requirements="C").view(np.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(codes, _BFLOAT16_CODE)
    return value


def _array(value: Any) -> Any:
    """A result; bfloat16 becomes float32, of which it is the upper half."""
    if value.data_type() != _BFLOAT16:
        return value.numpy()
    shape = value.shape()
    content = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()) if prod(shape) else b""
    codes = np.frombuffer(content, np.uint16).astype(np.uint32) << 16
    return codes.view(np.float32).reshape(shape)


@contextmanager
def on_sample(file: str) -> Iterator[None]:
    """A failure inside names the sample on which the model does not run."""
    try:
        yield
    except RuntimeFailure as error:
        raise RuntimeFailure(f"sample '{file}': {error.message}", error.hint) from error


def _loaded(content: bytes | str, options: Any, kept_out: list[str]) -> Any:
    """The session; without fusions of QuantizeLinear where one of them is what fails.

    onnxruntime 1.31.1 makes an integer kernel of a MatMul between two DequantizeLinear of 8-bit floats, and then
    refuses the types that it has given it.
    """
    load = partial(onnxruntime.InferenceSession, content, options, providers=["CPUExecutionProvider"])
    try:
        return load(disabled_optimizers=kept_out)
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph as error:
        if "tensor(float8" not in str(error):
            raise
        options.add_session_config_entry(*_NO_FUSION)
        return load(disabled_optimizers=kept_out)


def _spare_memory(options: Any) -> list[str]:
    """No second copy of the weights for the kernels, and no pool that grows by doubling; what not to optimize.

    Constant folding would decode weights that are stored as integers, and the usual order would decode all of them
    before the first one is used.
    """
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.enable_cpu_mem_arena = False
    return ["ConstantFolding"]


def _hand_over(model: Runnable, options: Any) -> list[Any]:
    """Tells a session where the weights are that the model's bytes do not hold; what must live as long as it does."""
    if model.folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", model.folder)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in model.arrays.values()]
    if values:
        options.add_external_initializers(list(model.arrays), values)
    return values


def survives(model: Path) -> bool:
    """False if onnxruntime ends the process that loads a model; tried in one of its own."""
    code = "import sys, pathlib, qcli.runtime as r; r.Session(pathlib.Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(model)], capture_output=True, check=False)  # noqa: S603
    return done.returncode in (0, 1)


def runtime_version() -> str:
    return str(onnxruntime.__version__)


def _refuse_lack_of_memory(error: BaseException) -> None:
    text = str(error).lower()
    if any(words in text for words in _NO_MEMORY):
        hint = "use fewer --threads, smaller samples or a machine with more memory"
        raise ResourceError("out of memory in onnxruntime", hint) from error


def _refuse_newer(error: BaseException) -> None:
    """Raises UnsupportedError for a file version or an operator set that came after this onnxruntime."""
    for what, pattern in _NEWER.items():
        found = pattern.search(str(error))
        if found is not None:
            problem = f"the model is of {what} {found[1]}, the installed onnxruntime reads up to {found[2]}"
            raise UnsupportedError(problem, "export it with an older one, or install a newer onnxruntime") from error


_NEWER = {
    "IR version": re.compile(r"Unsupported model IR version: (\d+), max supported IR version: (\d+)"),
    "opset": re.compile(r"Opset (\d+) is under development.*domain ai\.onnx is till opset (\d+)", re.DOTALL),
}


def _reason(error: BaseException) -> str:
    """The first line of onnxruntime's message, without its codes and C++ source locations."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = text.rsplit("Status Message: ", maxsplit=1)[-1].removeprefix("[ONNXRuntimeError] : ").strip()
    return _LOCATION.sub("", _CODE.sub("", text))


def saturates() -> bool:
    """True if this processor's unsigned-by-signed 8-bit kernels saturate 16-bit sums.

    x86 without VNNI adds two products into 16 bits: 255 * 127 * 2 > 32767. A one-operator model tells.
    """
    from qcli.graph.probe import saturation_probe

    codes = np.full((16, 64), 255, np.uint8)
    result = Session(saturation_probe(64)).run({"x": codes})["y"]
    return bool((result != 255 * 127 * 64).any())
