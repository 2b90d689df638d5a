"""The C++ runtime's images, of libjpeg-turbo and libpng, against Python's, of Pillow."""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from bundles import make_bundle
from cpp import CppError, CppScorer
from numpy.typing import NDArray
from pictures import PNG_AND_JPEG, Drawn, faults
from pictures.case import Case
from PIL import Image

from dsd_trt.bundle.manifest import Preprocessing, Resize
from dsd_trt.errors import ImageError
from dsd_trt.image.preprocess import preprocess

pytest_plugins = ("cpp",)

Pixels = NDArray[np.uint8]
SIDE = 96


def picture(height: int, width: int, channels: int = 3) -> Pixels:
    """Smooth shapes with some noise: JPEG and bicubic resizing have something to do."""
    y, x = np.indices((height, width))
    random = np.random.default_rng(height * 1000 + width)
    waves = [np.sin(x / (3 + c) + c) * np.cos(y / (5 - c)) for c in range(channels)]
    noisy = 127 + 110 * np.stack(waves, -1) + random.normal(0, 12, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def encode(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(
    depth: int, color: int, width: int, rows: list[bytes], *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG file of any kind, for those that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*one) for one in ((b"IHDR", header), *chunks, (b"IDAT", body), (b"IEND", b""))
    )


def cases() -> dict[str, bytes]:
    rgb = Image.fromarray(picture(83, 131))
    gray, rgba = rgb.convert("L"), Image.fromarray(picture(83, 131, 4))
    wide = np.linspace(0, 65535, 60 * 70).reshape(60, 70).astype(np.uint16)
    exif, random = Image.Exif(), np.random.default_rng(4)
    rows = [random.bytes(64) for _ in range(20)]
    found = {
        "jpeg": encode(rgb, "JPEG", quality=90),
        "jpeg 4:4:4": encode(rgb, "JPEG", subsampling=0),
        "jpeg 4:2:2": encode(rgb, "JPEG", subsampling=1),
        "jpeg progressive": encode(rgb, "JPEG", progressive=True),
        "jpeg grey": encode(gray, "JPEG"),
        "jpeg cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "jpeg xmp": encode(
            rgb,
            "JPEG",
            xmp=b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>',
        ),
        "png rgb": encode(rgb),
        "png rgba": encode(rgba),
        "png grey": encode(gray),
        "png grey alpha": encode(rgba.convert("LA")),
        "png 1 bit": encode(gray.convert("1")),
        "png palette": encode(rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=200)),
        "png palette 16": encode(rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)),
        "png palette key": encode(
            rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=8), transparency=3
        ),
        "png palette alpha": encode(rgba.quantize(64)),
        "png grey key": encode(gray, transparency=int(np.asarray(gray)[0, 0])),
        "png rgb key": encode(rgb, transparency=tuple(map(int, np.asarray(rgb)[3, 3]))),
        "png 16 bit grey": encode(Image.fromarray(wide)),
        "png 2 bit grey": png(2, 0, 256, rows),
        "png 4 bit grey": png(4, 0, 128, rows),
        "png 4 bit grey key": png(4, 0, 128, rows, (b"tRNS", struct.pack(">H", 7))),
        "png 16 bit rgb": png(16, 2, 10, [row[:60] for row in rows]),
        "png 16 bit grey alpha": png(16, 4, 16, rows),
        "png 16 bit rgba": png(16, 6, 8, rows),
        "png tall": encode(Image.fromarray(picture(700, 9))),
        "png one pixel": encode(Image.new("RGB", (1, 1), "teal")),
    }
    for turn in range(1, 10):  # 9 is none
        exif[0x0112] = turn
        found[f"jpeg turn {turn}"] = encode(rgb, "JPEG", exif=exif)
    found["png turn 8"] = encode(rgb, exif=exif_of(8))
    found["jpeg big-endian turn 5"] = encode(
        rgb,
        "JPEG",
        exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x05\0\0\0\0\0\0",
    )
    return found


