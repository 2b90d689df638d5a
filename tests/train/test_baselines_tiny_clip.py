"""The tiny CLIP: its loss, its batches however many workers share them, and a whole run, small."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from dsd_trt.errors import InputError
from dsd_trt.train.baselines.clip import Clip, load_clip
from dsd_trt.train.baselines.clip_settings import SMOKE, ClipSettings
from dsd_trt.train.baselines.fit import build_matcher
from dsd_trt.train.baselines.matcher import by_matcher
from dsd_trt.train.baselines.tiny_clip import (
    build_clip,
    contrastive_loss,
    parameter_counts,
    pretrain_tiny_clip,
    sample_batch,
    train_clip,
)
from dsd_trt.train.commands.baseline import tiny_clip
from dsd_trt.train.run.state import load_state
from dsd_trt.train.run.threads import one_thread
from dsd_trt.train.shapes.datasets import shapes_comvg
from dsd_trt.train.shapes.diffusion import build_text_encoder, build_unet
from dsd_trt.train.shapes.pretrain import TRAIN_SEED
from dsd_trt.train.shapes.tokenizer import build_tokenizer
from dsd_trt.train.shapes.twins import draw_twins
from dsd_trt.train.shapes.workers import Worker, workers


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Threads cost such small models more than they give, and all the more on a busy machine."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def clip(tokenizer: CLIPTokenizer) -> Clip:
    return build_clip(tokenizer, SMOKE)


def test_it_is_of_the_embedded_models_size(tokenizer: CLIPTokenizer) -> None:
    counts = parameter_counts(build_clip(tokenizer, ClipSettings()).model)
    embedded = [
        sum(parameter.numel() for parameter in part.parameters())
        for part in (build_unet(), build_text_encoder(tokenizer))
    ]
    assert counts["vision"] + counts["text"] + 1 == counts["all"]
    assert 0.8 < counts["all"] / sum(embedded) < 1.2
    # As the module says.
    assert [round(n / 1e6, 1) for n in (counts["all"], counts["vision"])] == [4.1, 3.6]
    assert [round(n / 1e6, 1) for n in embedded] == [4.3, 0.5]


# Batches and loss


def test_a_batch_is_twins_of_the_embedded_model_and_follows_from_its_arguments() -> None:
    one, again, other = (sample_batch(SMOKE, step) for step in (3, 3, 4))
    assert one.captions == again.captions
    assert torch.equal(one.pixels, again.pixels)
    assert one.captions != other.captions
    assert one.pixels.shape == (2 * SMOKE.twins, 64, 64, 3)
    known = {
        tuple(drawing.pixels.tobytes() for drawing in draw_twins(TRAIN_SEED, index))
        for index in range(SMOKE.pool)
    }
    for i in range(0, len(one.pixels), 2):
        pair = one.pixels[i : i + 2].numpy()
        assert (pair[0].tobytes(), pair[1].tobytes()) in known


def test_the_parts_of_workers_are_the_batch_of_one() -> None:
    whole = sample_batch(SMOKE, 5)
    parts = [sample_batch(SMOKE, 5, Worker(rank, 2)) for rank in range(2)]
    assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
    assert [*parts[0].captions, *parts[1].captions] == whole.captions


@torch.no_grad()
def test_the_loss_is_that_of_transformers(clip: Clip) -> None:
    batch = sample_batch(SMOKE, 0)
    tokens = clip.tokenizer(batch.captions, padding="max_length", return_tensors="pt")
    pixels = clip.normalise(batch.pixels)
    expected = clip.model(**tokens, pixel_values=pixels, return_loss=True).loss
    assert float(contrastive_loss(clip, batch)) == pytest.approx(float(expected), rel=1e-5)


def _gradient(worker: Worker, tokenizer: Path) -> list[Tensor]:
    clip = build_clip(CLIPTokenizer.from_pretrained(tokenizer), SMOKE)
    contrastive_loss(clip, sample_batch(SMOKE, 0, worker), worker).backward()
    worker.average_gradients(clip.model.parameters())
    return [parameter.grad for parameter in clip.model.parameters()]


def _write_gradient(worker: Worker, folder: Path) -> None:
    torch.save(_gradient(worker, folder), folder / f"{worker.rank}.pt")


@pytest.mark.slow  # starts a second process; tests/train/test_pretrain.py has its like
def test_two_workers_have_the_gradient_of_one(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    with workers(2, _write_gradient, tmp_path) as worker:
        _write_gradient(worker, tmp_path)
    expected = _gradient(Worker(), tmp_path)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for one, other in zip(found, expected, strict=True):
            assert torch.allclose(one, other, atol=1e-6)


# Whole runs


def test_training_tells_a_pair_of_twins_apart(clip: Clip, tmp_path: Path) -> None:
    settings = replace(SMOKE, steps=60, twins=1, pool=1, learning_rate=1e-2)
    losses: list[float] = []
    seconds = train_clip(
        clip, tmp_path / "run.ckpt", settings, report=lambda step, loss: losses.append(loss)
    )
    # Chance is log 2, the optimum 0; how near it comes depends on the machine's rounding.
    assert sum(losses[:5]) / 5 > 0.5
    assert sum(losses[-5:]) / 5 < 0.35
    assert seconds > 0
    # What is kept is the average of the weights, and it learned, too.
    with torch.no_grad():
        assert float(contrastive_loss(clip, sample_batch(settings, 99))) < 0.5


def test_the_logit_scale_stays_at_most_a_hundred(clip: Clip, tmp_path: Path) -> None:
    clip.model.logit_scale.data.fill_(9.0)
    train_clip(clip, tmp_path / "run.ckpt", replace(SMOKE, steps=1))
    state = load_state(tmp_path / "run.ckpt")
    assert state is not None
    assert float(state["model"]["logit_scale"].exp()) == pytest.approx(100, rel=1e-5)


class KillError(Exception):
    """What stands in for a kill: nothing catches it."""


def test_a_killed_training_ends_as_one_that_was_not(
    tokenizer: CLIPTokenizer, tmp_path: Path
) -> None:
    settings = replace(SMOKE, steps=5)

    def train(path: Path, dies_at: int | None = None) -> dict[str, Tensor]:
        clip = build_clip(tokenizer, settings)

        def report(step: int, loss: float) -> None:
            if step == dies_at:
                raise KillError

        train_clip(clip, path, settings, report=report, save_every=2)
        return clip.model.state_dict()

    whole = train(tmp_path / "whole.ckpt")
    with pytest.raises(KillError):
        train(tmp_path / "killed.ckpt", dies_at=4)  # after the checkpoint of step 2
    resumed = train(tmp_path / "killed.ckpt")
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke-size run of the command."""
    out = tmp_path_factory.mktemp("run")
    arguments = ["--smoke", "--workers", "1", "--out", str(out)]
    done = CliRunner().invoke(tiny_clip, arguments)
    assert done.exit_code == 0, done.output
    return out


