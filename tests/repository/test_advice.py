"""What messages advise can be done: the commands they name have the options they name.

Errors of commands within the tests' own process are looked at everywhere, see `conftest.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from advice import commands_in, foreign_options, options_of
from click.testing import CliRunner

from dsd_trt.bundle.place import EMBEDDED
from dsd_trt.commands.main import SUBCOMMANDS, cli

ROOT = Path(__file__).parents[2]
FOLDERS = ("dsd_trt", "train", "export", "engines")
SIGNED = [name for name in SUBCOMMANDS if "--require-signature" in options_of(name)]


def _files() -> list[Path]:
    found = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))
    return [path for path in found if not any(it.is_symlink() for it in path.parents)]


def _strings(path: Path) -> Iterator[tuple[int, str]]:
    """Strings of a module but its docstrings, with their lines; values in f-strings are "X"."""
    inner = set[int]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Expr):
            inner.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inner |= {id(it) for it in node.values}
            parts = [str(it.value) if isinstance(it, ast.Constant) else "X" for it in node.values]
            yield node.lineno, "".join(parts)
        elif isinstance(node, ast.Constant) and id(node) not in inner:
            yield node.lineno, str(node.value)


def test_commands_that_are_named_have_their_options() -> None:
    options = {name: options_of(name) for name in SUBCOMMANDS}
    seen, wrong = 0, []
    for path in _files():
        for line, text in _strings(path):
            for name, given in commands_in(text):
                seen += 1
                # What is no command and has no options is a sentence about the package.
                if lacking := set(given) - options.get(name, set()):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: dsd-trt {name} {lacking}")
    assert wrong == []
    assert seen > 100


@pytest.mark.parametrize(
    ("message", "command", "foreign"),
    [
        ("name one, --bundle BUNDLE", "inspect", ["--bundle"]),
        ("name one, --bundle BUNDLE", "score", []),
        ("Export again: dsd-trt export --matrix. Or --bundle B", "inspect", ["--bundle"]),
        ("Install it with: pip install --upgrade 'dsd-trt[cpu]'", "score", []),
        ("leave out --update-rank, --from none", "train", []),
        ("choose another --workers", "pretrain", []),
        ("choose another --worker", "pretrain", ["--worker"]),
    ],
)
def test_options_are_told_from_those_of_other_commands(
    message: str, command: str, foreign: list[str]
) -> None:
    assert foreign_options(message, command) == foreign


@pytest.mark.parametrize("command", SIGNED)
def test_where_signatures_are_required_advice_about_the_demonstration_can_be_followed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minisign  # of the extra "test"

    monkeypatch.chdir(tmp_path)
    key = tmp_path / "minisign.pub"
    key.write_bytes(bytes(minisign.KeyPair.generate().public_key))
    monkeypatch.setenv("DSD_TRT_REQUIRE_SIGNATURE", str(key))
    (tmp_path / "t.csv").write_text("image,text,label\na.png,a dog,1\na.png,a cat,0\n")
    (tmp_path / "texts.txt").write_text("a dog\n")
    (tmp_path / "a.png").write_bytes((ROOT / "examples" / "images" / "lone-star.png").read_bytes())
    arguments: dict[str, list[Any]] = {
        "score": ["a.png", "texts.txt"],
        "explain": ["a.png", "a dog", "-o", "a.json"],
        "filter": ["t.csv", "--keep-best", "1", "-o", "kept.csv"],
        "index": ["a.png", "index"],
        "calibrate": [EMBEDDED, "--data", "t.csv", "--out", "new"],
        "inspect": ["shapes"],
        "doctor": [],
        "adapt": [EMBEDDED, EMBEDDED.with_name("shapes-model") / "adapter", "--out", "new"],
        "build": [EMBEDDED],
        "gpu-check": [EMBEDDED],
        "triton": [EMBEDDED, "models"],
        "bench": [],
        "ranges": [EMBEDDED],
        "eval": [EMBEDDED, "--data", "t.csv"],
    }
    done = CliRunner().invoke(cli, [command, *map(str, arguments[command])])
    assert done.exit_code in (2, 4), done.output
    assert not isinstance(done.exception, AssertionError)
    if command not in ("build", "gpu-check", "triton"):  # which need a GPU, or Triton's client
        assert "not signed, and a signature is required" in done.output
        assert f"DSD_TRT_REQUIRE_SIGNATURE={key}" in done.output
