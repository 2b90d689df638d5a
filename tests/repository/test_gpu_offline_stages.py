"""tools/gpu_offline: stages keep to their time and cost each other nothing; their report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import click
import numpy as np
import pytest
from checkpoints import write_checkpoint

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "gpu_offline"))

import facts
import pack
import report
import run_stages
import try_rtx
from pieces import Kit, Piece
from run_stages import Result, Runner, resolve, verdict
from stages import BY_NAME, ORT, ROOT, RTX, SITE, STAGES, TOOLS, Stage

from dsd_trt import Scorer, read_bundle
from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.main import cli
from dsd_trt.engine.tensorrt import runner as runner_module
from dsd_trt.engines import compile as compiling
from dsd_trt.errors import EngineError


def made_up(*arrivals: Sequence[str]) -> Kit:
    """A kit whose archives are whole after these transfers."""
    archives = {
        name: (Piece(f"{name}.000", 1, "", number),)
        for number, names in enumerate(arrivals, 1)
        for name in names
    }
    return Kit("3.12", "9.0", archives)


def test_each_stage_runs_once_and_when_its_archives_are_there() -> None:
    planned = list(pack.plan(made_up([SITE], [], [ORT], [RTX])))
    names = [[stage.name for stage in ready] for _, ready, _ in planned]
    assert names[0] == ["export-sd21", "export", "facts", "test-gpu"]
    assert names[2] == ["check-demonstration", "check-matrix", "check-sd21"]
    assert names[3] == ["rtx"]
    assert [name for ready in names for name in ready] == [
        stage.name for stage in STAGES if not stage.optional
    ]
    for _, ready, seconds in planned:
        assert seconds >= sum(stage.limit for stage in ready if not stage.background)


def test_a_prepared_run_takes_ten_minutes_at_most() -> None:
    planned = pack.plan(made_up([SITE], [ORT], [], [RTX]))
    assert sum(seconds for _, _, seconds in planned) <= 600


def test_nothing_waits_for_a_stage_that_has_not_been_started() -> None:
    arrivals: tuple[list[list[str]], ...] = (
        [[SITE, ORT, RTX]],
        [[RTX], [ORT], [SITE]],
        [[SITE], [ORT], [], [RTX]],
    )
    for transfers in arrivals:
        run: list[str] = []
        for _, ready, _ in pack.plan(made_up(*transfers)):
            for stage in ready:
                assert stage.after is None or stage.after in run
                run.append(stage.name)


def test_a_call_ends_itself_before_it_is_ended() -> None:
    text = pack.describe(made_up([SITE], [ORT, RTX]), {1: 1, 2: 2})
    assert "--within 105 export-sd21 export facts test-gpu\n" in text
    limits = {int(row.split()[0]): int(row.split()[2]) for row in text.splitlines()[1:3]}
    for number, within in re.findall(r"unpack.py .kit/(\d).*--within (\d+)", text):
        assert int(within) == limits[int(number)] - pack.UNPACKING


def test_the_manual_has_every_stage_with_its_limit() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| (-|`.*?`) \| (.*?) \|", page, re.MULTILINE)
    listed = {name: (set(re.findall(r"\w+", needs)), limit) for name, needs, limit in rows}
    for stage in STAGES:
        limit = "in the background" if stage.background else str(stage.limit)
        assert listed[stage.name] == (set(stage.needs), limit)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_commands_of_stages_exist_and_take_their_options(stage: Stage, tmp_path: Path) -> None:
    folders = {"kit": tmp_path, "out": tmp_path, "root": ROOT, "tools": TOOLS}
    for command in stage.commands:
        words = [resolve(word, folders) for word in command]
        if words[:2] == ["-m", "dsd_trt"]:
            found = cli.get_command(click.Context(cli), words[2])
            assert found
            for word in words[3:]:  # folders that an earlier stage makes
                if word.startswith(str(tmp_path)):
                    Path(word).mkdir(parents=True, exist_ok=True)
            found.make_context(words[2], words[3:])
        elif words[0] not in ("-m", "-c"):
            assert Path(words[0]).is_file()
        for word in words:
            if word.startswith(("dsd_trt/", "tests/")):
                assert (ROOT / word).exists(), word
    assert stage.after is None or (BY_NAME[stage.after].background and SITE in stage.needs)


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path / "kit", tmp_path / "out")


def python(name: str, code: str, limit: int = 60, **fields: object) -> Stage:
    return Stage(name, "", limit, (("-c", code),), **fields)  # type: ignore[arg-type]


def alive(number: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_stage_that_is_late_is_stopped_with_its_children(runner: Runner) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    began = time.monotonic()
    result = runner.run(python("slow", code, limit=2), 60)
    assert (result.status, result.exit_code) == ("late", None)
    assert 2 <= result.seconds <= time.monotonic() - began < 20
    child = int(result.message.split()[1])
    deadline = time.monotonic() + 5
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(child)


def test_the_time_that_is_left_limits_a_stage(runner: Runner) -> None:
    assert runner.run(python("slow", "import time; time.sleep(60)"), 0.5).status == "late"


def test_a_stage_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = (
        python("bad", "print('why'); raise SystemExit(3)"),
        python("waits", "", needs=(ORT,)),
        Stage("two", "", 60, (("-c", "raise SystemExit(1)"), ("-c", "open('x', 'w')"))),
        python("good", "import sys; open(sys.argv[1], 'w').write('{\"a\": 1}')"),
    )
    made = (*made[:3], replace(made[3], commands=((*made[3].commands[0], "{out}/good.json"),)))
    monkeypatch.setattr(run_stages, "STAGES", made)
    monkeypatch.setattr(run_stages, "BY_NAME", {stage.name: stage for stage in made})
    folders = ["--kit", str(tmp_path / "kit"), "--out", str(tmp_path / "out")]
    assert run_stages.main(folders) == 1
    assert capsys.readouterr().err.splitlines() == ["bad: failed", "waits: skipped", "two: failed"]
    found = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    ended = {name: (it["status"], it["exit_code"]) for name, it in found["stages"].items()}
    assert ended == {
        "bad": ("failed", 3),
        "waits": ("skipped", None),
        "two": ("failed", 1),
        "good": ("done", 0),
    }
    assert found["stages"]["bad"]["message"] == "why"
    assert found["stages"]["waits"]["message"] == "ort has not been unpacked"
    assert found["reports"] == {"good": {"a": 1}}
    assert not (ROOT / "x").exists()
    # A second call adds to what the first one found.
    assert run_stages.main([*folders, "good"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))["stages"].keys() == (
        found["stages"].keys()
    )
    assert (tmp_path / "out" / "results.tgz").stat().st_size
    assert run_stages.main([*folders, "bad", "good", "--within", "0"]) == 1
    assert "no time is left" in capsys.readouterr().out


def test_links_that_a_transfer_lost_are_named(tmp_path: Path) -> None:
    for name in ("train", "export", "engines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "dsd_trt").mkdir()
    (tmp_path / "dsd_trt" / "train").symlink_to("../train")
    (tmp_path / "dsd_trt" / "export").write_text("../export")  # where links become files
    commands = run_stages.lost_links(tmp_path)
    assert [command.split()[-1] for command in commands] == ["dsd_trt/export", "dsd_trt/engines"]
    for command in commands:
        subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    assert run_stages.lost_links(tmp_path) == run_stages.lost_links(ROOT) == []


def test_a_stage_waits_for_the_one_in_the_background(runner: Runner, tmp_path: Path) -> None:
    def end(status: str) -> None:
        (runner.results / "export.log").touch()
        ended = json.dumps({"stage": "export", "status": status, "seconds": 1.0})
        (runner.kit / "export.json").write_text(ended)

    stage = python("after", "print('ran')", after="export")
    assert runner.run(stage, 60).message == "export has not been started"
    (runner.results / "export.log").touch()
    late = runner.run(stage, 0.3)
    assert (late.status, late.message.split(" after ")[0]) == ("skipped", "export has not ended")
    end("failed")
    assert runner.run(stage, 60).message == "export failed: see export.log"
    end("done")
    assert runner.run(stage, 60).message == "ran"


def test_a_background_stage_outlasts_its_call(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.nice", lambda by: None)
    runner.background(python("export", "raise SystemExit(2)"))
    ended = Result(**json.loads((runner.kit / "export.json").read_text("utf-8")))
    assert (ended.stage, ended.status, ended.exit_code) == ("export", "failed", 2)


def test_packages_of_the_kit_come_first_and_in_order(runner: Runner) -> None:
    for name in (ORT, SITE):
        (runner.kit / name).mkdir()
        (runner.kit / name / "which_is_found.py").write_text(f"name = {name!r}")
    (runner.kit / SITE / "json.py").write_text("raise ImportError")
    code = "import which_is_found, dsd_trt; print(which_is_found.name, dsd_trt.__file__)"
    found = runner.run(python("order", code, first=(ORT, SITE)), 60)
    assert found.message == f"ort {ROOT / 'dsd_trt' / '__init__.py'}"


@pytest.mark.parametrize(
    ("status", "message", "gets_there"),
    [
        ("failed", "Error: no CUDA device: cudaErrorInsufficientDriver. Install NVIDIA's", True),
        ("failed", "AssertionError: these tests need a GPU, and a PyTorch built for it", True),
        ("failed", "NVIDIA's driver is not installed (libcuda.so.1 was not found)", True),
        ("failed", "NVIDIA's driver is not installed; onnxruntime 1.30 has no CUDA", False),
        (
            "failed",
            "NVIDIA's driver is not installed; libcudnn.so.9 of CUDA 13 is not found, which",
            False,
        ),
        ("failed", "ModuleNotFoundError: No module named 'diffusers'", False),
        ("failed", "Error: No such option: --model", False),
        ("late", "no CUDA device", False),
        ("skipped", "ort has not been unpacked", False),
        ("done", "", False),
    ],
)
def test_a_dry_run_expects_the_missing_driver_and_nothing_else(
    status: str, message: str, gets_there: bool
) -> None:
    stage = BY_NAME["check-demonstration"]
    assert (verdict(stage, Result(stage.name, status, 1.0, 4), message) is None) == gets_there


def test_a_dry_run_gives_a_slow_machine_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, tuple[int, float]] = {}

    def run(runner: Runner, stage: Stage, left: float) -> Result:
        given[stage.name] = stage.limit, left
        return Result(stage.name, "done", 0.0)

    monkeypatch.setattr(Runner, "run", run)
    folders = ["--kit", str(tmp_path / "kit"), "--out", str(tmp_path / "out")]
    assert run_stages.main([*folders, "facts"]) == 0
    limit, left = given["facts"]
    assert (limit, round(left)) == (BY_NAME["facts"].limit, run_stages.WITHIN)
    run_stages.main([*folders, "facts", "--dry-run"])
    assert given["facts"][0] == run_stages.SLOWER * limit
    assert given["facts"][1] == pytest.approx(run_stages.SLOWER * left, rel=0.01)


def test_tensorrt_rtx_is_asked_for_the_gpu_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the two functions that would refuse it, with a stand-in that lists Ampere alone."""
    members = {"SM80": "ampere", "CURRENT": "this one"}
    listed = SimpleNamespace(__members__=members, CURRENT="this one")
    library = SimpleNamespace(__name__="tensorrt_rtx", __version__="0", ComputeCapability=listed)
    asked: list[tuple[str, int]] = []
    config = SimpleNamespace(set_compute_capability=lambda which, at: asked.append((which, at)))
    monkeypatch.setattr(runner_module, "load_library", lambda name: library)
    monkeypatch.setattr(runner_module, "compute_capability", lambda device=0: "9.0")
    for module in (runner_module, compiling):  # put back afterwards
        monkeypatch.setattr(module, "rtx_capabilities", runner_module.rtx_capabilities)
    with pytest.raises(EngineError, match=r"this one has 9\.0"):
        runner_module.require("tensorrt-rtx")
    try_rtx.allow("9.0")
    assert runner_module.require("tensorrt-rtx") == (library, "9.0")
    compiling._set_capabilities(library, config, ("9.0",))
    assert asked == [("this one", 0)]


