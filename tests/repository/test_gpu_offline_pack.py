"""tools/gpu_offline: only other GPUs' code is emptied, and what is packed arrives."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "gpu_offline"))

import pack
import unpack
from archives import Target, compress
from pieces import MANIFEST, Kit, KitError, cut
from prune import PruneError, prune
from stages import ORT, ROOT, RTX, SITE

# Prune

CODE, PTX = 2, 1


def entry(kind: int, architecture: int, payload: bytes) -> bytes:
    """An entry of a fat binary, with the 64 bytes of header that nvcc writes."""
    head = struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(payload), 0, 0, 0, 0, architecture)
    return head.ljust(64, b"\x11") + payload


def fat_binary(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def text(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def pruned(path: Path, content: bytes, capability: str) -> bytes:
    path.write_bytes(content)
    prune(path, capability)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("capability", "kept"),
    [
        ("9.0", {90}),
        ("8.9", {86}),  # code runs on a later minor version of its major
        ("8.0", {80}),
        ("8.4", {80}),
        ("12.1", {120}),
    ],
)
def test_only_the_code_that_the_gpu_loads_stays(
    tmp_path: Path, capability: str, kept: set[int]
) -> None:
    architectures = (80, 86, 90, 120)

    def library(keep: set[int]) -> bytes:
        parts = [
            entry(CODE, it, text(100 + it, it) if it in keep else bytes(100 + it))
            for it in architectures
        ]
        parts.append(entry(PTX, 120, bytes(50) if keep != set(architectures) else text(50, 1)))
        return text(999, 0) + fat_binary(*parts) + text(77, 2) + fat_binary(*parts) + text(5, 3)

    whole = library(set(architectures))
    assert pruned(tmp_path / "a.so", whole, capability) == library(kept)


def test_without_machine_code_for_the_gpu_the_ptx_stays(tmp_path: Path) -> None:
    old, portable, own = (text(64, seed) for seed in range(3))
    content = fat_binary(entry(CODE, 75, old), entry(PTX, 75, portable))
    content += fat_binary(entry(CODE, 90, own))
    expected = fat_binary(entry(CODE, 75, bytes(64)), entry(PTX, 75, portable))
    expected += fat_binary(entry(CODE, 90, own))
    assert pruned(tmp_path / "a.so", content, "9.0") == expected


def test_a_library_that_cannot_run_there_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.so"
    content = fat_binary(entry(CODE, 80, b"x" * 32), entry(CODE, 120, b"y" * 32))
    path.write_bytes(content)
    with pytest.raises(PruneError, match=r"a\.so has no code for compute capability 9\.0, only f"):
        prune(path, "9.0")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "lookalike",
    [
        struct.pack("<I", 0xBA55ED50),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 1 << 40) + bytes(80),
        struct.pack("<IHHQ", 0xBA55ED50, 2, 16, 64) + entry(CODE, 80, b""),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 70) + entry(CODE, 80, b"x" * 90),
        struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 64) + bytes(64),
    ],
    ids=["cut off", "too long", "other version", "entry too long", "entry of no size"],
)
def test_bytes_that_look_like_a_fat_binary_stay(tmp_path: Path, lookalike: bytes) -> None:
    real = fat_binary(entry(CODE, 90, b"a" * 40), entry(CODE, 80, b"b" * 40))
    after = fat_binary(entry(CODE, 90, b"a" * 40), entry(CODE, 80, bytes(40)))
    assert pruned(tmp_path / "a.so", lookalike + real, "9.0") == lookalike + after
    assert pruned(tmp_path / "b.so", real + lookalike, "9.0") == after + lookalike


# Pack and unpack


def tree(folder: Path, seed: int = 0) -> Path:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "data").write_bytes(text(40_000, seed))
    (folder / "a" / "b" / "program").write_text("#!/bin/sh\n")
    (folder / "a" / "b" / "program").chmod(0o755)
    (folder / "empty").mkdir()
    return folder


def content(folder: Path) -> dict[str, tuple[bytes, bool]]:
    return {
        str(path.relative_to(folder)): (
            path.read_bytes() if path.is_file() else b"",
            os.access(path, os.X_OK),
        )
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number, name in enumerate((SITE, ORT, RTX)):
        tree(folder / name, number)
    return folder


@pytest.fixture
def kit(source: Path, tmp_path: Path) -> Kit:
    """Three archives of some 40 kB, cut for transfers of 50 kB."""
    archives = {name: compress(source / name) for name in (SITE, ORT, RTX)}
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    kit = Kit(python, "9.0", cut(archives, 50_000, tmp_path / "kit"))
    for number in range(1, kit.transfers + 1):
        (tmp_path / "kit" / str(number) / MANIFEST).write_text(kit.to_json(), "utf-8")
    return kit


def take(tmp_path: Path, *transfers: int) -> int:
    folders = [str(tmp_path / "kit" / str(number)) for number in transfers]
    return unpack.main([*folders, "--kit", str(tmp_path / "there")])


def test_the_same_files_give_the_same_archive(source: Path, tmp_path: Path) -> None:
    again = tree(tmp_path / "again")
    os.utime(again / "a" / "data", (1, 1))
    assert compress(again) == compress(source / SITE)


def test_transfers_are_filled_in_turn(kit: Kit, tmp_path: Path) -> None:
    sizes = [
        sum(it.size for pieces in kit.archives.values() for it in pieces if it.transfer == number)
        for number in range(1, kit.transfers + 1)
    ]
    assert sizes[:-1] == [50_000] * (len(sizes) - 1)
    assert len(sizes) == 3
    assert Kit.read(tmp_path / "kit" / "2") == kit
    assert [kit.whole_after(number) for number in (1, 2, 3)] == [[SITE], [ORT], [RTX]]


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2), (2, 2, 3, 1)])
def test_what_is_packed_arrives(
    kit: Kit, source: Path, tmp_path: Path, order: tuple[int, ...]
) -> None:
    for number in order:
        assert take(tmp_path, number) == 0
    there = tmp_path / "there"
    for name in kit.archives:
        assert content(there / name) == content(source / name)
    assert {it.name for it in there.iterdir()} == {SITE, ORT, RTX, MANIFEST}


def test_an_archive_waits_for_its_last_piece(
    kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take(tmp_path, 1) == 0
    said = capsys.readouterr().out
    assert "site: unpacked" in said
    assert "ort: waits for transfer 2" in said
    assert "rtx: waits for transfer 2, 3" in said


@pytest.mark.parametrize("damage", ["changed", "shorter"])
def test_only_the_damaged_piece_travels_again(
    kit: Kit, source: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    piece = kit.archives[ORT][-1]
    path = tmp_path / "kit" / str(piece.transfer) / piece.file
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] if damage == "shorter" else b"?" + sound[1:])
    assert take(tmp_path, 1, 2, 3) == 2
    said = capsys.readouterr()
    assert f"{path} is damaged: it" in said.err
    assert "Transfer it again" in said.err
    assert "ort: waits for transfer 2" in said.out
    there = tmp_path / "there"
    assert content(there / RTX) == content(source / RTX)
    path.write_bytes(sound)
    assert take(tmp_path, piece.transfer) == 0
    assert content(there / ORT) == content(source / ORT)


def test_pieces_of_another_kit_are_refused(
    kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert take(tmp_path, 1) == 0
    other = replace(kit, capability="8.9")
    (tmp_path / "kit" / "2" / MANIFEST).write_text(other.to_json(), "utf-8")
    assert take(tmp_path, 2) == 2
    assert "packed at another time" in capsys.readouterr().err
    assert not (tmp_path / "there" / ORT).exists()


@pytest.mark.parametrize("manifest", [None, "{", "[]", '{"archives": {"a": []}}', "{}"])
def test_a_damaged_manifest_is_named(kit: Kit, tmp_path: Path, manifest: str | None) -> None:
    folder = tmp_path / "kit" / "1"
    (folder / MANIFEST).unlink()
    if manifest is not None:
        (folder / MANIFEST).write_text(manifest)
    with pytest.raises(KitError, match=r"has no kit\.json|kit\.json is damaged .*transfer it"):
        unpack.take(folder, tmp_path / "there")


def test_another_python_is_named(
    kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kit" / "1" / MANIFEST).write_text(replace(kit, python="3.9").to_json(), "utf-8")
    assert take(tmp_path, 1) == 2
    assert "was packed for 3.9" in capsys.readouterr().err


def wheel(folder: Path, name: str, version: str, tag: str, files: dict[str, bytes]) -> None:
    module = name.replace("-", "_")
    with zipfile.ZipFile(folder / f"{module}-{version}-{tag}.whl", "w") as made:
        for path, data in files.items():
            made.writestr(path, data)
        entry = f"{module}-{version}.dist-info"
        made.writestr(
            f"{entry}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        made.writestr(f"{entry}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        made.writestr(f"{entry}/RECORD", "")


def test_pip_to_stages_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheels, there = tmp_path / "wheels", tmp_path / "there"
    wheels.mkdir()
    target = Target("3.12", "8.6", 13, ("also-this==1.0",))
    library = fat_binary(entry(CODE, 80, b"a" * 400), entry(CODE, 120, b"b" * 400))
    capi = "onnxruntime/capi/libonnxruntime"
    for archive, tag in ((SITE, "py3-none-any"), (ORT, "cp312-cp312-manylinux_2_28_x86_64")):
        for requirement in target.requirements(archive):
            name, _, version = requirement.partition("==")
            files = {f"{name.replace('-', '_')}.py": b"", "onnxruntime/tools/x.py": b""}
            if archive == ORT:
                files |= {f"{capi}_providers_cuda.so": library, f"{capi}.so.1.31.1": b"for C"}
            wheel(wheels, name, version, tag, files)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr("pack.tracked", lambda: {"tests/a": 2 << 20, "docs/b.png": 1 << 20})

    given = ["--only", SITE, ORT, "--kit", str(tmp_path / "kit"), "--cache", str(tmp_path / "c")]
    given += ["--capability", "8.6", "--also", "also-this==1.0"]
    assert pack.main([*given, "--transfer", "10"]) == 0
    said = capsys.readouterr().out
    assert "beside the clone (3.0 MiB) a transfer has 6.7 MiB" in said
    assert re.findall(r"not read there: (\S+),", said) == ["docs/b.png"]
    assert "1: python3 tools/gpu_offline/unpack.py .kit/1; python3 tools/gpu_offline/run_st" in said

    unpack.main([str(tmp_path / "kit" / "1"), "--kit", str(there)])
    modules = {path.name for path in (there / SITE).glob("*.py")}
    needed = {"diffusers", "ijson", "importlib_metadata", "lazy_importer", "zipp", "also_this"}
    assert modules == {f"{name}.py" for name in needed}
    assert {it.name for it in (there / ORT / "onnxruntime").rglob("*")} == {
        "capi",
        "libonnxruntime_providers_cuda.so",
    }
    found = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            "from importlib import metadata as m; print(m.version('dsd-trt'))",
        ],
        env={"PYTHONPATH": str(there / SITE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f'version = "{found.stdout.strip()}"' in (ROOT / "pyproject.toml").read_text("utf-8")

    # What was packed is not packed again; with too little room nothing is.
    (wheels / "diffusers-0.42.1-py3-none-any.whl").unlink(missing_ok=True)
    assert pack.main([*given, "--transfer", "10"]) == 0
    assert pack.main([*given, "--transfer", "7"]) == 2
    assert "pack with --alone" in capsys.readouterr().err
    assert pack.main([*given, "--transfer", "7", "--alone"]) == 0
    assert pack.main([*given, "--only", SITE, "--also", "nowhere==1.0"]) == 2
    assert "pip found no wheels" in capsys.readouterr().err
    assert pack.main([*given, "--only", ORT, "--capability", "9.0"]) == 2
    assert "no code for compute capability 9.0, only for 8.0, 12.0" in capsys.readouterr().err
