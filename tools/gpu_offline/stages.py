"""Stages of a run on the GPU machine: what each one runs, needs and may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SITE, ORT, RTX = "site", "ort", "rtx"
"""Archives: Python packages the machine lacks, ONNX Runtime with CUDA, TensorRT-RTX."""

ABSENT = r"no CUDA device|NVIDIA's driver|these tests need a GPU"
"""Messages of the project where the driver is missing, as a regular expression."""

LACKING = (
    r"has no CUDA|not found, which|is not installed\. Install it with|does not load|overwritten"
    r"|is incomplete|lacks files"
)
"""Messages of the engine where something else is missing, beside the driver or not."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: name on the command line and of the results.
        about: what it finds out.
        limit: seconds after which it is stopped.
        commands: argument lists of Python, run in turn until one fails. `{kit}`, `{out}`, `{root}`
            and `{tools}` are folders: the kit, its results, the clone, and this file's.
        needs: archives that must be unpacked.
        first: archives whose packages are found before the machine's own, in this order.
        after: stage whose results it needs; it waits for that stage within its own limit.
        background: whether the call goes on at once, and may end before the stage.
        gpu: whether it needs a GPU.
        optional: whether it is left out unless named.
    """

    name: str
    about: str
    limit: int
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    first: tuple[str, ...] = (SITE,)
    after: str | None = None
    background: bool = False
    gpu: bool = True
    optional: bool = False


def _check(
    name: str, about: str, limit: int, bundle: str, *peers: str, after: str | None = None
) -> Stage:
    command = ["-m", "dsd_trt", "gpu-check", bundle, "--engine", "onnxruntime-cuda"]
    command += ["--batch", "1,8,32", *peers, "--out", f"{{out}}/{name}"]
    return Stage(name, about, limit, (tuple(command),), (SITE, ORT), (ORT, SITE), after)


_EXPORT = (
    *("-m", "dsd_trt", "export", "--precision", "fp16", "--matrix", "--cuda-form"),
    *("--verify", "quick", "--force", "--out", "{kit}/bundles/demonstration"),
)
_TESTS = ("-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider")
_REMOVE = ("-c", "import shutil, sys; shutil.rmtree(sys.argv[1], True)", "{kit}/models/sd21")
_RANDOM = ("-m", "dsd_trt", "make-random", "--family", "sd21-base", "--out", "{kit}/models/sd21")

_EXPORTING = 3600  # seconds; who waits for an export has a limit of its own

# The exports come first, because others wait for them. Of what runs in the foreground, the most
# valuable answers come first; a long shot comes last.
STAGES = (
    Stage(
        "export-sd21",
        "an FP16 bundle with a matrix scorer and forms for CUDA, at Stable Diffusion 2.1 base's "
        "size with random weights",
        _EXPORTING,
        (
            _REMOVE,
            _RANDOM,
            ("{tools}/export_uncompared.py", "{kit}/models/sd21", "{kit}/bundles/sd21"),
        ),
        needs=(SITE,),
        background=True,
        gpu=False,
    ),
    Stage(
        "export",
        "the same of the demonstration",
        _EXPORTING,
        (_EXPORT,),
        needs=(SITE,),
        background=True,
        gpu=False,
    ),
    Stage(
        "facts",
        "the machine, its versions, copy bandwidth and one large FP16 product",
        30,
        (("{tools}/facts.py", "{out}/facts.json"),),
    ),
    Stage(
        "test-gpu",
        "the tests that need a GPU",
        75,
        ((*_TESTS, "tests/train/test_cuda.py"),),
        needs=(SITE,),
    ),
    _check(
        "check-demonstration",
        "onnxruntime-cuda on the demonstration's bundle, in FP32",
        45,
        "dsd_trt/data/shapes-bundle",
    ),
    _check(
        "check-matrix",
        "the same in FP16, pair and matrix mode, beside PyTorch",
        90,
        "{kit}/bundles/demonstration",
        *("--model", "shapes"),
        after="export",
    ),
    _check(
        "check-sd21",
        "the same at Stable Diffusion 2.1 base's size",
        240,
        "{kit}/bundles/sd21",
        *("--model", "{kit}/models/sd21"),
        after="export-sd21",
    ),
    Stage(
        "rtx",
        "whether TensorRT-RTX builds and opens a plan on this GPU; if so, all of gpu-check",
        60,
        (("{tools}/try_rtx.py", "dsd_trt/data/shapes-bundle", "--out", "{out}/rtx"),),
        needs=(RTX,),
        first=(RTX, SITE),
    ),
    Stage(
        "rtx-matrix",
        "the same in FP16, with plans of the matrix scorer",
        120,
        (("{tools}/try_rtx.py", "{kit}/bundles/demonstration", "--out", "{out}/rtx-matrix"),),
        needs=(RTX, SITE),
        first=(RTX, SITE),
        after="export",
        optional=True,
    ),
    Stage(
        "rtx-sd21",
        "the same at Stable Diffusion 2.1 base's size",
        200,
        (("{tools}/try_rtx.py", "{kit}/bundles/sd21", "--out", "{out}/rtx-sd21"),),
        needs=(RTX, SITE),
        first=(RTX, SITE),
        after="export-sd21",
        optional=True,
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}

TOOLS = Path(__file__).resolve().parent
ROOT = TOOLS.parents[1]
