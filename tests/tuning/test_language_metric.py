"""`--metric perplexity`: a search for language models goes by how well they foretell the tokens of their samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from decoders import decoder_in

import qcli.tuning.judge
from qcli import TuneJob, tune
from qcli.cli import main
from qcli.errors import UsageError
from qcli.latency import Effort
from qcli.report import Accuracy, Likelihoods
from qcli.tuning.metric import PERPLEXITY, Metric, check_float_model, metric_of
from qcli.tuning.nouns import Limits
from qcli.watch import Watch


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is measured here is not how fast anything is."""
    monkeypatch.setattr(qcli.tuning.judge, "_EFFORT", Effort(least=0.01, most=0.02))
    monkeypatch.setenv("QCLI_CACHE_DIR", str(tmp_path / "cache"))


def job(folder: Path, **options: Any) -> TuneJob:
    facts: dict[str, Any] = {
        "model": folder / "model.onnx",
        "calibration": folder / "calib",
        "evaluation": folder / "calib",
        "recipe": "int8-weights",
        "output": folder / "out.onnx",
        "threads": 1,
        "time_limit": 0.001,
        "metric": PERPLEXITY,
        "limits": Limits(max_size=0.9),
        **options,
    }
    return TuneJob(**facts)


def test_a_decoder_is_searched_by_it(tmp_path: Path) -> None:
    model = decoder_in(tmp_path)
    report = tune(job(tmp_path, model=model))
    assert report.metric == "perplexity"
    least = [outcome.metric for outcome in report.tried]
    assert len(least) > 1 and all(value is not None and value < 0 for value in least)
    accuracy = report.result.accuracy
    assert accuracy is not None and accuracy.nll is not None
    assert report.result_metric == pytest.approx(-accuracy.nll.quantized)
    assert (report.tried[0].metric or 0) == pytest.approx(-accuracy.nll.float_, rel=0.05), "the same samples, in halves"


def test_a_limit_that_no_plan_keeps_is_said(tmp_path: Path) -> None:
    report = tune(job(tmp_path, model=decoder_in(tmp_path), limits=Limits(max_size=0.9, min_metric=-1e-3)))
    assert any("--min-metric -0.001 is more than the float model" in warning for warning in report.warnings)
    assert not report.met and "perplexity" in report.reason


def test_the_value_is_the_log_likelihood() -> None:
    accuracy = Accuracy(nll=Likelihoods(float_=2.0, quantized=2.25, increase=0.25))
    assert Metric(name=PERPLEXITY).value(accuracy) == -2.25
    warned = check_float_model(Metric(name=PERPLEXITY), -2.0, -1.5, 8)
    assert warned is not None and "more than the float model itself reaches" in warned
    assert check_float_model(Metric(name=PERPLEXITY), -2.0, -2.5, 8) is None


@pytest.mark.parametrize(("least", "hint"), [(12.0, "-2.485"), (0.5, "minus accuracy.nll")])
def test_a_perplexity_in_place_of_a_likelihood_is_refused(tmp_path: Path, least: float, hint: str) -> None:
    with pytest.raises(UsageError, match="mean log-likelihood, 0 at most") as caught:
        metric_of(job(tmp_path, limits=Limits(min_metric=least)))
    assert hint in caught.value.hint


def test_other_models_have_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from conftest import SAMPLE_MODELS

    home = SAMPLE_MODELS / "mlp"
    asked = ["--metric", "perplexity", "-d", str(home / "calib"), "-o", str(tmp_path / "o.onnx"), "--time-limit", "1"]
    assert main(["tune", str(home / "model.onnx"), *asked]) == 2
    error = capsys.readouterr().err
    assert "error: --metric perplexity is about language models" in error and "hint: " in error


def test_a_search_leaves_convert_out_and_says_so(tmp_path: Path) -> None:
    watch = Watch()
    tune(job(tmp_path, model=decoder_in(tmp_path), settings=("convert.to=float16",)), watch)
    assert any("is tried without its 'convert'" in warning for warning in watch.warnings)
