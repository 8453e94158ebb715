"""MatMulNBits in whole models: recipes from end to end, and one node of a recipe switched to it."""

from __future__ import annotations

from glob import escape
from pathlib import Path

import msgspec
import onnx
import pytest
from codes import kernels_of
from conftest import first_sample, model_path
from models import (
    Quantized,
    assert_equal,
    feeds_for,
    finished,
    node,
    normal,
    operators,
    proto_of,
    run,
    sample_model,
    stream_for,
    wrapped,
)

from qcli.check import check_job
from qcli.graph import node_key, normalize_graph
from qcli.inspect import inspect_model
from qcli.job import QuantizeJob
from qcli.measured import wishes_of
from qcli.pipeline import quantize
from qcli.plan import make_plan, read_plan
from qcli.recipe import Recipe, SourcedRule, load_recipe
from qcli.report import Report
from qcli.side_by_side import CompareJob, compare_models
from qcli.solve import Solved, site_key, solve_again
from qcli.stages import make_plan_file
from qcli.tuning.base import build, settle
from qcli.tuning.nouns import Candidate, TuneJob
from qcli.types import Grid, Match, Role, Rule
from qcli.watch import Watch

SAMPLES = model_path("transformer").parent


def transformer(folder: Path, level: int, grid: str = "format: int8", rounding: str = "nearest") -> QuantizeJob:
    recipe = folder / "blocks.yaml"
    recipe.write_text(
        "version: 1\nextends: int8-weights\nrules:\n"
        f"  - match: {{op: [MatMul, Gemm], role: weight}}\n    grid: {{{grid}, granularity: block, block: 32}}\n"
        f"    rounding: {rounding}\n    encoding: {{matmul_nbits: {{accuracy_level: {level}}}}}\n"
    )
    return QuantizeJob(
        model=model_path("transformer"), recipe=str(recipe), calibration=SAMPLES / "calib", output=folder / "out.onnx",
        evaluation=SAMPLES / "eval", latency=False, cache=False,
    )  # fmt: skip


def sqnr(report: Report) -> float:
    assert report.accuracy is not None and report.accuracy.sqnr is not None
    return report.accuracy.sqnr


@pytest.mark.parametrize(("level", "least"), [(0, 40.0), (4, 30.0)])
def test_a_recipe_from_end_to_end(tmp_path: Path, level: int, least: float) -> None:
    job = transformer(tmp_path, level)
    report = quantize(job)
    assert sqnr(report) > least
    assert report.kernels is not None and report.kernels.by_kernel["MatMulNBits"] == 9, "not the first, of 8 inputs"
    assert (report.kernels.integer_share > 0.5) is (level == 4)
    wanted = [item for item in report.kernels.kept_float if "stored as int8 in blocks of 32" in item.reason]
    assert len(wanted) == (0 if level == 4 else report.kernels.by_kernel["MatMulNBits"])
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    job = transformer(tmp_path, 4)
    report = quantize(job)
    output = tmp_path / "out.onnx"
    seen = inspect_model(output)
    assert seen.kernels is not None and seen.kernels.integer == seen.operators["MatMulNBits"], seen.problem
    assert seen.block_sizes == {"32": seen.operators["MatMulNBits"]}
    compared = compare_models(
        CompareJob(float_model=job.model, compressed=output, evaluation=SAMPLES / "eval", latency=False)
    )
    assert sqnr(compared) == pytest.approx(sqnr(report))
    problems = check_job(QuantizeJob(model=output, output=tmp_path / "again.onnx")).problems
    assert any("already quantized: it has MatMulNBits" in item.message for item in problems)


def test_roundings_that_learn_are_better(tmp_path: Path) -> None:
    grid = "format: int4"
    found = {kind: sqnr(quantize(transformer(tmp_path, 0, grid, kind))) for kind in ("nearest", "gptq", "coordinate")}
    assert min(found["gptq"], found["coordinate"]) > found["nearest"], found


def test_a_plan_is_replayed(tmp_path: Path) -> None:
    job = transformer(tmp_path, 4)
    quantize(job)
    first = job.output.read_bytes()
    path = tmp_path / "plan.yaml"
    plan = make_plan_file(msgspec.structs.replace(job, output=path))
    assert "accuracy_level: 4" in path.read_text() and read_plan(path) == plan
    quantize(msgspec.structs.replace(job, plan=path))
    assert job.output.read_bytes() == first


BLOCKS = Grid(format="int8", granularity="block", block=32)


def switched(base: str, key: str, level: int = 4) -> Recipe:
    """A preset with a rule on top that gives one node blocks, as a search over plans writes it."""
    rule = Rule(
        match=Match(name=escape(key), role=Role.WEIGHT), grid=BLOCKS,
        encoding={"matmul_nbits": {"accuracy_level": level}},
    )  # fmt: skip
    recipe = load_recipe(base)
    return msgspec.structs.replace(recipe, rules=(*recipe.rules, SourcedRule(rule=rule, origin="tune 0", own=False)))


def attention() -> onnx.ModelProto:
    """Three products of one input, and one behind them."""
    weights = {f"w{name}": normal(at, 32, 32) / 5 for at, name in enumerate("abcy")}
    nodes = [node("MatMul", f"x w{name}", name) for name in "abc"]
    nodes += [node("Add", "a b", "s"), node("Mul", "s c", "p"), node("Tanh", "p", "t"), node("MatMul", "t wy", "y")]
    return proto_of(nodes, {"x": [2, 5, 32]}, {"y": None}, weights)


def quantized(base: str | Recipe) -> Quantized:
    source = wrapped(attention())
    normalize_graph(source)
    plan = make_plan(source, load_recipe(base) if isinstance(base, str) else base)
    return finished(source, plan, stream_for(source))


