"""bfloat16 goes in and comes out, though numpy has no such type."""

from __future__ import annotations

import numpy as np
import pytest
from models import floats, node, proto_of
from onnx import TensorProto, helper

from qcli.contracts import InputSpec
from qcli.runtime import Session
from qcli.sources import random_source

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)


@pytest.mark.parametrize("shape", [[3], [2, 2], [], [0, 2]])
def test_bfloat16(shape: list[int]) -> None:
    nodes = [node("Cast", "x", "f", to=TensorProto.FLOAT), node("Cast", "f", "y", to=TensorProto.BFLOAT16)]
    proto = proto_of(nodes, {}, {"f": shape})
    proto.graph.input.append(floats("x", shape, TensorProto.BFLOAT16))
    proto.graph.output.append(floats("y", shape, TensorProto.BFLOAT16))
    array = np.linspace(-3, 7, int(np.prod(shape))).reshape(shape).astype(BFLOAT16)
    result = Session(proto.SerializeToString()).run({"x": array})
    for found in result.values():
        assert found.dtype == np.float32 and np.array_equal(found, array.astype(np.float32))


def test_random_samples_are_not_all_zero() -> None:
    spec = InputSpec(name="x", dtype="bfloat16", shape=(None, 4))
    [sample] = random_source((spec,), 1)
    assert sample.feeds["x"].dtype == BFLOAT16 and sample.feeds["x"].astype(np.float32).any()
