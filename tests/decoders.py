"""A tiny decoder on the disk, with samples, and the thresholds at which it counts as large."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.decoder_model import DecoderShape, write_decoder, write_samples
from qcli.graph import on_disk, parts

SHAPE = DecoderShape(layers=2, width=64, inner=96, heads=4, groups=2, vocabulary=120, positions=64)


def decoder_in(folder: Path, *, samples: int = 4, length: int = 20) -> Path:
    """The model; its samples are beside it in `calib`."""
    write_samples(folder / "calib", SHAPE, count=samples, length=length)
    return write_decoder(folder, SHAPE)


def count_as_large(monkeypatch: pytest.MonkeyPatch, part: int = 40_000) -> None:
    monkeypatch.setattr(on_disk, "LARGE_BYTES", 10_000)
    monkeypatch.setattr(on_disk, "STORED_BYTES", 4_000)
    monkeypatch.setattr(parts, "PART_BYTES", part)
