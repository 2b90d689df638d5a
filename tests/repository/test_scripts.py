"""Every script answers wrong arguments with its usage or a reason, before it changes anything."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("tools", "tools/gpu_offline", "benchmarks", "examples", "tests/support", "engines/cpp")
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)
COMMANDS = [
    *(f"{script} {option}" for script in SCRIPTS for option in ("--help", "--no-such-option")),
    "tools/embed_model.py",
    "tools/embed_model.py nowhere",
    "tools/embed_model.py .",
    "tools/audit.py",
    "tools/check_types.py --pyright nowhere",
    "tools/make_score_matrix.py nowhere",
    "tools/run_notebook.py nowhere.ipynb",
    "tools/make_reliability.py --triton nowhere/python",
    "tools/gpu_offline/report.py nowhere.json",
    "tools/gpu_offline/report.py docs",
    "tools/gpu_offline/pack.py --capability nine",
    "tools/gpu_offline/pack.py --transfer 1",
    "tools/gpu_offline/run_stages.py facts --kit /dev/null --out /dev/null",
    "tools/gpu_offline/prune.py nowhere.so 9.0",
    "tools/gpu_offline/unpack.py nowhere",
    "tools/gpu_offline/run_stages.py no-such-stage",
    "tools/gpu_offline/try_rtx.py nowhere --out nowhere/result",
    "tools/gpu_offline/facts.py",
    "tools/check_release.py nowhere",
    "tools/try_wheel.py nowhere",
    "benchmarks/against.py no-such-commit",
    "benchmarks/against.py --no-such-commit",
    "benchmarks/measure_commands.py --only nothing",
    "benchmarks/measure_explanations.py --bundle nowhere",
    "benchmarks/measure_matching.py nowhere",
    "benchmarks/measure_memory.py nowhere",
    "benchmarks/measure_openvino.py --bundle nowhere",
    "benchmarks/measure_pruning.py nowhere",
    "benchmarks/workload.py",
    "benchmarks/workload.py start",
    "benchmarks/workload.py race openvino folder",
    "examples/score_by_hand.py",
    "examples/score_by_hand.py nowhere.png text",
    "examples/triton_server.py",
    "examples/triton_server.py nowhere",
    "tests/support/held_out.py --bundle nowhere",
    "tests/support/leaks.py bundle",
    "tests/support/leaks.py bundle openvino pair many",
    "tests/support/own_network.py",
    "tests/support/small_disk.py nowhere {}",
    "engines/cpp/fetch.py",
    "engines/cpp/unicode_tables.py",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_arguments_are_answered_and_change_nothing(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, which imports PyTorch once; an exception other than SystemExit fails."""
    script, *arguments = command.split()
    before = _sizes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    said = "".join(capsys.readouterr())
    said += ended.value.code if isinstance(ended.value.code, str) else ""
    assert said.strip()
    if arguments != ["--help"]:
        assert ended.value.code not in (0, None)
    assert not list(tmp_path.iterdir())
    assert _sizes() == before


def _sizes() -> dict[Path, int]:
    """Size of each file that a script may write: embedded data, pages and example files."""
    return {
        path: path.stat().st_size
        for folder in ("dsd_trt/data", "docs", "examples")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.skipif(importlib.util.find_spec("pip_audit") is not None, reason="it is installed")
def test_an_audit_without_its_tool_says_how_to_get_it() -> None:
    command = [sys.executable, "tools/audit.py", "constraints.txt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "make audit" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_clean_removes_libraries_wherever_they_were_compiled(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    library = "_pooled_attention.cpython-311-x86_64-linux-gnu.so"
    for folder in ("dsd_trt/engine", "dsd_trt/engine/openvino"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / library).touch()
        (tmp_path / folder / "kept.py").touch()
    (tmp_path / ".venv" / "lib").mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["Makefile", "kept.py", "kept.py"]
