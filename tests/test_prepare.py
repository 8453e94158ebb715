"""Steps that promise to make quantization better are undone where they do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import sabotaged
from cli.conftest import Run, run  # noqa: F401 - a fixture
from models import dense_net, node, normal, proto_of, saved, stream_for, wrapped

import qcli.prepare
from qcli.graph import Model, constant_of, set_constant
from qcli.prepare import prepare
from qcli.steps._base import Step
from qcli.types import Spec
from qcli.watch import Watch

RECIPE = """version: 1
extends: int8-minmax
prepare: [normalize, STEP]
rules:
  - match: {role: weight}
    grid: {format: int8, bits: BITS, symmetric: true, granularity: channel}
    rounding: nearest
    encoding: {qdq: {pack: false}}
"""

FULL = "{equalize: {strength: 1.0}}"


def rare(folder: Path) -> tuple[Path, Path]:
    """One channel is 60 times the others, but in one sample only: making them equal costs the weights their bits."""
    weights = {"w": np.eye(8, dtype=np.float32).reshape(8, 8, 1, 1), "v": normal(0, 8, 8, 1, 1)}
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("Conv", "r v", "y")]
    path = saved(proto_of(nodes, {"x": [1, 8, 6, 6]}, {"y": None}, weights), folder / "rare.onnx")
    calib = folder / "calib"
    calib.mkdir()
    for place in range(12):
        x = np.abs(normal(place, 1, 8, 6, 6))
        if place == 0:
            x[0, 0, 0, 0] = 60 * x.max()
        np.savez(calib / f"{place:02}.npz", x=x)
    return path, calib


def reported(run: Run, folder: Path, given: tuple[Path, Path], step: str, bits: int) -> dict[str, Any]:  # noqa: F811
    (folder / "recipe.yaml").write_text(RECIPE.replace("STEP", step).replace("BITS", str(bits)))
    arguments = ("-r", folder / "recipe.yaml", "-d", given[1], "-o", "out.onnx", "--no-latency", "--json")
    outcome = run("quantize", given[0], *arguments)
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = json.loads(outcome.out)
    return report


def test_a_step_that_harms_is_undone(run: Run, tmp_path: Path) -> None:  # noqa: F811
    given = rare(tmp_path)
    reported(run, tmp_path, given, "float32", 4)
    content = Path("out.onnx").read_bytes()
    report = reported(run, tmp_path, given, FULL, 4)
    (warning,) = (text for text in report["warnings"] if "equalize" in text)
    assert warning.startswith(
        "step 'equalize' was undone: on calibration samples held out for it, the result went from"
    )
    before, after = (
        [float(number) for number in re.findall(r"-?[0-9]+\.[0-9]", text)] for text in warning.split(" to ")
    )
    assert len(before) == len(after) > 0 and min(new - old for old, new in zip(before, after, strict=True)) < 0
    assert Path("out.onnx").read_bytes() == content


def test_a_step_that_helps_stays(run: Run, tmp_path: Path) -> None:  # noqa: F811
    given = (
        sabotaged.convolutions(tmp_path, outlier=60.0),
        sabotaged.samples(tmp_path, 1, sabotaged.CHANNELS, 6, 6),
    )
    found = [reported(run, tmp_path, given, step, 8) for step in ("float32", FULL)]
    assert not any("equalize" in text for text in found[1]["warnings"])
    assert found[1]["accuracy"]["sqnr"] > found[0]["accuracy"]["sqnr"] + 3


class Promise(Step, frozen=True, kw_only=True):
    """Exact in float: the first layer's results grow by a factor that the second takes back."""

    worth_db: ClassVar[float | None] = 1.0
    factor: float = 2.0

    def run(self, model: Model) -> int:
        for number, layer in enumerate(item for item in model.graph if item.op_type in ("MatMul", "Gemm")):
            array = np.asarray(constant_of(layer.inputs[1]))
            factor = self.factor if number == 0 else 1 / self.factor
            set_constant(model.graph, layer, 1, (array * np.float32(factor)).astype(np.float32))
        for addition in (item for item in model.graph if item.op_type == "Add"):
            array = np.asarray(constant_of(addition.inputs[1]))
            set_constant(model.graph, addition, 1, (array * np.float32(self.factor)).astype(np.float32))
        return int(self.factor != 1)


