"""The analysis as a whole: it points at what was spoiled, and what it promises comes true."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import SAMPLE_MODELS
from models import node, normal, proto_of, saved
from sabotaged import CHANNELS, SAMPLES, chain, convolutions, samples

from qcli.analysis.files import write_analysis
from qcli.analysis.nouns import Analysis, AnalyzeJob, Suggestion
from qcli.analysis.work import analyze
from qcli.errors import InputError, NothingToDoError, QcliError, RuntimeFailure, UnsupportedError, UsageError
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.watch import Watch

IMAGE = (1, CHANNELS, 6, 6)
UNEQUAL = "prepare=[normalize, float32, unfuse, fold_constants]"
"""Without `equalize`, which would mend what is spoiled here."""
GRAY = "samples.calibration.preprocess={channels: gray, preset: unit}"


def job(model: Path, calib: Path, **options: Any) -> AnalyzeJob:
    facts = {"model": model, "calibration": calib, "compared": SAMPLES, "threads": 1, **options}
    return AnalyzeJob(**facts)


def sample_job(name: str, **options: Any) -> AnalyzeJob:
    folder = SAMPLE_MODELS / name
    chosen: dict[str, Any] = {"settings": (GRAY,), "samples": 16, "compared": 4, "suggest": False, **options}
    return job(folder / "model.onnx", folder / "calib", **chosen)


def applied(suggestion: Suggestion, given: AnalyzeJob, folder: Path) -> float:
    """The ratio of what `quantize` makes with the suggestion pasted into a recipe, on the same samples."""
    recipe = folder / "suggested.yaml"
    recipe.write_text(f"version: 1\nextends: {given.recipe}\n{suggestion.yaml}")
    made = QuantizeJob(
        model=given.model,
        recipe=str(recipe),
        calibration=given.calibration,
        evaluation=given.calibration,
        output=folder / "out.onnx",
        latency=False,
        cache=False,
        threads=1,
    )
    accuracy = quantize(made).accuracy
    assert accuracy is not None and accuracy.sqnr is not None
    return accuracy.sqnr


@pytest.fixture(scope="module")
def spoiled_weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnalyzeJob, Analysis]:
    folder = tmp_path_factory.mktemp("weights")
    given = job(chain(folder, 40), samples(folder, 4, CHANNELS), recipe="int8-per-tensor", settings=(UNEQUAL,))
    return given, analyze(given)


@pytest.fixture(scope="module")
def spoiled_activations(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnalyzeJob, Analysis]:
    folder = tmp_path_factory.mktemp("activations")
    given = job(convolutions(folder, 40), samples(folder, *IMAGE), recipe="int8-minmax")
    return given, analyze(given)


def test_a_spoiled_weight_is_found(spoiled_weights: tuple[AnalyzeJob, Analysis]) -> None:
    analysis = spoiled_weights[1]
    worst = analysis.rows[0]
    assert analysis.blame == "weights"
    assert (worst.name, worst.op) == ("/second/MatMul", "MatMul")
    assert worst.weights is not None and worst.activations is not None
    assert worst.weights + 20 < worst.activations
    assert worst.gain == max(row.gain for row in analysis.rows) > 10
    assert worst.share > 0.9
    assert any("granularity: channel" in one.yaml and not one.floats for one in analysis.suggestions)


def test_a_spoiled_activation_is_found(spoiled_activations: tuple[AnalyzeJob, Analysis]) -> None:
    analysis = spoiled_activations[1]
    worst = analysis.rows[0]
    assert analysis.blame == "activations"
    assert worst.name == "/second/Conv"
    assert worst.values == ("s",)
    assert worst.weights is not None and worst.activations is not None
    assert worst.activations + 20 < worst.weights
    assert worst.gain == max(row.gain for row in analysis.rows) > 6
    assert any("equalize" in one.yaml and "prepare" in one.yaml for one in analysis.suggestions)


@pytest.mark.parametrize("spoiled", ["spoiled_weights", "spoiled_activations"])
def test_what_is_promised_comes_true(spoiled: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    given, analysis = request.getfixturevalue(spoiled)
    assert analysis.suggestions
    for suggestion in analysis.suggestions:
        assert suggestion.gain == pytest.approx(suggestion.sqnr - analysis.whole.quantized)
        assert applied(suggestion, given, tmp_path) == pytest.approx(suggestion.sqnr, abs=0.01), suggestion.yaml
    without = Suggestion(why="", yaml="", sqnr=0, gain=0)
    assert applied(without, given, tmp_path) == pytest.approx(analysis.whole.quantized, abs=0.01)


def test_suggestions_begin_with_the_best(spoiled_weights: tuple[AnalyzeJob, Analysis]) -> None:
    gains = [one.gain for one in spoiled_weights[1].suggestions]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) >= 0.5


def test_rows_begin_with_the_worst(spoiled_activations: tuple[AnalyzeJob, Analysis]) -> None:
    rows = spoiled_activations[1].rows
    assert [row.alone for row in rows] == sorted(row.alone for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1)


def test_what_is_simulated_is_what_runs(spoiled_weights: tuple[AnalyzeJob, Analysis]) -> None:
    whole = spoiled_weights[1].whole
    assert whole.simulated == pytest.approx(whole.quantized, abs=0.5)
    assert whole.float_check > 100
    assert whole.weights_only is not None and whole.activations_only is not None
    assert whole.simulated <= min(whole.weights_only, whole.activations_only) + 0.5


def test_steps_behind_quantization_count_for_the_whole_and_not_for_suggestions(tmp_path: Path) -> None:
    finished = ("finish=[refine_ranges, correct_bias]",)
    calib = samples(tmp_path, *IMAGE)
    given = job(convolutions(tmp_path, 40), calib, recipe="int8-minmax", settings=finished, cache=False)
    analysis = analyze(given)
    before = analyze(msgspec.structs.replace(given, settings=()))
    assert analysis.whole.quantized > before.whole.quantized, "the steps help here"
    assert analysis.whole.simulated == pytest.approx(analysis.whole.quantized, abs=0.5)
    assert analysis.suggestions == before.suggestions
    assert "without the recipe's steps under 'finish'" in analysis.notes[-1]
    without = Suggestion(why="", yaml="finish: [refine_ranges, correct_bias]", sqnr=0, gain=0)
    assert applied(without, given, tmp_path) == pytest.approx(analysis.whole.quantized, abs=0.01)


@pytest.mark.parametrize("recipe", ["int8", "int8-weights", "int8-dynamic"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gru", "transformer"])
def test_sample_models(name: str, recipe: str) -> None:
    analysis = analyze(sample_job(name, recipe=recipe))
    assert analysis.whole.simulated == pytest.approx(analysis.whole.quantized, abs=1.5)
    assert analysis.rows
    for row in analysis.rows:
        parts = [part for part in (row.weights, row.activations) if part is not None]
        assert parts and row.alone <= max(parts) + 1
    if recipe == "int8-weights":
        assert analysis.whole.activations_only is None and analysis.blame == "weights"
        assert all(row.activations is None for row in analysis.rows)


@pytest.mark.parametrize("by", ["op", "block"])
def test_groups_hold_every_node_once(by: str) -> None:
    nodes = [name for row in analyze(sample_job("cnn")).rows for name in row.nodes]
    grouped = analyze(sample_job("cnn", by=by))
    assert grouped.by == by
    assert sorted(name for row in grouped.rows for name in row.nodes) == sorted(nodes)
    assert 1 < len(grouped.rows) < len(nodes)


def test_groups_are_measured_together() -> None:
    rows = {row.name: row for row in analyze(sample_job("cnn", by="op")).rows}
    singles = [row for row in analyze(sample_job("cnn")).rows if row.op == "Conv"]
    assert rows["Conv"].alone < min(row.alone for row in singles)


def test_threads_change_nothing() -> None:
    first = analyze(sample_job("mlp", threads=1, cache=False, suggest=True))
    assert analyze(sample_job("mlp", threads=4, cache=False, suggest=True)) == first


def test_the_second_time_is_read_from_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    first = analyze(sample_job("mlp", suggest=True))
    with monkeypatch.context() as patch:
        patch.setattr("qcli.analysis.work._analyze", lambda *_: pytest.fail("analyzed again"))
        assert analyze(sample_job("mlp", suggest=True)) == first
    for changes in ({"by": "op"}, {"compared": 3}, {"samples": 8}, {"recipe": "int8-minmax"}, {"cache": False}):
        asked: list[AnalyzeJob] = []
        with monkeypatch.context() as patch:
            patch.setattr("qcli.analysis.work._analyze", lambda given, watch, asked=asked: asked.append(given) or first)
            analyze(sample_job("mlp", suggest=True, **changes))
        assert len(asked) == 1, changes


def test_a_damaged_cache_is_measured_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))
    first = analyze(sample_job("mlp"))
    for path in (tmp_path / "cache").glob("*.json"):
        path.write_bytes(b'{"schema": 1}')
    assert analyze(sample_job("mlp")) == first


def test_warnings_are_said_again() -> None:
    given = sample_job("mlp", settings=("prepare=[normalize, float32, equalize]",), random_samples=4, calibration=None)
    watch = Watch()
    analysis = analyze(given, watch)
    assert tuple(watch.warnings) == analysis.warnings
    assert any("random" in text for text in analysis.warnings)


def test_json_goes_there_and_back(spoiled_weights: tuple[AnalyzeJob, Analysis], tmp_path: Path) -> None:
    analysis = spoiled_weights[1]
    write_analysis(analysis, tmp_path / "a.json")
    assert msgspec.json.decode((tmp_path / "a.json").read_bytes(), type=Analysis) == analysis


def test_csv_holds_every_row(spoiled_weights: tuple[AnalyzeJob, Analysis], tmp_path: Path) -> None:
    analysis = spoiled_weights[1]
    write_analysis(analysis, tmp_path / "a.csv", top=1)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [row["name"] for row in rows] == [row.name for row in analysis.rows]
    assert [float(row["alone"]) for row in rows] == [row.alone for row in analysis.rows]
    assert [row["activations"] == "" for row in rows] == [row.activations is None for row in analysis.rows]


def test_markdown_shows_the_worst(spoiled_weights: tuple[AnalyzeJob, Analysis], tmp_path: Path) -> None:
    analysis = spoiled_weights[1]
    write_analysis(analysis, tmp_path / "a.md", top=1)
    text = (tmp_path / "a.md").read_text()
    assert "`/second/MatMul`" in text and "`/third/MatMul`" not in text
    assert "and 2 more" in text
    assert all(one.yaml in text for one in analysis.suggestions)


def test_names_that_look_like_patterns_are_matched_as_they_are(tmp_path: Path) -> None:
    weights = {f"w{index}": normal(index, CHANNELS, CHANNELS) / 4 for index in range(2)}
    weights["w1"][0, 0] = 40
    nodes = [node("MatMul", "x w0", "a", name="l[0]*"), node("MatMul", "a w1", "y", name="l[1]*")]
    model = saved(proto_of(nodes, {"x": [4, CHANNELS]}, {"y": None}, weights), tmp_path / "m.onnx")
    given = job(model, samples(tmp_path, 4, CHANNELS), recipe="int8-per-tensor", settings=(UNEQUAL,))
    kept = [one for one in analyze(given).suggestions if one.yaml.endswith("keep: float\n")]
    assert kept and kept[0].floats == 1
    assert applied(kept[0], given, tmp_path) == pytest.approx(kept[0].sqnr, abs=0.01)


def test_a_plan_that_was_given_gets_no_suggestions(tmp_path: Path) -> None:
    from qcli.stages import make_plan_file

    plan = tmp_path / "plan.yaml"
    make_plan_file(QuantizeJob(**{**_plain(sample_job("mlp")), "output": plan}))
    analysis = analyze(sample_job("mlp", plan=plan, suggest=True))
    assert analysis.suggestions == ()
    assert any("plan that was given" in note for note in analysis.notes)


def _plain(given: AnalyzeJob) -> dict[str, Any]:
    names = [field.name for field in msgspec.structs.fields(QuantizeJob)]
    return {name: getattr(given, name) for name in names}


def _unrunnable(folder: Path) -> Path:
    nodes = [node("MatMul", "x w", "m"), node("Reshape", "m to", "y")]
    import numpy as np

    weights = {"w": normal(0, CHANNELS, CHANNELS), "to": np.array([7, -1])}
    return saved(proto_of(nodes, {"x": ["n", CHANNELS]}, {"y": None}, weights), folder / "broken.onnx")


def _nothing(folder: Path) -> Path:
    return saved(proto_of([node("Tanh", "x", "y")], {"x": [4, CHANNELS]}, {"y": None}), folder / "tanh.onnx")


def _integers_out(folder: Path) -> Path:
    import onnx

    nodes = [node("MatMul", "x w", "m"), node("ArgMax", "m", "y", axis=1)]
    proto = proto_of(nodes, {"x": [4, CHANNELS]}, {"y": None}, {"w": normal(0, CHANNELS, CHANNELS)})
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return saved(proto, folder / "best.onnx")


def _infinite(folder: Path) -> Path:
    nodes = [node("MatMul", "x w", "m"), node("Exp", "m", "y")]
    weights = {"w": normal(0, CHANNELS, CHANNELS) * 1000}
    return saved(proto_of(nodes, {"x": [4, CHANNELS]}, {"y": None}, weights), folder / "infinite.onnx")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_unrunnable, RuntimeFailure),
        (_nothing, NothingToDoError),
        (_integers_out, UnsupportedError),
        (_infinite, InputError),
    ],
)
def test_models_that_cannot_be_analyzed(make: Any, kind: type[QcliError], tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        analyze(job(make(tmp_path), samples(tmp_path, 4, CHANNELS)))
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize("recipe", ["int8", "int8-weights"])
def test_samples_are_needed(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match="samples"):
        analyze(AnalyzeJob(model=chain(tmp_path), recipe=recipe))


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    calib = samples(tmp_path, 4, CHANNELS)
    out = tmp_path / "out.onnx"
    quantize(QuantizeJob(model=chain(tmp_path), calibration=calib, output=out, latency=False, samples=2))
    with pytest.raises(UnsupportedError, match="already quantized"):
        analyze(job(out, calib))


def test_reports_are_checked_before_the_work(tmp_path: Path) -> None:
    for report in (tmp_path / "a.html", tmp_path / "nowhere" / "a.json"):
        with pytest.raises(UsageError):
            analyze(AnalyzeJob(model=chain(tmp_path), reports=(report,)))
    model = chain(tmp_path)
    with pytest.raises(UsageError, match="put together"):
        analyze(AnalyzeJob(model=model, by="layer"))


def test_without_memory(tmp_path: Path) -> None:
    with pytest.raises(QcliError) as caught:
        analyze(job(chain(tmp_path), samples(tmp_path, 4, CHANNELS), recipe="int8-weights", max_memory=1000))
    assert caught.value.exit_code == 7


def test_it_looks_at_the_model_before_convert_and_says_so() -> None:
    analysis = analyze(sample_job("mlp", settings=("convert.to=float16",)))
    assert any("before the recipe's 'convert'" in warning for warning in analysis.warnings)
