"""Export an FP16 bundle for `gpu-check`, without the comparison with PyTorch that ends an export.

    python3 tools/gpu_offline/export_uncompared.py MODEL BUNDLE

At Stable Diffusion's size the comparison takes longer than all else, and `gpu-check` compares the
scores with FP32 again. The bundle has a matrix scorer, forms for CUDA and a self-check, whose
results are PyTorch's.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dsd_trt.commands.console import stages
from dsd_trt.errors import DsdError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.run.libraries import hush_libraries


def main(arguments: Sequence[str] | None = None) -> int:
    """Export as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="checkpoint, as for dsd-trt export --model")
    parser.add_argument("bundle", type=Path, help="folder to write, replaced if it is not empty")
    given = parser.parse_args(arguments)
    hush_libraries()
    settings = ExportSettings(
        given.model, precision="fp16", matrix=True, cuda_form="attention", verify="none"
    )
    logging.basicConfig(format="%(levelname)s: %(message)s")  # warnings of the export
    try:
        with stages() as stage:
            export_bundle(settings, given.bundle, force=True, stage=stage)
            stage("Done")
    except DsdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