def exif_of(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


CASES = cases()


def open_scorer(
    library: ctypes.CDLL, folder: Path, side: int = SIDE, resize: Resize = "bicubic-stretch"
) -> CppScorer:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(bundles, "RESOLUTION", side)
        monkeypatch.setattr(bundles, "Preprocessing", lambda *_: Preprocessing(side, resize))
        monkeypatch.setattr(bundles, "_tokenizer", clip_tokenizer)
        make_bundle(folder)
    return CppScorer(library, folder)


def clip_tokenizer() -> Any:
    from tokenizers import Tokenizer

    from dsd_trt.bundle.place import bundle_folder

    return Tokenizer.from_file(str(bundle_folder(None) / "tokenizer.json"))


@pytest.fixture(scope="module")
def cpp(cpp_library: ctypes.CDLL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CppScorer]:
    scorer = open_scorer(cpp_library, tmp_path_factory.mktemp("images"))
    yield scorer
    scorer.close()


def difference(got: Pixels, expected: Pixels) -> int:
    return int(np.abs(got.astype(int) - expected).max())


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_pythons_to_one_grey_level(name: str, cpp: CppScorer) -> None:
    expected = preprocess(CASES[name], SIDE)
    assert expected.std() > 0 or name == "png one pixel"
    assert difference(cpp.preprocess(CASES[name]), expected) <= 1


def resized(case: Case) -> Case:
    """The case with its pixels at the scorer's size, to which resizing is exact."""
    if isinstance(case.expected, str):
        return case
    # What decoders of JPEG differ by, overshoots where it is enlarged.
    return replace(case, expected=preprocess(case.expected, SIDE), tolerance=2 * case.tolerance)


@pytest.mark.parametrize("draw", PNG_AND_JPEG)
def test_pixels_are_those_of_the_specification(draw: Drawn, cpp: CppScorer) -> None:
    def decode(content: bytes) -> Pixels | str:
        try:
            return cpp.preprocess(content)
        except CppError as error:
            return str(error)

    assert faults(map(resized, draw()), decode) == []


@pytest.mark.parametrize("draw", PNG_AND_JPEG)
def test_python_and_cpp_agree(draw: Drawn, cpp: CppScorer) -> None:
    for case in draw():
        try:
            expected = preprocess(case.content, SIDE)
        except ImageError:
            with pytest.raises(CppError):
                cpp.preprocess(case.content)
        else:
            assert difference(cpp.preprocess(case.content), expected) <= (case.tolerance > 0)


def test_resizing_is_pillows_to_the_bit(cpp: CppScorer) -> None:
    """Taller, wider, larger and smaller ones: which way is first shows in the last bit."""
    sides = (1, 7, 50, 90, 95, SIDE, 97, 110, 150, 260, 700)
    for height, width in itertools.product(sides, sides):
        pixels = picture(height, width)
        np.testing.assert_array_equal(
            cpp.preprocess(pixels), preprocess(pixels, SIDE), f"{height} x {width}"
        )


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4)])
def test_arrays_of_pixels_are_taken(shape: tuple[int, ...], cpp: CppScorer) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    assert difference(cpp.preprocess(pixels), preprocess(pixels, SIDE)) <= 1
    with pytest.raises(CppError, match="1, 3 or 4 channels"):
        cpp.preprocess(np.zeros((4, 4, 2), np.uint8))
    with pytest.raises(CppError, match="no pixels"):
        cpp.preprocess(np.zeros((0, 4, 3), np.uint8))


def test_through_224_is_pythons(cpp_library: ctypes.CDLL, tmp_path: Path) -> None:
    scorer = open_scorer(cpp_library, tmp_path, 256, "bicubic-stretch-through-224")
    pixels = picture(300, 270)
    expected = preprocess(pixels, 256, "bicubic-stretch-through-224")
    np.testing.assert_array_equal(scorer.preprocess(pixels), expected)
    assert difference(expected, preprocess(pixels, 256)) > 1
    scorer.close()


