"""`dsd-trt inspect`: what is said of bundles, of damaged ones, and of what is none."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import give_form, make_bundle, take_weights_from
from fake_hub import FakeHub, files_of, serve
from in_process import Run

from dsd_trt import Bundle, Scorer, bundle_facts
from dsd_trt.bundle.folder import write_manifest
from dsd_trt.bundle.manifest import MANIFEST_NAME, Calibration, FittedOn
from dsd_trt.bundle.others import OTHERS
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.main import main
from dsd_trt.engine.driver import Driver
from dsd_trt.engine.tensorrt.plan import SIDECAR_NAME, Profile, Sidecar, write_plan
from dsd_trt.errors import BundleError, EngineError
from dsd_trt.files.lfs import POINTER
from dsd_trt.index.files import INDEX_NAME
from dsd_trt.signature import SIGNATURE_NAME, sign_bundle
from dsd_trt.train.scoring.adapter_file import CONFIG_NAME, STATE_NAME

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.folder, tmp_path / "my scorer"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """A function that inspects."""

    def command(*arguments: str | Path) -> Run:
        with pytest.raises(SystemExit) as ended:
            main(["inspect", *map(str, arguments)])
        captured = capsys.readouterr()
        return Run(int(ended.value.code or 0), captured.out, captured.err)

    return command


def facts(run: Run) -> Any:
    return json.loads(run.out)


# What is said


def test_the_facts_are_those_of_the_files(folder: Path, run: Callable[..., Run]) -> None:
    ended = run(folder, "--json")
    assert (ended.code, ended.err) == (0, "")
    found, text = facts(ended), (folder / MANIFEST_NAME).read_text("utf-8")
    assert found["bundle"] == json.loads(text)
    assert found["digest"] == hashlib.sha256(text.encode()).hexdigest()
    assert (found["modes"], found["verified"], found["faults"]) == (["pair"], None, [])
    sizes = {it.name: it.stat().st_size for it in folder.iterdir() if it.name != MANIFEST_NAME}
    assert found["sizes"]["files"] == len(sizes)
    assert found["sizes"]["bytes"] == sum(sizes.values())
    assert found["sizes"]["weight_bytes"] == 0  # they are inside the graphs
    assert found["calibration"]["pair"]["a"] == 4.0
    assert found["why_no_probability"] == {"pair": ""}
    assert (found["plans"], found["signature"]) == ([], None)
    assert run(folder, "-f", "json").out == ended.out
    take_weights_from(folder, "weights.data")
    weights = (folder / "weights.data").stat().st_size
    assert facts(run(folder, "--json"))["sizes"]["weight_bytes"] == weights > 0


def test_the_table_has_what_a_user_asks_for(run: Callable[..., Run]) -> None:
    ended = run("shapes")
    assert (ended.code, ended.err) == (0, "")
    manifest = json.loads((EMBEDDED / MANIFEST_NAME).read_text("utf-8"))
    made, lists = manifest["provenance"], manifest["matrix"]["lists"]
    for said in (
        "a bundle in fp32, attention score, pair and matrix mode",
        *(sha256[:12] for sha256 in made["weight_hashes"].values()),
        made["adapter_hash"][:12] + ", folded in, trained for pair mode",
        "torch " + made["library_versions"]["torch"],
        *manifest["method"]["layer_names"],
        "0.02, 0.05, 0.1, 0.2",
        "sigmoid(112.718 f -9.85506), fitted when the adapter was trained",
        "PyTorch FP32, batch 1, 256 pairs",
        f"weights.data            {manifest['files']['weights.data']['size'] / 1e6:.1f} MB",
        f"{lists['texts']['1']['count']} of {lists['candidates']} texts, for the best 1, ",
        "not compared: --verify",
        "none: dsd-trt export --cuda-form",
    ):
        assert said in ended.out, said


def test_both_modes_a_form_and_a_calibration_that_was_fitted(
    tmp_path: Path, run: Callable[..., Run]
) -> None:
    made = make_bundle(tmp_path / "both", matrix=True, trained_for="matrix", score="denoising")
    made = give_form(made.folder)
    fitted = FittedOn("mine.csv", 200, 90, 40, 0.45, "pair", (0.2, 0.4, 0.8), 0.03, "2026-11-28")
    assert made.manifest.matrix is not None
    matrix = replace(made.manifest.matrix, calibration=None)
    calibration = Calibration(3.0, -1.5, fitted)
    write_manifest(made.folder, replace(made.manifest, calibration=calibration, matrix=matrix))
    ended = run(made.folder)
    assert ended.code == 0
    assert "denoising score, pair and matrix mode" in ended.out
    assert "sigmoid(3 f -1.5), fitted to 200 pairs of mine.csv on 2026-11-28" in ended.out
    assert "calibration error 0.030" in ended.out
    assert f"dsd-trt calibrate {made.folder} --mode matrix --data TABLE" in ended.out
    assert "form for CUDA   pair_scorer" in ended.out
    found = facts(run(made.folder, "--json"))
    assert found["calibration"]["matrix"] is None
    assert found["why_no_probability"]["pair"] == ""
    assert "none were fitted" in found["why_no_probability"]["matrix"]


def test_what_bf16_does_is_said_as_measured_at_export(
    folder: Path, run: Callable[..., Run]
) -> None:
    assert "none  not compared with FP32 at export" in run(folder).out
    plain = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    figures = {"winner_changes": 0.0123, "difference": 0.00456, "engine": "some engine, bf16"}
    plain["bfloat16"] = {"pair": figures}
    (folder / MANIFEST_NAME).write_text(json.dumps(plain))
    ended = run(folder)
    assert ended.code == 0
    assert (
        "pair mode  changes the winner with probability 1.2 %, and is refused; scores differ by up "
        "to 0.0046 (some engine, bf16)"
    ) in ended.out
    assert facts(run(folder, "--json"))["bundle"]["bfloat16"] == {"pair": figures}


def test_an_older_bundle_has_no_probability(folder: Path, run: Callable[..., Run]) -> None:
    plain = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    plain["calibration"] = {"a": 1.0, "b": 0.0}  # what older versions wrote
    (folder / MANIFEST_NAME).write_text(json.dumps(plain))
    found = facts(run(folder, "--json"))
    assert found["calibration"] == {"pair": None}
    assert "dsd-trt calibrate" in found["why_no_probability"]["pair"]
    assert f"'{folder}'" in found["why_no_probability"]["pair"]  # quoted, for it has a space


def test_what_a_stranger_wrote_does_not_reach_the_terminal(
    folder: Path, run: Callable[..., Run]
) -> None:
    plain = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    plain["provenance"]["base_model"] = "\x1b[2Jevil\nSignature\n  key"
    unlike: list[Any] = [{"runs": "x"}, {"runs": [{"score": 1}]}, {"pairs": 3}, {"runs": [[]]}]
    for parity in unlike:
        plain["parity"] = parity
        (folder / MANIFEST_NAME).write_text(json.dumps(plain))
        ended = run(folder)
        assert ended.code == 0
        assert "\x1b" not in ended.out
        assert "\\x1b[2Jevil\\nSignature" in ended.out
        assert "in another form: -f json shows it" in ended.out


def test_a_bundle_that_was_not_compared_says_so(folder: Path, run: Callable[..., Run]) -> None:
    plain = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    plain["parity"] = {"reference": "none", "pairs": 0, "levels": 0, "runs": []}
    (folder / MANIFEST_NAME).write_text(json.dumps(plain))
    assert "the export was not compared with PyTorch" in run(folder).out


def test_neither_an_engine_nor_numpy_is_loaded_nor_weights_read(folder: Path) -> None:
    weights = take_weights_from(folder, "weights.data")
    plain = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    with weights.open("r+b") as file:
        file.truncate(2 * 10**12)  # sparse: to read it would take an hour
    plain["files"]["weights.data"]["size"] = 2 * 10**12
    (folder / MANIFEST_NAME).write_text(json.dumps(plain))
    program = f"""
