"""Codes of less than eight bits, several in a byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from qcli.graph.bits import packed

KINDS = {
    TensorProto.INT4: (4, -8, 7),
    TensorProto.UINT4: (4, 0, 15),
    TensorProto.INT2: (2, -2, 1),
    TensorProto.UINT2: (2, 0, 3),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_onnx_reads_what_was_packed(kind: int, data: st.DataObject) -> None:
    bits, lowest, highest = KINDS[kind]
    dtype = np.int8 if lowest < 0 else np.uint8
    codes = data.draw(arrays(dtype, st.integers(0, 40), elements=st.integers(lowest, highest)))
    content = packed(codes, bits).tobytes()
    assert len(content) == -(-codes.size * bits // 8)
    tensor = helper.make_tensor("codes", kind, codes.shape, content, raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(dtype), codes)


def test_pieces_of_whole_bytes_follow_each_other() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).repeat(5)
    for bits in (4, 8):
        pieces = [packed(codes[begin : begin + 8], bits).tobytes() for begin in range(0, codes.size, 8)]
        assert b"".join(pieces) == packed(codes, bits).tobytes()


def test_wide_codes_stay_as_they_are_and_any_layout_is_read() -> None:
    codes = np.arange(24, dtype=np.int16).reshape(4, 6)
    np.testing.assert_array_equal(packed(codes.T, 16), codes.T)
    nibbles = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(packed(nibbles.T, 4), packed(np.ascontiguousarray(nibbles.T), 4))
