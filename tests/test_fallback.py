"""Going back to float by a budget: what goes, how little of it, what is said, and what is refused."""

from __future__ import annotations

from math import ceil, log2
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import SAMPLE_MODELS, node, normal, proto_of, saved
from test_data_free import residual
from test_zoo import ZOO
from test_zoo import job as zoo_job

from qcli import pipeline
from qcli.amendments import FallbackFacts
from qcli.cookbook import recipe_schema
from qcli.errors import NothingToDoError, ResourceError, UsageError
from qcli.fallback import fall_back, fewest, quantize
from qcli.job import QuantizeJob
from qcli.pipeline import calibrate_job, prepare_job
from qcli.plan import plan_text
from qcli.recipe import Fallback, load_recipe
from qcli.report import Report
from qcli.stages import make_plan_file
from qcli.statistics import Statistics
from qcli.tuning.parts import Part
from qcli.types import Role
from qcli.watch import Watch
from qcli.ways_back import widened

COARSE = "rules=[{match: {role: [input, output]}, grid: {format: uint4, symmetric: false}}]"
"""Activations of 16 levels: 17 dB on the cnn."""

GRAY = "samples.calibration.preprocess={channels: gray, preset: unit}"
SPARE = 0.5


def job(folder: Path, *settings: str, name: str = "cnn", **options: Any) -> QuantizeJob:
    base: dict[str, Any] = {
        "model": SAMPLE_MODELS / name / "model.onnx",
        "recipe": "int8-minmax",
        "settings": (*((GRAY,) if name == "cnn" else ()), *settings),
        "calibration": SAMPLE_MODELS / name / "calib",
        "output": folder / "out.onnx",
        "samples": 24,
        "latency": False,
        "threads": 1,
    }
    return QuantizeJob(**{**base, **options})


def facts_of(report: Report) -> FallbackFacts:
    assert report.fallback is not None
    return report.fallback


