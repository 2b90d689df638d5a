"""Try TensorRT-RTX on a GPU that it does not list, such as a data centre's Hopper.

    python3 tools/gpu_offline/try_rtx.py BUNDLE --out OUT

TensorRT-RTX 1.7.1 builds for the GPU at hand and then refuses its own plan on Hopper. Here other
versions are asked in the documented way: build for `CURRENT`, ask whether the plan is valid, open
it. If it opens, `gpu-check` follows. The answers are in OUT.json. Exit codes: 0 a plan opened and
was checked, 1 the library refused, 4 library, driver or GPU is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dsd_trt.bundle.folder import read_bundle
from dsd_trt.engine.tensorrt import runner
from dsd_trt.engine.tensorrt.backend import RTX
from dsd_trt.engine.tensorrt.plan import Profile
from dsd_trt.engines import compile as compiling
from dsd_trt.engines.network import parse
from dsd_trt.errors import DsdError

PROFILE = Profile(1, 8, 32)


def allow(capability: str) -> None:
    """Let the project use TensorRT-RTX on a GPU that the library does not list."""
    listed = runner.rtx_capabilities

    def with_current(trt: Any) -> dict[str, Any]:
        return {**listed(trt), capability: trt.ComputeCapability.CURRENT}

    runner.rtx_capabilities = with_current
    compiling.rtx_capabilities = with_current  # type: ignore[attr-defined]


def open_plan(trt: Any, plan: bytes, found: dict[str, Any]) -> bool:
    """Ask the library about a plan, and open it; what it says goes to `found`."""
    messages: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity != trt.ILogger.Severity.VERBOSE:
                messages.append(f"{severity.name}: {message}")

    logger = Logger()
    library = trt.Runtime(logger)
    if hasattr(library, "get_engine_validity"):
        found["validity"] = " ".join(map(str, library.get_engine_validity(plan)))
    engine = library.deserialize_cuda_engine(plan)
    found["messages"] = messages[-20:]
    return engine is not None


def attempt(folder: Path, out: Path, found: dict[str, Any]) -> bool:
    """Build, ask, open and check; whether all of it worked."""
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401 - loads the CUDA libraries that TensorRT-RTX may look for
    trt = runner.load_library("tensorrt-rtx")
    found["version"] = str(trt.__version__)
    from dsd_trt.engine.cuda import compute_capability

    found["compute_capability"] = capability = compute_capability()
    found["listed"] = capability in runner.rtx_capabilities(trt)
    allow(capability)
    bundle = read_bundle(folder)
    graph = bundle.manifest.graphs["text_encoder"]  # the smallest
    began = time.monotonic()
    settings = compiling.CompileSettings((PROFILE,), (capability,))
    network = parse(trt, bundle.path(graph.file))
    shapes = [compiling.batch_shapes(graph, PROFILE)]
    plan = bytes(memoryview(compiling.compile_plan(network, shapes, settings)))
    found["build"] = f"{len(plan)} bytes in {time.monotonic() - began:.1f} s"
    found["opened"] = open_plan(trt, plan, found)
    if not found["opened"]:
        return False
    from dsd_trt.engines.gpu_check.check import check_gpu
    from dsd_trt.engines.gpu_check.tables import write_report

    report = out.with_name(f"{out.name}-check")
    check_gpu(bundle, RTX, PROFILE, save=partial(write_report, out=report))
    found["checked"] = True
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Try a bundle's plans; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="path of the results, no suffix")
    given = parser.parse_args(arguments)
    for folder in (given.bundle, given.out.parent):
        if not folder.is_dir():
            parser.error(f"no folder {folder}")
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch:  # plans are written into the bundle
            own = Path(shutil.copytree(given.bundle, Path(scratch) / "bundle"))
            code = 0 if attempt(own, given.out, found) else 1
    except DsdError as error:
        found["error"] = str(error)
        code = 4 if "compute_capability" not in found else 1
    finally:
        given.out.with_name(f"{given.out.name}.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
    if "error" in found:  # the last line is what reports show of a stage
        print(found["error"], file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
