"""`dsd-trt doctor` as a command: JSON, exit codes, next steps, and that it never fails itself."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from control_groups import NoGroupError, control_group, within
from examined import ROOT, environment, exported
from stub_libraries import compile_driver, needs_compiler

from dsd_trt import Bundle
from dsd_trt.commands.doctor import as_text
from dsd_trt.commands.environment import other_variables, refusal
from dsd_trt.commands.main import cli
from dsd_trt.doctor.finding import STATES, Finding
from dsd_trt.doctor.report import Asked, Report, Section
from dsd_trt.doctor.variables import examine as examine_variables
from dsd_trt.engine import BACKENDS
from dsd_trt.installation import install_command

# The packages of a lean installation without an engine, and what they import.
LEAN = (
    *("numpy", "numpy.libs", "PIL", "pillow.libs", "tokenizers", "click", "rich", "pygments"),
    *("markdown_it", "mdurl"),
)


def doctor(
    *arguments: str,
    site: Path | None = None,
    alone: bool = False,
    folder: Path | None = None,
    module: Path = ROOT / "dsd_trt" / "__main__.py",
    prefix: Callable[[list[str]], list[str]] = list,
    preexec: Callable[[], None] | None = None,
    **variables: str | None,
) -> subprocess.CompletedProcess[str]:
    """Run the command.

    Args:
        arguments: arguments after the command's name.
        site: folder of packages that come before all others.
        alone: whether this environment's packages are out of sight.
        folder: folder that it runs in; None is this one.
        module: file of the package that is run.
        prefix: function that changes the command line.
        preexec: function that runs in the new process before its program.
        variables: environment variables to set; None unsets one.
    """
    given = environment([site] if site else [], variables)
    given["PYTHONPATH"] = given["PYTHONPATH"].removesuffix(str(ROOT)).rstrip(os.pathsep)
    flags = ["-P", *(["-S"] if alone else [])]
    return subprocess.run(
        prefix([sys.executable, *flags, str(module), "doctor", *arguments]),
        preexec_fn=preexec,
        env=given,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages of a lean installation, without an engine."""
    site = tmp_path_factory.mktemp("lean")
    found = {it.name: it for entry in map(Path, sys.path) for it in entry.glob("*") if entry}
    for name in LEAN:
        if name in found:
            (site / name).symlink_to(found[name])
    return site


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is said of this environment as JSON, with where its processes left what."""
    folder = tmp_path_factory.mktemp("ran")
    trap = folder / "site" / "torch"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()")
    home = folder / "home"
    home.mkdir()
    done = doctor(
        *("--json", "--engine", "onnxruntime"),
        site=trap.parent,
        folder=folder,
        HOME=str(home),
        DSD_TRT_CACHE=str(folder / "cache"),
    )
    assert done.returncode == 0, done.stderr
    left = {str(it.relative_to(folder)) for it in folder.rglob("*")}
    result: dict[str, Any] = json.loads(done.stdout)
    return result | {"left": left, "said": done.stderr}


def test_the_json_has_its_schema(ran: dict[str, Any]) -> None:
    """Of version 1, as docs/doctor.md describes it."""
    assert ran["schema_version"] == 1
    assert ran["asked"] == {"engine": "onnxruntime", "bundle": None}
    assert (ran["engine"], ran["exit_code"]) == ("onnxruntime", 0)
    assert ran["machine"].keys() == {"dsd_trt", "python", "system", "architecture"}
    for it in ran["findings"]:
        assert it.keys() == {"section", "subject", "state", "detail", "remedy", "facts"}
        assert it["state"] in STATES
        assert it["detail"]
        assert "\n" not in it["detail"] + it["remedy"]
    for it in ran["next"]:
        assert it.keys() == {"subject", "cause", "command"}
        assert it["command"]
    assert ran["said"] == ""


def test_every_part_is_examined(ran: dict[str, Any]) -> None:
    sections = dict.fromkeys(it["section"] for it in ran["findings"])
    assert list(sections) == [
        *("packages", "engines", "GPU", "processor", "memory", "cache and disks", "bundle"),
        "variables",
    ]
    engines = {it["subject"]: it["facts"] for it in ran["findings"] if it["section"] == "engines"}
    assert engines.keys() >= BACKENDS.keys()
    assert all({"works", "fits", "version", "extra"} <= it.keys() for it in engines.values())
    assert not [it for it in ran["findings"] if "could not be examined" in it["detail"]]


def test_nothing_is_left_and_torch_is_not_imported(ran: dict[str, Any]) -> None:
    assert ran["left"] == {"home", "site", "site/torch", "site/torch/__init__.py"}


def test_the_guide_describes_every_field(ran: dict[str, Any]) -> None:
    guide = (ROOT / "docs" / "doctor.md").read_text("utf-8")
    fields = {*ran} - {"left", "said"}
    for it in ran["findings"]:
        fields |= it.keys()
    assert [name for name in fields if f"`{name}`" not in guide] == []
    assert [name for name in STATES if f"`{name}`" not in guide] == []


def test_without_an_engine(lean: Path) -> None:
    done = doctor("--json", site=lean, alone=True)
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    assert "no engine works here" in done.stderr
    found = json.loads(done.stdout)
    assert (found["engine"], found["exit_code"]) == (None, 4)
    assert found["next"][0]["command"].endswith("[cpu]'")
    assert install_command("cpu").endswith("[cpu]'")
    plain = doctor(site=lean, alone=True)
    assert plain.returncode == 4
    assert plain.stdout.endswith("No engine works here.\n")
    assert found["next"][0]["command"] in plain.stdout


@needs_compiler
def test_an_engine_of_a_gpu_that_is_not_there(lean: Path, tmp_path: Path) -> None:
    compile_driver(tmp_path, gpus=0)
    for engine in ("tensorrt", "onnxruntime-cuda"):
        done = doctor("--engine", engine, site=lean, alone=True, LD_LIBRARY_PATH=str(tmp_path))
        assert done.returncode == 4
        assert f"{engine} cannot work here: NVIDIA's driver shows no GPU" in done.stderr
        assert "Mend it with: " in done.stderr


def test_a_bundle_that_is_altered(bundle: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.folder, tmp_path / "altered"))
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b":", b" ", 1))
    done = doctor("--json", "--engine", "onnxruntime", "--bundle", str(folder))
    assert done.returncode == 2
    assert "'tokenizer.json' was altered" in done.stderr
    found = json.loads(done.stdout)
    assert (found["engine"], found["exit_code"]) == ("onnxruntime", 2)
    assert {"subject": str(folder)}.items() <= found["next"][0].items()


@pytest.mark.parametrize("damaged", ["engine/driver.py", "batching.py", "doctor/gpu.py"])
def test_a_damaged_file_of_its_own_is_a_finding(damaged: str, lean: Path, tmp_path: Path) -> None:
    """Whatever of the package cannot be imported, but for the command line's own modules."""
    names = shutil.ignore_patterns("*.so", "data", "__pycache__", "train", "export", "engines")
    copy = Path(shutil.copytree(ROOT / "dsd_trt", tmp_path / "dsd_trt", ignore=names))
    (copy / damaged).write_text("raise RuntimeError('cut off')\n")
    done = doctor("--json", site=lean, alone=True, module=copy / "__main__.py")
    assert "Traceback" not in done.stderr
    assert done.returncode in (2, 4)
    found = json.loads(done.stdout)
    assert any("cut off" in it["detail"] for it in found["findings"])
    assert len(found["findings"]) > 10


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_line_itself_cannot_start(broken: bool, lean: Path, tmp_path: Path) -> None:
    """Without click, or with one that fails on import, no command does."""
    site = Path(shutil.copytree(lean, tmp_path / "site", symlinks=True))
    (site / "click").unlink()
    if broken:
        (site / "click").mkdir()
        (site / "click" / "__init__.py").write_text("from click.core import Command")
    done = doctor(site=site, alone=True)
    assert (done.returncode, done.stdout) == (4, "")
    assert "Traceback" not in done.stderr
    missing = "click.core" if broken else "click"
    assert f"dsd-trt cannot start (No module named '{missing}')" in done.stderr
    assert "install --force-reinstall" in done.stderr


