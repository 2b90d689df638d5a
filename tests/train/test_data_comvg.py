"""ComVG, from a file of three rows and from the real one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dsd_trt.errors import InputError
from dsd_trt.train.data.comvg import Row, read_comvg, read_rows
from dsd_trt.train.question import split

REAL = Path(__file__).parents[3] / "shared" / "data" / "comvg" / "compositional_visual_genome.csv"
HEADER = "id,sentence,pos_triplet,neg_triplet,pos_image_id,neg_image_id,neg_value\n"
ROWS = """\
1,a dog chases a cat,"dog,chase,cat","('cow', 'chase', 'cat')",11,22,subject
2,"a dog, brown, sits",x,y,33,11,object
3,a dog chases a cat,x,y,11,44,verb
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "compositional_visual_genome.csv").write_text(HEADER + ROWS, encoding="utf-8")
    for name in ("images/11.jpg", "VG_100K/22.jpg", "VG_100K_2/33.jpg", "44.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_row_asks_for_the_right_image_of_two(root: Path) -> None:
    expected = [
        ("subject", "a dog chases a cat", "images/11.jpg", "VG_100K/22.jpg", "11"),
        ("object", "a dog, brown, sits", "VG_100K_2/33.jpg", "images/11.jpg", "33"),
        ("predicate", "a dog chases a cat", "images/11.jpg", "44.jpg", "11"),
    ]
    questions = list(read_comvg(root, seed=0))
    assert len(questions) == len(expected)
    for question, (kind, text, right, wrong, source) in zip(questions, expected, strict=True):
        assert (question.kind, question.source) == (kind, source)
        assert question.candidates[question.right] == (root / right, text)
        assert question.candidates[1 - question.right] == (root / wrong, text)


def test_a_missing_image_is_named_with_its_origin(root: Path) -> None:
    (root / "VG_100K_2" / "33.jpg").unlink()
    questions = read_comvg(root, seed=0)
    assert next(questions).kind == "subject"
    with pytest.raises(InputError) as error:
        next(questions)
    folders = " or ".join(
        repr(str(folder))
        for folder in (root / "images", root / "VG_100K", root / "VG_100K_2", root)
    )
    assert str(error.value) == (
        f"no file '33.jpg' in {folders}; "
        "it comes from the Visual Genome site, images part 1 and part 2"
    )


def test_a_missing_file_is_named_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"compositional_visual_genome.csv.*eric-ai-lab/DSD"):
        next(read_comvg(tmp_path, seed=0))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("4,a dog,x,y,1,2,colour", "neg_value is 'colour', not one of subject, object, verb"),
        ("4,,x,y,1,2,verb", "no sentence"),
        ("4,a dog,x,y,1,2.jpg,verb", "the images must be two numbers, got '1' and '2.jpg'"),
        ("4,a dog,x,y,,2,verb", "the images must be two numbers, got '' and '2'"),
        ("4,a dog,x,y,2,2,verb", "the images must be two numbers, got '2' and '2'"),
        ("4,a dog,x", '3 cells under 7 columns; put a text that has commas in "quotes"'),
    ],
)
def test_a_malformed_row_is_named_by_its_line(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{HEADER}{ROWS}{row}\n", encoding="utf-8")
    with pytest.raises(InputError) as error:
        list(read_rows(path))
    assert str(error.value) == f"{path}, line 5: {message}"


@pytest.mark.skipif(not REAL.exists(), reason="the real file is not here")
class TestRealFile:
    def test_it_has_the_published_rows(self) -> None:
        rows = list(read_rows(REAL))
        kinds = Counter(row.kind for row in rows)
        assert kinds == {"object": 2584, "subject": 1536, "predicate": 1280}
        assert len({row.right for row in rows}) == 524
        assert len({row.sentence for row in rows}) == 279
        assert rows[0] == Row("subject", "a man is sitting at a table", "2358258", "2357994")

    def test_every_row_is_a_question(self, tmp_path: Path) -> None:
        (tmp_path / REAL.name).symlink_to(REAL)
        rows = list(read_rows(REAL))
        for row in rows:
            (tmp_path / f"{row.right}.jpg").touch()
            (tmp_path / f"{row.wrong}.jpg").touch()
        questions = list(read_comvg(tmp_path, seed=3))
        assert questions == list(read_comvg(tmp_path, seed=3))
        for row, question in zip(rows, questions, strict=True):
            right = (tmp_path / f"{row.right}.jpg", row.sentence)
            assert question.candidates[question.right] == right
        first = sum(question.right for question in questions)
        assert abs(first - 2700) < 4 * (5400 / 4) ** 0.5
        few, rest = split(questions, 0.05, seed=0)
        assert len({question.source for question in few}) == 26  # of 524
        assert not {question.source for question in few} & {question.source for question in rest}
