"""In a clone, with the package installed as users do: not editable, and not from the clone's files.

The clone has a folder `dsd_trt`, which Python finds first where it looks in the current folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKS = ("engines", "export", "train")
README = (ROOT / "README.md").read_text("utf-8")
Run = Callable[[str], str]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone that was checked out with its links as text files, as on Windows."""
    folder = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("build", "__pycache__", "*.so", "*.egg-info")
    for name in ("dsd_trt", "examples", *LINKS):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in LINKS:
        link = folder / "dsd_trt" / name
        link.unlink()
        link.write_text(f"../{name}")
    return folder


@pytest.fixture(scope="module")
def environment(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the package from that clone, and with the packages of the one here."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    pip += ["--no-deps", "--no-build-isolation"]
    (site,) = folder.glob("lib/python*/site-packages")
    shared = [it for it in sys.path if it.endswith("site-packages")]
    (site / "shared.pth").write_text("\n".join(shared) + "\n")
    fast = {**os.environ, "CC": "false", "CXX": "false"}  # without the kernel
    done = subprocess.run([*pip, str(clone)], env=fast, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(clone: Path, environment: Path) -> Run:
    """Run a line of shell in the clone, with the environment activated; it has to succeed."""

    def run_line(line: str) -> str:
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=clone,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout

    return run_line


def test_the_environment_has_its_own_package(run: Run, environment: Path) -> None:
    where = 'python -P -c "import dsd_trt; print(dsd_trt.__file__)"'
    assert Path(run(where).strip()).is_relative_to(environment)


@pytest.mark.parametrize("program", ["dsd-trt", "python -m dsd_trt"])
def test_both_ways_to_start_it_score(program: str, run: Run) -> None:
    image, text = "examples/images/lone-star.png", "a large yellow star"
    assert text in run(f"echo {text!r} | {program} score {image} - -f csv")


@pytest.mark.parametrize("command", ["train", "export", "triton", "bench"])
def test_every_folder_is_found_beside_the_clones_files(command: str, run: Run) -> None:
    assert f"dsd-trt {command}" in run(f"python -m dsd_trt {command} --help")


def test_a_hint_can_be_followed(run: Run, clone: Path) -> None:
    code = "from dsd_trt.installation import install_command; print(install_command('sign'))"
    hint = run(f'python -P -c "{code}"').strip()
    assert shlex.split(hint)[-1] == f"{clone}[sign]"
    run(f"{hint} --dry-run --no-deps --no-index --no-build-isolation --quiet")


@pytest.mark.slow
def test_bench_runs_in_the_clone(run: Run) -> None:
    few = "bench --contenders openvino --rounds 1 --images 1 --texts 1"
    for program in ("dsd-trt", "python -m dsd_trt"):
        assert "| dsd-trt on OpenVINO |" in run(f"{program} {few}")


@pytest.mark.slow
def test_accelerate_starts_it_in_the_clone(run: Run) -> None:
    options = "--num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --cpu"
    launched = f"python -m accelerate.commands.launch {options} -m dsd_trt train --help"
    assert "dsd-trt train" in run(launched)


@pytest.mark.slow
def test_the_readmes_commands_run(run: Run) -> None:
    """In their order, with fewer questions."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    commands = [line.strip() for line in lines if line.startswith("dsd-trt ")]
    assert len(commands) >= 5
    for command in commands:
        less = re.sub(r"--limit \d+", "--limit 12", command)
        run(f"{less} --verify quick" if command.startswith("dsd-trt export") else less)
