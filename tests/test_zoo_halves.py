"""16 bits on real models. They are not in this repository: QCLI_ZOO names their folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.report import Report

ZOO = Path(os.environ.get("QCLI_ZOO", Path(__file__).parent.parent.parent / "shared" / "zoo"))

pytestmark = [pytest.mark.zoo, pytest.mark.skipif(not ZOO.is_dir(), reason=f"{ZOO} is missing")]


def converted(name: str, folder: Path, settings: tuple[str, ...], samples: Path | None) -> Report:
    job = QuantizeJob(
        model=ZOO / name / "model.onnx",
        recipe="fp16",
        output=folder / "o.onnx",
        settings=settings,
        calibration=samples / "calib" if samples is not None else None,
        evaluation=samples / "eval" if samples is not None else None,
        random_samples=2 if samples is None else None,
        samples=8 if samples is not None else None,
        latency=False,
        cache=False,
    )
    return quantize(job)


def test_mobilenet_takes_half_of_the_bytes(tmp_path: Path) -> None:
    settings = ("samples.calibration.preprocess=imagenet", "samples.validation.limit=40")
    report = converted("mobilenetv2_imagenet", tmp_path, settings, ZOO / "imagenet")
    assert report.size is not None and report.size.ratio <= 0.51
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) >= 45 and report.accuracy.agreement == 1


@pytest.mark.parametrize(("name", "floor"), [("vit_mnist", 60.0), ("resnet20_cifar10", 50.0)])
def test_networks_compute_in_float16(name: str, floor: float, tmp_path: Path) -> None:
    settings = ("convert.to=float16", "samples.validation.limit=40")
    report = converted(name, tmp_path, settings, ZOO / name)
    assert report.accuracy is not None and (report.accuracy.sqnr or 0) >= floor
    assert report.conversion is not None and (report.conversion.sqnr or 0) >= floor and report.conversion.nodes > 50


@pytest.mark.parametrize("name", ["nsnet2_gru", "nnsplit_byte_lstm"])
def test_models_on_which_onnxruntime_crashed(name: str, tmp_path: Path) -> None:
    """Converted as it comes, the first ends the process in onnxruntime 1.31.1."""
    report = converted(name, tmp_path, ("convert.to=float16",), None)
    assert report.status == "passed" and report.accuracy is not None and (report.accuracy.sqnr or 0) > 50
