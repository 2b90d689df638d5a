"""Weights beside a graph: found wherever a graph can name them, listed and hashed, or refused."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from backends import open_engine
from bundles import take_weights_from
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from protobuf_fields import wire_field

from dsd_trt import Bundle, BundleError, Scorer, read_bundle, write_bundle
from dsd_trt.bundle.contract import Graph, TensorSpec
from dsd_trt.bundle.external_data import external_files
from dsd_trt.bundle.place import bundle_folder
from dsd_trt.errors import EngineError


def _outside(file: str, name: str = "w") -> TensorProto:
    """A tensor whose numbers lie in a file."""
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=file)
    tensor.external_data.add(key="length", value="16")
    return tensor


def _graph(**parts: list[object]) -> onnx.GraphProto:
    return onnx.GraphProto(name="g", **parts)


def _node(**attribute: object) -> onnx.NodeProto:
    return onnx.NodeProto(
        op_type="Any", name="/location/x", attribute=[onnx.AttributeProto(name="a", **attribute)]
    )


_SPARSE = onnx.SparseTensorProto(values=_outside("values"), indices=_outside("indices"))


@pytest.mark.parametrize(
    ("parts", "files"),
    [
        ({"graph": _graph(initializer=[_outside("weights.data")])}, {"weights.data"}),
        (
            {"graph": _graph(initializer=[_outside("a"), _outside("b/c"), _outside("a")])},
            {"a", "b/c"},
        ),
        ({"graph": _graph(node=[_node(t=_outside("constant"))])}, {"constant"}),
        (
            {"graph": _graph(node=[_node(tensors=[_outside("one"), _outside("two")])])},
            {"one", "two"},
        ),
        ({"graph": _graph(node=[_node(g=_graph(initializer=[_outside("inner")]))])}, {"inner"}),
        (
            {"graph": _graph(node=[_node(graphs=[_graph(node=[_node(t=_outside("deep"))])])])},
            {"deep"},
        ),
        ({"graph": _graph(sparse_initializer=[_SPARSE])}, {"values", "indices"}),
        ({"graph": _graph(node=[_node(sparse_tensor=_SPARSE)])}, {"values", "indices"}),
        ({"graph": _graph(node=[_node(sparse_tensors=[_SPARSE])])}, {"values", "indices"}),
        (
            {
                "graph": _graph(),
                "functions": [onnx.FunctionProto(name="f", node=[_node(t=_outside("function"))])],
            },
            {"function"},
        ),
        (
            {
                "graph": _graph(),
                "training_info": [
                    onnx.TrainingInfoProto(initialization=_graph(initializer=[_outside("start")]))
                ],
            },
            {"start"},
        ),
        ({"graph": _graph(node=[_node(s=b"location")])}, set()),
        ({"graph": onnx.GraphProto(name="location", doc_string="location")}, set()),
    ],
)
def test_every_place_that_can_name_a_file_is_looked_at(
    parts: dict[str, object], files: set[str]
) -> None:
    assert external_files(onnx.ModelProto(ir_version=10, **parts).SerializeToString()) == files


@pytest.mark.parametrize(
    "entry",
    [
        wire_field(2, b"hidden") + wire_field(1, b"location"),  # in another order
        wire_field(1, b"offset")
        + wire_field(1, b"location")
        + wire_field(2, b"")
        + wire_field(2, b"hidden"),
        b"\x8a\x80\x00\x88\x00location" + wire_field(2, b"hidden"),  # longer numbers than needed
        b"\x7b\x0a\x01x\x7c"
        + wire_field(1, b"location")
        + wire_field(2, b"hidden"),  # after a group
        b"\x18\x01" + wire_field(1, b"location") + b"\x25abcd" + wire_field(2, b"hidden"),
    ],
)
def test_files_are_found_however_the_graph_is_written(entry: bytes) -> None:
    """What protobuf reads is the oracle: any of these names the file."""
    tensor = wire_field(13, entry) + b"\x70\x01"
    model = b"\x08\x0a" + wire_field(7, wire_field(5, tensor))
    (read,) = onnx.ModelProto.FromString(model).graph.initializer
    assert {it.value for it in read.external_data if it.key == "location"} == {"hidden"}
    assert external_files(model) == {"hidden"}


@pytest.mark.parametrize("depth", range(4))
def test_tags_are_cut_to_32_bits_as_engines_cut_them(
    tmp_path: Path, engine: str, depth: int
) -> None:
    """Python's protobuf refuses such a graph; engines read it, and the file that it names so."""

    def field(level: int, number: int, content: bytes) -> bytes:
        return wire_field(number | 1 << 30 if level == depth else number, content)

    weights = _outside("hidden")
    entries = [*weights.external_data]
    weights.ClearField("external_data")
    tensor = weights.SerializeToString()
    for it in entries:
        key = (
            field(3, 1, it.key.encode()) if it.key == "location" else wire_field(1, it.key.encode())
        )
        tensor += field(2, 13, key + wire_field(2, it.value.encode()))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y])
    sound = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    content = field(0, 7, graph.SerializeToString() + field(1, 5, tensor))
    sound.ClearField("graph")
    model = sound.SerializeToString() + content

    (tmp_path / "graph.onnx").write_bytes(model)
    np.arange(4, dtype="<f4").tofile(tmp_path / "hidden")
    specs = [TensorSpec(name, "float32", ("B", 4)) for name in "xy"]
    with contextlib.closing(
        open_engine(tmp_path / "graph.onnx", Graph("graph.onnx", (specs[0],), (specs[1],)), engine)
    ) as opened:
        sums = opened.run({"x": np.ones((1, 4), np.float32)})["y"]
    assert sums.tolist() == [[1, 2, 3, 4]]
    assert external_files(model) == {"hidden"}


