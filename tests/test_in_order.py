"""Layers that learn one after the other, from what the quantized layers before them give."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from models import Quantized, Stream, conv_net, finished, node, normal, proto_of, recipe_of, wrapped

from qcli.apply import apply_plan
from qcli.graph import normalize_graph
from qcli.held_out import Trial
from qcli.in_order import _Few, has_order, learn_in_order
from qcli.paired import Paired
from qcli.plan import make_plan
from qcli.recipe import Recipe
from qcli.runtime import Session
from qcli.solve import Solution, site_key
from qcli.types import Array, Entry, Role

COARSE = """version: 1
extends: int8-minmax
rules:
  - match: {role: weight}
    grid: {format: int8, bits: 4, symmetric: true, granularity: channel}
    rounding: nearest
    encoding: {qdq: {pack: false}}
"""


def coarse(folder: Path, rounding: str = "nearest") -> Recipe:
    return recipe_of(COARSE.replace("nearest", rounding), folder)


def positive(source: onnx.ModelProto, count: int = 12) -> Stream:
    """Inputs whose mean is far from zero, so that rounded weights shift the mean of what comes out."""
    shapes = {
        spec.name: [4 if size is None else size for size in spec.shape or ()] for spec in wrapped(source).inputs()
    }
    return Stream(
        tuple(
            {
                name: np.abs(normal(100 * seed + place, *shape)) + np.float32(1)
                for place, (name, shape) in enumerate(shapes.items())
            }
            for seed in range(count)
        )
    )


def solved(proto: onnx.ModelProto, recipe: Recipe, count: int = 12) -> tuple[Quantized, Stream]:
    source = wrapped(proto)
    normalize_graph(source)
    samples = positive(proto, count)
    return finished(source, make_plan(source, recipe), samples), samples


def improved(known: Quantized, samples: Stream, *, biases: bool = True) -> Solution:
    return learn_in_order(known.source, known.plan, known.solution, samples, biases=biases)


def gained(proto: onnx.ModelProto, recipe: Recipe, *, biases: bool = True) -> tuple[float, float]:
    """The decibels before and after, on samples that nobody learned from."""
    known, samples = solved(proto, recipe)
    trial = Trial(wrapped(proto), recipe, positive(proto, 40), stride=2)
    after = apply_plan(known.source, known.plan, improved(known, samples, biases=biases))
    first, second = trial.compare(known.model), trial.compare(after)
    assert first is not None and second is not None
    return first, second


def shifts(known: Quantized, solution: Solution, samples: Stream, name: str) -> tuple[float, float]:
    """How far the mean of each channel of an output is off, before and after."""
    models = (known.source, known.model, apply_plan(known.source, known.plan, solution))
    means = []
    for model in models:
        session = Session(model.runnable(), threads=1)
        values = np.stack([session.run(feeds)[name] for _, feeds in samples.feeds()])
        means.append(values.mean(axis=(0, 1, *range(3, values.ndim))))
    return float(np.abs(means[1] - means[0]).mean()), float(np.abs(means[2] - means[0]).mean())


def matmul_and_add() -> onnx.ModelProto:
    weights = {"w": normal(0, 24, 6), "b": normal(1, 6)}
    return proto_of([node("MatMul", "x w", "m"), node("Add", "b m", "y")], {"x": [4, 24]}, {"y": [4, 6]}, weights)


def gemm(turned: int = 0) -> onnx.ModelProto:
    weights = {"w": normal(0, *((6, 24) if turned else (24, 6))), "b": normal(1, 1, 6)}
    return proto_of([node("Gemm", "x w b", "y", transB=turned)], {"x": [4, 24]}, {"y": [4, 6]}, weights)


def conv(group: int = 1) -> onnx.ModelProto:
    weights = {"w": normal(0, 8, 8 // group, 3, 3), "b": normal(1, 8)}
    return proto_of(
        [node("Conv", "x w b", "y", group=group)], {"x": [2, 8, 9, 9]}, {"y": [2, 8, 7, 7]}, weights
    )  # fmt: skip


def transposed(group: int = 1) -> onnx.ModelProto:
    weights = {"w": normal(0, 8, 8 // group, 3, 3), "b": normal(1, 8)}
    nodes = [node("ConvTranspose", "x w b", "y", group=group, strides=[2, 2])]
    return proto_of(nodes, {"x": [2, 8, 5, 5]}, {"y": None}, weights)


LAYERS = {
    "MatMul and Add": matmul_and_add(), "Gemm": gemm(), "Gemm, turned": gemm(1), "Conv": conv(), "grouped": conv(2),
    "depthwise": conv(8),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_mean_of_each_channel_comes_back(kind: str, granularity: str, tmp_path: Path) -> None:
    recipe = recipe_of(COARSE.replace("granularity: channel", f"granularity: {granularity}"), tmp_path)
    known, samples = solved(LAYERS[kind], recipe)
    better = improved(known, samples)
    before, after = shifts(known, better, samples, "y")
    assert after < before / 4
    assert weights_of(known, better) == weights_of(known, known.solution), "only biases learn"


def weights_of(known: Quantized, solution: Solution) -> list[bytes]:
    return [np.asarray(solution.codes[site_key(entry)]).tobytes() for entry in coded(known, Role.WEIGHT)]


def coded(known: Quantized, role: Role) -> list[Entry]:
    return [entry for entry in known.plan.entries if entry.site.role is role]


def test_a_whole_network_gains(tmp_path: Path) -> None:
    before, after = gained(conv_net(), coarse(tmp_path))
    assert after > before + 1


@pytest.mark.parametrize("group", [1, 2])
def test_a_plan_that_makes_integers_of_a_transposed_convolution(group: int, tmp_path: Path) -> None:
    """No preset does, since no kernel does; a plan written by hand can."""
    plan = solved(conv(), coarse(tmp_path))[0].plan
    entries = [
        msgspec.structs.replace(entry, grid=msgspec.structs.replace(entry.grid, axis=1))
        if entry.site.role is Role.WEIGHT and group == 1
        else msgspec.structs.replace(entry, grid=msgspec.structs.replace(entry.grid, granularity="tensor", axis=None))
        if entry.site.role is Role.WEIGHT
        else entry
        for entry in plan.entries
    ]
    proto = transposed(group)
    samples = positive(proto)
    known = finished(wrapped(proto), msgspec.structs.replace(plan, entries=tuple(entries)), samples)
    better = improved(known, samples)
    before, after = shifts(known, better, samples, "y")
    assert after < before / 3


def test_a_layer_whose_weight_is_only_stored_keeps_its_bias(tmp_path: Path) -> None:
    recipe = recipe_of(COARSE.replace("    encoding: {qdq: {pack: false}}\n", ""), tmp_path)
    known, samples = solved(transposed(2), recipe)
    assert [entry.encoding for entry in known.plan.entries] == ["weight_only"]
    assert improved(known, samples) is known.solution


def test_nothing_learns_without_biases(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Conv", "r v", "y")]
    weights = {"w": normal(0, 4, 3, 3, 3), "v": normal(1, 4, 4, 3, 3)}
    known, samples = solved(proto_of(nodes, {"x": [1, 3, 8, 8]}, {"y": None}, weights), coarse(tmp_path))
    assert improved(known, samples) is known.solution


def two(weights: tuple[str, str], biases: tuple[str, str]) -> onnx.ModelProto:
    arrays = {"w": normal(0, 4, 4, 1, 1), "v": normal(1, 4, 4, 1, 1), "b": normal(2, 4), "c": normal(3, 4)}
    nodes = [
        node("Conv", f"x {weights[0]} {biases[0]}", "h"),
        node("Relu", "h", "r"),
        node("Conv", f"r {weights[1]} {biases[1]}", "y"),
    ]
    kept = {name: array for name, array in arrays.items() if name in (*weights, *biases)}
    return proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, kept)


def test_a_bias_that_two_layers_read_stays(tmp_path: Path) -> None:
    known, samples = solved(two(("w", "v"), ("b", "b")), coarse(tmp_path))
    assert improved(known, samples) is known.solution


def test_a_weight_that_two_layers_read_keeps_its_codes(tmp_path: Path) -> None:
    recipe = coarse(tmp_path, "{coordinate: {sequential: true}}")
    known, samples = solved(two(("w", "w"), ("b", "c")), recipe)
    better = improved(known, samples)
    assert weights_of(known, better) == weights_of(known, known.solution)
    assert any(
        not np.array_equal(better.codes[site_key(entry)], known.solution.codes[site_key(entry)])
        for entry in coded(known, Role.BIAS)
    ), "biases are not shared"


def test_the_solution_given_stays(tmp_path: Path) -> None:
    known, samples = solved(conv_net(), coarse(tmp_path))
    before = {key: np.array(codes) for key, codes in known.solution.codes.items()}
    better = improved(known, samples)
    assert better is not known.solution
    for key, codes in known.solution.codes.items():
        np.testing.assert_array_equal(before[key], codes)


@pytest.mark.parametrize("rounding", ["coordinate", "gptq"])
@pytest.mark.parametrize("kind", ["conv_net", *LAYERS])
def test_sequential_roundings_gain(kind: str, rounding: str, tmp_path: Path) -> None:
    recipe = coarse(tmp_path, f"{{{rounding}: {{sequential: true}}}}")
    proto = conv_net() if kind == "conv_net" else LAYERS[kind]
    known, _ = solved(proto, recipe)
    assert has_order(known.plan, known.source)
    before, after = gained(proto, recipe, biases=False)
    assert after > before + 0.25


def test_codes_stay_within_their_grid(tmp_path: Path) -> None:
    known, samples = solved(conv_net(), coarse(tmp_path, "{gptq: {sequential: true}}"))
    better = improved(known, samples)
    for entry in coded(known, Role.WEIGHT):
        codes, scale = np.asarray(better.codes[site_key(entry)]), better.scales[site_key(entry)]
        assert codes.dtype == scale.dtype and scale.lowest <= codes.min() and codes.max() <= scale.highest


def test_a_result_that_is_an_output_too(tmp_path: Path) -> None:
    """In the quantized model, the output's name belongs to another node."""
    nodes = [node("Conv", "x w b", "c"), node("Conv", "c v d", "y")]
    weights = {"w": normal(0, 4, 4, 1, 1), "b": normal(1, 4), "v": normal(2, 4, 4, 1, 1), "d": normal(3, 4)}
    proto = proto_of(nodes, {"x": [1, 4, 6, 6]}, {"c": None, "y": None}, weights)
    known, samples = solved(proto, coarse(tmp_path))
    assert any(entry.site.role is Role.OUTPUT and entry.site.value == "c" for entry in known.plan.entries)
    better = improved(known, samples)
    for name in ("c", "y"):
        before, after = shifts(known, better, samples, name)
        assert after < before / 3, name


