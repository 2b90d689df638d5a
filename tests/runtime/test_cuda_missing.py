"""What ONNX Runtime on a GPU lacks on a machine: each lack is made for real, in its own process.

Driver and CUDA are libraries compiled here, and packages are folders. They are found and asked as
the real ones are. The packages of this environment are out of sight.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cuda_package import PROVIDER, write_package
from stub_libraries import compile_driver, compile_library, cut_short, needs_compiler

from dsd_trt.engine.onnxruntime.libraries import libraries
from dsd_trt.installation import install_command

CUDA = 99  # no machine has it, so only what a test makes is found
ROOT = Path(__file__).parents[2]
FILES = ("examples/images", "examples/texts.txt")
ASK = """
import sys
from dsd_trt.engine.onnxruntime.libraries import load_cuda
from dsd_trt.errors import EngineError
try:
    print("loaded", load_cuda(int(sys.argv[1])).__version__)
except EngineError as error:
    print(error)
"""


def ask(
    site: Path,
    drivers: Path | None = None,
    device: int = 0,
    *,
    code: str = ASK,
    visible: str | None = None,
) -> str:
    """What the engine says where packages are those of a folder, and the driver another's.

    Args:
        site: folder of packages.
        drivers: folder of the driver's library; None is no driver.
        device: number of the GPU.
        code: program that asks.
        visible: value of CUDA_VISIBLE_DEVICES; None is not set.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    for name in ("LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"):
        environment.pop(name, None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    if drivers is not None:
        environment["LD_LIBRARY_PATH"] = str(drivers)
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(device)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


@pytest.fixture
def drivers(tmp_path: Path) -> Path:
    compile_driver(tmp_path / "driver", version=CUDA * 1000)
    return tmp_path / "driver"


def install_cuda(site: Path, cuda: int = CUDA, leave_out: str = "") -> None:
    """Put CUDA and cuDNN where NVIDIA's wheels have them."""
    for name in libraries(cuda):
        folder = "cudnn" if "cudnn" in name else f"cu{cuda}"
        if name != leave_out:
            compile_library(site / "nvidia" / folder / "lib", name)


def test_no_driver(site: Path) -> None:
    write_package(site)
    said = ask(site)
    assert "NVIDIA's driver is not installed (libcuda.so.1 was not found)" in said
    assert f"libcublas.so.{CUDA}" in said  # and all else that is missing


def test_the_command_says_it_at_once() -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "dsd_trt", "score", *FILES, "--engine", "onnxruntime-cuda"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert "driver" in done.stderr
    assert install_command("cuda") in done.stderr
    assert time.monotonic() - began < 10  # with room for a busy machine; it takes under a second


@needs_compiler
def test_a_complete_machine(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site)
    assert ask(site, drivers) == "loaded 1.31.1"


@needs_compiler
def test_libraries_of_pytorch_are_found(site: Path, drivers: Path) -> None:
    write_package(site)
    for name in libraries(CUDA):
        compile_library(site / "torch" / "lib", name)
    assert ask(site, drivers) == "loaded 1.31.1"


@needs_compiler
@pytest.mark.parametrize("name", libraries(CUDA))
def test_each_library_is_asked_for(site: Path, drivers: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)
        pytest.skip("this machine has it where its system looks")
    write_package(site)
    install_cuda(site, leave_out=name)
    said = ask(site, drivers)
    assert said.startswith(f"onnxruntime-cuda cannot be used here: {name} of CUDA {CUDA}")
    assert re.search(r"pip install .*\[cuda\]'$", said)


@pytest.mark.parametrize("name", PROVIDER)
def test_a_provider_that_is_missing(site: Path, name: str) -> None:
    """It is named without a driver, too."""
    write_package(site)
    path = site / "onnxruntime" / "capi" / name
    path.unlink()
    said = ask(site)
    assert "NVIDIA's driver is not installed" in said
    assert f"onnxruntime-gpu 1.31.1 is incomplete: {path} is missing" in said


@needs_compiler
def test_a_provider_that_does_not_load(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site)
    (site / "onnxruntime" / "capi" / PROVIDER[1]).write_bytes(b"cut off")
    said = ask(site, drivers)
    assert "the CUDA provider of onnxruntime-gpu 1.31.1 does not load (" in said
    assert PROVIDER[1] in said
    assert re.search(r"Again: .*pip uninstall --yes onnxruntime onnxruntime-gpu && ", said)


@needs_compiler
def test_a_provider_that_asks_too_much_of_the_driver(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site)
    source = "extern int cuNewest(void); int (*needed)(void) = cuNewest;"
    compile_library(site / "onnxruntime" / "capi", PROVIDER[1], source)
    said = ask(site, drivers)
    assert "does not load (" in said
    assert said.endswith("cuNewest). Install a newer driver, or an older package")


@needs_compiler
def test_a_library_of_cuda_that_is_another_one(site: Path, drivers: Path) -> None:
    """As one of the same name that LD_LIBRARY_PATH leads to: the driver is not to blame."""
    write_package(site)
    install_cuda(site)
    source = "extern int cublasLtNewest(void); int (*needed)(void) = cublasLtNewest;"
    compile_library(site / "onnxruntime" / "capi", PROVIDER[1], source)
    said = ask(site, drivers)
    assert "cublasLtNewest). A library of CUDA that was found is another one than" in said
    assert "driver" not in said
    assert re.search(r"pip install --force-reinstall .*\[cuda\]'$", said)


@needs_compiler
def test_another_cuda_is_named(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site, 12)
    said = ask(site, drivers)
    assert "libcudart.so.99, libcublasLt.so.99, libcublas.so.99 of CUDA 99" in said
    assert "Found instead: libcublas.so.12, libcublasLt.so.12, libcudart.so.12" in said


@needs_compiler
def test_a_library_that_does_not_load(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site, leave_out="libcudnn.so.9")
    (site / "nvidia" / "cudnn" / "lib").mkdir(parents=True, exist_ok=True)
    (site / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9").write_bytes(b"cut short")
    said = ask(site, drivers)
    assert "libcudnn.so.9 of CUDA 99 and cuDNN 9 is broken" in said
    assert "libcudnn.so.9 does not load (" in said
    assert "Found instead" not in said
    assert re.search(r"pip install --force-reinstall .*\[cuda\]'$", said)


@needs_compiler
@pytest.mark.parametrize("name", ["libcudnn.so.9", "libcudnn_ops.so.9", f"libcublas.so.{CUDA}"])
@pytest.mark.parametrize("with_driver", [True, False])
def test_a_library_that_is_cut_short(
    site: Path, drivers: Path, name: str, with_driver: bool
) -> None:
    """A part of cuDNN, too, which the first convolution would load."""
    write_package(site)
    install_cuda(site)
    library = site / "nvidia" / ("cudnn" if "cudnn" in name else f"cu{CUDA}") / "lib" / name
    cut_short(library)
    said = ask(site, drivers if with_driver else None)
    assert f"({library} is cut short: it has 131072 bytes, and " in said
    assert re.search(r"pip install --force-reinstall .*\[cuda\]'$", said)


@needs_compiler
def test_a_whole_library_behind_one_that_is_cut_short(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site)
    cut_short(site / "nvidia" / "cudnn" / "lib" / "libcudnn.so.9")
    compile_library(site / "torch" / "lib", "libcudnn.so.9")
    assert ask(site, drivers) == "loaded 1.31.1"


@needs_compiler
@pytest.mark.parametrize("name", [PROVIDER[1], "onnxruntime_pybind11_state.cpython-311.so"])
def test_a_package_that_is_cut_short(site: Path, drivers: Path, name: str) -> None:
    write_package(site)
    install_cuda(site)
    library = site / "onnxruntime" / "capi" / name
    cut_short(library)
    said = ask(site, drivers)
    assert f"onnxruntime-gpu is incomplete ({library} is cut short: it has 131072 bytes" in said
    assert re.search(r"Again: .*pip uninstall --yes onnxruntime onnxruntime-gpu && ", said)


@needs_compiler
def test_a_library_of_the_system_that_is_cut_short(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site, leave_out=f"libcublas.so.{CUDA}")
    library = drivers / f"libcublas.so.{CUDA}"
    cut_short(library)
    said = ask(site, drivers)
    assert f"({library} is cut short: it has 131072 bytes, and " in said
    assert re.search(r"pip install --force-reinstall .*\[cuda\]'$", said)


@needs_compiler
def test_a_driver_that_is_cut_short(site: Path, drivers: Path) -> None:
    write_package(site)
    install_cuda(site)
    library = drivers / "libcuda.so.1"
    cut_short(library)
    said = ask(site, drivers)
    assert f"NVIDIA's driver does not load ({library} is cut short: it has 131072 bytes" in said
    assert said.endswith("or more are loaded). Install it again")
    context = "from dsd_trt.engine.driver import has_context; print(has_context(0))"
    assert ask(site, drivers, code=context) == "True"


@needs_compiler
def test_a_whole_driver_before_one_that_is_cut_short(
    site: Path, drivers: Path, tmp_path: Path
) -> None:
    """Only the one that the loader takes counts."""
    write_package(site)
    install_cuda(site)
    cut_short(tmp_path / "later" / "libcuda.so.1")
    assert ask(site, Path(f"{drivers}:{tmp_path / 'later'}")) == "loaded 1.31.1"


@needs_compiler
@pytest.mark.parametrize("name", ["cuInit", "cuDriverGetVersion", "cuDeviceGetCount"])
def test_a_driver_without_a_function(site: Path, tmp_path: Path, name: str) -> None:
    write_package(site)
    functions = ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount")
    source = "\n".join(f"int {it}() {{ return 0; }}" for it in functions if it != name)
    compile_library(tmp_path / "driver", "libcuda.so.1", source)
    assert "lacks a function" in ask(site, tmp_path / "driver")


def test_a_driver_that_does_not_load(site: Path, tmp_path: Path) -> None:
    write_package(site)
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libcuda.so.1").write_bytes(b"")
    said = ask(site, tmp_path / "driver")
    assert "driver does not load" in said or "driver is not installed" in said


@needs_compiler
def test_what_uninstalling_the_other_package_leaves(site: Path, drivers: Path) -> None:
    (site / "onnxruntime" / "capi").mkdir(parents=True)
    assert f"is incomplete ({site / 'onnxruntime'} has no code)" in ask(site, drivers)


ASK_CPU = """
from dsd_trt.engine.onnxruntime.cpu import load_library
from dsd_trt.errors import EngineError
try:
    print("loaded", load_library().__version__)
except EngineError as error:
    print(error)
"""


@pytest.fixture
def numpy_there(site: Path) -> None:
    """NumPy alone of this environment's packages."""
    package = Path(np.__file__).parent
    site.mkdir()
    for it in (package, package.with_name("numpy.libs")):
        (site / it.name).symlink_to(it)


@pytest.mark.usefixtures("numpy_there")
def test_the_processor_names_the_edition_that_lacks_files(site: Path) -> None:
    """Not an extra that would install another edition over it."""
    write_package(site, providers=("CPUExecutionProvider",))
    assert ask(site, code=ASK_CPU) == "loaded 1.31.1"
    (site / "onnxruntime" / "__init__.py").unlink()
    said = ask(site, code=ASK_CPU)
    assert f"({site / 'onnxruntime'} has no code). onnxruntime-gpu 1.31.1 lacks files" in said
    assert said.endswith(" install --force-reinstall --no-deps onnxruntime-gpu==1.31.1")


@needs_compiler
@pytest.mark.usefixtures("numpy_there")
def test_the_processor_names_a_package_that_is_cut_short(site: Path) -> None:
    write_package(site, providers=("CPUExecutionProvider",))
    library = site / "onnxruntime" / "capi" / "onnxruntime_pybind11_state.cpython-311.so"
    cut_short(library)
    source = f"import ctypes\nctypes.CDLL({str(library)!r})"
    (site / "onnxruntime" / "__init__.py").write_text(source)
    said = ask(site, code=ASK_CPU)
    assert f"({library} is cut short: it has 131072 bytes, and " in said
    assert said.endswith(" install --force-reinstall --no-deps onnxruntime-gpu==1.31.1")


@pytest.mark.usefixtures("numpy_there")
def test_the_processor_names_editions_that_have_overwritten_each_other(site: Path) -> None:
    write_package(site, ("onnxruntime", "onnxruntime-gpu"), ("CPUExecutionProvider",))
    (site / "onnxruntime" / "__init__.py").write_text("import onnxruntime.of_the_other_edition")
    said = ask(site, code=ASK_CPU)
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 have overwritten each other's" in said
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu && " in said
    assert re.search(r"pip install .*\[cpu\]'$", said)


@needs_compiler
def test_a_package_that_raises_on_import(site: Path, drivers: Path) -> None:
    write_package(site)
    (site / "onnxruntime" / "__init__.py").write_text("raise RuntimeError('broken')")
    assert "does not load (broken)" in ask(site, drivers)


@needs_compiler
@pytest.mark.parametrize(
    ("visible", "look"),
    [
        (None, "Look at nvidia-smi; a container gets GPUs with docker run --gpus all"),
        ("", "CUDA_VISIBLE_DEVICES is '' here; nvidia-smi lists all GPUs"),
        ("GPU-xyz", "CUDA_VISIBLE_DEVICES is 'GPU-xyz' here; nvidia-smi lists all GPUs"),
    ],
)
def test_no_gpus(site: Path, tmp_path: Path, visible: str | None, look: str) -> None:
    write_package(site)
    compile_driver(tmp_path / "driver", gpus=0)
    said = ask(site, tmp_path / "driver", visible=visible)
    assert f"NVIDIA's driver shows no GPU to this process. {look}" in said


@needs_compiler
def test_no_gpu(site: Path, tmp_path: Path) -> None:
    write_package(site)
    compile_driver(tmp_path / "driver", code=100)
    assert "shows no GPU to this process" in ask(site, tmp_path / "driver")


@needs_compiler
def test_a_driver_that_does_not_start(site: Path, tmp_path: Path) -> None:
    write_package(site)
    compile_driver(tmp_path / "driver", code=803)
    assert "does not start (cuInit gave 803)" in ask(site, tmp_path / "driver")


@needs_compiler
def test_an_old_driver(site: Path, tmp_path: Path) -> None:
    write_package(site)
    install_cuda(site)
    compile_driver(tmp_path / "driver", version=12040)
    said = ask(site, tmp_path / "driver")
    assert "needs CUDA 99.0, and NVIDIA's driver runs up to 12.4. Install a newer driver" in said


@needs_compiler
@pytest.mark.parametrize(
    ("gpus", "known"), [(1, "this process sees GPU 0"), (4, "this process sees GPUs 0 to 3")]
)
def test_a_gpu_that_does_not_exist(site: Path, tmp_path: Path, gpus: int, known: str) -> None:
    write_package(site)
    install_cuda(site)
    compile_driver(tmp_path / "driver", version=CUDA * 1000, gpus=gpus)
    said = ask(site, tmp_path / "driver", device=4)
    assert "there is no GPU 4" in said
    assert known in said


@needs_compiler
@pytest.mark.parametrize("engine", [(), ("--engine", "onnxruntime-cuda")])
def test_the_command_says_what_to_do_without_that_gpu(
    tmp_path: Path, engine: tuple[str, ...]
) -> None:
    compile_driver(tmp_path / "driver", gpus=2)
    done = subprocess.run(
        [sys.executable, "-m", "dsd_trt", "score", *FILES, "--device", "7", *engine],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path / "driver")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert (
        "there is no GPU 7: this process sees GPUs 0 to 1. Choose another --device" in done.stderr
    )
    if engine:
        assert done.stderr.endswith(
            "To score on the processor: --engine openvino or --engine onnxruntime\n"
        )
    else:
        assert done.stderr.startswith("Error: no engine works on GPU 7: onnxruntime-cuda: there is")
        assert done.stderr.endswith("or the processor, leave --device out\n")


@needs_compiler
def test_both_packages(site: Path, drivers: Path) -> None:
    write_package(site, ("onnxruntime", "onnxruntime-gpu"))
    install_cuda(site)
    said = ask(site, drivers)
    assert "onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed" in said
    assert "pip uninstall --yes onnxruntime onnxruntime-gpu && " in said
    assert re.search(r"pip install .*\[cuda\]'$", said)


@needs_compiler
def test_another_edition_elsewhere_is_no_clash(site: Path, drivers: Path, tmp_path: Path) -> None:
    """A folder that comes first on the path hides what lies behind it."""
    write_package(site)
    install_cuda(site)
    write_package(tmp_path / "behind", ("onnxruntime",), ("CPUExecutionProvider",), None)
    assert ask(Path(f"{site}{os.pathsep}{tmp_path / 'behind'}"), drivers) == "loaded 1.31.1"


@needs_compiler
@pytest.mark.parametrize("edition", ["onnxruntime", "onnxruntime-openvino"])
def test_the_package_for_processors(site: Path, drivers: Path, edition: str) -> None:
    write_package(site, (edition,), ("CPUExecutionProvider",), None)
    said = ask(site, drivers)
    assert "onnxruntime 1.31.1 is installed, which has no CUDA" in said


@needs_compiler
def test_a_build_without_cuda(site: Path, drivers: Path) -> None:
    write_package(site, (), ("CPUExecutionProvider",), None)  # built by its user
    assert "onnxruntime 1.31.1 is installed, which has no CUDA" in ask(site, drivers)


@needs_compiler
def test_a_build_that_hides_its_cuda(site: Path, drivers: Path) -> None:
    write_package(site, ("onnxruntime",), cuda=None)  # distributions and users build some
    assert ask(site, drivers) == "loaded 1.31.1"


@needs_compiler
def test_an_old_package(site: Path, drivers: Path) -> None:
    write_package(site, version="1.30.2")
    install_cuda(site)
    assert "onnxruntime-gpu 1.30.2 is too old: 1.31 or later" in ask(site, drivers)


@needs_compiler
def test_a_newer_package(site: Path, drivers: Path) -> None:
    write_package(site, version="2.0.0")
    install_cuda(site)
    assert ask(site, drivers) == "loaded 2.0.0"


@needs_compiler
def test_an_old_gpu(site: Path, tmp_path: Path) -> None:
    write_package(site)
    install_cuda(site)
    compile_driver(tmp_path / "driver", version=CUDA * 1000, capability=70)
    said = ask(site, tmp_path / "driver")
    assert "GPU 0 has compute capability 7.0, and CUDA 13 begins at 7.5" in said
