"""The C++ scorer built for TensorRT, on a stand-in for TensorRT.

No package has TensorRT's headers. `cpp_tensorrt` declares what the library calls as NVIDIA's
headers do, and does the work in ONNX Runtime: a plan names an ONNX file. There are two builds:

- With a stand-in for the CUDA runtime, which needs no GPU: its memory is the host's. Addresses and
  sizes are checked, and work is done when somebody waits for it. The sanitizers end a program with
  a status that nothing here expects. This proves which calls are made, that data gets where it
  belongs, and that nothing leaks.
- With NVIDIA's CUDA runtime, on a machine with a GPU: inputs and outputs are in its memory, and the
  stand-in copies them to the host and back in the stream's order. This proves the calls of CUDA.

Neither proves that TensorRT runs.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import onnx
import pytest
from cpp import FETCHED, ROOT, build, clip_bundle
from cuda_runtime import compute_capability, find_cuda_runtime
from PIL import Image
from self_checked import add_self_check, known_tensors
from stub_libraries import cut_short
from test_cpp_image import clip_tokenizer, picture

from dsd_trt import Bundle, Scorer, read_bundle, write_bundle
from dsd_trt.bundle.contract import graph_contract
from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.bundle.manifest import AdapterInput
from dsd_trt.engine.tensorrt.plan import SIDECAR_NAME, Plan, Profile, Sidecar, plans, write_plan

PAIR = "pair_scorer"
EMBEDDED = ROOT / "dsd_trt" / "data" / "shapes-bundle"
pytestmark = pytest.mark.slow  # compiles the library once more

TEXTS = ("a red circle", "A blue square, right of a star", " ".join(["red"] * 90))
USUAL = (Profile(1, 8, 32),)

Run = Callable[..., subprocess.CompletedProcess[str]]


STAND_IN = ROOT / "engines" / "cpp" / "build" / "stand-in"


def built(runtime: str) -> Path:
    """The library, built for a CUDA runtime: the stand-in, or NVIDIA's; skips where that is not."""
    target, stand_in = "build/tensorrt", STAND_IN
    tested = [f"-DONNXRUNTIME_ROOT={FETCHED.parent / 'needed' / 'onnxruntime'}"]
    library = f"-DCUDAToolkit_ROOT={stand_in} -DDSD_SANITIZE=ON"
    if runtime == "nvidia":
        if (found := find_cuda_runtime()) is None:
            pytest.skip("NVIDIA's CUDA runtime is not here: pip has it with nvidia-cuda-crt")
        target, stand_in = "build/tensorrt-nvidia", STAND_IN.with_name("stand-in-nvidia")
        named = [f"-DCUDA_INCLUDE={found.include}", f"-DCUDA_LIBRARY={found.library}"]
        tested += named
        library = " ".join(named)  # CUDA and AddressSanitizer want the same addresses
    options = f"-DDSD_ENGINE=tensorrt -DTENSORRT_ROOT={stand_in} {library} -DCMAKE_BUILD_TYPE=Debug"
    return build(
        target,
        f"CMAKE_ARGS={options}",
        first=(
            ("make", str(FETCHED.relative_to(ROOT))),
            ("cmake", "-S", "tests/engines/cpp_tensorrt", "-B", str(stand_in), *tested),
            ("cmake", "--build", str(stand_in)),
        ),
    )


@pytest.fixture(scope="module", params=["stand-in", pytest.param("nvidia", marks=pytest.mark.gpu)])
def runtime(request: pytest.FixtureRequest) -> str:
    """Which CUDA runtime there is."""
    name: str = request.param
    if name == "nvidia" and compute_capability() is None:
        pytest.skip("there is no GPU")
    return name


# For what only the stand-in can be told to do.
on_the_stand_in = pytest.mark.parametrize("runtime", ["stand-in"], indirect=True)


