"""`.png .jpg .jpeg .bmp .webp`: one image a file, for a model with one input; needs `preprocess`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from qcli.contracts import InputSpec, Record
from qcli.errors import InputError, UsageError
from qcli.samples._check import fits, shown
from qcli.samples._preprocess import MAX_PIXELS, PRESETS, Pixels, Preprocess, parse
from qcli.samples._refuse import refusing
from qcli.types import Array, Noun

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_FLOATS = {"float16", "float32", "float64"}


class Images(Noun, frozen=True, kw_only=True):
    """Reads an image as one sample. `preprocess` is a preset's name or a mapping, see `Preprocess`.

    Pixels are taken as stored: no EXIF rotation, no colour profile, alpha dropped, first frame only.
    Raises UsageError without `preprocess`; InputError for files that are not images, truncated, larger than
    64 megapixels as declared (before anything is decoded), or of another size than the model takes.
    """

    patterns: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

    preprocess: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.preprocess is not None:
            parse(self.preprocess)

    def claims(self, path: Path) -> bool:
        return path.suffix.lower() in self.patterns and not path.is_dir()

    def read(self, path: Path, inputs: tuple[InputSpec, ...]) -> Iterator[Record]:
        if self.preprocess is None:
            hint = f"set it to one of {', '.join(PRESETS)}, or to a mapping with resize, scale, mean, std, …"
            raise UsageError("images need 'preprocess' in the recipe", hint)
        if len(inputs) != 1:
            raise InputError(
                f"{path}: an image feeds a model with one input, this one has {len(inputs)}",
                "store the samples as .npz, one key for each input",
            )
        steps = parse(self.preprocess)
        image = _decode(path, steps)
        with refusing(path, "cannot be preprocessed"):
            pixels = steps.pixels(image)
        array = _typed(pixels, steps, inputs[0], path)
        array = _arranged(array, steps, inputs[0])
        _check_shape(array, steps, inputs[0], path)
        yield Record(file=path.name, arrays={inputs[0].name: array})


def _decode(path: Path, steps: Preprocess) -> Image.Image:
    with refusing(path, "cannot be read as an image"), _opened(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.height}x{image.width} is more than the limit of {MAX_PIXELS} pixels")
        if image.mode not in _EIGHT_BIT_MODES:
            raise ValueError(f"its pixels are not 8-bit (mode {image.mode}); convert it first")
        # A palette holds its transparency apart from the colours; only by way of RGBA it is dropped cleanly.
        return image.convert("RGBA" if "transparency" in image.info else steps.mode)


def _opened(path: Path) -> Image.Image:
    """The image with its header read; Pillow's own limit may be lower or higher than ours, or off."""
    try:
        return Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def _typed(pixels: Pixels, steps: Preprocess, spec: InputSpec, path: Path) -> Array:
    """Values in the input's dtype: floats, or for a uint8 input the codes as they are."""
    if spec.dtype in _FLOATS:
        with np.errstate(over="ignore"):  # what float16 cannot hold is reported as Inf, by file and index
            return steps.values(pixels).astype(spec.dtype, copy=False)
    takes = f"{path}: input '{spec.name}' takes {spec.dtype}"
    if spec.dtype != "uint8":
        raise InputError(f"{takes}, images give floats or uint8", "store the samples as .npz")
    if not steps.keeps_codes:
        raise InputError(f"{takes}, 'preprocess' makes floats", "use 'preprocess: raw' for uint8")
    return pixels


def _arranged(array: Array, steps: Preprocess, spec: InputSpec) -> Array:
    """[height, width, channels] in the layout asked for, with a batch axis unless the input has rank 3."""
    placed = array.transpose(2, 0, 1) if steps.layout == "nchw" else array
    batched = placed if spec.shape is not None and len(spec.shape) == 3 else placed[None]
    return np.ascontiguousarray(batched)


def _check_shape(array: Array, steps: Preprocess, spec: InputSpec, path: Path) -> None:
    wanted = spec.shape
    if wanted is None or len(wanted) != array.ndim or fits(array.shape, wanted):
        return
    raise InputError(
        f"{path}: 'preprocess' makes shape {shown(array.shape)}, input '{spec.name}' takes {shown(wanted)}",
        _advice(array, steps, wanted),
    )


def _advice(array: Array, steps: Preprocess, wanted: tuple[int | None, ...]) -> str:
    """Which key of `preprocess` to set: layout, channels or resize."""
    first, last = array.ndim - 3, array.ndim - 1
    channel, other = (first, last) if steps.layout == "nchw" else (last, first)
    if wanted[channel] not in (None, array.shape[channel]):
        if wanted[other] == array.shape[channel]:
            return f"set 'layout: {'nhwc' if steps.layout == 'nchw' else 'nchw'}' in preprocess"
        return f"set 'channels: {'gray' if wanted[channel] == 1 else 'rgb'}' in preprocess"
    height, width = (wanted[axis] or "?" for axis in range(first, last + 1) if axis != channel)
    return f"set 'resize: [{height}, {width}]' in preprocess, or resize and center_crop"
