"""`dsd-trt doctor` on packages, engines, GPUs, the kernel and bundles that a test has broken.

Packages are wheels and folders made here, drivers are compiled here. Nothing is asked of a network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
from control_groups import NoGroupError, control_group, within
from cuda_package import write_package
from examined import ROOT, examined, exported
from processor import BF16
from stub_libraries import compile_driver, compile_library, cut_short, needs_compiler

from dsd_trt import Bundle
from dsd_trt.doctor.bundle import study_here
from dsd_trt.doctor.engines import LIBRARIES, examine, why_not
from dsd_trt.doctor.finding import Finding, split_advice
from dsd_trt.doctor.gpu import pci_devices
from dsd_trt.doctor.studied import Studied
from dsd_trt.engine import AUTO, BACKENDS, find_backend
from dsd_trt.engine.tensorrt.plan import Profile, Sidecar, write_plan
from dsd_trt.installation import install_command

MIB = 2**20


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> Path:
    """A wheel with these files."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{it},,\n" for it in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for it, content in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(it, content)
    return path


def install(site: Path, path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*command, "--target", site, path], check=True, stderr=subprocess.DEVNULL)


def metadata(site: Path, **versions: str) -> None:
    """What installers record of distributions; two underscores in a name are a hyphen."""
    for name, version in versions.items():
        folder = site / f"{name.replace('__', '_')}-{version}.dist-info"
        folder.mkdir()
        named = name.replace("__", "-")
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {named}\nVersion: {version}\n"
        )


# Engines

BROKEN = {
    "import ctypes; ctypes.CDLL('libopenvino.so.9')": "libopenvino.so.9",
    "raise RuntimeError('built for another Python')": "built for another Python",
    "import os; os.abort()": "ended by SIGABRT",
    "import os; os._exit(7)": "ended with exit code 7",
    "import sys; sys.exit('no licence')": "no licence",
}


@pytest.mark.parametrize("source", BROKEN)
def test_a_wheel_that_fails_on_import(source: str, site: Path, tmp_path: Path) -> None:
    install(site, wheel(tmp_path, "openvino", "2026.9", {"openvino/__init__.py": source}))
    found = examined("engines:examine_engine", "openvino", None, site=[site])["openvino"]
    assert found.state == "fault"
    assert BROKEN[source] in found.detail
    assert found.facts["version"] == "2026.9"
    assert (found.facts["works"], found.facts["fits"]) == (False, False)
    assert "pip install" in found.remedy
    assert "[openvino]" in found.remedy
    # Without that wheel, the one of this environment is found.
    shutil.rmtree(site / "openvino")
    again = examined("engines:examine_engine", "openvino", None, site=[site])["openvino"]
    assert again.state == "ok"
    assert again.detail.startswith("openvino 2026")


def test_an_engine_that_is_not_installed(site: Path) -> None:
    for name in ("openvino", "onnxruntime"):
        found = examined("engines:examine_engine", name, None, site=[site], alone=True)[name]
        assert (found.state, found.detail) == ("note", f"{name} is not installed")
        assert " install " in found.remedy
        assert ("[cpu]" if name == "onnxruntime" else "[openvino]") in found.remedy


def test_what_works_has_computed() -> None:
    found = examined("engines:examine_engine", "onnxruntime", None)["onnxruntime"]
    assert found.state == "ok"
    assert found.facts["computed"] is True
    assert " on CPU, fp32" in found.detail


WRONG = """
import sys, importlib.util
here = sys.path.index({site!r})
sys.path[:here + 1], before = [], sys.path[:here + 1]
del sys.modules["onnxruntime"]
import onnxruntime
sys.path[:0] = before
session = onnxruntime.InferenceSession
class InferenceSession(session):
    def run(self, *given):
        return [it + 1 for it in session.run(self, *given)]
onnxruntime.InferenceSession = InferenceSession
sys.modules["onnxruntime"] = onnxruntime
"""


def test_an_engine_that_computes_something_else(site: Path) -> None:
    """It imports, and its results are not those of the export."""
    (site / "onnxruntime").mkdir()
    (site / "onnxruntime" / "__init__.py").write_text(WRONG.format(site=str(site)))
    found = examined("engines:examine_engine", "onnxruntime", None, site=[site])["onnxruntime"]
    assert found.state == "fault"
    assert "self-check of the text encoder" in found.detail


