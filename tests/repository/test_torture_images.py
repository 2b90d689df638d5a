"""Thousands of mutated images of every format: each is read or refused, soon, and nothing stays."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from image_mutations import mutate_numbers, mutate_png
from leaks import held
from mutations import mutate_bytes
from pictures import OTHERS, PNG_AND_JPEG
from pictures.case import encode
from PIL import Image
from torture import Figures, scaled

from dsd_trt.errors import ImageError
from dsd_trt.image.preprocess import load_image

SOON = 5.0  # seconds an image
PIXELS = 4_000_000  # or a forged size would cost a second, and the whole run a day
FORMATS: dict[str, bytes | tuple[bytes, ...]] = {
    "PNG": b"\x89PNG",
    "JPEG": b"\xff\xd8",
    "GIF": b"GIF8",
    "BMP": b"BM",
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "WEBP": b"RIFF",
    "AVIF": b"\0\0\0",
    "JPEG2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "PPM": b"P",
}
EACH = 2500  # of a format; nine of them are 22,500


def of_format(form: str, content: bytes) -> bool:
    if form == "AVIF":
        return content[4:8] == b"ftyp"
    return content.startswith(FORMATS[form])


@pytest.fixture(scope="module")
def originals() -> dict[str, list[bytes]]:
    """Files of every kind that `pictures` draws, and a larger one that Pillow writes."""
    drawn = [case.content for draw in (*PNG_AND_JPEG, *OTHERS) for case in draw()]
    found = {
        form: [it for it in drawn if of_format(form, it) and len(it) < 50_000] for form in FORMATS
    }
    noise = np.random.default_rng(2).integers(0, 256, (48, 64, 3), np.uint8)
    for form, files in found.items():
        if form in Image.SAVE:
            files.append(encode(Image.fromarray(noise), form))
    return found


def mutations(form: str, files: list[bytes], count: int) -> Iterator[tuple[int, bytes]]:
    """Seeds, and what they make of a file."""
    for seed in range(count):
        draw = random.Random(f"{form} {seed}")
        ways: list[Callable[[bytes, random.Random], bytes]] = [mutate_bytes, mutate_numbers]
        ways += [mutate_png] * 2 if form == "PNG" else []
        content = draw.choice(ways)(draw.choice(files), draw)
        if draw.random() < 0.1:
            content = mutate_bytes(content, draw)
        yield seed, content


@pytest.mark.torture
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMATS)
def test_mutated_images_are_read_or_refused(
    form: str,
    originals: dict[str, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: Figures,
) -> None:
    figures.look_for(f"mutated {form} images", "foreign exceptions", "wrong", "hung")
    monkeypatch.setenv("DSD_TRT_MAX_IMAGE_PIXELS", str(PIXELS))
    path = tmp_path / "image"
    early: dict[str, float] = {}
    slowest = 0.0
    count = scaled(EACH)
    for seed, content in mutations(form, originals[form], count):
        path.write_bytes(content)
        began = time.monotonic()
        try:
            image = load_image(content)
            outcome = "read"
            if image.mode != "RGB" or 0 in image.size:
                figures.fault("wrong", f"seed {seed}: {image.mode}, {image.size}")
        except ImageError as error:
            outcome = "refused"
            if not str(error) or "\n" in str(error) or len(str(error)) > 500:
                figures.fault("wrong", f"seed {seed}: the reason {str(error)!r}")
        except Exception as error:
            outcome = "broke"
            figures.fault("foreign exceptions", f"seed {seed}: {error!r}")
        seconds = time.monotonic() - began
        slowest = max(slowest, seconds)
        if seconds > SOON:
            figures.fault("hung", f"seed {seed}: {seconds:.1f} s")
        figures.ended(outcome)
        if seed % 10 == 0 and outcome != "broke":
            same_from_a_file(path, outcome, image if outcome == "read" else None, seed, figures)
        if seed == count // 4:
            early = held()
    late = held()
    figures.measured |= {
        "slowest, s": round(slowest, 2),
        "MiB after a quarter": round(early["mib"]),
        "MiB at the end": round(late["mib"]),
    }
    assert late["threads"] <= early["threads"]
    assert late["files"] <= early["files"]
    assert late["mib"] < early["mib"] + 64


def same_from_a_file(
    path: Path, outcome: str, image: Image.Image | None, seed: int, figures: Figures
) -> None:
    """A path is read as the bytes that lie there."""
    try:
        again: Image.Image | None = load_image(path)
    except ImageError:
        again = None
    same = (again is None) == (image is None)
    if image is not None and again is not None:
        same = np.array_equal(np.asarray(again), np.asarray(image))
    if not same:
        figures.fault("wrong", f"seed {seed}: {outcome} as bytes, and otherwise from a file")