def test_no_process_can_be_started() -> None:
    """With so few descriptors that there is no pipe to one."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    done = doctor("--json", preexec=partial(resource.setrlimit, resource.RLIMIT_NOFILE, (9, 9)))
    assert limits == resource.getrlimit(resource.RLIMIT_NOFILE)
    assert done.returncode == 4
    assert "no process can be started" in done.stderr
    (step,) = json.loads(done.stdout)["next"]
    assert step["command"] == "ulimit -n 1024"


def test_no_thread_can_be_started() -> None:
    try:
        with control_group("pids", {"pids.max": "1"}, {"pids.max": "1"}) as group:
            done = doctor("--json", prefix=partial(within, group))
    except NoGroupError as error:
        pytest.skip(f"no control group: {error}")
    assert done.returncode == 4
    assert "Traceback" not in done.stderr
    (step,) = json.loads(done.stdout)["next"]
    assert step["command"] == "docker update --pids-limit -1 CONTAINER"


def test_an_unknown_engine_is_wrong_usage() -> None:
    done = doctor("--engine", "fast")
    assert (done.returncode, done.stdout) == (2, "")


# Variables


def of_variables(monkeypatch: pytest.MonkeyPatch, **values: str | None) -> dict[str, Finding]:
    for name, value in values.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    names = ("DSD_TRT_ENGINE", "DSD_TRT_MEMORY_BUDGET", "DSD_TRT_WORKERS", "DSD_TRT_TUNE")
    found = examine_variables({it: refusal(it, cli) for it in names}, other_variables())
    return {it.subject: it for it in found}


def test_variables_without_an_effect_or_a_valid_value(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"DSD_TRT_ENGIN": "openvino", "DSD_TRT_MAX_PAIRS": "many", "DSD_TRT_QWERTZ": "1"}
    found = of_variables(monkeypatch, **wrong)
    assert {name: it.state for name, it in found.items()} == {
        "DSD_TRT_ENGIN": "warning",
        "DSD_TRT_MAX_PAIRS": "fault",
        "DSD_TRT_QWERTZ": "warning",
    }
    assert "is DSD_TRT_ENGINE meant?" in found["DSD_TRT_ENGIN"].detail
    for it in found.values():
        mended = of_variables(monkeypatch, **exported(it.remedy))
    assert mended.keys() == {"variables"}
    assert "DSD_TRT_ENGINE=openvino" in mended["variables"].detail


@pytest.mark.parametrize("budget", ["abc", "nan", "-1"])
def test_a_budget_that_is_none(budget: str, tmp_path: Path) -> None:
    """It is named, and the bundle is examined as without it."""
    done = doctor(
        "--json", "--engine", "onnxruntime", DSD_TRT_MEMORY_BUDGET=budget, HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "pip" not in " ".join(it["command"] for it in report["next"])
    found = {it["subject"]: it for it in report["findings"]}
    wrong = found["DSD_TRT_MEMORY_BUDGET"]
    assert (wrong["state"], wrong["remedy"]) == ("fault", "unset DSD_TRT_MEMORY_BUDGET")
    assert found["shapes"]["state"] == "ok"


def test_values_that_an_option_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"DSD_TRT_ENGINE": "fast", "DSD_TRT_WORKERS": "none", "DSD_TRT_TUNE": "maybe"}
    found = of_variables(monkeypatch, **wrong)
    assert {name: it.state for name, it in found.items()} == dict.fromkeys(wrong, "fault")
    assert "'none' is not a valid int" in found["DSD_TRT_WORKERS"].detail
    right = {"DSD_TRT_ENGINE": "openvino", "DSD_TRT_WORKERS": "", "DSD_TRT_TUNE": "1"}
    assert of_variables(monkeypatch, **right)["variables"].state == "ok"


@pytest.mark.parametrize("value", ["open vino", "openvino; touch made", "it's", '$(touch made) "'])
def test_a_value_is_one_word_of_the_remedy(
    value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shell that runs the remedy says what it exports."""
    found = of_variables(monkeypatch, DSD_TRT_ENGIN=value)["DSD_TRT_ENGIN"]
    told = f'{found.remedy} && printf %s "$DSD_TRT_ENGINE"'
    done = subprocess.run(
        ["sh", "-c", told], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == value
    assert list(tmp_path.iterdir()) == []


# The text


def test_steps_come_worst_first_and_once() -> None:
    warning = Finding("a", "warning", "is slow", "mend a")
    faults = [Finding(name, "fault", "is broken", "mend both") for name in "bc"]
    nothing = Finding("d", "warning", "cannot be helped")
    sections = (Section("some", (warning, *faults, nothing)),)
    report = Report(Asked("auto", None, None, {}, {}), sections, "openvino", None, "")
    assert [it.subject for it in report.next_steps] == ["b", "a"]
    text = as_text(report, 80)
    assert "  1. b: is broken\n       mend both\n  2. a: is slow\n       mend a\n" in text
    assert text.endswith("openvino would score.\n")


def test_the_text_obeys_nobody_and_fits_the_terminal() -> None:
    long = Finding("x", "fault", "\x1b[2Jevil " + "word " * 60, "pip install " + "y" * 100)
    report = Report(
        Asked("auto", None, None, {}, {}), (Section("some", (long,)),), None, long, "wrong"
    )
    text = as_text(report, 70)
    assert "\x1b" not in text
    lines = text.splitlines()
    assert all(len(line) <= 70 for line in lines if "pip install" not in line)
    assert f"       {long.remedy}" in lines  # a command is never broken
    assert report.exit_code == 4