@pytest.fixture(scope="module")
def folder(runtime: str) -> Path:
    """Where the library is that was built for the runtime."""
    return built(runtime)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Three images and a file of texts."""
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), "utf-8")
    paths = []
    for height, width in ((64, 64), (50, 90), (200, 31)):
        paths.append(str(tmp_path / f"{height}.png"))
        Image.fromarray(picture(height, width)).save(paths[-1])
    return [*paths, str(tmp_path / "texts.txt")]


@pytest.fixture
def run(folder: Path, files: list[str]) -> Run:
    """Scores the files with a bundle; keywords say how the stand-in behaves."""

    def score(bundle: Path, *options: str, **stand_in: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / "dsd-score"), *options, str(bundle), *files],
            env={**os.environ, **{f"STAND_IN_{name}": it for name, it in stand_in.items()}},
            capture_output=True,
            text=True,
        )

    return score


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle whose graphs cost next to nothing, with plans."""
    bundle = clip_bundle(tmp_path / "small", clip_tokenizer(), monkeypatch)
    add_plans(bundle)
    return bundle


def add_plan(
    bundle: Bundle,
    graph: str,
    profiles: tuple[Profile, ...] = USUAL,
    *,
    runs: Path | None = None,
    content: bytes = b"",
    capabilities: tuple[str, ...] = (),
    **changes: Any,
) -> None:
    """Write a plan for the stand-in, as `dsd-trt build` writes TensorRT's.

    Args:
        bundle: into which.
        graph: of which graph.
        profiles: batch sizes it takes.
        runs: which ONNX file; the graph's own file where nothing is said.
        content: of the plan, where it is to be no plan.
        capabilities: of the GPUs it is for; else that of the first GPU, which the stand-in has too.
        changes: fields of its `engine.json` to change.
    """
    sizes = "\n".join(f"{it.min} {it.opt} {it.max}" for it in profiles)
    path = runs or bundle.path(bundle.manifest.graphs[graph].file)
    view = memoryview(content or f"stand-in\n{path}\n{sizes}\n".encode())
    capabilities = capabilities or ("8.0", "8.6", *filter(None, [compute_capability()]))
    sidecar = Sidecar.of(
        view, bundle.manifest, graph, "tensorrt", "10.13.3.9", capabilities, profiles
    )
    write_plan(bundle.folder, view, replace(sidecar, **changes))


def add_plans(
    bundle: Bundle, profiles: tuple[Profile, ...] = USUAL, capabilities: tuple[str, ...] = ()
) -> None:
    """Write a plan for every graph."""
    for graph in ("image_encoder", "text_encoder"):
        add_plan(bundle, graph, capabilities=capabilities)
    add_plan(bundle, PAIR, profiles, capabilities=capabilities)


def assert_scores_are_pythons(
    done: subprocess.CompletedProcess[str], bundle: Path, files: list[str]
) -> None:
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    expected = Scorer.load(bundle, "onnxruntime").score(files[:-1], TEXTS)
    assert expected.scores.std() > 0  # or equality would mean little
    for column, values in (("score", expected.scores), ("probability", expected.probabilities)):
        got = np.array([float(row[column]) for row in rows]).reshape(values.shape)
        assert np.abs(got - values).max() < 1e-5


def test_the_embedded_bundle_scores_as_in_python(
    run: Run, files: list[str], tmp_path: Path
) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "bundle")
    add_plans(read_bundle(tmp_path / "bundle"))
    assert_scores_are_pythons(run(tmp_path / "bundle"), tmp_path / "bundle", files)


