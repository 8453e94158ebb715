"""How accurate and how fast candidates are, always beside the float model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import msgspec

from qcli.analysis.measure import checked, float_session, loss_of
from qcli.cache import key_of_facts
from qcli.comparison import Comparison
from qcli.dataset import Dataset, Sample
from qcli.errors import NothingToDoError, UsageError
from qcli.graph import Model, load_model
from qcli.job import threads_of
from qcli.latency import Effort, Latency, measure
from qcli.parallel import MOST_AT_ONCE, in_order
from qcli.recipe import Recipe, load_recipe
from qcli.report import Accuracy, Report
from qcli.runtime import Session
from qcli.side_by_side import CompareJob, evaluation_samples
from qcli.sources import SampleStream, open_source
from qcli.tuning.metric import Metric, Tally
from qcli.tuning.nouns import TuneJob
from qcli.tuning.spread import Spread

_KEPT_BYTES = 256 << 20
"""Outputs of the float model that are kept; beyond it the float model runs again for each candidate."""

_FEEDS = 4

_EFFORT = Effort(least=0.8, most=5.0)
_RACE = Effort(least=3.0, most=15.0)
"""How long candidates are timed, one beside the float model or several."""


LEARN, JUDGE = (1, 2), (2, 2)
"""The shards of the calibration samples: what learned from a sample flatters itself on it."""

_FEWEST = 8


def shards(job: TuneJob, recipe: Recipe, source: Model) -> tuple[SampleStream, tuple[int, int] | None]:
    """The samples to judge by, and the shard to learn from, which holds the others; None for all, where all are few.

    Labels that the job names are those of the evaluation samples, which are these if it names no others.
    """
    named = recipe.samples.calibration
    labels = job.labels if job.evaluation in (None, job.calibration) else None

    def opened(shard: tuple[int, int] | None) -> SampleStream | None:
        return open_source(named, job.calibration, source.inputs(), limit=job.samples, shard=shard, labels=labels)

    everything = opened(None)
    if everything is None:
        raise NothingToDoError("a search compares models on samples, and there are none", "name a folder with -d")
    held_out = opened(JUDGE) if len(everything) >= _FEWEST else None
    return (everything, None) if held_out is None else (held_out, LEARN)


class Judged(Accuracy, frozen=True, kw_only=True):
    """The accuracy with the value of the metric that the search goes by, None where that is sqnr.

    `error_db` is the standard error of the worst output's ratio in dB: how much of it is due to the choice of samples.
    """

    metric: float | None = None
    error_db: float = 0.0


class Judge:
    """Compares models with the float one on the same samples and, alone on the machine, on the same clock."""

    def __init__(
        self, source: Model, samples: SampleStream, *, threads: int, cores: int, metric: Metric | None = None
    ) -> None:
        if not len(samples):
            raise NothingToDoError("there are no samples to judge by", "name a folder of samples with -d")
        self._source = source
        self._samples = samples
        self._metric = metric or Metric()
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

    @cached_property
    def key(self) -> str:
        """Names what is judged by: the metric, the samples as they are read, and their labels."""
        dataset = self._samples.dataset
        files, labels = (dataset.files, dataset.labels) if isinstance(dataset, Dataset) else ((), {})
        readers = sorted({repr(file.reader) for file in files})
        return key_of_facts([self._metric.key, self._samples.digest(), labels, readers])

    def accuracy(self, model: Model) -> Judged:
        """On all samples; several of them run at a time. Raises UsageError if a file's metric fails."""
        session, comparison, tally = Session(model.runnable(), threads=1), Comparison(), Tally(self._metric)
        spread = Spread()

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
            tally.update(expected, given, sample)
            spread.update(loss_of(expected, given))
        accuracy = comparison.accuracy()
        return Judged(**msgspec.structs.asdict(accuracy), metric=tally.value(accuracy), error_db=spread.error_db())

    def latency(self, models: Sequence[Model], *, race: bool = False) -> Latency:
        """Of the float model and of these, interleaved."""
        if self._clock is None:
            self._clock = Session(self._source.runnable(), threads=self._threads, spin=False)
        candidates = [Session(model.runnable(), threads=self._threads, spin=False) for model in models]
        return measure([self._clock, *candidates], self._feeds, self._threads, _RACE if race else _EFFORT)

    def sample(self) -> Iterator[Sample]:
        return iter(self._samples)


def open_judge(
    job: TuneJob, source: Model, recipe: Recipe, metric: Metric, *, share: int = 1
) -> tuple[Judge, tuple[int, int] | None]:
    """The judge of a job, and the shard of the samples to learn from; None for all, where all are few.

    `share` is the number of judges that divide the cores among them.
    """
    samples, shard = shards(job, recipe, source)
    cores = max(threads_of(job) // share, 1)
    return Judge(source, samples, threads=job.threads or 1, cores=cores, metric=metric), shard


def drop_of(accuracy: Accuracy) -> float | None:
    """What is lost of the top-1 accuracy, or without labels the share of other first choices.

    None for what is no classifier.
    """
    if accuracy.top1 is not None:
        return accuracy.top1.drop
    return None if accuracy.agreement is None else 1 - accuracy.agreement


def evaluated(job: CompareJob, result: Report, metric: Metric) -> float | None:
    """A metric's value for a compressed model on the evaluation samples; None for sqnr and for what was not run.

    `result` is what `compare_models` found. Raises UsageError if these samples lack labels that the metric needs, or if
    a file's metric fails on them.
    """
    if not metric.file or result.accuracy is None:
        value = metric.value(result.accuracy)
        if metric.name == "top1" and value is None and result.accuracy is not None:
            raise UsageError("they have no labels", "put labels.csv beside them, or name one with --labels")
        return value
    source = load_model(job.float_model)
    samples = evaluation_samples(job, load_recipe(job.recipe, job.settings), source)
    judge = Judge(source, samples, threads=1, cores=job.threads or 1, metric=metric)
    return judge.accuracy(load_model(job.compressed)).metric


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
