"""The tables in examples/: every form that training takes, trained on as docs/train.md says."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from click.testing import CliRunner

from dsd_trt.commands.main import cli
from dsd_trt.tables.table import Table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "train.md").read_text("utf-8")
SECTION = PAGE.partition("\n## Your own table\n")[2].partition("\n## ")[0]
LINES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]
PYTHON = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
RETRIEVED = "candidates.csv"  # of docs/rerank.md: several images of a text, not for training
TABLES = sorted(
    it.name
    for kind in ("csv", "jsonl")
    for it in (ROOT / "examples").glob(f"*.{kind}")
    if it.name != RETRIEVED
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "examples"


def _data(line: str) -> str:
    return shlex.split(line)[shlex.split(line).index("--data") + 1]


def test_every_table_is_in_the_guide_and_in_the_readme() -> None:
    named = [Path(_data(line)).name for line in LINES]
    assert sorted(name for name in named if not name.endswith(".parquet")) == TABLES
    readme = (ROOT / "README.md").read_text("utf-8")
    for name in TABLES:
        assert f"(examples/{name})" in readme, name


def test_the_tables_have_every_form() -> None:
    heads = {tuple(Table.open(ROOT / "examples" / name).columns) for name in TABLES}
    assert heads == {
        ("image", "text"),
        ("image", "text", "label"),
        ("image", "text", "negatives"),
        ("image", "text", "negative_1", "negative_2", "negative_3"),
        ("key", "photo", "caption", "match"),
    }
    cells = {
        name: next(Table.open(ROOT / "examples" / name).rows()).values["negatives"]
        for name in ("negatives.csv", "negative-lists.csv", "negatives.jsonl")
    }
    texts = cells["negatives.jsonl"]
    assert isinstance(texts, list)
    assert len(texts) == 3
    assert cells["negatives.csv"] == "|".join(texts)
    assert cells["negative-lists.csv"] == json.dumps(texts)


@pytest.mark.parametrize("line", LINES, ids=lambda line: Path(_data(line)).name)
def test_training_takes_the_table(line: str, model: Path, examples: Path) -> None:
    if _data(line).endswith(".parquet"):
        pytest.importorskip("pyarrow")
        exec(compile(PYTHON[0], "docs/train.md", "exec"), {})
    program, *arguments = shlex.split(line)
    assert program == "dsd-trt"
    few = ["--model", str(model), "--steps", "2", "--batch", "2", "--copies", "1", "--allow-worse"]
    done = CliRunner().invoke(cli, [*arguments, *few])
    assert done.exit_code == 0, done.output
    out = Path(shlex.split(line)[shlex.split(line).index("--out") + 1])
    report = json.loads((out / "report.json").read_text("utf-8"))
    assert sum(report["questions"]) == 14  # a question per image
    assert report["questions"][0] > report["questions"][1] > 0
    assert len(report["losses"]) == 2
    assert (out / "adapter.safetensors").is_file()
