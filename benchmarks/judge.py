"""One judge for all: every contender's model against the float model, in one process, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qcli.comparison import Comparison
from qcli.dataset import Dataset
from qcli.errors import RuntimeFailure
from qcli.graph import load_model
from qcli.kernels import read_kernels
from qcli.latency import Effort, Latency, measure
from qcli.report import Accuracy
from qcli.runtime import Session
from qcli.types import Array, Noun

_FEEDS = 8
"""Latency is measured on this many different samples."""


class Verdict(Noun, frozen=True, kw_only=True):
    """What became of one model: `ms` and `speedup` (float / this) at one thread, interleaved with all others.

    `integer_nodes` and `float_nodes` count compute nodes as onnxruntime runs them. `integer_share` is of the
    multiply-accumulates, None where not all nodes can be traced to the float model's: it would be too low.
    """

    accuracy: Accuracy
    integer_nodes: int
    float_nodes: int
    integer_share: float | None
    ms: float
    speedup: float


class Judgement(Noun, frozen=True, kw_only=True):
    """The verdicts by file; `refused` has the reason for each file that does not load."""

    float_ms: float
    samples: int
    verdicts: dict[str, Verdict]
    refused: dict[str, str]


def judge(float_model: Path, files: Sequence[Path], samples: Dataset, effort: Effort) -> Judgement:
    """Accuracy over all samples, kernels, and interleaved latency of the files that load."""
    sessions, refused = _loaded(files)
    reference = Session(float_model, threads=1)
    comparisons = _compared(reference, sessions, samples)
    feeds = first_feeds(samples)
    latency = measure([reference, *sessions.values()], feeds, 1, effort)
    original = load_model(float_model)
    kernels = {file: read_kernels(file, original, feeds[0]) for file in sessions}
    verdicts = {
        str(file): Verdict(
            accuracy=comparisons[file].accuracy(),
            integer_nodes=kernels[file].integer,
            float_nodes=kernels[file].float_nodes,
            integer_share=None if kernels[file].unmatched else kernels[file].integer_share,
            ms=latency.timings[place].median_ms,
            speedup=latency.ratios[place],
        )
        for place, file in enumerate(sessions, start=1)
    }
    float_ms = latency.timings[0].median_ms
    return Judgement(float_ms=float_ms, samples=len(samples), verdicts=verdicts, refused=refused)


def interleaved_latency(files: Sequence[Path], samples: Dataset, effort: Effort) -> Latency:
    """The files' latency at one thread in one process; `ratios` are relative to the first.

    Raises RuntimeFailure if one does not load.
    """
    return measure([Session(file, threads=1) for file in files], first_feeds(samples), 1, effort)


def first_feeds(samples: Dataset) -> list[Mapping[str, Array]]:
    """A few different samples to measure the time with."""
    return [sample.feeds for sample, _ in zip(samples, range(_FEEDS), strict=False)]


def _loaded(files: Sequence[Path]) -> tuple[dict[Path, Session], dict[str, str]]:
    sessions: dict[Path, Session] = {}
    refused: dict[str, str] = {}
    for file in files:
        try:
            sessions[file] = Session(file, threads=1)
        except RuntimeFailure as error:
            refused[str(file)] = error.message
    return sessions, refused


def _compared(reference: Session, sessions: Mapping[Path, Session], samples: Dataset) -> dict[Path, Comparison]:
    comparisons = {file: Comparison() for file in sessions}
    for sample in samples:
        expected = reference.run(sample.feeds)
        for file, session in sessions.items():
            comparisons[file].update(expected, session.run(sample.feeds), sample)
    return comparisons