@pytest.mark.slow  # exports
def test_a_bundle_without_the_comparison_has_all_that_gpu_check_asks_for(tmp_path: Path) -> None:
    """Its self-check holds PyTorch's results, so the graphs are still held against something."""
    bundle, command = tmp_path / "bundle", (sys.executable, TOOLS / "export_uncompared.py")
    model = write_checkpoint(tmp_path / "model")
    done = subprocess.run(
        [*command, model, bundle], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Comparing" not in done.stderr
    assert "Tracing matrix_scorer" in done.stderr
    manifest = read_bundle(bundle).manifest
    assert manifest.precision == "fp16"
    assert manifest.cuda_form is not None
    assert manifest.cuda_form.keys() >= {"pair_scorer", "matrix_scorer"}
    assert manifest.parity["runs"] == []
    assert "not compared with PyTorch" in (bundle / "MODEL_CARD.md").read_text("utf-8")
    for mode in ("pair", "matrix"):
        with Scorer.load(bundle, "onnxruntime", mode=mode) as scorer:  # checks itself
            assert np.isfinite(scorer.score([np.zeros((32, 32, 3), np.uint8)], ["a star"]).scores)
    failed = subprocess.run(
        [*command, tmp_path / "no", bundle], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert str(tmp_path / "no") in failed.stderr


def test_facts_name_what_packages_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version, requires in (
        (
            "one",
            "1.0",
            ("two", "three>=2; python_version > '3'", "four; extra == 'more'", "absent"),
        ),
        ("two", "2.0", ("one", "six<3")),
        ("three", "1.5", ()),
        ("six", "3.1", ()),
    ):
        entry = tmp_path / f"{name}_made_up-{version}.dist-info"
        entry.mkdir()
        lines = [f"Name: {name}-made-up", f"Version: {version}"]
        for it in requires:
            named = re.match(r"\w+", it)
            assert named
            lines.append(f"Requires-Dist: {named[0]}-made-up{it[named.end() :]}")
        (entry / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert facts.missing(["one-made-up"]) == [
        "absent-made-up",
        "six-made-up<3",
        "three-made-up>=2",
    ]
    assert facts.missing(facts.requirements()) == []
    assert {"torch", "diffusers", "onnx", "numpy"} <= set(facts.requirements())


# Report


@pytest.fixture
def results() -> dict[str, object]:
    facts = {
        "when": "2026-12-01T10:00+00:00",
        "python": "3.12.3",
        "nvidia_smi": {"name": "Card 1", "driver_version": "580.1"},
        "versions": {"torch": "2.11.0", "diffusers": "0.42.1", "ijson": None},
        "missing": ["ijson"],
        "gpu": {
            "name": "Card 1",
            "compute_capability": "9.0",
            "cuda_of_torch": "13.0",
            "memory_gib": 139.8,
            "multiprocessors": 132,
            "copy_tb_s": 4.291,
            "fp16_product_tflops": 788.4,
        },
    }
    stages = {
        "facts": {"stage": "facts", "status": "done", "seconds": 9.6, "message": "{}"},
        "rtx": {"stage": "rtx", "status": "failed", "seconds": 3.0, "message": "a\nb | `c`\n"},
    }
    rtx = {"version": "1.6.1", "compute_capability": "9.0", "listed": False, "error": "refused"}
    return {
        "when": "2026-12-01T10:09+00:00",
        "stages": stages,
        "reports": {"facts": facts, "rtx": rtx},
        "tables": {
            "check-demonstration": "# GPU check\n\nshapes\n\n| a | b |\n|---|---:|\n| c | 1 |\n"
        },
    }


def test_the_report_states_machine_stages_and_checks(results: dict[str, object]) -> None:
    lines = report.report(results).splitlines()
    assert lines[2] == (
        "Card 1, compute capability 9.0, driver 580.1, CUDA 13.0, Python 3.12.3, torch 2.11.0, "
        "diffusers 0.42.1; 2026-12-01T10:00+00:00."
    )
    for line in (
        "Packages that were missing: ijson.",
        "| copy on the GPU, read and written | 4.29 TB/s |",
        "| one large FP16 product | 788 TFLOP/s |",
        "| facts | done | 10 |  |",
        "| rtx | failed | 3 | `b / 'c'` |",
        "**TensorRT-RTX, rtx.** Version 1.6.1 on compute capability 9.0, which it does not list: "
        "no plan was built: refused",
        "### check-demonstration",
        "| c | 1 |",
    ):
        assert line in lines
    assert not any(line.startswith("# ") for line in lines)


ASKED = {"compute_capability": "9.0", "listed": False}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({**ASKED, "build": "1", "opened": False, "messages": ["E"]}, "could not be opened: E"),
        ({**ASKED, "build": "1", "opened": True, "error": "E"}, "its check failed: E"),
        ({**ASKED, "build": "1", "opened": True, "checked": True}, "built, opened and checked"),
        ({**ASKED, "error": "E"}, "which it does not list: no plan was built: E"),
        ({"version": "1", "error": "no CUDA device"}, "Version 1 was not asked: no CUDA device"),
    ],
)
def test_the_report_states_how_far_tensorrt_rtx_got(found: dict[str, object], said: str) -> None:
    assert said in report.rtx(found)


def test_an_attempt_that_ends_early_says_why_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last line is what the report of a run shows."""

    def missing(name: str) -> NoReturn:
        raise EngineError("no such library")

    monkeypatch.setattr(runner_module, "load_library", missing)
    assert try_rtx.main([str(EMBEDDED), "--out", str(tmp_path / "rtx")]) == 4
    assert capsys.readouterr().err == "no such library\n"
    assert json.loads((tmp_path / "rtx.json").read_text()) == {"error": "no such library"}


def test_a_run_that_reached_nothing_has_a_report() -> None:
    assert report.report({}).startswith("## Results\n\nno GPU; ?.\n")
    cut_short = {"reports": {"facts": None}, "stages": {}, "tables": {}}
    assert "| stage | ended | seconds | last line |" in report.report(cut_short)
