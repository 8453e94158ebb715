"""How accurate and how fast candidates are, always beside the float model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from qcli.analysis.measure import checked, float_session
from qcli.comparison import Comparison
from qcli.dataset import Sample
from qcli.errors import NothingToDoError, UsageError
from qcli.graph import Model
from qcli.latency import Effort, Latency, measure
from qcli.parallel import MOST_AT_ONCE, in_order
from qcli.recipe import Recipe
from qcli.report import Accuracy
from qcli.runtime import Session
from qcli.sources import SampleStream, open_source
from qcli.tuning.nouns import TuneJob

_KEPT_BYTES = 256 << 20
"""Outputs of the float model that are kept; beyond it the float model runs again for each candidate."""

_FEEDS = 4

_EFFORT = Effort(least=0.8, most=5.0)


LEARN, JUDGE = (1, 2), (2, 2)
"""The shards of the calibration samples: what learned from a sample flatters itself on it."""

_FEWEST = 8


def shards(job: TuneJob, recipe: Recipe, source: Model) -> tuple[SampleStream, tuple[int, int] | None]:
    """The samples to judge by, and the shard to learn from, which holds the others; None for all, where all are few."""
    named = recipe.samples.calibration

    def opened(shard: tuple[int, int] | None) -> SampleStream | None:
        return open_source(named, job.calibration, source.inputs(), limit=job.samples, shard=shard, labels=job.labels)

    everything = opened(None)
    if everything is None:
        raise NothingToDoError("a search compares models on samples, and there are none", "name a folder with -d")
    held_out = opened(JUDGE) if len(everything) >= _FEWEST else None
    return (everything, None) if held_out is None else (held_out, LEARN)


class Judge:
    """Compares models with the float one on the same samples and, alone on the machine, on the same clock."""

    def __init__(self, source: Model, samples: SampleStream, *, threads: int, cores: int) -> None:
        if not len(samples):
            raise NothingToDoError("there are no samples to judge by", "name a folder of samples with -d")
        self._source = source
        self._samples = samples
        self._threads = threads
        self._at_once = min(cores, MOST_AT_ONCE)
        self._float = float_session(source)
        self._kept: list[dict[str, Any]] = []
        self._held = 0
        self._clock: Session | None = None
        self._feeds = [sample.feeds for sample in islice(samples, _FEEDS)]

    @property
    def samples(self) -> int:
        return len(self._samples)

    def accuracy(self, model: Model) -> Accuracy:
        """On all samples; several of them run at a time."""
        session, comparison = Session(model.runnable(), threads=1), Comparison()

        def run(numbered: tuple[int, Sample]) -> tuple[Sample, dict[str, Any], dict[str, Any]]:
            number, sample = numbered
            known = self._kept[number] if number < len(self._kept) else None
            expected = known if known is not None else self._float.run(sample.feeds)
            return sample, expected, session.run(sample.feeds)

        for number, (sample, expected, given) in enumerate(in_order(run, enumerate(self._samples), self._at_once)):
            if number == len(self._kept) and self._held < _KEPT_BYTES:
                checked(expected, sample.file)
                self._kept.append(expected)
                self._held += sum(getattr(value, "nbytes", 0) for value in expected.values())
            comparison.update(expected, given, sample)
        return comparison.accuracy()

    def latency(self, model: Model) -> Latency:
        """Of the float model and of this one, interleaved."""
        if self._clock is None:
            self._clock = Session(self._source.runnable(), threads=self._threads, spin=False)
        candidate = Session(model.runnable(), threads=self._threads, spin=False)
        return measure([self._clock, candidate], self._feeds, self._threads, _EFFORT)

    def sample(self) -> Iterator[Sample]:
        return iter(self._samples)


def drop_of(accuracy: Accuracy) -> float | None:
    """What is lost of the top-1 accuracy, or without labels the share of other first choices.

    None for what is no classifier.
    """
    if accuracy.top1 is not None:
        return accuracy.top1.drop
    return None if accuracy.agreement is None else 1 - accuracy.agreement


OPTIONS = ("--max-drop", "--min-sqnr")


def check_resolution(
    wanted: float | None, accuracy: Accuracy, samples: int, names: tuple[str, str] = OPTIONS
) -> str | None:
    """A warning if the samples are too few to tell the drop asked for. Raises UsageError if there is no drop at all.

    `names` are those of the two limits, as the user gave them.
    """
    if wanted is None:
        return None
    if drop_of(accuracy) is None:
        hint = f"use {names[1]}, which any float output has"
        raise UsageError(f"{names[0]} is about classifiers, and no output of this model is a matrix of scores", hint)
    if wanted * samples >= 1:
        return None
    return f"{names[0]} {wanted:g} cannot be told on {samples} samples: one of them is {1 / samples:.4f}"
