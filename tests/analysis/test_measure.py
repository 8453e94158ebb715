"""Losses: sums over samples, the same for any number of threads, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from models import conv_net, node, normal, proto_of, quantized_of, run

from qcli.analysis.measure import Loss, checked, loss_of, run_results, run_variants
from qcli.analysis.simulate import Simulation, simulate
from qcli.dataset import Sample
from qcli.errors import InputError, NothingToDoError, UnsupportedError
from qcli.metrics.sqnr import Sqnr
from qcli.types import Array


def samples(count: int = 4) -> list[Sample]:
    return [Sample(file=f"{seed}.npz", feeds={"x": normal(seed, 2, 3, 8, 8)}) for seed in range(count)]


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    made = quantized_of(conv_net())
    return simulate(made.source, made.plan, made.solution)


def variants(simulation: Simulation) -> list[frozenset[str]]:
    return [frozenset(layer.switches()) for layer in simulation.layers]


def test_threads_change_nothing(simulation: Simulation) -> None:
    wanted = variants(simulation)
    one, many = (run_variants(simulation, samples(), wanted, threads, lambda *_: None) for threads in (1, 3))
    assert one == many
    assert list(one) == wanted


def test_progress_ends_where_it_was_to_end(simulation: Simulation) -> None:
    seen: list[tuple[int, int]] = []
    run_variants(simulation, samples(3), variants(simulation), 1, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 3 * len(simulation.layers)) for done in range(1, 3 * len(simulation.layers) + 1)]


def test_the_sums_run_over_all_samples(simulation: Simulation) -> None:
    wanted = variants(simulation)[:1]
    found = run_variants(simulation, samples(3), wanted, 1, lambda *_: None)[wanted[0]]
    total = Sqnr()
    for sample in samples(3):
        feeds = {**sample.feeds, **simulation.feeds(frozenset())}
        reference = run(simulation.model, feeds)["y"]
        total.update(reference, run(simulation.model, {**feeds, **simulation.feeds(wanted[0])})["y"])
    assert found == pytest.approx(total.value(), abs=1e-9)


def test_results_get_worse_from_layer_to_layer_at_most(simulation: Simulation) -> None:
    results = run_results(simulation, samples())
    assert results.keys() == {layer.key for layer in simulation.layers}
    assert all(10 < value < 60 for value in results.values())


def test_results_in_groups_are_those_at_once(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = run_results(simulation, samples())
    monkeypatch.setattr("qcli.analysis.measure._TAP_BYTES", 1)
    assert run_results(simulation, samples()) == at_once


def test_no_samples(simulation: Simulation) -> None:
    with pytest.raises(NothingToDoError):
        run_variants(simulation, [], variants(simulation), 1, lambda *_: None)


def test_the_worst_output_counts() -> None:
    loss = Loss()
    reference = {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    loss.add(loss_of(reference, {"a": np.ones(4, np.float32), "b": np.full(4, 1.1, np.float32)}))
    assert loss.value() == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize(
    "result", [np.full(4, np.nan, np.float32), np.ones(5, np.float32), [np.ones(4)]], ids=["NaN", "shape", "sequence"]
)
def test_what_cannot_be_compared_is_noise(result: Array) -> None:
    loss = Loss()
    loss.add(loss_of({"a": np.ones(4, np.float32)}, {"a": result}))
    assert loss.value() == -200


def test_empty_values_say_nothing() -> None:
    assert loss_of({"a": np.zeros(0, np.float32)}, {"a": np.zeros(0, np.float32)}) == {}


def test_the_float_model_must_be_comparable() -> None:
    with pytest.raises(UnsupportedError, match="no output"):
        checked({"a": np.ones(3, np.int64)}, "a.npz")
    with pytest.raises(InputError, match=r"a\.npz.*'b'"):
        checked({"b": np.array([np.inf], np.float32)}, "a.npz")


def test_integer_outputs_are_left_out() -> None:
    nodes = [node("MatMul", "x w", "y"), node("ArgMax", "y", "best", axis=1)]
    proto = proto_of(nodes, {"x": [2, 8]}, {"y": [2, 8]}, {"w": normal(0, 8, 8)})
    proto.graph.output.append(type(proto.graph.output[0])(name="best"))
    reference = run(proto, {"x": normal(0, 2, 8)})
    assert set(checked(reference, "a")) == {"y"}
