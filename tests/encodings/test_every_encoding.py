"""What holds for every encoding, and for the example in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from codes import constants, stored_of, with_decoded_weights
from models import assert_equal, conv_net, dense_net, feeds_for, node, normal, proto_of, quantized_of, run

from qcli import plugins
from qcli.plugins import create
from qcli.types import Array, Role

NAMES = plugins.names("encodings")
PAGE = (Path(__file__).parent.parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name: str) -> None:
    encoding = create("encodings", name)
    assert isinstance(encoding.calibrated, bool) and isinstance(encoding.multiplies, bool)
    assert 7 <= encoding.min_opset(8, "channel") <= 21
    assert hasattr(encoding, "activation") == encoding.calibrated


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("net", [conv_net, dense_net])
def test_whole_networks(net: type, name: str) -> None:
    """Near the float model, as written and as onnxruntime optimizes it, valid, and without a float weight twice."""
    proto: onnx.ModelProto = net()
    rule = f"rules=[{{match: {{role: weight}}, encoding: {name}}}]"
    quantized = quantized_of(proto, settings=(rule,))
    assert any(entry.site.role is Role.WEIGHT for entry in quantized.plan.entries)
    feeds = feeds_for(quantized.source)
    for optimize in (False, True):
        assert_equal(run(proto, feeds), run(quantized.model, feeds, optimize=optimize), tolerance=0.1)
    onnx.checker.check_model(quantized.model.proto(), full_check=True)
    left = constants(quantized.model)
    assert not {entry.site.value for entry in quantized.plan.entries if entry.site.role is Role.WEIGHT} & set(left)


def example(title: str) -> dict[str, Any]:
    """What the code example of a section of the page defines."""
    section = PAGE[PAGE.index(f"## {title}\n") :]
    [code, *_] = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    module = ModuleType("example")
    exec(compile(code, "docs/plugins.md", "exec"), module.__dict__)
    return vars(module)


def test_the_example_in_the_documentation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of `weight_only`, in a model with two layers of one weight and a zero point of its own."""
    affine = example("Encodings")["Affine"]
    monkeypatch.setattr(
        "qcli.encodings.weight_only.WeightOnly.write", lambda _, weights, pool: affine().write(weights, pool)
    )
    weights: dict[str, Array] = {"w": np.abs(normal(0, 16, 16)), "v": normal(1, 16, 16)}
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "b"), node("Gemm", "b v", "y")]
    proto = proto_of(nodes, {"x": [2, 16]}, {"y": None}, weights)
    rule = "rules=[{match: {role: weight}, grid: {format: int8, symmetric: false, granularity: channel}}]"
    quantized = stored_of(proto, settings=(rule,))
    feeds = feeds_for(quantized.source)
    for optimize in (False, True):
        expected = run(with_decoded_weights(quantized), feeds)
        assert_equal(expected, run(quantized.model, feeds, optimize=optimize), tolerance=1e-5)