def test_fp16_and_an_adapter_are_fed(
    run: Run, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter is one for all triples, and here is added to the scores."""
    bundle = clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch, precision="fp16")
    graphs = graph_contract("fp16", bundles.RESOLUTION, (3, 2, 2), 4, adapter_numbers=1)
    path = bundle.path(graphs["pair_scorer"].file)
    model = onnx.load(path)
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("adapter", onnx.TensorProto.FLOAT, [1])
    )
    (last,) = (node for node in model.graph.node if node.output[0] == "score")
    last.output[0] = "mean"
    model.graph.node.append(onnx.helper.make_node("Add", ["mean", "adapter"], ["score"]))
    onnx.save(model, path)
    np.array([0.125], "<f4").tofile(bundle.path("adapter.bin"))
    adapter = AdapterInput("adapter.bin", {"offset": (1,)})
    bundle = write_bundle(bundle.folder, replace(bundle.manifest, graphs=graphs, adapter=adapter))
    add_plans(bundle)
    assert_scores_are_pythons(run(bundle.folder), bundle.folder, files)


@pytest.mark.parametrize(
    ("profiles", "expected"),
    [
        # 27 triples, of 3 images, 3 texts and 3 levels, by the profile and rows of each run.
        ((Profile(1, 8, 32),), ["0 27"]),
        ((Profile(1, 2, 4),), ["0 4"] * 6 + ["0 3"]),
        ((Profile(5, 5, 25),), ["0 25", "0 5"]),  # the last two are filled up to five
        ((Profile(1, 1, 2), Profile(2, 9, 25)), ["1 25", "0 2"]),
        ((Profile(1, 1, 2), Profile(1, 2, 25)), ["1 25", "1 2"]),  # made for two
    ],
)
def test_batches_are_cut_as_plans_take_them(
    profiles: tuple[Profile, ...],
    expected: list[str],
    small: Bundle,
    run: Run,
    files: list[str],
    tmp_path: Path,
) -> None:
    shutil.rmtree(small.folder / "engines")
    add_plans(small, profiles)
    done = run(small.folder, LOG=str(tmp_path / "log"))
    assert_scores_are_pythons(done, small.folder, files)
    assert (tmp_path / "log").read_text().splitlines() == ["0 3", "0 3", *expected]


def test_of_several_plans_the_one_for_the_largest_batches_is_taken(
    small: Bundle, run: Run, tmp_path: Path
) -> None:
    add_plan(small, PAIR, (Profile(1, 2, 4),))
    assert run(small.folder, LOG=str(tmp_path / "log")).returncode == 0
    assert (tmp_path / "log").read_text().splitlines() == ["0 3", "0 3", "0 27"]


@pytest.fixture(scope="module")
def threads(runtime: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program whose threads share a scorer; it also looks at which device is current."""
    program = tmp_path_factory.mktemp("threads") / "threads"
    found = find_cuda_runtime() if runtime == "nvidia" else None
    include = found.include if found else STAND_IN / "include"
    library = found.library if found else STAND_IN / "lib" / "libcudart.so"
    subprocess.run(
        [
            *("c++", "-std=c++17", "-pthread", "-isystem", include),
            *([] if found else ["-fsanitize=address,undefined"]),
            *("-I", ROOT / "engines" / "cpp" / "include"),
            *(ROOT / "tests" / "engines" / "cpp_tensorrt" / "threads.cpp", folder / "libdsd.so"),
            *(library, f"-Wl,-rpath,{folder}:{library.parent}", "-o", program),
        ],
        check=True,
    )
    return program


def test_threads_share_a_scorer(small: Bundle, threads: Path, files: list[str]) -> None:
    done = subprocess.run(
        [threads, small.folder, files[0], ""], capture_output=True, text=True, check=True
    )
    assert done.stdout == "equal\n"


@on_the_stand_in
def test_threads_share_a_scorer_on_another_device(
    small: Bundle, threads: Path, files: list[str]
) -> None:
    """The first device is current in all of them, before, after, and in between."""
    add_plans(small, capabilities=("8.9",))
    done = subprocess.run(
        [threads, small.folder, files[0], "cuda:1"],
        env={**os.environ, "STAND_IN_DEVICES": "2"},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("equal\n", "")


@on_the_stand_in
def test_a_scorer_is_opened_on_the_device_that_is_named(
    small: Bundle, run: Run, files: list[str]
) -> None:
    """The second device is of compute capability 8.9, the first of 8.6."""
    refused = run(small.folder, "--device", "cuda:1", DEVICES="2")
    assert refused.returncode == 4
    assert "other compute capabilities, this one has 8.9" in refused.stderr
    shutil.rmtree(small.folder / "engines")
    add_plans(small, capabilities=("8.9",))
    done = run(small.folder, "--device", "cuda:1", DEVICES="2")
    assert_scores_are_pythons(done, small.folder, files)
    assert run(small.folder, "--device", "cuda", DEVICES="2").returncode == 4


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "there is no device cuda:99: this process sees "),
        (
            "cpu",
            "this library was built for TensorRT, which needs a GPU. For the device cpu, build",
        ),
    ],
)
def test_a_device_that_is_not_there_is_told(
    device: str, message: str, run: Run, tmp_path: Path
) -> None:
    done = run(tmp_path / "no bundle", "--device", device)
    assert message in done.stderr
    assert done.returncode == 4


def change(plan: Plan, **fields: Any) -> None:
    path = plan.folder / SIDECAR_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# What is done to a bundle and the plan of its pair scorer, and what the message says then.
