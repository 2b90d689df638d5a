"""Augmented copies of training images, and how batches draw from them."""

from __future__ import annotations

import numpy as np
import torch

from dsd_trt.train.fewshot.augment import augment
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.encodings import Encoders, encode
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.question import Question

TEXTS = ["a red circle", "a blue square", "a green star", "a white ring"]


LEVELS = (10, 90, 170, 250)  # brightness of each picture, which a copy keeps


def questions() -> list[Question]:
    pictures = [np.full((16, 16, 3), level, np.uint8) for level in LEVELS]
    return [
        Question("text", ((picture, text), (picture, TEXTS[i - 1])), 0, str(i))
        for i, (picture, text) in enumerate(zip(pictures, TEXTS, strict=True))
    ]


def brightness(copies: int) -> Examples:
    """Pictures encoded as their brightness, texts as nothing."""
    encoders = Encoders(
        pixels=lambda image: np.asarray(image),
        images=lambda pixels: pixels.float().mean(dim=(1, 2))[:, :1],
        texts=lambda texts: (torch.zeros(len(texts), 77, 2), torch.ones(len(texts), 77)),
        batch=3,
    )
    asked = questions()
    return encode(encoders, asked, copies=copies).examples(asked)


def test_a_disc_moves_a_little_and_keeps_size_and_colour() -> None:
    y, x = np.mgrid[0:64, 0:64]
    inside = np.hypot(x - 24, y - 36) < 10
    picture = np.where(inside[..., None], (200, 30, 60), (20, 120, 40)).astype(np.uint8)
    copies = augment(torch.from_numpy(picture).expand(40, -1, -1, -1), generator(0)).numpy()
    assert copies.shape == (40, 64, 64, 3)
    assert copies.dtype == np.uint8
    sizes, places = [], []
    for copy in copies:
        shown = np.abs(copy.astype(int) - (200, 30, 60)).max(axis=2) < 40
        sizes.append(shown.sum() / inside.sum())
        places.append(np.argwhere(shown).mean(axis=0))
        assert np.abs(copy[32, 0].astype(int) - (20, 120, 40)).max() <= 1  # no black borders
    assert 0.6 < min(sizes) < 0.9 < 1.15 < max(sizes) < 1.55  # exp(-0.4), exp(0.4), and the edge
    moved = np.linalg.norm(np.array(places) - (36, 24), axis=1)
    assert 4 < moved.max() < 13  # up to 9.1 pixels, and what turning and scaling add
    assert (np.array(places)[:, 1] < 34).all()  # left stays left


def test_copies_depend_on_the_generator_alone() -> None:
    pictures = torch.arange(2 * 8 * 8 * 3, dtype=torch.uint8).view(2, 8, 8, 3)
    first, again, other = (augment(pictures, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_copies_follow_the_images_they_are_of() -> None:
    examples = brightness(copies=2)
    assert examples.image_count == 4
    assert examples.latents.flatten().tolist() == [*LEVELS, *LEVELS, *LEVELS]
    assert examples.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    plain = brightness(copies=0)
    assert plain.image_count == 4
    assert plain.latents.flatten().tolist() == [*LEVELS]


def test_batches_draw_every_copy_with_its_texts() -> None:
    examples = brightness(copies=2)
    settings = FewShotSettings(questions=200, negatives=1, hard=0.5)
    batch = sample_batch(examples, settings, np.random.default_rng(0))
    assert set(batch.images.flatten().tolist()) == set(range(12))
    right = batch.images[:, 0] % 4, batch.texts[:, 0]
    of_right = examples.images[examples.right], examples.texts[examples.right]
    pairs, matches = ({*zip(*(it.tolist() for it in of), strict=True)} for of in (right, of_right))
    assert pairs <= matches
    same = batch.images[:, 0] % 4 == batch.images[:, 1] % 4
    assert torch.equal(batch.images[same, 0], batch.images[same, 1])
    plain = sample_batch(brightness(copies=0), settings, np.random.default_rng(0))
    assert int(plain.images.max()) == 3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
