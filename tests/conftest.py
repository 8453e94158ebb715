"""Sample models and what onnxruntime's own quantizer makes of them, made once for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import settings

from qcli.dataset import Dataset, Sample, open_dataset
from qcli.graph import load_model, normalize_graph, save_model
from qcli.types import Array

SAMPLE_MODELS = Path(__file__).parent.parent / "sample_models"

_CALIBRATION_SAMPLES = 32

settings.register_profile("ci", derandomize=True, deadline=None)
if "CI" in os.environ:  # a build fails for what was changed, not for luck; new examples are found at developers' desks
    settings.load_profile("ci")


def model_path(name: str) -> Path:
    """The file of a sample model: cnn, transformer, gru or mlp."""
    return SAMPLE_MODELS / name / "model.onnx"


def dataset(name: str, part: str = "eval", limit: int | None = None) -> Dataset:
    """The samples of a sample model; `part` is calib or eval."""
    preprocess = {"channels": "gray", "preset": "unit"}
    inputs = load_model(model_path(name)).inputs()
    return open_dataset(SAMPLE_MODELS / name / part, inputs, preprocess=preprocess, limit=limit)


def first_sample(name: str) -> Sample:
    return next(iter(dataset(name)))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCLI_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def quantized_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantize("cnn", tmp_path_factory.mktemp("cnn"))


@pytest.fixture(scope="session")
def quantized_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantize("transformer", tmp_path_factory.mktemp("transformer"))


@pytest.fixture(scope="session")
def quantized_gru(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantize("gru", tmp_path_factory.mktemp("gru"))


@pytest.fixture(scope="session")
def quantized_mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _quantize("mlp", tmp_path_factory.mktemp("mlp"))


@pytest.fixture(scope="session")
def saturating_cnn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cnn with weights of the full 8-bit range, whose products overflow on x86 without VNNI."""
    return _quantize("cnn", tmp_path_factory.mktemp("saturating"), reduce_range=False)


class _Calibration:
    """Feeds for onnxruntime's calibration."""

    def __init__(self, name: str) -> None:
        self._samples = islice(dataset(name, "calib"), _CALIBRATION_SAMPLES)

    def get_next(self) -> Mapping[str, Array] | None:
        sample = next(self._samples, None)
        return None if sample is None else sample.feeds


def _quantize(name: str, folder: Path, *, reduce_range: bool = True) -> Path:
    """A sample model quantized by onnxruntime: QDQ, uint8 activations, int8 weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    normal = load_model(model_path(name))
    normalize_graph(normal)
    save_model(normal, folder / "normal.onnx")
    logging.disable(logging.WARNING)  # it recommends its own preprocessing
    try:
        quantize_static(
            folder / "normal.onnx",
            folder / "quantized.onnx",
            _Calibration(name),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    return folder / "quantized.onnx"
