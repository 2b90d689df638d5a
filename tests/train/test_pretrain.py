"""Training the embedded model: its losses against slow versions, and a whole run, small."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image
from shapes_claims import center, read
from torch import Tensor

from dsd_trt import Scorer
from dsd_trt.errors import DsdError, InputError
from dsd_trt.export.exporter import export_bundle
from dsd_trt.export.settings import ExportSettings
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.run.loss_log import LossLog
from dsd_trt.train.scoring.pooling import CrossAttention
from dsd_trt.train.shapes.batch import place_captions, sample_batch, sides_captions
from dsd_trt.train.shapes.curriculum import SMOKE
from dsd_trt.train.shapes.diffusion import (
    ShapesDiffusion,
    _grounding,
    _named_cells,
    train_diffusion,
)
from dsd_trt.train.shapes.encoded_batch import encode_batch, words_of
from dsd_trt.train.shapes.pretrain import pretrain_shapes
from dsd_trt.train.shapes.scene import COLOURS, EDITS, SHAPES, Scene, Thing
from dsd_trt.train.shapes.settings import DiffusionSettings
from dsd_trt.train.shapes.tokenizer import build_tokenizer
from dsd_trt.train.shapes.twins import TwinLatents, draw_twins, sample_twins
from dsd_trt.train.shapes.vae import cosine
from dsd_trt.train.shapes.workers import Worker, workers

TWINS = 10


@pytest.fixture(scope="module")
def data() -> TwinLatents:
    """Random latents: what the losses compute does not depend on what they are of."""
    rng = np.random.default_rng(0)
    return TwinLatents(
        seed=9,
        latents=rng.standard_normal((TWINS, 2, 16, 8, 8)).astype(np.float16),
        masks=rng.random((TWINS, 2, 3, 8, 8)).astype(np.float16),
    )


@pytest.fixture
def model(tmp_path: Path) -> ShapesDiffusion:
    torch.manual_seed(0)
    return ShapesDiffusion(build_tokenizer(tmp_path / "tokenizer"))


# Losses


def _walk(
    model: ShapesDiffusion, z_t: Tensor, t: Tensor, states: Tensor
) -> tuple[list[CrossAttention], Tensor]:
    """Every map of one forward pass, and the prediction."""
    walk = model.scoring.cross_attentions(z_t, t, states)
    return list(walk), walk.prediction


TELLING_WORDS = {
    0: set(),
    1: {
        *("left", "right", "above", "below", "over", "under", "higher", "lower", "than", "to"),
        *("of", "inside", "within", "in", "front", "overlapping", "on", "top", "bottom"),
    },
    2: {"circle", "square", "triangle", "star", "cross", "ring"},
    3: {"red", "green", "blue", "yellow", "orange", "purple", "white", "black"},
    4: {"small", "large"},
}


@torch.no_grad()
def test_losses_are_those_of_every_pair_on_its_own(
    model: ShapesDiffusion, data: TwinLatents
) -> None:
    batch = sample_batch(data, DiffusionSettings(steps=1, twins=12, kept={}), step=4)
    losses = model.losses(encode_batch(batch, model.tokenizer))
    assert len(batch.telling.unique()) > 2
    abar = model.scheduler.alphas_cumprod
    squares, ranks, told = [], Mean(), Mean()
    named = {"shape": Mean(), "colour": Mean()}
    for i, t in enumerate(batch.timesteps):
        whole, telling = torch.zeros(2, 2), torch.zeros(2, 2)  # [picture, caption]
        kind = int(batch.telling[i])
        for picture in range(2):
            z, noise = batch.latents[i, picture], batch.noise[i, picture]
            z_t = abar[t].sqrt() * z + (1 - abar[t]).sqrt() * noise
            for caption in range(2):
                ids, states, _ = model.encode([batch.captions[2 * i + caption]])
                maps, predicted = _walk(model, z_t[None], t[None], states)
                # Words and EOS count: all but BOS, up to the first EOS.
                end = ids[0].tolist().index(model.tokenizer.eos_token_id)
                pooled = [
                    (torch.logsumexp(20 * m.attention, 2) - math.log(m.attention.shape[2])) / 20
                    for m in maps
                ]
                of_tokens = torch.stack([s.mean(1)[0] for s in pooled]).mean(0)
                whole[picture, caption] = of_tokens[1 : end + 1].mean()
                words = [
                    token.removesuffix("</w>")
                    for token in model.tokenizer.convert_ids_to_tokens(ids[0, : end + 1])
                ]
                chosen = [k for k, word in enumerate(words) if word in TELLING_WORDS[kind]]
                chosen.append(end)
                telling[picture, caption] = of_tokens[chosen].mean()
                for k, thing in enumerate(batch.scenes[2 * i + picture].things):
                    cells = batch.masks[i, picture, k]
                    for kind_of, value in (("shape", thing.shape), ("colour", thing.colour)):
                        if value not in words and cells.sum() > 0.5:
                            loss = _naming_loss(model, maps, cells, kind_of, value)
                            named[kind_of].add(loss, 1 - float(t) / 1000)
                if picture == caption:
                    velocity = abar[t].sqrt() * noise - (1 - abar[t]).sqrt() * z
                    squares.append((predicted[0] - velocity).square().mean())
        weight = float(batch.ranked[i])
        ranks.add(_rank(whole, 60.0), weight * (0.3 if t > 850 else 1.0))
        told.add(_rank(telling, 60.0), weight * float(kind > 0))
    assert float(losses["denoising"]) == pytest.approx(float(torch.stack(squares).mean()), rel=1e-4)
    assert float(losses["ranking"]) == pytest.approx(ranks.value, rel=1e-4)
    assert float(losses["telling"]) == pytest.approx(told.value, rel=1e-4)
    expected = named["shape"].value + named["colour"].value
    assert float(losses["naming"]) == pytest.approx(expected, rel=1e-4)
    assert float(losses["grounding"]) > 0


class Mean:
    """A weighted mean whose weights count as 1 at least."""

    def __init__(self) -> None:
        self.total = self.weight = 0.0

    def add(self, value: float, weight: float) -> None:
        self.total += weight * value
        self.weight += weight

    @property
    def value(self) -> float:
        return self.total / max(1.0, self.weight)


def _naming_loss(
    model: ShapesDiffusion, maps: list[CrossAttention], cells: Tensor, kind: str, value: str
) -> float:
    """Negative log probability of a thing's word, from the mean of its image tokens, per layer."""
    losses = []
    for seen, layer in zip(maps, model.naming.layers, strict=True):
        factor = 8 // math.isqrt(seen.image_states.shape[1])  # cells a token stands for
        h, w = 8 // factor, 8 // factor
        total, state = 0.0, torch.zeros(seen.image_states.shape[2])
        for y in range(h):
            for x in range(w):
                block = cells[factor * y : factor * (y + 1), factor * x : factor * (x + 1)]
                total += float(block.mean())
                state += block.mean() * seen.image_states[0, y * w + x]
        answer = layer(state / total)
        of_kind, names = (answer[:6], SHAPES) if kind == "shape" else (answer[6:], COLOURS)
        losses.append(-float(F.log_softmax(of_kind, 0)[names.index(value)]))
    return sum(losses) / len(losses)