def test_bf16_is_no_fault_of_a_processor_without_it() -> None:
    name = "openvino-bf16"
    found = examined("engines:examine_engine", name, None, ONEDNN_MAX_CPU_ISA="AVX2")[name]
    assert found.state == "note"
    assert "does not compute in BF16" in found.detail
    assert found.remedy == "dsd-trt score IMAGES TEXTS --engine openvino"
    as_here = os.environ.get("ONEDNN_MAX_CPU_ISA")  # as `make test-avx2` sets it
    again = examined("engines:examine_engine", name, None, ONEDNN_MAX_CPU_ISA=as_here)[name]
    assert (again.state == "ok") == BF16


def test_memory_that_ends_an_engine() -> None:
    limit, name = str(40 * MIB), "openvino"
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
    first, second = dict.fromkeys(names, limit), {"memory.max": limit, "memory.swap.max": "0"}
    try:
        with control_group("memory", first, second) as group:
            enter = partial(within, group)
            found = examined("engines:examine_engine", name, None, prefix=enter)[name]
    except NoGroupError as error:
        pytest.skip(f"no control group: {error}")
    assert found.state == "fault"
    assert "ended by SIGKILL: the system ends processes for which there is no memory" in (
        found.detail
    )
    assert found.remedy == "docker update --memory LARGER CONTAINER"


@pytest.mark.parametrize("name", ["openvino.py", "openvino"])
def test_a_file_or_folder_in_the_way_of_an_engine(name: str, tmp_path: Path) -> None:
    """The remedy is applied."""
    file = tmp_path / name if name.endswith(".py") else tmp_path / name / "__init__.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("print('not the package')")
    found = examined("engines:examine_engine", "openvino", None, site=[tmp_path])["openvino"]
    assert found.state == "fault"
    assert f"{tmp_path / name} is in the way of the package" in found.detail
    subprocess.run(["sh", "-c", found.remedy], check=True)
    again = examined("engines:examine_engine", "openvino", None, site=[tmp_path])["openvino"]
    assert again.state == "ok"


def test_a_limit_of_threads() -> None:
    limits = {"pids.max": "4"}
    try:
        with control_group("pids", limits, limits) as group:
            enter = partial(within, group)
            found = examined("engines:examine_engine", "openvino", None, prefix=enter)["openvino"]
            threads = examined("threads", prefix=enter)["processes"]
    except NoGroupError as error:
        pytest.skip(f"no control group: {error}")
    assert found.state == "fault"
    assert "a limit of processes and threads is reached" in found.detail
    assert (threads.state, threads.remedy) == ("warning", found.remedy)
    assert found.remedy == "docker update --pids-limit -1 CONTAINER"


def test_a_package_that_all_engines_need() -> None:
    """It is the cause, and they are not examined."""
    numpy = Finding("numpy", "fault", "does not load", "pip install numpy")
    found = {it.subject: it for it in examine(None, [numpy], [])}
    for name in BACKENDS:
        assert (found[name].state, found[name].remedy) == ("fault", numpy.remedy)
        assert "numpy, which scoring needs, does not work" in found[name].detail
    failure = why_not(AUTO, list(found.values()), bundle=False)
    assert failure is not None
    assert failure.remedy == numpy.remedy


def test_every_engine_has_its_library_in_the_table() -> None:
    assert LIBRARIES.keys() == BACKENDS.keys()
    for name, library in LIBRARIES.items():
        assert library.extra == find_backend(name).extra


# ONNX Runtime's editions


def test_both_editions_of_onnxruntime(site: Path) -> None:
    write_package(site, ["onnxruntime", "onnxruntime-gpu"])
    found = examined("engines:examine_editions", site=[site], alone=True)["onnxruntime's files"]
    assert found.state == "fault"
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 install the same files" in found.detail
    remove, add = found.remedy.split(" && ")
    assert remove.endswith("uninstall --yes onnxruntime onnxruntime-gpu")
    assert "[cuda]" in add
    shutil.rmtree(site / "onnxruntime-1.31.1.dist-info")
    assert examined("engines:examine_editions", site=[site], alone=True) == {}


