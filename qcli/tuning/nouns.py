"""What a search is asked for, what it tried, and what it says."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Literal, cast, get_args

import msgspec

from qcli.errors import UsageError, did_you_mean
from qcli.job import QuantizeJob
from qcli.report import Environment, FileFacts, Report
from qcli.types import Noun, Rule

MOST_JOBS = 64

Objective = Literal["latency", "size", "accuracy"]
Strategy = Literal["front", "greedy", "exhaustive"]

MARGIN_DB = 0.5
"""By so much at least a candidate exceeds the ratio asked for, since other samples than the search's will judge it."""

SURE = 2.326
"""And by so many standard errors: over all samples there could be, a plan keeps the limit in 99 of 100 cases. The best
of many plans is the one that these samples flatter most, which 19 of 20 would not make up for."""

FLOAT = "float"
"""The name of the candidate that leaves the model as it is."""


class Limits(Noun, frozen=True, kw_only=True):
    """What a result has to keep; None is no limit.

    `max_drop` is the loss of top-1 accuracy, or without labels the share of samples with another first choice.
    `min_sqnr` is in dB, `min_metric` in the unit of the job's metric. `max_size` and `max_latency` are relative to the
    float model: 0.3 is 30 % of its bytes or time.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None
    min_metric: float | None = None
    max_size: float | None = None
    max_latency: float | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("max_drop", 0.0, 1.0), ("max_size", 0.0, 10.0), ("max_latency", 0.0, 10.0)):
            value, closed = getattr(self, name), name == "max_drop"
            if value is not None and not (least < value <= most or (closed and value == least)):
                bound = "at least" if closed else "above"
                raise UsageError(f"{option_of(name)} must be {bound} {least:g} and at most {most:g}, is {value:g}")
        if self.min_sqnr is not None and not 0 < self.min_sqnr <= 200:
            raise UsageError(f"--min-sqnr must be above 0 and at most 200 dB, is {self.min_sqnr:g}")
        if self.min_metric is not None and not isfinite(self.min_metric):
            raise UsageError(f"--min-metric must be a finite number, is {self.min_metric:g}")


def option_of(name: str) -> str:
    """A limit as the command line calls it."""
    return f"--{name.replace('_', '-')}"


def objective_of(name: str) -> Objective:
    """Raises UsageError for anything but latency, size and accuracy."""
    if name not in get_args(Objective):
        raise UsageError(f"'{name}' is no objective", did_you_mean(name, get_args(Objective)))
    return cast(Objective, name)


def strategy_of(name: str) -> Strategy:
    """Raises UsageError for anything but front, greedy and exhaustive."""
    if name not in get_args(Strategy):
        raise UsageError(f"'{name}' is no way to search", did_you_mean(name, get_args(Strategy)))
    return cast(Strategy, name)


class TuneJob(QuantizeJob, frozen=True, kw_only=True):
    """What `qcli tune` can be told, beside what it has in common with `qcli quantize`.

    `recipes` are tried beside `recipe`. `metric` is sqnr (None), agreement, top1, perplexity or the path of a file of
    Python code, which runs only with `allow_code`; see `qcli/tuning/metric.py`. `time_limit` is in seconds; the search
    ends with the round that exceeds it. `jobs` candidates are judged at a time, each in a process of its own. With a
    `cost_table` nothing is timed: speeds are foretold for the machine that it was measured on.
    """

    recipes: tuple[str, ...] = ()
    limits: Limits = Limits()
    objective: Objective = "latency"
    time_limit: float = 300.0
    metric: str | None = None
    allow_code: bool = False
    search: Strategy = "front"
    jobs: int = 1
    cost_table: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.jobs <= MOST_JOBS:
            raise UsageError(f"--jobs must be from 1 to {MOST_JOBS}, is {self.jobs}")
        if not 0 < self.time_limit <= 1e6:
            raise UsageError(f"--time-limit must be above 0 and at most 1e6 seconds, is {self.time_limit:g}")


class Candidate(Noun, frozen=True, kw_only=True):
    """One way to quantize the model: a recipe, and rules on top of it that make nodes compute in other ways.

    `foretold` is the time that it was expected to take, as a multiple of the float model's; None where nothing was.
    """

    recipe: str
    why: str
    rules: tuple[Rule, ...] = ()
    foretold: float | None = None


class Outcome(Noun, frozen=True, kw_only=True):
    """A candidate that was made into a model and measured. `speedup` and `size` are relative to the float model.

    `sqnr`, `drop` and `metric`, None where the job's is sqnr, are those on the samples of the search. `steady` is False
    if the machine was busy meanwhile. `error_db` is the standard error of `sqnr`. `seconds` is how long it took,
    `found` when it was there, both in seconds.
    """

    candidate: Candidate
    sqnr: float
    drop: float | None
    size: float
    ms: float
    speedup: float
    steady: bool
    seconds: float
    found: float = 0.0
    error_db: float = 0.0
    metric: float | None = None

    @property
    def time(self) -> float:
        """Relative to the float model's, measured beside it."""
        return 1 / self.speedup


class TuneReport(Noun, frozen=True, kw_only=True):
    """The best plan, all that was tried, and which of it no other surpasses.

    `front_latency` and `front_size` are numbers of `tried`, from the most accurate on. `met` is False if nothing keeps
    the limits; `reason` says then why, and what the result is instead. `metric` is what the search went by, a file's
    name for one of the user's; `result_metric` is its value for the result on the evaluation samples, None for sqnr.
    """

    schema: int = 1
    command: str = "tune"
    model: FileFacts
    limits: Limits
    objective: Objective
    met: bool
    reason: str = ""
    best: int
    tried: tuple[Outcome, ...]
    front_latency: tuple[int, ...]
    front_size: tuple[int, ...]
    samples: int
    result: Report | None = None
    warnings: tuple[str, ...] = ()
    environment: Environment
    metric: str = "sqnr"
    result_metric: float | None = None
    seconds: dict[str, float] = msgspec.field(default_factory=dict)
