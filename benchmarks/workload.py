"""One measurement of one build in a separate process; `against.py` runs it in both builds.

    python workload.py import|versions
    python workload.py draw FOLDER
    python workload.py start|pairs|files|index ENGINE FOLDER
    python workload.py random FOLDER
    python workload.py export MODEL FOLDER

Writes one line of JSON. Uses only names that every build since the first one has.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXTS = [
    f"a {size} {colour} {shape}"
    for size in ("large", "small")
    for colour in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square")
]
# Number of arguments of each measurement.
WORKS = {"versions": 0, "import": 0, "draw": 1, "start": 2, "pairs": 2, "files": 2, "index": 2}
WORKS |= {"random": 1, "export": 2}
LARGE = 40  # photographs of twelve megapixels
BURSTS = 3  # timed calls per process; the median is reported


def say(**found: Any) -> None:
    """Print a line for the parent, which records the time, and continue."""
    print(json.dumps(found), flush=True)


def start_up() -> None:
    """Import the modules that scoring needs first."""
    before = time.perf_counter(), time.process_time()
    from dsd_trt import Scorer  # noqa: F401

    say(seconds=time.perf_counter() - before[0], processor=time.process_time() - before[1])


def score_one(engine: str, folder: Path) -> None:
    """Load, and score one pair; the parent's clock has run since before this process began."""
    from dsd_trt import Scorer

    Scorer.load(engine=engine).score([folder / "pictures" / "00.png"], TEXTS[:1])
    say(processor=time.process_time())


def throughput(engine: str, images: list[Any], texts: list[str]) -> None:
    """Pairs per second of a warm scorer."""
    from dsd_trt import Scorer

    scorer = Scorer.load(engine=engine)

    def score() -> None:
        scorer.score(images, texts)

    score()  # the first use compiles graphs for whole batches, and finds the fastest size
    bursts = sorted(_timed(score) for _ in range(BURSTS))
    seconds, processor = bursts[BURSTS // 2]
    pairs = len(images) * len(texts)
    say(rate=pairs / seconds, processor_rate=pairs / processor, peak_mib=peak_mib())


def index(engine: str, photographs: list[Path]) -> None:
    """Photographs indexed per second, from files to an index on disk, by a process that is warm."""
    import tempfile

    from dsd_trt import update_index

    with tempfile.TemporaryDirectory() as folder:
        update_index(Path(folder) / "warm", photographs[:1], engine=engine)
        seconds, processor = _timed(
            lambda: update_index(Path(folder) / "index", photographs, engine=engine)
        )
    count = len(photographs)
    say(rate=count / seconds, processor_rate=count / processor, peak_mib=peak_mib())


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    before = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - before[0], time.process_time() - before[1]


def peak_mib() -> float | None:
    """Peak memory of this process in MiB; None if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def draw(folder: Path) -> None:
    """Write the images to score: small ones, the same at photograph size, and large photographs."""
    import random

    from PIL import Image, ImageChops, ImageDraw

    chance = random.Random(0)
    for kind in ("pictures", "photographs", "large"):
        (folder / kind).mkdir()
    for number in range(LARGE):  # a gradient with noise, in twelve megapixels
        noise = Image.effect_noise((4000, 3000), 30 + number)
        parts = Image.linear_gradient("L").resize((4000, 3000)), noise, ImageChops.invert(noise)
        Image.merge("RGB", parts).save(folder / "large" / f"{number:02}.jpg", quality=90)
    for number in range(16):
        picture = Image.new("RGB", (128, 128), tuple(chance.randrange(256) for _ in range(3)))
        pen = ImageDraw.Draw(picture)
        for _ in range(3):
            x, y, side = (chance.randrange(10, 60) for _ in range(3))
            colour = tuple(chance.randrange(256) for _ in range(3))
            chance.choice([pen.ellipse, pen.rectangle])((x, y, x + side, y + side), fill=colour)
        picture.save(folder / "pictures" / f"{number:02}.png")
        large = picture.resize((1600, 1200), Image.Resampling.BICUBIC)
        large.save(folder / "photographs" / f"{number:02}.jpg", quality=90)
    say(images=32 + LARGE)


def command(*words: str) -> None:
    """Run a command of dsd-trt in this process; what it prints goes to stderr."""
    from dsd_trt.__main__ import run

    sys.argv = ["dsd-trt", *words]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            run()
        except SystemExit as ended:
            if ended.code:
                raise


def export(model: str, folder: Path) -> None:
    """Export "shapes", or the model that `random` wrote."""
    model = model if model == "shapes" else str(folder / model)
    command("export", "--model", model, "--out", str(folder / "exported"), "--force")
    say(processor=time.process_time(), peak_mib=peak_mib())


def versions() -> None:
    """Versions of the libraries the build uses."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in ("onnxruntime", "openvino", "numpy", "pillow", "tokenizers", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name != "torch":  # which is there for exports only
                found[name] = "-"
    say(versions=found)


def main(work: str, *arguments: str) -> None:
    """Run one measurement; an engine missing on this machine is not a failure."""
    if work == "versions":
        versions()
    elif work == "draw":
        draw(Path(arguments[0]))
    elif work == "import":
        start_up()
    elif work == "random":
        command("make-random", "--family", "sd15", "--tiny", "--out", f"{arguments[0]}/tiny")
        say(models=1)
    elif work == "export":
        export(arguments[0], Path(arguments[1]))
    else:
        engine, folder = arguments[0], Path(arguments[1])
        pictures, photographs = (
            sorted((folder / kind).iterdir()) for kind in ("pictures", "photographs")
        )
        if work == "start":
            score_one(engine, folder)
        elif work == "index":
            index(engine, sorted((folder / "large").iterdir()))
        elif work == "pairs":
            throughput(engine, [picture.read_bytes() for picture in pictures[:4]], TEXTS)
        else:
            throughput(engine, photographs, TEXTS[:4])


if __name__ == "__main__":
    if len(sys.argv) < 2 or WORKS.get(sys.argv[1]) != len(sys.argv) - 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