import sys
from dsd_trt.commands.main import main
try:
    main(["inspect", {str(folder)!r}])
finally:
    heavy = {{"numpy", "onnx", "onnxruntime", "openvino", "tensorrt", "torch", "PIL", "tokenizers"}}
    assert not heavy & {{name.partition(".")[0] for name in sys.modules}}
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "2e+03 GB" in done.stdout


# Damage


def test_an_altered_file_is_found_by_verify_alone(folder: Path, run: Callable[..., Run]) -> None:
    assert run(folder, "--verify").code == 0
    graph = folder / "pair_scorer.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run(folder).code == 0
    ended = run(folder, "--verify", "--json")
    assert ended.code == 2
    assert "'pair_scorer.onnx' was altered (sha256 differs); copy the bundle again" in ended.err
    assert facts(ended)["verified"] is False
    assert "was altered" in facts(ended)["faults"][0]
    assert "differ, see the error" in run(folder, "--verify").out


def test_missing_files_and_wrong_sizes_are_told_with_what_is_known(
    folder: Path, run: Callable[..., Run]
) -> None:
    (folder / "tokenizer.json").unlink()
    ended = run(folder)
    assert ended.code == 2
    assert "file 'tokenizer.json' is missing; copy the bundle again" in ended.err
    assert "stand-in" in ended.out  # its model
    (folder / "tokenizer.json").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 5\n"
    )
    assert POINTER.split(":")[0][:20] in run(folder).err
    (folder / "tokenizer.json").write_text("{}")
    assert "has 2 bytes instead of" in run(folder).err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not valid JSON"),
        ("{", "; copy the bundle again"),
        ("\0", "not valid JSON"),
        ("[]", "schema_version None"),
        ('{"schema_version": 9}', "schema_version 9; this dsd-trt reads 1"),
        ('{"schema_version": 1}', "bundle.json"),
    ],
)
def test_a_broken_description_is_an_error(
    content: str, said: str, folder: Path, run: Callable[..., Run]
) -> None:
    (folder / MANIFEST_NAME).write_text(content)
    ended = run(folder, "--json")
    assert ended.code == 2
    assert said in ended.err
    assert ended.out == ""


