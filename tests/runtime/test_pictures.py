"""Every kind of picture file, held to its format's specification (see `pictures`)."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import OTHERS, PNG_AND_JPEG, Drawn, faults
from pictures.case import Pixels, as_rgb, encode, on_white, random_samples, scaled
from pictures.exif import STORED, exif_bytes
from pictures.others import pil
from pictures.png import png, shorts
from PIL import Image, ImageFile

from dsd_trt.errors import ImageError
from dsd_trt.image.preprocess import load_image, preprocess


def decode(source: Any) -> Pixels | str:
    try:
        return np.asarray(load_image(source))
    except ImageError as error:
        return str(error)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", [*PNG_AND_JPEG, *OTHERS])
def test_pixels_are_those_of_the_specification(
    draw: Drawn, capfd: pytest.CaptureFixture[str]
) -> None:
    assert faults(draw(), decode) == []
    assert capfd.readouterr() == ("", "")  # nor do the C libraries say anything


@pytest.mark.filterwarnings("error")
def test_a_file_opened_by_pillow_is_read_as_the_file(tmp_path: Path) -> None:
    """Pillow has kept too little of these: 16 bits, transparent colours."""
    rgb = random_samples(16, 5, 7, 3)
    grey = random_samples(4, 5, 7)
    for content in (
        png(rgb, 16, 2, (b"tRNS", shorts(*map(int, rgb[1, 1])))),
        png(grey, 4, 0, (b"tRNS", shorts(int(grey[0, 0]))), (b"eXIf", exif_bytes(6))),
        encode(Image.new("RGB", (4, 4), "red"), "JPEG"),
    ):
        path = tmp_path / "image"
        path.write_bytes(content)
        for opened in (Image.open(path), Image.open(BytesIO(content))):
            for _ in range(2):
                np.testing.assert_array_equal(load_image(opened), load_image(content))
            opened.load()  # still possible
            assert opened.getpixel((0, 0)) is not None


def modes() -> dict[str, tuple[Image.Image, Pixels | str]]:
    """Images in memory, of every mode that Pillow has."""
    four = random_samples(8, 6, 9, 4).astype(np.uint8)
    grey, alpha, rgb = four[..., 0], four[..., 3], np.ascontiguousarray(four[..., :3])
    wide = random_samples(16, 6, 9).astype(np.uint16)
    multiplied = (four.astype(int) * alpha[..., None] // 255).astype(np.uint8)
    multiplied[..., 3] = alpha
    over = multiplied[..., :3] + (255 - alpha[..., None].astype(int))
    palette = Image.fromarray(grey % 4).convert("P")
    palette.putpalette(bytes(range(12)))
    colors = np.arange(12, dtype=np.uint8).reshape(4, 3)[grey % 4]
    with_alpha = palette.copy()
    with_alpha.putpalette(bytes(range(16)), "RGBA")
    table = np.arange(16).reshape(4, 4)[grey % 4]
    inks = 255 - four.astype(int)
    hue = pil("HSV", np.dstack([grey * 0, grey, alpha]))
    found: dict[str, tuple[Image.Image, Pixels | str]] = {
        "1": (Image.fromarray(grey > 99), as_rgb(255 * (grey > 99))),
        "L": (Image.fromarray(grey), as_rgb(grey)),
        "LA": (pil("LA", four[..., ::3]), on_white(as_rgb(grey), alpha)),
        "La": (pil("La", multiplied[..., ::3]), as_rgb(over[..., 0])),
        "P": (palette, colors),
        "P of RGBA": (with_alpha, on_white(table[..., :3], table[..., 3])),
        "RGB": (Image.fromarray(rgb), rgb),
        "RGBA": (Image.fromarray(four), on_white(rgb, alpha)),
        "RGBa": (pil("RGBa", multiplied), over),
        "RGBX": (pil("RGBX", four), rgb),
        "CMYK": (pil("CMYK", four), scaled(inks[..., :3] * inks[..., 3:], 255 * 255)),
        # Hue 0: red is the value, the others are what saturation leaves of it.
        "HSV": (
            hue,
            np.dstack([alpha, *[scaled(alpha.astype(int) * (255 - grey.astype(int)), 65025)] * 2]),
        ),
        "YCbCr": (pil("YCbCr", np.dstack([grey, *[np.full_like(grey, 128)] * 2])), as_rgb(grey)),
        "I": (Image.fromarray(wide.astype(np.int32)), as_rgb(scaled(wide, 65535))),
        "I beyond": (Image.fromarray(wide.astype(np.int32) * 3), "more than 16 bits"),
        "I;16": (Image.fromarray(wide), as_rgb(scaled(wide, 65535))),
        "F": (Image.fromarray(wide.astype(np.float32)), "floating-point"),
        "LAB": (pil("LAB", rgb), "convert them to RGB"),
    }
    for order in "BL":
        image = Image.frombytes(
            f"I;16{order}", (9, 6), wide.astype(">u2" if order == "B" else "<u2").tobytes()
        )
        found[f"I;16{order}"] = image, as_rgb(scaled(wide, 65535))
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", modes())
def test_pil_images_of_every_mode(mode: str) -> None:
    image, expected = modes()[mode]
    before = image.tobytes()
    got = decode(image)
    if isinstance(expected, str):
        assert expected in str(got)
    else:
        tolerance = 2 if mode in ("CMYK", "HSV") else 0
        assert np.abs(np.asarray(got, int) - expected).max() <= tolerance
    assert image.tobytes() == before


TWO = np.array([[[9, 8, 7], [1, 2, 3]]], np.uint8)
WHITE_THEN_SECOND = np.array([[[255, 255, 255], [1, 2, 3]]])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("image", "key", "first"),
    [
        (Image.fromarray(TWO), (9, 8, 7), 255),
        (Image.fromarray(TWO), (9, 8, 8), 9),
        (Image.fromarray(TWO), 9, 9),  # of no use, so ignored
        (Image.fromarray(TWO), b"\0", 9),
        (Image.fromarray(TWO), ("9", None, 7), 9),
        (Image.fromarray(TWO[..., 0]), 9, 255),
        (Image.fromarray(TWO[..., 0]), (9, 8, 7), 9),
        (Image.fromarray(TWO[..., 0] > 5), 255, 255),
        (Image.fromarray(TWO[..., 0].astype(np.uint16) * 257), 9 * 257, 255),
        (Image.fromarray(TWO[..., 0].astype(np.int32) * 257), 9 * 257, 255),
        (Image.fromarray(TWO[..., 0]).convert("P"), 9, 255),
        (Image.fromarray(TWO[..., 0]).convert("P"), b"\xff" * 9 + b"\0", 255),
        (Image.fromarray(TWO[..., 0]).convert("P"), "nine", 9),
        (Image.fromarray(TWO).convert("CMYK"), (0, 0, 0), 9),
        (Image.fromarray(TWO).convert("HSV"), 7, 9),
    ],
)
def test_transparency_in_an_images_info(image: Image.Image, key: object, first: int) -> None:
    image = image.copy()
    image.info["transparency"] = key
    got = np.asarray(load_image(image)).astype(int)
    assert abs(got[0, 0, 0] - first) <= 1
    assert got[0, 1].max() <= 3
    assert image.info["transparency"] == key


@pytest.mark.filterwarnings("error")
def test_orientation_in_an_images_info() -> None:
    upright = random_samples(8, 4, 6, 3).astype(np.uint8)
    stored = Image.fromarray(np.ascontiguousarray(STORED[6](upright)))
    for name, value, seen in (
        ("exif", b"Exif\0\0" + exif_bytes(6), upright),
        ("exif", b"of no use", np.asarray(stored)),
        ("exif", 6, np.asarray(stored)),
        ("xmp", b'tiff:Orientation="6"', upright),
    ):
        image = stored.copy()
        image.info[name] = value
        np.testing.assert_array_equal(load_image(image), seen)


@pytest.mark.filterwarnings("error")
def test_a_process_keeps_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's limits are for the caller, and its filters of warnings all threads share."""
    small = 100  # so that Pillow would warn of anything larger, or refuse it
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", small)
    filters = list(warnings.filters)
    images = {form: Image.new("RGB", (120, 12)) for form in ("JPEG", "PNG", "TIFF", "BMP")}
    images |= {form: Image.new("RGB", (120, 12)) for form in ("GIF", "AVIF", "JPEG2000", "PPM")}
    with monkeypatch.context() as patched:
        patched.delattr(warnings, "catch_warnings")
        for form, image in images.items():
            assert preprocess(encode(image, form), 8).shape == (8, 8, 3), form
        with pytest.raises(ImageError, match="MAX_IMAGE_PIXELS"):  # its decoder asks by itself
            preprocess(encode(Image.new("RGB", (120, 12)), "WEBP"), 8)
    assert filters == warnings.filters
    assert small == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_arrays() -> None:
    four = random_samples(8, 4, 5, 4).astype(np.uint8)
    cases: list[tuple[NDArray[np.uint8], Pixels]] = [
        (four[..., 0], as_rgb(four[..., 0])),
        (four[::-1, ::2, :3], four[::-1, ::2, :3]),
        (four, on_white(four[..., :3], four[..., 3])),
    ]
    for pixels, expected in cases:
        np.testing.assert_array_equal(load_image(pixels), expected)
