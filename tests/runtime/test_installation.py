"""Commands that add to this installation name where it came from; child processes are its own."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dsd_trt import installation
from dsd_trt.installation import install_command, own_command, uninstall_command

METADATA = """\
Metadata-Version: 2.4
Name: dsd-trt
Version: 0.1.0
Requires-Dist: numpy>=1.26
Provides-Extra: cpu
Requires-Dist: onnxruntime>=1.20; extra == "cpu"
Provides-Extra: train
Requires-Dist: torch>=2.9; extra == "train"
Requires-Dist: tritonclient[grpc]>=2.50; extra == "train"
Provides-Extra: export
Requires-Dist: dsd-trt[cpu,train]; extra == "export"
Requires-Dist: onnx>=1.18; extra == "export"
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = "https://example.org/dsd-trt.git"
WHEEL = "dsd_trt-0.1.0-cp311-cp311-linux_x86_64.whl"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages into which this one is installed, in an environment with its own pip."""
    here = tmp_path / "site"
    (here / "dsd_trt").mkdir(parents=True)
    monkeypatch.setattr(installation, "PACKAGE", here / "dsd_trt")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "pip"):
        (programs / name).write_text("#!/bin/sh\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setenv("PATH", str(programs))
    return here


def record(site: Path, origin: dict[str, object] | None) -> None:
    folder = site / "dsd_trt-0.1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    if origin is not None:  # PEP 610
        (folder / "direct_url.json").write_text(json.dumps(origin))


def arguments(command: str) -> list[str]:
    pip, install, *rest = shlex.split(command)
    assert (pip, install) == ("pip", "install")
    return rest


def test_from_an_index(site: Path) -> None:
    record(site, None)
    assert install_command("train") == "pip install 'dsd-trt[train]'"
    assert install_command("train", "--upgrade") == "pip install --upgrade 'dsd-trt[train]'"


@pytest.mark.parametrize("editable", [False, True])
@pytest.mark.parametrize("name", ["clone", "a clone, with 'odd' [names]"])
def test_from_a_clone(editable: bool, name: str, site: Path, tmp_path: Path) -> None:
    clone = tmp_path / name
    clone.mkdir()
    record(site, {"url": clone.as_uri(), "dir_info": {"editable": True} if editable else {}})
    assert arguments(install_command("train")) == [
        *(["--editable"] if editable else []),
        f"{clone}[train]",
    ]


@pytest.mark.parametrize("named", ["clone", "wheel"])
def test_from_what_is_gone_since(named: str, site: Path, tmp_path: Path) -> None:
    """Such as a clone below /tmp: what the extra requires is still to be had."""
    origin: dict[str, object] = {"dir_info": {}} if named == "clone" else {"archive_info": {}}
    record(site, {"url": (tmp_path / "gone").as_uri(), **origin})
    assert arguments(install_command("cpu")) == ["onnxruntime>=1.20"]
    everything = ["onnxruntime>=1.20", "torch>=2.9", "tritonclient[grpc]>=2.50", "onnx>=1.18"]
    assert arguments(install_command("export")) == everything


def test_from_a_wheel(site: Path, tmp_path: Path) -> None:
    wheel = tmp_path / WHEEL
    wheel.touch()
    record(site, {"url": wheel.as_uri(), "archive_info": {}})
    (named,) = arguments(install_command("train"))
    assert Requirement(named).extras == {"train"}
    assert Requirement(named).url == wheel.as_uri()


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        (
            {"url": f"https://example.org/{WHEEL}", "archive_info": {}},
            f"https://example.org/{WHEEL}",
        ),
        (
            {"url": HUB, "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"git+{HUB}@{COMMIT}",
        ),
        (
            {"url": HUB, "vcs_info": {"vcs": "git", "commit_id": COMMIT}, "subdirectory": "a/b"},
            f"git+{HUB}@{COMMIT}#subdirectory=a/b",
        ),
    ],
)
def test_from_a_url(origin: dict[str, object], url: str, site: Path) -> None:
    record(site, origin)
    (named,) = arguments(install_command("train"))
    requirement = Requirement(named)
    assert (requirement.name, requirement.extras) == ("dsd-trt", {"train"})
    assert requirement.url == url


def test_in_a_clone_that_is_not_installed(site: Path) -> None:
    """Nor does what a build left there count."""
    (site / "pyproject.toml").write_text('[project]\nname = "dsd-trt"\n')
    left = site / "dsd_trt.egg-info"
    left.mkdir()
    (left / "PKG-INFO").write_text(METADATA)
    assert arguments(install_command("train"))[-1] == f"{site}[train]"


def test_a_file_that_another_package_left_is_no_clone(site: Path) -> None:
    (site / "pyproject.toml").write_text('[project]\nname = "other"\n')
    record(site, None)
    assert install_command("train") == "pip install 'dsd-trt[train]'"


def test_another_environments_pip_is_not_called(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(site, None)
    python = tmp_path / "other environment" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    assert shlex.split(install_command("cpu")) == [
        *(str(python), "-m", "pip", "install", "dsd-trt[cpu]")
    ]
    assert shlex.split(uninstall_command("a", "b")) == [
        *(str(python), "-m", "pip", "uninstall", "--yes", "a", "b")
    ]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # as uv leaves it
    (tmp_path / "bin" / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "uv").chmod(0o755)
    assert shlex.split(install_command("cpu")) == [
        *("uv", "pip", "install", "--python", str(python), "dsd-trt[cpu]")
    ]


def test_a_child_runs_this_package_whatever_the_folder_holds(tmp_path: Path) -> None:
    for name in ("dsd_trt/__init__", "click", "numpy", "signal", "train/__init__"):
        module = tmp_path / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        module.write_text(f"raise SystemExit('{name} of the current folder')\n")
    run = subprocess.run(
        [*own_command(), "score", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "dsd-trt score" in run.stdout