# Packages


def test_a_package_that_lacks_its_library(site: Path) -> None:
    (site / "site-packages" / "numpy").mkdir(parents=True)
    (site / "site-packages" / "numpy" / "__init__.py").write_text("import numpy._core")
    metadata(site / "site-packages", numpy="2.9.9")
    found = examined("packages", site=[site / "site-packages"])
    assert found["numpy"].state == "fault"
    assert "numpy==2.9.9 does not load from" in found["numpy"].detail
    assert "No module named 'numpy._core'" in found["numpy"].detail
    assert found["numpy"].remedy.endswith("--force-reinstall --no-deps numpy==2.9.9")
    assert found["pillow"].state == "ok"


def test_a_file_in_the_way_of_a_package(tmp_path: Path) -> None:
    """As in a folder that `python -m dsd_trt` runs in; the remedy is applied."""
    (tmp_path / "tokenizers.py").write_text("from numbers import nothing")
    found = examined("packages", site=[tmp_path])["tokenizers"]
    assert found.state == "fault"
    assert f"from {tmp_path / 'tokenizers.py'}: ImportError" in found.detail
    subprocess.run(["sh", "-c", found.remedy], check=True)
    assert examined("packages", site=[tmp_path])["tokenizers"].state == "ok"


def test_versions_that_are_too_old(site: Path) -> None:
    metadata(site, numpy="1.20.3", openvino="2024.6")
    found = examined("packages", site=[site])
    assert found["numpy"].detail == "1.20.3 is too old: dsd-trt needs 1.26 or later"
    assert found["numpy"].remedy.endswith("install --upgrade 'numpy>=1.26'")
    assert "2024.6 is too old: the extra openvino needs 2025.0 or later" in found["openvino"].detail


def test_packages_that_are_not_there(site: Path) -> None:
    found = examined("packages", site=[site], alone=True)
    for name in ("numpy", "pillow", "tokenizers", "click", "rich"):
        assert (found[name].state, found[name].detail) == ("fault", "not installed")
        assert found[name].remedy.endswith(f" {name}")
    installed = any(Path(__file__).parents[2].glob("*.egg-info"))  # or a clone without installation
    assert found["dsd-trt"].state == ("ok" if installed else "note")


# GPUs


def of_gpu(site: Path, **variables: Any) -> dict[str, Finding]:
    """GPU, driver and packages, where the packages are those of a folder."""
    return examined("gpu", site=[site], alone=True, **variables)


def test_no_driver(site: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    found = of_gpu(site)
    if found["driver"].state == "ok":
        pytest.skip("this machine has a GPU")
    assert "NVIDIA's driver is not installed" in found["driver"].detail
    assert found["CUDA packages"].detail == "none are installed"
    # A GPU that nothing drives is a fault to mend; a machine without one has none.
    assert (found["driver"].state == "warning") == bool(pci_devices())


def test_devices_as_linux_lists_them(tmp_path: Path) -> None:
    listed = {"0": ("0x10de", "0x030200"), "1": ("0x10de", "0x068000"), "2": ("0x8086", "0x030000")}
    for name, (vendor, kind) in listed.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    assert pci_devices(tmp_path) == 1  # not NVIDIA's bridge, nor another's display
    assert pci_devices(tmp_path / "nowhere") == 0


@needs_compiler
def test_a_driver_and_its_devices(site: Path, tmp_path: Path) -> None:
    compile_driver(tmp_path / "driver", version=12080, gpus=2, capability=89)
    found = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "driver"))
    assert found["driver"].state == "ok"
    assert "runs up to CUDA 12.8" in found["driver"].detail
    assert [it for it in found if it.startswith("GPU")] == ["GPU 0", "GPU 1"]
    assert found["GPU 1"].facts["compute_capability"] == "8.9"


