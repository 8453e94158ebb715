"""Metrics other than the ratio of signal to noise: qcli's own and a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import SAMPLE_MODELS

import qcli.tuning.judge
from qcli import TuneJob, tune
from qcli.dataset import Sample
from qcli.errors import UsageError
from qcli.latency import Effort
from qcli.report import Accuracy, Scores
from qcli.tuning.files import cells, columns, write_tuning
from qcli.tuning.metric import WORST, Metric, Tally, check_float_model, metric_of
from qcli.tuning.nouns import Limits, TuneReport
from qcli.watch import Watch

MARGIN = """
import numpy as np

def metric(expected, given, label):
    difference = np.abs(expected["logits"] - given["logits"]).max()
    return 1 - difference / np.abs(expected["logits"]).max()
"""

RIGHT = """
def metric(expected, given, label):
    return given["logits"].argmax() == label
"""


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is measured here is not how fast anything is."""
    monkeypatch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))


def job(folder: Path, **options: Any) -> TuneJob:
    """One recipe alone, and nothing after it: the time is up at once. The float model is too large to win."""
    home = SAMPLE_MODELS / "mlp"
    facts: dict[str, Any] = {
        "model": home / "model.onnx",
        "calibration": home / "eval",
        "recipe": "int8-minmax",
        "samples": 24,
        "output": folder / "out.onnx",
        "threads": 1,
        "time_limit": 0.001,
        "limits": Limits(max_size=0.9),
        **options,
    }
    return TuneJob(**facts)


def written(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def tally(code: str, name: str = "mine.py") -> Tally:
    return Tally(Metric(name=name, file=name, code=code.encode()))


def outputs(*values: float) -> dict[str, Any]:
    return {"y": np.array([values], np.float32)}


def sample(label: int | None = None, file: str = "a.npz") -> Sample:
    return Sample(file=file, feeds={}, label=label)


# A file's function


def test_the_mean_over_the_samples_counts() -> None:
    found = tally("def metric(expected, given, label): return given['y'].sum() - expected['y'].sum() + (label or 0)")
    found.update(outputs(1, 2), outputs(1, 4), sample())
    found.update(outputs(1, 2), outputs(1, 2), sample(7))
    assert found.value(Accuracy()) == 4.5


@pytest.mark.parametrize("result", ["True", "1", "0.25", "np.float32(0.5)", "np.bool_(True)", "np.int64(-3)", "-1e308"])
def test_what_counts_as_a_number(result: str) -> None:
    found = tally(f"import numpy as np\ndef metric(expected, given, label): return {result}")
    for _ in range(3):
        found.update(outputs(1), outputs(1), sample())
    value = found.value(Accuracy())
    assert value is not None and np.isclose(value, float(eval(result)))


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ("None", "returned NoneType"),
        ("'0.5'", "returned str"),
        ("given['y']", "returned ndarray"),
        ("1j", "returned complex"),
        ("float('nan')", "returned nan"),
        ("float('-inf')", "returned -inf"),
        ("10 ** 400", "OverflowError"),
    ],
)
def test_what_is_no_number(result: str, said: str) -> None:
    found = tally(f"def metric(expected, given, label): return {result}")
    with pytest.raises(UsageError, match=said) as raised:
        found.update(outputs(1), outputs(1), sample(file="b.npz"))
    assert "mine.py" in raised.value.message and "b.npz" in raised.value.message and raised.value.hint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "line 3: ZeroDivisionError: division by zero"),
        ("return expected['z'].sum()", "line 3: KeyError: 'z'"),
        ("import sys; sys.exit(0)", "line 3: SystemExit: 0"),
        ("assert label is not None", "line 3: AssertionError"),
        ("expected['y'][:] = 0", "line 3: ValueError: assignment destination is read-only"),
    ],
)
def test_what_a_function_raises_is_named_with_its_line(body: str, said: str) -> None:
    found = tally(f"def metric(expected, given, label):\n    # a comment\n    {body}\n")
    with pytest.raises(UsageError) as raised:
        found.update(outputs(1, 2), outputs(1, 2), sample())
    assert f"mine.py, {said} (sample 'a.npz')" in raised.value.message
    assert "'y' [1, 2]; label is None" in raised.value.hint


