from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dsd_trt import ImageError
from dsd_trt.image.preprocess import ImageSource, image_suffixes, load_image, preprocess

Pixels = NDArray[np.uint8]


def random_pixels(height: int, width: int, channels: int = 3) -> Pixels:
    generator = np.random.default_rng(height * 1000 + width)
    return generator.integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bicubic_weights(size_in: int, size_out: int) -> NDArray[np.float64]:
    """Antialiased bicubic resampling (Keys, a = -0.5) along one axis, (size_out, size_in)."""
    scale = max(size_in / size_out, 1.0)  # the kernel widens when shrinking
    centres = (np.arange(size_out) + 0.5) * size_in / size_out
    x = np.abs((np.arange(size_in) + 0.5)[None] - centres[:, None]) / scale
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return kernel / kernel.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(61, 40), (16, 100), (7, 9)])
def test_resizing_is_antialiased_bicubic_stretching(height: int, width: int) -> None:
    pixels = random_pixels(height, width)
    rows, columns = bicubic_weights(height, 16), bicubic_weights(width, 16)
    # Pillow rounds and clips between the passes, horizontal first.
    across = np.clip(np.einsum("xw,hwc->hxc", columns, pixels), 0, 255).round()
    expected = np.clip(np.einsum("yh,hxc->yxc", rows, across), 0, 255).round()
    got = preprocess(pixels, 16)
    assert got.flags.writeable  # torch.from_numpy warns otherwise
    assert got.shape == (16, 16, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_through_224_sees_no_more_than_224_pixels_hold() -> None:
    """The paper's fair protocol. What is finer turns grey; what is coarser stays."""
    y, x = np.indices((448, 448))
    fine = np.repeat(255 * ((x + y) % 2)[..., None], 3, 2).astype(np.uint8)
    assert preprocess(fine, 448).std() > 120
    through = preprocess(fine, 448, "bicubic-stretch-through-224")
    assert through.shape == (448, 448, 3)
    assert through[8:-8, 8:-8].std() < 2
    coarse = np.repeat(255 * ((x // 64 + y // 64) % 2)[..., None], 3, 2).astype(np.uint8)
    assert preprocess(coarse, 448, "bicubic-stretch-through-224").std() > 120


def test_nothing_is_cropped_from_a_wide_image() -> None:
    pixels = np.zeros((10, 200, 3), np.uint8)
    pixels[:, 190:] = 255  # a centre crop would lose it
    assert preprocess(pixels, 20)[:, -1].min() > 200


def test_path_bytes_pil_and_array_give_the_same_pixels(tmp_path: Path) -> None:
    pixels = random_pixels(20, 30)
    image = Image.fromarray(pixels)
    path = tmp_path / "image.png"
    image.save(path)
    expected = preprocess(pixels, 16)
    for source in (path, str(path), path.read_bytes(), image, Image.open(path)):
        np.testing.assert_array_equal(preprocess(source, 16), expected)


# What a camera held that way stores, for each EXIF orientation of one upright scene.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = random_pixels(6, 9)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    np.testing.assert_array_equal(load_image(encode(stored, exif=exif)), upright)


def test_transparency_is_laid_on_white() -> None:
    pixels = random_pixels(8, 8, 4)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    got = np.asarray(load_image(encode(Image.fromarray(pixels)))).astype(float)
    assert np.abs(got - expected).max() <= 1
    np.testing.assert_array_equal(load_image(pixels), load_image(encode(Image.fromarray(pixels))))


def test_grey_with_alpha() -> None:
    pixels = random_pixels(8, 8, 2)
    alpha = pixels[..., 1] / 255
    expected = pixels[..., 0] * alpha + 255 * (1 - alpha)
    got = np.asarray(load_image(encode(Image.fromarray(pixels, "LA")))).astype(float)
    assert np.abs(got - expected[..., None]).max() <= 1


def test_palette_with_and_without_a_transparent_colour() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert np.asarray(load_image(encode(image))).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    see_through = encode(image, transparency=0)
    assert np.asarray(load_image(see_through)).tolist() == [[[255, 255, 255], [0, 0, 255]]]


def test_rgb_with_a_transparent_colour() -> None:
    image = Image.fromarray(np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8))
    content = encode(image, transparency=(9, 8, 7))
    assert np.asarray(load_image(content)).tolist() == [[[255, 255, 255], [1, 2, 3]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_and_not_clipped(form: str) -> None:
    values = np.array([[0, 128, 257, 32896, 65535]], np.uint16)
    got = np.asarray(load_image(encode(Image.fromarray(values), form)))
    assert got[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert (got == got[..., :1]).all()


def test_one_bit_and_eight_bit_grey() -> None:
    grey = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    assert np.asarray(load_image(encode(grey)))[0, :, 1].tolist() == [0, 100, 255]
    bits = grey.point(lambda value: 255 * (value > 50)).convert("1")
    assert np.asarray(load_image(encode(bits)))[0, :, 2].tolist() == [0, 255, 255]


@pytest.mark.parametrize("form", ["TIFF", "JPEG"])
def test_cmyk(form: str) -> None:
    inks = {(0, 255, 255, 0): (255, 0, 0), (255, 0, 255, 0): (0, 255, 0), (0, 0, 0, 255): (0, 0, 0)}
    for ink, color in inks.items():
        content = encode(Image.new("CMYK", (16, 16), ink), form)
        got = np.asarray(load_image(content)).astype(int)
        assert np.abs(got - color).max() <= 6, ink


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_taken(form: str) -> None:
    first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    options = {"lossless": True} if form == "WEBP" else {}
    content = encode(first, form, save_all=True, append_images=[second], **options)
    assert np.asarray(load_image(content)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncation_anywhere_is_an_image_error(form: str) -> None:
    whole = encode(Image.fromarray(random_pixels(40, 40)), form)
    load_image(whole)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(ImageError):
            load_image(whole[: int(len(whole) * share)])


def test_reasons_are_said(tmp_path: Path) -> None:
    text = tmp_path / "notes.png"
    text.write_text("not a picture at all")
    empty = tmp_path / "empty.png"
    empty.touch()
    refused: list[tuple[ImageSource, str]] = [
        (tmp_path / "missing.png", "No such file"),
        (tmp_path, "Is a directory"),
        (text, "not an image"),
        (empty, "empty"),
        (b"", "empty"),
        (np.zeros((4, 4, 3), np.float32), "uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"\(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (Image.new("F", (2, 2)), "floating-point"),
        (Image.new("RGB", (0, 3)), "no pixels"),
    ]
    for source, reason in refused:
        with pytest.raises(ImageError, match=reason):
            load_image(source)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


@pytest.mark.parametrize("size", [(60_000, 60_000), (200_000_000, 1)])
def test_a_decompression_bomb_is_refused_before_it_unpacks(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="pixels"):
        load_image(_png_header(*size))


def test_formats_that_run_other_programs_are_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    with pytest.raises(ImageError, match="not an image of a known format"):
        load_image(postscript)
    assert ".eps" not in image_suffixes()
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif"} <= image_suffixes()


@pytest.mark.parametrize(
    ("start", "remedy"),
    [
        (b"<!DOCTYPE html><html>Not found", "a web page: download the image itself"),
        (b"\xef\xbb\xbf\n<HTML>", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing: save it as PNG or JPEG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF, which is not read: save it as PNG or JPEG"),
        (b"PK\x03\x04\x14\0", "a zip archive: unpack it"),
        (b"PAR1\x15\x04", "a Parquet file: dsd-trt score --pairs takes its images"),
        (b'{"error": "rate limit"}', "JSON, perhaps the error of a download"),
    ],
)
def test_what_is_no_image_is_named_with_a_remedy(start: bytes, remedy: str) -> None:
    with pytest.raises(ImageError, match=f"not an image of a known format; it is {remedy}"):
        load_image(start)


def test_a_path_that_is_no_file_has_its_remedy(tmp_path: Path) -> None:
    for path, remedy in (
        ("https://example.com/a.jpg", "it is a URL, and images are files: download it first"),
        (str(tmp_path), "Is a directory: give its images as a list"),
        ("", "the path is empty"),
    ):
        with pytest.raises(ImageError, match=remedy):
            load_image(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "steps"),
    [
        ((3, 6, 8), np.float32, ("x.transpose(1, 2, 0)", "(255 * x).round().astype(numpy.uint8)")),
        ((1, 6, 8), np.float64, ("x[0]", "(255 * x).round().astype(numpy.uint8)")),
        ((6, 8, 1), np.uint8, ("x[:, :, 0]",)),
        ((1, 6, 8, 3), np.uint8, ("x[0]",)),
        ((4, 6, 8), np.int64, ("x.transpose(1, 2, 0)", "x.astype(numpy.uint8)")),
        ((6, 8), np.uint16, ("x.astype(numpy.uint8)",)),
    ],
)
def test_steps_that_make_an_image_of_an_array_make_one(
    shape: tuple[int, ...], dtype: Any, steps: tuple[str, ...]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    x: Any = pixels / 255 if np.issubdtype(dtype, np.floating) else pixels
    x = x.astype(dtype)
    with pytest.raises(ImageError) as told:
        load_image(x)
    for step in steps:
        assert step in str(told.value)
        x = eval(step, {"x": x, "numpy": np})
    assert load_image(x).size == (8, 6)
    assert sorted(x.reshape(-1)) == sorted(pixels.reshape(-1))


def test_a_batch_of_images_is_a_list_of_them() -> None:
    with pytest.raises(ImageError, match=r"Convert it: list\(x\), a list of images"):
        load_image(np.zeros((2, 6, 8, 3), np.uint8))
