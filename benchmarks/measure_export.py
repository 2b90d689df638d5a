"""Measure an export stage by stage: wall time, processor time and peak memory.

python benchmarks/measure_export.py [MODEL] [--matrix] [--tiny FAMILY]

MODEL is named as for `dsd-trt export`; the default is the demonstration with its adapter. --tiny
exports a family's model with few channels and random weights instead.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from dsd_trt.errors import DsdError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.place import find_place
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.run.libraries import hush_libraries


def main() -> None:
    """Export to a temporary folder, and print a table of the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="shapes")
    parser.add_argument("--matrix", action="store_true", help="export the matrix scorer too")
    parser.add_argument("--tiny", choices=FAMILIES, metavar="FAMILY", help="a random model instead")
    options = parser.parse_args()
    hush_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model
        if options.tiny:
            model = str(Path(scratch) / "model")
            write_random_model(Path(model), tiny(FAMILIES[options.tiny]))
        settings = ExportSettings(
            model=model, adapter=find_place(model).own_adapter, matrix=options.matrix or None
        )
        stamps: list[tuple[str, float, float]] = []

        def stage(name: str) -> None:
            stamps.append((name, time.perf_counter(), time.process_time()))

        export_bundle(settings, Path(scratch) / "bundle", stage=stage)
        stage("Whole export")
    print("| stage | seconds | processor seconds |\n|---|---:|---:|")
    for (name, wall, used), (_, wall_after, used_after) in pairwise(stamps):
        print(f"| {name} | {wall_after - wall:.1f} | {used_after - used:.1f} |")
    (_, wall, used), (name, wall_after, used_after) = stamps[0], stamps[-1]
    print(f"| {name} | {wall_after - wall:.1f} | {used_after - used:.1f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"peak memory: {peak:.0f} MiB")


if __name__ == "__main__":
    try:
        main()
    except DsdError as error:
        sys.exit(str(error))