def _rank(scores: Tensor, scale: float) -> float:
    """Softplus ranking of one twin's scores, [picture, caption], both ways."""
    right, wrong = scores.diagonal(), scores.flip(1).diagonal()
    by_text = F.softplus(scale * (wrong - right))
    by_image = F.softplus(scale * (wrong.flip(0) - right))
    return float((by_text + by_image).mean())


def test_grounding_is_the_log_share_of_attention_on_the_thing() -> None:
    attention = torch.zeros(1, 16, 77)
    attention[0, 0, 3] = 0.75  # on the thing
    attention[0, 9, 3] = 0.25  # beside it
    shares = torch.zeros(1, 77, 4, 4)
    shares[0, 3, 0, 0] = 1
    named = torch.zeros(1, 77)
    named[0, 3] = 1
    loss = _grounding(attention, named, shares, torch.tensor([0.5]))
    assert float(loss) == pytest.approx(-0.5 * math.log(0.75), rel=1e-5)


def test_only_colours_and_shapes_of_visible_things_are_grounded(model: ShapesDiffusion) -> None:
    scene = Scene((Thing("star", "red"), Thing("ring", "blue")), "above")
    masks = torch.zeros(1, 2, 3, 8, 8)
    masks[0, 0, 0, 2, 2] = 1  # the star is seen; of the ring nothing
    ids, _, _ = model.encode(["a red star above a blue ring", ""])
    named, shares = _named_cells(ids, words_of([scene, scene], model.tokenizer), masks)
    words = model.tokenizer.convert_ids_to_tokens(ids[0])
    assert [words[i] for i in named[0].nonzero().flatten()] == ["red</w>", "star</w>"]
    assert float(shares[0, words.index("star</w>"), 2, 2]) == 1
    assert float(named[1].sum()) == 0


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [cosine(step, 1000, warm_up=100) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01)
    assert max(factors) == factors[99] == pytest.approx(1)
    assert factors[550] == pytest.approx(0.5)
    assert factors[1000] == pytest.approx(0)


