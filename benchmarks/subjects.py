"""The models that are measured, and where their samples are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.children import ROOT
from qcli.dataset import Dataset, open_dataset
from qcli.errors import UsageError, did_you_mean
from qcli.graph import load_model
from qcli.types import Noun

ZOO_VARIABLE = "QCLI_ZOO"

Preprocess = str | dict[str, Any] | None

_SAMPLE_MODELS = ("cnn", "mlp", "transformer")
_IMAGENET = ("mobilenetv2_imagenet", "squeezenet11_imagenet", "squeezenet11_fp16_selfmade")
_ZOO = (
    *_IMAGENET[:2], "resnet20_cifar10", "vit_mnist", "ultraface_rfb320", "super_resolution_x3", "oww_embedding_cnn",
)  # fmt: skip


class Subject(Noun, frozen=True, kw_only=True):
    """A float model with folders of samples; `preprocess` is for images."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    preprocess: Preprocess = None

    def settings(self) -> tuple[str, ...]:
        """What `qcli quantize` must be told about the samples."""
        if self.preprocess is None:
            return ()
        return ("--set", f"samples.calibration.preprocess={msgspec.json.encode(self.preprocess).decode()}")

    def evaluation_set(self, limit: int | None) -> Dataset:
        """The samples to judge by, spread evenly over the folder."""
        inputs = load_model(self.model).inputs()
        return open_dataset(self.evaluation, inputs, preprocess=self.preprocess, limit=limit)


def chosen_subjects(zoo: Path | None, names: str | None) -> list[Subject]:
    """The subjects named, comma-separated, or the usual ones; without a zoo those of sample_models/.

    Raises UsageError for a model that is not there.
    """
    usual = _SAMPLE_MODELS if zoo is None else _ZOO
    wanted = [name.strip() for name in names.split(",") if name.strip()] if names else usual
    return [subject(zoo, name) for name in wanted]


def sampled_subjects(zoo: Path | None, names: str | None) -> list[Subject]:
    """The subjects named, or all that have samples; without a zoo the usual ones of sample_models/."""
    if names or zoo is None:
        return chosen_subjects(zoo, names)
    every = [subject(zoo, path.parent.name) for path in sorted(zoo.glob("*/model.onnx"))]
    return [found for found in every if found.calibration.is_dir()]


def subject(zoo: Path | None, name: str) -> Subject:
    """One model of the zoo, or of sample_models/. Raises UsageError if it is not there."""
    folder = ROOT / "sample_models" if zoo is None else zoo
    model = folder / name / "model.onnx"
    if (folder / "odd" / f"{name}.onnx").is_file():
        model = folder / "odd" / f"{name}.onnx"
    if not model.is_file():
        known = sorted(path.parent.name for path in folder.glob("*/model.onnx"))
        raise UsageError(f"there is no model '{name}' in {folder}", did_you_mean(name, known))
    samples = folder / ("imagenet" if name in _IMAGENET and zoo is not None else name)
    return Subject(
        name=name,
        model=model,
        calibration=samples / "calib",
        evaluation=samples / "eval",
        preprocess=_preprocess(name, zoo),
    )


def zoo_folder(given: Path | None) -> Path | None:
    """`--zoo`, or the environment variable QCLI_ZOO, made absolute. Raises UsageError if it is no folder."""
    text = os.environ.get(ZOO_VARIABLE)
    folder = given or (Path(text) if text else None)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"there is no folder '{folder}'", "the zoo holds one folder a model, see its README.md")
    return folder.resolve() if folder is not None else None


def required_zoo(given: Path | None) -> Path:
    """The zoo. Raises UsageError without one."""
    folder = zoo_folder(given)
    if folder is None:
        raise UsageError("this benchmark needs the zoo", f"name its folder with --zoo or in {ZOO_VARIABLE}")
    return folder


def _preprocess(name: str, zoo: Path | None) -> Preprocess:
    if zoo is not None:
        return "imagenet" if name in _IMAGENET else None
    return {"channels": "gray", "preset": "unit"} if name == "cnn" else None
