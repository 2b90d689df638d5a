"""The C++ library under sanitizers, fed mutated images, tokenizers and bundles."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cpp import build, clip_bundle
from image_mutations import mutate_numbers, mutate_png
from mutations import mutate_bytes, mutate_json
from pictures import PNG_AND_JPEG
from self_checked import add_self_check
from test_cpp import edit, vouch
from test_cpp_image import CASES, clip_tokenizer
from torture import Figures, scaled

from dsd_trt.engine.self_check import FILE_NAME

pytest_plugins = ("cpp",)

pytestmark = pytest.mark.timeout(1800)  # the library may have to be built first

SOUND = {0, 2, 3, 4}  # exit codes of `dsd-score`; a sanitizer ends it with 1
A_PROCESS = 300  # images


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """`dsd-score` with AddressSanitizer, its leak checker and UndefinedBehaviorSanitizer."""
    flags = "-DDSD_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug"
    return build("build/sanitized", f"CMAKE_ARGS={flags}") / "dsd-score"


@pytest.fixture
def bundle_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    add_self_check(clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch))
    return tmp_path / "bundle"


def score(sanitized: Path, bundle: Path, images: Path, told: str, figures: Figures) -> None:
    """Score images with two texts; what is none of its exit codes is a fault."""
    texts = bundle.with_name("texts.txt")
    texts.write_text("a red circle\nit's 東京 🙂 <|endoftext|>\n", "utf-8")
    environment = {**os.environ, "DSD_TRT_MAX_IMAGE_PIXELS": "4000000"}
    try:
        done = subprocess.run(
            [sanitized, bundle, images, texts],
            capture_output=True,
            env=environment,
            timeout=300,
        )
    except subprocess.TimeoutExpired:
        figures.fault("hung", told)
        return
    said = done.stderr.decode(errors="replace")
    if done.returncode not in SOUND or "Sanitizer" in said or "runtime error" in said:
        figures.fault("foreign exceptions", f"{told}: {done.returncode}, {said[-1500:]}")
    figures.outcomes[f"exit code {done.returncode}"] += 1


@pytest.mark.torture
def test_mutated_images_trip_no_sanitizer(
    sanitized: Path, bundle_folder: Path, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(
        "mutated images in the C++ library under sanitizers", "foreign exceptions", "hung"
    )
    files = [*CASES.values(), *(case.content for draw in PNG_AND_JPEG for case in draw())]
    count = scaled(3000, 100)
    for start in range(0, count, A_PROCESS):
        images = tmp_path / f"from-{start}"
        images.mkdir()
        for seed in range(start, min(start + A_PROCESS, count)):
            draw = random.Random(seed)
            ways: tuple[Callable[[bytes, random.Random], bytes], ...]
            ways = (mutate_bytes, mutate_numbers, mutate_png)
            content = draw.choice(ways)(draw.choice(files), draw)
            (images / f"{seed}.png").write_bytes(content)
            figures.ended()
        score(sanitized, bundle_folder, images, f"images from {start}", figures)


@pytest.mark.torture
@pytest.mark.parametrize("name", ["bundle.json", "tokenizer.json", "pair_scorer.onnx", FILE_NAME])
def test_mutated_bundles_trip_no_sanitizer(
    sanitized: Path, bundle_folder: Path, name: str, tmp_path: Path, figures: Figures
) -> None:
    figures.look_for(
        "mutated bundles in the C++ library under sanitizers", "foreign exceptions", "hung"
    )
    image = tmp_path / "image.png"
    image.write_bytes(CASES["png rgba"])
    mutate = mutate_json if name.endswith(".json") else mutate_bytes
    content, manifest = ((bundle_folder / it).read_bytes() for it in (name, "bundle.json"))
    for seed in range(scaled(250, 5)):
        (bundle_folder / "bundle.json").write_bytes(manifest)
        (bundle_folder / name).write_bytes(mutate(content, random.Random(seed)))
        if name != "bundle.json":
            edit(bundle_folder / "bundle.json", lambda m: vouch(bundle_folder, m, name))
        score(sanitized, bundle_folder, image, f"{name}, seed {seed}", figures)
        figures.ended()