DAMAGES: dict[str, tuple[Callable[[Bundle, Plan], Any], str]] = {
    "no plans": (
        lambda small, plan: shutil.rmtree(plan.folder.parent),
        "has no tensorrt plan of its image_encoder. Build one: dsd-trt build ",
    ),
    "no plan": (
        lambda small, plan: shutil.rmtree(plan.folder),
        "has no tensorrt plan of its pair_scorer. Build one: dsd-trt build ",
    ),
    "another library's": (
        lambda small, plan: change(plan, library="tensorrt-rtx"),
        "has no tensorrt plan of its pair_scorer",
    ),
    "version": (
        lambda small, plan: change(plan, version="10.13.30.1"),
        "was built with tensorrt 10.13.30.1, here is 10.13.3. Build one: dsd-trt build ",
    ),
    "gpu": (
        lambda small, plan: change(plan, compute_capabilities=["8.9"]),
        f"other compute capabilities, this one has {compute_capability() or 8.6}",
    ),
    "export": (
        lambda small, plan: change(plan, graph_hash="0" * 64),
        "was built from another export",
    ),
    "cut": (lambda small, plan: os.truncate(plan.path, 5), "has 5 bytes instead of"),
    "altered": (
        lambda small, plan: plan.path.write_bytes(plan.path.read_bytes()[:-1] + b" "),
        "was altered",
    ),
    "absent": (lambda small, plan: plan.path.unlink(), "cannot be read: No such file"),
    "no json": (
        lambda small, plan: (plan.folder / SIDECAR_NAME).write_text("{"),
        "engine.json cannot be read",
    ),
    "unknown": (lambda small, plan: change(plan, new=1), "'new' is not known"),
    "type": (lambda small, plan: change(plan, compute_capabilities=[8.6]), "cannot be read"),
    "no plan of the library's": (
        lambda small, plan: add_plan(small, PAIR, content=b"no plan"),
        "TensorRT refuses",
    ),
    "another graph's": (
        lambda small, plan: add_plan(small, PAIR, runs=small.path("text_encoder.onnx")),
        "does not have the tensors that its bundle says it has: latent float32 [?, 3, 2, 2]; ",
    ),
    "another precision": (
        lambda small, plan: add_plan(
            small,
            PAIR,
            runs=bundles.make_bundle(small.folder / "half", precision="fp16").path(f"{PAIR}.onnx"),
        ),
        "does not have the tensors",
    ),
    "no profile": (
        lambda small, plan: add_plan(
            small, PAIR, content=plan.path.read_bytes().replace(b"1 8 32", b"")
        ),
        "does not take its inputs in batches",
    ),
    "no batch": (
        lambda small, plan: add_plan(
            small, PAIR, content=plan.path.read_bytes().replace(b"1 8 32", b"0 8 32")
        ),
        "does not take its inputs in batches",
    ),
}


def test_matrix_mode_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name or as the adapter's; pair mode of the same bundle needs its plans alone."""
    made: dict[str, Any] = {"matrix": True, "trained_for": "matrix"}
    bundle = clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch, **made)
    add_plans(bundle)
    # Python's plans of it are there, and never taken for others.
    most = (Profile(1, 32, 99),)
    add_plan(bundle, PAIR, most, content=b"no plan", part="walk")
    sizes: dict[str, Any] = {"texts": Profile(1, 4, 4), "tokens": Profile(1, 16, 77)}
    add_plan(bundle, "matrix_scorer", most, content=b"no plan", part="match", **sizes)
    for options in ((), ("--mode", "matrix")):
        done = run(bundle.folder, *options)
        assert done.returncode == 2
        assert "matrix mode does not run on TensorRT yet" in done.stderr
    assert run(bundle.folder, "--mode", "pair").returncode == 0


