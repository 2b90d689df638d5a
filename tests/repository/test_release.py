"""What is published is checked first, and only uploaded when that is asked for."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import check_release
from check_release import check_final, check_sdist, main, version

ROOT = Path(__file__).parents[2]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NAME = f"dsd_trt-{version()}"
BUILDS = ("cp311", "cp312", "cp313")


def sdist(folder: Path, *leave_out: str, **added: str) -> Path:
    """An sdist of empty files: all that are tracked below the four folders, and more or fewer."""
    tracked = subprocess.run(
        ["git", "ls-files", *check_release.FOLDERS], cwd=ROOT, capture_output=True, text=True
    )
    if tracked.returncode:
        pytest.skip("not in a clone")
    names = {it for it in tracked.stdout.splitlines() if (ROOT / it).is_file()}
    names |= {"LICENSE", "README.md", "pyproject.toml"}
    path = folder / f"{NAME}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in sorted(names - set(leave_out)):
            archive.addfile(tarfile.TarInfo(f"{NAME}/{name}"), io.BytesIO())
        for name, target in added.items():
            member = tarfile.TarInfo(f"{NAME}/{name}")
            if target:
                member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member, io.BytesIO())
    return path


def wheel(python: str, arch: str) -> Path:
    return Path(f"{NAME}-{python}-{python}-manylinux_2_27_{arch}.manylinux_2_28_{arch}.whl")


def test_a_whole_sdist_passes(tmp_path: Path) -> None:
    check_sdist(sdist(tmp_path))


@pytest.mark.parametrize(
    "missing",
    [
        *("train/question.py", "engines/triton/models/score.py", "dsd_trt/py.typed", "LICENSE"),
        *(
            "dsd_trt/data/shapes-bundle/weights.data",
            "dsd_trt/engine/pooled_attention.cpp",
        ),
    ],
)
def test_an_sdist_that_lacks_a_file_is_refused(missing: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"lacks {missing}"):
        check_sdist(sdist(tmp_path, missing))


def test_an_sdist_with_links_or_tests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="links"):
        check_sdist(sdist(tmp_path, **{"dsd_trt/train": "../train"}))
    with pytest.raises(SystemExit, match="no user needs: tests/"):
        check_sdist(sdist(tmp_path, **{"tests/test_x.py": ""}))


def test_a_large_sdist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_release, "LARGEST_MIB", 0.001)
    with pytest.raises(SystemExit, match="larger than"):
        check_sdist(sdist(tmp_path))


def test_files_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="0 sdists and 0 wheels"):
        main(tmp_path, final=False)
    whole = sdist(tmp_path)
    (tmp_path / f"{NAME}-cp311-cp311-linux_x86_64.whl").touch()
    with pytest.raises(SystemExit, match="manylinux wheels alone"):
        main(tmp_path, final=False)
    shutil.move(whole, tmp_path / "dsd_trt-99.tar.gz")
    with pytest.raises(SystemExit, match=f"not of version {version()}"):
        main(tmp_path, final=False)


def test_wheels_of_other_pythons_and_processors_are_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[str] = []
    monkeypatch.setattr(check_release, "check_sdist", lambda _: None)
    monkeypatch.setattr(check_release, "check_installed", lambda path: installed.append(path.name))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    here = wheel(f"cp3{sys.version_info[1]}", "aarch64").name
    source = f"{NAME}.tar.gz"
    for name in (source, here, wheel("cp399", "aarch64").name, here.replace("aarch64", "x86_64")):
        (tmp_path / name).touch()
    main(tmp_path, final=False)
    assert installed == [source, here]


def test_a_release_needs_every_wheel_a_heading_and_a_tag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = [wheel(it, arch) for it in BUILDS for arch in ("x86_64", "aarch64")]
    monkeypatch.setattr(check_release, "ROOT", tmp_path)
    for file in ("pyproject.toml", "engines/cpp/CMakeLists.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n")
    with pytest.raises(SystemExit, match="no wheel for cp313 on x86_64"):
        check_final(wheels[:4])
    with pytest.raises(SystemExit, match="no wheel for cp313 on aarch64"):
        check_final(wheels[:5])
    with pytest.raises(SystemExit, match="has no heading"):
        check_final(wheels)
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## [{version()}] - 2026-12-01\n")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    with pytest.raises(SystemExit, match=f"git tag v{version()}"):
        check_final(wheels)
    subprocess.run([*git, "tag", f"v{version()}"], cwd=tmp_path, check=True)
    check_final(wheels)


def test_versions_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert version() == CONFIG["project"]["version"]
    monkeypatch.setattr(check_release, "ROOT", tmp_path)
    (tmp_path / "engines" / "cpp").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "engines/cpp/CMakeLists.txt").write_text("project(dsd VERSION 99.0 LANGUAGES C)\n")
    with pytest.raises(SystemExit, match="CMakeLists"):
        version()


def test_only_a_release_that_is_asked_for_uploads() -> None:
    def would_run(*arguments: str) -> list[str]:
        command = ["make", "--dry-run", *arguments]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return run.stdout.splitlines()

    for arguments in (["release-check"], ["release"], ["release", "UPLOAD=no"]):
        assert not [it for it in would_run(*arguments) if "upload dist" in it], arguments
    lines = would_run("release", "UPLOAD=yes")
    (upload,) = (place for place, line in enumerate(lines) if "upload dist" in line)
    assert "check_release.py --final dist/release" in lines[upload - 1]


def test_wheels_are_built_for_the_pythons_that_are_named() -> None:
    named = [it.rpartition(" ")[2] for it in CONFIG["project"]["classifiers"] if ":: 3." in it]
    wheels = CONFIG["tool"]["cibuildwheel"]["build"]
    assert wheels == [f"cp{it.replace('.', '')}-*" for it in named]
    config = CONFIG["tool"]["cibuildwheel"]
    assert all(config[f"manylinux-{arch}-image"] for arch in config["archs"])
    script = config["test-command"].split()[2]
    assert (ROOT / script.replace("{project}/", "")).is_file()
