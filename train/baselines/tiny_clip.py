"""`dsd-trt pretrain tiny-clip`: a CLIP for shapes, the embedded model's opponent of equal size.

It is trained from scratch on the twins the embedded model is trained on, whose pictures are drawn
on the fly, with the symmetric InfoNCE loss (Radford et al. 2021, Fig. 3). Both pictures of a pair
of twins are in one batch, so every picture meets the caption that is false of it in one aspect:
the hard negatives that the embedded model's ranking loss has, too.

It has 4.1 M parameters, 3.6 M of them in the vision tower. The embedded model's U-Net has 4.3 M,
and its text encoder, whose shape this one's text tower has, 0.5 M.
"""

from __future__ import annotations

import json
import math
import time
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

from dsd_trt.errors import InputError
from dsd_trt.files.whole import write_whole
from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.run.loss_log import LossLog
from dsd_trt.train.run.saved_model import saved_model
from dsd_trt.train.run.state import require_like, restore_optimizer, resumed, save_state
from dsd_trt.train.shapes.diffusion import build_text_encoder
from dsd_trt.train.shapes.pretrain import TRAIN_SEED
from dsd_trt.train.shapes.tokenizer import build_tokenizer
from dsd_trt.train.shapes.twins import draw_twins, sample_twins
from dsd_trt.train.shapes.vae import cosine
from dsd_trt.train.shapes.workers import Worker, workers

_ALONE = Worker()
_BATCHES = 9  # last number of every seed here: no seed of pretraining ends so
_HEAD_WIDTH = 32  # of the text tower's heads, too
_LARGEST_SCALE = math.log(100)  # Radford et al. clip the logit scale there


@dataclass(frozen=True)
class ClipSettings:
    """Sizes and lengths; `SMOKE` takes seconds and teaches nothing.

    By default 384,000 pictures are seen, as many as in the embedded model's first two stages.

    Attributes:
        steps: optimiser steps.
        twins: twins a step, over all workers; a twin is two pictures and two captions.
        pool: how many different twins there are to draw from, the embedded model's first ones.
        learning_rate: peak; rises over 200 steps, falls to zero along a cosine.
        ema: decay of the averaged weights, which are what is kept.
        width: of the vision tower.
        layers: of the vision tower.
        seed: of weights and batches.
    """

    steps: int = 4000
    twins: int = 48
    pool: int = 50_000
    learning_rate: float = 1e-3
    ema: float = 0.999
    width: int = 192
    layers: int = 8
    seed: int = 0


SMOKE = ClipSettings(steps=4, twins=4, pool=12, width=32, layers=1)

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Called with (stage, done, total, figures)."""


@dataclass(frozen=True)
class CaptionBatch:
    """Pictures, uint8 (pictures, 64, 64, 3), with the caption of each; twins are neighbours."""

    pixels: Tensor
    captions: list[str]


def build_clip(tokenizer: CLIPTokenizer, settings: ClipSettings) -> Clip:
    """An untrained CLIP of 64 x 64 pixels, patches of 8, for the embedded model's words."""
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
    """A worker's part of the batch of one step; together the parts are the batch of one alone."""
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
    """Symmetric InfoNCE over the whole batch, of which every worker encodes its part."""
    model = clip.model
    ids = clip.trim(clip.tokenize(batch.captions))
    x = model.visual_projection(model.vision_model(clip.normalise(batch.pixels)).pooler_output)
    y = model.text_projection(model.text_model(ids).pooler_output)
    x, y = (gather(F.normalize(features, dim=-1), worker) for features in (x, y))
    logits = model.logit_scale.exp() * x @ y.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def gather(features: Tensor, worker: Worker) -> Tensor:
    """All workers' features below each other, (workers * batch, D), with their gradients."""
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
        # Every worker computes the loss of the whole batch, so this sums up `count` times the
        # gradient of it, and the mean over workers that training takes is right again.
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
    """Train `clip` in place, going on from the checkpoint at `path` if it is there.

    At the end it holds the averaged weights. Only worker 0 reports and saves.

    Returns:
        Seconds it took, those before a restart counted.

    Raises:
        InputError: the checkpoint is of a run with other settings.
    """
    model = clip.model
    parameters = dict(model.named_parameters())
    average = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=settings.learning_rate, weight_decay=0.01, betas=(0.9, 0.99)
    )
    start, before = 0, 0.0
    with resumed(path) as state:
        if state is not None:
            if state["settings"] != asdict(settings):
                raise InputError(
                    f"{path} is of a run with other settings: choose another folder, or delete it"
                )
            model.load_state_dict(state["model"])
            restore_optimizer(optimizer, state["optimizer"])
            require_like(state["average"], parameters)
            average, start, before = state["average"], int(state["step"]), float(state["seconds"])
    begun = time.monotonic()
    model.train()
    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * cosine(step, settings.steps, warm_up=200)
        loss = contrastive_loss(clip, sample_batch(settings, step, worker), worker)
        optimizer.zero_grad()
        loss.backward()
        worker.average_gradients(parameters.values())
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        decay = min(settings.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            model.logit_scale.clamp_(max=_LARGEST_SCALE)
            for name, value in parameters.items():
                average[name].lerp_(value, 1 - decay)
        if worker.rank > 0:
            continue
        report(step + 1, loss.item())
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            save_state(
                path,
                {
                    "settings": asdict(settings),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average,
                    "step": step + 1,
                    "seconds": before + time.monotonic() - begun,
                },
            )
    model.load_state_dict(average, strict=False)
    model.eval()
    return before + time.monotonic() - begun


def pretrain_tiny_clip(
    out: Path,
    settings: ClipSettings,
    *,
    processes: int = 2,
    progress: Progress = lambda stage, done, total, figures: None,
) -> Path:
    """Train a tiny CLIP and write it in transformers' format.

    A killed run goes on where its last checkpoint was when called again with the same arguments.

    Args:
        out: run folder: checkpoint, `losses.jsonl`, `losses.png`, and in `model/` the CLIP with its
            tokenizer and `training.json`.
        settings: sizes and lengths.
        processes: workers; the batches do not depend on how many.
        progress: told of every step.

    Returns:
        The model's folder.

    Raises:
        ValueError: `out` holds a run with other settings, or the twins of a step cannot be shared
            out evenly.
    """
    if settings.twins % processes:
        raise ValueError(f"{settings.twins} twins a step cannot be shared by {processes} processes")
    clip = build_clip(build_tokenizer(out / "tokenizer"), settings)
    path, log = out / "tiny-clip.ckpt", LossLog(out / "losses.jsonl")

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
    """How many each tower has, its projection with it, and how many there are in all."""

    def count(*parts: nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    return {
        "vision": count(model.vision_model, model.visual_projection),
        "text": count(model.text_model, model.text_projection),
        "all": count(model),
    }


def _train_beside(worker: Worker, out: Path, settings: ClipSettings) -> None:
    """What the workers beside the first do."""
    clip = build_clip(CLIPTokenizer.from_pretrained(out / "tokenizer"), settings)
    train_clip(clip, out / "tiny-clip.ckpt", settings, worker=worker)
