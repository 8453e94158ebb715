"""Candidates made into models, judged and timed, each once: what was measured before is found in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import msgspec

from qcli.cache import find_document, keep_document, key_of_facts
from qcli.errors import RuntimeFailure
from qcli.files import scratch_folder
from qcli.graph import Model, save_model
from qcli.latency import Latency
from qcli.report import environment, file_facts
from qcli.tuning.base import Base, Built, build
from qcli.tuning.doubts import busy
from qcli.tuning.judge import Judge, Judged, drop_of
from qcli.tuning.nouns import FLOAT, Candidate, Outcome, TuneJob
from qcli.tuning.run_off import keep_race, known_race
from qcli.tuning.workers import Workers
from qcli.watch import Watch

_TUNING = 2
"""Raised whenever the same candidate would be measured otherwise."""

_EXACT = 200.0


@dataclass
class Tried:
    """A candidate with its key; what was made of it, and what it is like, as soon as that is known."""

    candidate: Candidate
    key: str
    built: Built | None = None
    outcome: Outcome | None = None


class Trying:
    """Makes and measures. To be closed, since it may hold processes.

    `float_ms` is what the float model takes by a cost table; without one, candidates are timed beside it.
    """

    def __init__(self, job: TuneJob, source: Model, judge: Judge, watch: Watch, float_ms: float | None = None) -> None:
        self._job = job
        self._judge = judge
        self._watch = watch
        self._float_ms = float_ms
        self._table = sha256(job.cost_table.read_bytes()).hexdigest() if job.cost_table is not None else None
        self._source_bytes = file_facts(job.model, source).bytes
        self._open = ExitStack()
        self._workers = self._open.enter_context(Workers(job, job.jobs)) if job.jobs > 1 else None

    def close(self) -> None:
        self._open.close()

    def float_outcome(self, source: Model, check: Callable[[Judged], None]) -> Outcome:
        """What the float model is like; `check` is given its accuracy before it is timed."""
        accuracy = self._judge.accuracy(source)
        check(accuracy)
        return self._outcome(Candidate(recipe=FLOAT, why="the model as it was", foretold=1.0), accuracy, source, 1.0)

    def key(self, base: Base, candidate: Candidate) -> str:
        """Names all that an outcome depends on."""
        return key_of_facts([_TUNING, self.base_key(base), msgspec.to_builtins(candidate.rules), self._judge.key])

    def base_key(self, base: Base) -> str:
        """Names a settled recipe and the machine."""
        prepared = base.prepared
        facts = [
            prepared.recipe.sha256,
            prepared.model.digest(),
            msgspec.to_builtins(base.plan),
            prepared.calibration.digest() if prepared.calibration is not None else None,
            self._job.threads or 1,
            self._table,
            msgspec.to_builtins(environment()),
        ]
        return key_of_facts(facts)

    def known(self, tried: Tried) -> None:
        """Fills in an outcome from the cache."""
        content = find_document(tried.key) if self._job.cache else None
        if content is not None:
            found = msgspec.json.decode(content, type=Outcome)
            tried.outcome = msgspec.structs.replace(found, candidate=tried.candidate)

    def make(self, tried: Tried, base: Base) -> None:
        """Fills in the model, unless there is none."""
        tried.built = build(base, tried.candidate, self._job, self._watch)

    def measure(self, batch: Sequence[Tried]) -> None:
        """Fills in the outcomes of all that were built: first they are judged, then timed one by one.

        What ends its process or does not run has none, and a warning says so.
        """
        start = perf_counter()
        with scratch_folder() as folder:
            models = [(tried, tried.built.model) for tried in batch if tried.built is not None]
            paths = [_saved(model, folder / str(number)) for number, (_, model) in enumerate(models)]
            judged = self._judged([model for _, model in models], paths)
            seconds = (perf_counter() - start) / max(len(models), 1)
            for (tried, model), path, accuracy in zip(models, paths, judged, strict=True):
                if accuracy is None:
                    self._watch.warn(f"{tried.candidate.recipe}, {tried.candidate.why}: onnxruntime does not run it")
                    continue
                begin = perf_counter()
                size = file_facts(path).bytes / self._source_bytes
                found = self._outcome(tried.candidate, accuracy, model, size)
                tried.outcome = msgspec.structs.replace(found, seconds=seconds + perf_counter() - begin)
                if self._job.cache and tried.outcome.steady:
                    keep_document(tried.key, msgspec.json.encode(tried.outcome))

    def race(self, candidates: Sequence[tuple[Base, Candidate]]) -> Latency:
        """The float model and candidates that were made before, timed together."""
        key = key_of_facts(["race", _TUNING, *(self.key(base, candidate) for base, candidate in candidates)])
        known = known_race(key, self._job)
        if known is not None:
            return known
        made = [build(base, candidate, self._job, self._watch) for base, candidate in candidates]
        latency = self._judge.latency([one.model for one in made if one is not None], race=True)
        keep_race(key, self._job, latency)
        return latency

    def _judged(self, models: Sequence[Model], paths: Sequence[Path]) -> list[Judged | None]:
        if self._workers is not None and len(paths) > 1:
            return self._workers.accuracies(paths)
        return [self._judged_here(model) for model in models]

    def _judged_here(self, model: Model) -> Judged | None:
        try:
            return self._judge.accuracy(model)
        except RuntimeFailure:
            return None

    def _outcome(self, candidate: Candidate, accuracy: Judged, model: Model, size: float) -> Outcome:
        ms, speedup, steady = self._timed(candidate, model)
        return Outcome(
            candidate=candidate,
            sqnr=accuracy.sqnr if accuracy.sqnr is not None else _EXACT,
            drop=drop_of(accuracy),
            size=size,
            ms=ms,
            speedup=speedup,
            steady=steady,
            seconds=0.0,
            error_db=accuracy.error_db,
            metric=accuracy.metric,
        )

    def _timed(self, candidate: Candidate, model: Model) -> tuple[float, float, bool]:
        """Milliseconds, the float model's time relative to them, and whether the machine was quiet."""
        if self._float_ms is not None:
            share = candidate.foretold if candidate.foretold is not None else 1.0
            return share * self._float_ms, 1 / max(share, 1e-9), True
        latency = self._judge.latency([model])
        place = 0 if candidate.recipe == FLOAT else 1
        if candidate.recipe == FLOAT:
            for text in busy(latency):
                self._watch.warn(text)
        return latency.timings[place].median_ms, latency.ratios[place], latency.steady


def _saved(model: Model, folder: Path) -> Path:
    folder.mkdir()
    save_model(model, folder / "model.onnx")
    return folder / "model.onnx"
