"""Real models. They are not in this repository: QCLI_ZOO names their folder, else ../shared/zoo beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import onnx
import pytest
from models import feeds_for, run

from qcli.analysis.nouns import AnalyzeJob
from qcli.analysis.work import analyze
from qcli.errors import InputError, NothingToDoError, QcliError, UnsupportedError
from qcli.graph import load_model
from qcli.job import QuantizeJob
from qcli.pipeline import quantize
from qcli.report import Report

ROOT = Path(__file__).parent.parent
ZOO = Path(os.environ.get("QCLI_ZOO", ROOT.parent / "shared" / "zoo"))

pytestmark = [pytest.mark.zoo, pytest.mark.skipif(not ZOO.is_dir(), reason=f"{ZOO} is missing")]

SAMPLES = 24

EVALUATED = {"resnet20_cifar10": 200, "oww_embedding_cnn": 96}
"""Where 24 samples say too little: of 5,000 random choices of 24, 1 % lie below 26.5 dB and 5 % above 31.2 dB; the 24
that are spread evenly give 26.2 dB, all 500 give 29.4 dB, and 200 give 29.3 dB."""

IMAGENET = ("mobilenetv2_imagenet", "squeezenet11_imagenet")

FLOORS = {
    "mobilenetv2_imagenet": (15.5, 0.99),
    "squeezenet11_imagenet": (29.0, 0.99),
    "resnet20_cifar10": (27.5, 0.99),
    "vit_mnist": (34.0, 0.75),  # products of two activations stay float
    "ultraface_rfb320": (40.0, 0.99),
    "super_resolution_x3": (34.0, 0.99),
    "oww_embedding_cnn": (24.0, 0.99),
    "mnist_cntk": (36.0, 0.99),
    "mnist_mlp_pytorch": (34.0, 0.99),
    "oww_alexa_mlp": (15.0, 0.99),
    "ppocr_cls": (20.0, 0.7),  # depthwise layers between float hard swishes stay float: 1.3x in place of 0.8x
}
"""The least signal-to-noise ratio (dB), a bit below that of all samples, and share of products in integers."""


def first_files(folder: Path, into: Path, count: int = SAMPLES) -> Path:
    """Links to a few samples, spread evenly, and to the labels."""
    into.mkdir()
    files = sorted(path for path in folder.iterdir() if path.suffix in (".npz", ".JPEG", ".jpeg", ".jpg"))
    for index in range(min(count, len(files))):
        file = files[index * len(files) // min(count, len(files))]
        (into / file.name).symlink_to(file)
    return into


def job(name: str, folder: Path, **options: Any) -> QuantizeJob:
    samples = ZOO / ("imagenet" if name in IMAGENET else name)
    settings = ("samples.calibration.preprocess=imagenet",) if name in IMAGENET else ()
    base: dict[str, Any] = {
        "model": ZOO / name / "model.onnx",
        "settings": settings,
        "calibration": samples / "calib",
        "evaluation": first_files(samples / "eval", folder / "eval", EVALUATED.get(name, SAMPLES)),
        "output": folder / "out.onnx",
        "samples": SAMPLES,
        "latency": False,
        "cache": False,
        "threads": 2,
    }
    return QuantizeJob(**{**base, **options})


def ran(report: Report, output: Path) -> None:
    """The result is there, valid, and smaller."""
    onnx.checker.check_model(str(output), full_check=True)
    assert report.size is not None and report.size.ratio < 1
    assert report.kernels is not None and report.kernels.agreement_with_unoptimized is not None
    assert report.kernels.agreement_with_unoptimized.agree, report.kernels.agreement_with_unoptimized


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOORS)
def test_a_real_model(tmp_path: Path, name: str) -> None:
    report = quantize(job(name, tmp_path))
    ran(report, tmp_path / "out.onnx")
    sqnr, share = FLOORS[name]
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.kernels is not None
    assert report.accuracy.sqnr >= sqnr
    assert report.kernels.integer_share >= share, report.kernels.kept_float
    assert (
        report.samples is not None and report.samples.calibration is not None and report.samples.calibration <= SAMPLES
    )


OTHERS = {
    ("nsnet2_gru", "int8"): (40.0, 0.26),
    ("nsnet2_gru", "int8-weights"): (40.0, 0.26),
    ("silero_vad", "int8"): (20.0, 0.32),
    ("silero_vad", "int8-weights"): (35.0, 0.32),
    ("dtln_lstm1", "int8"): (25.0, 0.32),
    ("dtln_lstm1", "int8-weights"): (35.0, 0.32),
    ("nnsplit_byte_lstm", "int8"): (25.0, 0.32),
    ("aidreams_llama_lm", "int8-transformer"): (28.0, 0.40),
    ("vit_mnist", "int8-transformer"): (38.0, 0.30),
    ("vit_mnist", "int8-weights"): (45.0, 0.29),
    ("oww_melspectrogram", "int8"): (40.0, 0.45),
    ("oww_melspectrogram", "int8-dynamic"): (40.0, 0.45),
    ("mobilenetv2_imagenet", "int8-weights"): (25.0, 0.27),
    ("ppocr_cls", "int8-weights"): (30.0, 0.40),
    ("ultraface_rfb320", "int8-weights"): (40.0, 0.35),  # its table of anchors, 6 % of the file, stays float
}
"""The least signal-to-noise ratio (dB) and the largest share of the float model's bytes, by model and preset."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), OTHERS)
def test_a_real_model_with_another_preset(tmp_path: Path, name: str, recipe: str) -> None:
    report = quantize(job(name, tmp_path, recipe=recipe))
    onnx.checker.check_model(str(tmp_path / "out.onnx"), full_check=True)
    sqnr, size = OTHERS[name, recipe]
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.size is not None
    assert report.accuracy.sqnr >= sqnr
    assert report.size.ratio <= size
    assert report.kernels is not None and all(item.reason for item in report.kernels.kept_float)


