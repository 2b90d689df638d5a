"""Where models come from: the package, folders, and the hub's cache; never the network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from click.testing import CliRunner
from huggingface_hub.utils import filter_repo_objects

from dsd_trt.commands.main import cli
from dsd_trt.errors import ModelError
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.diffusion.place import EMBEDDED, embedded_model_folder
from dsd_trt.train.diffusion.source import find_model

COMMIT, OLDER = "0f" * 20, "1a" * 20


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub home whose cache holds two revisions of one repository, laid out as the hub does."""
    home = tmp_path_factory.mktemp("hub")
    repository = home / "hub" / "models--somebody--tiny-sd"
    for commit, seed in ((COMMIT, 0), (OLDER, 1)):
        write_checkpoint(repository / "snapshots" / commit, seed=seed)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    return home


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python, with no other hub than the cache at `home`."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `run`, in this process."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))


def test_a_repository_is_found_by_branch_tag_or_commit(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(hub, monkeypatch)
    repository = "somebody/tiny-sd"
    models = (repository, f"{repository}@v1", f"{repository}@{OLDER}")
    found = [find_model(model) for model in models]
    assert [(it.name, it.revision, it.parts.path.name) for it in found] == [
        (repository, commit, commit) for commit in (COMMIT, OLDER, OLDER)
    ]


LOOK = """
import json, sys
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
checkpoint = read_checkpoint("somebody/tiny-sd")
weight = checkpoint.unet.state_dict()["conv_in.weight"].double().sum().item()
source = checkpoint.source
print(json.dumps([source.name, source.revision, checkpoint.weight_hashes, weight]))
"""


def test_a_model_of_the_cache_is_read_with_its_commit_and_files(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(hub, monkeypatch)
    checkpoint = read_checkpoint("somebody/tiny-sd")
    assert (checkpoint.source.name, checkpoint.source.revision) == ("somebody/tiny-sd", COMMIT)
    folder = hub / "hub" / "models--somebody--tiny-sd" / "snapshots" / COMMIT
    assert checkpoint.weight_hashes.keys() == {
        path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")
    }


@pytest.mark.slow  # exports
def test_a_bundle_names_the_repository_and_the_commit_it_is_of(hub: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    done = run(hub, "-m", "dsd_trt", "export", "--model", "somebody/tiny-sd", "--out", str(out))
    assert done.returncode == 0, done.stderr
    provenance = json.loads((out / "bundle.json").read_text("utf-8"))["provenance"]
    assert provenance["base_model"] == "somebody/tiny-sd"
    assert provenance["revision"] == COMMIT
    folder = hub / "hub" / "models--somebody--tiny-sd" / "snapshots" / COMMIT
    assert provenance["weight_hashes"].keys() == {
        path.relative_to(folder).as_posix() for path in folder.glob("*/*.safetensors")
    }


@pytest.mark.parametrize("model", ["nobody/nothing", "somebody/tiny-sd@v7"])
def test_what_is_not_in_the_cache_is_said_to_be_missing_when_offline(
    hub: Path, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline(hub, monkeypatch)
    out = tmp_path / "bundle"
    done = CliRunner().invoke(cli, ["export", "--model", model, "--out", str(out)])
    assert done.exit_code == 2
    assert "HF_HUB_OFFLINE" in done.stderr
    assert not out.exists()


def test_a_folder_goes_before_a_repository_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(embedded_model_folder(), tmp_path / "somebody" / "model")
    monkeypatch.chdir(tmp_path)
    found = find_model("somebody/model")
    assert (found.name, found.revision) == ("model", None)
    assert found.parts.path == Path("somebody/model")


def test_the_embedded_model_needs_no_search() -> None:
    assert find_model(EMBEDDED).parts.path == embedded_model_folder()


@pytest.fixture
def fp16_hub(hub: Path, tmp_path: Path) -> Path:
    """The same, its weights published as the FP16 variant alone."""
    home = tmp_path / "home"
    shutil.copytree(hub, home)
    for path in home.rglob("*.safetensors"):
        path.rename(path.with_suffix(".fp16.safetensors"))
    return home


@pytest.mark.slow
def test_fp16_weights_alone_are_read(fp16_hub: Path, hub: Path) -> None:
    (_, _, halves, weight), (_, _, hashes, same) = (
        json.loads(run(home, "-c", LOOK).stdout) for home in (fp16_hub, hub)
    )
    assert all(file.endswith(".fp16.safetensors") for file in halves)
    assert list(halves.values()) == list(hashes.values())
    assert weight == same


@pytest.mark.slow  # exports
def test_a_repository_of_fp16_weights_alone_is_read_as_such(
    fp16_hub: Path, hub: Path, tmp_path: Path
) -> None:
    bundles = {}
    for name, home in (("fp16", fp16_hub), ("plain", hub)):
        bundles[name] = tmp_path / name
        arguments = ("--model", "somebody/tiny-sd", "--levels", "0.4")
        done = run(home, "-m", "dsd_trt", "export", *arguments, "--out", str(bundles[name]))
        assert done.returncode == 0, done.stderr
    hashes = {}
    for name, bundle in bundles.items():
        provenance = json.loads((bundle / "bundle.json").read_text("utf-8"))["provenance"]
        hashes[name] = provenance["weight_hashes"]
    assert all(file.endswith(".fp16.safetensors") for file in hashes["fp16"])
    assert list(hashes["fp16"].values()) == list(hashes["plain"].values())
    weights = [(bundle / "weights.data").read_bytes() for bundle in bundles.values()]
    assert weights[0] == weights[1]


def test_only_what_is_read_is_fetched(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    """Of a repository that holds everything twice, Stable Diffusion XL's second parts included."""
    snapshot = hub / "hub" / "models--somebody--tiny-sd" / "snapshots" / COMMIT
    asked: list[list[str]] = []

    def fetch(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr("dsd_trt.train.diffusion.hub.snapshot_download", fetch)
    find_model("somebody/tiny-sd")
    (patterns,) = asked
    wanted = [
        *("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"),
        *("tokenizer/vocab.json", "tokenizer_2/merges.txt", "text_encoder_2/config.json"),
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "text_encoder_2/model.safetensors",
    ]
    not_wanted = [
        *("sd_xl_base_1.0.safetensors", "unet/diffusion_pytorch_model.bin", "unet/model.onnx"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "vae_1_0/config.json"),
        *("unet/diffusion_pytorch_model.non_ema.safetensors", "safety_checker/model.safetensors"),
    ]
    matched = set(filter_repo_objects([*wanted, *not_wanted], allow_patterns=patterns))
    assert matched == set(wanted)


@pytest.mark.parametrize("model", ["nowhere", "a/b/c", "https://example.com/model", "a b/c"])
def test_what_can_be_no_repository_is_refused_without_asking_the_hub(model: str) -> None:
    with pytest.raises(ModelError, match=r"no model '.*': give a folder"):
        find_model(model)


def half_downloaded(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the cache, offline; the snapshot's folder."""
    shutil.copytree(hub / "hub", tmp_path / "hub")
    offline(tmp_path, monkeypatch)
    return tmp_path / "hub" / "models--somebody--tiny-sd" / "snapshots" / COMMIT


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "scheduler/scheduler_config.json",
    ],
)
@pytest.mark.parametrize("listed", [False, True])
def test_what_a_half_downloaded_snapshot_lacks_is_named(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, listed: bool
) -> None:
    snapshot = half_downloaded(tmp_path, hub, monkeypatch)
    if listed:  # newer releases of huggingface_hub keep what the repository holds
        cache = pytest.importorskip("huggingface_hub._tree_cache")
        files = [path for path in snapshot.rglob("*") if path.is_file()]
        entries = {
            path.relative_to(snapshot).as_posix(): cache.TreeCacheEntry(
                size=path.stat().st_size, blob_id="0" * 40
            )
            for path in files
        }
        cache.write_tree_cache(str(snapshot.parents[1]), COMMIT, entries)
    (snapshot / file).unlink()
    with pytest.raises(ModelError, match=file if listed else Path(file).name):
        read_checkpoint("somebody/tiny-sd")


def test_one_part_may_be_published_in_fp16_alone(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = half_downloaded(tmp_path, hub, monkeypatch)
    path = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".fp16.safetensors"))
    assert (
        "vae/diffusion_pytorch_model.fp16.safetensors"
        in read_checkpoint("somebody/tiny-sd").weight_files
    )