def test_a_call_with_too_few_parameters_has_no_line_of_the_file() -> None:
    with pytest.raises(UsageError, match=r"mine\.py: TypeError: metric"):
        tally("def metric(expected): return 1.0").update(outputs(1), outputs(1), sample())


@pytest.mark.parametrize("given", [outputs(np.nan, 1), outputs(np.inf, 1), outputs(1), {"y": np.array([["a", "b"]])}])
def test_a_candidate_that_gives_nothing_comparable_is_the_worst(given: dict[str, Any]) -> None:
    found = tally("def metric(expected, given, label): return 1.0")
    found.update(outputs(1, 2), given, sample())
    found.update(outputs(1, 2), outputs(1, 2), sample())
    assert found.value(Accuracy()) == WORST


def test_each_candidate_meets_fresh_code() -> None:
    code = "calls = []\ndef metric(expected, given, label):\n    calls.append(1)\n    return len(calls)"
    for _ in range(2):
        found = tally(code)
        found.update(outputs(1), outputs(1), sample())
        assert found.value(Accuracy()) == 1


def test_dataclasses_and_globals_of_the_file_work() -> None:
    code = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Seen:
    value: float

def metric(expected, given, label):
    return Seen(2.5).value
"""
    found = tally(code)
    found.update(outputs(1), outputs(1), sample())
    assert found.value(Accuracy()) == 2.5


def test_what_it_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    found = tally("print('loaded')\ndef metric(expected, given, label):\n    print('called')\n    return 1.0")
    found.update(outputs(1), outputs(1), sample())
    out, err = capsys.readouterr()
    assert out == "" and err.split() == ["loaded", "called"]


def test_outputs_that_are_no_arrays_are_copies() -> None:
    expected: dict[str, Any] = {"y": [1, 2]}
    found = tally("def metric(expected, given, label):\n    expected['y'].clear()\n    return 1.0")
    found.update(expected, {"y": [1]}, sample())
    assert expected == {"y": [1, 2]} and found.value(Accuracy()) == 1.0


def test_the_mean_of_ones_is_one() -> None:
    for count in range(1, 60):
        found = tally("def metric(expected, given, label): return 1.0")
        for _ in range(count):
            found.update(outputs(1), outputs(1), sample())
        assert found.value(Accuracy()) == 1.0


# What a job names


def test_qclis_own(tmp_path: Path) -> None:
    accuracy = Accuracy(sqnr=30.0, agreement=0.75, top1=Scores(float_=0.5, quantized=0.25, drop=0.25))
    for name, value in ((None, None), ("sqnr", None), ("agreement", 0.75), ("top1", 0.25)):
        metric = metric_of(job(tmp_path, metric=name))
        assert (metric.value(accuracy), Tally(metric).value(accuracy)) == (value, value)
        assert metric.value(None) is None


def test_keys_tell_metrics_and_code_apart(tmp_path: Path) -> None:
    keys = {metric_of(job(tmp_path, metric=name)).key for name in ("sqnr", "agreement", "top1")}
    for text in (MARGIN, RIGHT):
        keys.add(metric_of(job(tmp_path, metric=written(tmp_path, text), allow_code=True)).key)
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("options", "limits", "said"),
    [
        ({}, {"min_metric": 0.5}, "there is no --metric"),
        ({"metric": "topp1"}, {}, "'topp1' is no metric"),
        ({"metric": "top1"}, {"min_metric": 1.5}, "from 0 to 1, is 1.5"),
        ({"metric": "agreement"}, {"min_metric": -0.1}, "from 0 to 1, is -0.1"),
        ({"metric": "sqnr"}, {"min_metric": 0.0}, "above 0 and at most 200 dB"),
        ({"metric": "mine.py"}, {}, "runs only if it is allowed"),
        ({"metric": "nowhere.py", "allow_code": True}, {}, "cannot be read"),
    ],
)
def test_metrics_that_cannot_be(tmp_path: Path, options: dict[str, Any], limits: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        metric_of(job(tmp_path, limits=Limits(**limits), **options))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_limit_is_nan_or_infinite(tmp_path: Path, value: float) -> None:
    for name in ("max_drop", "min_sqnr", "min_metric", "max_size", "max_latency"):
        with pytest.raises(UsageError, match=name.replace("_", "-")):
            Limits(**{name: value})
    with pytest.raises(UsageError, match="time-limit"):
        job(tmp_path, time_limit=value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no function 'metric'"),
        ("metric = 3", "has no function 'metric'"),
        ("def metric(:\n", "line 1: no valid Python"),
        ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError"),
        ("import nothing_like_this\n", "line 1: ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("raise SystemExit\n", "line 1: SystemExit"),
        ("a = '\0'", "no valid Python"),
    ],
)
def test_files_that_define_no_metric(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        metric_of(job(tmp_path, metric=written(tmp_path, text), allow_code=True))
    assert "mine.py" in raised.value.message and "metric(expected, given, label)" in raised.value.hint


def test_a_file_is_not_even_read_without_leave(tmp_path: Path) -> None:
    name = written(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\ndef metric(*_): return 1.0")
    with pytest.raises(UsageError, match="allowed"):
        tune(job(tmp_path, metric=name))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.onnx").exists()


def test_what_the_float_model_itself_misses() -> None:
    mine = Metric(name="mine.py", file="mine.py")
    assert check_float_model(Metric(name="top1"), 0.8, 0.8, 10) is None
    assert check_float_model(mine, 0.8, None, 10) is None
    doubt = check_float_model(mine, 0.8, 0.9, 10)
    assert doubt is not None and "mine.py 0.8" in doubt and "10 samples" in doubt
    with pytest.raises(UsageError, match=r"0.9 is more than the float model itself reaches .* top1 0.8"):
        check_float_model(Metric(name="top1"), 0.8, 0.9, 10)


# Searches


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> TuneReport:
    """A search by a file of the user's, and its result on other samples."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
        patch.setenv("QCLI_CACHE_DIR", str(folder / "cache"))
        given = job(
            folder,
            metric=written(folder, MARGIN),
            allow_code=True,
            evaluation=SAMPLE_MODELS / "mlp" / "eval",
            calibration=SAMPLE_MODELS / "mlp" / "calib",
            limits=Limits(min_metric=0.5, max_size=0.9),
        )
        return tune(given)


