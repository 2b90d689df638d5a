"""-q, -v and the package's log: what goes to stderr, and what a Python program sees."""

from __future__ import annotations

import ast
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from in_process import Run
from PIL import Image

from dsd_trt import Bundle, Scorer
from dsd_trt.commands.main import SUBCOMMANDS, cli

pytest_plugins = ("in_process",)

ROOT = Path(__file__).parents[2]
FOLDERS = ("dsd_trt", "train", "export", "engines")


@pytest.fixture
def inputs(tmp_path: Path) -> tuple[str, str]:
    """A folder of three images and a file of two texts."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        pixels = np.full((8, 8, 3), 60 * number, np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (tmp_path / "texts.txt").write_text("a red circle\na blue dog\n")
    return "photos", "texts.txt"


def commands() -> list[tuple[str, click.Command]]:
    """Every command that performs work."""
    found = []
    for name in SUBCOMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {name: command}
        found += list(inner.items())
    return found


def test_every_command_has_both_options() -> None:
    assert len(commands()) > len(SUBCOMMANDS)
    for name, command in [*commands(), ("dsd-trt", cli)]:
        options = [option for it in command.params for option in it.opts]
        for option in ("-q", "--quiet", "-v", "--verbose"):
            assert options.count(option) == 1, (name, option)


# Commands


def test_quiet_leaves_out_notes_and_nothing_of_the_result(
    dsd_trt: Callable[..., Run], inputs: tuple[str, str]
) -> None:
    plain = dsd_trt("score", *inputs, "-f", "csv")
    assert "engine: onnxruntime" in plain.err
    assert "scored 6 pairs" in plain.err
    quiet = dsd_trt("score", *inputs, "-f", "csv", "-q")
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out == plain.out != ""
    before = dsd_trt("-q", "score", *inputs, "-f", "csv")
    assert (before.err, before.out) == ("", plain.out)


def test_quiet_keeps_failures_warnings_and_errors(
    dsd_trt: Callable[..., Run], inputs: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    failed = dsd_trt("score", *inputs, "-q", "-f", "csv", "--levels", "0.2")
    assert failed.code == 3
    warning, heading, failure = failed.err.splitlines()
    assert warning.startswith("warning: no match probabilities at the noise levels 0.2")
    assert heading == "images that could not be scored: 1"
    assert "broken.png" in failure
    missing = dsd_trt("score", "nowhere", "texts.txt", "-q")
    assert missing.code == 2
    assert "nowhere" in missing.err


def test_verbose_says_what_is_done_on_stderr_alone(
    dsd_trt: Callable[..., Run], inputs: tuple[str, str], bundle: Bundle
) -> None:
    plain = dsd_trt("score", *inputs, "-f", "json")
    verbose = dsd_trt("score", *inputs, "-f", "json", "-v")
    assert verbose.out == plain.out
    assert len(json.loads(verbose.out)) == 6
    for said in (
        f"MB of the bundle {bundle.folder} in ",
        "engine onnxruntime, which was asked for",
        "batches of up to 32 images",
        "opened the pair_scorer on onnxruntime in ",
        "scored 3 images with up to 2 texts each, at 3 levels, in pair mode in ",
    ):
        assert said in verbose.err
        assert said not in plain.err
    assert all(line.startswith("[") for line in verbose.err.splitlines() if " s] " in line)
    assert set(plain.err.splitlines()[:1]) <= set(verbose.err.splitlines())


def test_verbose_tells_why_engines_are_passed_over(inputs: tuple[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dsd_trt", "score", *inputs, "-v", "-f", "csv"]
    # A cache of its own: in the session's, other tests may have left the compiled model.
    variables = os.environ | {"DSD_TRT_CACHE": str(tmp_path / "cache")}
    settings: dict[str, Any] = {"capture_output": True, "text": True, "cwd": tmp_path}
    run = subprocess.run(command, env=variables, check=True, **settings)
    (line,) = (it for it in run.stderr.splitlines() if "the fastest that works here" in it)
    assert "engine openvino" in line
    assert "passed over: tensorrt" in line
    assert " put into the cache" in run.stderr
    again = subprocess.run(command, env=variables, check=True, **settings)
    assert " from the cache" in again.stderr
    assert " put into the cache" not in again.stderr
    assert again.stdout == run.stdout


def test_quiet_and_verbose_contradict_each_other(
    dsd_trt: Callable[..., Run], inputs: tuple[str, str]
) -> None:
    for arguments in (("score", *inputs, "-q", "-v"), ("-q", "score", *inputs, "-v")):
        run = dsd_trt(*arguments)
        assert run.code == 2
        assert "-q and -v contradict each other" in run.err
        assert run.out == ""


def test_a_command_leaves_the_log_as_it_was(
    dsd_trt: Callable[..., Run], inputs: tuple[str, str]
) -> None:
    logger = logging.getLogger("dsd_trt")
    before = logger.level, list(logger.handlers)
    dsd_trt("score", *inputs, "-v")
    dsd_trt("score", "nowhere", "texts.txt", "-v")
    dsd_trt("score", *inputs, "-v", "--no-such-option")
    assert (logger.level, list(logger.handlers)) == before


def on_terminal(command: list[str], folder: Path) -> tuple[str, str]:
    """Standard output of a command, and what it shows on a terminal as stderr."""
    terminal, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=folder) as run:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:  # the other side is closed
            pass
        assert run.stdout is not None
        out = run.stdout.read()
    os.close(terminal)
    return out.decode(), shown.decode()


def test_on_a_terminal_quiet_shows_no_bar_and_warnings_are_above_the_bar(
    inputs: tuple[str, str], bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "texts.txt").write_text(f"a dog\n{'a dog ' * 80}\n")
    command = [sys.executable, "-m", "dsd_trt", "score", *inputs, "-f", "csv"]
    command += ["--bundle", str(bundle.folder), "--engine", "onnxruntime"]
    out, shown = on_terminal(command, tmp_path)
    assert "pairs/s" in shown
    assert out.count("\n") == 7  # a bar does not take what goes elsewhere
    assert "warning: text is too long, only its first 75 of 160 tokens count" in shown
    quiet_out, quiet = on_terminal([*command, "-q"], tmp_path)
    (line,) = quiet.splitlines()
    assert line.startswith("warning: text is too long")
    assert quiet_out == out


def test_commands_write_to_stderr_through_one_module() -> None:
    """So that -q knows of every line."""
    allowed = {"log.py", "console.py", "main.py"}
    writers = {"click.echo", "print", "Console", "console.print"}
    found = [
        f"{path}:{node.lineno}"
        for folder in FOLDERS
        for path in (ROOT / folder).glob("commands/*.py")
        if path.name not in allowed
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in writers
        and any(it.arg in ("err", "stderr") for it in node.keywords)
    ]
    assert found == []


# Python


def test_the_library_logs_under_one_name_and_never_prints() -> None:
    printing, naming = [], []
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                if name == "print":
                    printing.append(f"{path}:{node.lineno}")
                if name == "logging.getLogger":
                    naming.append(path.relative_to(ROOT).as_posix())
    assert printing == []
    # Another's loggers are hushed while it traces.
    assert set(naming) == {"dsd_trt/log.py", "export/trace.py"}
    unlike = [it for it in logging.root.manager.loggerDict if "dsd" in it]
    assert all(it.split(".")[0] == "dsd_trt" for it in unlike)
    assert any(isinstance(it, logging.NullHandler) for it in logging.getLogger("dsd_trt").handlers)


PROGRAM = """
import sys
{setup}
import numpy as np
from dsd_trt import Scorer