@pytest.mark.slow
@pytest.mark.skipif(not (ZOO / "minilm").is_dir(), reason="this zoo has no minilm")
@pytest.mark.parametrize(("level", "least"), [(0, 33.0), (4, 29.0)])
def test_a_sentence_encoder_in_blocks(tmp_path: Path, level: int, least: float) -> None:
    grid = "{format: int8, granularity: block, block: 32}"
    encoding = f"{{matmul_nbits: {{accuracy_level: {level}}}}}"
    rule = f"rules=[{{match: {{op: [MatMul, Gemm], role: weight}}, grid: {grid}, encoding: {encoding}}}]"
    report = quantize(job("minilm", tmp_path, recipe="int8-weights", settings=(rule,)))
    ran(report, tmp_path / "out.onnx")
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.accuracy.sqnr >= least
    assert report.kernels is not None and report.kernels.by_kernel["MatMulNBits"] == 36
    assert (report.kernels.integer_share > 0.9) is (level == 4)


@pytest.mark.slow
def test_a_float16_model_keeps_its_inputs_and_outputs(tmp_path: Path) -> None:
    model = ZOO / "odd" / "squeezenet11_fp16_selfmade.onnx"
    report = quantize(job("squeezenet11_imagenet", tmp_path, model=model))
    assert report.accuracy is not None and report.accuracy.sqnr is not None and report.size is not None
    assert report.accuracy.sqnr >= 28 and report.size.ratio <= 0.55
    assert load_model(tmp_path / "out.onnx").inputs() == load_model(model).inputs()


def test_a_branch_that_no_sample_takes_says_so(tmp_path: Path) -> None:
    report = quantize(job("silero_vad", tmp_path, samples=8))
    assert report.kernels is not None
    reasons = {item.reason for item in report.kernels.kept_float}
    assert any("no sample reached it; its weight is stored as int8" in reason for reason in reasons)


ANALYZED = {
    ("mobilenetv2_imagenet", "int8-minmax"): ("activations", 2.0),
    ("resnet20_cifar10", "int8"): ("activations", 1.0),
    ("silero_vad", "int8"): ("activations", 1.0),
    ("nnsplit_byte_lstm", "int8-dynamic"): ("both", 2.0),
    ("nsnet2_gru", "int8-weights"): ("weights", 0.5),
}
"""What an analysis blames, and by how many dB at most what it simulates differs from what runs."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recipe"), ANALYZED)
def test_an_analysis_of_a_real_model(tmp_path: Path, name: str, recipe: str) -> None:
    given = job(name, tmp_path, recipe=recipe, evaluation=None, output=None)
    common = {field: getattr(given, field) for field in ("model", "settings", "calibration", "recipe", "samples")}
    asked = AnalyzeJob(**common, by="block", compared=2, suggest=False, cache=False, threads=2)
    found = analyze(asked)
    blame, apart = ANALYZED[name, recipe]
    assert found.blame == blame
    assert found.whole.simulated == pytest.approx(found.whole.quantized, abs=apart)
    assert found.whole.float_check > 100
    assert found.rows[0].gain > 0.5


def test_a_prequantized_model_is_recognised(tmp_path: Path) -> None:
    model = ZOO / "mnist_cntk_prequantized" / "model.onnx"
    with pytest.raises(UnsupportedError, match="already quantized"):
        quantize(job("mnist_cntk", tmp_path, model=model))


ODD: dict[str, type[QcliError] | None] = {
    "conv_relu_single.onnx": NothingToDoError,
    "external_data/mlp.onnx": None,
    "gru_gonnx.onnx": NothingToDoError,
    "lfs_pointer.onnx": InputError,
    "lgbm_classifier.onnx": NothingToDoError,
    "lstm_k1_b1_r1.onnx": NothingToDoError,
    "magika_fast_v2_1.onnx": None,
    "missing_external/resnet18.onnx": InputError,
    "mobilenetv2_qdq_uint8.onnx": UnsupportedError,
    "nodes_out_of_order.onnx": NothingToDoError,  # one Slice, in front of it the Constants that it reads
    "qtdnn_i32_bias.onnx": UnsupportedError,
    "squeezenet11_fp16_selfmade.onnx": None,
    "sr_prepost_ortext_op18.onnx": QcliError,
}
"""How each file of odd/ ends: with an error of this class, or with a result."""


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_ends_well(tmp_path: Path, name: str) -> None:
    before = sorted(os.listdir((ZOO / "odd" / name).parent))
    wanted = QuantizeJob(
        model=ZOO / "odd" / name,
        output=tmp_path / "out.onnx",
        random_samples=4,
        latency=False,
        cache=False,
        threads=2,
    )
    expected = ODD[name]
    if expected is None:
        report = quantize(wanted)
        ran(report, tmp_path / "out.onnx")
        feeds = feeds_for(load_model(ZOO / "odd" / name), free=1)
        run((tmp_path / "out.onnx").read_bytes(), feeds, optimize=True)
    else:
        with pytest.raises(expected) as caught:
            quantize(wanted)
        assert caught.value.hint and "\n" not in caught.value.message
        assert os.listdir(tmp_path) == []
    assert sorted(os.listdir((ZOO / "odd" / name).parent)) == before


def test_every_odd_file_is_in_the_list() -> None:
    found = {str(path.relative_to(ZOO / "odd")) for path in (ZOO / "odd").rglob("*.onnx")}
    assert found == set(ODD)
