"""Models in which one layer is spoiled on purpose, with samples on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from models import node, normal, proto_of, saved

CHANNELS = 16
SAMPLES = 12


def samples(folder: Path, *shape: int) -> Path:
    """Standard normal samples as .npz."""
    calib = folder / "calib"
    calib.mkdir()
    for seed in range(SAMPLES):
        np.savez(calib / f"{seed:02}.npz", x=normal(100 + seed, *shape))
    return calib


def chain(folder: Path, outlier: float = 1.0) -> Path:
    """Three products. One weight of the second is `outlier` times as large, and meets an input that is nearly zero."""
    weights = {f"w{index}": normal(index, CHANNELS, CHANNELS) / 4 for index in range(3)}
    weights["w0"][:, 0] /= outlier * 100
    weights["w1"][0, :] *= outlier
    nodes = [
        node("MatMul", "x w0", "a", name="/first/MatMul"),
        node("Relu", "a", "r"),
        node("MatMul", "r w1", "b", name="/second/MatMul"),
        node("Relu", "b", "s"),
        node("MatMul", "s w2", "y", name="/third/MatMul"),
    ]
    return saved(proto_of(nodes, {"x": [4, CHANNELS]}, {"y": [4, CHANNELS]}, weights), folder / "chain.onnx")


def convolutions(folder: Path, outlier: float = 1.0) -> Path:
    """Three convolutions. One channel of the second's result is `outlier` times as large, then divided by it again."""
    weights = {f"w{index}": normal(index, CHANNELS, CHANNELS, 1, 1) / 4 for index in range(3)}
    weights["w1"][3] *= outlier
    weights["w2"][:, 3] /= outlier
    nodes = [
        node("Conv", "x w0", "a", name="/first/Conv"),
        node("Relu", "a", "r"),
        node("Conv", "r w1", "b", name="/second/Conv"),
        node("Relu", "b", "s"),
        node("Conv", "s w2", "y", name="/third/Conv"),
    ]
    shape = [1, CHANNELS, 6, 6]
    return saved(proto_of(nodes, {"x": shape}, {"y": shape}, weights), folder / "convolutions.onnx")


def outlying(folder: Path, factor: float = 60.0) -> tuple[Path, Path]:
    """A product of 96 channels, two of which are `factor` times the others, and its samples."""
    weight = normal(0, 96, CHANNELS) / 10
    weight[[5, 70]] /= factor
    calib = folder / "calib"
    calib.mkdir()
    for seed in range(SAMPLES):
        x = normal(100 + seed, 8, 96)
        x[:, [5, 70]] *= factor
        np.savez(calib / f"{seed:02}.npz", x=x)
    nodes = [node("MatMul", "x w", "y", name="/product/MatMul")]
    return saved(proto_of(nodes, {"x": [8, 96]}, {"y": None}, {"w": weight}), folder / "outlying.onnx"), calib


def joined(folder: Path, factor: float = 60.0) -> Path:
    """Two convolutions whose results a Concat puts under one scale; the second's are `factor` times the first's."""
    weights = {f"w{index}": normal(index, CHANNELS, CHANNELS, 1, 1) / 4 for index in range(2)}
    weights["w1"] *= factor
    weights["v"] = normal(2, CHANNELS, 2 * CHANNELS, 1, 1) / 4
    weights["v"][:, CHANNELS:] /= factor
    nodes = [
        node("Conv", "x w0", "a", name="/left/Conv"),
        node("Conv", "x w1", "b", name="/right/Conv"),
        node("Concat", "a b", "c", axis=1, name="/Concat"),
        node("Conv", "c v", "y", name="/last/Conv"),
    ]
    shape = [1, CHANNELS, 6, 6]
    return saved(proto_of(nodes, {"x": shape}, {"y": shape}, weights), folder / "joined.onnx")
