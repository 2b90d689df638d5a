"""`dsd-trt doctor` on threads, memory, disks and the cache: each lack is made for real.

Remedies that set a variable are applied, and the same is examined again.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from control_groups import NoGroupError, control_group, within
from examined import ROOT, SMALL, environment, examined, exported, program, read
from small_disk import run_on_small_disk, small_disk

from dsd_trt.cores import usable_cores
from dsd_trt.doctor import processor
from dsd_trt.doctor.bundle import study_here
from dsd_trt.doctor.cache import hub_folder
from dsd_trt.doctor.control_group import Granted, granted
from dsd_trt.doctor.finding import Finding
from dsd_trt.doctor.memory import PROGRAM
from dsd_trt.doctor.studied import Studied

__all__ = ["small_disk"]

MIB = 2**20
NOBODY = 65534

several_cores = pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system binds no processes to cores"
)


# Threads


@several_cores
def test_a_quota_of_processor_time() -> None:
    first = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"}
    try:
        with control_group("cpu", first, {"cpu.max": "50000 100000"}) as group:
            inside = partial(examined, "threads", prefix=partial(within, group))
            found = inside(DSD_TRT_THREADS=None)["threads"]
            assert found.state == "warning"
            assert "grants 0.5 cores of the machine's" in found.detail
            assert found.facts["quota"] == 0.5
            assert found.remedy == "export DSD_TRT_THREADS=1"
            assert inside(**exported(found.remedy))["threads"].state == "ok"
    except NoGroupError as error:
        pytest.skip(f"no control group: {error}")
    assert examined("threads")["threads"].facts["quota"] == granted().cores


@several_cores
@needs_affinity
def test_cores_that_are_taken_away() -> None:
    bind = partial(os.sched_setaffinity, 0, {min(os.sched_getaffinity(0))})
    found = examined("threads", preexec=bind)["threads"]
    assert found.state == "ok"
    assert f"may run on 1 of the machine's {os.cpu_count()} cores (taskset" in found.detail
    assert "engines start 1 thread" in found.detail
    asked = examined("threads", preexec=bind, DSD_TRT_THREADS="2")["threads"]
    assert asked.state == "warning"
    assert "DSD_TRT_THREADS is 2" in asked.detail
    again = examined("threads", preexec=bind, **exported(asked.remedy))
    assert again["threads"].state == "ok"


def write(folder: Path, **files: str) -> None:
    """Files of a folder; two underscores in a name are a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


def test_groups_of_version_2_as_the_kernel_documents_them(tmp_path: Path) -> None:
    """Limits of every group around the own one hold; "max" is none."""
    top = tmp_path / "cgroup fs"
    mounted = str(top).replace(" ", r"\040")
    mounts = f"31 23 0:28 / {mounted} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    write(tmp_path / "self", cgroup="0::/pod/box\n", mountinfo=mounts)
    assert granted(tmp_path / "self") == Granted()
    write(top / "pod" / "box", cpu__max="max 100000\n", memory__max="max\n")
    assert granted(tmp_path / "self") == Granted()
    write(top / "pod", cpu__max="150000 100000\n", memory__max="1000000\n")
    write(top / "pod", memory__current="700000\n", memory__stat="anon 1\ninactive_file 300000\n")
    assert granted(tmp_path / "self") == Granted(1.5, 1000000, 400000)
    write(top / "pod" / "box", cpu__max="50000 200000\n", memory__max="2000000\n")
    assert granted(tmp_path / "self") == Granted(0.25, 1000000, 400000)


def one_group(tmp_path: Path, top: Path, *, root: str = "/", own: str = "/pod/box") -> Granted:
    """What a group of version 2 grants, for the top and the root of its mount.

    Args:
        tmp_path: folder of the process.
        top: folder that the groups are mounted on.
        root: group that is mounted there.
        own: group of the process.
    """
    mounted = str(top).replace("\\", r"\134").replace(" ", r"\040")
    mounts = f"31 23 0:28 {root} {mounted} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
    write(tmp_path / "self", cgroup=f"0::{own}\n", mountinfo=mounts)
    return granted(tmp_path / "self")


def test_the_group_that_leaves_least_counts(tmp_path: Path) -> None:
    """Others in the outer group may have filled it, though its limit is the higher one."""
    top = tmp_path / "groups"
    write(top / "pod", memory__max="1000\n", memory__current="950\n")
    write(top / "pod" / "box", memory__max="800\n", memory__current="100\n")
    assert one_group(tmp_path, top) == Granted(None, 1000, 950)
    write(top / "pod", memory__current="200\n")
    assert one_group(tmp_path, top) == Granted(None, 800, 100)


