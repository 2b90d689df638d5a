"""`dsd-trt pretrain tiny-clip`: a CLIP for shapes, a baseline of the demonstration's size.

It is trained from scratch on the demonstration's twins, drawn on the fly, with the symmetric
InfoNCE loss (Radford et al. 2021, Fig. 3). Both images of a pair of twins are in one batch. Every
image thus has a hard negative, a caption that is false in one aspect, as in the demonstration's
ranking loss.

It has 4.1 M parameters, 3.6 M of them in the vision tower. The demonstration's U-Net has 4.3 M
and its text encoder 0.5 M; this text tower has the same shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from dsd_trt.files.whole import write_whole
from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.baselines.clip_settings import PLAN_NAME, STATE_NAME, STATES, ClipSettings
from dsd_trt.train.run.loss_log import LossLog
from dsd_trt.train.run.plan import require_plan
from dsd_trt.train.run.saved_model import saved_model
from dsd_trt.train.shapes.averaged_training import AveragedTraining
from dsd_trt.train.shapes.diffusion import build_text_encoder
from dsd_trt.train.shapes.pretrain import TRAIN_SEED
from dsd_trt.train.shapes.tokenizer import build_tokenizer
from dsd_trt.train.shapes.twins import draw_twins, sample_twins
from dsd_trt.train.shapes.workers import Worker, workers

_ALONE = Worker()
_BATCHES = 9  # last number of every seed here, which no seed of pretraining ends with
_HEAD_WIDTH = 32  # features per attention head, as in the text tower
_LARGEST_SCALE = math.log(100)  # upper bound of the logit scale, as in Radford et al.


Progress = Callable[[str, int, int, dict[str, float]], None]
"""Progress callback `(stage, done, total, figures)`; `figures` are losses by name."""


@dataclass(frozen=True)
class CaptionBatch:
    """Images with their captions; the two images of a twin are neighbours.

    Attributes:
        pixels: pixels of each image, uint8 (images, 64, 64, 3).
        captions: caption of each image.
    """

    pixels: Tensor
    captions: list[str]


def build_clip(tokenizer: CLIPTokenizer, settings: ClipSettings) -> Clip:
    """An untrained CLIP for 64 x 64 pixels in patches of 8 x 8, with the demonstration's words.

    Args:
        tokenizer: CLIP tokenizer of the demonstration's words.
        settings: sizes of the vision tower, and the random seed.
    """
    torch.manual_seed(settings.seed)
    text = build_text_encoder(tokenizer).config
    vision = CLIPVisionConfig(
        image_size=64,
        patch_size=8,
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.width // _HEAD_WIDTH,
        projection_dim=text.projection_dim,
    )
    config = CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=text.projection_dim,
    )
    return Clip(CLIPModel(config), tokenizer)


def sample_batch(settings: ClipSettings, step: int, worker: Worker = _ALONE) -> CaptionBatch:
    """A worker's part of a step's batch; the whole batch does not depend on the workers' number.

    Args:
        settings: number of twins per step, pool and random seed.
        step: index of the step, from 0.
        worker: worker whose part is drawn.
    """
    part = settings.twins // worker.count
    pixels: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for place in range(worker.rank * part, (worker.rank + 1) * part):
        rng = np.random.default_rng([settings.seed, step, place, _BATCHES])
        index = int(rng.integers(settings.pool))
        captions += sample_twins(TRAIN_SEED, index).captions(rng)
        pixels += [drawing.pixels for drawing in draw_twins(TRAIN_SEED, index)]
    return CaptionBatch(torch.from_numpy(np.stack(pixels)), captions)


def contrastive_loss(clip: Clip, batch: CaptionBatch, worker: Worker = _ALONE) -> Tensor:
    """Symmetric InfoNCE loss over the whole batch, of which every worker encodes its part.

    Args:
        clip: the CLIP model in training.
        batch: this worker's part of the batch.
        worker: this process among all workers.
    """
    model = clip.model
    ids = clip.trim(clip.tokenize(batch.captions))
    x = model.visual_projection(model.vision_model(clip.normalise(batch.pixels)).pooler_output)
    y = model.text_projection(model.text_model(ids).pooler_output)
    x, y = (gather(F.normalize(features, dim=-1), worker) for features in (x, y))
    logits = model.logit_scale.exp() * x @ y.T  # (images, captions) of the whole batch
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def gather(features: Tensor, worker: Worker) -> Tensor:
    """Concatenate all workers' features to (workers * batch, D), differentiably."""
    return features if worker.count == 1 else _Gather.apply(features, worker)  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, worker: Worker) -> Tensor:
        ctx.worker = worker
        parts = [torch.empty_like(features) for _ in range(worker.count)]
        dist.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Every worker computes the loss of the whole batch, so the sum is `count` times its
        # gradient. The mean over workers, which training takes afterwards, corrects this.
        whole = gradient.clone()
        dist.all_reduce(whole)
        return whole.chunk(ctx.worker.count)[ctx.worker.rank], None