def test_a_file_is_searched_by(searched: TuneReport) -> None:
    exact, quantized = searched.tried
    assert (searched.metric, searched.met, searched.best) == ("mine.py", True, 1)
    assert exact.metric == 1.0 and quantized.metric is not None and 0.5 < quantized.metric < 1
    assert searched.result_metric is not None and 0.5 < searched.result_metric < 1
    assert searched.result_metric != quantized.metric, "other samples"


def test_the_metric_is_a_column(searched: TuneReport, tmp_path: Path) -> None:
    assert columns(searched)[:3] == ("plan", "mine.py", "SQNR")
    assert all(len(cells(one)) == len(columns(searched)) for one in searched.tried)
    for suffix, said in ((".csv", ",metric,"), (".md", "| plan | mine.py |"), (".json", '"result_metric"')):
        write_tuning(searched, tmp_path / f"r{suffix}")
        assert said in (tmp_path / f"r{suffix}").read_text()
    read = msgspec.json.decode((tmp_path / "r.json").read_bytes(), type=TuneReport)
    assert read == searched
    plain = msgspec.structs.replace(
        searched, tried=tuple(msgspec.structs.replace(one, metric=None) for one in searched.tried), metric="sqnr"
    )
    write_tuning(plain, tmp_path / "plain.csv")
    assert "metric" not in (tmp_path / "plain.csv").read_text() and columns(plain)[:2] == ("plan", "SQNR")