@pytest.mark.parametrize("name", ["größe", "日本 語", r"back\slash", r"a\x41"])
def test_a_mount_whose_path_is_not_ascii(name: str, tmp_path: Path) -> None:
    """proc(5): space, tab, newline and backslash are octal, and all other bytes are themselves."""
    top = tmp_path / name
    write(top / "pod" / "box", memory__max="4096\n", memory__current="5\n")
    assert one_group(tmp_path, top) == Granted(None, 4096, 5)


def test_a_sibling_whose_name_begins_alike(tmp_path: Path) -> None:
    """The group /pod is mounted, and the process is in /pod2/box: nothing of /pod is its own."""
    top = tmp_path / "groups"
    write(top / "2" / "box", memory__max="4096\n", memory__current="5\n")
    assert one_group(tmp_path, top, root="/pod", own="/pod2/box") == Granted()
    write(top / "box", memory__max="8192\n", memory__current="5\n")
    assert one_group(tmp_path, top, root="/pod", own="/pod/box") == Granted(None, 8192, 5)


def test_a_container_that_sees_its_group_as_the_top(tmp_path: Path) -> None:
    """Of version 1 without a namespace: the path is the machine's, the mount the container's."""
    cpu, memory = tmp_path / "cpu,cpuacct", tmp_path / "memory"
    write(
        tmp_path / "self",
        cgroup="5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n",
        mountinfo=f"40 31 0:35 /docker/abc {cpu} ro - cgroup cgroup rw,cpu,cpuacct\n"
        f"41 31 0:36 /docker/abc {memory} ro - cgroup cgroup rw,memory\n",
    )
    write(cpu, cpu__cfs_quota_us="200000\n", cpu__cfs_period_us="100000\n")
    write(memory, memory__limit_in_bytes="9223372036854771712\n", memory__usage_in_bytes="5\n")
    assert granted(tmp_path / "self") == Granted(2.0)
    write(cpu, cpu__cfs_quota_us="-1\n")
    write(memory, memory__limit_in_bytes="4096\n")
    assert granted(tmp_path / "self") == Granted(None, 4096, 5)
    assert granted(tmp_path / "nowhere") == Granted()


# Processor

OLD = "processor\t: 0\nmodel name\t: Old CPU @ 2.4GHz\nflags\t\t: fpu sse sse2 ssse3 sse4_1 avx\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd bf16 sve\n"


def of_processor(text: str, tmp_path: Path) -> Finding:
    (tmp_path / "cpuinfo").write_text(text)
    (found,) = (it for it in processor.examine(tmp_path / "cpuinfo") if it.subject == "processor")
    return found


def test_features_as_linux_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = of_processor(OLD, tmp_path)
    assert found.state == "warning"
    assert "Old CPU @ 2.4GHz has no AVX2" in found.detail
    assert of_processor(OLD.replace("avx", "avx avx2"), tmp_path).facts["features"] == ["AVX2"]
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    found = of_processor(ARM, tmp_path)
    assert (found.state, found.facts["features"]) == ("ok", ["NEON", "SVE", "BF16"])
    assert not of_processor("", tmp_path).facts["known"]


def test_features_are_those_that_numpy_finds() -> None:
    by_numpy = importlib.import_module("numpy._core._multiarray_umath").__cpu_features__
    (found,) = (it for it in processor.examine() if it.subject == "processor")
    known = {"AVX2": "AVX2", "AVX-512": "AVX512F", "NEON": "ASIMD"}
    compared = {ours: theirs for ours, theirs in known.items() if theirs in by_numpy}
    if not (found.facts["known"] and compared):
        pytest.skip("this system or this numpy does not tell")
    for ours, theirs in compared.items():
        assert (ours in found.facts["features"]) == by_numpy[theirs], ours


def test_instructions_that_are_switched_off() -> None:
    found = examined("processor", ONEDNN_MAX_CPU_ISA="AVX2")["ONEDNN_MAX_CPU_ISA"]
    assert found.state == "note"
    again = examined("processor", **exported(found.remedy))
    assert again.keys() == {"processor"}


# Memory


