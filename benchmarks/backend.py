"""Sweep over the onnx package's own backend tests: whatever they hold, qcli ends with a result or a reason.

Two thousand small models, one or a few for each operator and operator set, with inputs. Each is quantized with its
own inputs as samples, and what comes out is run beside what went in.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from qcli import QuantizeJob
from qcli.errors import QcliError, RuntimeFailure
from qcli.graph import float32_form, load_model
from qcli.metrics.sqnr import Sqnr
from qcli.pipeline import quantize
from qcli.runtime import Session
from qcli.types import Noun
from qcli.watch import Watch

PRESETS = ("int8", "int8-dynamic", "int8-weights")

TOLERATED_DB = 18.0
"""The least signal-to-noise ratio of a result. One operator on a handful of random numbers has 25 dB and more;
the random weights of a test are no trained network."""

_IR_VERSION = 12
"""The newest file version that the onnxruntime of today reads."""

_OPSET = 26
"""The newest operator set that it takes."""

_SMALL_NETWORKS = ("light/light_shufflenet", "light/light_squeezenet")

_FOLDERS = ("simple", "pytorch-operator", "pytorch-converted")
_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@dataclass(frozen=True)
class Case:
    """A model and its inputs as the files that qcli reads: one mapping of names to contents for each sample."""

    name: str
    model: bytes
    samples: tuple[dict[str, bytes], ...]


class Verdict(Noun, frozen=True, kw_only=True):
    """What became of one case. `code` is the exit code; `fault` says what is wrong with that, if anything is."""

    name: str
    preset: str
    code: int
    reason: str = ""
    fault: str = ""
    warnings: tuple[str, ...] = ()


@cache
def cases(large: bool = False) -> tuple[Case, ...]:
    """All cases, in a fixed order; the large networks only where asked for, since each takes seconds."""
    light = [case for case in _light() if large or case.name in _SMALL_NETWORKS]
    made = [_readable(case) for case in (*_generated(), *_stored(), *light)]
    return tuple(one for case in made for one in (case, _with_weights(case)) if one is not None)


@cache
def relevant(preset: str, large: bool = False) -> tuple[Case, ...]:
    """The cases worth a preset's time: all for static quantization, those with float weights for the others."""
    known = cases(large)
    return known if preset == PRESETS[0] else tuple(case for case in known if _weighty(case))


def _weighty(case: Case) -> bool:
    graph = onnx.ModelProto.FromString(case.model).graph
    return any(tensor.data_type in _FLOATS and prod(tensor.dims) >= _WEIGHTY for tensor in graph.initializer)


_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
_WEIGHTY = 32
"""Elements; smaller weights are never stored as integers."""


def judge(case: Case, preset: str) -> Verdict:
    """Quantizes one model and checks the verdict and the result."""
    with TemporaryDirectory(prefix="qcli-") as name:
        folder = Path(name)
        model = folder / "model.onnx"
        model.write_bytes(case.model)
        for index, files in enumerate(case.samples):
            (folder / f"test_data_set_{index}").mkdir()
            for file, content in files.items():
                (folder / f"test_data_set_{index}" / file).write_bytes(content)
        return _judged(case, preset, folder)