def test_labels_reach_the_file_as_they_reach_top1(tmp_path: Path) -> None:
    own = tune(job(tmp_path, metric=written(tmp_path, RIGHT), allow_code=True))
    top1 = tune(job(tmp_path, metric="top1"))
    assert [one.metric for one in own.tried] == [one.metric for one in top1.tried]
    assert own.result_metric == top1.result_metric
    assert top1.result is not None and top1.result.accuracy is not None and top1.result.accuracy.top1 is not None
    assert top1.result_metric == top1.result.accuracy.top1.quantized


def test_agreement(tmp_path: Path) -> None:
    report = tune(job(tmp_path, metric="agreement", limits=Limits(min_metric=0.5), objective="accuracy"))
    assert report.tried[0].metric == 1.0 and report.metric == "agreement"
    assert report.tried[1].metric is not None and 1 - report.tried[1].metric <= 0.5


def test_sqnr_by_its_name_is_what_it_is_without(tmp_path: Path) -> None:
    named = tune(job(tmp_path, metric="sqnr", limits=Limits(min_metric=150.0, max_size=0.9)))
    assert named.metric == "sqnr" and named.result_metric is None and not named.met
    assert all(one.metric is None for one in named.tried)
    assert "--min-metric 150 and --max-size 0.9 exclude each other" in named.reason


def test_top1_needs_labels_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs labels") as raised:
        tune(job(tmp_path, metric="top1", calibration=SAMPLE_MODELS / "mlp" / "calib"))
    assert "labels.csv" in raised.value.hint and not (tmp_path / "out.onnx").exists()


def test_labels_that_are_named_are_those_of_the_evaluation_samples(tmp_path: Path) -> None:
    home = SAMPLE_MODELS / "mlp"
    given = job(tmp_path, calibration=home / "calib", evaluation=home / "eval", labels=home / "eval" / "labels.csv")
    report = tune(given)
    assert report.result is not None and report.result.accuracy is not None and report.result.accuracy.top1 is not None
    alone = tune(job(tmp_path, metric="top1", labels=home / "eval" / "labels.csv"))
    assert alone.tried[1].metric is not None


def test_agreement_needs_a_classifier(tmp_path: Path) -> None:
    from models import node, normal, proto_of, saved

    rows = tmp_path / "rows"
    rows.mkdir()
    for seed in range(9):
        np.savez(rows / f"{seed}.npz", x=np.random.default_rng(seed).standard_normal((1, 8, 6)).astype(np.float32))
    proto = proto_of([node("MatMul", "x w", "y")], {"x": [1, 8, 6]}, {"y": [1, 8, 5]}, {"w": normal(0, 6, 5)})
    given = job(tmp_path, model=saved(proto, tmp_path / "m.onnx"), calibration=rows)
    with pytest.raises(UsageError, match="matrix of scores"):
        tune(msgspec.structs.replace(given, metric="agreement"))
    with pytest.raises(UsageError, match="needs labels"):
        tune(msgspec.structs.replace(given, metric="top1"))
    mine = written(tmp_path, "def metric(expected, given, label): return -float(abs(expected['y'] - given['y']).max())")
    report = tune(msgspec.structs.replace(given, metric=mine, allow_code=True))
    assert report.tried[0].metric == 0 and report.tried[1].metric is not None and report.tried[1].metric < 0


