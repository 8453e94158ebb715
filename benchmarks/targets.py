"""The acceptance list: what presets must reach on each model of the zoo, as gates on the report."""

from __future__ import annotations

from qcli.types import Noun


class Target(Noun, frozen=True, kw_only=True):
    """One model and preset: gates, how many calibration samples (None: all), and whether it is compared."""

    model: str
    recipe: str = "int8"
    gates: tuple[str, ...]
    samples: int | None = None
    against_peer: bool = True


TARGETS = (
    Target(
        model="mobilenetv2_imagenet",
        samples=100,
        gates=(
            "kernels.integer_share >= 0.99",
            "latency.speedup >= 1.85",
            "accuracy.sqnr >= 16.5",
            "accuracy.agreement >= 0.945",
            "accuracy.top1.drop <= 0.015",
            "size.ratio <= 0.28",
        ),
    ),
    Target(
        model="squeezenet11_imagenet",
        samples=100,
        gates=("accuracy.sqnr >= 29", "latency.speedup >= 2.2", "size.ratio <= 0.27"),
    ),
    Target(model="resnet20_cifar10", gates=("accuracy.sqnr >= 27.5", "latency.speedup >= 2.1")),
    Target(model="vit_mnist", gates=("accuracy.sqnr >= 28", "latency.speedup >= 1.25")),
    Target(
        model="ultraface_rfb320",
        gates=("accuracy.sqnr >= 38", "latency.speedup >= 2.3", "size.ratio <= 0.38"),
    ),
    Target(model="super_resolution_x3", gates=("accuracy.sqnr >= 26", "latency.speedup >= 3.0")),
    Target(model="oww_embedding_cnn", gates=("accuracy.sqnr >= 24", "latency.speedup >= 1.7")),
    Target(
        model="mnist_cntk",
        gates=("size.ratio <= 0.6", "accuracy.agreement >= 0.97"),
        against_peer=False,
    ),
    Target(
        model="mnist_mlp_pytorch",
        gates=("size.ratio <= 0.45", "accuracy.agreement >= 0.97"),
        against_peer=False,
    ),
    Target(
        model="ppocr_cls",
        gates=("size.ratio <= 0.45", "accuracy.agreement >= 0.97"),
        against_peer=False,
    ),
    *(
        Target(model=model, recipe=recipe, gates=gates, against_peer=False)
        for model, recipe, gates in (
            ("nsnet2_gru", "int8", ("size.ratio <= 0.26", "accuracy.sqnr >= 40", "latency.speedup >= 0.95")),
            ("silero_vad", "int8", ("size.ratio <= 0.32", "accuracy.sqnr >= 20")),
            ("dtln_lstm1", "int8", ("size.ratio <= 0.32", "accuracy.sqnr >= 25")),
            ("nnsplit_byte_lstm", "int8", ("size.ratio <= 0.32", "accuracy.sqnr >= 25")),
            ("aidreams_llama_lm", "int8-transformer", ("size.ratio <= 0.40", "accuracy.sqnr >= 28")),
            ("minilm", "int8-transformer", ("size.ratio <= 0.27", "accuracy.sqnr >= 18", "latency.speedup >= 2.0")),
            ("vit_mnist", "int8-transformer", ("accuracy.sqnr >= 40", "latency.speedup >= 1.30")),
            ("oww_alexa_mlp", "int8", ("size.ratio <= 0.45", "accuracy.sqnr >= 20", "latency.speedup >= 1.0")),
            ("oww_melspectrogram", "int8", ("size.ratio <= 0.45", "accuracy.sqnr >= 40")),
            ("squeezenet11_fp16_selfmade", "int8", ("size.ratio <= 0.55", "accuracy.sqnr >= 28")),
        )
    ),
)

SAME_BYTES = ("mobilenetv2_imagenet", "vit_mnist")
"""Where the same command must give the same bytes: convolutions, and the sums of MatMul, LayerNormalization."""

HELP_SECONDS = 0.3
HEAVY = ("onnx", "onnx_ir", "onnxruntime", "numpy", "torch")
"""What `qcli --help` must not import."""
