"""Every model of the onnx package's own tests ends with a sound result or with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from models import node, proto_of
from onnx import numpy_helper

from benchmarks.backend import PRESETS, Case, Verdict, cases, counted, judge, relevant

SHARDS = {"int8": 24, "int8-dynamic": 4, "int8-weights": 4}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "shard"), [(preset, shard) for preset in PRESETS for shard in range(SHARDS[preset])]
)
def test_a_result_or_a_reason(preset: str, shard: int) -> None:
    verdicts = [judge(case, preset) for case in relevant(preset)[shard :: SHARDS[preset]]]
    faults = [f"{verdict.name}, exit code {verdict.code}: {verdict.fault}" for verdict in verdicts if verdict.fault]
    assert not faults, "\n".join(faults)
    assert {verdict.code for verdict in verdicts} <= {0, 3, 4, 5, 6}


@pytest.mark.slow
def test_the_sweep_is_not_empty() -> None:
    """An update of onnx that moves its tests elsewhere must not make this page green."""
    assert len(cases()) > 3000 and len(relevant("int8-weights")) > 200


def test_a_refusal_without_need_is_a_fault() -> None:
    proto = proto_of([node("Relu", "x", "y")], {"x": [2]}, {"y": [2]})
    sample = numpy_helper.from_array(np.ones(2), "x").SerializeToString()  # float64
    verdict = judge(Case("other type", proto.SerializeToString(), ({"input_0.pb": sample},)), "int8")
    assert verdict.code == 3 and "float64" in verdict.fault


def test_counts_are_a_table() -> None:
    verdicts = [
        Verdict(name="a", preset="int8", code=0),
        Verdict(name="b", preset="int8", code=70, fault="KeyError: 'x'"),
        Verdict(name="a", preset="int8-weights", code=5, reason="no weights"),
    ]
    text = counted(verdicts)
    assert "| 0 | quantized | 1 | 0 |" in text and "| 5 | nothing to quantize | 0 | 1 |" in text
    assert "1 faults" in text and "* b, int8: KeyError: 'x'" in text