def counted(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table of verdicts, and the faults."""
    meaning = {0: "quantized", 3: "an input or output is not finite", 4: "unsupported, says what",
               5: "nothing to quantize", 6: "onnxruntime cannot run the model as it is"}  # fmt: skip
    presets = tuple(dict.fromkeys(verdict.preset for verdict in verdicts))
    lines = [f"| exit code | meaning | {' | '.join(presets)} |", f"|--|--|{'--|' * len(presets)}"]
    counts = Counter((verdict.code, verdict.preset) for verdict in verdicts)
    for code in sorted({verdict.code for verdict in verdicts}):
        cells = " | ".join(str(counts[code, preset]) for preset in presets)
        lines.append(f"| {code} | {meaning.get(code, 'a fault')} | {cells} |")
    faults = [verdict for verdict in verdicts if verdict.fault]
    lines += ["", f"{len(faults)} faults"]
    lines += [f"* {verdict.name}, {verdict.preset}: {verdict.fault}" for verdict in faults]
    return "\n".join(lines) + "\n"


def _judged(case: Case, preset: str, folder: Path) -> Verdict:
    watch = Watch()
    output = folder / "out" / "quantized.onnx"
    output.parent.mkdir()
    job = QuantizeJob(
        model=folder / "model.onnx",
        recipe=preset,
        calibration=folder,
        output=output,
        threads=1,
        latency=False,
        cache=False,
    )
    code, reason = 0, ""
    try:
        quantize(job, watch)
    except QcliError as error:
        code, reason = error.exit_code, f"{error.message} ({error.hint})" if error.exit_code == 5 else error.message
    except Exception as error:  # the point of the sweep: it must not happen
        code, reason = 70, f"{type(error).__name__}: {error}"
    fault = _FAULTS.get(code, _unexpected)(case, reason, output)
    fault = fault or next((text for text in watch.warnings if "was undone" in text), "")
    if code != 0 and output.exists():
        fault = "there is an output in spite of the error"
    return Verdict(name=case.name, preset=preset, code=code, reason=reason, fault=fault, warnings=tuple(watch.warnings))


def _unexpected(case: Case, reason: str, output: Path) -> str:
    return reason or "no reason given"


def _good_reason(case: Case, reason: str, output: Path) -> str:
    return "" if reason else "no reason given"


def _not_run(case: Case, reason: str, output: Path) -> str:
    """onnxruntime alone must fail too."""
    try:
        _run_plainly(case)
    except Exception:  # whatever it is, it comes from onnxruntime
        return ""
    return f"onnxruntime runs the model, qcli says: {reason}"


def _not_finite(case: Case, reason: str, output: Path) -> str:
    values = [value for feeds in _feeds(case) for value in feeds.values()]
    if not all(_finite(value) for value in values):
        return ""
    try:
        results = _run_plainly(case)
    except Exception as error:
        return f"{reason}; onnxruntime: {error}"
    return "" if not all(_finite(value) for result in results for value in result) else reason


def _near(case: Case, reason: str, output: Path) -> str:
    """The result must load, and be as near to the float model as is stated."""
    try:
        session = Session(output)
        float_session = _float_session(output.parent.parent / "model.onnx")
        for feeds in _feeds(case):
            fault = _compared(float_session.run(feeds), session.run(feeds))
            if fault:
                return fault
    except RuntimeFailure as error:
        return error.message
    return ""


def _float_session(path: Path) -> Session:
    """The model, in float32 where onnxruntime lacks its own floats."""
    try:
        return Session(path)
    except RuntimeFailure:
        form = float32_form(load_model(path))
        if form is None:
            raise
        return Session(form.serialize())


_FAULTS = {0: _near, 3: _not_finite, 4: _good_reason, 5: _good_reason, 6: _not_run}


def _compared(reference: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    for name, expected in reference.items():
        given = result[name]
        if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f":
            continue  # integers behind a quantized layer are as near as that layer is
        if expected.shape != given.shape:
            return f"'{name}' has the shape {given.shape}, not {expected.shape}"
        ratio = Sqnr()
        ratio.update(expected, given)
        if ratio.value() < TOLERATED_DB:
            return f"'{name}' has only {ratio.value():.1f} dB"
    return ""


def _finite(value: Any) -> bool:
    if isinstance(value, list):
        return all(_finite(item) for item in value)
    if not isinstance(value, np.ndarray) or value.dtype.kind in "OSUbiu":
        return True
    return bool(np.isfinite(value.astype(np.float64)).all())


def _feeds(case: Case) -> Iterator[dict[str, Any]]:
    graph = onnx.ModelProto.FromString(case.model).graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in constants]
    for files in case.samples:
        yield {info.name: _value(info, files[f"input_{index}.pb"]) for index, info in enumerate(inputs)}


def _value(info: onnx.ValueInfoProto, content: bytes) -> Any:
    if info.type.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    if info.type.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(content))
    return numpy_helper.to_array(onnx.TensorProto.FromString(content))


def _run_plainly(case: Case) -> list[list[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
    return [list(session.run(None, feeds)) for feeds in _feeds(case)]


def _readable(case: Case) -> Case:
    """The case in versions that onnxruntime reads: the package's own are often newer, with the same content."""
    proto = onnx.ModelProto.FromString(case.model)
    proto.ir_version = min(proto.ir_version, _IR_VERSION)
    for imported in proto.opset_import:
        if imported.domain == "" and imported.version > _OPSET and all(_is_older(node) for node in proto.graph.node):
            imported.version = _OPSET
    return replace(case, model=proto.SerializeToString())


def _is_older(node: onnx.NodeProto) -> bool:
    """True if the operator is the same in the newest operator set that onnxruntime knows."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    if node.domain == "":
        newest = onnx.defs.get_schema(node.op_type, "").since_version
        if newest > _OPSET:
            return False
    return all(_is_older(inner) for body in bodies for inner in body.node)


def _with_weights(case: Case) -> Case | None:
    """The same with all inputs but the first as weights, as a model has them; None if there are no others."""
    proto = onnx.ModelProto.FromString(case.model)
    feeds = next(_feeds(case), {})
    names = [name for name in list(feeds)[1:] if isinstance(feeds[name], np.ndarray)]
    if not names or len(case.samples) > 1:
        return None
    for index, info in reversed(list(enumerate(proto.graph.input))):
        if info.name in names:
            proto.graph.initializer.append(
                _tensor(case.samples[0][f"input_{list(feeds).index(info.name)}.pb"], info.name)
            )
            del proto.graph.input[index]
    left = [name for name in feeds if name not in names]
    files = {
        f"input_{left.index(name)}.pb": case.samples[0][f"input_{index}.pb"]
        for index, name in enumerate(feeds)
        if name in left
    }
    return Case(f"{case.name}[weights]", proto.SerializeToString(), (files,))


def _tensor(content: bytes, name: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto.FromString(content)
    tensor.name = name
    return tensor


def _generated() -> Iterator[Case]:
    """The tests of single operators, which the onnx package makes on demand."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # overflows and the like, which are what some of them test
        made = collect_testcases(None)
    for test in made:
        inputs = test.model.graph.input
        samples = tuple(
            {f"input_{index}.pb": _content(inputs[index], value) for index, value in enumerate(values)}
            for values, _ in test.data_sets
        )
        yield Case(test.name, test.model.SerializeToString(), samples)


def _content(info: onnx.ValueInfoProto, value: Any) -> bytes:
    if isinstance(value, onnx.TensorProto):
        return value.SerializeToString()
    if info.type.HasField("sequence_type"):
        return numpy_helper.from_list(value, info.name).SerializeToString()
    if info.type.HasField("optional_type"):
        return numpy_helper.from_optional(value, info.name).SerializeToString()
    return numpy_helper.from_array(value, info.name).SerializeToString()


def _stored() -> Iterator[Case]:
    """The tests that lie in the package as files."""
    for kind in _FOLDERS:
        for folder in sorted((_DATA / kind).glob("*/")):
            sets = sorted(folder.glob("test_data_set_*"))
            samples = tuple({file.name: file.read_bytes() for file in sorted(one.glob("input_*.pb"))} for one in sets)
            yield Case(f"{kind}/{folder.name}", (folder / "model.onnx").read_bytes(), samples)


def _light() -> Iterator[Case]:
    """Nine well-known networks whose weights are ConstantOfShape; they have no inputs of their own."""
    for path in sorted((_DATA / "light").glob("*.onnx")):
        content = path.read_bytes()
        graph = onnx.ModelProto.FromString(content).graph
        constants = {tensor.name for tensor in graph.initializer}
        files = {}
        for index, info in enumerate(one for one in graph.input if one.name not in constants):
            shape = [dimension.dim_value or 1 for dimension in info.type.tensor_type.shape.dim]
            kind = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            array = np.random.default_rng(0).standard_normal(shape).astype(kind)
            files[f"input_{index}.pb"] = numpy_helper.from_array(array, info.name).SerializeToString()
        yield Case(f"light/{path.stem}", content, (files,))