@needs_compiler
def test_devices_that_are_hidden(site: Path, tmp_path: Path) -> None:
    compile_driver(tmp_path / "driver", gpus=0)
    variables = {"LD_LIBRARY_PATH": str(tmp_path / "driver"), "CUDA_VISIBLE_DEVICES": "7"}
    found = of_gpu(site, **variables)["driver"]
    assert found.state == "warning"
    assert "shows no GPU to this process" in found.detail
    assert "CUDA_VISIBLE_DEVICES is '7'" in found.detail
    assert found.remedy == "unset CUDA_VISIBLE_DEVICES"


@needs_compiler
def test_a_driver_that_ends_the_process(site: Path, tmp_path: Path) -> None:
    source = "#include <signal.h>\nint cuInit(unsigned f) { (void)f; return raise(SIGSEGV); }"
    compile_library(tmp_path / "driver", "libcuda.so.1", source)
    found = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "driver"))["driver"]
    assert found.state == "fault"
    assert "ended by SIGSEGV" in found.detail


@needs_compiler
def test_packages_for_a_newer_cuda_than_the_drivers(site: Path, tmp_path: Path) -> None:
    compile_driver(tmp_path / "driver", version=12080)
    metadata(
        site,
        tensorrt__cu13="10.14.1",
        tensorrt__cu13__libs="10.14.1",
        cuda__bindings="13.0.1",
    )
    both = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "driver"))
    found = both["tensorrt-cu13"]
    assert found.state == "fault"
    remove, add = found.remedy.split(" && ")
    assert remove.endswith("uninstall --yes tensorrt-cu13 tensorrt-cu13-libs")
    assert add.endswith("install --upgrade tensorrt-cu12")
    assert both["tensorrt-cu13-libs"].remedy == found.remedy
    assert found.detail == "tensorrt-cu13 10.14.1 is for CUDA 13, and the driver runs up to 12.8"
    compile_driver(tmp_path / "newer", version=13000)
    again = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "newer"))
    assert "tensorrt-cu13" not in again
    assert again["CUDA packages"].facts["tensorrt-cu13"] == "10.14.1"
    compile_driver(tmp_path / "old", version=11080)
    old = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "old"))["tensorrt-cu13"]
    assert "the driver runs up to 11.8; upgrade the driver" in old.detail
    assert "pip" not in old.remedy  # no package that is supported is for CUDA 11
    assert old.remedy not in ("nvidia-smi", "docker run --gpus all IMAGE")


@needs_compiler
@pytest.mark.parametrize(("runs", "kept", "removed"), [(12080, 12, 13), (13000, 13, 12)])
def test_of_libraries_for_two_cudas_the_one_that_the_driver_runs_is_kept(
    runs: int, kept: int, removed: int, site: Path, tmp_path: Path
) -> None:
    compile_driver(tmp_path / "driver", version=runs)
    metadata(site, nvidia__cudnn__cu12="9.10", nvidia__cudnn__cu13="9.14")
    found = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "driver"))
    remove, add = found["nvidia-cudnn"].remedy.split(" && ")
    assert remove.endswith(f"uninstall --yes nvidia-cudnn-cu{removed}")
    version = {12: "9.10", 13: "9.14"}[kept]
    # Both had files of one name, of which the removal leaves none.
    assert add.endswith(f"--force-reinstall --no-deps nvidia-cudnn-cu{kept}=={version}")
    assert "nvidia-cudnn-cu13" not in found  # its removal is advised already


@needs_compiler
def test_packages_that_do_not_go_together(site: Path, tmp_path: Path) -> None:
    compile_driver(tmp_path / "driver", version=13000)
    metadata(
        site,
        tensorrt="10.14.1",
        tensorrt__cu12="10.9.0",
        nvidia__cudnn__cu12="9.10",
        nvidia__cudnn__cu13="9.14",
        cuda__bindings="12.6.2",
    )
    found = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "driver"))
    assert found["tensorrt"].detail == "parts differ: tensorrt 10.14.1, tensorrt-cu12 10.9.0"
    assert "--force-reinstall" in found["tensorrt"].remedy
    assert "nvidia-cudnn-cu12 and nvidia-cudnn-cu13 are both installed" in (
        found["nvidia-cudnn"].detail
    )
    assert "uninstall --yes nvidia-cudnn-cu12 && " in found["nvidia-cudnn"].remedy
    assert found["cuda-bindings"].state == "fault"
    assert found["cuda-bindings"].remedy.endswith("'cuda-bindings>=12.8'")
    shutil.rmtree(site / "cuda_bindings-12.6.2.dist-info")
    missing = of_gpu(site, LD_LIBRARY_PATH=str(tmp_path / "driver"))["cuda-bindings"]
    assert missing.detail.startswith("not installed, and tensorrt is")


