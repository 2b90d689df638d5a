"""Completion in shells, by click's protocol and in bash itself: fast, and without an engine."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dsd_trt.commands.main import SUBCOMMANDS
from dsd_trt.engine import BACKENDS

SCRIPT = Path(sys.executable).with_name("dsd-trt")
MOST = 4  # times the processor time of importing click, which parses the line
# Engines, training, and what takes its time to import.
SLOW = {
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "torch",
    "numpy",
    "PIL",
    "tokenizers",
}
SHELLS = ("bash", "zsh", "fish")


def complete(shell: str, line: str, *, also: str = "") -> str:
    """The answer to a line, whose last word is to be completed.

    Args:
        shell: name of the shell.
        line: the line; it ends with a space if its last word is empty.
        also: Python to run when the answer is there.
    """
    words = line.split(" ")
    told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    if shell == "fish":
        told = {"COMP_WORDS": line, "COMP_CWORD": words[-1]}
    code = (
        f"import runpy, sys\ntry: runpy.run_module('dsd_trt', run_name='__main__')\nfinally: {also}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code if also else "from dsd_trt.__main__ import run; run()"],
        env={**os.environ, "_DSD_TRT_COMPLETE": f"{shell}_complete", **told},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout


def names(shell: str, answer: str) -> list[str]:
    """The offered words of an answer."""
    lines = answer.splitlines()
    if shell == "zsh":  # kind, word and help, each on a line
        return lines[1::3]
    return [line.partition(",")[2].partition("\t")[0] for line in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_values_are_offered(shell: str) -> None:
    assert names(shell, complete(shell, "dsd-trt ")) == list(SUBCOMMANDS)
    assert names(shell, complete(shell, "dsd-trt ca")) == ["calibrate"]
    assert "--bundle" in names(shell, complete(shell, "dsd-trt score --b"))
    engines = names(shell, complete(shell, "dsd-trt score --engine "))
    assert engines == ["auto", *BACKENDS]
    assert names(shell, complete(shell, "dsd-trt export --precision fp1")) == ["fp16"]
    assert names(shell, complete(shell, "dsd-trt pretrain ")) == ["shapes", "tiny-clip"]


@pytest.mark.parametrize(
    "line", ["score ", "score --bundle ", "score photos/ te", "export --out ", "inspect ./"]
)
def test_names_of_files_are_left_to_the_shell(line: str) -> None:
    answer = complete("bash", f"dsd-trt {line}")
    assert answer.splitlines() == [f"file,{line.rpartition(' ')[2]}"]


def test_help_is_shown_where_a_shell_shows_it() -> None:
    answer = complete("zsh", "dsd-trt sig").splitlines()
    assert answer == ["plain", "sign", SUBCOMMANDS["sign"].summary]


LINES = ["dsd-trt ", "dsd-trt score --engine ", "dsd-trt train --da", "dsd-trt export --pre"]


@pytest.mark.parametrize("line", LINES)
def test_nothing_slow_is_imported(line: str) -> None:
    loaded_modules = "sorted(it for it, module in sys.modules.items() if module)"
    also = f"print(__import__('json').dumps({loaded_modules}))"
    answer = complete("bash", line, also=also)
    loaded = {it.partition(".")[0] for it in json.loads(answer.splitlines()[-1])}
    assert not loaded & SLOW


@pytest.mark.parametrize("line", LINES)
def test_the_answer_is_fast(line: str) -> None:
    """Against the time of click alone, on any processor; the best of three, taken in turn."""
    taken, by_click = [], []
    for _ in range(3):
        by_click.append(processor_time(import_click))
        taken.append(processor_time(lambda: complete("bash", line)))
    assert min(taken) < MOST * min(by_click)


def import_click() -> None:
    subprocess.run([sys.executable, "-c", "import click"], check=True)


def processor_time(act: Callable[[], object]) -> float:
    """Seconds of processor time that the child processes of a function take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path) -> None:
    """With the line that docs/install.md names, as bash calls the function on Tab."""
    (tmp_path / "texts.txt").touch()
    session = (
        'eval "$(_DSD_TRT_COMPLETE=bash_source dsd-trt)"\n'
        "complete -p dsd-trt\n"
        "COMP_WORDS=(dsd-trt score --form); COMP_CWORD=2; _dsd_trt_completion dsd-trt\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", session],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    registered, offered = done.stdout.splitlines()
    assert registered == "complete -o nosort -F _dsd_trt_completion dsd-trt"
    assert offered == "--format"


@pytest.mark.parametrize("shell", SHELLS)
def test_the_guide_has_the_line_of_every_shell(shell: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text("utf-8")
    assert f"_DSD_TRT_COMPLETE={shell}_source dsd-trt" in page


@pytest.mark.parametrize("shell", SHELLS)
def test_the_line_of_a_shell_yields_its_function(shell: str) -> None:
    """The function is printed without that shell."""
    done = subprocess.run(
        [sys.executable, "-m", "dsd_trt"],
        env={**os.environ, "_DSD_TRT_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    assert "_dsd_trt_completion" in done.stdout
