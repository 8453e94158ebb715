"""Analyses in the cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from qcli.analysis.nouns import Analysis, AnalyzeJob
from qcli.analysis.samples import compared_samples
from qcli.cache import find_document, keep_document, key_of_facts
from qcli.graph import load_model
from qcli.recipe import load_recipe
from qcli.report import environment
from qcli.sources import open_source

_ANALYZING = 1
"""Raised whenever the same job would be analyzed otherwise."""


def key_of(job: AnalyzeJob) -> str | None:
    """The name of a job's analysis in the cache; None where it is not to be kept there.

    Raises what the analysis would raise for a model, a recipe or samples that cannot be read.
    """
    if not job.cache or job.random_samples is not None:
        return None
    recipe, source = load_recipe(job.recipe, job.settings), load_model(job.model)
    calibration = open_source(recipe.samples.calibration, job.calibration, source.inputs(), limit=job.samples)
    compared = compared_samples(job, recipe, source)
    facts = [
        _ANALYZING,
        source.sha256,
        recipe.sha256,
        [recipe.samples.calibration.preprocess, recipe.samples.validation.preprocess],
        [stream.digest() for stream in (calibration, compared) if stream is not None],
        [_digest(path) for path in (job.plan, job.stats)],
        [job.by, job.compared, job.suggest, job.requantize_rest],
        msgspec.to_builtins(environment()),
    ]
    return key_of_facts(facts)


def find_analysis(key: str) -> Analysis | None:
    """What was found before, or None. A damaged file counts as none."""
    content = find_document(key)
    if content is None:
        return None
    try:
        return msgspec.json.decode(content, type=Analysis)
    except msgspec.MsgspecError:
        return None


def keep_analysis(key: str, analysis: Analysis) -> None:
    keep_document(key, msgspec.json.encode(analysis))


def _digest(path: Path | None) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else ""
