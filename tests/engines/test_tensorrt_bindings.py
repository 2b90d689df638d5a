"""Everything the code asks of TensorRT exists in the real bindings, of 10.8 to 11.4.

The libraries cannot be installed here, but the bindings can, 1 MB each. They import where the
libraries they ask for are there by name: empty ones do. What is asked for is read from the source.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import tensorrt_rtx

ROOT = Path(__file__).parents[2]
SOURCES = (
    *(ROOT / "engines").glob("*.py"),
    *(ROOT / "dsd_trt" / "engine" / "tensorrt").glob("*.py"),
)
WHEELS = Path(sys.prefix) / "tensorrt-bindings"  # `make .venv/installed` fetches them
VERSIONS = ("10.8.", "10.16.", "11.0.", "11.4.")

# Whose attributes are asked for, by the name they go by in the source.
KINDS = {
    "builder": "Builder",
    "definition": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "made": "IOptimizationProfile",
    "layer": "ILayer",
    "product": "IMatrixMultiplyLayer",
    "convolution": "IConvolutionLayer",
    "cache": "ITimingCache",
    "_runtime": "Runtime",
    "_engine": "ICudaEngine",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
}
# What the same names stand for elsewhere in the sources: fields of our own.
OWN = {
    "layer": {"kind", "dtype", "inputs", "outputs"},
    "error": {"strerror"},
    "engine": {"time", "profiles"},
}
RTX_ALONE = {("trt", "ComputeCapability"), ("IBuilderConfig", "num_compute_capabilities")}
RTX_ALONE |= {("IBuilderConfig", "set_compute_capability"), ("ComputeCapability", "__members__")}

EMPTY = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
        "getNvOnnxParserVersion",
        "initLibNvInferPlugins",
    )
)

MISSING = """
import json, sys
import tensorrt_bindings as trt
missing = []
for kind, name in json.loads(sys.argv[1]):
    owner = trt if kind == "trt" else getattr(trt, kind)
    if not hasattr(owner, name):
        missing.append([kind, name])
print(json.dumps([trt.__version__, missing]))
"""


def asked_for() -> set[tuple[str, str]]:
    """(class, attribute) of everything of TensorRT's that the sources name."""
    found: set[tuple[str, str]] = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            name = getattr(owner, "id", None) or getattr(owner, "attr", "")
            if name == "trt":
                found.add(("trt", node.attr))
            elif name in KINDS and node.attr not in OWN.get(name, ()):
                found.add((KINDS[name], node.attr))
            elif isinstance(owner, ast.Attribute) and getattr(owner.value, "id", "") == "trt":
                found.add((owner.attr, node.attr))
    return found


def test_the_sources_are_read() -> None:
    wanted = asked_for()
    assert ("trt", "OnnxParser") in wanted
    assert ("IExecutionContext", "execute_async_v3") in wanted
    assert ("ICudaEngine", "get_tensor_mode") in wanted
    assert ("IBuilderConfig", "add_optimization_profile") in wanted
    assert ("ParserError", "node_operator") in wanted
    assert ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") in wanted
    assert wanted >= RTX_ALONE
    assert len(wanted) > 40


def test_tensorrt_rtx_has_all_of_it() -> None:
    missing = [
        (kind, name)
        for kind, name in asked_for()
        if not hasattr(tensorrt_rtx if kind == "trt" else getattr(tensorrt_rtx, kind), name)
    ]
    assert not missing


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_has_all_but_what_is_tensorrt_rtxs_alone(version: str, tmp_path: Path) -> None:
    (wheel,) = WHEELS.glob(f"tensorrt_cu12_bindings-{version}*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    major = version.partition(".")[0]
    (tmp_path / "empty.c").write_text(EMPTY)
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        file = f"lib{library}.so.{major}"
        subprocess.run(
            ["cc", "-shared", "-fPIC", f"-Wl,-soname,{file}", "-o", file, "empty.c"],
            cwd=tmp_path,
            check=True,
        )
    wanted = sorted(asked_for() - RTX_ALONE)
    done = subprocess.run(
        [sys.executable, "-c", MISSING, json.dumps(wanted)],
        cwd=tmp_path,
        env={"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found, missing = json.loads(done.stdout)
    assert found.startswith(version)
    assert missing == []
