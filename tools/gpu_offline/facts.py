"""State a GPU machine: hardware, versions, copy bandwidth and one large FP16 product.

    python3 tools/gpu_offline/facts.py facts.json

Exit codes: 0 measured, 4 there is no CUDA device, and the file has the rest.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIDE = 8192  # of the square matrices that are multiplied
COPIED = 2**32  # bytes of the copy
LIBRARIES = (
    *("torch", "triton", "onnxruntime", "onnxruntime-gpu", "cuda-bindings"),
    *("nvidia-cuda-runtime", "nvidia-cuda-nvrtc", "nvidia-cublas", "nvidia-cudnn-cu13"),
)
QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm"


def requirements() -> list[str]:
    """Names of the packages that scoring, training and export need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *extras["train"], *extras["export"]]
    names = [match[0] for it in listed if (match := re.match(r"[\w.-]+", it))]
    return sorted({name for name in names if name != project["name"]})


def versions(names: list[str]) -> dict[str, str | None]:
    """Installed version of each package; None if it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def missing(names: list[str]) -> list[str]:
    """What the named packages and their requirements lack here, such as "requests" or "a<2"."""
    from packaging.requirements import Requirement

    lacking, seen = set(), set(names)
    left = [Requirement(name) for name in names]
    while left:
        requirement = left.pop()
        try:
            found = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            lacking.add(requirement.name)
            continue
        if not requirement.specifier.contains(found.version, prereleases=True):
            lacking.add(f"{requirement.name}{requirement.specifier}")
        for line in found.requires or ():
            needed = Requirement(line)
            if (needed.marker is None or needed.marker.evaluate({"extra": ""})) and (
                str(needed) not in seen
            ):
                seen.add(str(needed))
                left.append(needed)
    return sorted(lacking)


def nvidia_smi() -> dict[str, str]:
    """Answers of the driver's own tool, by question; empty if it is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(QUERY.split(","), done.stdout.strip().split(", "), strict=False))


def median_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """Median duration of single runs on the GPU in seconds, after three runs that do not count."""
    import torch

    for _ in range(3):
        work()
    taken = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        work()
        after.record()
        after.synchronize()
        taken.append(before.elapsed_time(after) / 1000)
    return statistics.median(taken)


def copied(size: int) -> float:
    """Bytes per second, read and written, of copying `size` bytes on the GPU."""
    import torch

    source = torch.empty(size, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * size / median_seconds(lambda: target.copy_(source))


def measure_gpu() -> dict[str, Any]:
    """Size and speed of the first GPU: read and written TB/s, and TFLOP/s of FP16 products."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    facts: dict[str, Any] = {
        "name": properties.name,
        "compute_capability": f"{major}.{minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
        "cuda_of_torch": torch.version.cuda,
        "cudnn_of_torch": torch.backends.cudnn.version(),
    }
    size = min(COPIED, torch.cuda.mem_get_info()[0] // 4)
    facts["copy_tb_s"] = copied(size) / 1e12
    # Random values: zeros switch fewer transistors, so that the clock stays higher.
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.float16) for _ in range(2))
    facts["fp16_product_tflops"] = 2 * SIDE**3 / median_seconds(lambda: a @ b) / 1e12
    return facts


def main(path: Path) -> int:
    """Write the facts to a file, and print them; returns the exit code."""
    needed = versions(requirements())
    facts: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="minutes"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "nvidia_smi": nvidia_smi(),
        "versions": {**needed, **versions(list(LIBRARIES))},
        "missing": missing(requirements()),
    }
    absent = why_no_gpu()
    if absent is None:
        facts["gpu"] = measure_gpu()
    text = json.dumps(facts, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    if absent is None:
        return 0
    print(f"no CUDA device: {absent}", file=sys.stderr)
    return 4


def why_no_gpu() -> str | None:
    """Why PyTorch has no GPU here, or None if it has one."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported ({error})"
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} was built without CUDA"
    return None if torch.cuda.is_available() else "NVIDIA's driver or its GPU is missing"


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
