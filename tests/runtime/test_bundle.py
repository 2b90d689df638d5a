from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import give_form, make_bundle, make_manifest, take_weights_from

from dsd_trt import Bundle, BundleError, Manifest, read_bundle, write_bundle
from dsd_trt.bundle.contract import graph_contract
from dsd_trt.bundle.manifest import Calibration


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the stand-in bundle that a test may damage."""
    return Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))


def edit(folder: Path, where: str, value: Any) -> None:
    """Set one field of bundle.json by its dotted path."""
    path = folder / "bundle.json"
    plain = json.loads(path.read_text())
    *parents, last = where.split(".")
    at = plain
    for key in parents:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[int(last) if isinstance(at, list) else last] = value
    path.write_text(json.dumps(plain))


def test_reading_returns_what_was_written(folder: Path, bundle: Bundle) -> None:
    assert read_bundle(folder).manifest == bundle.manifest
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest


def test_manifest_uses_the_papers_names_and_plain_json(bundle: Bundle) -> None:
    plain = json.loads((bundle.folder / "bundle.json").read_text())
    assert plain["schema_version"] == 1
    assert plain["method"]["lambda"] == 20.0
    assert plain["method"]["noise_levels"]["fractions"] == [0.2, 0.4, 0.8]
    assert plain["graphs"]["pair_scorer"]["inputs"][0] == {
        "name": "latent",
        "dtype": "float32",
        "shape": ["B", 3, 2, 2],
    }


def test_every_other_file_is_listed_with_its_hash_and_size(bundle: Bundle) -> None:
    on_disk = {
        path.relative_to(bundle.folder).as_posix(): path.read_bytes()
        for path in bundle.folder.rglob("*")
        if path.name != "bundle.json"
    }
    listed = json.loads((bundle.folder / "bundle.json").read_text())["files"]
    assert listed == {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in on_disk.items()
    }


def _required_paths(plain: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of the fields a schema demands, leaving out free-form parts."""
    free = {"files", "parity", "graphs", "provenance.weight_hashes", "provenance.library_versions"}
    for key, value in plain.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict) and f"{prefix}{key}" not in free:
            yield from _required_paths(value, f"{prefix}{key}.")


def test_each_missing_field_is_named(bundle: Bundle) -> None:
    plain = json.loads(bundle.manifest.to_json())
    paths = list(_required_paths(plain))
    assert len(paths) > 30
    for path in paths:
        damaged = copy.deepcopy(plain)
        *parents, last = path.split(".")
        at = damaged
        for key in parents:
            at = at[key]
        del at[last]
        with pytest.raises(BundleError, match=last):
            Manifest.from_json(json.dumps(damaged))


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("method.lambda", "20"),
        ("method.lambda", True),
        ("method.pooling", "mean"),
        ("method.score_layers", [0, 1.5]),
        ("method.score_layers", []),
        ("method.layer_names", ["only one"]),
        ("method.head_weights.values", [[0.5], ["x"]]),
        ("method.noise_levels.fractions", [0.2, 0.4, 1.5]),
        ("method.noise_levels.fractions", [0.2, 0.2, 0.4]),
        ("method.noise_levels.timesteps", [200]),
        ("method.noise_levels.seed", 0.5),
        ("method.token_mask", "nouns"),
        ("method.has_prompts", 1),
        ("precision", "bf16"),
        ("tokenizer.pad_id", None),
        ("preprocessing.resize", "crop"),
        ("calibration.a", None),
        ("provenance.revision", 3),
        ("graphs.pair_scorer.inputs.0.shape", ["B", 4, 2, 2]),
        ("graphs.pair_scorer.inputs.1.dtype", "int64"),
        ("graphs.image_encoder.inputs.0.name", "image"),
        ("graphs.text_encoder.outputs", []),
        ("bfloat16", []),
        ("bfloat16", {"matrix": {"winner_changes": 0.1, "difference": 0, "engine": "cpu"}}),
        ("bfloat16", {"pair": {"winner_changes": 0.6, "difference": 0.0, "engine": "cpu"}}),
        ("bfloat16", {"pair": {"winner_changes": 0.1, "difference": -0.1, "engine": "cpu"}}),
        ("bfloat16", {"pair": {"winner_changes": 0.1, "engine": "cpu"}}),
        ("files", []),
    ],
)
def test_a_wrong_value_is_refused_by_name(folder: Path, where: str, value: object) -> None:
    edit(folder, where, value)
    named = ".".join(part for part in where.split(".") if not part.isdigit()).split(".inputs")[0]
    with pytest.raises(BundleError, match=named.replace(".", r"\.")):
        read_bundle(folder)


