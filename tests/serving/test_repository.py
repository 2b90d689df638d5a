"""What is written: configurations, files, and what is refused before anything is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from adapters import feed_adapter
from bundles import LENGTH, give_form, give_lists, make_bundle
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from dsd_trt import Bundle, BundleError, EngineError, InputError, Scorer
from dsd_trt.bundle.folder import read_bundle, read_manifest
from dsd_trt.bundle.lists import RULE, Lists, Measured
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.engine.tensorrt.plan import Plan, Profile, Sidecar, write_plan
from dsd_trt.engines.triton.config import Limits, check_config
from dsd_trt.engines.triton.repository import ServedBy, write_repository
from dsd_trt.errors import DsdError
from dsd_trt.files import disk
from dsd_trt.pipeline import EncodedTexts
from dsd_trt.text_cache import TextCache

GRAPHS = ("image_encoder", "text_encoder", "pair_scorer")


def read(repository: Path, model: str) -> Any:
    text = (repository / model / "config.pbtxt").read_text("utf-8")
    return text_format.Parse(text, ModelConfig())


TYPES = {DataType.TYPE_UINT8: "uint8", DataType.TYPE_INT32: "int32"} | {
    DataType.TYPE_FP16: "float16",
    DataType.TYPE_FP32: "float32",
}


def signature(values: Any) -> dict[str, tuple[str, list[int]]]:
    """Tensors of an ONNX graph, by name, without their first dimension."""
    return {
        it.name: (
            np.dtype(onnx.helper.tensor_dtype_to_np_dtype(it.type.tensor_type.elem_type)).name,
            [size.dim_value for size in it.type.tensor_type.shape.dim[1:]],
        )
        for it in values
    }


@pytest.mark.parametrize("engine", ["onnxruntime", "python"])
def test_no_file_is_shared_with_the_bundle(engine: Any, tmp_path: Path) -> None:
    """Not with the package's own either: ONNX's tools refuse weights that have two names."""
    bundle = read_bundle(bundle_folder(None))
    linked = tmp_path / "of before"  # a repository that an earlier version made of hard links
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    linked.mkdir()
    (linked / "weights.data").hardlink_to(tmp_path / "bundle" / "weights.data")
    with pytest.raises(InputError, match="not an empty folder"):
        write_repository(bundle, linked, engine)
    written = write_repository(bundle, tmp_path / "models", engine)
    files = [path for path in written.folder.rglob("*") if path.is_file()]
    graphs = [it.file for it in bundle.manifest.graphs.values()]  # the matrix scorer's for lists
    checks = [path.name for path in files if path.name == "self_check.safetensors"]
    assert len(checks) == (6 if engine == "python" else 2)  # of all that computes or asks for it
    copied = (*graphs, *["weights.data"] * 4, *checks)
    sizes = [bundle.manifest.files[name].size for name in copied]
    assert written.bytes_taken == 0 or 0 <= written.bytes_taken - sum(sizes) < 1e6
    for path in (*files, *bundle.folder.iterdir()):
        assert path.stat().st_nlink == 1
    for path in (*written.folder.rglob("*.onnx"), *bundle.folder.glob("*.onnx")):
        onnx.load(path)
        onnx.checker.check_model(path)


@pytest.mark.parametrize(
    ("engine", "forms"),
    [("python", ["dsd_pair_scorer/1/pair_scorer.cuda.onnx"]), ("onnxruntime", [])],
)
def test_a_form_for_cuda_lies_beside_its_graph_where_it_is_checked(
    tmp_path: Path, engine: ServedBy, forms: list[str]
) -> None:
    make_bundle(tmp_path / "bundle")
    bundle = give_form(tmp_path / "bundle")
    written = write_repository(bundle, tmp_path / "models", engine)
    found = [str(it.relative_to(written.folder)) for it in written.folder.rglob("*.cuda.onnx")]
    assert found == forms


@pytest.mark.parametrize("engine", ["onnxruntime", "python"])
def test_the_graph_of_maps_stays_in_the_bundle(engine: ServedBy, tmp_path: Path) -> None:
    """A server explains nothing; the copies of bundle.json name the graph, and are read."""
    bundle = read_bundle(bundle_folder(None))
    assert bundle.manifest.maps is not None
    written = write_repository(bundle, tmp_path / "models", engine)
    assert not list(written.folder.rglob("maps.onnx"))
    copies = list(written.folder.rglob("bundle.json"))
    assert copies
    assert all(read_manifest(it.parent) == bundle.manifest for it in copies)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = read_bundle(bundle_folder(None))
    needed = 3 * bundle.manifest.files["weights.data"].size
    monkeypatch.setattr(disk, "_clone", lambda source, target: False)
    usage = shutil.disk_usage(tmp_path)._replace(free=needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=rf"{tmp_path} has room for .* the repository needs"):
        write_repository(bundle, tmp_path / "models")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_configurations_say_what_the_graphs_take_and_give(precision: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", precision=precision, score="attention+denoising")
    written = write_repository(made, tmp_path / "models", max_batch_size=24)
    for name in GRAPHS:
        config = read(written.folder, f"dsd_{name}")
        assert config.name == f"dsd_{name}"
        assert config.backend == "onnxruntime"
        assert config.max_batch_size == 24
        assert config.HasField("dynamic_batching")
        assert not config.instance_group  # so that it is for CPUs and GPUs
        assert {it.batch_size for it in config.model_warmup} == {1, 24}
        model = written.folder / config.name / "1" / config.default_model_filename
        graph = onnx.load(model).graph
        for declared, found in ((config.input, graph.input), (config.output, graph.output)):
            # What the model sees: the reshaped dims, where they are.
            shapes = {
                it.name: (
                    TYPES[it.data_type],
                    list(it.reshape.shape if it.HasField("reshape") else it.dims),
                )
                for it in declared
            }
            assert shapes == signature(found)


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_graphs_are_told_how_to_run_on_gpus(mode: Any, tmp_path: Path) -> None:
    """With keys and values as the README of Triton's ONNX Runtime backend has them.

    It has three of them under "deprecated". Its code overwrites what the accelerator says of these.
    """
    made = make_bundle(tmp_path / "bundle", matrix=True)
    written = write_repository(made, tmp_path / "models", mode=mode)
    graphs = [path.parents[1].name for path in written.folder.rglob("*.onnx")]
    assert len(graphs) == 3
    for name in graphs:
        config = read(written.folder, name)
        (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert accelerator.name == "cuda"
        assert dict(accelerator.parameters) == {"use_tf32": "0"}
        assert not config.optimization.execution_accelerators.cpu_execution_accelerator
        assert {key: it.string_value for key, it in config.parameters.items()} == {
            "cudnn_conv_algo_search": "1",
            "arena_extend_strategy": "1",
            "session.use_device_allocator_for_initializers": "1",
        }


def test_only_the_onnxruntime_backend_is_told_how(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    written = write_repository(made, tmp_path / "models", "python")
    for path in written.folder.rglob("config.pbtxt"):
        assert "cuda" not in path.read_text()
        assert "cudnn" not in path.read_text()


def test_plans_are_named_by_compute_capability(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    add_plans(made, "8.6", Profile(1, 8, 32))
    add_plans(made, "9.0", Profile(1, 8, 16))
    add_plans(made, "9.0", Profile(1, 8, 12))  # the one for larger batches is taken
    add_plans(made, "8.9", Profile(4, 8, 16))  # Triton could not run single items
    written = write_repository(made, tmp_path / "models", "tensorrt", max_batch_size=24)
    assert written.max_batch_size == 16
    for name in GRAPHS:
        config = read(written.folder, f"dsd_{name}")
        assert config.platform == "tensorrt_plan"
        assert config.max_batch_size == 16
        assert set(config.cc_model_filenames) == {"8.6", "9.0"}
        version = written.folder / config.name / "1"
        contents = {
            capability: (version / file).read_text()
            for capability, file in config.cc_model_filenames.items()
        }
        assert contents == {"8.6": f"{name} 8.6 1,8,32", "9.0": f"{name} 9.0 1,8,16"}
        assert config.default_model_filename in config.cc_model_filenames.values()
        assert not list(version.glob("*.onnx"))


def test_plans_have_to_be_there(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    with pytest.raises(EngineError, match=r"no tensorrt plan of its image_encoder.*dsd-trt build"):
        write_repository(made, tmp_path / "models", "tensorrt")
    add_plans(made, "8.6", Profile(1, 8, 32))
    add_plans(made, "9.0", Profile(1, 8, 32), version="10.9")
    with pytest.raises(EngineError, match=r"several versions of TensorRT, 10.8, 10.9"):
        write_repository(made, tmp_path / "models", "tensorrt")
    assert not (tmp_path / "models").exists()


def test_every_graph_has_a_plan_for_the_same_gpus(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    add_plans(made, "8.6", Profile(1, 8, 32))
    add_plans(made, "9.0", Profile(1, 8, 32), graphs=["pair_scorer"])
    with pytest.raises(EngineError, match=r"9\.0, but none of its image_encoder, text_encoder"):
        write_repository(made, tmp_path / "models", "tensorrt")


def add_plans(
    bundle: Bundle,
    capability: str,
    profile: Profile,
    version: str = "10.8",
    graphs: Sequence[str] = GRAPHS,
) -> list[Plan]:
    plans = []
    for name in graphs:
        content = memoryview(f"{name} {capability} {profile}".encode())
        sidecar = Sidecar.of(
            content, bundle.manifest, name, "tensorrt", version, (capability,), (profile,)
        )
        plans.append(write_plan(bundle.folder, content, sidecar))
    return plans


def test_the_ensemble_joins_the_graphs(bundle: Bundle, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "models")
    config = read(written.folder, "dsd_match")
    steps = config.ensemble_scheduling.step
    assert [step.model_name for step in steps] == [f"dsd_{name}" for name in GRAPHS]
    known = {it.name: tuple(it.dims) for it in config.input}
    for step in steps:
        model = read(written.folder, step.model_name)
        assert {it.name: known[step.input_map[it.name]] for it in model.input} == {
            it.name: tuple(it.dims) for it in model.input
        }
        known |= {step.output_map[it.name]: tuple(it.dims) for it in model.output}
    assert {it.name: tuple(it.dims) for it in config.output}.items() <= known.items()


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_python_models_import_nothing_of_ours_but_what_lies_beside_them(
    mode: Any, tmp_path: Path
) -> None:
    """Each in an interpreter that has no dsd_trt, and a stand-in for Triton's own module."""
    made = make_bundle(tmp_path / "bundle", matrix=True)
    written = write_repository(made, tmp_path / "models", "python", mode=mode)
    code = (
        "import sys, types\n"
        "sys.meta_path = [it for it in sys.meta_path if 'editable' not in repr(it).lower()]\n"
        "sys.modules['triton_python_backend_utils'] = types.ModuleType('backend')\n"
        "sys.path.append(sys.argv[1])\n"
        "import model\n"
        "print(model.TritonPythonModel, sys.modules['dsd_trt'].__file__)\n"
    )
    models = sorted(path.parent for path in written.folder.glob("*/1/model.py"))
    assert len(models) == (6 if mode == "pair" else 5)
    for model in models:
        run = subprocess.run(
            [sys.executable, "-c", code, model], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        assert str(model) in run.stdout.split()[-1]


def test_pair_mode_serves_lists_that_were_measured(tmp_path: Path) -> None:
    """A copy of the matrix scorer, unless it is left out or nobody could ask it."""
    made = make_bundle(tmp_path / "bundle", matrix=True, trained_for="both")
    measured, folder = {"3": Measured(100, (0.25,))}, tmp_path / "models"

    def served(bundle: Bundle, engine: ServedBy = "python", **options: Any) -> bool:
        written = write_repository(bundle, folder, engine, max_batch_size=8, **options)
        assert {path.name for path in folder.iterdir()} == set(written.models)
        has_matrix = "dsd_matrix_scorer" in written.models
        assert ("dsd_rank_texts" in written.models) == (written.mode == "pair")
        if written.mode == "pair":
            config = read(folder, "dsd_rank_texts").parameters
            assert ("matrix_walks" in config) == has_matrix
            assert "matrix_walks" not in read(folder, "dsd_score").parameters
        shutil.rmtree(folder)
        return has_matrix

    assert not served(
        give_lists(made, Lists(0, 10, 0.0, {}, measured, RULE))
    )  # nobody asks for these
    assert not served(give_lists(made, Lists(0, 10, 0.0, measured, {})))  # for another rule
    listed = give_lists(made, Lists(0, 10, 0.0, measured, {}, RULE))
    assert served(listed)
    assert served(listed, "onnxruntime")
    assert not served(listed, lists=False)
    assert served(listed, mode="matrix", lists=False)  # which scores with it
    add_plans(listed, "8.6", Profile(1, 8, 32))
    assert not served(listed, "tensorrt")


def test_the_cache_of_a_ranking_takes_the_texts_of_a_request(
    bundle: Bundle, tmp_path: Path
) -> None:
    limits = Limits(max_texts=100_000, max_pairs=100_000)
    written = write_repository(bundle, tmp_path / "models", "python", limits=limits)
    cached = int(read(written.folder, "dsd_rank_texts").parameters["text_cache_mb"].string_value)
    graph = bundle.manifest.graphs["text_encoder"]
    states = np.zeros((1, *map(int, graph.outputs[0].shape[1:])), np.float32)
    mask = np.zeros((1, LENGTH), np.float32)
    cache = TextCache(cached)
    for number in range(0, limits.max_texts, 10):
        some = [f"text {number + i}" for i in range(10)]
        cache.encode(some, lambda it: EncodedTexts(states.repeat(len(it), 0), mask.repeat(10, 0)))
    assert len(cache) == limits.max_texts


def test_an_adapter_that_is_fed_needs_the_lean_runtime(tmp_path: Path) -> None:
    fed = feed_adapter(make_bundle(tmp_path / "bundle"), np.ones(3, np.float32))
    with pytest.raises(InputError, match=r"without --adapter-input\. Or: --engine python"):
        write_repository(fed, tmp_path / "models")
    config = read(write_repository(fed, tmp_path / "models", "python").folder, "dsd_pair_scorer")
    assert "adapter" not in {it.name for it in config.input}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_matrix_mode_has_a_scorer_of_two_dynamic_dimensions(precision: Any, tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle", precision=precision, matrix=True)
    written = write_repository(made, tmp_path / "models", max_batch_size=24, mode="matrix")
    assert {path.name for path in written.folder.iterdir()} == set(written.models)
    assert set(written.models) == {
        *(f"dsd_{name}" for name in ("image_encoder", "text_encoder", "matrix_scorer")),
        *("dsd_tokenizer", "dsd_score"),
    }
    config = read(written.folder, "dsd_matrix_scorer")
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    model = written.folder / config.name / "1" / config.default_model_filename
    graph = onnx.load(model).graph
    for declared, found in ((config.input, graph.input), (config.output, graph.output)):
        in_graph = {
            it.name: [size.dim_value or -1 for size in it.type.tensor_type.shape.dim]
            for it in found
        }
        assert {it.name: list(it.dims) for it in declared} == in_graph
    settings = {
        key: value.string_value
        for key, value in read(written.folder, "dsd_score").parameters.items()
    }
    walks, texts = int(settings["matrix_walks"]), int(settings["matrix_texts"])
    assert (walks, texts) == (24, 256)
    largest = config.model_warmup[1].inputs
    assert {name: it.dims[0] for name, it in largest.items()} == {
        "latent": walks,
        "level": walks,
        "text_states": texts,
        "token_mask": texts,
    }


@pytest.mark.parametrize(
    ("trained_for", "asked", "written"),
    [
        (None, "auto", "pair"),
        ("pair", "auto", "pair"),
        ("both", "auto", "pair"),
        ("matrix", "auto", "matrix"),
        ("matrix", "pair", "pair"),
        ("both", "matrix", "matrix"),
    ],
)
def test_the_mode_is_the_scorers(
    trained_for: Any, asked: Any, written: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_bundle(tmp_path / "bundle", matrix=True, trained_for=trained_for)
    assert write_repository(made, tmp_path / "models", mode=asked).mode == written
    assert Scorer.load(made.folder, "onnxruntime", mode=asked).mode == written
    assert caplog.text.count("was trained for") == (
        2 if trained_for not in (None, "both", written) else 0
    )


def test_a_mode_that_cannot_be_served_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="dsd-trt export --matrix"):
        write_repository(bundle, tmp_path / "models", mode="matrix")
    made = make_bundle(tmp_path / "bundle", matrix=True, trained_for="matrix")
    for asked in ("matrix", "auto"):
        with pytest.raises(
            InputError, match=r"does not run on tensorrt yet.*onnxruntime or python"
        ):
            write_repository(made, tmp_path / "models", "tensorrt", mode=asked)
    assert not (tmp_path / "models").exists()


def test_a_folder_that_holds_something_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").write_text("precious")
    with pytest.raises(InputError, match="not an empty folder"):
        write_repository(bundle, tmp_path / "models")
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "mine"]


def test_an_empty_folder_is_filled_and_nothing_else_is_left(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    written = write_repository(bundle, tmp_path / "models")
    assert {path.name for path in written.folder.iterdir()} == set(written.models)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_what_cannot_be_written_is_said(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_repository(bundle, tmp_path / "file" / "models")


def test_a_configuration_is_checked(bundle: Bundle) -> None:
    with pytest.raises(DsdError, match=r"dsd_x is not what Triton reads.*max_batch_sise"):
        check_config("dsd_x", 'name: "dsd_x"\nmax_batch_sise: 3\n')


def test_an_altered_bundle_is_not_served(tmp_path: Path) -> None:
    made = make_bundle(tmp_path / "bundle")
    (made.folder / "tokenizer.json").write_text("{}")
    command = [sys.executable, "-m", "dsd_trt", "triton"]
    run = subprocess.run(
        [*command, made.folder, tmp_path / "models"], capture_output=True, text=True
    )
    assert run.returncode == BundleError.exit_code
    assert "tokenizer.json" in run.stderr
    assert not (tmp_path / "models").exists()


def test_the_command_says_how_to_serve(bundle: Bundle, tmp_path: Path) -> None:
    models = tmp_path / "models"
    command = [sys.executable, "-m", "dsd_trt", "triton"]
    options = ("--max-batch-size", "7", "--mode", "pair", "--no-lists")
    run = subprocess.run(
        [*command, bundle.folder, models, *options], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert f"tritonserver --model-repository {models}" in run.stderr
    assert "pair mode" in run.stderr
    assert read(models, "dsd_pair_scorer").max_batch_size == 7
    described = json.loads((models / "dsd_score" / "1" / "bundle.json").read_text())
    assert described["method"]["lambda"] == bundle.manifest.method.lam