def test_lists_are_left(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They need matrix mode: the search is by elimination alone."""
    bundle = clip_bundle(tmp_path / "bundle", clip_tokenizer(), monkeypatch, matrix=True)
    bundle = bundles.give_lists(bundle, Lists(0, 40, 0.0, {"1": Measured(999, (9.0,))}, {}, RULE))
    add_plans(bundle)
    python = Scorer.load(bundle.folder, "onnxruntime")
    texts = [f"a {color} {it}" for color in ("red", "green", "blue") for it in "abc"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), "utf-8")
    done = run(bundle.folder, "--top-k", "1")
    assert done.returncode == 0, done.stderr
    assert "of which 0 made lists" in done.stderr
    images = [tmp_path / f"{it}.png" for it in (64, 50, 200)]
    expected = python.rank_texts(images, texts, 1)
    assert [it["text"] for it in csv.DictReader(io.StringIO(done.stdout))] == [
        it.text for (it,) in expected
    ]


@pytest.mark.parametrize(("off", "refused"), [(5e-3, False), (2e-2, True)])
def test_a_plan_that_computes_something_else_is_refused_beyond_tf32s_digits(
    off: float, refused: bool, small: Bundle, run: Run
) -> None:
    """A bundle in FP32 allows 2e-4; a GPU multiplies in TF32."""
    states = known_tensors(small)["text_encoder.text_states"]
    states.flat[0] += off * np.abs(states).max()
    add_self_check(small, {"text_encoder.text_states": states})
    done = run(small.folder)
    assert done.returncode == (4 if refused else 0), done.stderr
    assert ("TensorRT: self-check of the text encoder: text_states[0, 0, 0]" in done.stderr) == (
        refused
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_plan_that_does_not_fit_is_refused(damage: str, small: Bundle, run: Run) -> None:
    change_it, message = DAMAGES[damage]
    (plan,) = (plan for plan in plans(small.folder) if plan.sidecar.graph == PAIR)
    change_it(small, plan)
    done = run(small.folder)
    assert message in done.stderr
    assert done.returncode == 4


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_nvidias_runtime_without_a_driver_is_told(tmp_path: Path) -> None:
    scorer = built("nvidia") / "dsd-score"
    done = subprocess.run(
        [scorer, tmp_path / "no bundle", tmp_path, tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 4
    assert done.stderr.startswith("error: no CUDA device: ")
    assert "Install NVIDIA's driver" in done.stderr


@on_the_stand_in
def test_without_a_gpu_nothing_else_is_looked_at(run: Run, tmp_path: Path) -> None:
    done = run(tmp_path / "no bundle", DEVICES="0")
    assert "no CUDA device: no device. Install NVIDIA's driver" in done.stderr
    assert done.returncode == 4


@on_the_stand_in
def test_a_driver_that_is_cut_short_is_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading it, as the CUDA runtime does, ends the process with a bus error."""
    library = tmp_path / "driver" / "libcuda.so.1"
    cut_short(library)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    done = run(tmp_path / "no bundle", DRIVER="loaded")
    start = f"error: no CUDA device: {library} is cut short: it has 131072 bytes, and "
    assert done.stderr.startswith(start)
    assert done.returncode == 4


@on_the_stand_in
def test_a_full_gpu_is_told(small: Bundle, run: Run) -> None:
    done = run(small.folder, MEMORY="9000")
    assert "cudaMalloc failed: out of memory. Free memory of the GPU, or build" in done.stderr
    assert done.returncode == 4


@on_the_stand_in
@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("at once", "engine.plan: the stand-in was told to fail"),  # the library's last words
        ("later", "cudaStreamSynchronize failed: invalid value"),
    ],
)
def test_a_run_that_fails_is_told(when: str, message: str, small: Bundle, run: Run) -> None:
    done = run(small.folder, FAILS=when)
    assert message in done.stderr
    assert done.returncode == 4


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("tensorrt", "TENSORRT_INCLUDE, TENSORRT_LIBRARY, CUDA_INCLUDE, CUDA_LIBRARY"),
        ("tensorrt-rtx", "TENSORRT_INCLUDE, TENSORRT_LIBRARY, CUDA_INCLUDE, CUDA_LIBRARY"),
        ("openvino", "DSD_ENGINE is onnxruntime, tensorrt or tensorrt-rtx, not openvino"),
    ],
)
def test_what_a_build_lacks_is_told(engine: str, message: str, tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    nowhere = [f"-DCMAKE_FIND_ROOT_PATH_MODE_{what}=ONLY" for what in ("INCLUDE", "LIBRARY")]
    done = subprocess.run(
        [
            *("cmake", "-S", ROOT / "engines" / "cpp", "-B", tmp_path / "build"),
            *(f"-DDSD_ENGINE={engine}", f"-DCMAKE_FIND_ROOT_PATH={tmp_path}", *nowhere),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert engine == "openvino" or "see docs/cpp.md" in " ".join(done.stderr.split())