scorer = Scorer.load(sys.argv[1], "onnxruntime")
images = [np.zeros((8, 8, 3), np.uint8)]
scorer.score(images, ["a dog"]{levels})
scorer.score(images, ["a dog"]{levels})
"""


@pytest.mark.parametrize(
    ("setup", "levels", "said"),
    [
        ("", "", []),
        ("", ", levels=[0.2]", ["UserWarning: no match probabilities"]),
        ("import warnings; warnings.simplefilter('ignore')", ", levels=[0.2]", []),
        ("import logging; logging.getLogger('dsd_trt').propagate = False", ", levels=[0.2]", []),
        (
            "import logging; logging.basicConfig(format='%(name)s %(message)s')",
            ", levels=[0.2]",
            ["dsd_trt.scorer no match probabilities"],
        ),
        (
            "import logging; logging.basicConfig(level='INFO', format='%(name)s %(message)s')",
            "",
            ["dsd_trt.engine.choice engine onnxruntime", "dsd_trt.text_cache text cache: 1 of 1"],
        ),
    ],
    ids=["nothing", "a warning", "ignored", "turned off", "logged", "all"],
)
def test_a_program_sees_warnings_and_else_what_it_asks_for(
    setup: str, levels: str, said: list[str], bundle: Bundle, tmp_path: Path
) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(setup=setup, levels=levels))
    command = [sys.executable, str(script), str(bundle.folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    for it in said:
        assert run.stderr.count(it) == 1, run.stderr
    if not said:
        assert run.stderr == ""
    if "UserWarning" in "".join(said):  # it points at the line of the user
        call = f'scorer.score(images, ["a dog"]{levels})'
        line = 1 + script.read_text().splitlines().index(call)
        assert f"{script}:{line}:" in run.stderr
        assert call in run.stderr


def test_a_warning_can_be_made_an_error(bundle: Bundle) -> None:
    program = PROGRAM.format(setup="", levels=", levels=[0.2]")
    command = [sys.executable, "-W", "error::UserWarning", "-c", program, str(bundle.folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("UserWarning: no match probabilities")


def test_a_call_logs_a_handful_of_records_and_not_one_per_image(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Scorer(bundle, "onnxruntime")
    images = [np.full((8, 8, 3), number, np.uint8) for number in range(100)]
    with caplog.at_level(logging.INFO, "dsd_trt"):
        scorer.score(images, ["a dog", "a red circle"])
    assert 1 <= len(caplog.records) <= 5
