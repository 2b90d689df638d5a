"""docs/triton.md, followed to the letter: its commands and its client are run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "triton.md").read_text("utf-8")
ENVIRONMENT = ".venv-triton/bin/"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def run(command: list[str] | str, folder: Path) -> str:
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": here},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What of the tree the guide names."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("dsd_trt/data/shapes-bundle", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def served(checkout: Path) -> Iterator[Server]:
    """The first block; its last line is what `Server` does, on ports that are free."""
    install, write, start = blocks("sh")[0].splitlines()
    assert install == "make .venv-triton/installed"  # made the environment that this runs in
    program, *arguments = shlex.split(write.removeprefix(ENVIRONMENT))
    run([str(Path(sys.executable).with_name(program)), *arguments], checkout)
    assert start == f"{ENVIRONMENT}python examples/triton_server.py models"
    server = Server(
        checkout / "models", checkout, ["--model-control-mode=explicit", "--load-model=*"]
    )
    yield server
    server.stop()


def client(served: Server) -> str:
    (code,) = blocks("python")
    assert "localhost:8000" in code
    return code.replace("localhost:8000", served.http)


def test_the_client_prints_what_it_says(served: Server, checkout: Path) -> None:
    assert run([sys.executable, "-c", client(served)], checkout) == blocks("text")[0]
    metrics = blocks("text")[1].splitlines()
    for line in metrics:
        found = re.fullmatch(r"(\w+)\{(.*)\} (\d+)", line)
        assert found is not None, line
        name, labels, value = found.groups()
        assert served.metric(name, **dict(re.findall(r'(\w+)="(\w+)"', labels))) == int(value)


def test_curl_gets_the_answer_it_says(served: Server, checkout: Path) -> None:
    """In a plain shell, as Debian's, not bash."""
    commands = [it for it in blocks("sh") if "Inference-Header-Content-Length" in it]
    for command, expected in zip(commands, blocks("json"), strict=False):
        answer = json.loads(run(command.replace("localhost:8000", served.http), checkout))
        for output in answer["outputs"]:
            if output["datatype"] == "FP32":
                output["data"] = [abs(round(it, 2)) for it in output["data"]]
        assert answer == json.loads(expected)
    assert len(commands) == 2
    section = TEXT.partition("## First scores with curl")[2].partition("\n## ")[0]
    for line in re.findall(r"`(curl [^`]+)`", section):
        run(line.replace("localhost:8000", served.http).replace("curl", "curl -sSf"), checkout)


def test_a_model_is_replaced_as_it_says(served: Server, checkout: Path) -> None:
    (commands,) = (it for it in blocks("sh") if "NEW-BUNDLE" in it)
    assert "NEW-BUNDLE new-models" in commands
    assert "localhost:8000" in commands
    commands = commands.replace(
        "NEW-BUNDLE new-models", "dsd_trt/data/shapes-bundle new-models --engine python"
    )
    run(
        "set -e\n" + commands.replace("localhost:8000", served.http).replace("curl", "curl -sSf"),
        checkout,
    )
    assert run([sys.executable, "-c", client(served)], checkout) == blocks("text")[0]
    assert served.metric("dsd_pairs_scored_total", version="2") == 4


def test_parameters_are_those_of_the_configuration(served: Server, checkout: Path) -> None:
    configured = set[str]()
    for model in ("dsd_score", "dsd_rank_texts"):
        config = (checkout / "models" / model / "config.pbtxt").read_text("utf-8")
        configured.update(re.findall(r'parameters \{ key: "(\w+)"', config))
    pattern = r"^\| (`(?:max|matrix)_.*?|`text_cache_mb`|`self_check`) \|"
    rows = re.findall(pattern, TEXT, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == configured