@pytest.fixture
def promises(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def create(kind: str, spec: Spec) -> object:
        assert kind == "steps" and isinstance(spec, dict)
        return Promise(**(spec["promise"] or {}))

    monkeypatch.setattr(qcli.prepare, "create", create)
    yield


def weight_of(model: Model) -> float:
    """The factor that is left in the first layer."""
    layer = next(item for item in model.graph if item.op_type == "MatMul")
    before = next(item for item in wrapped(dense_net()).graph if item.op_type == "MatMul")
    ratio = np.asarray(constant_of(layer.inputs[1])) / np.asarray(constant_of(before.inputs[1]))
    return float(np.median(ratio))


def prepared(
    grades: list[float | None], factors: list[float], *, samples: bool = True, first: float | None = None
) -> tuple[float, Watch, int]:
    """The factor that is left, what was said, and how many models were judged.

    With `first` there is another part of the samples before, on which every step gains so many dB.
    """
    model, watch, asked = wrapped(dense_net()), Watch(), []

    def judge(given: Model) -> Iterator[float | None]:
        asked.append(given)
        grade = grades[len(asked) - 1]
        if first is not None:
            yield 40.0 + first * len(asked)
        yield grade

    steps: list[Spec] = [{"promise": {"factor": factor}} for factor in factors]
    stream = stream_for(model) if samples else None
    return weight_of(prepare(model, 17, steps, stream, watch, judge=judge)), watch, len(asked)


@pytest.mark.parametrize(
    ("grades", "expected", "said"),
    [
        ([20.0, 21.5], 2.0, ""),
        ([20.0, 21.0], 2.0, ""),
        ([20.0, 20.9], 1.0, "went from 20.0 to 20.9 dB"),
        ([20.0, 10.0], 1.0, "went from 20.0 to 10.0 dB"),
        ([20.0, None], 1.0, "could not be quantized then"),
        ([None, 3.0], 2.0, ""),
        ([None, None], 2.0, ""),
    ],
)
@pytest.mark.usefixtures("promises")
def test_the_judge_decides(grades: list[float | None], expected: float, said: str) -> None:
    left, watch, _ = prepared(grades, [2.0])
    assert left == pytest.approx(expected)
    assert [said in text for text in watch.warnings] == ([True] if said else [])


@pytest.mark.usefixtures("promises")
@pytest.mark.parametrize(
    ("first", "second", "expected", "said"),
    [
        (1.5, 20.5, 1.0, "went from 41.5 and 20.0 to 43.0 and 20.5 dB"),  # one part is enough to refuse
        (1.5, 21.5, 2.0, ""),
        (0.5, 90.0, 1.0, "went from 40.5 to 41.0 dB"),  # the second part is not asked then
        (2.0, 0.0, 2.0, ""),  # nor after a clear gain
    ],
)
def test_another_part_of_the_samples(first: float, second: float, expected: float, said: str) -> None:
    left, watch, _ = prepared([20.0, second], [2.0], first=first)
    assert left == pytest.approx(expected)
    assert [text.split("the result ")[-1] for text in watch.warnings] == ([said] if said else [])


@pytest.mark.usefixtures("promises")
def test_each_step_is_compared_with_what_is_left_of_those_before() -> None:
    left, watch, asked = prepared([20.0, 30.0, 25.0, 32.0], [2.0, 4.0, 8.0])
    assert left == pytest.approx(16.0) and asked == 4
    assert [text.split(", ")[-1] for text in watch.warnings] == ["the result went from 30.0 to 25.0 dB"]


@pytest.mark.usefixtures("promises")
def test_a_step_that_changed_nothing_is_not_judged() -> None:
    assert prepared([], [1.0])[2] == 0


@pytest.mark.usefixtures("promises")
def test_without_samples_nobody_judges() -> None:
    left, _, asked = prepared([], [2.0], samples=False)
    assert left == pytest.approx(2.0) and asked == 0


@pytest.mark.parametrize(("count", "skipped"), [(1, True), (3, True), (4, False)])
def test_steps_that_are_judged_need_samples_to_be_judged_on(count: int, skipped: bool) -> None:
    """Two samples in each half are the least that can teach and judge; what would go unjudged is left alone."""
    model = wrapped(proto_of([node("MatMul", "x w", "y")], {"x": [4, 16]}, {"y": None}, {"w": normal(0, 16, 16)}))
    watch = Watch()
    prepare(model, 17, ("normalize", "smooth", "equalize"), stream_for(model, count), watch)
    text = "step '{}' needs 4 samples or more and was skipped"
    assert watch.warnings == ([text.format("smooth"), text.format("equalize")] if skipped else [])
