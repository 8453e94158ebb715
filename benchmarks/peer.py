"""onnxruntime's `quantize_static` as a program of its own, on a model prepared the way its documentation asks for.

    python -m benchmarks.peer MODEL OUT --calibration DIR --method minmax --samples 32

Opset raised to 17, initializers taken out of the inputs, `quant_pre_process`, then per-channel QDQ with uint8
activations and int8 weights. The samples are read by qcli's reader, one at a time, so that they are the same ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from qcli.contracts import InputSpec
from qcli.dataset import Sample, open_dataset

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}

_OPSET = 17
_IR_VERSION = 8
"""What goes with opset 17; before IR version 4 an initializer had to be an input too."""


class SampleReader(CalibrationDataReader):  # type: ignore[misc]
    """A folder of samples as onnxruntime's calibrators want it."""

    def __init__(self, samples: Iterator[Sample]) -> None:
        self._samples = samples

    def get_next(self) -> dict[str, Any] | None:
        sample = next(self._samples, None)
        return sample.feeds if sample is not None else None


def main(arguments: list[str]) -> None:
    options = _parser().parse_args(arguments)
    model = onnx.load(options.model)
    free_initializers(model)
    reader = SampleReader(iter(open_dataset(
        options.calibration, _inputs(model), preprocess=json.loads(options.preprocess), limit=options.samples
    )))  # fmt: skip
    with TemporaryDirectory(prefix="qcli-peer-") as folder:
        raised, prepared = Path(folder) / "raised.onnx", Path(folder) / "prepared.onnx"
        onnx.save(_converted(model), raised)
        quant_pre_process(raised, prepared)
        quantize_static(
            prepared,
            options.output,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=options.reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[options.method],
        )


def free_initializers(model: onnx.ModelProto) -> None:
    """Takes initializers out of the inputs, in place."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _IR_VERSION)


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return version_converter.convert_version(model, _OPSET) if opset < _OPSET else model


def _inputs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    return tuple(_spec(value) for value in model.graph.input)


def _spec(value: onnx.ValueInfoProto) -> InputSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_value if axis.HasField("dim_value") else None for axis in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return InputSpec(name=value.name, dtype=dtype, shape=shape)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("--calibration", required=True, help="folder of samples")
    parser.add_argument("--method", choices=sorted(METHODS), default="minmax")
    parser.add_argument("--samples", type=int, help="how many of the samples, spread evenly")
    parser.add_argument("--preprocess", default="null", help="for images: a preset's name or options, as JSON")
    parser.add_argument("--reduce-range", action="store_true", help="7-bit weights, for x86 without VNNI")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
