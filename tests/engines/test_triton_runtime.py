"""What Triton's python models bring along is all that they import, whichever engine they run on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import FRACTIONS, closed_form, make_bundle
from numpy.typing import NDArray
from self_checked import add_self_check

import dsd_trt
from dsd_trt import Bundle
from dsd_trt.bundle.method import Mode
from dsd_trt.engine import BACKENDS, pooled_attention
from dsd_trt.engine.onnxruntime.cpu import CPU
from dsd_trt.engines.triton.runtime import needed_files, write_code
from dsd_trt.pipeline import Pipeline

MODELS = ("graph", "score", "tokenizer")

# An interpreter that finds nothing of ours but what lies beside the model, with as much of Triton's
# own module as `graph` calls.
BACKEND = """
import json, pathlib, sys, types
import numpy as np

folder = pathlib.Path(sys.argv[1])
sys.meta_path = [it for it in sys.meta_path if "editable" not in repr(it).lower()]
backend = sys.modules["triton_python_backend_utils"] = types.ModuleType("backend")

class Tensor:
    def __init__(self, name, values):
        self.name, self.values = name, values
    def as_numpy(self):
        return self.values

class Request(dict):
    def requested_output_names(self):
        return ["score"]
    def parameters(self):
        return "{}"

backend.Tensor, backend.InferenceResponse = Tensor, list
backend.get_input_tensor_by_name = lambda request, name: request[name]
backend.Logger = types.SimpleNamespace(log_info=lambda line: print(line, file=sys.stderr))
sys.path.append(str(folder))
import model
"""

IMPORT = """
import importlib
for path in sorted((folder / "dsd_trt").rglob("*.py")):
    name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
    importlib.import_module(name)
"""

RUN = """
graph, engine, feeds = sys.argv[2], sys.argv[3], np.load(sys.argv[4])
settings = {"graph": graph, "engine": engine, "self_check": "1"}
parameters = {key: {"string_value": value} for key, value in settings.items()}
served = model.TritonPythonModel()
config = json.dumps({"parameters": parameters})
served.initialize({"model_name": graph, "model_config": config})
((scores,),) = served.execute([Request({name: Tensor(name, it) for name, it in feeds.items()})])
kernel = sys.modules.get("dsd_trt.engine.pooled_attention")
print(json.dumps([scores.as_numpy().tolist(), kernel and kernel.register_widths()]))
"""

OURS = """
files = [it.__file__ for name, it in sys.modules.items() if name.split(".")[0] == "dsd_trt"]
assert files and all(pathlib.Path(it).is_relative_to(folder) for it in files), files
"""


def run(code: str, *arguments: object) -> tuple[str, str]:
    """Standard output and Triton's log of the model."""
    done = subprocess.run(
        [sys.executable, "-c", BACKEND + code + OURS, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return add_self_check(make_bundle(tmp_path_factory.mktemp("bundle") / "both", matrix=True))


@pytest.mark.parametrize("model", MODELS)
def test_every_module_is_imported_from_the_copy(model: str, tmp_path: Path) -> None:
    write_code(tmp_path, model)
    run(IMPORT, tmp_path)


@pytest.mark.parametrize("model", MODELS)
def test_every_import_is_found_in_the_copy(model: str, tmp_path: Path) -> None:
    """By the standard library's own search, which reads bytecode, functions' included."""
    write_code(tmp_path, model)
    finder = ModuleFinder(path=[str(tmp_path)])
    finder.run_script(str(tmp_path / "model.py"))
    if model == "graph":  # which imports a backend by its name
        for it in BACKENDS.values():
            finder.import_hook(it.partition(":")[0])
    # The package's root names all that it could hand out, for type checkers.
    missing = {name for name, callers in finder.badmodules.items() if {*callers} != {"dsd_trt"}}
    package = Path(dsd_trt.__file__).parent
    modules = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
    }
    assert not missing & modules
    files = {name: vars(it)["__file__"] for name, it in finder.modules.items()}
    found = {
        str(Path(file).relative_to(tmp_path / "dsd_trt"))
        for name, file in files.items()
        if name.split(".")[0] == "dsd_trt" and file
    }
    copied = {str(it.relative_to(tmp_path / "dsd_trt")) for it in tmp_path.rglob("dsd_trt/**/*.py")}
    assert copied <= found | {"__init__.py"}
    assert copied == set(needed_files((tmp_path / "model.py").read_text("utf-8")))


@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "openvino"])
@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_graphs_run_on_the_copy_alone(
    bundle: Bundle, mode: Mode, engine: str, tmp_path: Path
) -> None:
    write_code(tmp_path, "graph")
    for file in bundle.manifest.files:
        shutil.copy(bundle.path(file), tmp_path)
    shutil.copy(bundle.path("bundle.json"), tmp_path)
    text, pixels = "a red circle", np.full((8, 8, 3), (200, 90, 30), np.uint8)
    arrays: dict[str, Any] = feeds(bundle, mode, text, pixels)  # savez has options beside arrays
    np.savez(tmp_path / "feeds.npz", **arrays)
    written, log = run(RUN, tmp_path, f"{mode}_scorer", engine, tmp_path / "feeds.npz")
    scores, widths = json.loads(written.splitlines()[-1])
    expected = [closed_form(pixels, text, [level], mode=mode) for level in range(len(FRACTIONS))]
    # This environment's ONNX Runtime has no CUDA, so `auto` passes that over on any machine.
    passed_over = re.search(rf"{mode}_scorer: passed over: .*onnxruntime-cuda.*: ", log)
    assert bool(passed_over) == (engine == "auto")
    np.testing.assert_allclose(np.ravel(scores), expected, atol=1e-5)
    if mode == "matrix":
        assert widths == pooled_attention.register_widths()  # the kernel came along


def feeds(
    bundle: Bundle, mode: Mode, text: str, pixels: NDArray[np.uint8]
) -> dict[str, NDArray[Any]]:
    """A scorer's inputs: an image at every level, with its text in pair mode, and one for all."""
    pipeline = Pipeline(bundle, CPU, 64)
    texts = pipeline.encode_texts([text] * (len(FRACTIONS) if mode == "pair" else 1))
    return {
        "latent": pipeline.encode_images([pixels] * len(FRACTIONS)),
        "level": np.arange(len(FRACTIONS), dtype=np.int32),
        "text_states": texts.states,
        "token_mask": texts.mask,
    }
