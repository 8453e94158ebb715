"""One sweep over the samples: any order, any number of threads, any grouping give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import (
    SAMPLE_MODELS,
    Feeds,
    Stream,
    conv_net,
    feeds_for,
    node,
    normal,
    proto_of,
    run,
    sample_model,
    stream_for,
    wrapped,
)

from qcli import calibrate, one_sweep
from qcli.calibrate import collect
from qcli.dataset import open_dataset
from qcli.errors import InputError, NothingToDoError, RuntimeFailure
from qcli.graph import Model, infer_shapes
from qcli.measured import requests_of
from qcli.plan import make_plan
from qcli.recipe import load_recipe
from qcli.runtime import Session
from qcli.sources import SampleStream
from qcli.statistics import Statistics
from qcli.types import Array, Request


def requests_for(model: Model, recipe: str = "int8") -> tuple[Request, ...]:
    return requests_of(make_plan(model, load_recipe(recipe)), model)


def collected(
    model: Model, stream: Stream, path: Path, *, requests: tuple[Request, ...] = (), threads: int = 1
) -> bytes:
    wanted = requests or requests_for(model)
    statistics = collect(model, Statistics.empty(wanted), stream, threads=threads)
    statistics.save(path / "s.npz")
    return (path / "s.npz").read_bytes()


def test_the_ranges_are_those_of_the_values(tmp_path: Path) -> None:
    model = wrapped(conv_net())
    stream = stream_for(model)
    wanted = tuple(Request(value=name, statistic="extrema") for name in ("x", "r1", "y"))
    statistics = collect(model, Statistics.empty(wanted), stream)
    for request in wanted:
        visible = model.serialize(extra_outputs=(request.value,)) if request.value != "x" else b""
        values = [run(visible, feeds)[request.value] if visible else feeds["x"] for feeds in stream.samples]
        known = statistics.get(request).distribution()
        lower, upper = min(value.min() for value in values), max(value.max() for value in values)
        np.testing.assert_allclose([known.lower[0], known.upper[0]], [lower, upper], rtol=1e-5, atol=1e-6)
    assert statistics.header.samples == len(stream)


def test_a_channel_axis_is_measured_slice_by_slice() -> None:
    model = wrapped(conv_net())
    stream = stream_for(model)
    request = Request(value="x", statistic="extrema", axis=1)
    known = collect(model, Statistics.empty([request]), stream).get(request).distribution()
    every = np.stack([feeds["x"] for feeds in stream.samples])
    np.testing.assert_array_equal(known.upper, every.max(axis=(0, 1, 3, 4)))


def test_shards_merged_are_one_run(tmp_path: Path) -> None:
    model = wrapped(conv_net())
    stream, wanted = stream_for(model, 7), requests_for(model)
    whole = collected(model, stream, tmp_path)
    parts = [collect(model, Statistics.empty(wanted), Stream(stream.samples[start::3])) for start in (2, 0, 1)]
    parts[0].merge(parts[1]).merge(parts[2]).save(tmp_path / "m.npz")
    assert (tmp_path / "m.npz").read_bytes() == whole


def test_statistics_can_be_continued(tmp_path: Path) -> None:
    model = wrapped(conv_net())
    stream, wanted = stream_for(model, 5), requests_for(model)
    begun = collect(model, Statistics.empty(wanted), Stream(stream.samples[:2]))
    collect(model, begun, Stream(stream.samples[2:])).save(tmp_path / "m.npz")
    assert (tmp_path / "m.npz").read_bytes() == collected(model, stream, tmp_path)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_byte(tmp_path: Path, threads: int) -> None:
    model = wrapped(conv_net())
    stream = stream_for(model, 12)
    assert collected(model, stream, tmp_path, threads=threads) == collected(model, stream, tmp_path)


def test_the_order_of_samples_does_not_change_a_byte(tmp_path: Path) -> None:
    model = wrapped(conv_net())
    stream = stream_for(model, 8)
    reverse = Stream(stream.samples[::-1])
    assert collected(model, reverse, tmp_path) == collected(model, stream, tmp_path)


@pytest.mark.parametrize("limit", [1, 4000, 20_000])
def test_small_groups_see_the_same_values(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Up to the last bits: which values are visible decides what onnxruntime fuses, and so the order of its sums."""
    model = wrapped(conv_net())
    stream = stream_for(model, 4)
    empty = Statistics.empty(requests_for(model))
    whole = collect(model, empty, stream)
    monkeypatch.setattr(calibrate, "TAP_BYTES", limit)
    grouped = collect(model, Statistics.empty(requests_for(model)), stream)
    for request in requests_for(model):
        one, other = (known.get(request).distribution() for known in (whole, grouped))
        np.testing.assert_allclose([other.lower, other.upper], [one.lower, one.upper], rtol=1e-5, atol=1e-6)
        assert other.counts.sum() == one.counts.sum()


