"""RefCOCOg, from hand-written files, and pickles that would do harm."""

from __future__ import annotations

import builtins
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsd_trt.errors import InputError
from dsd_trt.train.data.refcocog import Ref, read_refcocog, read_refs

IMAGES = 12


def ref(image: int, split: str, *sentences: str) -> dict[str, Any]:
    """An entry as the published file has them."""
    return {
        "image_id": image,
        "split": split,
        "sentences": [
            {"tokens": text.split(), "raw": f"{text.upper()}.", "sent_id": i, "sent": text}
            for i, text in enumerate(sentences)
        ],
        "file_name": f"COCO_train2014_{image:012d}_{image}.jpg",
        "category_id": 1,
        "ann_id": image * 10,
        "sent_ids": list(range(len(sentences))),
        "ref_id": image * 100,
    }


REFS = [
    *(ref(i, "train", f"thing {i}", "the man") for i in range(IMAGES)),
    ref(0, "train", "other thing 0"),
    *(ref(i, "val", f"val {i}") for i in range(5)),
]


def write(root: Path, refs: object, protocol: int = 2) -> Path:
    path = root / "refs(google).p"
    path.write_bytes(pickle.dumps(refs, protocol=protocol))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, REFS)
    images = [
        {"license": 1, "file_name": f"COCO_train2014_{i:012d}.jpg", "id": i, "height": 480}
        for i in range(IMAGES + 3)
    ]
    annotations = [{"id": 1, "bbox": [0.5, 1.25, 3.0, 4.0], "segmentation": [[1.5, 2.0]]}]
    (tmp_path / "instances.json").write_text(
        json.dumps({"info": {}, "annotations": annotations, "images": images}), encoding="utf-8"
    )
    (tmp_path / "train2014").mkdir()
    for i in range(IMAGES):
        (tmp_path / "train2014" / f"COCO_train2014_{i:012d}.jpg").touch()
    return tmp_path


def test_every_sentence_is_a_question(root: Path) -> None:
    questions = list(read_refcocog(root, "train", seed=0))
    asked = [(i, text) for i in range(IMAGES) for text in (f"thing {i}", "the man")]
    asked.append((0, "other thing 0"))
    assert len(questions) == len(asked)
    for question, (image, text) in zip(questions, asked, strict=True):
        name = f"COCO_train2014_{image:012d}.jpg"
        assert (question.kind, question.source) == ("text of ten", name)
        assert {pair[0] for pair in question.candidates} == {root / "train2014" / name}
        texts = [pair[1] for pair in question.candidates]
        assert texts[question.right] == text
        assert len(set(texts)) == 10
        # "the man" was said of every image: it never is a wrong text, nor is what else was said
        # of this one, nor anything of the other split.
        wrong = {other for other in texts if other != text}
        assert wrong <= {f"thing {i}" for i in range(IMAGES)} | {"other thing 0"}
        assert not wrong & {f"thing {image}", *(["other thing 0"] if image == 0 else [])}


def test_another_number_of_texts(root: Path) -> None:
    questions = list(read_refcocog(root, "val", seed=0, texts=3))
    assert [len(question.candidates) for question in questions] == [3] * 5
    assert {question.kind for question in questions} == {"text of 3"}


def test_questions_follow_from_the_seed(root: Path) -> None:
    first, again, other = (list(read_refcocog(root, "train", seed)) for seed in (1, 1, 2))
    assert first == again
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 5
    assert len({question.right for question in first}) > 5


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    refs = read_refs(write(tmp_path, REFS, protocol))
    assert refs[0] == Ref(0, "train", ("thing 0", "the man"))
    assert len(refs) == len(REFS)


def test_a_file_of_python_2_is_read(tmp_path: Path) -> None:
    # As Python 2 writes protocol 0: byte strings S, text V, long integers with an L.
    path = tmp_path / "refs(google).p"
    path.write_bytes(
        b"(lp0\n(dp1\nS'image_id'\np2\nL380440L\nsS'split'\np3\nS'test'\np4\nsS'sentences'\np5\n"
        b"(lp6\n(dp7\nS'sent'\np8\nS'caf\\xc3\\xa9 sign'\np9\nsa(dp10\ng8\nVna\xefve man\np11\nsa"
        b"(dp12\ng8\nS' '\np13\nsasa."
    )
    assert read_refs(path) == [Ref(380440, "test", ("café sign", "naïve man"))]


class Harmful:
    def __init__(self, call: Callable[[str], object], argument: str) -> None:
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return self.call, (self.argument,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("call", "line", "named"),
    [
        (os.system, "echo > {}", f"{os.system.__module__}.system"),
        (builtins.exec, "open({!r}, 'w')", "(__builtin__|builtins).exec"),
    ],
)
def test_a_harmful_pickle_is_refused_and_does_nothing(
    call: Callable[[str], object], line: str, named: str, protocol: int, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    entry = {**REFS[0], "sentences": [Harmful(call, line.format(str(mark)))]}
    path = write(tmp_path, [*REFS, entry], protocol)
    pickle.loads(path.read_bytes())
    assert mark.exists()  # so harmful it is
    mark.unlink()
    with pytest.raises(InputError, match=f"it asks for {named}, which is refused"):
        read_refs(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(S'echo > mark'\nios\nsystem\n.",  # INST, another opcode that calls
        b"cos\nsystem\n(S'echo > mark'\no.",  # a name alone is refused
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00ascii\x86R.",
        b"\x80\x02\x82\x01.",  # a class out of the extension registry
        b"Pid\n.",  # something from outside the file
    ],
)
def test_no_class_gets_in_by_another_way(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "refs(google).p"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a pickle of lists, dicts, strings and numbers"):
        read_refs(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(REFS)[:-20], b"\x80\xff"])
def test_a_damaged_pickle_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "refs(google).p"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"refs\(google\).p is not a pickle of lists, "):
        read_refs(path)


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ({"refs": []}, "is not a list of refs"),
        ([], "is not a list of refs"),
        ([REFS[0], 7], "entry 1: not a ref with image_id, split and sentences"),
        ([{"image_id": 1, "split": "val"}], "entry 0: not a ref"),
        ([{"image_id": 1, "split": "val", "sentences": ["a man"]}], "entry 0: not a ref"),
        ([{"image_id": 1, "split": "val", "sentences": [{"sent": 3}]}], "entry 0: not a ref"),
    ],
)
def test_another_pickle_is_refused(refs: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, refs)
    with pytest.raises(InputError, match=message):
        read_refs(path)


def test_what_is_missing_is_named_with_its_origin(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no split 'test'; it has train, val"):
        next(read_refcocog(root, "test", seed=0))
    with pytest.raises(InputError, match="split 'val' has fewer than 9 sentences of other images"):
        next(read_refcocog(root, "val", seed=0))
    (root / "train2014" / "COCO_train2014_000000000000.jpg").unlink()
    with pytest.raises(InputError, match=r"COCO_train2014_000000000000.jpg.*2014 train images"):
        next(read_refcocog(root, "train", seed=0))
    write(root, [*REFS, ref(99, "train", "a stray")])
    with pytest.raises(InputError, match=r"instances.json has no image 99, which a ref names"):
        next(read_refcocog(root, "train", seed=0))
    for name in ("instances.json", "refs(google).p"):
        (root / name).unlink()
        with pytest.raises(InputError) as error:
            next(read_refcocog(root, "train", seed=0))
        assert str(error.value).startswith(f"no file {name!r} in {str(root)!r}; it comes from the ")
        assert "lichengunc/refer" in str(error.value)