def test_a_description_that_is_no_file_is_an_error(folder: Path, run: Callable[..., Run]) -> None:
    (folder / MANIFEST_NAME).unlink()
    (folder / MANIFEST_NAME).mkdir()
    ended = run(folder)
    assert ended.code == 2
    assert "bundle.json cannot be read" in ended.err
    assert "copy the bundle again" in ended.err


def test_what_is_no_bundle_is_named(
    tmp_path: Path, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    others = {INDEX_NAME, CONFIG_NAME, "model_index.json", STATE_NAME, "dsd_score", SIDECAR_NAME}
    assert set(OTHERS) == others
    for name in others:
        made = tmp_path / f"a folder of {name}"
        made.mkdir()
        (made / name).touch()
        ended = run(made)
        assert ended.code == 2
        assert ended.err.startswith(f"Error: {made} is no bundle but a")
        with pytest.raises(BundleError, match=" is no bundle but a"):  # as --bundle has it
            Scorer.load(made)
    for place, said in (("nowhere", "no folder"), ("file.txt", "is a file, not a folder")):
        (tmp_path / "file.txt").touch()
        ended = run(place)
        assert ended.code == 2
        assert said in ended.err
        assert "dsd-trt export --out BUNDLE" in ended.err
    (tmp_path / "empty").mkdir()
    ended = run("empty")
    assert ended.code == 2
    assert "it has no bundle.json. Make one with: dsd-trt export" in ended.err
    ended = run(ROOT / "dsd_trt" / "data" / "shapes-model")
    assert "dsd-trt export --model" in ended.err


# Plans


def plan_in(folder: Path, bundle: Bundle, graph: str = "pair_scorer", **changes: Any) -> Path:
    """Write a plan of TensorRT 10.9 for GPUs of 8.6; its folder."""
    content = memoryview(b"plan of " + graph.encode())
    profiles = (Profile(1, 2, 4),)
    sidecar = Sidecar.of(
        content, bundle.manifest, graph, "tensorrt", "10.9", ("8.6", "8.9"), profiles
    )
    return write_plan(folder, content, replace(sidecar, **changes)).folder


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that gives this machine a GPU, and a version of TensorRT or none."""

    def give(*capabilities: tuple[int, int] | None, version: str | None) -> None:
        monkeypatch.setattr(bundle_facts, "find_driver", lambda: Driver((13, 0), capabilities))

        def found(library: str) -> str:
            if version is None:
                raise EngineError(f"{library} is not installed here")
            return version

        monkeypatch.setattr(bundle_facts, "_version", found)

    return give


def test_a_plan_fits_or_it_is_said_why_not(
    folder: Path, bundle: Bundle, run: Callable[..., Run], gpu: Callable[..., None]
) -> None:
    made = plan_in(folder, bundle)

    def why() -> str:
        (plan,) = facts(run(folder, "--json"))["plans"]
        assert plan["fits_here"] == (plan["why_not_here"] == "")
        return str(plan["why_not_here"])

    gpu((8, 9), version="10.9")
    assert why() == ""
    ended = run(folder)
    assert "pair_scorer for tensorrt 10.9, GPUs 8.6, 8.9, batches 1,2,4  fits this machine" in (
        ended.out
    )
    (plan,) = facts(run(folder, "--json"))["plans"]
    assert plan["folder"] == f"engines/{made.name}"
    assert plan["profiles"] == [{"min": 1, "opt": 2, "max": 4}]
    gpu((7, 5), (8, 6), version="10.9")  # one of two is enough
    assert why() == ""
    gpu((9, 0), version="10.9")
    assert "GPUs of compute capability 8.6, 8.9, this one has 9.0" in why()
    gpu((8, 6), version="10.10")
    assert why() == "was built with tensorrt 10.9, here is 10.10"
    gpu((8, 6), version=None)
    assert why() == "tensorrt is not installed here"
    shutil.rmtree(made)
    plan_in(folder, bundle, graph_hash="0" * 64)
    gpu((8, 6), version="10.9")
    assert why() == "was built from another export: the bundle has changed since"


def test_without_a_driver_a_plan_does_not_fit(
    folder: Path, bundle: Bundle, run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_in(folder, bundle)

    def none() -> Driver:
        raise EngineError("NVIDIA's driver is not installed")

    monkeypatch.setattr(bundle_facts, "find_driver", none)
    ended = run(folder)
    assert ended.code == 0
    assert "NVIDIA's driver is not installed" in ended.out


def test_damaged_plans_are_told_beside_the_others(
    folder: Path, bundle: Bundle, run: Callable[..., Run]
) -> None:
    good, bad, gone = (
        plan_in(folder, bundle, graph) for graph in ("pair_scorer", "text_encoder", "image_encoder")
    )
    (bad / SIDECAR_NAME).write_text("{}")
    (gone / "engine.plan").unlink()
    ended = run(folder, "--json")
    assert ended.code == 2
    missing, unreadable = facts(ended)["faults"]
    assert f"{gone} has no plan (No such file or directory)" in missing
    assert f"{bad}/{SIDECAR_NAME} cannot be read" in unreadable
    assert all("dsd-trt build " in it for it in (missing, unreadable))
    assert [it["graph"] for it in facts(ended)["plans"]] == ["image_encoder", "pair_scorer"]
    for it in (bad, gone):
        shutil.rmtree(it)
    assert run(folder).code == 0
    (good / "engine.plan").write_bytes(b"plan of")
    assert "has 7 bytes instead of 19. Build again" in run(folder).err
    (good / "engine.plan").write_bytes(b"plan of pair_scores")
    assert run(folder).code == 0
    ended = run(folder, "--verify")
    assert "engine.plan was altered" in ended.err
    assert "those of bundle.json" in ended.out  # the bundle's own files are intact


# Signatures and the hub


@pytest.fixture
def key(tmp_path: Path) -> Path:
    import minisign  # of the extra "test"

    pair = minisign.KeyPair.generate()
    (tmp_path / "my.key").write_bytes(bytes(pair.secret_key))
    (tmp_path / "my.pub").write_bytes(bytes(pair.public_key))
    return tmp_path / "my.key"


def test_a_signature_is_named_and_verified_on_request(
    folder: Path, bundle: Bundle, key: Path, run: Callable[..., Run]
) -> None:
    public = key.with_suffix(".pub")
    unsigned = run(folder, "--require-signature", public)
    assert unsigned.code == 2
    assert "is not signed, and a signature is required" in unsigned.err
    sign_bundle(folder, key)
    said = facts(run(folder, "--json"))["signature"]
    assert said["comment"] == "bundle.json of a dsd-trt bundle"
    assert said["verified_with"] is None
    known = base64.b64decode(public.read_text().splitlines()[1])[2:10]
    assert said["key"] == f"{int.from_bytes(known, 'little'):016X}"  # as minisign shows it
    assert "not verified: --require-signature KEY" in run(folder).out
    verified = run(folder, "--require-signature", public)
    assert verified.code == 0
    assert f"verified with {public}" in verified.out
    plan_in(folder, bundle)
    assert "engine.json is not signed" in run(folder, "--require-signature", public).err
    (folder / SIGNATURE_NAME).write_text("no signature")
    ended = run(folder)
    assert ended.code == 2
    assert "is no signature in minisign's format" in ended.err
    assert "dsd-trt sign" in ended.err


@pytest.fixture
def hub(bundle: Bundle) -> Iterator[FakeHub]:
    commit = "0f" * 20
    with serve(FakeHub("org/name", {commit: files_of(bundle.folder)}, {"main": commit})) as served:
        yield served


def test_of_a_bundle_on_the_hub_only_the_description_is_downloaded(
    hub: FakeHub, bundle: Bundle, tmp_path: Path
) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}

    def ended(*options: str) -> Any:
        command = [sys.executable, "-m", "dsd_trt", "inspect", "org/name", "--json", *options]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = ended()
    assert set(hub.got()) == {"bundle.json"}
    assert first["sizes"]["missing_bytes"] == first["sizes"]["bytes"] > 0
    assert first["faults"] == []
    whole = ended("--verify")
    assert set(hub.got()) == {"bundle.json", *bundle.manifest.files}
    assert whole["verified"] is True
    assert whole["sizes"]["missing_bytes"] == 0