@needs_compiler
def test_onnxruntime_on_cuda_names_what_it_lacks(site: Path, tmp_path: Path) -> None:
    compile_driver(tmp_path / "driver", version=99000)
    write_package(site)
    name = "onnxruntime-cuda"
    found = examined(
        *("engines:examine_engine", name, None),
        site=[site],
        LD_LIBRARY_PATH=str(tmp_path / "driver"),
    )[name]
    assert found.state == "fault"
    assert "libcublas.so.99" in found.detail
    assert found.remedy.endswith(install_command("cuda").split(" install ")[1])
    assert found.facts["version"] == "1.31.1"


# The kernel


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's own files, without a kernel and without models."""
    ignored = shutil.ignore_patterns("*.so", "data", "__pycache__", "train", "export", "engines")
    shutil.copytree(ROOT / "dsd_trt", tmp_path / "copy" / "dsd_trt", ignore=ignored)
    return tmp_path / "copy"


def of_kernel(copy: Path, **variables: Any) -> Finding:
    return examined("kernel", [], site=[copy], **variables)["kernel"]


def test_a_kernel_that_was_not_compiled(copy: Path, tmp_path: Path) -> None:
    found = of_kernel(copy)
    assert found.state == "warning"
    assert "was not compiled when the package was installed" in found.detail
    assert "--force-reinstall --no-deps" in found.remedy
    nothing = of_kernel(copy, PATH=str(tmp_path / "nothing"))
    assert "none of c++, g++, clang++ is in PATH" in nothing.detail


@needs_compiler
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("long dsd_layer_bytes(void) { return 88; }", "is of another version"),
        ("extern int nowhere(void); int (*f)(void) = nowhere;", "undefined symbol: nowhere"),
        (None, "is cut short: it has 131072 bytes"),
    ],
)
def test_a_kernel_that_does_not_fit(source: str | None, said: str, copy: Path) -> None:
    kernel = copy / "dsd_trt" / "engine" / f"_pooled_attention{EXTENSION_SUFFIXES[0]}"
    if source is None:
        cut_short(kernel)
    else:
        compile_library(kernel.parent, kernel.name, source)
    found = of_kernel(copy)
    assert found.state == "warning"
    assert said in found.detail
    assert str(kernel) in found.detail
    assert found.remedy


# Bundles and plans


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "my scorer"))


def study(folder: Path | str) -> Studied:
    return Studied.from_plain(json.loads(json.dumps(study_here(str(folder), None))))


def test_a_bundle_with_an_altered_file(folder: Path) -> None:
    assert study(folder).error == ""
    graph = folder / "pair_scorer.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (found,) = study(folder).findings
    assert found.state == "fault"
    assert "'pair_scorer.onnx' was altered (sha256 differs)" in found.detail
    assert found.remedy == f"cp -rT ORIGINAL '{folder}'"
    graph.unlink()
    (found,) = study(folder).findings
    assert "file 'pair_scorer.onnx' is missing" in found.detail


