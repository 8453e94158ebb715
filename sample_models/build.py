"""Train the sample models and write each of them with its samples: `python sample_models/build.py`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import data
import graphs
import networks
import numpy as np
import onnx
import onnxruntime as ort  # type: ignore[import-untyped]
from torch import nn

HERE = Path(__file__).resolve().parent
MOST_BYTES = 300_000
LEAST_ACCURACY = 0.96
TOLERANCE = 1e-4

RECIPE = """\
version: 1
extends: int8
samples:
  calibration: {path: calib/, preprocess: {channels: gray, preset: unit}}
  validation: {path: eval/, preprocess: {channels: gray, preset: unit}}
"""


@dataclass(frozen=True)
class Spec:
    """One sample model: its network, its graph, its samples, and how long it trains."""

    name: str
    network: type[nn.Module]
    graph: Callable[[graphs.Weights], onnx.ModelProto]
    samples: data.Samples
    epochs: int
    recipe: str = ""


SPECS = (
    Spec("cnn", networks.Cnn, graphs.cnn, data.PngSamples(), 25, RECIPE),
    Spec(
        "transformer",
        networks.Transformer,
        partial(graphs.transformer, heads=networks.Transformer.heads),
        data.NpzSamples("rows", data.as_rows),
        80,
    ),
    Spec("gru", networks.Gru, graphs.gru, data.NpzSamples("rows", data.as_rows), 60),
    Spec("mlp", networks.Mlp, graphs.mlp, data.NpzSamples("pixels", data.as_vector), 80),
)


def main() -> None:
    names = _arguments().only
    split = data.load_split()
    print(f"{'model':12} {'bytes':>8} {'top-1':>7}", flush=True)
    for spec in SPECS:
        if spec.name in names:
            size, accuracy = build(spec, split)
            print(f"{spec.name:12} {size:8} {accuracy:7.4f}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [spec.name for spec in SPECS]
    some = f"some of: {', '.join(names)}"
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="MODEL", help=some)
    return parser.parse_args()


def build(spec: Spec, split: data.Split) -> tuple[int, float]:
    """Train, write and verify one model; its size in bytes and its accuracy on the files it comes with."""
    folder = HERE / spec.name
    network = networks.train(spec.network, split.train, spec.samples.layout, spec.epochs)
    _write(spec, split, spec.graph(networks.weights(network)), folder)
    session = _session(folder / "model.onnx")
    _require_same(spec, network, session, split.evaluation)
    return _size(folder / "model.onnx"), _accuracy(session, folder / "eval", spec.samples)


def _write(spec: Spec, split: data.Split, model: onnx.ModelProto, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    data.write_samples(folder / "calib", split.calibration, spec.samples)
    names = data.write_samples(folder / "eval", split.evaluation, spec.samples)
    data.write_labels(folder / "eval", names, split.evaluation.labels)
    if spec.recipe:
        (folder / "recipe.yaml").write_text(spec.recipe, encoding="utf-8", newline="\n")


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(session: ort.InferenceSession, inputs: data.Floats) -> data.Floats:
    (source,) = session.get_inputs()
    logits: data.Floats = session.run(["logits"], {source.name: inputs})[0]
    return logits


def _require_same(spec: Spec, network: nn.Module, session: ort.InferenceSession, digits: data.Digits) -> None:
    """onnxruntime must give what torch gives, for a batch of one and for all digits at once."""
    inputs = spec.samples.layout(digits.pixels)
    for batch in (inputs[:1], inputs):
        difference = float(np.abs(_run(session, batch) - networks.predict(network, batch)).max())
        if difference > TOLERANCE:
            raise SystemExit(f"error: {spec.name}: onnxruntime and torch differ by {difference:.2e}")


def _size(path: Path) -> int:
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise SystemExit(f"error: {path.name} of {path.parent.name} has {size} bytes, more than {MOST_BYTES}")
    return size


def _accuracy(session: ort.InferenceSession, folder: Path, samples: data.Samples) -> float:
    """The share of the labelled files, read back one by one, whose largest logit is the label's."""
    labelled = data.read_labelled(folder, samples)
    hits = sum(int(_run(session, inputs).argmax()) == label for inputs, label in labelled)
    accuracy = hits / len(labelled)
    if accuracy < LEAST_ACCURACY:
        raise SystemExit(f"error: {folder.parent.name}: top-1 is {accuracy:.4f}, below {LEAST_ACCURACY}")
    return accuracy


if __name__ == "__main__":
    main()
