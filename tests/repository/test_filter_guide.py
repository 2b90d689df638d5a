"""The commands of docs/filter.md, from the first to the last, on a set made of the examples."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from pyarrow import parquet

from dsd_trt.bundle.place import bundle_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/filter.md").read_text("utf-8")


def test_its_commands_run_in_their_order(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples/images", tmp_path / "images")
    shutil.copytree(bundle_folder(None), tmp_path / "my-scorer")
    with (ROOT / "examples/pairs.csv").open(newline="", encoding="utf-8") as file:
        given = list(csv.DictReader(file))
    labelled = []
    for at, row in enumerate(given):
        others = [given[(at + step) % len(given)]["text"] for step in (3, 5)]
        own = [row["text"], f"{row['text']}.", row["text"].capitalize()]
        labelled += [(row["image"], text, int(text in own)) for text in (*own, *others)]
    for name, columns in (("captions", 2), ("labelled", 3)):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("image", "text", "label")[:columns])
            writer.writerows(row[:columns] for row in labelled)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 5
    scripts = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in lines:
        ended = subprocess.run(
            shlex.split(line),
            cwd=tmp_path,
            env={**os.environ, "PATH": scripts},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, (line, ended.stderr)
    truth = {(image, text): label for image, text, label in labelled}

    def precision(rows: list[dict[str, str]]) -> float:
        return sum(truth[row["image"], row["text"]] for row in rows) / len(rows)

    with (tmp_path / "kept.csv").open(newline="", encoding="utf-8") as file:
        kept = list(csv.DictReader(file))
    assert len(kept) == -(-30 * len(labelled) // 100)
    assert precision(kept) > 0.8  # of all pairs, 0.6
    likely = parquet.read_table(tmp_path / "kept.parquet").to_pylist()
    assert precision(likely) > precision([{"image": i, "text": t} for i, t, _ in labelled])
    assert {it.name for it in (tmp_path / "best/images").iterdir()} == {
        row["image"].removeprefix("images/") for row in likely
    }
    with tarfile.open(tmp_path / "five.tar") as tar:
        assert len({name.partition(".")[0] for name in tar.getnames()}) == 5
