"""The handwritten digits: splitting, shifting, and writing and reading them as sample folders."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Layout = Callable[[Pixels], Floats]

CALIBRATION_SAMPLES = 100
EVALUATION_SAMPLES = 360
SEED = 20240229


@dataclass(frozen=True)
class Digits:
    """Images as `[n, 8, 8]` bytes, their labels, and where each stands in scikit-learn's order."""

    pixels: Pixels
    labels: Labels
    indices: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: NDArray[np.intp]) -> Digits:
        return Digits(self.pixels[chosen], self.labels[chosen], self.indices[chosen])


@dataclass(frozen=True)
class Split:
    """`calibration` is a part of `train`; `evaluation` shares nothing with either."""

    train: Digits
    calibration: Digits
    evaluation: Digits


def load_split() -> Split:
    train, evaluation = _parted(_load(), EVALUATION_SAMPLES)
    _, calibration = _parted(train, CALIBRATION_SAMPLES)
    return Split(train, calibration, evaluation)


def _load() -> Digits:
    """scikit-learn gives ink as 0..16; an 8-bit image wants 0..255."""
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Digits(pixels, labels.astype(np.int64), np.arange(len(labels), dtype=np.int64))


def _parted(digits: Digits, size: int) -> tuple[Digits, Digits]:
    """All but `size` digits, and `size` of them; every class in proportion, the original order kept."""
    positions = np.arange(len(digits), dtype=np.intp)
    rest, part = train_test_split(positions, test_size=size, stratify=digits.labels, random_state=SEED)
    return digits.take(np.sort(rest)), digits.take(np.sort(part))


def shifted(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Each image moved by at most one pixel along each axis, empty at the edge it left."""
    padded = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (8, 8), axis=(1, 2))
    down, right = random.integers(0, 3, size=(2, len(pixels)))
    moved: Pixels = windows[np.arange(len(pixels)), down, right]
    return moved


def unit(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) / np.float32(255)


def doubled(pixels: Pixels) -> Pixels:
    """`[n, 8, 8]` to `[n, 16, 16]`, nearest neighbour."""
    return pixels.repeat(2, axis=1).repeat(2, axis=2)


def as_rows(pixels: Pixels) -> Floats:
    """`[n, 8, 8]` in 0..1: a sequence of eight rows."""
    return unit(pixels)


def as_vector(pixels: Pixels) -> Floats:
    """`[n, 64]` in 0..1."""
    return unit(pixels).reshape(-1, 64)


@dataclass(frozen=True)
class PngSamples:
    """One 16x16 grayscale PNG a digit; the reader brings it to 0..1 itself."""

    suffix = ".png"

    def layout(self, pixels: Pixels) -> Floats:
        """`[n, 1, 16, 16]` in 0..1."""
        return unit(doubled(pixels))[:, np.newaxis]

    def write(self, path: Path, pixels: Pixels) -> None:
        Image.fromarray(doubled(pixels)[0]).save(path, optimize=True)

    def read(self, path: Path) -> Floats:
        with Image.open(path) as image:
            return unit(np.asarray(image, dtype=np.uint8))[np.newaxis, np.newaxis]


@dataclass(frozen=True)
class NpzSamples:
    """One npz a digit: a single float32 array, batch axis included, under the name of the model's input."""

    key: str
    layout: Layout

    suffix = ".npz"

    def write(self, path: Path, pixels: Pixels) -> None:
        arrays: dict[str, Any] = {self.key: self.layout(pixels)}
        np.savez_compressed(path, **arrays)

    def read(self, path: Path) -> Floats:
        with np.load(path, allow_pickle=False) as arrays:
            values: Floats = arrays[self.key]
        return values


Samples = PngSamples | NpzSamples


def write_samples(folder: Path, digits: Digits, samples: Samples) -> list[str]:
    """Fill `folder` with one file a digit, drop what was there, and return the names in order."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"digit_{index:04d}{samples.suffix}" for index in digits.indices]
    for name, image in zip(names, digits.pixels, strict=True):
        samples.write(folder / name, image[np.newaxis])
    return names


def write_labels(folder: Path, names: Sequence[str], labels: Labels) -> None:
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("file", "label"))
        table.writerows(zip(names, labels.tolist(), strict=True))


def read_labelled(folder: Path, samples: Samples) -> list[tuple[Floats, int]]:
    """Every file that `labels.csv` names, as the model wants it, with its label."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        return [(samples.read(folder / row["file"]), int(row["label"])) for row in csv.DictReader(file)]
