"""Recipes settled on the sample models, as a search does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import SAMPLE_MODELS

from qcli import TuneJob
from qcli.tuning.base import Base, settle
from qcli.watch import Watch

GRAY = "samples.calibration.preprocess={channels: gray, preset: unit}"


def tune_job(folder: Path, name: str = "cnn", **options: Any) -> TuneJob:
    """A job on few samples of a sample model, alone on one thread."""
    facts: dict[str, Any] = {
        "model": SAMPLE_MODELS / name / "model.onnx",
        "calibration": SAMPLE_MODELS / name / "calib",
        "settings": (GRAY,) if name == "cnn" else (),
        "recipe": "int8-minmax",
        "samples": 16,
        "output": folder / "out.onnx",
        "threads": 1,
        "time_limit": 30.0,
        **options,
    }
    return TuneJob(**facts)


def settled(folder: Path, name: str, recipe: str) -> tuple[TuneJob, Base]:
    job = tune_job(folder, name, recipe=recipe, samples=8, cache=False)
    return job, settle(job, recipe, Watch())