def test_an_unknown_field_is_refused(folder: Path) -> None:
    edit(folder, "method.temperature", 1.0)
    with pytest.raises(BundleError, match=r"method\.temperature"):
        read_bundle(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused(folder: Path, version: object) -> None:
    edit(folder, "schema_version", version)
    with pytest.raises(BundleError, match="schema_version"):
        read_bundle(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": NaN}'])
def test_what_is_no_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_bundle(folder)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="dsd-trt export"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        read_bundle(tmp_path / "nowhere")


def test_one_flipped_bit_is_found(folder: Path) -> None:
    path = folder / "pair_scorer.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"pair_scorer\.onnx.*altered"):
        read_bundle(folder)


def test_a_truncated_file_is_found(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"tokenizer\.json.*bytes instead of"):
        read_bundle(folder)


def test_a_git_lfs_pointer_in_a_files_place_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    with pytest.raises(BundleError, match=r"tokenizer\.json.*git lfs pull"):
        read_bundle(folder)


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "text_encoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"text_encoder\.onnx.*missing"):
        read_bundle(folder)


def test_paths_stay_inside_the_folder(folder: Path) -> None:
    outside = folder.parent / "outside.txt"
    outside.write_text("secret")
    entry = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    link = folder / "link.txt"
    link.symlink_to(outside)
    original = (folder / "bundle.json").read_text()
    for name in ("../outside.txt", "sub/../../outside.txt", str(outside), "link.txt"):
        plain = json.loads(original)
        plain["files"][name] = entry
        (folder / "bundle.json").write_text(json.dumps(plain))
        with pytest.raises(BundleError, match="outside the bundle"):
            read_bundle(folder)


def test_a_graph_must_be_among_the_verified_files(folder: Path) -> None:
    edit(folder, "graphs.pair_scorer.file", "other.onnx")
    (folder / "other.onnx").write_bytes(b"not verified")
    with pytest.raises(BundleError, match=r"graphs\.pair_scorer\.file"):
        read_bundle(folder)


def test_an_inconsistent_manifest_is_never_written(tmp_path: Path) -> None:
    contract = graph_contract("fp16", 8, (3, 2, 2), 4)
    with pytest.raises(BundleError, match=r"graphs\.image_encoder"):
        write_bundle(tmp_path, make_manifest(contract, precision="fp32"))
    with pytest.raises(BundleError, match="not among the files"):
        write_bundle(tmp_path, make_manifest(contract, precision="fp16"))
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_could_read_is_never_written(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    before = (folder / "bundle.json").read_bytes()
    method = bundle.manifest.method
    unknown = replace(method.head_weights, mode="best")  # type: ignore[arg-type]
    for manifest, field in (
        (replace(bundle.manifest, calibration=Calibration(math.nan, 0)), "calibration.a"),
        (replace(bundle.manifest, calibration=Calibration(1, math.inf)), "calibration.b"),
        (
            replace(bundle.manifest, method=replace(method, head_weights=unknown)),
            "method.head_weights.mode",
        ),
    ):
        with pytest.raises(BundleError, match=field):
            write_bundle(folder, manifest)
        assert (folder / "bundle.json").read_bytes() == before


def test_fp16_bundles_carry_states_in_float16_and_scores_in_float32(tmp_path: Path) -> None:
    graphs = make_bundle(tmp_path, precision="fp16").manifest.graphs
    dtypes = {
        f"{name}.{spec.name}": spec.dtype
        for name, graph in graphs.items()
        for spec in (*graph.inputs, *graph.outputs)
    }
    assert dtypes == {
        "image_encoder.pixels": "uint8",
        "image_encoder.latent": "float16",
        "text_encoder.input_ids": "int32",
        "text_encoder.text_states": "float16",
        "pair_scorer.latent": "float16",
        "pair_scorer.level": "int32",
        "pair_scorer.text_states": "float16",
        "pair_scorer.token_mask": "float32",
        "pair_scorer.score": "float32",
        "pair_scorer.token_scores": "float32",
    }


def test_json_nested_without_end_is_refused_as_any_that_is_damaged(
    bundle: Bundle, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "bundle"))
    (folder / "bundle.json").write_text("[" * 100_000, "utf-8")
    with pytest.raises(BundleError, match="not valid JSON: it is nested too deep"):
        read_bundle(folder)


# Forms for CUDA


def test_a_form_is_a_field_of_bundles_that_have_one(folder: Path) -> None:
    before = read_bundle(folder).manifest
    assert before.cuda_form is None
    assert "cuda_form" not in before.to_json()
    manifest = give_form(folder).manifest
    assert read_bundle(folder).manifest == manifest
    plain = json.loads((folder / "bundle.json").read_text())
    assert plain["cuda_form"] == {"pair_scorer": "pair_scorer.cuda.onnx"}
    assert manifest.weight_files == before.weight_files
    assert manifest.graph_hash("pair_scorer") == before.graph_hash("pair_scorer")


@pytest.mark.parametrize(
    ("form", "complaint"),
    [
        ({"unet": "pair_scorer.cuda.onnx"}, r"cuda_form\.unet.*no graph"),
        ({"pair_scorer": "other.onnx"}, r"cuda_form\.pair_scorer.*'other\.onnx'"),
        ({"pair_scorer": "tokenizer.json"}, r"cuda_form\.pair_scorer.*no \.onnx"),
        ({"pair_scorer": 1}, r"cuda_form\.pair_scorer"),
        ({"pair_scorer": None}, r"cuda_form\.pair_scorer"),
        ("pair_scorer.cuda.onnx", "cuda_form"),
    ],
)
def test_a_wrong_form_is_refused_by_name(folder: Path, form: object, complaint: str) -> None:
    give_form(folder)
    edit(folder, "cuda_form", form)
    with pytest.raises(BundleError, match=complaint):
        read_bundle(folder)


def test_a_form_is_verified_as_every_file(folder: Path) -> None:
    give_form(folder)
    path = folder / "pair_scorer.cuda.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"pair_scorer\.cuda\.onnx' was altered"):
        read_bundle(folder)


def test_a_form_takes_no_weights_from_an_unlisted_file(folder: Path) -> None:
    bundle = give_form(folder)
    take_weights_from(folder, "elsewhere.data").unlink()
    (folder / "pair_scorer.onnx").rename(folder / "pair_scorer.cuda.onnx")
    make_bundle(folder)
    with pytest.raises(BundleError, match=r"cuda_form\.pair_scorer.*'elsewhere\.data'"):
        write_bundle(folder, bundle.manifest)