@pytest.mark.parametrize("name", ["jpeg", "jpeg progressive", "png rgb", "png palette alpha"])
def test_a_truncated_image_is_refused_where_python_refuses_it(name: str, cpp: CppScorer) -> None:
    whole, refused = CASES[name], 0
    for length in range(0, len(whole), max(len(whole) // 97, 1)):
        try:
            expected = preprocess(whole[:length], SIDE)
        except ImageError:
            refused += 1
            with pytest.raises(CppError) as caught:
                cpp.preprocess(whole[:length])
            assert caught.value.status == 3
            assert str(caught.value)
        else:
            assert difference(cpp.preprocess(whole[:length]), expected) <= 1
    assert refused > 80


def test_a_jpeg_is_read_to_its_end_as_by_python(cpp: CppScorer) -> None:
    """What lies within a scan may end it early, and shows only after its last row."""
    whole = CASES["jpeg"]
    start = whole.index(b"\xff\xda")
    place = start + (len(whole) - start) // 2
    while 0xFF in whole[place - 1 : place + 1]:
        place += 1
    first, second = whole[:place], whole[place:]
    refused = {
        "another start": first + b"\xff\xd8" + second,
        "another start alone": first + b"\xff\xd8",
        "another picture": first + whole,
        "a stray marker": first + b"\xff\xb8" + second,
        "a stray table": first + b"\xff\xc4" + second,
        "no end": whole[:-2],
        "half an end": whole[:-1],
        "a start before the end": whole[:-2] + b"\xff\xd8" + whole[-2:],
    }
    taken = {
        "half of it": first + b"\xff\xd9",
        "more after the end": whole + b"\0" * 20,
        "another picture after the end": whole + whole,
        "rubbish before the end": whole[:-2] + b"\0\1rubbish" + whole[-2:],
        "a stray restart": first + b"\xff\xd3" + second,
    }
    for name, content in refused.items():
        with pytest.raises(ImageError):
            preprocess(content, SIDE)
        with pytest.raises(CppError) as caught:
            pytest.fail(f"{name}: {cpp.preprocess(content)}")
        assert (name, caught.value.status) == (name, 3)
    for name, content in taken.items():
        assert difference(cpp.preprocess(content), preprocess(content, SIDE)) <= 1, name


@pytest.mark.parametrize("name", ["jpeg", "jpeg turn 6", "png rgb", "png palette key", "png rgba"])
def test_a_damaged_image_costs_no_more_than_itself(name: str, cpp: CppScorer) -> None:
    """Whatever bytes come, there are pixels or a reason."""
    random = np.random.default_rng(5)
    statuses = set()
    for _ in range(150):
        damaged = bytearray(CASES[name])
        for place in random.integers(0, len(damaged), random.integers(1, 6)):
            damaged[place] = random.integers(0, 256)
        try:
            cpp.preprocess(bytes(damaged))
        except CppError as error:
            statuses.add(error.status)
    assert statuses == {3}


def test_what_is_no_image_is_refused_with_the_reason(cpp: CppScorer, tmp_path: Path) -> None:
    for source, reason in (
        (b"", "the file is empty"),
        (b"GIF89a", "neither a JPEG nor a PNG"),
        (tmp_path / "none.png", "No such file"),
        (tmp_path, "Is a directory"),
        (png(8, 2, 20000, [b""] * 20000), r"more than 178956970 pixels \(179 million\)"),
    ):
        with pytest.raises(CppError, match=reason) as caught:
            cpp.preprocess(source)
        assert caught.value.status == 3


def test_an_image_is_a_regular_file_of_limited_length(
    cpp: CppScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a writer a pipe would be waited for, and a device has no end."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "a pipe"), ("endless.png", "a device")):
        with pytest.raises(CppError, match=f"{kind}, not a regular file"):
            cpp.preprocess(tmp_path / name)
    good = tmp_path / "good.png"
    good.write_bytes(encode(Image.fromarray(picture(4, 5))))
    length = good.stat().st_size
    for name, most, unit in (("IMAGE_BYTES", length, "bytes"), ("IMAGE_PIXELS", 20, "pixels")):
        variable = f"DSD_TRT_MAX_{name}"
        monkeypatch.setenv(variable, str(most))
        for source in (good, good.read_bytes()):
            assert cpp.preprocess(source).any()
        monkeypatch.setenv(variable, str(most - 1))
        for source in (good, good.read_bytes()):
            with pytest.raises(CppError, match=f"more than {most - 1} {unit}; .* {variable}"):
                cpp.preprocess(source)
        monkeypatch.delenv(variable)
