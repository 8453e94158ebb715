"""Perplexity from end to end: in the report, on the screen and at the gate."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from decoders import SHAPE, decoder_in
from models import node, normal, proto_of, saved

from benchmarks.decoder_model import feeds_of
from qcli.errors import UsageError
from qcli.graph import load_model
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.render import to_markdown
from qcli.report import Report, encode_report
from qcli.runtime import Session


def quantized(model: Path, *gates: str, **options: object) -> Report:
    job = {
        "model": model,
        "recipe": "int8-weights",
        "output": model.parent / "q.onnx",
        "evaluation": model.parent / "calib",
    }
    return quantize(QuantizeJob(**{**job, "latency": False, "gates": gates, **options}))  # type: ignore[arg-type]


def test_a_decoder_gets_it_and_a_gate_can_name_it(tmp_path: Path) -> None:
    report = quantized(decoder_in(tmp_path), "accuracy.perplexity.ratio <= 1.1", "accuracy.nll.increase <= -9")
    assert report.accuracy is not None
    perplexity, nll = report.accuracy.perplexity, report.accuracy.nll
    assert perplexity is not None and nll is not None
    assert [gate.passed for gate in report.gates] == [True, False]
    assert perplexity.float_ == pytest.approx(np.exp(nll.float_)) and perplexity.float_ > 1
    assert perplexity.ratio == pytest.approx(perplexity.quantized / perplexity.float_)
    assert nll.increase == pytest.approx(nll.quantized - nll.float_)
    assert b"| perplexity |" in to_markdown(report)
    assert b'"nll": {\n      "float":' in encode_report(report)


def test_it_is_that_of_the_models_own_logits(tmp_path: Path) -> None:
    model = decoder_in(tmp_path, samples=1, length=12)
    report = quantized(model)
    tokens = np.load(tmp_path / "calib" / "000.npz")["input_ids"]
    logits = Session(load_model(model).runnable()).run(feeds_of(SHAPE, tokens))["logits"].astype(np.float64)
    likelihoods = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    wanted = -np.take_along_axis(likelihoods[0, :-1], tokens[0, 1:, None], axis=1).mean()
    assert report.accuracy is not None and report.accuracy.nll is not None
    assert report.accuracy.nll.float_ == pytest.approx(wanted, rel=1e-4)


def test_other_models_have_none_and_a_gate_on_it_says_so(tmp_path: Path) -> None:
    proto = proto_of([node("MatMul", "x w", "y")], {"x": ["n", 64]}, {"y": ["n", 64]}, {"w": normal(0, 64, 64)})
    model = saved(proto, tmp_path / "m.onnx")
    report = quantized(model, evaluation=None)
    assert report.accuracy is not None and report.accuracy.perplexity is None and report.accuracy.nll is None
    with pytest.raises(UsageError, match="needs a language model") as caught:
        quantized(model, "accuracy.perplexity.ratio <= 2", evaluation=None)
    assert caught.value.exit_code == 2 and "token ids" in caught.value.hint


@pytest.mark.skipif("QCLI_ZOO" not in os.environ, reason="QCLI_ZOO is not set")
def test_a_trained_decoder_foretells_its_text(tmp_path: Path) -> None:
    folder = Path(os.environ["QCLI_ZOO"]) / "aidreams_llama_lm"
    job = QuantizeJob(
        model=folder / "model.onnx",
        recipe="int8-weights",
        evaluation=folder / "eval",
        output=tmp_path / "q.onnx",
        latency=False,
        gates=("accuracy.perplexity.ratio <= 1.01",),
    )
    report = quantize(job)
    assert report.status == "passed" and report.accuracy is not None and report.accuracy.perplexity is not None
    assert 5 < report.accuracy.perplexity.float_ < 7
