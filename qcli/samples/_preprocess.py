"""From an 8-bit image to the values a model takes: geometry, channel order, scale.

value = (pixel * scale - mean) / std          pixel 0..255; mean and std by output channel, or one for all
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from qcli.configure import convert
from qcli.errors import UsageError, did_you_mean
from qcli.types import FloatArray, Noun

MAX_PIXELS = 64_000_000
"""No image may have more pixels than this, neither as stored nor after a resize."""

Pixels = npt.NDArray[np.uint8]
Size = int | tuple[int, int]

_IMAGENET_GEOMETRY = {"resize": 256, "center_crop": 224}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "imagenet": _IMAGENET_GEOMETRY | {"scale": 1 / 255, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "imagenet-tf": _IMAGENET_GEOMETRY | {"scale": 1 / 127.5, "mean": 1.0, "layout": "nhwc"},
    "raw": {},
    "symmetric": {"scale": 1 / 127.5, "mean": 1.0},
    "unit": {"scale": 1 / 255},
}
"""Values: imagenet by ImageNet mean and std; imagenet-tf and symmetric -1..1; unit 0..1; raw 0..255."""


class Preprocess(Noun, frozen=True, kw_only=True):
    """What happens to an image before it is a model input.

    `resize`: the length of the shorter side (the other follows), or [height, width]; bilinear, antialiased.
    `center_crop`: the side of a square, or [height, width]. An image that has the crop's size already is not
    resized. `channels` is the order of the output, so `mean` and `std` follow it.
    """

    resize: Size | None = None
    center_crop: Size | None = None
    layout: Literal["nchw", "nhwc"] = "nchw"
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    scale: float = 1.0
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if isinstance(values, tuple) and len(values) != self.channel_count:
                takes = f"channels '{self.channels}' takes {self.channel_count}"
                raise ValueError(f"{key} has {len(values)} values, {takes}")
        # Not as msgspec constraints: beside a tuple of fixed length 0.22 reads the wrong ones, and crashes.
        if min(*(_pair(self.resize) or (1, 1)), *(_pair(self.center_crop) or (1, 1))) < 1:
            raise ValueError("resize and center_crop must be at least 1")
        if self.scale == 0 or 0 in self._each(self.std):
            raise ValueError("scale and std must not be 0")
        if not (np.isfinite(self._each(self.std)).all() and np.isfinite(self._table()).all()):
            raise ValueError("scale, mean and std must give finite values")

    @property
    def channel_count(self) -> int:
        return 1 if self.channels == "gray" else 3

    @property
    def mode(self) -> str:
        """Pillow's name for the pixels that are needed."""
        return "L" if self.channels == "gray" else "RGB"

    @property
    def keeps_codes(self) -> bool:
        """Whether values are the stored codes 0..255, so that a uint8 input can take them."""
        return self.scale == 1 and set(self._each(self.mean)) == {0} and set(self._each(self.std)) == {1}

    def pixels(self, image: Image.Image) -> Pixels:
        """[height, width, channels] after geometry and channel order. Raises ValueError if it cannot."""
        shaped = self._shaped(image.convert(self.mode))
        codes = np.asarray(shaped, dtype=np.uint8).reshape(shaped.height, shaped.width, self.channel_count)
        return codes[:, :, ::-1] if self.channels == "bgr" else codes

    def values(self, pixels: Pixels) -> FloatArray:
        """[height, width, channels] float32, each the correctly rounded (pixel * scale - mean) / std."""
        return self._table()[pixels, np.arange(self.channel_count)]

    def values_of_codes(self) -> FloatArray:
        """[256, channels] float32: what each code of a pixel becomes."""
        return self._table()

    def _table(self) -> FloatArray:
        """[256, channels]: the value of each code, computed in float64 and rounded once."""
        codes = np.arange(256, dtype=np.float64)[:, None]
        with np.errstate(all="ignore"):
            table = (codes * self.scale - self._each(self.mean)) / self._each(self.std)
            return table.astype(np.float32)

    def _shaped(self, image: Image.Image) -> Image.Image:
        crop = _pair(self.center_crop)
        if crop == (image.height, image.width):
            return image
        if self.resize is not None:
            image = _resized(image, self.resize)
        return image if crop is None else _cropped(image, crop)

    def _each(self, values: float | tuple[float, ...]) -> tuple[float, ...]:
        return values if isinstance(values, tuple) else (values,) * self.channel_count


def parse(written: str | Mapping[str, Any]) -> Preprocess:
    """A preset's name, or a mapping that changes keys of its `preset` (default raw). Raises UsageError."""
    changes = {"preset": written} if isinstance(written, str) else dict(written)
    preset = str(changes.pop("preset", "raw"))
    if preset not in PRESETS:
        raise UsageError(f"unknown preprocess preset '{preset}'", did_you_mean(preset, PRESETS))
    return convert({**PRESETS[preset], **changes}, Preprocess, where="preprocess")


def _pair(size: Size | None) -> tuple[int, int] | None:
    return (size, size) if isinstance(size, int) else size


def _resized(image: Image.Image, size: Size) -> Image.Image:
    height, width = image.height, image.width
    if isinstance(size, int):
        shorter = min(height, width)
        height, width = size * height // shorter, size * width // shorter
    else:
        height, width = size
    # A strip of 1 x 60000 pixels is small until its shorter side becomes 256.
    if math.prod((height, width)) > MAX_PIXELS:
        raise ValueError(f"resize makes it {height}x{width}, more than the limit of {MAX_PIXELS} pixels")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, crop: tuple[int, int]) -> Image.Image:
    height, width = crop
    if height > image.height or width > image.width:
        raise ValueError(f"{image.height}x{image.width} is smaller than center_crop {height}x{width}; set resize")
    # Rounded to even like torchvision's center_crop, which the ImageNet models were evaluated with.
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
