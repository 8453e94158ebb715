"""Geometry, channel order and values of image preprocessing; presets and their mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qcli.errors import UsageError
from qcli.samples._preprocess import PRESETS, Preprocess, parse


def gradient(height: int, width: int) -> Image.Image:
    """An image whose pixel (y, x) is [y, x, 7] modulo 256."""
    y, x = np.mgrid[:height, :width] % 256
    return Image.fromarray(np.stack([y, x, np.full_like(x, 7)], axis=-1).astype(np.uint8))


def ramp() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[1, 256, 3]: every code once in each channel."""
    return np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)


def usage(written: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse(written)
    assert caught.value.exit_code == 2
    return caught.value


def test_imagenet_values() -> None:
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (ramp() / 255 - mean) / std
    values = parse("imagenet").values(ramp())
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("preset", "low", "high"), [("imagenet-tf", -1, 1), ("symmetric", -1, 1), ("unit", 0, 1), ("raw", 0, 255)]
)
def test_range_of_the_other_presets(preset: str, low: float, high: float) -> None:
    values = parse(preset).values(ramp())
    assert (values.min(), values.max()) == (low, high)
    assert np.all(np.diff(values[0, :, 0]) > 0)


def test_geometry_and_layout_of_presets() -> None:
    parsed = {name: parse(name) for name in PRESETS}
    assert {name for name, steps in parsed.items() if steps.layout == "nhwc"} == {"imagenet-tf"}
    cropped = {name for name, steps in parsed.items() if (steps.resize, steps.center_crop) == (256, 224)}
    assert cropped == {"imagenet", "imagenet-tf"}
    assert all(parsed[name].resize is None for name in set(PRESETS) - cropped)
    assert {name for name, steps in parsed.items() if steps.keeps_codes} == {"raw"}


def test_mapping_starts_from_its_preset() -> None:
    steps = parse({"preset": "imagenet", "resize": [200, 300], "center_crop": None, "layout": "nhwc"})
    assert (steps.resize, steps.center_crop, steps.layout) == ((200, 300), None, "nhwc")
    assert steps.std == (0.229, 0.224, 0.225)


def test_mapping_without_preset_starts_from_raw() -> None:
    assert parse({}) == parse("raw") == Preprocess()
    assert parse({"scale": 2, "mean": [1, 2, 3]}).mean == (1.0, 2.0, 3.0)


def test_parsing_leaves_the_mapping_as_it_was() -> None:
    written = {"preset": "unit", "channels": "gray"}
    assert parse(written).channels == "gray"
    assert written == {"preset": "unit", "channels": "gray"}


@pytest.mark.parametrize(
    ("written", "message", "hint"),
    [
        ("imagnet", "unknown preprocess preset 'imagnet'", "did you mean 'imagenet'?"),
        ({"preset": "zzz"}, "unknown preprocess preset 'zzz'", "imagenet, imagenet-tf, raw, symmetric, unit"),
        ({"preset": ["unit"]}, "unknown preprocess preset", ""),
        ({"resze": 3}, "unknown key 'resze'", "did you mean 'resize'?"),
        ({"resize": "big"}, "resize", ""),
        ({"resize": 0}, "resize and center_crop must be at least 1", ""),
        ({"resize": [224, -1]}, "resize and center_crop must be at least 1", ""),
        ({"center_crop": 0}, "resize and center_crop must be at least 1", ""),
        ({"resize": [1, 2, 3]}, "resize", ""),
        ({"resize": True}, "resize", ""),
        ({"channels": "rgba"}, "channels", ""),
        ({"layout": "chw"}, "layout", ""),
        ({"mean": [1, 2]}, "mean has 2 values, channels 'rgb' takes 3", ""),
        ({"std": [1, 1, 1], "channels": "gray"}, "std has 3 values, channels 'gray' takes 1", ""),
        ({"preset": "imagenet", "channels": "gray"}, "mean has 3 values", ""),
        ({"std": 0}, "must not be 0", ""),
        ({"std": [1, 0, 1]}, "must not be 0", ""),
        ({"scale": 0}, "must not be 0", ""),
        ({"scale": float("nan")}, "finite", ""),
        ({"mean": float("inf")}, "finite", ""),
        ({"std": float("inf")}, "finite", ""),
        ({"scale": 1e38}, "finite", ""),
        ({"scale": "1/255"}, "scale", ""),
    ],
)
def test_mistakes(written: Any, message: str, hint: str) -> None:
    error = usage(written)
    assert message in error.message
    assert hint in error.hint


def test_image_of_the_crop_size_passes_untouched() -> None:
    image = gradient(224, 224)
    np.testing.assert_array_equal(parse("imagenet").pixels(image), np.asarray(image))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60))
@settings(deadline=None)
def test_resize_sets_the_shorter_side(height: int, width: int, side: int) -> None:
    pixels = parse({"resize": side}).pixels(gradient(height, width))
    assert min(pixels.shape[:2]) == side
    # torchvision's rule: the longer side is int(side * longer / shorter).
    assert max(pixels.shape[:2]) == side * max(height, width) // min(height, width)
    assert (pixels.shape[0] > pixels.shape[1]) <= (height > width)


def test_resize_to_height_and_width() -> None:
    assert parse({"resize": [10, 30]}).pixels(gradient(50, 50)).shape == (10, 30, 3)


def test_center_crop_takes_the_middle() -> None:
    pixels = parse({"center_crop": [4, 6]}).pixels(gradient(10, 20))
    np.testing.assert_array_equal(pixels[:, 0, 0], [3, 4, 5, 6])
    np.testing.assert_array_equal(pixels[0, :, 1], [7, 8, 9, 10, 11, 12])


def test_resize_comes_before_crop() -> None:
    assert parse({"resize": 20, "center_crop": [8, 16]}).pixels(gradient(40, 80)).shape == (8, 16, 3)


def test_crop_larger_than_the_image() -> None:
    with pytest.raises(ValueError, match="10x20 is smaller than center_crop 16x16; set resize"):
        parse({"center_crop": 16}).pixels(gradient(10, 20))


def test_strip_that_grows_beyond_all_limits() -> None:
    with pytest.raises(ValueError, match="more than the limit"):
        parse("imagenet").pixels(Image.new("L", (60_000, 1)))


def test_channel_orders() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    assert parse("raw").pixels(image)[0, 0].tolist() == [10, 20, 30]
    assert parse({"channels": "bgr"}).pixels(image)[0, 0].tolist() == [30, 20, 10]
    assert parse({"channels": "gray"}).pixels(image)[0, 0].tolist() == [np.asarray(image.convert("L"))[0, 0]]


def test_mean_and_std_follow_the_output_order() -> None:
    steps = parse({"channels": "bgr", "mean": [30, 20, 10], "std": [1, 2, 5]})
    values = steps.values(steps.pixels(Image.new("RGB", (1, 1), (15, 24, 33))))
    assert values[0, 0].tolist() == [3, 2, 1]