def test_one_sample_teaches_nothing(tmp_path: Path) -> None:
    known, samples = solved(conv_net(), coarse(tmp_path), count=1)
    better = improved(known, samples)
    for key, codes in known.solution.codes.items():
        np.testing.assert_array_equal(codes, better.codes[key])


def test_layers_beside_each_other_are_measured_at_once(tmp_path: Path) -> None:
    nodes = [
        *(node("Conv", f"x w{place} b", f"h{place}") for place in range(3)),
        node("Sum", "h0 h1 h2", "s"),
        node("Conv", "s w3 b3", "y"),
    ]
    weights: dict[str, Array] = {f"w{place}": normal(place, 4, 4, 1, 1) for place in range(4)}
    weights |= {"b": normal(5, 4), "b3": normal(6, 4)}
    for place in range(3):
        nodes[place].input[2] = f"b{place}"
        weights[f"b{place}"] = normal(10 + place, 4)
    del weights["b"]
    known, samples = solved(proto_of(nodes, {"x": [1, 4, 6, 6]}, {"y": None}, weights), coarse(tmp_path))
    seen: list[tuple[int, int]] = []
    learn_in_order(
        known.source,
        known.plan,
        known.solution,
        samples,
        biases=True,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(("count", "most"), [(3, 1 << 20), (64, 1 << 20), (65, 1 << 20), (200, 1 << 20), (70, 500)])
def test_few_samples_are_spread_and_come_back_in_order(count: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import qcli.in_order

    monkeypatch.setattr(qcli.in_order, "_KEPT_BYTES", most)
    few = _Few(Stream(tuple({"x": np.full(4, place, np.float32)} for place in range(count))))
    rounds = [[int(feeds["x"][0]) for _, feeds in few.feeds()] for _ in range(3)]
    assert rounds[0] == rounds[1] == rounds[2]
    assert len(rounds[0]) == min(count, 64) and rounds[0][0] == 0 and rounds[0][-1] == count - 1
    assert np.diff(rounds[0]).max() - np.diff(rounds[0]).min() <= 1


def test_means_and_products() -> None:
    x = normal(0, 2, 5, 400)
    pair, other = Paired(products=True), Paired(products=True)
    for part, target in ((x[..., :100], pair), (x[..., 100:], other)):
        target.add(part, part)
    both = pair.joined(other)
    for mean in both.means():
        np.testing.assert_allclose(mean, x.mean(axis=2), atol=1e-5)
    np.testing.assert_allclose(both.products(), x @ x.swapaxes(1, 2) / 400, atol=1e-4)
    expected = np.stack([np.cov(part, bias=True) for part in x])
    np.testing.assert_allclose(both.covariance(), expected, atol=1e-4)


def test_places_that_lost_an_outlier_count_little_and_infinite_samples_not_at_all() -> None:
    exact = np.ones((1, 3, 100), np.float32)
    quantized = exact + normal(0, 1, 3, 100) / 100
    exact[0, 0, 7] = 1000
    pair = Paired(products=False)
    pair.add(exact, quantized)
    pair.add(np.full_like(exact, np.inf), quantized)
    x, _ = pair.means()
    assert x[0, 0] == pytest.approx(1, abs=0.01) and len(pair.rows) == 1
