"""Image samples: shapes and dtypes that come out, and every image that is refused."""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qcli import plugins
from qcli.contracts import InputSpec
from qcli.errors import InputError, UsageError
from qcli.samples.images import Images
from qcli.types import Array


def spec(*shape: int | None, dtype: str = "float32") -> tuple[InputSpec, ...]:
    return (InputSpec(name="x", dtype=dtype, shape=shape),)


ANY = (InputSpec(name="x", dtype="float32", shape=None),)


def picture(height: int = 8, width: int = 12) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    (image or picture()).save(path, **options)
    return path


def read(path: Path, preprocess: Any, inputs: tuple[InputSpec, ...] = ANY) -> Array:
    (record,) = Images(preprocess=preprocess).read(path, inputs)
    assert (record.file, set(record.arrays)) == (path.name, {"x"})
    return record.arrays["x"]


def refused(path: Path, preprocess: Any, inputs: tuple[InputSpec, ...] = ANY) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, preprocess, inputs)
    assert caught.value.exit_code == 3
    assert path.name in caught.value.message
    return caught.value


def bomb(height: int, width: int) -> bytes:
    """A PNG of 60 bytes that declares height x width pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.jpeg", "a.bmp", "a.webp"])
def test_claims_and_reads_every_suffix(tmp_path: Path, name: str) -> None:
    assert Images().claims(tmp_path / name)
    array = read(save(tmp_path / name), "unit", spec(None, 3, 8, 12))
    assert array.shape == (1, 3, 8, 12)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous


def test_claims_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert not any(Images().claims(tmp_path / name) for name in ("a.gif", "a.npz", "png", "folder.png"))


def test_without_preprocess(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images need 'preprocess' in the recipe") as caught:
        read(save(tmp_path / "a.png"), None)
    assert caught.value.exit_code == 2
    assert "imagenet, imagenet-tf, raw, symmetric, unit" in caught.value.hint


def test_bad_preprocess_is_found_before_any_image() -> None:
    with pytest.raises(UsageError, match="unknown preprocess preset 'imagenett'"):
        plugins.create("samples", {"images": {"preprocess": "imagenett"}})


def test_imagenet_at_crop_size_equals_the_formula(tmp_path: Path) -> None:
    image = picture(224, 224)
    array = read(save(tmp_path / "a.png", image), "imagenet", spec(1, 3, 224, 224))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((np.asarray(image) / 255 - mean) / std).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(array, expected, rtol=1e-6, atol=1e-7)


def test_imagenet_resizes_other_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", picture(300, 400))
    assert read(path, "imagenet", spec(None, 3, 224, 224)).shape == (1, 3, 224, 224)
    assert read(path, "imagenet-tf", spec(None, 224, 224, 3)).shape == (1, 224, 224, 3)


def test_symmetric_spans_minus_one_to_one(tmp_path: Path) -> None:
    array = read(save(tmp_path / "a.png", Image.new("RGB", (2, 2), (0, 255, 0))), "symmetric")
    assert sorted(set(array.ravel().tolist())) == [-1.0, 1.0]


@pytest.mark.parametrize(("dtype", "kind"), [("uint8", np.uint8), ("float32", np.float32), ("float16", np.float16)])
def test_raw_keeps_codes(tmp_path: Path, dtype: str, kind: type[np.generic]) -> None:
    image = picture()
    array = read(save(tmp_path / "a.png", image), {"layout": "nhwc"}, spec(None, 8, 12, 3, dtype=dtype))
    assert array.dtype == kind
    np.testing.assert_array_equal(array[0], np.asarray(image))


def test_uint8_input_with_scaled_values(tmp_path: Path) -> None:
    error = refused(save(tmp_path / "a.png"), "unit", spec(1, 3, 8, 12, dtype="uint8"))
    assert "takes uint8" in error.message
    assert "preprocess: raw" in error.hint


@pytest.mark.parametrize("dtype", ["int64", "int8", "string"])
def test_inputs_no_image_can_feed(tmp_path: Path, dtype: str) -> None:
    assert f"takes {dtype}" in refused(save(tmp_path / "a.png"), "raw", spec(1, 3, 8, 12, dtype=dtype)).message


@pytest.mark.parametrize("count", [0, 2])
def test_model_needs_exactly_one_input(tmp_path: Path, count: int) -> None:
    error = refused(save(tmp_path / "a.png"), "raw", spec(1, 3, 8, 12) * count)
    assert f"this one has {count}" in error.message


def test_model_without_a_batch_axis(tmp_path: Path) -> None:
    assert read(save(tmp_path / "a.png"), "raw", spec(3, None, None)).shape == (3, 8, 12)


def test_size_differs_and_no_geometry(tmp_path: Path) -> None:
    error = refused(save(tmp_path / "a.png"), "unit", spec(None, 3, 32, 48))
    assert "[1, 3, 8, 12], input 'x' takes [?, 3, 32, 48]" in error.message
    assert "set 'resize: [32, 48]'" in error.hint


@pytest.mark.parametrize(
    ("preprocess", "wanted", "hint"),
    [
        ("unit", (1, 8, 12, 3), "layout: nhwc"),
        ({"layout": "nhwc"}, (1, 3, 8, 12), "layout: nchw"),
        ("unit", (1, 1, 8, 12), "channels: gray"),
        ({"channels": "gray"}, (1, 3, 8, 12), "channels: rgb"),
        ({"layout": "nhwc"}, (None, 16, None, 3), "resize: [16, ?]"),
        ({"resize": 4}, (None, 3, 8, 12), "resize: [8, 12]"),
    ],
)
def test_hint_names_the_key_to_set(tmp_path: Path, preprocess: Any, wanted: tuple[int | None, ...], hint: str) -> None:
    assert hint in refused(save(tmp_path / "a.png"), preprocess, spec(*wanted)).hint


def test_crop_larger_than_the_image(tmp_path: Path) -> None:
    message = refused(save(tmp_path / "a.png"), {"center_crop": 100}).message
    assert "cannot be preprocessed: 8x12 is smaller" in message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "a.png", picture().convert(mode))
    assert read(path, "raw").shape == (1, 3, 8, 12)
    assert read(path, {"channels": "gray"}).shape == (1, 1, 8, 12)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    assert read(save(tmp_path / "a.jpg", picture().convert("CMYK")), "raw").shape == (1, 3, 8, 12)


def test_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    path = save(tmp_path / "a.png", image, transparency=bytes([255, 0]))
    assert read(path, "raw")[0, :, 0, 0].tolist() == [200, 100, 50]


def test_gray_is_pillows_luma(tmp_path: Path) -> None:
    image = picture()
    array = read(save(tmp_path / "a.png", image), {"channels": "gray"})
    np.testing.assert_array_equal(array[0, 0], np.asarray(image.convert("L")))


def test_sixteen_bit_images(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(np.full((4, 4), 40_000, np.uint16)))
    assert "not 8-bit" in refused(path, "raw").message


@pytest.mark.parametrize(("height", "width"), [(8000, 8001), (60_000, 60_000), (1, 64_000_001), (2**31 - 1,) * 2])
def test_bombs_are_refused_before_decoding(tmp_path: Path, height: int, width: int) -> None:
    (tmp_path / "a.png").write_bytes(bomb(height, width))
    refused(tmp_path / "a.png", "imagenet")


def test_bomb_limit_does_not_depend_on_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "a.png").write_bytes(bomb(8000, 8001))
    assert "8000x8001 is more than the limit of 64000000 pixels" in refused(tmp_path / "a.png", "raw").message


def test_largest_allowed_size_gets_to_the_decoder(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bomb(8000, 8000))
    assert "limit" not in refused(tmp_path / "a.png", "raw").message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_truncated(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", picture(64, 64))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cannot be read as an image" in refused(path, "raw").message


@pytest.mark.parametrize("content", [b"", b"text", b"GIF89a" + bytes(50)])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "raw")


def test_only_the_named_formats_are_decoded(tmp_path: Path) -> None:
    save(tmp_path / "a.png", format="TIFF")
    refused(tmp_path / "a.png", "raw")


def test_missing_file(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "gone.png", "raw").message


@given(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]), st.data())
@settings(deadline=None, max_examples=200)
def test_damaged_bytes_never_escape_as_anything_else(kind: str, data: st.DataObject) -> None:
    stream = io.BytesIO()
    picture().save(stream, format=kind)
    content = bytearray(stream.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content) - 1, 80)))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / "a.png"
        path.write_bytes(content)
        try:
            read(path, "raw")
        except InputError as error:
            assert "a.png" in error.message
