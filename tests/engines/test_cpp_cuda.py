"""The C++ scorer on ONNX Runtime's CUDA provider, or refused because something is missing.

No GPU is needed. `cpp_cuda` is a library in ONNX Runtime's place that has the
CUDA provider: it records what is asked of it, and the real library computes on the CPU. That proves
which options a session gets, and what is made of every answer; not that anything runs on a GPU.
"""

from __future__ import annotations

import csv
import ctypes
import io
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import give_form
from cpp import FETCHED, ROOT, CppError, CppScorer, clip_bundle
from PIL import Image
from self_checked import add_self_check, known_tensors
from test_cpp_image import clip_tokenizer, picture

from dsd_trt import Bundle, Scorer, write_bundle

pytest_plugins = ("cpp",)

EMBEDDED = ROOT / "dsd_trt" / "data" / "shapes-bundle"
NEEDED = FETCHED.parent / "needed" / "onnxruntime"
TEXTS = ["a red circle", "A blue square, right of a star"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def stand_in(cpp_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the library in ONNX Runtime's place; its symbol is VERS_9.9.9."""
    folder, source = tmp_path_factory.mktemp("stand-in"), Path(__file__).parent / "cpp_cuda"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"),
            *("-isystem", NEEDED / "include", source / "provider.cpp", "-ldl"),
            *("-Wl,-soname,libonnxruntime.so.1", f"-Wl,--version-script={source / 'version.map'}"),
            *("-o", folder / "libonnxruntime.so.1"),
        ],
        check=True,
    )
    return folder


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    return add_self_check(clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """An image and a file of texts."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    Image.fromarray(picture(50, 90)).save(tmp_path / "image.png")
    return [str(tmp_path / "image.png"), str(tmp_path / "texts.txt")]


@pytest.fixture
def run(cpp_build: Path, stand_in: Path, files: list[str]) -> Run:
    """Scores the files on the stand-in; keywords say how that behaves."""

    def score(*arguments: str | Path, **behaviour: str) -> subprocess.CompletedProcess[str]:
        named = {f"STAND_IN_{name}": value for name, value in behaviour.items()}
        return subprocess.run(
            [cpp_build / "dsd-score", *arguments, *files],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(stand_in),
                "STAND_IN_REAL": str(NEEDED / "lib" / "libonnxruntime.so"),
                **named,
            },
            capture_output=True,
            text=True,
        )

    return score


def assert_scores_are_pythons(
    done: subprocess.CompletedProcess[str], bundle: Path, files: list[str], within: float = 1e-5
) -> None:
    assert done.returncode == 0, done.stderr
    got = [float(row["score"]) for row in csv.DictReader(io.StringIO(done.stdout))]
    expected = Scorer.load(bundle, "onnxruntime", mode="pair").score(files[:1], TEXTS)
    assert np.abs(np.array(got) - expected.scores[0]).max() < within


def assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 4, and one line on standard error with these parts in this order."""
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    places = [done.stderr.find(part) for part in parts]
    assert min(places) >= 0, done.stderr
    assert places == sorted(places)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_each_graph_is_asked_of_the_device(
    device: str, run: Run, bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    done = run("--device", device, bundle.folder, LOG=str(tmp_path / "log"))
    assert_scores_are_pythons(done, bundle.folder, files)
    lines = (tmp_path / "log").read_text().splitlines()
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    asked = (
        "provider arena_extend_strategy=kSameAsRequested cudnn_conv_algo_search=HEURISTIC "
        f"device_id={number} gpu_mem_limit="
    )
    tried, *sessions = [line for line in lines if line.startswith("provider")]
    assert len(sessions) == 3
    for line in (tried, *sessions):
        assert line.startswith(asked)
        assert line.endswith(" prefer_nhwc=0 use_tf32=0")
    for entry in ("use_device_allocator_for_initializers", "record_ep_graph_assignment_info"):
        assert lines.count(f"config session.{entry}=1") == 3


def limits(log: Path) -> set[int]:
    """Bytes that the arenas of a run's sessions may take."""
    _, *asked = [line for line in log.read_text().splitlines() if line.startswith("provider")]
    return {int(line.split("gpu_mem_limit=")[1].split()[0]) for line in asked}


def test_the_memory_budget_bounds_the_arena(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    """And weights, and 1 GiB for convolutions; and never less than one item takes."""
    for budget in ("1024", "4096", "1e-3"):
        log = tmp_path / budget
        options = ("--device", "cuda", "--memory-budget-mb", budget)
        assert run(*options, bundle.folder, LOG=str(log)).returncode == 0
    (usual,), (large,), (least,) = (limits(tmp_path / it) for it in ("1024", "4096", "1e-3"))
    files = bundle.manifest.files
    weights = 2 * sum(files[it].size for it in bundle.manifest.weight_files)  # of FP32: at most
    assert usual == 2 * 2**30 + weights
    assert large == 5 * 2**30 + weights
    side = (
        bundle.manifest.preprocessing.resolution
    )  # of an image, where the image encoder is widest
    assert least >= 2**30 + 4 * 3 * side**2 * 128


@pytest.mark.parametrize("options", [(), ("--device", "cpu"), ("--device", "")])
def test_nothing_is_asked_of_cuda_unless_it_is_named(
    options: tuple[str, ...], run: Run, bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert_scores_are_pythons(run(*options, bundle.folder, LOG=str(log)), bundle.folder, files)
    names = (f"session {name}.onnx" for name in ("image_encoder", "text_encoder", "pair_scorer"))
    spinning = "config session.intra_op.allow_spinning=0"
    assert log.read_text().splitlines() == [line for name in names for line in (spinning, name)]


def test_shape_arithmetic_may_lie_on_the_cpu(run: Run, files: list[str]) -> None:
    left = ",Shape,Slice,Concat,Gather,Unsqueeze,Cast,Reshape,"
    done = run("--device", "cuda", EMBEDDED, LEFT=left)
    assert_scores_are_pythons(done, EMBEDDED, files)


def test_what_else_is_left_to_the_cpu_is_refused_and_named(run: Run) -> None:
    model = onnx.load(EMBEDDED / "image_encoder.onnx", load_external_data=False)
    products = sum(node.op_type == "MatMul" for node in model.graph.node)
    done = run("--device", "cuda", EMBEDDED, LEFT=",Shape,Softmax,MatMul,")
    assert_refused(
        done, f"parts of {EMBEDDED}/image_encoder.onnx on the CPU: {products} MatMul, 1 Softmax"
    )


def test_a_session_wholly_on_the_cpu_is_refused(run: Run, bundle: Bundle) -> None:
    done = run("--device", "cuda", bundle.folder, LEFT="all")
    assert_refused(done, f"parts of {bundle.folder}/image_encoder.onnx on the CPU")


def sessions(log: Path) -> list[str]:
    """Files that were opened, in order; forgets them. Of CUDA's, forms have channels last."""
    lines = log.read_text().splitlines()
    log.unlink()
    opened, channels_last = list[str](), ""
    for line in lines:
        if line.startswith("provider"):
            channels_last = line.split("prefer_nhwc=")[1].split()[0]
        elif line.startswith("session"):
            opened.append(line.split()[1])
            assert channels_last in ("", "1" if opened[-1].endswith(".cuda.onnx") else "0")
    return opened


def test_a_form_for_cuda_is_used_if_it_passes_the_self_check(
    run: Run, bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    """First it is the graph itself, then one with other scores, then one that does not open."""
    formed, log = give_form(bundle.folder), tmp_path / "log"
    usual = ["image_encoder.onnx", "text_encoder.onnx"]
    path = formed.path("pair_scorer.cuda.onnx")
    model = onnx.load(path)
    (last,) = (node for node in model.graph.node if "score" in node.output)
    last.output[list(last.output).index("score")] = "half"
    sum_up = onnx.helper.make_node("Add", ["half", "half"], ["score"])
    for operator, opened in (
        ("", [path.name]),
        ("Add", [path.name, "pair_scorer.onnx"]),
        ("Nonsense", [path.name, "pair_scorer.onnx"]),
    ):
        if operator:
            sum_up.op_type = operator
            changed = onnx.ModelProto()
            changed.CopyFrom(model)
            changed.graph.node.append(sum_up)
            onnx.save(changed, path)
            write_bundle(bundle.folder, formed.manifest)
        for options in ((), ("--no-self-check",)):
            done = run("--device", "cuda", *options, bundle.folder, LOG=str(log))
            assert_scores_are_pythons(done, bundle.folder, files)
            assert sessions(log) == [*usual, *opened]
    assert run(bundle.folder, LOG=str(log)).returncode == 0
    assert sessions(log) == [*usual, "pair_scorer.onnx"]


def test_a_form_for_cuda_that_nothing_can_be_held_against_is_not_used(
    run: Run, bundle: Bundle, files: list[str], tmp_path: Path
) -> None:
    """As in Python: a form is a graph that no other engine runs."""
    formed, log = give_form(bundle.folder), tmp_path / "log"
    write_bundle(bundle.folder, replace(formed.manifest, self_check=None))
    done = run("--device", "cuda", bundle.folder, LOG=str(log))
    assert_scores_are_pythons(done, bundle.folder, files)
    assert sessions(log) == ["image_encoder.onnx", "text_encoder.onnx", "pair_scorer.onnx"]


SOURCE = (
    "/src/core/session/provider_bridge_ort.cc:2043 Provider& Get() [ONNXRuntimeError] : 1 : FAIL"
)
LOADING = f"{SOURCE} : Failed to load library /lib/libonnxruntime_providers_cuda.so with error: "
ABSENT = ": cannot open shared object file: No such file or directory"
COUNTING = (
    f"{SOURCE} : provider_options_utils.h:187 Parse Failed to parse provider option "
    '"device_id": CUDA failure '
)

# What ONNX Runtime 1.31.1 says without the thing, and what the message is to say.
MISSING = {
    "driver": (LOADING + f"libcuda.so.1{ABSENT}\n", ("NVIDIA's driver is not installed",)),
    "cuda": (
        LOADING + f"libcublasLt.so.13{ABSENT}\n",
        ("cannot be used: libcublasLt.so.13: ", "Install the version of CUDA", "LD_LIBRARY_PATH"),
    ),
    "cudnn": (LOADING + f"libcudnn.so.9{ABSENT}\n", ("libcudnn.so.9: ", "Install the cuDNN that")),
    "provider": (
        f"{SOURCE} : Failed to load library /lib/libonnxruntime_providers_shared.so with error: "
        f"/lib/libonnxruntime_providers_shared.so{ABSENT}\n",
        ("libonnxruntime_providers_cuda.so of ONNX Runtime 9.9.9 have to lie beside",),
    ),
    "function of the driver": (
        f"{LOADING}/lib/libonnxruntime_providers_cuda.so: undefined symbol: cuTensorMapEncodeTiled",
        ("undefined symbol: cuTensorMapEncodeTiled. Install a newer NVIDIA driver, or an older",),
    ),
    "function of cuda": (
        f"{LOADING}/lib/libonnxruntime_providers_cuda.so: undefined symbol: cublasLtNewest",
        ("undefined symbol: cublasLtNewest. A library of CUDA that was found is another one",),
    ),
    "newer driver": (
        f"{COUNTING}35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; x",
        ("insufficient for CUDA runtime version. Install a newer NVIDIA driver",),
    ),
    "gpu": (
        f"{COUNTING}100: no CUDA-capable device is detected ; GPU=-1 ; hostname=here ; file=x.cc",
        ("CUDA failure 100: no CUDA-capable device is detected. This process sees no GPU",),
    ),
    "something else": (
        f"{COUNTING}999: unknown error ; GPU=-1 ; hostname=here",
        ("device cuda:1 cannot be used: CUDA failure 999: unknown error. nvidia-smi says",),
    ),
}


@pytest.mark.parametrize("missing", MISSING)
def test_what_is_missing_is_told_before_a_file_is_read(
    missing: str, run: Run, tmp_path: Path
) -> None:
    said, parts = MISSING[missing]
    done = run("--device", "cuda:1", tmp_path / "no bundle", REFUSES=said)
    assert_refused(done, *parts)
    assert ".cc" not in done.stderr


def test_a_device_that_does_not_exist_is_told(run: Run, tmp_path: Path) -> None:
    done = run("--device", "cuda:2", tmp_path / "no bundle")
    assert_refused(done, "device cuda:2 cannot be used: Invalid device ID: 2, must be between 0")


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Available memory of 12 is smaller than requested bytes of 4096", "memory_budget_mb"),
        ("Failed to allocate memory for requested buffer of size 4096", "memory_budget_mb"),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=here", "memory_budget_mb"),
        ("cuDNN is required for operator Conv but was not found", "Install the cuDNN"),
    ],
)
def test_a_run_that_fails_is_told(said: str, remedy: str, run: Run, bundle: Bundle) -> None:
    done = run("--device", "cuda", bundle.folder, FAILS=said)
    assert_refused(done, "ONNX Runtime failed: ", said.partition(" ; ")[0], remedy)


@pytest.mark.parametrize(("off", "refused"), [(5e-4, False), (2e-3, True)])
def test_a_gpu_may_differ_by_a_digit(off: float, refused: bool, run: Run, bundle: Bundle) -> None:
    """A bundle in FP32 allows 2e-4, which still holds on the CPU."""
    states = known_tensors(bundle)["text_encoder.text_states"]
    states.flat[0] += off * np.abs(states).max()
    add_self_check(bundle, {"text_encoder.text_states": states})
    assert_refused(run(bundle.folder), "error: ONNX Runtime: self-check of the text encoder")
    done = run("--device", "cuda:1", bundle.folder)
    if refused:
        assert_refused(done, "ONNX Runtime on CUDA device 1: self-check", "of 0.001 of the largest")
    else:
        assert done.returncode == 0


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_library_without_cuda_is_told(
    device: str, cpp_library: ctypes.CDLL, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The CPU's library, which the C++ library is linked with, in the test's own process."""
    with pytest.raises(CppError, match=r"was built without CUDA.*onnxruntime-gpu") as caught:
        CppScorer(cpp_library, tmp_path / "no bundle", device=device)
    assert caught.value.status == 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "device",
    ["CUDA", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1 ", "cuda:1,2", "cuda:9999999999"],
)
def test_a_device_of_no_known_name_is_told(device: str, cpp_library: ctypes.CDLL) -> None:
    with pytest.raises(CppError, match=f"no device named '{device.replace('+', '.')}'") as caught:
        CppScorer(cpp_library, EMBEDDED, device=device)
    assert caught.value.status == 1


def test_the_cpu_may_be_named(cpp_library: ctypes.CDLL, bundle: Bundle) -> None:
    images = [picture(50, 90)]
    scores = []
    for device in (None, "", "cpu"):
        scorer = CppScorer(cpp_library, bundle.folder, device=device)
        scores.append(scorer.score(images, TEXTS)[0])
        scorer.close()
    assert np.ptp(scores, axis=0).max() < 1e-6


def test_a_refused_graph_is_told_once(run: Run, bundle: Bundle) -> None:
    """ONNX Runtime throws its errors and prints them too, unless it is told not to."""
    path = bundle.path("pair_scorer.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nonsense"
    onnx.save(model, path)
    write_bundle(bundle.folder, bundle.manifest)
    for options in ((), ("--device", "cuda")):
        assert_refused(run(*options, bundle.folder), "ONNX Runtime refuses", "Nonsense")


@pytest.mark.parametrize(
    "options",
    [("--device",), ("--memory-budget-mb", "much"), ("--gpu", "1"), ("--memory-budget-mb", "")],
)
def test_options_of_the_example_that_it_does_not_know(options: tuple[str, ...], run: Run) -> None:
    done = run(*options, EMBEDDED)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ") or "no device named" in done.stderr


def test_the_example_in_c_takes_a_device(cpp_build: Path, files: list[str]) -> None:
    command = [str(cpp_build / "dsd-score-c"), str(EMBEDDED), files[0], TEXTS[0]]
    usual, named, refused = (
        subprocess.run([*command, *device], capture_output=True, text=True)
        for device in ((), ("cpu",), ("cuda",))
    )
    assert usual.returncode == named.returncode == 0
    values = [[float(it) for it in done.stdout.split()] for done in (usual, named)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert "was built without CUDA" in refused.stderr
