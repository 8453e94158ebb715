"""Each way makes a plan say what its name says, of the parts that take it and of no others."""

from __future__ import annotations

from glob import escape

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import node, normal, proto_of, wrapped
from tune_bases import settled

from qcli.apply import apply_plan
from qcli.graph import normalize_graph
from qcli.plan import make_plan
from qcli.plugins import choice_of
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.tuning.base import Base, _with_rules, replanned
from qcli.tuning.nouns import TuneJob
from qcli.tuning.parts import Network, Part
from qcli.tuning.uniform import network_for, uniforms
from qcli.tuning.ways import BLOCKS, DYNAMIC, NBITS, RECIPE, STORED, UNTOUCHED, WAYS, Way, rules_for, told
from qcli.types import Entry, Plan, Role
from qcli.watch import Watch

ENCODINGS = {STORED: "weight_only", DYNAMIC: "dynamic", NBITS: "matmul_nbits", BLOCKS: "weight_only"}
OTHERS = (STORED, DYNAMIC, NBITS, BLOCKS, UNTOUCHED)
NAMES = [way.name for way in OTHERS]

Made = tuple[TuneJob, Base, Network]


@pytest.fixture(scope="module", params=["cnn", "transformer"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    job, base = settled(tmp_path_factory.mktemp(request.param), request.param, "int8-minmax")
    assert base.prepared.calibration is not None
    return job, base, network_for(base, next(iter(base.prepared.calibration)))[0]


def entries_of(plan: Plan, names: tuple[str, ...]) -> list[Entry]:
    return [entry for entry in plan.entries if entry.site.node in names]


def takers(made: Made, way: Way) -> list[Part]:
    """The parts with weights for which a way is one of its own."""
    job, base, network = made
    found = [one for one in uniforms(base, network, job, Watch()) if WAYS[one.way] is way]
    return [network.parts[place] for one in found for place in sorted(one.parts) if network.parts[place].weights]


@pytest.mark.parametrize("way", OTHERS, ids=NAMES)
def test_the_plan_says_what_the_name_says(made: Made, way: Way) -> None:
    job, base, _ = made
    for part in takers(made, way)[:3]:
        solved = replanned(base, way.of([part]), job, Watch())
        assert solved is not None
        own = entries_of(solved.plan, (part.key,))
        weights = [entry for entry in own if entry.site.role is Role.WEIGHT]
        assert not [entry for entry in own if entry.site.role is Role.INPUT], "the kernel reads floats"
        if way is UNTOUCHED:
            assert own == []
            continue
        assert [choice_of(entry.encoding).name for entry in weights] == [ENCODINGS[way]]
        if way in (NBITS, BLOCKS):
            short = (
                way is BLOCKS and weights[0].grid.granularity == "channel"
            )  # columns that are no longer than a block
            assert weights[0].grid.block == 32 or short


@pytest.mark.parametrize("way", OTHERS, ids=NAMES)
def test_other_parts_stay_as_they_are(made: Made, way: Way) -> None:
    job, base, network = made
    part = next(iter(takers(made, way)), None)
    if part is None:
        pytest.skip("it has no such part")
    solved = replanned(base, way.of([part]), job, Watch())
    assert solved is not None
    for other in (other for other in network.parts if other is not part):
        before, after = (
            [entry for entry in entries_of(plan, (other.key,)) if entry.site.role is Role.WEIGHT]
            for plan in (base.plan, solved.plan)
        )
        assert before == after


@pytest.mark.parametrize("way", OTHERS, ids=NAMES)
def test_onnxruntime_runs_a_model_with_all_parts_in_one_way(made: Made, way: Way) -> None:
    job, base, _ = made
    able = takers(made, way)
    solved = replanned(base, way.of(able), job, Watch())
    if solved is None:
        assert way is UNTOUCHED, "nothing may be left to quantize"
        return
    model = apply_plan(base.prepared.model, *solved)
    assert base.prepared.calibration is not None
    Session(model.runnable(), threads=1).run(next(iter(base.prepared.calibration)).feeds)


def test_convolutions_have_no_kernels_for_products(made: Made) -> None:
    for part in made[2].parts:
        product = part.op in ("MatMul", "Gemm") and part.weights is not None
        assert [way.takes(part) for way in (DYNAMIC, NBITS, BLOCKS)] == [product] * 3
        assert RECIPE.takes(part) and STORED.takes(part) and UNTOUCHED.takes(part)


def test_uniform_plans_have_what_no_other_way_has(made: Made) -> None:
    job, base, network = made
    found = uniforms(base, network, job, Watch())
    assert [one.way for one in found] == sorted({one.way for one in found} - {0})
    plans = {0: base.plan} | {one.way: one.solved.plan for one in found}
    for place, part in enumerate(network.parts):
        ways = [0, *(one.way for one in found if place in one.parts)]
        said = [
            [msgspec.structs.replace(entry, because="") for entry in entries_of(plans[way], part.names)] for way in ways
        ]
        assert all(one not in said[:number] for number, one in enumerate(said)), "nothing twice"
        assert [number for number, one in zip(ways, said, strict=True) if not one] in ([], [WAYS.index(UNTOUCHED)])


def test_a_dynamic_part_is_dynamic(made: Made) -> None:
    """A narrow matrix is not, and then the way is not its own."""
    job, base, network = made
    for one in uniforms(base, network, job, Watch()):
        for place in one.parts if WAYS[one.way] in (DYNAMIC, NBITS) else ():
            entries = entries_of(one.solved.plan, network.parts[place].names)
            assert ENCODINGS[WAYS[one.way]] in {choice_of(entry.encoding).name for entry in entries}


def test_the_first_way_is_the_recipe_and_the_last_one_float() -> None:
    assert WAYS[0] is RECIPE and RECIPE.rules == () and WAYS[-1] is UNTOUCHED
    assert len({way.name for way in WAYS}) == len(WAYS)


def part(key: str, op: str = "MatMul") -> Part:
    return Part(key, op, (key,), "w", "a")


KEYS = st.lists(st.text("ab/:[]*?! ", min_size=1, max_size=6), min_size=1, max_size=5, unique=True)


@given(KEYS, st.data())
def test_each_part_is_in_the_rules_of_its_way_alone(keys: list[str], data: st.DataObject) -> None:
    parts = [part(key) for key in keys]
    ways = [data.draw(st.integers(0, len(WAYS) - 1)) for _ in parts]
    rules = rules_for(parts, ways)
    assert len(rules) == sum(len(WAYS[way].rules) for way in set(ways))
    for one, chosen in zip(parts, ways, strict=True):
        name = escape(one.key)
        assert sum(name in (rule.match.name or ()) for rule in rules) == len(WAYS[chosen].rules)


@pytest.mark.parametrize("way", OTHERS, ids=NAMES)
def test_names_are_taken_as_they_are(way: Way) -> None:
    """An output may be called y[0]*, which as a pattern is another name."""
    products = [node("MatMul", "x w", "h"), node("MatMul", "h v", "y[0]*")]
    proto = proto_of(products, {"x": [4, 64]}, {"y[0]*": [4, 64]}, {"w": normal(0, 64, 64), "v": normal(1, 64, 64)})
    model = wrapped(proto)
    normalize_graph(model)
    plan = make_plan(model, _with_rules(load_recipe("int8-minmax"), way.of([part("y[0]*")])))
    weights = {entry.site.node: choice_of(entry.encoding).name for entry in plan.entries if entry.site.role == "weight"}
    assert weights == {"h": "qdq"} | ({"y[0]*": ENCODINGS[way]} if way in ENCODINGS else {})


def test_nobody_in_a_way_needs_no_rules() -> None:
    assert all(way.of([]) == () for way in WAYS)
    assert rules_for([], []) == () == rules_for([part("a"), part("b")], [0, 0])


def test_divisions_in_words() -> None:
    dynamic, last = WAYS.index(DYNAMIC), WAYS.index(UNTOUCHED)
    assert told([0, 0, 0]) == "as it is" == told([])
    assert told([0, dynamic, last, dynamic]) == "2 dynamic; 1 float; of 4 parts"
    assert told([last]) == "1 float; of 1 parts"
    with pytest.raises(ValueError, match="zip"):
        rules_for([part("a")], [0, 0])