def test_what_is_no_graph_is_an_error_and_nothing_else() -> None:
    """Cut anywhere, with any byte another: no foreign exception, and never a file less."""
    sound = onnx.ModelProto(graph=_graph(initializer=[_outside("weights.data")]))
    content = sound.SerializeToString()
    for size in range(len(content)):
        with pytest.raises(ValueError, match="it "):
            external_files(content[:size])
    random = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(content)
        changed[random.integers(len(content))] = random.integers(256)
        try:
            read = onnx.ModelProto.FromString(bytes(changed))
        except Exception:  # protobuf's, which is not installed by its name
            continue
        named = {
            entry.value if isinstance(entry.value, str) else os.fsdecode(entry.value)
            for tensor in read.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location"
        }
        if read.HasField("graph"):
            assert external_files(bytes(changed)) >= named


def test_the_embedded_graphs_name_the_one_file() -> None:
    folder = bundle_folder(None)
    for path in folder.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        tensors = external_data_helper._get_all_tensors(model)
        named = {
            external_data_helper.ExternalDataInfo(it).location
            for it in tensors
            if external_data_helper.uses_external_data(it)
        }
        assert external_files(path.read_bytes()) == named == {"weights.data"}


@pytest.fixture
def mine(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the stand-in bundle that a test may change."""
    return read_bundle(Path(shutil.copytree(bundle.folder, tmp_path / "bundle")))


@pytest.mark.parametrize("location", ["extra.data", "weights.bin"])
def test_weights_are_listed_and_part_of_what_a_graph_is(mine: Bundle, location: str) -> None:
    pixels, texts = [np.full((8, 8, 3), 200, np.uint8)], ["a red dog"]
    before = Scorer(mine, "onnxruntime").score(pixels, texts).scores
    file = take_weights_from(mine.folder, location)
    scorer = Scorer.load(mine.folder, "onnxruntime")
    assert np.array_equal(scorer.score(pixels, texts).scores, before)
    hashes = {name: scorer.manifest.graph_hash(name) for name in scorer.manifest.graphs}

    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(BundleError, match=f"'{location}' was altered"):
        read_bundle(mine.folder)
    other = write_bundle(mine.folder, mine.manifest).manifest
    assert all(other.graph_hash(name) != hashes[name] for name in other.graphs)


@pytest.mark.parametrize("location", ["extra.data", "weights.bin", "weights.data"])
def test_weights_that_are_not_listed_are_refused(mine: Bundle, location: str) -> None:
    file = take_weights_from(mine.folder, location, listed=False)
    complaint = f"pair_scorer.file' takes weights from '{location}', which is not among"
    with pytest.raises(BundleError, match=complaint):
        read_bundle(mine.folder)
    file.rename(mine.folder.parent / "elsewhere")
    with pytest.raises(BundleError, match=complaint):
        write_bundle(mine.folder, mine.manifest)


@pytest.mark.parametrize("location", ["./extra.data", "tokenizer.json", "*/_ORT_MEM_ADDR_/*"])
def test_weights_under_another_name_or_in_another_files_place_are_refused(
    mine: Bundle, location: str
) -> None:
    (mine.folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    take_weights_from(mine.folder, location)
    with pytest.raises(BundleError, match="takes weights from"):
        read_bundle(mine.folder)


def test_files_that_are_not_listed_are_never_looked_at(mine: Bundle) -> None:
    (mine.folder / "weights.data").write_bytes(b"anything")
    (mine.folder / "bundle.json.bak").write_text("{")
    assert read_bundle(mine.folder).manifest == mine.manifest
    assert "weights.data" not in mine.manifest.weight_files


def test_a_graph_of_another_format_is_refused(mine: Bundle, engine: str) -> None:
    """OpenVINO 2026.4 knows its own by the content, and takes weights from pair_scorer.bin."""
    ov = pytest.importorskip("openvino")
    pair = mine.path("pair_scorer.onnx")
    ov.save_model(ov.Core().read_model(pair), mine.folder / "pair_scorer.xml", False)
    (mine.folder / "pair_scorer.xml").rename(pair)
    write_bundle(mine.folder, mine.manifest)
    with pytest.raises(EngineError, match=rf"{engine} refuses .*pair_scorer\.onnx"):
        Scorer.load(mine.folder, engine)


def test_a_graph_by_another_ending_is_refused(mine: Bundle) -> None:
    mine.path("pair_scorer.onnx").rename(mine.folder / "pair_scorer.xml")
    graphs = dict(mine.manifest.graphs)
    graphs["pair_scorer"] = replace(graphs["pair_scorer"], file="pair_scorer.xml")
    with pytest.raises(BundleError, match=r"'pair_scorer\.xml', which is no \.onnx"):
        write_bundle(mine.folder, replace(mine.manifest, graphs=graphs))
