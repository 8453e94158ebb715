"""The samples that an analysis compares on."""

from __future__ import annotations

import msgspec

from qcli.analysis.nouns import AnalyzeJob
from qcli.errors import NothingToDoError
from qcli.graph import Model
from qcli.recipe import Recipe
from qcli.sources import SampleStream, open_source, random_source


def compared_samples(job: AnalyzeJob, recipe: Recipe, source: Model) -> SampleStream:
    """The samples that variants run on. Raises NothingToDoError if neither the job nor the recipe names any."""
    sources, inputs = recipe.samples, source.inputs()
    judged = sources.validation
    if judged.preprocess is None:
        judged = msgspec.structs.replace(judged, preprocess=sources.calibration.preprocess)
    found = open_source(judged, job.evaluation, inputs, limit=job.compared)
    if found is None and job.random_samples is not None:
        return random_source(inputs, min(job.random_samples, job.compared))
    limit = min(job.compared, job.samples or sources.calibration.limit or job.compared)
    found = found or open_source(sources.calibration, job.calibration, inputs, limit=limit)
    if found is None:
        raise NothingToDoError("an analysis needs samples", "name a folder with -d, or 'samples' in the recipe")
    return found