def test_a_run_leaves_a_clip_that_transformers_opens_and_baselines_score_with(run: Path) -> None:
    model = CLIPModel.from_pretrained(run / "model")
    assert model.config.vision_config.image_size == 64
    ids = CLIPTokenizer.from_pretrained(run / "model")("a red circle").input_ids
    assert len(ids) == 5
    score = by_matcher(build_matcher(load_clip(run / "model"), "zero-shot"))
    scores = score(list(shapes_comvg(2, 1)))
    assert [len(row) for row in scores] == [2, 2]
    assert scores[0][0] != scores[0][1]


def test_a_run_says_what_it_did(run: Path) -> None:
    told = json.loads((run / "model" / "training.json").read_text("utf-8"))
    assert (told["steps"], told["pictures_seen"], told["seed"]) == (4, 4 * 8, 0)
    assert told["seconds"] >= 0
    assert told["parameters"]["all"] == sum(
        parameter.numel() for parameter in CLIPModel.from_pretrained(run / "model").parameters()
    )
    rows = [json.loads(line) for line in (run / "losses.jsonl").read_text("utf-8").splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (run / "losses.png").stat().st_size > 1000


def test_a_folder_of_other_settings_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"other settings: seed was 0, and now is 1"):
        pretrain_tiny_clip(run, replace(SMOKE, seed=1), processes=1)


def test_twins_that_cannot_be_shared_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 twins per step cannot be divided evenly among 3"):
        pretrain_tiny_clip(tmp_path, SMOKE, processes=3)