# Batches and workers


def test_a_batch_follows_from_its_arguments_alone(data: TwinLatents) -> None:
    settings = DiffusionSettings(steps=9, twins=6)
    one, again, other = (sample_batch(data, settings, step) for step in (3, 3, 4))
    assert one.captions == again.captions
    assert torch.equal(one.noise, again.noise)
    assert not torch.equal(one.noise, other.noise)
    # Stratified: a timestep from every sixth of the range.
    assert sorted((one.timesteps * 6 // 1000).tolist()) == list(range(6))
    for i, scene in enumerate(one.scenes):
        twins = [sample_twins(data.seed, index).scenes for index in range(TWINS)]
        assert any(pair[i % 2] == scene for pair in twins)


def test_less_noise_and_fewer_words_can_be_asked_for(data: TwinLatents) -> None:
    plain = sample_batch(data, DiffusionSettings(steps=1, twins=12, unconditional=0), step=2)
    clear = sample_batch(
        data, DiffusionSettings(steps=1, twins=12, unconditional=0, noise=2), step=2
    )
    share = plain.timesteps / 1000  # u, but for its rounding
    assert torch.allclose(clear.timesteps / 1000, share**2, atol=3e-3)
    assert "" not in plain.captions
    unconditional = sample_batch(
        data, DiffusionSettings(steps=1, twins=12, unconditional=1), step=2
    )
    assert unconditional.captions == [""] * 24
    assert not unconditional.ranked.any()


def test_place_captions_are_true_of_their_picture_and_false_of_the_other() -> None:
    """Read back by the grammar of `shapes_claims`, measured on the pixels of the drawings."""
    sides: list[str | None] = []
    for index in range(400):
        twins, drawings = sample_twins(6, index), draw_twins(6, index)
        masks = np.zeros((2, 3, 64, 64), np.float32)
        for k, drawing in enumerate(drawings):
            masks[k, : len(drawing.masks)] = drawing.masks
        cells = F.avg_pool2d(torch.from_numpy(masks), 8).half().numpy()
        told = place_captions(twins, cells, np.random.default_rng(index))
        for k, text in enumerate(told or ()):
            claims = read(text)
            ((_, colour, shape),) = claims.things
            sides.append(claims.side)
            for own, scene in ((True, twins.scenes[k]), (False, twins.scenes[1 - k])):
                drawn = drawings[k if own else 1 - k].masks
                here = [
                    mask
                    for thing, mask in zip(scene.things, drawn, strict=True)
                    if (thing.colour, thing.shape) == (colour, shape) and mask.any()
                ]
                x, y = center(here[0])
                at = {"left": 1 - x, "right": x, "top": 1 - y, "bottom": y}[str(claims.side)]
                assert (at > 0.55) == own, text
    assert len(sides) > 150
    assert set(sides) == {"left", "right", "top", "bottom"}


def test_sides_captions_are_true_of_their_picture_and_false_of_the_other() -> None:
    """Both halves of the sentence, measured on the pixels of the drawings."""
    seen = set()
    for index in range(400):
        twins, drawings = sample_twins(6, index), draw_twins(6, index)
        told = sides_captions(twins, np.random.default_rng(index))
        assert (told is None) or twins.edit == "predicate"
        for k, text in enumerate(told or ()):
            halves = text.split(" and ")
            sides = [re.findall("left|right|top|bottom", half)[-1] for half in halves]
            seen.add(tuple(sides))
            axis = 0 if sides[0] in ("left", "right") else 1
            first_is_before = sides[0] in ("left", "top")
            for own in (True, False):
                which = k if own else 1 - k
                for half, thing in zip(halves, twins.scenes[which].things[:2], strict=True):
                    assert f"{thing.colour} {thing.shape}" in half
                first, second = (center(mask)[axis] for mask in drawings[which].masks[:2])
                assert ((first < second) == first_is_before) == own, text
    assert seen == {("left", "right"), ("right", "left"), ("top", "bottom"), ("bottom", "top")}


OPPOSITE = {
    pair for one in (("left of", "right of"), ("above", "below")) for pair in (one, one[::-1])
}


def test_the_telling_words_are_of_what_differs(data: TwinLatents) -> None:
    """Twins whose captions list the same words of a kind are not told apart by that kind alone."""
    batch = sample_batch(data, DiffusionSettings(steps=1, twins=300, kept={}), step=0)
    seen = set()
    for i, kind in enumerate(batch.telling.tolist()):
        one, other = batch.scenes[2 * i : 2 * i + 2]
        same = {
            1: (one.relation, one.side) == (other.relation, other.side),
            2: [thing.shape for thing in one.things] == [thing.shape for thing in other.things],
            3: [thing.colour for thing in one.things] == [thing.colour for thing in other.things],
            4: [thing.size for thing in one.things] == [thing.size for thing in other.things],
        }
        if kind:
            assert not same[kind]
            assert kind != 2 or same[3]  # a colour would give the answer away
            seen.add(kind)
    assert seen >= {1, 2, 3}


def test_a_lesson_can_be_kept_to_shapes_alone(data: TwinLatents) -> None:
    kept = dict.fromkeys(EDITS, 0.0) | {"subject": 1.0, "colour": 0.0, "both": 0.0}
    batch = sample_batch(data, DiffusionSettings(steps=1, twins=50, kept=kept), step=0)
    for one, other in zip(batch.scenes[::2], batch.scenes[1::2], strict=True):
        assert [thing.colour for thing in one.things] == [thing.colour for thing in other.things]
        assert one.things[0].shape != other.things[0].shape
    assert (batch.telling == 2).all()


def test_a_batch_tells_predicate_twins_by_sides_where_it_is_asked_to(data: TwinLatents) -> None:
    """Of places = 1, three fifths of the twins whose directions are opposite name both sides."""
    kept = dict.fromkeys(EDITS, 0.0) | {"predicate": 1.0}
    lessons = DiffusionSettings(steps=1, twins=200, kept=kept, places=1.0)
    taught, plain = (
        sample_batch(data, settings, 0) for settings in (lessons, replace(lessons, places=0.0))
    )
    side = re.compile("(at|on)( the)? (left|right|top|bottom)( side)? and an? ")
    assert not any(side.search(text) for text in plain.captions)
    pairs = list(zip(taught.captions[::2], taught.captions[1::2], strict=True))
    told = [pair for pair in pairs if side.search(pair[0])]
    relations = [scene.relation for scene in taught.scenes]
    opposite = sum(pair in OPPOSITE for pair in zip(relations[::2], relations[1::2], strict=True))
    assert 0.4 < len(told) / opposite < 0.75
    assert all(side.search(one) and side.search(other) for one, other in told)
    assert (taught.telling == 1).all()


def _gradient_of_rank(worker: Worker, folder: Path) -> None:
    """Write the mean of two gradients that are known beforehand."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0]) * (10**worker.rank)
    worker.average_gradients([parameter])
    torch.save(parameter.grad, folder / f"{worker.rank}.pt")


def test_workers_hold_the_mean_of_their_gradients(tmp_path: Path) -> None:
    with workers(2, _gradient_of_rank, tmp_path) as worker:
        _gradient_of_rank(worker, tmp_path)
    expected = torch.tensor([5.5, 11.0, 16.5])
    for rank in range(2):
        assert torch.allclose(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected)


class EndsProcess:
    """What ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (7,)


def test_a_worker_that_ends_at_its_start_is_told_at_once() -> None:
    ended = pytest.raises(DsdError, match=r"worker 1 ended at its start \(exit code 7\)")
    with ended, workers(2, _gradient_of_rank, EndsProcess()):
        pytest.fail("nobody has met")


# Whole runs


class KillError(Exception):
    """What stands in for a kill: nothing catches it."""


def test_a_killed_training_ends_as_one_that_was_not(data: TwinLatents, tmp_path: Path) -> None:
    settings = DiffusionSettings(steps=5, twins=2)

    def train(folder: Path, dies_at: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = ShapesDiffusion(build_tokenizer(tmp_path / "tokenizer"))

        def report(step: int, losses: dict[str, float]) -> None:
            if step == dies_at:
                raise KillError

        train_diffusion(
            model, data, folder / "diffusion.ckpt", settings, report=report, save_every=2
        )
        return model.state_dict()

    whole = train(tmp_path / "whole")
    with pytest.raises(KillError):
        train(tmp_path / "killed", dies_at=4)  # after the checkpoint of step 2
    resumed = train(tmp_path / "killed")
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smoke-size run of the command, killed once on its way."""
    out = tmp_path_factory.mktemp("pretrain") / "run"
    program = str(Path(sys.executable).with_name("dsd-trt"))
    command = [program, "pretrain", "shapes", "--smoke", "--out", str(out)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "vae.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (out / "model").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "held-out scenes, few-shot" in " ".join(done.stderr.split())
    return out


@pytest.mark.slow
def test_a_run_leaves_a_model_diffusers_can_open(run: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(run / "model", dtype=torch.float32)
    picture = pipeline("a red circle", num_inference_steps=1, output_type="pil").images[0]
    assert picture.size == (64, 64)
    checkpoint = read_checkpoint(run / "model")
    for name, value in checkpoint.unet.state_dict().items():
        assert torch.equal(value, value.half().float()), name


@pytest.mark.slow
def test_a_run_leaves_its_curve_its_samples_and_its_figures(run: Path) -> None:
    for name in ("losses.png", "samples.png"):
        with Image.open(run / name) as picture:
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 10, name
    rows = [json.loads(line) for line in (run / "losses.jsonl").read_text("utf-8").splitlines()]
    steps = sum(value for name, value in asdict(SMOKE).items() if name.endswith("_steps"))
    steps -= SMOKE.vae_steps + SMOKE.sampling_steps + SMOKE.few_shot_steps
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    assert {"denoising", "grounding", "ranking", "telling"} < rows[0].keys()
    adapter = json.loads((run / "model" / "adapter" / "adapter.json").read_text("utf-8"))
    assert adapter["training"]["held_out"].keys() == {"zero-shot", "few-shot"}


@pytest.mark.slow
def test_a_run_can_be_exported_and_scored_with(run: Path, tmp_path: Path) -> None:
    settings = ExportSettings(str(run / "model"), run / "model" / "adapter")
    bundle, _ = export_bundle(settings, tmp_path / "bundle")
    grey = np.full((64, 64, 3), 128, np.uint8)
    matrix = Scorer(bundle, "onnxruntime").score([grey], ["a red circle", "a star"])
    assert np.isfinite(matrix.scores).all()


@pytest.mark.slow
def test_a_folder_of_another_plan_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"a run with other settings: .*choose another folder"):
        pretrain_shapes(run, replace(SMOKE, diffusion_steps=9))
    with pytest.raises(InputError, match="a run with other settings"):
        pretrain_shapes(run, SMOKE, seed=1)


def test_a_step_trained_again_is_written_over(tmp_path: Path) -> None:
    log = LossLog(tmp_path / "losses.jsonl")
    for step, value in ((1, 0.5), (2, 0.25), (2, 0.125)):
        log.add(step, {"loss": value})
    again = LossLog(tmp_path / "losses.jsonl")
    assert again.rows == {1: {"loss": 0.5}, 2: {"loss": 0.125}}
