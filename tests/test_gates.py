from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcli.errors import UsageError
from qcli.gates import check_gates, evaluate, known_paths, parse_gate
from qcli.report import (
    Accuracy,
    KernelFacts,
    OutputAccuracy,
    Report,
    SampleCounts,
    Scores,
    Seconds,
    Size,
    with_gates,
)

REPORT = Report(
    command="validate",
    samples=SampleCounts(validation=8),
    size=Size(float_bytes=1000, bytes=260, ratio=0.26),
    accuracy=Accuracy(
        sqnr=25.0,
        cosine=0.99,
        agreement=0.95,
        top1=Scores(float_=0.9, quantized=0.88, drop=0.02),
        outputs={
            "logits": OutputAccuracy(sqnr=25.0),
            "a.b/c": OutputAccuracy(sqnr=30.0),
            "ids": OutputAccuracy(equal=0.5),
        },
    ),
    kernels=KernelFacts(integer=7, float_=1, integer_share=0.875, by_kernel={"QLinearConv": 7, "Conv": 1}),
    seconds=Seconds(total=3.5),
)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        ("accuracy.top1.drop <= 0.02", True),
        ("accuracy.top1.drop <= 0.01", False),
        ("accuracy.top1.drop<0.02", False),
        ("size.ratio < 0.3", True),
        ("size.bytes == 260", True),
        ("size.bytes != 260", False),
        ("kernels.integer_share >= 0.9", False),
        ("kernels.float > 0", True),
        ("kernels.by_kernel.QLinearConv >= 7", True),
        ("kernels.by_kernel.QLinearMatMul == 0", True),
        ("accuracy.outputs.logits.sqnr >= 2.5e1", True),
        ("accuracy.outputs.a.b/c.sqnr > 29.9", True),
        ("accuracy.outputs.ids.equal >= 1", False),
        ("accuracy.sqnr >= -10", True),
        ("  seconds.total   <=   10  ", True),
        ("samples.validation >= 8", True),
    ],
)
def test_comparisons(gate: str, expected: bool) -> None:
    [result] = evaluate(check_gates([gate]), REPORT)
    assert result.passed is expected
    assert result.gate == gate.strip()


@given(value=st.floats(-1e9, 1e9), limit=st.floats(-1e9, 1e9))
def test_opposite_comparisons_disagree(value: float, limit: float) -> None:
    report = msgspec.structs.replace(REPORT, peak_memory_mb=value)
    for left, right in (("<=", ">"), (">=", "<"), ("==", "!=")):
        gates = check_gates([f"peak_memory_mb {sign} {limit!r}" for sign in (left, right)])
        first, second = evaluate(gates, report)
        assert first.passed is not second.passed
        assert first.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "size.ratio",
        "size.ratio <=",
        "<= 0.3",
        "size.ratio = 0.3",
        "size.ratio =< 0.3",
        "0.3 >= size.ratio >= 0.1",
    ],
)
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError, match="is not a path, a comparison and a number") as caught:
        check_gates([text])
    assert "accuracy.top1.drop <= 0.01" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("number", ["1%", "nan", "inf", "-inf", "abc", "0,3"])
def test_limits_are_finite_numbers(number: str) -> None:
    with pytest.raises(UsageError, match="is not a number"):
        parse_gate(f"size.ratio <= {number}")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("accuracy.top1.dorp", "did you mean 'accuracy.top1.drop'?"),
        ("size.ration", "did you mean 'size.ratio'?"),
        ("kernels.integer_shar", "did you mean 'kernels.integer_share'?"),
        ("accuracy.outputs.logits.sqn", "did you mean 'accuracy.outputs.NAME.sqnr'?"),
    ],
)
def test_a_wrong_path_is_found_before_the_work(path: str, hint: str) -> None:
    with pytest.raises(UsageError, match=path) as caught:
        check_gates([f"{path} <= 1"])
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "path", ["accuracy", "accuracy.top1", "kernels.by_kernel", "model.path", "gates", "status", "."]
)
def test_what_is_no_number_cannot_be_a_gate(path: str) -> None:
    with pytest.raises(UsageError, match="has no number"):
        check_gates([f"{path} <= 1"])


@pytest.mark.parametrize(
    ("gate", "need"),
    [
        ("accuracy.top5.drop <= 0.01", "labels"),
        ("latency.speedup >= 1", "latency"),
    ],
)
def test_a_gate_on_what_was_not_measured_is_an_error(gate: str, need: str) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(check_gates([gate]), REPORT)
    assert caught.value.message == f"gate '{gate}' needs {need}"
    assert caught.value.hint


def test_without_validation_the_hint_is_about_samples_not_labels() -> None:
    bare = msgspec.structs.replace(REPORT, accuracy=None)
    with pytest.raises(UsageError, match="needs validation samples"):
        evaluate(check_gates(["accuracy.top1.drop <= 0.01"]), bare)


def test_an_unmeasured_number_without_a_known_need() -> None:
    with pytest.raises(UsageError, match=r"'seconds.solve' was not measured in this run"):
        evaluate(check_gates(["seconds.solve <= 1"]), REPORT)


def test_a_wrong_output_is_suggested_the_nearest() -> None:
    with pytest.raises(UsageError, match="there is no output 'logit'") as caught:
        evaluate(check_gates(["accuracy.outputs.logit.sqnr > 1"]), REPORT)
    assert caught.value.hint == "did you mean 'logits'?"


def test_a_measure_that_an_output_does_not_have() -> None:
    with pytest.raises(UsageError, match="'sqnr' is not defined for the output 'ids'"):
        evaluate(check_gates(["accuracy.outputs.ids.sqnr > 1"]), REPORT)


@pytest.mark.parametrize(
    ("gate", "lacking"),
    [
        ("accuracy.top1.drop <= 0.01", "labels"),
        ("accuracy.top1.drop <= 0.01", "validation samples"),
        ("latency.speedup > 1", "latency"),
    ],
)
def test_what_will_be_lacking_is_refused_before_the_work(gate: str, lacking: str) -> None:
    check_gates([gate])
    with pytest.raises(UsageError, match=f"needs {lacking}"):
        check_gates([gate], lacking=(lacking,))


def test_the_interface_is_all_there() -> None:
    promised = {
        "size.ratio", "size.bytes", "size.float_bytes", "accuracy.sqnr", "accuracy.cosine",
        "accuracy.agreement",
        "accuracy.top1.float", "accuracy.top1.quantized", "accuracy.top1.drop", "accuracy.top5.drop",
        "accuracy.outputs.*.max_abs", "kernels.integer", "kernels.float", "kernels.integer_share",
        "latency.float_ms", "latency.ms", "latency.speedup", "latency.threads", "seconds.total",
        "peak_memory_mb", "output.parameters",
    }  # fmt: skip
    assert promised <= set(known_paths())


def test_a_failed_gate_fails_the_report() -> None:
    gates = check_gates(["size.ratio <= 0.3", "size.ratio <= 0.1"])
    judged = with_gates(REPORT, evaluate(gates, REPORT))
    assert judged.status == "failed"
    assert [result.passed for result in judged.gates] == [True, False]
    assert with_gates(REPORT, evaluate(gates[:1], REPORT)).status == "passed"
    assert with_gates(REPORT, ()).status == "passed"