def limit_data(count: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (count, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def test_a_limit_of_the_shell() -> None:
    """Its remedy is applied: the soft limit may be raised again."""
    few = partial(limit_data, 150 * MIB)
    found = examined("memory", SMALL, "openvino", preexec=few)["memory"]
    assert found.state == "fault"
    assert "150 MiB can be used (RLIMIT_DATA, ulimit -d), and the bundle takes" in found.detail
    assert found.facts["least_bytes"] == PROGRAM + 4 * SMALL.weight_bytes + SMALL.least_bytes

    def mended(command: list[str]) -> list[str]:
        return ["sh", "-c", f'{found.remedy} && exec "$0" "$@"', *command]

    again = examined("memory", SMALL, "openvino", preexec=few, prefix=mended)["memory"]
    assert again.state != "fault" or again.facts["usable_bytes"] > 150 * MIB


def study_under(limit: int, **variables: str | None) -> Finding:
    """Memory for the demonstration, under a limit of the process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value or "")
        needs = Studied.from_plain(study_here(None, None)).needs
    found = examined("memory", needs, "onnxruntime", preexec=partial(limit_data, limit))
    return found["memory"]


def test_a_budget_that_fits_is_named() -> None:
    found = study_under(500 * MIB)
    if found.facts["usable_bytes"] < 500 * MIB:
        pytest.skip("this machine has less memory")
    assert found.state == "warning"
    mended = study_under(500 * MIB, **exported(found.remedy))
    assert mended.state == "ok"
    assert mended.facts["usual_bytes"] <= 500 * MIB


def test_a_control_group_of_memory() -> None:
    limit, files = 150 * MIB, ("memory.limit_in_bytes", "memory.max")
    first, second = ({name: str(limit)} for name in files)
    try:
        with control_group("memory", first, second) as group:
            found = examined("memory", SMALL, "openvino", prefix=partial(within, group))["memory"]
    except NoGroupError as error:
        pytest.skip(f"no control group: {error}")
    assert found.state == "fault"
    assert "control group's limit of 150 MiB" in found.detail
    assert found.facts["limit_bytes"] == limit
    assert 0 < found.facts["usable_bytes"] < limit  # this process takes some itself
    assert found.remedy == "docker update --memory LARGER CONTAINER"


def test_memory_without_a_bundle_or_an_engine() -> None:
    assert examined("memory", None, None)["memory"].state == "ok"
    assert "least_bytes" not in examined("memory", SMALL, "tensorrt")["memory"].facts


# Cache and disks


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="dsd-trt-doctor-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(command: list[str]) -> list[str]:
    """The command line as another user, for root may write anywhere."""
    if os.getuid():
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv, with which root becomes another user")
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]


def test_a_cache_of_another_user(open_folder: Path) -> None:
    cache = open_folder / "cache"
    cache.mkdir(mode=0o755)
    if os.getuid():
        cache.chmod(0o555)
    probe = as_nobody(["test", "-r", str(ROOT / "pyproject.toml")])
    if not os.getuid() and subprocess.run(probe, check=False).returncode:
        pytest.skip("another user cannot read this clone")
    found = examined("cache", None, prefix=as_nobody, DSD_TRT_CACHE=str(cache))["cache"]
    assert found.state == "warning"
    assert f"{cache} cannot be written: {cache} is of user {os.getuid()}" in found.detail
    changed = exported(found.remedy)
    assert changed.keys() == {"DSD_TRT_CACHE"}
    # What is named in its place is beside other users' files, so the test has its own.
    again: dict[str, Any] = {"DSD_TRT_CACHE": f"{changed['DSD_TRT_CACHE']}-{os.getpid()}"}
    assert examined("cache", None, prefix=as_nobody, **again)["cache"].state == "ok"
    assert not list(open_folder.rglob("*.part"))


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(
    ("free", "said"), [(0, "the disk is full"), (None, "its disk is mounted read-only")]
)
def test_a_disk_that_takes_nothing(
    free: int | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    (folder / "cache").mkdir(parents=True)
    (folder / "cache" / "old").write_bytes(bytes(10_000))
    for name, value in environment((), {"DSD_TRT_CACHE": "cache", "TMPDIR": "."}).items():
        monkeypatch.setenv(name, value)
    first, second = run_on_small_disk(program("cache", SMALL), folder, free)
    before, after = read(first.said), read(second.said)
    assert before["cache"].state == "warning"
    assert f"cache cannot be written: {said}" in before["cache"].detail
    assert before["cache"].facts["size_bytes"] == 10_000
    assert before["cache"].remedy.startswith("rm -r cache" if free == 0 else "export DSD_TRT_CACHE")
    temporary = before["temporary files"]
    assert temporary.state == "warning"
    assert f"TMPDIR, ., cannot be used: {said}" in temporary.detail
    assert exported(temporary.remedy) == {"TMPDIR": None}
    assert after["cache"].state == "ok"
    assert not [name for name in first.names if name.endswith(".part")]


@pytest.mark.usefixtures("small_disk")
def test_a_disk_without_room_for_compiled_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, value in environment((), {"DSD_TRT_CACHE": "cache"}).items():
        monkeypatch.setenv(name, value)
    first, second = run_on_small_disk(program("cache", SMALL), folder, 10 * MIB)
    before, after = read(first.said)["cache"], read(second.said)["cache"]
    assert (before.state, after.state) == ("warning", "ok")
    assert "compiled models of the bundle take about 24.0 MB" in before.detail
    assert before.facts["free_bytes"] <= 10 * MIB
    assert "cache" not in {name.partition("/")[0] for name in first.names}  # nothing is made


def test_a_cache_that_is_switched_off_or_a_file(tmp_path: Path) -> None:
    found = examined("cache", None, DSD_TRT_CACHE="")["cache"]
    assert found.state == "note"
    assert exported(found.remedy) == {"DSD_TRT_CACHE": None}
    (tmp_path / "file").touch()
    found = examined("cache", None, DSD_TRT_CACHE=str(tmp_path / "file"))["cache"]
    assert "it is a file, not a folder" in found.detail
    home = examined("cache", None, DSD_TRT_CACHE=None, XDG_CACHE_HOME=str(tmp_path))["cache"]
    assert home.facts["folder"] == str(tmp_path / "dsd-trt")
    assert not (tmp_path / "dsd-trt").exists()


def test_a_folder_for_temporary_files_that_does_not_exist(tmp_path: Path) -> None:
    """Python itself passes it over without a message."""
    nowhere = str(tmp_path / "nowhere")
    found = examined("cache", None, TMPDIR=nowhere)["temporary files"]
    assert found.state == "warning"
    assert f"TMPDIR, {nowhere}, cannot be used: it does not exist" in found.detail
    assert found.facts["folder"] != nowhere
    again = examined("cache", None, **exported(found.remedy))["temporary files"]
    assert again.state == "ok"


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """As on a full disk, but there is nothing to remove."""
    (tmp_path / "old").write_bytes(bytes(10_000))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    none = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (0, hard))
    found = examined("cache", None, preexec=none, DSD_TRT_CACHE=str(tmp_path))
    for it in found.values():
        assert (it.state, it.remedy) in {
            ("warning", "ulimit -f unlimited"),
            ("fault", "ulimit -f unlimited"),
        }
    assert "files may not grow" in found["cache"].detail


def test_what_is_missing_of_a_bundle_on_the_hub(tmp_path: Path) -> None:
    needs = SMALL.__class__(**vars(SMALL) | {"missing_bytes": 10**15})
    given: dict[str, Any] = {**dict.fromkeys(HUB_VARIABLES), "HF_HOME": str(tmp_path)}
    found = examined("cache", needs, **given)["hub's cache"]
    assert found.state == "fault"
    assert "the bundle's missing files take 1000000.00 GB" in found.detail
    assert found.remedy == "export HF_HUB_CACHE=FOLDER"  # which wins over all others


HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub"),
        ({"XDG_CACHE_HOME": "xdg", "HF_HOME": "hf"}, "hf/hub"),
        ({"HF_HOME": "hf", "HUGGINGFACE_HUB_CACHE": "old"}, "old"),
        ({"HUGGINGFACE_HUB_CACHE": "old", "HF_HUB_CACHE": "new"}, "new"),
        ({"HF_HOME": "~/$DSD_TEST/x"}, "home/there/x/hub"),
    ],
)
def test_the_hubs_cache_is_where_the_hub_has_it(
    given: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package itself says the same."""
    for name in HUB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    known = {"HOME": str(tmp_path / "home"), "DSD_TEST": "there"}
    under = {name: it if it.startswith("~") else str(tmp_path / it) for name, it in given.items()}
    for name, value in (known | under).items():
        monkeypatch.setenv(name, value)
    assert hub_folder() == tmp_path / expected
    if importlib.util.find_spec("huggingface_hub"):
        told = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
        done = subprocess.run(
            [sys.executable, "-c", told], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(tmp_path / expected)