@pytest.mark.parametrize("level", [0, 4])
@pytest.mark.parametrize("base", ["int8-dynamic", "int8-minmax", "int8-weights"])
def test_a_rule_on_top_switches_one_node(base: str, level: int) -> None:
    before, after = quantized(base), quantized(switched(base, "b", level))
    changed = [entry for entry in after.plan.entries if entry not in before.plan.entries]
    [entry] = [entry for entry in changed if entry.site.node == "b"]
    assert entry.site.role is Role.WEIGHT and entry.grid == msgspec.structs.replace(BLOCKS, axis=0)
    assert entry.encoding == {"matmul_nbits": {"accuracy_level": level}}
    assert {item.site.node for item in before.plan.entries} == {item.site.node for item in after.plan.entries} | {"b"}
    assert [item.node for item in after.plan.kept_float if item.node == "b"] == ["b"] * (level == 0)
    made = next(item for item in after.model.nodes() if node_key(item) == "b")
    assert made.op_type == "MatMulNBits" and made.inputs[0] is not None
    assert made.inputs[0].name == "x", "what it reads is not quantized"
    feeds = feeds_for(after.source)
    for optimize in (False, True):
        assert_equal(run(after.source, feeds), run(after.model, feeds, optimize=optimize), tolerance=0.1)
    shares = [kernels_of(one).integer_share for one in (before, after)]
    lost = 0.25 if base != "int8-weights" and level == 0 else -0.25 if base == "int8-weights" and level == 4 else 0.0
    assert shares[0] - shares[1] == pytest.approx(lost)


def test_a_bias_between_static_layers_is_joined_or_left() -> None:
    """The sum behind the switched product is read by a layer whose input is quantized, and by an integer Add."""
    weights = {f"w{name}": normal(at, 32, 32) / 5 for at, name in enumerate("abc")}
    weights |= {f"b{name}": normal(9 + at, 32) / 5 for at, name in enumerate("abc")}
    nodes = [item for name, source in zip("abc", "xab", strict=True) for item in (
        node("MatMul", f"{source} w{name}", f"m{name}"), node("Add", f"m{name} b{name}", name),
    )]  # fmt: skip
    proto = proto_of([*nodes, node("Add", "b c", "y")], {"x": [2, 32]}, {"y": None}, weights)
    source = wrapped(proto)
    normalize_graph(source)
    for key in ("ma", "mb", "mc"):
        for level in (0, 4):
            plan = make_plan(source, switched("int8-minmax", key, level))
            assert not [item for item in plan.entries if item.site.node == key and item.site.role is not Role.WEIGHT]
            done = finished(source, plan, stream_for(source))
            assert operators(done.model).count("MatMulNBits") == 1
            onnx.checker.check_model(done.model.proto(), full_check=True)
            feeds = feeds_for(source)
            for optimize in (False, True):
                assert_equal(run(source, feeds), run(done.model, feeds, optimize=optimize), tolerance=0.05)


def test_all_other_codes_are_taken_over() -> None:
    before, recipe = quantized("int8-dynamic"), switched("int8-dynamic", "b")
    plan = make_plan(before.source, recipe)
    known = Solved(before.plan, before.solution)
    solution = solve_again(before.source, plan, before.statistics, known)  # type: ignore[arg-type]
    for entry in plan.entries:
        same = solution.codes[site_key(entry)] is before.solution.codes[site_key(entry)]
        assert same is (entry.site.node != "b")
    assert "b" not in {request.value for request in wishes_of(plan, before.source)}


@pytest.mark.parametrize("base", ["int8-dynamic", "int8-minmax"])
def test_a_search_over_plans_makes_such_a_candidate(base: str, tmp_path: Path) -> None:
    job = TuneJob(
        model=model_path("transformer"), calibration=SAMPLES / "calib", recipe=base, samples=4,
        output=tmp_path / "o.onnx", threads=1, cache=False,
    )  # fmt: skip
    settled = settle(job, base, Watch())
    key = next(entry.site.node for entry in settled.plan.entries if entry.site.name == "/layers/1/down/matmul")
    candidate = Candidate(recipe=base, why="", rules=(switched(base, key).rules[-1].rule,))
    built = build(settled, candidate, job, Watch())
    assert built is not None
    entries = [entry for entry in built.plan.entries if entry.site.node == key]
    assert [entry.encoding for entry in entries] == [{"matmul_nbits": {"accuracy_level": 4}}]
    assert operators(built.model).count("MatMulNBits") == 1
    others = [entry.site for entry in built.plan.entries if entry.site.role is Role.WEIGHT and entry.site.node != key]
    known = [entry.site for entry in settled.plan.entries if entry.site.role is Role.WEIGHT and entry.site.node != key]
    assert others == known, "the rest is as it was"
    feeds = first_sample("transformer").feeds
    assert_equal(run(settled.prepared.model, feeds), run(built.model, feeds, optimize=True), tolerance=0.2)


def test_the_last_node_that_quantizes_a_value_leaves_no_trace_of_it() -> None:
    after = quantized(switched("int8-dynamic", "y"))
    assert operators(after.model).count("DynamicQuantizeLinear") == 1
    assert [request.value for request in wishes_of(after.plan, after.source)] == ["x"]


def test_nodes_of_a_sample_transformer() -> None:
    source = sample_model("transformer")
    plan = make_plan(source, load_recipe("int8-dynamic"))
    keys = [entry.site.node for entry in plan.entries if entry.encoding == "dynamic"]
    for key in keys[:3]:
        other = make_plan(source, switched("int8-dynamic", key))
        assert [entry.site.node for entry in other.entries if entry not in plan.entries] == [key]