def written(folder: Path) -> bytes:
    return (folder / "out.onnx").read_bytes()


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The cnn with activations of 16 levels and a fallback that needs some of its parts in float."""
    folder = tmp_path_factory.mktemp("restored")
    return folder, quantize(job(folder, COARSE, "fallback={min_sqnr: 20}"))


# How few


@given(st.integers(1, 300), st.data())
def test_the_fewest_that_keep_it_are_found(most: int, data: st.DataObject) -> None:
    least = data.draw(st.integers(1, most + 1))
    tried: list[int] = []

    def keeps(count: int) -> bool:
        tried.append(count)
        return count >= least

    assert fewest(most, keeps) == (least if least <= most else None)
    assert len(tried) == len(set(tried)) <= 1 + ceil(log2(most))


@given(st.sets(st.integers(1, 60)), st.integers(0, 60))
def test_what_is_chosen_was_tried_and_kept_it(good: set[int], most: int) -> None:
    """Whatever the counts do: the one that is chosen keeps the budget, the one below it does not."""
    tried: dict[int, bool] = {}

    def keeps(count: int) -> bool:
        tried[count] = count in good
        return tried[count]

    found = fewest(most, keeps)
    if found is None:
        assert most not in good
    else:
        assert tried[found] and (found == 1 or tried[found - 1] is False)


# What goes back


def test_parts_go_back_until_the_budget_is_kept(restored: tuple[Path, Report]) -> None:
    _, report = restored
    facts = facts_of(report)
    assert facts.met and facts.held_out and facts.samples == 12
    assert facts.sqnr_before is not None and facts.sqnr_before < 20
    assert facts.sqnr_after is not None and facts.sqnr_after >= 20 + SPARE
    assert facts.of == 10 and 0 < facts.returned == len(facts.parts) < 10
    assert {part.now for part in facts.parts} == {"float"} and facts.tried > 1
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr > 19.5
    assert report.status == "passed" and report.seconds is not None and report.seconds.fallback is not None


def test_the_report_says_what_went_back_and_why(restored: tuple[Path, Report]) -> None:
    _, report = restored
    assert report.kernels is not None
    reasons = {kept.node: kept.reason for kept in report.kernels.kept_float}
    convolutions = [part.node for part in facts_of(report).parts if part.op == "Conv"]
    assert convolutions
    for name in convolutions:
        assert reasons[name] == "fallback (min_sqnr 20) keeps it float; its weight is stored as int8"


def test_one_part_fewer_is_not_enough(restored: tuple[Path, Report], tmp_path: Path) -> None:
    most = facts_of(restored[1]).returned - 1
    watch = Watch()
    facts = facts_of(quantize(job(tmp_path, COARSE, f"fallback={{min_sqnr: 20, max_parts: {most}}}"), watch))
    assert not facts.met and facts.returned <= most
    assert facts.sqnr_after is not None and facts.sqnr_after < 20 + SPARE
    said = "the recipe's fallback (min_sqnr 20 with 0.5 dB or more to spare) is not kept"
    assert any(text.startswith(said) for text in watch.warnings)


def test_a_share_of_the_parts_is_at_least_one(tmp_path: Path) -> None:
    facts = facts_of(quantize(job(tmp_path, COARSE, "fallback={min_sqnr: 20, max_parts: 0.01}")))
    assert facts.returned == 1 and facts.sqnr_after is not None and facts.sqnr_before is not None
    assert facts.sqnr_after > facts.sqnr_before


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bytes_each_time_on_any_number_of_threads(
    restored: tuple[Path, Report], tmp_path: Path, threads: int
) -> None:
    again = quantize(job(tmp_path, COARSE, "fallback={min_sqnr: 20}", threads=threads, cache=threads == 1))
    assert written(tmp_path) == written(restored[0]) and again.fallback == restored[1].fallback


def test_the_plan_with_parts_in_float_gives_the_same_bytes(restored: tuple[Path, Report], tmp_path: Path) -> None:
    """Solved anew with all samples, as if the recipe had said so."""
    told = job(tmp_path, COARSE, "fallback={min_sqnr: 20}")
    prepared, facts = fall_back(told, prepare_job(told, Watch()), Watch())
    assert facts == restored[1].fallback
    (tmp_path / "plan.yaml").write_text(plan_text(prepared.plan), encoding="utf-8")
    watch = Watch()
    report = quantize(msgspec.structs.replace(told, plan=tmp_path / "plan.yaml"), watch)
    assert written(tmp_path) == written(restored[0]) and report.fallback is None
    assert "the plan was given and stays as it is: the recipe's 'fallback' was not applied" in watch.warnings


@pytest.mark.parametrize("limits", ["{min_sqnr: 15}", "{max_drop: 0.5}", "{max_drop: 0.5, min_sqnr: 10}"])
def test_a_budget_that_is_kept_changes_nothing(tmp_path: Path, limits: str) -> None:
    watch, plain = Watch(), Watch()
    report = quantize(job(tmp_path, f"fallback={limits}"), watch)
    facts, content = facts_of(report), written(tmp_path)
    assert facts.met and (facts.returned, facts.of, facts.parts, facts.tried) == (0, None, (), 1)
    assert (facts.sqnr_before, facts.drop_before) == (facts.sqnr_after, facts.drop_after)
    without = quantize(job(tmp_path), plain)
    assert written(tmp_path) == content and without.fallback is None and without.accuracy == report.accuracy
    assert watch.warnings == plain.warnings


def test_a_drop_is_kept_too(tmp_path: Path) -> None:
    """With four levels for each activation the model gives anything."""
    coarse = "rules=[{match: {role: [input, output]}, grid: {format: uint2, symmetric: false}}]"
    facts = facts_of(quantize(job(tmp_path, coarse, "fallback={max_drop: 0.05}", samples=60)))
    assert facts.drop_before is not None and facts.drop_before > 0.05
    assert facts.met and facts.drop_after is not None and facts.drop_after <= 0.05 and facts.returned > 0


def test_weights_of_four_bits_get_eight_first(tmp_path: Path) -> None:
    nearest = "rules=[{match: {role: weight}, rounding: nearest}]"
    told = job(tmp_path, nearest, "finish=[]", "fallback={min_sqnr: 26}", recipe="w4a8", samples=16)
    prepared, facts = fall_back(told, prepare_job(told, Watch()), Watch())
    assert facts is not None and facts.met and {part.now for part in facts.parts} == {"wider"}
    wide = [entry for entry in prepared.plan.entries if entry.because.startswith("fallback (min_sqnr 26)")]
    assert {entry.site.name for entry in wide} == {part.node for part in facts.parts}
    assert all((entry.site.role, entry.grid.format) == (Role.WEIGHT, "int8") for entry in wide)
    report = quantize(told)
    assert report.kernels is not None and report.kernels.integer_share > 0.99 and report.fallback == facts


def test_stored_weights_that_are_too_coarse_go_back_as_well(tmp_path: Path) -> None:
    """Nothing but weights is quantized, with 8 bits: only what is untouched is better."""
    facts = facts_of(quantize(job(tmp_path, "fallback={min_sqnr: 47}", recipe="int8-weights")))
    assert facts.sqnr_before is not None and facts.sqnr_before < 47
    assert facts.met and {part.now for part in facts.parts} == {"untouched"}


def test_what_is_quantized_as_it_runs_goes_back(tmp_path: Path) -> None:
    told = job(tmp_path, "fallback={min_sqnr: 40}", name="transformer", recipe="int8-dynamic", samples=16)
    facts = facts_of(quantize(told))
    assert facts.returned > 0 and {part.now for part in facts.parts} == {"float"}


@pytest.mark.parametrize("recipe", ["int8-auto", "int8-accurate"])
def test_with_methods_that_are_chosen_and_steps_that_finish(tmp_path: Path, recipe: str) -> None:
    told = job(tmp_path, "fallback={min_sqnr: 60}", name="mlp", recipe=recipe, samples=32)
    facts = facts_of(quantize(told))
    assert facts.sqnr_after is not None and facts.sqnr_before is not None and facts.returned > 0
    assert facts.sqnr_after > facts.sqnr_before


def test_with_ranges_that_need_no_samples(tmp_path: Path) -> None:
    """Samples judge here, and nothing else."""
    model = saved(residual(), tmp_path / "m.onnx")
    options: dict[str, Any] = {"calibration": None, "samples": None, "random_samples": 12, "recipe": "int8-data-free"}
    report = quantize(job(tmp_path, "fallback={min_sqnr: 46}", name="mlp", model=model, **options))
    facts = facts_of(report)
    assert facts.sqnr_before is not None and facts.sqnr_before < 46
    assert facts.met and 0 < facts.returned < 5 and facts.of == 5


# What cannot be kept


def test_a_budget_that_nothing_keeps_is_a_warning_and_the_closest_is_written(tmp_path: Path) -> None:
    watch = Watch()
    report = quantize(job(tmp_path, "fallback={min_sqnr: 120}"), watch)
    facts = facts_of(report)
    assert not facts.met and report.status == "passed" and (tmp_path / "out.onnx").is_file()
    assert facts.sqnr_after is not None and facts.sqnr_before is not None and facts.sqnr_after > facts.sqnr_before
    assert any("is not kept: the closest, " in text for text in watch.warnings)


def test_a_gate_can_insist(tmp_path: Path) -> None:
    report = quantize(job(tmp_path, "fallback={min_sqnr: 120, max_parts: 1}", gates=("fallback.met == 1",)))
    assert report.status == "failed" and not (tmp_path / "out.onnx").exists()
    report = quantize(job(tmp_path, "fallback={min_sqnr: 5}", gates=("fallback.met == 1", "fallback.returned == 0")))
    assert report.status == "passed"


def test_a_gate_on_what_no_recipe_asked_for_is_refused(tmp_path: Path) -> None:
    """Before the work, so that it does not matter that there are no samples."""
    with pytest.raises(UsageError, match=r"gate 'fallback\.met == 1' needs a fallback") as refused:
        quantize(job(tmp_path, gates=("fallback.met == 1",), calibration=None, samples=None))
    assert "recipe" in refused.value.hint


# Samples


def test_few_samples_judge_and_teach_and_that_is_said(tmp_path: Path) -> None:
    watch = Watch()
    facts = facts_of(quantize(job(tmp_path, COARSE, "fallback={min_sqnr: 20}", samples=5), watch))
    assert (facts.samples, facts.held_out) == (5, False) and facts.returned > 0
    assert any("they flatter" in text and "fallback" in text for text in watch.warnings)


def test_too_few_for_a_drop_is_said(tmp_path: Path) -> None:
    watch = Watch()
    quantize(job(tmp_path, "fallback={max_drop: 0.01}"), watch)
    assert "fallback.max_drop 0.01 cannot be told on 12 samples: one of them is 0.0833" in watch.warnings


def test_random_samples_serve_for_smoke_tests(tmp_path: Path) -> None:
    options: dict[str, Any] = {"calibration": None, "samples": None, "random_samples": 9, "name": "mlp"}
    facts = facts_of(quantize(job(tmp_path, "fallback={min_sqnr: 5}", **options)))
    assert (facts.samples, facts.held_out) == (9, False)


@pytest.mark.parametrize("recipe", ["int8-minmax", "int8-weights"])
def test_without_samples_it_is_refused(tmp_path: Path, recipe: str) -> None:
    with pytest.raises(NothingToDoError, match="a fallback compares models on samples") as refused:
        quantize(job(tmp_path, "fallback={min_sqnr: 20}", name="mlp", recipe=recipe, calibration=None, samples=None))
    assert "-d" in refused.value.hint and not (tmp_path / "out.onnx").exists()


def test_a_shard_is_halved_like_the_whole(tmp_path: Path) -> None:
    told = job(tmp_path, "fallback={min_sqnr: 5}", name="mlp", samples=48, shard=(2, 3))
    assert facts_of(quantize(told)).samples == 8


def test_with_statistics_from_a_file(restored: tuple[Path, Report], tmp_path: Path) -> None:
    """Shards that were merged: the samples are needed beside them, to judge by."""
    plain = job(tmp_path, COARSE, "fallback={min_sqnr: 20}")
    parts = [calibrate_job(msgspec.structs.replace(plain, shard=(index, 2))) for index in (1, 2)]
    parts[0].merge(parts[1]).save(tmp_path / "stats.npz")
    told = msgspec.structs.replace(plain, stats=tmp_path / "stats.npz")
    quantize(told)
    assert written(tmp_path) == written(restored[0])
    with pytest.raises(NothingToDoError, match="compares models on samples") as refused:
        quantize(msgspec.structs.replace(told, calibration=None, samples=None))
    assert "beside --stats" in refused.value.hint


def test_statistics_that_lack_what_the_new_plan_reads(tmp_path: Path) -> None:
    told = job(tmp_path, COARSE, "fallback={min_sqnr: 20}")
    found = calibrate_job(told)
    few = found.header.requests[:1]
    header = msgspec.structs.replace(found.header, requests=few)
    Statistics(header, {one.key: found.get(one) for one in few}).save(tmp_path / "stats.npz")
    with pytest.raises(UsageError, match=r"stats\.npz' lack '.*', which is quantized since parts went back"):
        quantize(msgspec.structs.replace(told, stats=tmp_path / "stats.npz"))


# What is refused


def test_a_drop_of_what_is_no_classifier(tmp_path: Path) -> None:
    convolution = node("Conv", "x w", "y", pads=[1, 1, 1, 1])
    proto = proto_of([convolution], {"x": [1, 3, 8, 8]}, {"y": None}, {"w": normal(0, 4, 3, 3, 3)})
    model = saved(proto, tmp_path / "m.onnx")
    options: dict[str, Any] = {"model": model, "calibration": None, "samples": None, "random_samples": 8, "name": "mlp"}
    with pytest.raises(UsageError, match=r"fallback\.max_drop is about classifiers") as refused:
        quantize(job(tmp_path, "fallback={max_drop: 0.1}", **options))
    assert refused.value.hint == "use fallback.min_sqnr, which any float output has"
    facts = facts_of(quantize(job(tmp_path, "fallback={min_sqnr: 10}", **options)))
    assert facts.met and facts.drop_after is None


def test_it_needs_the_memory_to_run_models(tmp_path: Path) -> None:
    with pytest.raises(ResourceError) as refused:
        quantize(job(tmp_path, "fallback={min_sqnr: 20}", max_memory=1000))
    assert "--max-memory" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{max_drp: 0.01}", "unknown key 'max_drp'"),
        ("{max_drop: 1.5}", "fallback.max_drop: expected 'float' <= 1.0"),
        ("{max_drop: -0.1}", "fallback.max_drop: expected 'float' >= 0.0"),
        ("{max_drop: 1 %}", "fallback.max_drop: expected 'float | null', got 'str'"),
        ("{max_drop: .nan}", "fallback.max_drop: expected 'float' >= 0.0"),
        ("{min_sqnr: 0}", "fallback.min_sqnr: expected 'float' > 0.0"),
        ("{min_sqnr: 20, max_parts: 0}", "fallback.max_parts: expected 'int' >= 1"),
        ("{min_sqnr: 20, max_parts: 1.5}", "fallback.max_parts: expected 'float' < 1.0"),
        ("{min_sqnr: 20, max_parts: true}", "fallback.max_parts: expected 'int | float | null', got 'bool'"),
        ("{max_parts: 3}", "there is no limit to keep"),
        ("0.01", "fallback: expected 'object | null', got 'float'"),
    ],
)
def test_bad_words_are_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_recipe("int8", (f"fallback={text}",))
    assert said in refused.value.message and refused.value.hint
    assert refused.value.exit_code == 2


def test_a_wrong_key_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as refused:
        load_recipe("int8", ("fallback={max_drp: 0.01}",))
    assert refused.value.hint == "did you mean 'max_drop'?"


# The recipe


def test_keys_of_several_layers_join_and_an_empty_one_switches_it_off(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nextends: int8\nfallback: {max_drop: 0.01, max_parts: 5}\n")
    (tmp_path / "b.yaml").write_text("version: 1\nextends: a.yaml\nfallback: {max_drop: null, min_sqnr: 30}\n")
    (tmp_path / "c.yaml").write_text("version: 1\nextends: b.yaml\nfallback: {}\n")
    first, second, third = (load_recipe(str(tmp_path / f"{name}.yaml")) for name in "abc")
    assert first.fallback == Fallback(max_drop=0.01, max_parts=5) and first.origins["fallback.max_parts"] == "a.yaml"
    assert second.fallback == Fallback(min_sqnr=30.0, max_parts=5) and third.fallback is None
    fourth = load_recipe(str(tmp_path / "b.yaml"), ("fallback.max_parts=0.25", "fallback.max_drop=0"))
    assert fourth.fallback == Fallback(max_drop=0.0, min_sqnr=30.0, max_parts=0.25)
    assert len({first.sha256, second.sha256, third.sha256, fourth.sha256}) == 4
    assert load_recipe("int8").fallback is None and b'"max_parts"' in recipe_schema()


def test_limits_are_said_as_they_are_written() -> None:
    assert Fallback(max_drop=0.005, min_sqnr=30.0, max_parts=3).limits == "max_drop 0.005, min_sqnr 30"


def test_names_of_parts_are_taken_as_they_are() -> None:
    [rule] = widened((Part("a[0]*", "Conv", ("a[0]*",), None, None),))
    assert rule.match.name == ("a[[]0][*]",) and rule.match.role is Role.WEIGHT
    assert widened(()) == ()


# The other entrances


def test_stages_say_that_it_is_not_theirs(tmp_path: Path) -> None:
    told = job(tmp_path, "fallback={min_sqnr: 20}", name="mlp")
    watch = Watch()
    make_plan_file(msgspec.structs.replace(told, output=None), watch)
    assert any("'fallback' is found by 'quantize'" in text for text in watch.warnings)
    watch = Watch()
    assert pipeline.quantize(told, watch).fallback is None
    assert "the recipe's 'fallback' was not applied" in watch.warnings


def test_a_dry_run_tries_nothing(tmp_path: Path) -> None:
    report = quantize(job(tmp_path, "fallback={min_sqnr: 200}", dry_run=True))
    assert report.fallback is None and not list(tmp_path.iterdir())


# Real networks


@pytest.mark.zoo
@pytest.mark.skipif(not ZOO.is_dir(), reason=f"{ZOO} is missing")
def test_a_residual_network_keeps_its_budget(tmp_path: Path) -> None:
    report = quantize(zoo_job("resnet20_cifar10", tmp_path, settings=("fallback={min_sqnr: 30}",), samples=64))
    facts = facts_of(report)
    assert facts.met and facts.of is not None and 0 < facts.returned < facts.of
    assert facts.sqnr_after is not None and facts.sqnr_after >= 30 + SPARE
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr >= 29.5
    assert report.kernels is not None and report.kernels.integer_share > 0.3
