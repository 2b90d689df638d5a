"""Archives of a kit: pinned wheels for the GPU machine, unpacked, trimmed and compressed."""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pieces import KitError
from prune import prune
from stages import ORT, ROOT, RTX, SITE

MIB = 2**20

# The newest ONNX Runtime for each major version of CUDA, and TensorRT-RTX 1.6.1, because 1.7.1
# refuses Hopper when a plan is opened.
ONNXRUNTIME = {12: "1.26.0", 13: "1.31.1"}
TENSORRT_RTX = "1.6.1.120"
# Versions are those of constraints.txt. The last two are needed by importlib_metadata alone.
LACKING = ("diffusers", "ijson", "importlib_metadata", "lazy-importer", "zipp")
GLIBC = 39  # the newest 2.x whose wheels are taken

# What a run does not import. diffusers imports a pipeline when it is named, and not before.
UNNEEDED = {
    SITE: (
        "diffusers/modular_pipelines",
        "diffusers/pipelines/[!s_]*/",
        "diffusers/pipelines/s[!t]*",
    ),
    ORT: (
        *(f"onnxruntime/{name}" for name in ("transformers", "tools", "quantization", "datasets")),
        "onnxruntime/capi/libonnxruntime.so*",  # for C++; Python's module has all of it
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    ),
    RTX: (),
}


@dataclass(frozen=True)
class Target:
    """The GPU machine.

    Attributes:
        python: Python version, such as "3.12".
        capability: compute capability of the GPU, such as "9.0".
        cuda: major version of CUDA, which PyTorch there was built with.
        also: further requirements of the site archive, such as "tokenizers==0.23.2".
    """

    python: str
    capability: str
    cuda: int
    also: tuple[str, ...] = ()

    def requirements(self, archive: str) -> list[str]:
        """Pinned requirements of an archive."""
        if archive == SITE:
            return [*pinned(LACKING), *self.also]
        if archive == ORT:
            return [f"onnxruntime-gpu=={ONNXRUNTIME[self.cuda]}"]
        parts = ("libs", "bindings")
        return [f"tensorrt-rtx-cu{self.cuda}-{part}=={TENSORRT_RTX}" for part in parts]

    def key(self, archive: str) -> str:
        """First digits of a hash of everything an archive depends on."""
        here = Path(__file__)
        recipe = here.read_bytes() + here.with_name("prune.py").read_bytes()
        own = {SITE: version(), ORT: self.capability}.get(archive)
        asked = repr((archive, self.python, self.requirements(archive), own)).encode()
        return hashlib.sha256(recipe + asked).hexdigest()[:12]


def version() -> str:
    """Version of the project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["version"])


def pinned(names: Sequence[str]) -> list[str]:
    """Requirements with the versions of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if re.match(r"[\w.-]+==", line))
    return [f"{name}=={pins[name]}" for name in names]


def platforms() -> Iterator[str]:
    """Tags of wheels for Linux on x86-64; pip compares them literally."""
    yield from (f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC, 16, -1))
    yield from ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def download(requirements: Sequence[str], target: Target, folder: Path) -> list[Path]:
    """Download the wheels of some requirements, and of nothing that they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={target.python}"]
    command += [f"--platform={tag}" for tag in platforms()]
    done = subprocess.run([*command, "--dest", str(folder), *requirements], check=False)
    if done.returncode:
        raise KitError(
            f"pip found no wheels of {' '.join(requirements)} for Python {target.python} on "
            "x86-64; its message is above"
        )
    return sorted(folder.glob("*.whl"))


def fill(name: str, target: Target, tree: Path, scratch: Path) -> None:
    """Unpack the wheels of an archive to a folder, without what a run does not use."""
    for wheel in download(target.requirements(name), target, scratch):
        with zipfile.ZipFile(wheel) as opened:
            opened.extractall(tree)
    if name == SITE:
        # The working tree travels, so of the project only the entry that names its version is
        # missing.
        entry = tree / f"dsd_trt-{version()}.dist-info" / "METADATA"
        entry.parent.mkdir(parents=True)
        entry.write_text(f"Metadata-Version: 2.1\nName: dsd-trt\nVersion: {version()}\n")
    for pattern in UNNEEDED[name]:
        for path in tree.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if name == ORT:
        # ONNX Runtime is under the MIT licence, which permits this.
        library = tree / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so"
        summary = prune(library, target.capability)
        print(f"{name}: emptied {summary.emptied / MIB:.0f} MiB of other GPUs' code", flush=True)
    if name == RTX:  # the module of the package that has no wheel
        module = tree / "tensorrt_rtx" / "__init__.py"
        module.parent.mkdir()
        bindings = "tensorrt_rtx_bindings"
        module.write_text(f"from {bindings} import *\nfrom {bindings} import __version__\n")


def compress(tree: Path) -> bytes:
    """A folder as `.tar.xz`; the same files give the same bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path in sorted(tree.rglob("*")):
            archive.add(path, path.relative_to(tree), recursive=False, filter=_anonymous)
    content = plain.getbuffer()
    window = min(max(len(content), 4096), 128 * MIB)
    # Machine code packs smaller with its jumps made absolute.
    filters = [
        {"id": lzma.FILTER_X86},
        {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window},
    ]
    return lzma.compress(content, filters=filters)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member


def archive(name: str, target: Target, cache: Path) -> bytes:
    """An archive, from the cache if it was packed before."""
    kept = cache / f"{name}-{target.key(name)}.tar.xz"
    if not kept.exists():
        print(f"{name}: downloading and packing", flush=True)
        tree, scratch = cache / f"{name}-tree", cache / f"{name}-wheels"
        for folder in (tree, scratch):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        fill(name, target, tree, scratch)
        partial = kept.with_suffix(".partial")
        partial.write_bytes(compress(tree))
        partial.rename(kept)
        for folder in (tree, scratch):
            shutil.rmtree(folder)
    return kept.read_bytes()
