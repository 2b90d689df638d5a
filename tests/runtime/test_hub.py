"""Bundles by ORG/NAME: what is fetched, what is said; from a hub on this machine, never the net."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bundles import make_bundle
from fake_hub import TOKEN, FakeHub, files_of, serve

from dsd_trt.bundle.hub import Repository
from dsd_trt.installation import install_command

COMMIT, OTHER, OUTSIDE, BROKEN = "0f" * 20, "1a" * 20, "2b" * 20, "3c" * 20
REST = {"README.md": b"about", "model.bin": b"a pickle", "engines/x/engine.plan": b"a plan"}

# Each name's snapshot or error, after everything was verified.
OPEN = """
import json, sys
from dsd_trt import DsdError, read_bundle
from dsd_trt.bundle.place import bundle_folder, names_bundle
def opened(name):
    try:
        return str(read_bundle(bundle_folder(name)).folder)
    except DsdError as error:
        return f"{type(error).__name__} {error.exit_code}: {error}"
how = names_bundle if sys.argv[1] == "names" else opened
print(json.dumps([how(name) for name in sys.argv[2:]]))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return files_of(make_bundle(tmp_path_factory.mktemp("hub") / "bundle").folder)


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[FakeHub]:
    manifest = json.loads(files["bundle.json"])
    manifest["files"]["../outside"] = manifest["files"]["tokenizer.json"]
    commits = {
        COMMIT: {**files, **REST},
        OTHER: REST,
        OUTSIDE: {**files, "bundle.json": json.dumps(manifest).encode()},
        BROKEN: {"bundle.json": b"{}"},
    }
    refs = {"main": COMMIT, "models": OTHER, "outside": OUTSIDE, "broken": BROKEN}
    with serve(FakeHub("org/name", commits, refs)) as served:
        yield served


def run(
    hub: FakeHub, home: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )


def opened(hub: FakeHub, home: Path, *names: str, **environment: str) -> list[str]:
    """The folder, or the error, of each name."""
    done = run(hub, home, "-c", OPEN, "open", *names, **environment)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def snapshot(home: Path, commit: str = COMMIT) -> Path:
    return home / "hf" / "hub" / "models--org--name" / "snapshots" / commit


