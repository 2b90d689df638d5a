"""What README and manual say is so: commands, exit codes, Python, figures, names of functions."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from bundles import make_bundle

import dsd_trt
from dsd_trt import Bundle, Scorer
from dsd_trt.commands.main import cli
from dsd_trt.engine import ON_GPU
from dsd_trt.engine.driver import why_no_driver
from dsd_trt.train.shapes import scene

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_commands

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.name: path.read_text("utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
MANUAL = {"README.md": README} | {f"docs/{name}": text for name, text in PAGES.items()}
# Their own tests run their blocks from the first line to the last.
GUIDES = {"docs/cpp.md", "docs/filter.md", "docs/rerank.md", "docs/triton.md"}


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


SHELL = list(
    dict.fromkeys(
        line.partition(" #")[0].strip()
        for name, text in MANUAL.items()
        for block in ([] if name in GUIDES else _blocks("sh", text))
        for line in block.replace("\\\n", " ").splitlines()
    )
)
# A signature needs a key: tests/runtime/test_signature.py scores with one.
SCORE = [line for line in SHELL if "dsd-trt score" in line and "--require-signature" not in line]
INDEX = [line for line in SHELL if line.startswith("dsd-trt index")]
OTHERS = [
    line
    for line in SHELL
    if "dsd-trt" in line and line not in SCORE and not line.startswith("pip ")
]


def _commands() -> list[click.Command]:
    return [command for _, command in make_commands.commands(cli, "dsd-trt")]


def _options(command: click.Command) -> set[str]:
    shown = (p for p in command.params if not getattr(p, "hidden", False))
    return {option for parameter in shown for option in parameter.opts if "-" in option}


def test_there_is_something_to_check() -> None:
    assert len(SCORE) > 10
    assert len(OTHERS) > 10
    assert any(line.split()[-1] in score for line in INDEX for score in SCORE)
    assert len(_blocks("python")) == 1


@pytest.fixture(scope="module")
def both_modes(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundles") / "both", matrix=True)


@pytest.mark.parametrize("line", SCORE)
def test_score_commands_run(line: str, both_modes: Bundle, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    line = " && ".join([*(it for it in INDEX if it.split()[-1] in line), line])
    # Which bundle scores is not the point; the embedded one has its own tests.
    line = re.sub(r"--bundle \S+", "", line)
    given = rf"\g<0> --bundle {shlex.quote(str(both_modes.folder))}"
    line = re.sub(r"dsd-trt (score|index)", given, line)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if any(f"--engine {name}" in line for name in ON_GPU) and why_no_driver():
        assert done.returncode == 4, done.stderr
        return
    assert done.returncode == 0, done.stderr
    written = re.search(r" -o (\S+)", line)
    assert (tmp_path / written[1]).read_bytes() if written else done.stdout


@pytest.mark.parametrize("line", OTHERS)
def test_other_commands_are_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for folder in (
        *("run/model/adapter", "adapter", "matrix-adapter", "my-scorer"),
        "benchmarks/tiny-clip",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("scorer.key", "scorer.pub", "labelled.csv", "held-out.csv"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    assert program == "dsd-trt"
    command: click.Command = cli
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        found = command.get_command(click.Context(command), name)
        assert found, f"no command {name!r}"
        command = found
    command.make_context(command.name, arguments)  # parses and checks, runs nothing


def test_commands_md_is_what_the_commands_say() -> None:
    written = (ROOT / "docs" / "commands.md").read_text("utf-8")
    # In a process of its own: commands that were called remember how they name their help.
    code = "import make_commands; print(make_commands.render(), end='')"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tools", capture_output=True, text=True, check=True
    )
    assert written == run.stdout, "run: python tools/make_commands.py"
    for command in _commands():
        for option in _options(command):
            assert option in written


def test_the_words_of_the_demonstration_are_those_of_its_generator() -> None:
    lists = (scene.SHAPES, scene.SIZES, scene.COLOURS, scene.RELATIONS, scene.SIDES)
    shapes, sizes, colours, relations, sides = (
        f"{', '.join(words[:-1])} and {words[-1]}" for words in lists
    )
    told = (
        f"The demonstration knows {shapes}, {sizes}, in {colours}. It knows {relations}, and the "
        f"{sides} of the image."
    )
    assert told in " ".join(README.split())


def test_exit_codes_are_those_the_command_line_gives() -> None:
    table = dict(re.findall(r"^\| (\d+) \| (.*?)(?=[:;] | \|)", PAGES["score.md"], re.MULTILINE))
    help_text = " ".join((cli.help or "").split())
    listed = help_text.partition("Exit codes: ")[2].rstrip(".")
    assert table == dict(code.split(" ", 1) for code in listed.split(", "))
    raised = {
        str(error.exit_code)
        for error in vars(dsd_trt.errors).values()
        if isinstance(error, type) and issubclass(error, dsd_trt.DsdError)
    }
    assert raised <= table.keys()


def test_python_runs(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = _blocks("python")
    load = Scorer.load
    monkeypatch.setattr(Scorer, "load", lambda: load(bundle.folder))
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["matrix"].scores.shape == (1, 2)
    assert names["matrix"].errors == ()
    assert capsys.readouterr().out


def test_the_commands_that_others_call_are_in_the_readme() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "bench", "lint", "torture"} <= named
    assert len(re.findall(r"`python (\S+\.py)`", README)) > 1


def test_throughput_is_that_of_the_page_on_speed() -> None:
    pair_mode = PAGES["speed.md"].partition("\n## Matrix mode")[0]
    demonstration, size = (
        dict(re.findall(r"^\| (.*?) \| ([\d.]+) \|.*$", table, re.MULTILINE))
        for table in pair_mode.split("\n| 1 image x 2 texts")
    )
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    assert len(rows) == 4
    for name, first, second in rows:
        assert (first, second) == (demonstration[name], size[name])
    about = " ".join(README.split()).partition("Intel Xeon, ")[2].partition(";")[0]
    versions = [it for it in about.split(", ") if any(map(str.isdigit, it))]
    assert len(versions) == 5
    for version in versions:
        assert version.startswith("dsd-trt") or version in " ".join(pair_mode.split())


def test_extras_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        extra.strip()
        for text in MANUAL.values()
        for group in re.findall(r"pip install (?:-c \S+ )?'[^'\[]*\[(.*?)\]'", text)
        for extra in group.split(",")
    }
    # Of those, "docs" and "test" are for the work on a clone.
    assert named == project["optional-dependencies"].keys() - {"docs", "test"}


def test_links_to_code_name_what_is_there() -> None:
    seen = 0
    for page, text in MANUAL.items():
        for name, target in re.findall(r"\[`(\w+)`\]\((\S+\.py)\)", text):
            path = ROOT / Path(page).parent / target
            defined = {
                node.name
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            }
            assert name in defined, f"{name} is not in {target}"
            seen += 1
    assert seen > 10


def test_functions_state_the_equation_they_are_listed_under() -> None:
    rows = re.findall(r"^\|[^|]*\| (Eq\. \d) \|(.*)\|$", README, re.MULTILINE)
    assert {equation for equation, _ in rows} >= {"Eq. 1", "Eq. 3", "Eq. 4", "Eq. 5"}
    for equation, cell in rows:
        sources = {(ROOT / target).read_text("utf-8") for target in re.findall(r"\((\S+)\)", cell)}
        assert sources
        assert all(equation in source for source in sources), equation


def test_tolerances_are_those_the_exporter_holds_to() -> None:
    from dsd_trt.export import parity

    flat = " ".join(PAGES["export.md"].split())
    assert f"more than {parity.SCORE_TOLERANCE:.0e}".replace("e-0", "e-") in flat
    assert f"Spearman correlation of {parity.MIN_SPEARMAN}" in flat
    assert f"top-1 agreement of {parity.MIN_TOP1:.0%}".replace("%", " %") in flat


def test_bundle_files_are_those_of_the_contract(bundle: Bundle) -> None:
    graphs = {graph.file for graph in bundle.manifest.graphs.values()}
    for name in (*graphs, bundle.manifest.tokenizer.file, "bundle.json", "MODEL_CARD.md"):
        assert f"| `{name}` |" in PAGES["bundle.md"]
