"""Opening the samples that a job or its recipe names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcli.contracts import InputSpec
from qcli.dataset import Dataset, Sample, open_dataset
from qcli.errors import UnsupportedError
from qcli.recipe import SampleSource
from qcli.types import Array


@dataclass(frozen=True)
class SampleStream:
    """A dataset as the calibration and the validation want it."""

    dataset: Dataset | RandomSamples

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.dataset)

    def feeds(self) -> Iterator[tuple[str, Mapping[str, Array]]]:
        for sample in self.dataset:
            yield sample.file, sample.feeds

    def digest(self) -> str | None:
        """sha256 (hex) of the samples read, None for random ones."""
        return self.dataset.digest() if isinstance(self.dataset, Dataset) else None

    def files(self) -> tuple[Path, ...]:
        """The files read, for depfiles."""
        return self.dataset.paths() if isinstance(self.dataset, Dataset) else ()


@dataclass(frozen=True)
class RandomSamples:
    """Standard normal floats and zeros for integers, free axes of size one: for smoke tests, not for results."""

    inputs: tuple[InputSpec, ...]
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        for index in range(self.count):
            generator = np.random.default_rng(index)
            feeds = {spec.name: _random(spec, generator) for spec in self.inputs}
            yield Sample(file=f"random {index}", feeds=feeds)


def open_source(
    source: SampleSource,
    path: Path | None,
    inputs: tuple[InputSpec, ...],
    *,
    labels: Path | None = None,
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> SampleStream | None:
    """The samples of `path`, or of the recipe's `source`; None if neither names any.

    A path given by hand keeps the recipe's preprocessing. Raises as `open_dataset` does.
    """
    place = path if path is not None else (Path(source.path) if source.path is not None else None)
    if place is None:
        return None
    own_labels = Path(source.labels) if source.labels is not None and path is None else None
    dataset = open_dataset(
        place,
        inputs,
        preprocess=source.preprocess,
        labels=labels if labels is not None else own_labels,
        limit=limit if limit is not None else source.limit,
        shard=shard,
    )
    return SampleStream(dataset)


def random_source(inputs: tuple[InputSpec, ...], count: int) -> SampleStream:
    """Random samples for inputs of known rank. Raises UnsupportedError for others."""
    for spec in inputs:
        if spec.shape is None or spec.dtype == "string" or spec.kind != "tensor":
            problem = f"input '{spec.name}' has no shape to make random samples of"
            raise UnsupportedError(problem, "name real ones with -d")
    return SampleStream(RandomSamples(inputs, count))


def _random(spec: InputSpec, generator: np.random.Generator) -> Array:
    shape = [1 if size is None else size for size in spec.shape or ()]
    if np.dtype(spec.dtype).kind == "f" or spec.dtype == "bfloat16":
        return generator.standard_normal(shape).astype(spec.dtype)
    return np.zeros(shape, spec.dtype)