def test_what_the_bundle_names_is_fetched_once_and_nothing_else(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    names = ("org/name", "org/name@main", f"org/name@{COMMIT}")
    assert opened(hub, tmp_path, *names) == [str(snapshot(tmp_path))] * 3
    fetched = [file for file in hub.got() if file]
    assert fetched[0] == "bundle.json"
    assert sorted(fetched) == sorted(files)
    assert files_of(snapshot(tmp_path)) == files
    hub.asked.clear()
    assert opened(hub, tmp_path, *names, HF_HUB_OFFLINE="1") == [str(snapshot(tmp_path))] * 3
    assert not hub.asked


def test_a_folder_of_that_name_goes_before_the_hub(
    hub: FakeHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    for name in ("org/name", "org/name@v1"):
        (tmp_path / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    assert opened(hub, tmp_path, "org/name", "org/name@v1") == ["org/name", "org/name@v1"]
    assert not hub.asked


def test_what_cannot_be_had_is_said(hub: FakeHub, tmp_path: Path) -> None:
    expected = {
        "org/other": "no repository org/other on the Hugging Face Hub",
        "org/name@v7": "has no revision 'v7'",
        "org/name@models": "has no bundle.json: it is no bundle",
        "org/name@outside": "file '../outside' lies outside the bundle",
        "org/name@broken": "bundle.json",
        "org/na--me": "refuses to serve",  # a name that the hub allows nobody
    }
    for complaint, error in zip(expected.values(), opened(hub, tmp_path, *expected), strict=True):
        assert error.startswith("BundleError 2: ")
        assert complaint in error
    assert not [file for file in hub.got() if file not in ("", "bundle.json")]


def test_a_private_repository_needs_the_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.private = True
    (error,) = opened(hub, tmp_path, "org/name")
    assert "HF_TOKEN" in error
    assert opened(hub, tmp_path, "org/name", HF_TOKEN=TOKEN) == [str(snapshot(tmp_path))]


def test_offline_what_is_missing_is_named(hub: FakeHub, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1"}
    (error,) = opened(hub, tmp_path, "org/name", **offline)
    assert "bundle.json of org/name is not in the Hugging Face cache" in error
    assert "HF_HUB_OFFLINE" in error
    opened(hub, tmp_path, "org/name")
    for file in ("tokenizer.json", "pair_scorer.onnx"):
        (snapshot(tmp_path) / file).unlink()
    (error,) = opened(hub, tmp_path, "org/name", **offline)
    assert "pair_scorer.onnx, tokenizer.json missing in" in error
    assert f"hf download org/name pair_scorer.onnx tokenizer.json --revision {COMMIT}" in error
    assert opened(hub, tmp_path, "org/name") == [str(snapshot(tmp_path))]  # and gone on with


def test_what_is_no_name_of_a_repository_is_not_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    names = ("bundle", "./org/name", "../org/name", "/org/name", "org/name/", "a/b/c", "a b/c", "")
    for error in opened(hub, tmp_path, *names):
        assert error.startswith(("BundleError 2: no folder", "BundleError 2: . is not a bundle"))
    assert not hub.asked


def test_a_mistyped_path_is_not_asked_for_unless_a_revision_is_given(
    hub: FakeHub, tmp_path: Path
) -> None:
    (tmp_path / "org").mkdir()
    (error,) = opened(hub, tmp_path, "org/name")
    assert error.startswith("BundleError 2: no folder 'org/name'")
    assert not hub.asked
    assert opened(hub, tmp_path, "org/name@main") == [str(snapshot(tmp_path))]


def test_a_model_is_told_from_a_bundle(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "some" / "model").mkdir(parents=True)
    names = ("org/name", "org/name@models", "org/other", "some/model", "shapes")
    done = run(hub, tmp_path, "-c", OPEN, "names", *names)
    assert json.loads(done.stdout) == [True, False, False, False, False], done.stderr
    opened(hub, tmp_path, "org/name")
    done = run(hub, tmp_path, "-c", OPEN, "names", *names, HF_HUB_OFFLINE="1")
    assert json.loads(done.stdout) == [True, False, False, False, False], done.stderr


def test_a_revision_may_be_a_pull_request() -> None:
    assert Repository.named("org/name@refs/pr/1") == Repository("org/name", "refs/pr/1")
    assert Repository.named("org/name@") is None


def test_a_missing_package_names_the_extra(tmp_path: Path) -> None:
    script = "import sys; sys.modules['huggingface_hub'] = None\n"
    script += "from dsd_trt.commands.main import main\n"
    script += "main(['score', 'a.png', 'texts.txt', '--bundle', 'org/name'])"
    (tmp_path / "texts.txt").write_text("a dog\n")
    (tmp_path / "a.png").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert install_command("hub") in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_take_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    """Scores are the plain bundle's; nothing is compiled into the cache."""
    from PIL import Image

    from dsd_trt import Scorer

    Image.new("RGB", (8, 8), (200, 30, 60)).save(tmp_path / "a.png")
    (tmp_path / "texts.txt").write_text("a dog\na red circle\n")
    score = ("-m", "dsd_trt", "score", "a.png", "texts.txt", "-f", "json", "--bundle", "org/name")
    environment = {"DSD_TRT_CACHE": str(tmp_path / "cache")}
    done = run(hub, tmp_path, *score, **environment)
    assert done.returncode == 0, done.stderr
    got = {row["text"]: row["score"] for row in json.loads(done.stdout)}
    plain = tmp_path / "plain"
    shutil.copytree(snapshot(tmp_path), plain)  # follows links
    matrix = Scorer.load(plain).score([str(tmp_path / "a.png")], ["a dog", "a red circle"])
    assert [got[text] for text in matrix.texts] == pytest.approx(matrix.scores[0].tolist())
    for name in ("org/name", str(snapshot(tmp_path))):
        done = run(hub, tmp_path, "-m", "dsd_trt", "build", name, "--engine", "tensorrt-rtx")
        assert done.returncode == 2
        assert "plans are put into the bundle" in done.stderr
    assert not (snapshot(tmp_path) / "engines").exists()
