"""Score the examples with the installed package, which must not be the clone's.

Usage: try_wheel.py [--kernel] EXAMPLES. With --kernel, the compiled kernel has to load, too.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import sysconfig
from pathlib import Path

import dsd_trt
from dsd_trt.engine.pooled_attention import available


def main(examples: Path, kernel: bool) -> None:
    """Score with Python and with the command, both of the running environment."""
    pairs = list(csv.DictReader((examples / "pairs.csv").open(encoding="utf-8")))
    if not pairs:
        sys.exit(f"{examples / 'pairs.csv'} has no pairs")
    if not Path(dsd_trt.__file__).is_relative_to(sysconfig.get_path("purelib")) and not Path(
        dsd_trt.__file__
    ).is_relative_to(sysconfig.get_path("platlib")):
        sys.exit(f"{dsd_trt.__file__} is not of this environment")
    if kernel and not available():
        sys.exit("the kernel was not compiled, or not for this processor")
    image, text = examples / pairs[0]["image"], pairs[0]["text"]
    scored = dsd_trt.Scorer.load().score([image], [text, "a text of something else"])
    if not scored.scores[0, 0] > scored.scores[0, 1]:
        sys.exit(f"{image} does not match {text!r} best: {scored.scores}")
    command = [f"{sysconfig.get_path('scripts')}/dsd-trt", "score", str(image), "-"]
    run = subprocess.run(command, input=text, text=True, check=True, stdout=subprocess.PIPE)
    print(run.stdout.strip())


if __name__ == "__main__":
    arguments = [it for it in sys.argv[1:] if it != "--kernel"]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.exit(__doc__)
    if not (Path(arguments[0]) / "pairs.csv").is_file():
        sys.exit(f"{arguments[0]} has no pairs.csv: name the folder of examples")
    main(Path(arguments[0]), "--kernel" in sys.argv)