def train_clip(
    clip: Clip,
    path: Path,
    settings: ClipSettings,
    *,
    worker: Worker = _ALONE,
    report: Callable[[int, float], None] = lambda step, loss: None,
    save_every: int = 200,
) -> float:
    """Train a CLIP in place, or resume; at the end it has the averaged weights.

    Args:
        clip: CLIP with random initial weights, as from `build_clip`.
        path: path of the training state; if the file exists, training resumes from it.
        settings: hyperparameters of the training.
        worker: this process among all workers; only worker 0 reports and saves.
        report: callback `(step, loss)` after each step.
        save_every: number of steps between saves of the training state.

    Returns:
        Training time in seconds, including the time before a restart.

    Raises:
        InputError: the training state is of a run with other settings.
    """
    training = AveragedTraining(clip.model, settings, path, worker)
    for step in range(training.start, settings.steps):
        loss = contrastive_loss(clip, sample_batch(settings, step, worker), worker)
        training.descend(step, loss)
        with torch.no_grad():
            clip.model.logit_scale.clamp_(max=_LARGEST_SCALE)
        training.average(step)
        if worker.rank == 0:
            report(step + 1, loss.item())
        training.save(step + 1, save_every)
    training.finish()
    return training.seconds


def pretrain_tiny_clip(
    out: Path,
    settings: ClipSettings,
    *,
    processes: int = 2,
    progress: Progress = lambda stage, done, total, figures: None,
) -> Path:
    """Train a tiny CLIP and write it in transformers' format, or resume an interrupted call.

    Args:
        out: run folder for the training state, `losses.jsonl`, `losses.png`, and in `model/` the
            CLIP with its tokenizer and `training.json`.
        settings: hyperparameters of the training.
        processes: number of workers, on which the batches do not depend.
        progress: callback `(stage, done, total, figures)` after each step.

    Returns:
        Folder of the written model.

    Raises:
        InputError: `out` holds a run with other settings, or `settings.twins` is not divisible by
            `processes`.
    """
    settings.require_even(processes)
    require_plan(out / PLAN_NAME, asdict(settings), STATES)
    clip = build_clip(build_tokenizer(out / "tokenizer"), settings)
    path, losses = out / STATE_NAME, out / "losses.jsonl"
    write_whole(out / PLAN_NAME, json.dumps(asdict(settings), indent=2) + "\n")
    if not path.exists():
        losses.unlink(missing_ok=True)  # of a run that ended before its first state
    log = LossLog(losses)

    def report(step: int, loss: float) -> None:
        log.add(step, {"loss": loss})
        progress("contrast", step, settings.steps, {"loss": loss})

    with workers(processes, _train_beside, out, settings) as worker:
        seconds = train_clip(clip, path, settings, worker=worker, report=report)
    log.plot(out / "losses.png")
    training = {
        **asdict(settings),
        "pictures_seen": 2 * settings.twins * settings.steps,
        "seconds": round(seconds),
        "processes": processes,
        "parameters": parameter_counts(clip.model),
    }
    with saved_model(out / "model") as folder:
        clip.model.save_pretrained(folder)
        build_tokenizer(folder)
        write_whole(folder / "training.json", json.dumps(training, indent=2) + "\n")
    return out / "model"


def parameter_counts(model: CLIPModel) -> dict[str, int]:
    """Number of parameters of each tower with its projection, and of the whole model."""

    def count(*parts: nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    return {
        "vision": count(model.vision_model, model.visual_projection),
        "text": count(model.text_model, model.text_projection),
        "all": count(model),
    }


def _train_beside(worker: Worker, out: Path, settings: ClipSettings) -> None:
    """Training loop of all workers but worker 0."""
    clip = build_clip(CLIPTokenizer.from_pretrained(out / "tokenizer"), settings)
    train_clip(clip, out / STATE_NAME, settings, worker=worker)