def test_groups_are_bounded_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(model: bytes, **options: Any) -> Session:
        seen.append(len(model))
        return Session(model, **options)

    model = wrapped(conv_net())
    monkeypatch.setattr(one_sweep, "Session", spy)
    wanted = requests_for(model)
    collect(model, Statistics.empty(wanted), stream_for(model, 1))
    assert len(seen) == 1
    monkeypatch.setattr(calibrate, "TAP_BYTES", 1)
    collect(model, Statistics.empty(wanted), stream_for(model, 1))
    assert len(seen) == 1 + len(wanted), "one value at a time"


def test_progress_counts_the_samples() -> None:
    model = wrapped(conv_net())
    seen: list[tuple[int, int]] = []
    empty = Statistics.empty(requests_for(model))
    collect(model, empty, stream_for(model, 3), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("threads", [1, 2])
def test_shapes_may_vary_between_samples(tmp_path: Path, threads: int) -> None:
    weights = {"w": normal(0, 4, 3, 3, 3), "v": normal(1, 4, 4, 1, 1)}
    nodes = [node("Conv", "x w", "c"), node("Conv", "c v", "y")]
    model = wrapped(proto_of(nodes, {"x": ["n", 3, "h", "w"]}, {"y": None}, weights))
    samples = tuple({"x": normal(index, 1 + index % 2, 3, 4 + index, 9 - index)} for index in range(5))
    assert collected(model, Stream(samples), tmp_path, threads=threads) == collected(
        model, Stream(samples[::-1]), tmp_path
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_named(threads: int, bad: float) -> None:
    model = wrapped(conv_net())
    samples = [dict(feeds) for feeds in stream_for(model, 5).samples]
    samples[3]["x"][0, 0, 0, 0] = bad
    empty = Statistics.empty(requests_for(model))
    with pytest.raises(InputError, match=r"sample_3\.npz"):
        collect(model, empty, Stream(tuple(samples)), threads=threads)


def test_a_value_that_overflows_inside_is_named_with_its_sample() -> None:
    proto = proto_of(
        [node("Exp", "x", "e"), node("MatMul", "e w", "y")], {"x": [1, 3]}, {"y": None}, {"w": normal(0, 3, 2)}
    )
    samples = ({"x": np.zeros((1, 3), np.float32)}, {"x": np.full((1, 3), 1000, np.float32)})
    request = Request(value="e", statistic="histogram")
    with pytest.raises(InputError, match=r"sample_1\.npz' makes 'e' NaN or Inf"):
        collect(wrapped(proto), Statistics.empty([request]), Stream(samples))


def test_empty_tensors_are_no_values(tmp_path: Path) -> None:
    proto = proto_of(
        [node("Relu", "x", "r"), node("MatMul", "r w", "y")], {"x": ["n", 3]}, {"y": None}, {"w": normal(0, 3, 2)}
    )
    model = wrapped(proto)
    nothing: Feeds = {"x": np.zeros((0, 3), np.float32)}
    full = feeds_for(model)
    wanted = (Request(value="r", statistic="histogram"), Request(value="x", statistic="extrema"))
    mixed = collect(model, Statistics.empty(wanted), Stream((nothing, full, nothing)))
    alone = collect(model, Statistics.empty(wanted), Stream((full,)))
    for request in wanted:
        assert mixed.get(request).arrays().keys() == alone.get(request).arrays().keys()
        for name, array in alone.get(request).arrays().items():
            assert np.array_equal(mixed.get(request).arrays()[name], array)


def test_no_samples_are_nothing_to_do() -> None:
    model = wrapped(conv_net())
    with pytest.raises(NothingToDoError, match="no samples"):
        collect(model, Statistics.empty(requests_for(model)), Stream(()))


def test_a_sample_that_the_model_cannot_take_is_a_runtime_failure() -> None:
    model = wrapped(conv_net())
    with pytest.raises(RuntimeFailure):
        collect(model, Statistics.empty(requests_for(model)), Stream(({"x": normal(0, 1, 7, 8, 8)},)))


@dataclass(frozen=True)
class Failing(Stream):
    """Samples of which the third cannot be read."""

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        for index, item in enumerate(super().feeds()):
            if index == 2:
                raise InputError("sample_2.npz is broken")
            yield item


@pytest.mark.parametrize("threads", [1, 3])
def test_a_sample_that_cannot_be_read_ends_the_sweep(threads: int) -> None:
    model = wrapped(conv_net())
    with pytest.raises(InputError, match="broken"):
        collect(model, Statistics.empty(requests_for(model)), Failing(stream_for(model, 6).samples), threads=threads)


def test_a_dataset_on_disk_is_a_stream(tmp_path: Path) -> None:
    model = sample_model("mlp")
    infer_shapes(model)
    data = open_dataset(SAMPLE_MODELS / "mlp" / "calib", model.inputs(), limit=10)
    whole = collect(model, Statistics.empty(requests_for(model)), SampleStream(data), threads=2)
    assert whole.header.samples == 10
