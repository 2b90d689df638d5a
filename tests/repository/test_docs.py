"""What the other documents say is so: links, tables, commands, options, targets of make."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import click
import make_commands
import pytest

from dsd_trt.commands.main import cli

ROOT = Path(__file__).parents[2]

DOCUMENTS = sorted(
    it
    for part in (".", "docs/**", "benchmarks/*", "dsd_trt/data/*")
    for it in ROOT.glob(f"{part}/*.md")
)
IDS = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Options of other programs that the documents name.
FOREIGN = {
    "--memory-budget-mb",  # dsd-score, in C++
    "--gpus",  # docker
    *("--cache-config", "--model-control-mode", "--model-repository"),  # tritonserver
    *("--cpus", "--cpuset-cpus", "--shm-size"),  # docker run
    "--local-dir",  # hf download
    "--bits",  # benchmarks/measure_matching.py
    "--captioned",  # benchmarks/measure_lists.py
    *("--methods", "--tasks"),  # benchmarks/fewshot.py
    *("--engines", "--json", "--starts", "--works"),  # benchmarks/against.py
    *("--transfer", "--alone", "--python", "--capability", "--cuda", "--only", "--also"),  # pack.py
    *("--within", "--dry-run"),  # tools/gpu_offline/run_stages.py
    "--install",  # cmake
    "--strict",  # twine check
    "--verifytypes",  # pyright
}

document = pytest.mark.parametrize("path", DOCUMENTS, ids=IDS)


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return FENCE.sub("", path.read_text("utf-8"))


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", it.lower()).replace(" ", "-") for it in headings}


def commands(path: Path) -> list[str]:
    """The lines that run `dsd-trt`, of blocks and between backticks."""
    text = path.read_text("utf-8")
    lines = [
        line for _, block in FENCE.findall(text) for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`([^`]+)`", " ".join(prose(path).split()))
    found = (re.search(r"(?:^|/)(dsd-trt [a-z].*?)(?: #|\||$)", line.strip()) for line in lines)
    return [it[1].strip() for it in found if it]


@document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        where = path.parent / file if file else path
        assert where.exists(), target
        if anchor:
            assert anchor in anchors(where), target


@document
def test_tables_have_a_header_and_rows_of_one_width(path: Path) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", prose(path) + "\n", re.MULTILINE):
        rows = [re.sub(r"`[^`]*`", "", row).replace(r"\|", "") for row in table.splitlines()]
        assert len(rows) > 1, rows
        assert re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", rows[1]), rows[0]
        assert {row.count("|") for row in rows} == {rows[0].count("|")}, rows[0]


@document
def test_commands_exist_and_take_their_options(path: Path) -> None:
    for line in commands(path):
        words = shlex.split(line)[1:]
        command: click.Command = cli
        while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z-]+", words[0]):
            context = click.Context(command)
            found = command.get_command(context, words[0])
            assert found, line
            command, words = found, words[1:]
        known = {option for it in command.params for option in (*it.opts, *it.secondary_opts)}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= known | {"--help"}, line


@document
def test_options_are_of_some_command(path: Path) -> None:
    known = {"--help", *FOREIGN}
    for _, command in make_commands.commands(cli, "dsd-trt"):
        known |= {option for it in command.params for option in (*it.opts, *it.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", prose(path)))
    assert named <= known, named - known


@document
def test_targets_and_scripts_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", makefile, re.MULTILINE))
    text = path.read_text("utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)) <= targets
    for script in re.findall(r"(?:^|`|/)python3? ((?:\w+/)+\w+\.py)", text, re.MULTILINE):
        assert (ROOT / script).is_file(), script


@document
def test_paths_between_backticks_are_there(path: Path) -> None:
    folders = "benchmarks|docs|dsd_trt|engines|examples|export|findings|tests|tools|train"
    for named in re.findall(rf"`((?:{folders})/[a-z0-9_./-]+)`", prose(path)):
        if not named.startswith("engines/cpp/build"):  # what make cpp writes
            assert (ROOT / named).exists(), named


def test_every_option_has_a_help_text() -> None:
    silent = [
        (name, it.opts)
        for name, command in make_commands.commands(cli, "dsd-trt")
        for it in command.params
        if isinstance(it, click.Option) and not it.hidden and not it.help
    ]
    assert silent == []
