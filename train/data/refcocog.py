"""RefCOCOg: given an image, choose the right one of ten texts."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dsd_trt.errors import InputError, counted
from dsd_trt.files.regular import open_regular
from dsd_trt.train.data.files import find_coco_image, find_file, stream_json
from dsd_trt.train.pickles import pickle_fault
from dsd_trt.train.question import Question, shuffled

_ORIGIN = "the REFER repository, lichengunc/refer on GitHub, data set refcocog"


@dataclass(frozen=True)
class Ref:
    """An object in an image with its referring expressions.

    Attributes:
        image: COCO number of the image.
        split: split of the data set: "train", "val" or "test".
        sentences: referring expressions, cleaned and lower-cased by the authors; none is empty.
    """

    image: int
    split: str
    sentences: tuple[str, ...]


def read_refs(path: Path) -> list[Ref]:
    """The entries of `refs(google).p`, read by an unpickler that refuses to run any code.

    Raises:
        InputError: the file holds anything but lists, dicts, strings and numbers, or an entry is
            malformed.
    """
    with open_regular(path) as file:
        try:
            entries = _PlainUnpickler(file, encoding="utf-8", errors="replace").load()
        except Exception as error:  # a damaged pickle raises almost anything
            raise InputError(
                f"{path} is not a pickle of lists, dicts, strings and numbers alone: "
                f"{pickle_fault(error)}"
            ) from None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path} is not a list of refs")
    return [_ref(path, number, entry) for number, entry in enumerate(entries)]


def read_refcocog(root: Path, split: str, seed: int, texts: int = 10) -> Iterator[Question]:
    """One question per sentence: its image with it and with sentences of other images.

    Wrong texts are drawn uniformly from the distinct sentences of the same split, without those
    of the same image. The kind is "text of ten" and the source the image's file name. The authors
    split objects, not images, so "train" and "val" may share an image.

    Args:
        root: folder of `refs(google).p`, `instances.json` and COCO's 2014 train images, which are
            in its subfolder `train2014`, `images/train2014` or `images`.
        split: split of the data set, "train" or "val".
        seed: random seed of the wrong texts and of the right text's position.
        texts: number of candidates per question.

    Raises:
        InputError: a file is missing or malformed, or the split does not exist or is too small;
            without one of the two files already when called.
    """
    path, instances = (
        find_file(name, [root], _ORIGIN) for name in ("refs(google).p", "instances.json")
    )
    return _questions(path, instances, root, split, seed, texts)


def _questions(
    path: Path, instances: Path, root: Path, split: str, seed: int, texts: int
) -> Iterator[Question]:
    everything = read_refs(path)
    refs = [ref for ref in everything if ref.split == split]
    if not refs:
        there = ", ".join(sorted({ref.split for ref in everything}))
        raise InputError(f"{path} has no split {split!r}; it has {there}")
    said: dict[int, set[str]] = defaultdict(set)
    for ref in refs:
        said[ref.image].update(ref.sentences)
    pool = sorted(set().union(*said.values()))
    names = _file_names(instances, said)
    kind = f"text of {'ten' if texts == 10 else texts}"
    spoken = ((ref.image, sentence) for ref in refs for sentence in ref.sentences)
    for number, (image, sentence) in enumerate(spoken):
        if len(pool) - len(said[image]) < texts - 1:
            raise InputError(
                f"{path}: split {split!r} has fewer than {counted(texts - 1, 'sentence')} of other "
                "images"
            )
        path_of_image = find_coco_image(names[image], root, "train")
        rng = np.random.default_rng([seed, number, 1])
        wrong = _draw_texts(pool, said[image], texts - 1, rng)
        yield shuffled(
            kind,
            (path_of_image, sentence),
            [(path_of_image, text) for text in wrong],
            names[image],
            [seed, number],
        )


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler of lists, dicts, strings and numbers, which need no class; it refuses any class."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")


def _ref(path: Path, number: int, entry: Any) -> Ref:
    try:
        texts = [spoken["sent"].strip() for spoken in entry["sentences"]]
        return Ref(entry["image_id"], entry["split"], tuple(text for text in texts if text))
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f"{path}, entry {number}: not a ref with image_id, split and sentences"
        ) from None


def _file_names(path: Path, images: Collection[int]) -> dict[int, str]:
    """File name of each image by its number; the file name in a ref is that of a crop."""
    names = {
        image: name
        for image, name in stream_json(path, "images", ("id", "file_name"))
        if image in images
    }
    if missing := sorted(set(images) - set(names)):
        raise InputError(f"{path} has no image {missing[0]}, which a ref names")
    return names


def _draw_texts(
    pool: Sequence[str], own: set[str], count: int, rng: np.random.Generator
) -> list[str]:
    """Draw distinct texts of a pool, without an image's own.

    Args:
        pool: distinct texts, at least `count` of them not in `own`.
        own: texts that must not be drawn.
        count: number of texts to draw.
        rng: random generator of the choice.
    """
    chosen: list[str] = []
    while len(chosen) < count:
        text = pool[int(rng.integers(len(pool)))]
        if text not in own and text not in chosen:
            chosen.append(text)
    return chosen