def test_a_pointer_in_the_place_of_weights(folder: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
    (folder / "pair_scorer.onnx").write_text(pointer)
    (found,) = study(folder).findings
    assert "'pair_scorer.onnx': it is a Git LFS pointer, not the file itself" in found.detail
    assert found.remedy == "git lfs pull"


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        studied = study(place)
        (found,) = studied.findings
        assert (found.state, found.remedy) == ("fault", "dsd-trt export --out BUNDLE")
        assert (studied.folder, studied.needs) == (None, None)
        assert str(place) in studied.error


Study = Callable[..., Finding]


@pytest.fixture
def plan(folder: Path, bundle: Bundle, site: Path, tmp_path: Path) -> Study:
    """A function: what is said of a plan of TensorRT 10.9 for GPUs of 8.6, on a machine with a GPU
    and a TensorRT of a version, or none."""
    content = memoryview(b"plan")
    sidecar = Sidecar.of(
        content, bundle.manifest, "pair_scorer", "tensorrt", "10.9", ("8.6",), (Profile(1, 2, 4),)
    )

    def said(capability: int | None, version: str | None, **changes: Any) -> Finding:
        shutil.rmtree(folder / "engines", ignore_errors=True)
        write_plan(folder, content, replace(sidecar, **changes))
        drivers = tmp_path / f"driver {capability}"
        if capability is not None:
            compile_driver(drivers, capability=capability)
        if version is not None:
            (site / "tensorrt.py").write_text(version)
        found = examined(
            *("bundle:study_here", str(folder), None), site=[site], LD_LIBRARY_PATH=str(drivers)
        )
        return found["pair_scorer, tensorrt"]

    return said


@needs_compiler
def test_a_plan_for_another_gpu_or_version(plan: Study, folder: Path) -> None:
    build = f"dsd-trt build '{folder}' --engine tensorrt"
    assert plan(86, "__version__ = '10.9'").state == "ok"
    other = plan(90, "__version__ = '10.9'")
    assert (other.state, other.remedy) == ("warning", build)
    assert "was built for GPUs of compute capability 8.6, this one has 9.0" in other.detail
    newer = plan(86, "__version__ = '10.10'")
    assert (newer.state, newer.remedy) == ("warning", build)
    assert "was built with tensorrt 10.9, here is 10.10" in newer.detail
    exported = plan(86, "__version__ = '10.9'", graph_hash="0" * 64)
    assert (exported.state, exported.remedy) == ("warning", build)
    assert "the bundle has changed since" in exported.detail
    broken = plan(86, "raise RuntimeError('no licence')")
    assert broken.state == "warning"
    assert "tensorrt does not work here (RuntimeError: no licence)" in broken.detail


@needs_compiler
def test_a_plan_where_there_is_no_gpu(plan: Study, tmp_path: Path) -> None:
    compile_driver(tmp_path / "driver None", gpus=0)
    found = plan(None, None)
    assert (found.state, found.remedy) == ("note", "")
    assert "shows no GPU to this process" in found.detail
    assert found.facts["compute_capabilities"] == ["8.6"]


# Messages


@pytest.mark.parametrize(
    ("message", "cause", "remedy"),
    [
        (
            "openvino cannot be used here (No module named 'openvino'). Install it with: pip "
            "install 'dsd-trt[openvino] @ file:///a/b.whl'",
            "openvino cannot be used here (No module named 'openvino')",
            "pip install 'dsd-trt[openvino] @ file:///a/b.whl'",
        ),
        (
            "A and B are both installed, and have overwritten each other's files. Remove both and "
            "install one: /v/bin/python -m pip uninstall --yes a && pip install '.[cuda]'",
            "A and B are both installed, and have overwritten each other's files",
            "/v/bin/python -m pip uninstall --yes a && pip install '.[cuda]'",
        ),
        (
            "this processor does not compute in BF16. Score in FP32: --engine openvino",
            "this processor does not compute in BF16",
            "dsd-trt score IMAGES TEXTS --engine openvino",
        ),
        (
            "file 'x' is missing; download it again: hf download a/b x",
            "file 'x' is missing",
            "hf download a/b x",
        ),
        ("no bundle; copy the bundle again", "no bundle; copy the bundle again", ""),
        (
            "GPU 0 is too old. Use another GPU: --device N",
            "GPU 0 is too old",
            "dsd-trt score IMAGES TEXTS --device N",
        ),
    ],
)
def test_cause_and_command_of_a_message(message: str, cause: str, remedy: str) -> None:
    assert split_advice(message) == (cause, remedy)


def test_a_library_that_the_loader_takes_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "libstdc++.so.6").touch()
    found = examined("packages", LD_LIBRARY_PATH=str(tmp_path))["tokenizers"]
    if found.state == "ok":
        pytest.skip("tokenizers needs no C++ library here")
    assert f"LD_LIBRARY_PATH={tmp_path} leads to that library" in found.detail
    assert found.remedy == "unset LD_LIBRARY_PATH"
    assert examined("packages", **exported(found.remedy))["tokenizers"].state == "ok"
