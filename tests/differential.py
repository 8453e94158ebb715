"""One random model through one preset, and everything that must hold of what comes out."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
import yaml
from models import Stream
from random_models import Case

from qcli.apply import apply_plan
from qcli.calibrate import collect
from qcli.configure import convert
from qcli.errors import NothingToDoError
from qcli.graph import Model, infer_shapes
from qcli.measured import requests_of
from qcli.metrics.sqnr import Sqnr
from qcli.opsets import required_opset
from qcli.plan import check_plan, make_plan, plan_text
from qcli.prepare import prepare
from qcli.recipe import load_recipe
from qcli.refine import refine_plan
from qcli.runtime import Session
from qcli.solve import solve
from qcli.statistics import Statistics
from qcli.types import Plan
from qcli.watch import Watch

FLOORS = {
    "int8": 15.0,
    "int8-minmax": 15.0,
    "int8-per-tensor": 15.0,
    "int8-dynamic": 20.0,
    "int8-transformer": 20.0,
    "int8-weights": 30.0,
}
"""The signal-to-noise ratio in dB below which something is wrong: a scale, an axis, a zero point, a value mixed up."""

FUSED = {"int8": 25.0, "int8-minmax": 25.0, "int8-per-tensor": 25.0, "int8-weights": 80.0}
"""To which ratio the result agrees with itself optimized: integer kernels round where floats do not."""


@dataclass(frozen=True)
class Outcome:
    """A result with its plan, and the model that the plan is about."""

    prepared: Model
    plan: Plan
    result: Model
    warnings: tuple[str, ...]


def outcome(case: Case, preset: str) -> Outcome:
    """What the pipeline makes of a case. A plan that was written and read must lead to the same bytes."""
    recipe, stream, watch = load_recipe(preset), Stream(case.samples), Watch()
    copy = onnx.ModelProto.FromString(case.proto.SerializeToString())
    opset = required_opset(recipe)
    model = prepare(Model(ir.from_proto(copy), sha256="0" * 64), opset, recipe.prepare, stream, watch)
    infer_shapes(model)
    plan = make_plan(model, recipe)
    check_plan(plan, model)
    statistics = collect(model, Statistics.empty(requests_of(plan, model)), stream)
    plan = refine_plan(model, recipe, plan, statistics)
    result = apply_plan(model, plan, solve(model, plan, statistics))
    again = convert(yaml.safe_load(plan_text(plan)), Plan, where="plan")
    check_plan(again, model)
    assert again == plan
    assert apply_plan(model, again, solve(model, again, statistics)).serialize() == result.serialize()
    return Outcome(model, plan, result, tuple(watch.warnings))


def check(case: Case, preset: str) -> bool:
    """Raises AssertionError for what is wrong with the result; False if there was nothing to quantize."""
    try:
        found = outcome(case, preset)
    except NothingToDoError as error:
        assert error.hint
        return False
    content = found.result.serialize()
    onnx.checker.check_model(onnx.ModelProto.FromString(content))
    assert not found.warnings
    assert all(kept.reason and not kept.reason.startswith(";") for kept in found.plan.kept_float)
    if preset == "int8-weights":
        assert len(content) <= max(case.proto.ByteSize(), len(found.prepared.serialize()))
    signal, fused = _ratios(case, content)
    assert min(signal.values()) >= FLOORS[preset], signal
    assert min(fused.values()) >= FUSED.get(preset, 40.0), fused
    return True


def _ratios(case: Case, content: bytes) -> tuple[dict[str, float], dict[str, float]]:
    """How near the result is to the float model, and to itself as onnxruntime optimizes it, output by output."""
    float_model, written = Session(case.proto.SerializeToString(), optimize=False), Session(content, optimize=False)
    optimized = Session(content)
    assert written.output_names() == optimized.output_names() == float_model.output_names()
    signal = {name: Sqnr() for name in written.output_names()}
    fused = {name: Sqnr() for name in written.output_names()}
    for index, feeds in enumerate((*case.samples, *case.others)):
        expected, plain, fast = (session.run(feeds) for session in (float_model, written, optimized))
        for name, array in expected.items():
            assert (plain[name].dtype, plain[name].shape) == (array.dtype, array.shape), name
            fused[name].update(plain[name], fast[name])
            if index < len(case.samples):  # others may lie beyond the ranges
                signal[name].update(array, plain[name])
    return {name: one.value() for name, one in signal.items()}, {name: one.value() for name, one in fused.items()}
