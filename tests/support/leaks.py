"""Open, use and drop many scorers, and print the process's resources; for test_shared_engines.

    python leaks.py BUNDLE ENGINE MODE COUNT [broken]

Prints a JSON list of {"mib", "threads", "files"}: after a tenth of the scorers, and after all.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dsd_trt import DsdError, Scorer, read_bundle


def held() -> dict[str, float]:
    """Memory in MiB, threads and open files of this process."""
    threads = []
    for _ in range(20):  # the system counts a thread a little longer than `join` waits for it
        status = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        threads.append(int(status["Threads"]))
        time.sleep(0.01)
    return {
        "mib": int(status["VmRSS"].split()[0]) / 1024,
        "threads": min(threads),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


def main(folder: str, engine: str, mode: Any, count: str, broken: str = "") -> None:
    """Open and drop scorers; with `broken`, opening fails at the scorer, after the encoders."""
    bundle = read_bundle(Path(folder))
    if broken:
        graph = bundle.path(bundle.manifest.graphs[f"{mode}_scorer"].file)
        graph.write_bytes(bundle.path(bundle.manifest.graphs["text_encoder"].file).read_bytes())
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in range(40)]
    found = []
    for number in range(1, int(count) + 1):
        with contextlib.suppress(DsdError):
            scorer = Scorer(bundle, engine, mode=mode)
            assert not broken
            assert np.isfinite(scorer.score(images, ["a dog", "red"]).scores).all()
            del scorer
        if number in (int(count) // 10, int(count)):
            found.append(held())
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) not in (5, 6) or not sys.argv[4].isdecimal():
        sys.exit(__doc__)
    main(*sys.argv[1:])
