"""Mistakes with tables and their options: each message has the cause and the remedy, at once."""

from __future__ import annotations

import gzip
import json
import pickle
import shlex
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from bundles import make_bundle
from full_disk import files_of_at_most
from PIL import Image
from pyarrow import parquet

from dsd_trt.bundle.folder import write_bundle
from dsd_trt.commands.main import main
from dsd_trt.tables.labelled import doubts, read_labelled
from dsd_trt.tables.table import Table
from dsd_trt.train.data.table import read_table

TABLE = "image,text,label\n" + "".join(
    f"photos/{n % 4}.png,a red circle {n},{n % 2}\n" for n in range(12)
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what users have: photos, tables of every kind, and files that are none."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/file").touch()
    for number, colour in enumerate(("red", "blue", "green", "yellow")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"photos/{number}.png")
    texts = {
        "t.csv": TABLE,
        "pairs.csv": "image,text\nphotos/0.png,a dog\n",
        "capital.csv": TABLE.replace("image,text", "Image,My Text"),
        "headless.csv": "photos/0.png,a dog\nphotos/1.png,a cat\n",
        "texts.txt": "a red circle\na dog\n",
        "bars.csv": "image|text\nphotos/0.png|a dog\n",
        "page.csv": "<!DOCTYPE html><html><body>Not found</body></html>\n",
        "one.csv": "image,text,label\nphotos/0.png,a dog,1\n",
        "percent.csv": "image,text,label\nphotos/0.png,a dog,90%\n",
        "pretty.json": json.dumps({"rows": [{"image": "a"}]}, indent=1),
        "zero.jsonl": "",
        "zero.parquet": "",
        "frame.json": json.dumps({"image": {"0": "a", "1": "b"}, "text": {"0": "c", "1": "d"}}),
        "by-row.json": json.dumps(
            {"0": {"image": "a", "text": "c"}, "1": {"image": "b", "text": "d"}}
        ),
        "spaces.csv": 'image, "text"\nphotos/0.png, "a dog"\n',
        "quotes.csv": 'image,text,label\nphotos/0.png, "a dog, brown",1\n',
        "swapped.csv": TABLE.replace("image,text", "text,image"),
        "elsewhere.csv": TABLE.replace("photos/", "pictures/"),
        "plus-minus.csv": TABLE.replace(",0\n", ",-1\n"),
        "python.csv": "image,text,negatives\nphotos/0.png,a dog,\"['a cat', 'a cow']\"\n",
        "hard.csv": "image,text,hard_negative\nphotos/0.png,a dog,a cat\n",
        "both.csv": "image,text,label\n"
        + "".join(f"photos/{n % 4}.png,a dog,{n // 4}\n" for n in range(8)),
        "sep.csv": "sep=;\n" + TABLE.replace(",", ";"),
        "list.txt": '["a dog", "a cat"]\n',
        "lines.txt": '[\n "a dog",\n "a cat"\n]\n',
        "inlined.csv": f'image,text\n"data:image/png;base64,{"iVBORw0KGgo" * 400}",a dog\n',
        "coco.json": json.dumps({"images": [{"id": 1}], "annotations": [{"caption": "a dog"}]}),
        "usual.csv": "file_name,caption\nphotos/0.png,a dog\n",
        "set/README.md": "# A data set\n",
        "set/data/train-0.parquet": "",
        "set/data/train-1.parquet": "",
    }
    (tmp_path / "set/data").mkdir(parents=True)
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "latin.csv").write_bytes("image,text\n0.png,café\n".encode("latin-1"))
    (tmp_path / "utf16.csv").write_bytes(TABLE.encode("utf-16"))
    (tmp_path / "utf16le.csv").write_bytes(TABLE.encode("utf-16-le"))
    (tmp_path / "utf16be.csv").write_bytes(TABLE.encode("utf-16-be"))
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    (tmp_path / "old.xls").write_bytes(bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600))
    (tmp_path / "t.pkl").write_bytes(pickle.dumps({"image": ["photos/0.png"] * 3}))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    for name in ("book.xlsx", "photos.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("a", "é" * 9)
    with sqlite3.connect(tmp_path / "t.db") as database:
        database.execute("create table pairs (image, text)")
    lists = pyarrow.table({"image": ["photos/0.png"], "text": pyarrow.array([["a", "b"]])})
    parquet.write_table(lists, tmp_path / "lists.parquet")
    bundle = make_bundle(tmp_path / "bundle")
    write_bundle(bundle.folder, bundle.manifest)
    return tmp_path


COMMANDS = {
    "pairs": "score --bundle bundle --pairs",
    "filter": "filter --bundle bundle",
    "fit": "calibrate bundle --data",
}


@pytest.mark.parametrize(
    ("command", "cause", "remedy"),
    [
        # what is no table
        ("pairs book.xlsx", "a zip archive or a spreadsheet", "save it as CSV"),
        ("pairs old.xls", "it is a spreadsheet", "save it as CSV"),
        ("pairs t.csv.gz", "it is compressed", "gunzip unpacks it"),
        ("pairs t.pkl", "it is a pickle", "write a table as CSV or Parquet"),
        ("pairs t.db", "it is a database", "export one of its tables as CSV"),
        ("pairs photos/0.png", "it is an image", "a table names images by their paths"),
        ("pairs page.csv", "is a web page", "download the file itself"),
        ("pairs https://example.com/t.csv", "is a URL", "download it first"),
        ("filter s3://shop/t.parquet --keep-best 3 -o k", "is a URL", "download it first"),
        ("fit https://example.com/t.csv -o new", "is a URL", "download it first"),
        ("fit photos.tar -o new", "is a tar file, no table", "that names the unpacked images"),
        ("pairs zero.jsonl", "zero.jsonl is empty", "Write the table again"),
        ("filter zero.parquet --keep-best 2 -o k", "is empty: it has 0 bytes", "again"),
        ("pairs frame.json", "one JSON object of objects", "orient='records', lines=True"),
        ("fit by-row.json -o new", "one JSON object of objects", "orient='records', lines=True"),
        ("pairs coco.json", "one JSON object with lists", "jq -c '.images[]'"),
        ("pairs usual.csv", "no column 'image'", "--image-column file_name"),
        (
            "fit usual.csv --image-column file_name -o new",
            "no column 'text'",
            "--text-column caption",
        ),
        ("pairs set", "set has no tar files", "is set/data/train-0.parquet meant, one of its 2"),
        ("pairs photos", "photos has no tar files", "give a table, a tar file, or a folder"),
        # encodings, separators, headers
        ("pairs latin.csv", "is not UTF-8 text (line 2)", "iconv -f WINDOWS-1252 -t UTF-8"),
        ("pairs utf16.csv", "it is UTF-16", "iconv -f UTF-16 -t UTF-8"),
        ("fit utf16le.csv -o new", "it is UTF-16", "iconv -f UTF-16LE -t UTF-8"),
        ("fit utf16be.csv -o new", "it is UTF-16", "iconv -f UTF-16BE -t UTF-8"),
        ("fit spaces.csv -o new", "line 1: a quote counts at the start", 'write ,"a, b" and not'),
        ("fit quotes.csv -o new", "line 2: a quote counts at the start", 'write ,"a, b" and not'),
        ("pairs bars.csv", "among 'image|text'", "separated by commas, tabs or semicolons"),
        ("pairs texts.txt", "among 'a red circle'", "under a header such as image,text"),
        ("pairs headless.csv", "Line 1 is no header", "write one above it, such as image,text"),
        ("pairs capital.csv", "no column 'image' among 'Image'", "--image-column Image"),
        (
            "pairs capital.csv --image-column Image --text-column 'my text'",
            "no column 'my text'",
            "--text-column 'My Text'",
        ),
        ("pairs pretty.json", "not valid JSON", "Write one JSON object per line"),
        ("pairs lists.parquet", "has no texts but list<", "--text-column NAME"),
        # places of images, outputs
        ("pairs t.csv -o gone/s.csv", "cannot write 'gone/s.csv'", "mkdir -p gone"),
        ("filter t.csv --keep-best 2 -o 'a b/k.csv'", "cannot write 'a b/k.csv'", "-p 'a b'"),
        ("score photos list.txt", "is a list of JSON", "on a line each, without quotes"),
        ("score photos lines.txt", "is a list of JSON", "on a line each, without quotes"),
        ("fit sep.csv -o new", "line 1 is for Excel alone", "delete it"),
        ("score photos t.csv", "'t.csv' is a table", "dsd-trt score --pairs t.csv"),
        ("fit elsewhere.csv -o new", "none can be used", "relative to the table's folder"),
        (
            "fit swapped.csv -o new",
            "Are the columns swapped?",
            "--image-column text --text-column image",
        ),
        ("pairs t.csv --images photos.zip", "no folder, index or tar file", "Unpack it"),
        (
            "pairs t.csv -o scores.xlsx",
            ".xlsx is not written",
            ".csv, .jsonl, .json, .parquet or .html",
        ),
        ("filter t.csv --keep-best 3 -o kept.tsv", ".tsv is not written", "the format with -f"),
        ("filter t.csv --keep-best 3 -o k.csv --dropped d.gz", ".gz is not written", "with -f"),
        ("filter t.csv --keep-best 3 -o k.csv --copy-to full", "full is there", "--force"),
        ("filter t.csv --keep-best 3 -o k.csv --dropped k.csv", "-o, --dropped", "three different"),
        ("filter t.csv --keep-best 3 -o t.csv/k/", "t.csv is a file", "another one with -o"),
        ("filter t.csv --keep-best 3 -o k.csv --copy-to t.csv/c", "t.csv is a file", "--copy-to"),
        ("fit t.csv -o t.csv/new", "t.csv is a file", "another one with -o"),
        ("index photos t.csv/index", "t.csv is a file", "another one as the last argument"),
        ("score t.csv", "give IMAGES and, last, the file of TEXTS", "--pairs t.csv"),
        ("score photos 'a dog'", "cannot read texts from 'a dog'", "echo 'a red circle' | dsd-trt"),
        # numbers
        ("filter t.csv --min-probability 90 -o k", "'90' is a percentage", "as a share: 0.9"),
        ("filter t.csv --target-precision 95% -o k", "'95%' is a percentage", "a share: 0.95"),
        ("filter t.csv --min-probability 1.5 -o k", "1.5 is not in the range", "0<=x<=1"),
        ("filter t.csv --keep-best 0.3 -o k", "'0.3' is neither", "such as 30%"),
        ("fit t.csv --prior 20 -o new", "'20' is a percentage", "write it as a share: 0.2"),
        ("pairs t.csv --levels 0.5", "no noise level 0.5", "it has 0.2, 0.4, 0.8"),
        ("filter t.csv --keep-best 2 --levels 0.5 -o k", "no noise level 0.5", "it has 0.2"),
        ("pairs t.csv --mode matrix", "no matrix scorer", "dsd-trt export --matrix"),
        (
            "filter t.csv --min-probability 0.5 --levels 0.2 -o k",
            "no match probabilities at the noise levels 0.2",
            "choose by score: --keep-best",
        ),
        # bundles and labels
        ("score --bundle shapes --pairs t.csv", "no folder 'shapes'", "is the default, without"),
        ("score --bundle gone --pairs t.csv", "no folder 'gone'", "dsd-trt export --out BUNDLE"),
        ("fit t.csv --by nope -o new", "no column 'nope' among 'image'", "--by COLUMN"),
        ("fit pairs.csv -o new", "no labels", "Add a column label"),
        ("fit one.csv -o new", "1 pair without a negative one", "a fit needs both"),
        ("fit percent.csv -o new", "got '90%'", "must be 0 or 1"),
        (
            "fit plus-minus.csv -o new",
            "6 pairs without a negative one",
            "6 left out, such as plus-minus.csv, line 2",
        ),
        ("fit plus-minus.csv -o new", "got '-1'", "must be 0 or 1"),
        ("fit python.csv -o new", "not a valid JSON list", "json.dumps(texts)"),
        ("fit hard.csv -o new", "no labels", "'hard_negative' is read as such if it is called"),
        ("fit t.csv -o full", "full is not empty", "give a new folder"),
        ("fit t.csv --plot r.png -o new", "an SVG file", "--plot r.svg"),
        (
            "filter t.csv --target-precision 0.9 --labelled pairs.csv -o k",
            "no column 'label' among 'image', 'text'",
            "--label-column NAME",
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, cause: str, remedy: str
) -> None:
    first, _, rest = command.partition(" ")
    before = sorted(folder.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(f"{COMMANDS.get(first, first)} {rest}"))
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, ""), printed.err
    said = " ".join(printed.err.split())
    assert cause in said
    assert remedy in said
    assert "engine:" not in said  # nothing was compiled
    assert sorted(folder.rglob("*")) == before


def test_images_that_are_no_files_have_their_remedy(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each costs its row; the message is the same where labels are read."""
    rows = {
        "https://example.com/a.jpg": "is a URL, and images are files: download it first",
        "file:///photos/0.png": "is a URL: write its path alone, without file://",
        "data:image/png;base64": "is a data URI, and images are files",
        "~/photos/0.png": "write out the home folder",
        "iVBORw0KGgo" * 400: "a name of 4400 characters is none: an encoded image belongs into",
        "photos\\0.png": "write its path with /, not with \\",
        "photos\\9.png": "no image file 'photos\\\\9.png'",
        "photos/1.jpg": "is 'photos/1.png' meant?",
        "Photos/2.PNG": "is 'photos/2.png' meant?",
        "photos/3.txt": "is 'photos/3.png' meant?",
    }
    lines = ["image,text,label", *(f"{name},a dog,1" for name in rows), "photos/1.png,a dog,1"]
    (folder / "odd.csv").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as ended:
        main(shlex.split("score --bundle bundle --pairs odd.csv -f csv --engine onnxruntime"))
    assert ended.value.code == 3
    scored = capsys.readouterr()
    labelled = map(str, read_labelled(Table.open("odd.csv")).failures)
    learned = map(str, read_table(Path("odd.csv"), 0).failures)
    every = [scored.err, "\n".join(labelled), "\n".join(learned)]
    for remedy in rows.values():
        assert all(remedy in said for said in every)
    assert all(said.count("write its path with") == 1 for said in every)


def test_swapped_columns_are_told_where_rows_are_scored_all_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(shlex.split("score --bundle bundle --pairs swapped.csv -f csv --engine onnxruntime"))
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "Are the columns swapped? --image-column text --text-column image" in said
    assert "relative to" not in said


def test_long_names_of_images_are_cut_in_messages(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(shlex.split("score --bundle bundle --pairs inlined.csv -f csv --engine onnxruntime"))
    said = capsys.readouterr().err
    assert "is a data URI" in said
    assert len(said) < 2000


def test_quotes_after_spaces_cost_their_row_and_quoted_spaces_none(folder: Path) -> None:
    """As RFC 4180 has it, a quote after a space is no quote."""
    (folder / "some.csv").write_text(
        'image,text,label\nphotos/0.png,"a dog, brown",1\nphotos/1.png, "a cat",0\n'
        'photos/2.png," ""a"" cow",0\nphotos/3.png, a hen,1\n'
    )
    found = read_labelled(Table.open("some.csv"))
    assert [pair.text for pair in found.pairs] == ["a dog, brown", '"a" cow', "a hen"]
    assert [failure.image for failure in found.failures] == ["some.csv, line 3"]


def test_labels_that_contradict_each_other_and_few_pairs_are_doubted(folder: Path) -> None:
    few, both = doubts(read_labelled(Table.open("both.csv")).pairs)
    assert "4 positive pairs and 4 negative, of 4 images, are too few" in few
    assert both.startswith("4 pairs with the labels 1 and 0, such as 'a dog'")
    many = "".join(f"photos/{n % 4}.png,a dog {n},{n % 2}\n" for n in range(40))
    (folder / "many.csv").write_text("image,text,label\n" + many)
    (of_few_images,) = doubts(read_labelled(Table.open("many.csv")).pairs)
    assert "20 positive pairs and 20 negative, of 4 images" in of_few_images


@pytest.mark.parametrize(
    ("command", "cause", "remedy"),
    [
        ("score --pairs long.csv -f csv", "no room for names and texts in", "in TMPDIR"),
        ("filter few.csv --keep-best 2 -o k --copy-to copies", "the copies of images", "--copy-to"),
        ("filter few.csv --keep-best 2 -o k/", "cannot write the WebDataset", "Nothing is left"),
    ],
)
def test_a_full_disk_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], command: str, cause: str, remedy: str
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    for number, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"large{number}.png")
    long = "".join(f"photos/0.png,{'dog ' * 40}{n}\n" for n in range(200))
    (folder / "long.csv").write_text(f"image,text\n{long}")
    (folder / "few.csv").write_text("image,text\nlarge0.png,a dog\nlarge1.png,a dog\n")
    with files_of_at_most(8192), pytest.raises(SystemExit) as ended:
        main(shlex.split(f"{command} --bundle bundle --engine onnxruntime"))
    said = capsys.readouterr().err
    assert ended.value.code == 1, said
    assert cause in said
    assert remedy in said
    assert not (folder / "copies").exists()
    assert not list(folder.glob("k*.tar"))