def test_a_limit_above_the_float_model(tmp_path: Path) -> None:
    labels = tmp_path / "wrong.csv"
    rows = (SAMPLE_MODELS / "mlp" / "eval" / "labels.csv").read_text().splitlines()
    wrong = [f"{name},{(int(label) + 1) % 10}" for name, label in (row.split(",") for row in rows[1:])]
    labels.write_text("\n".join([rows[0], *wrong]))
    with pytest.raises(UsageError, match="more than the float model itself reaches"):
        tune(job(tmp_path, metric="top1", labels=labels, limits=Limits(min_metric=0.9)))
    watch = Watch()
    mine = written(tmp_path, MARGIN)
    report = tune(job(tmp_path, metric=mine, allow_code=True, limits=Limits(min_metric=1.5)), watch)
    assert any("more than the float model itself" in text for text in watch.warnings)
    assert not report.met and report.best == 0
    assert "mine.py 1, 1.5 at least was asked for" in report.reason
    assert "No plan that was tried keeps --min-metric 1.5: the most accurate has mine.py 1" in report.reason


def test_outcomes_of_other_metrics_code_and_labels_are_not_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    accuracy = qcli.tuning.judge.Judge.accuracy

    def counted(self: qcli.tuning.judge.Judge, model: Any) -> Any:
        asked.append(model)
        return accuracy(self, model)

    monkeypatch.setattr(qcli.tuning.judge.Judge, "accuracy", counted)

    def measured(**options: Any) -> int:
        """How many models are run, the evaluation of the result aside."""
        monkeypatch.setattr("qcli.tuning.last_word.evaluated", lambda *_: None)
        asked.clear()
        tune(job(tmp_path, **options))
        return len(asked)

    first, second = written(tmp_path, MARGIN, "a.py"), written(tmp_path, RIGHT, "b.py")
    ways: list[dict[str, Any]] = [
        {},
        {"metric": "agreement"},
        {"metric": "top1"},
        {"metric": first, "allow_code": True},
        {"metric": second, "allow_code": True},
    ]
    assert [measured(**way) for way in ways] == [2] * len(ways)
    assert [measured(**way) for way in ways] == [1] * len(ways), "the float model alone"
    written(tmp_path, RIGHT.replace("==", "!="), "b.py")
    assert measured(**ways[-1]) == 2, "the code has changed"
    rows = (SAMPLE_MODELS / "mlp" / "eval" / "labels.csv").read_text().splitlines()
    (tmp_path / "l.csv").write_text("\n".join([rows[0], *(f"{row.split(',')[0]},3" for row in rows[1:])]))
    assert measured(metric="top1", labels=tmp_path / "l.csv") == 2, "the labels have changed"
    assert measured(recipe="int8-weights") == 2
    assert measured(recipe="int8-weights", calibration=SAMPLE_MODELS / "mlp" / "calib") == 2, "other samples"


def test_a_metric_that_fails_on_the_evaluation_samples_alone_is_a_warning(tmp_path: Path) -> None:
    watch = Watch()
    mine = written(tmp_path, "def metric(expected, given, label): return 1.0 * (label + 1)")
    home = SAMPLE_MODELS / "mlp"
    report = tune(job(tmp_path, metric=mine, allow_code=True, evaluation=home / "calib"), watch)
    assert report.result_metric is None and report.met
    assert any("no value of the metric on the evaluation samples" in text for text in watch.warnings)


def test_top1_without_labels_of_the_evaluation_samples_is_a_warning(tmp_path: Path) -> None:
    watch = Watch()
    report = tune(job(tmp_path, metric="top1", evaluation=SAMPLE_MODELS / "mlp" / "calib"), watch)
    assert report.result_metric is None and report.tried[1].metric is not None
    assert any("on the evaluation samples: they have no labels" in text for text in watch.warnings)


def test_the_example_of_the_docs_runs(tmp_path: Path) -> None:
    page = (SAMPLE_MODELS.parent / "docs" / "tuning.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    report = tune(job(tmp_path, metric=written(tmp_path, code), allow_code=True))
    assert [one.metric for one in report.tried] == [1.0, 1.0] and report.result_metric == 1.0


def test_the_model_is_not_written_over_the_code(tmp_path: Path) -> None:
    mine = written(tmp_path, MARGIN)
    with pytest.raises(UsageError, match=r"mine\.py"):
        tune(job(tmp_path, metric=mine, allow_code=True, output=Path(mine)))
    assert Path(mine).read_text() == MARGIN
