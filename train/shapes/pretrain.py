"""`dsd-trt pretrain shapes`: train the demonstration from scratch, in resumable stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor, nn
from transformers import CLIPTokenizer

from dsd_trt.files.whole import whole, write_whole
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import encode_texts, read_checkpoint
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.fit import fit_adapter
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.run.device import best_device
from dsd_trt.train.run.loss_log import LossLog
from dsd_trt.train.run.plan import require_plan
from dsd_trt.train.run.saved_model import saved_model
from dsd_trt.train.scoring.scoring_unet import ScoringUNet
from dsd_trt.train.shapes.curriculum import STATES, Curriculum, stages
from dsd_trt.train.shapes.datasets import shapes_refcocog
from dsd_trt.train.shapes.diffusion import ShapesDiffusion, train_diffusion
from dsd_trt.train.shapes.probe import probe, summary
from dsd_trt.train.shapes.questions import twin_questions
from dsd_trt.train.shapes.tokenizer import build_tokenizer
from dsd_trt.train.shapes.twins import TwinLatents, encode_twins
from dsd_trt.train.shapes.vae import random_images, train_vae
from dsd_trt.train.shapes.workers import Worker, workers

_VAE_LOSSES = "vae-losses.jsonl"
TRAIN_SEED, HELD_OUT_SEED, FEW_SHOT_SEED = 1, 2, 3  # random seeds of the sets of twins

FEW_SHOT_LEVELS = (0.02, 0.05, 0.1, 0.2)
"""Noise levels of the adapter, below the paper's: noise hides the shapes of small things."""

SAMPLE_CAPTIONS = (
    "a red circle",
    "a large blue square",
    "a small yellow star",
    "a green ring",
    "a white triangle to the left of a purple cross",
    "an orange star above a blue ring",
    "a small red square inside a large yellow circle",
    "a black cross in front of a green circle",
)


Progress = Callable[[str, int, int, dict[str, float]], None]
"""Progress callback `(stage, done, total, figures)`; `figures` are losses by name."""

Say = Callable[[str], None]
"""Callback for a line of text that reports a result."""


def pretrain_shapes(
    out: Path,
    curriculum: Curriculum,
    *,
    seed: int = 0,
    progress: Progress = lambda stage, done, total, figures: None,
    say: Say = lambda line: None,
) -> Path:
    """Train tokenizer, autoencoder, text encoder, U-Net and adapter, or resume an interrupted call.

    The model is written in diffusers' format, with the adapter in its subfolder `adapter`.

    Args:
        out: run folder for training states, `losses.jsonl`, `losses.png`, `samples.png`, and the
            model in `model/`.
        curriculum: number of steps and twins of each stage.
        seed: random seed of weights, batches and noise.
        progress: callback `(stage, done, total, figures)` after each step.
        say: callback for each reported result, such as a probe's accuracies.

    Returns:
        Folder of the model, with FP16 weights.

    Raises:
        InputError: `out` holds a run with another plan or seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    _remember_plan(out, curriculum, seed)
    tokenizer = build_tokenizer(out / "tokenizer")

    vae_log = LossLog(out / _VAE_LOSSES)

    def vae_report(step: int, loss: float) -> None:
        vae_log.add(step, {"loss": loss})
        progress("autoencoder", step, curriculum.vae_steps, {"loss": loss})

    vae = train_vae(
        out,
        seed=seed,
        steps=curriculum.vae_steps,
        batch=curriculum.vae_batch,
        report=vae_report,
    )
    # Weights ship in FP16, so all later training and measurement uses the rounded ones.
    round_to_half(vae)
    say(f"autoencoder: {reconstruction_psnr(vae, seed):.1f} dB on drawn scenes")

    progress("drawing scenes", 0, curriculum.twins, {})
    data = encode_twins(vae, curriculum.twins, TRAIN_SEED, out / "twins")
    held_out = encode_twins(vae, curriculum.held_out_twins, HELD_OUT_SEED, out / "twins")

    device = best_device()
    model = _untrained(out, seed).to(device)
    log = LossLog(out / "losses.jsonl")

    def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
        return model.encode(texts)[1:]

    def measure(stage: str, step: int) -> None:
        model.eval()
        say(f"{stage}, step {step}: {summary(probe(model.scoring, encode, held_out))}")
        model.train()

    def report(stage: str, steps: int, before: int, step: int, losses: dict[str, float]) -> None:
        log.add(before + step, losses)
        progress(stage, step, steps, losses)
        if step % curriculum.probe_every == 0:
            measure(stage, step)

    together = curriculum.workers if device.type == "cpu" else 1
    with workers(together, _train_beside, out, curriculum, seed, data) as worker:
        before = 0
        for stage, settings in stages(curriculum, seed).items():
            told = partial(report, stage, settings.steps, before)
            train_diffusion(
                model, data, out / f"{stage}.ckpt", settings, worker=worker, report=told
            )
            before += settings.steps
    round_to_half(model.cpu())
    log.plot(out / "losses.png")

    pipeline = _pipeline(vae, model, tokenizer)
    samples = draw_samples(pipeline, curriculum.sampling_steps, seed)
    with whole(out / "samples.png") as file:
        samples.save(file, "PNG")
    pipeline.to(dtype=torch.float16)
    with saved_model(out / "model") as folder:
        pipeline.save_pretrained(folder)
    _add_adapter(out, curriculum, seed, held_out, progress, say)
    return out / "model"


def _train_beside(
    worker: Worker, out: Path, curriculum: Curriculum, seed: int, data: TwinLatents
) -> None:
    """Training loop of all workers but worker 0."""
    model = _untrained(out, seed)
    for stage, settings in stages(curriculum, seed).items():
        train_diffusion(model, data, out / f"{stage}.ckpt", settings, worker=worker)


def _untrained(out: Path, seed: int) -> ShapesDiffusion:
    torch.manual_seed(seed)
    return ShapesDiffusion(CLIPTokenizer.from_pretrained(out / "tokenizer"))


def _add_adapter(
    out: Path,
    curriculum: Curriculum,
    seed: int,
    held_out: TwinLatents,
    progress: Progress,
    say: Say,
) -> None:
    """Train the few-shot adapter, and measure the finished model without and with it."""
    checkpoint = read_checkpoint(out / "model")
    questions = [
        *twin_questions(FEW_SHOT_SEED, curriculum.few_shot_twins),
        *shapes_refcocog(curriculum.few_shot_twins // 2, FEW_SHOT_SEED),
    ]
    # Pretraining has ranked such scenes at length; a higher learning rate would undo that.
    settings = FewShotSettings(
        steps=curriculum.few_shot_steps,
        questions=4,
        negatives=7,
        hard=0.3,
        loss="softmax",
        learning_rate=1e-4,
        levels=FEW_SHOT_LEVELS,
        seed=seed,
    )
    adapter = fit_adapter(
        checkpoint,
        encode_questions(checkpoint, questions),
        settings,
        report=lambda step, loss, validation: progress(
            "adapter", step, curriculum.few_shot_steps, {"loss": loss}
        ),
    ).adapter

    # Measured as it ships, with parameters rounded to FP16.
    rounded = {name: value.half().float() for name, value in adapter.prompt_state.items()}
    adapter = replace(adapter, prompt_state=rounded)

    def measure(scoring: ScoringUNet) -> dict[str, float]:
        return probe(scoring, lambda texts: encode_texts(checkpoint, texts), held_out)

    tables = {
        "zero-shot": measure(build_scoring_unet(checkpoint)),
        "few-shot": measure(build_scoring_unet(checkpoint, adapter)),
    }
    for name, table in tables.items():
        say(f"held-out scenes, {name}: {summary(table)}")
    training = {**asdict(settings), "few_shot_twins": curriculum.few_shot_twins, "held_out": tables}
    halves = {name: value.half() for name, value in rounded.items()}
    replace(adapter, prompt_state=halves, training=training).save(out / "model" / "adapter")


def round_to_half(module: nn.Module) -> None:
    """Round weights to FP16 precision in place; their type stays FP32."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, seed: int) -> float:
    """Peak signal-to-noise ratio of the autoencoder over 128 held-out images, in decibels."""
    images, _ = random_images(seed + 1, 0, 128)
    decoded = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return float(10 * torch.log10(4 / (decoded - images).square().mean()))


def draw_samples(pipeline: StableDiffusionPipeline, steps: int, seed: int) -> Image.Image:
    """A grid of generated images, three per caption, with the captions beneath.

    Args:
        pipeline: text-to-image pipeline of the trained parts.
        steps: number of denoising steps per image.
        seed: random seed of the initial noise.
    """
    pipeline.set_progress_bar_config(disable=True)
    columns, cell, line = 4, 3 * 96 + 16, 120
    rows = -(-len(SAMPLE_CAPTIONS) // columns)
    grid = Image.new("RGB", (columns * cell, rows * line), "white")
    pen = ImageDraw.Draw(grid)
    for i, text in enumerate(SAMPLE_CAPTIONS):
        left, top = i % columns * cell, i // columns * line
        generator = torch.Generator().manual_seed(seed)
        images = pipeline(
            text,
            num_images_per_prompt=3,
            num_inference_steps=steps,
            guidance_scale=4.0,
            generator=generator,
        ).images
        for k, image in enumerate(images):
            grid.paste(image.resize((92, 92)), (left + 96 * k, top))
        pen.text((left, top + 96), text, fill="black")
    return grid


def _pipeline(
    vae: AutoencoderKL, model: ShapesDiffusion, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.scoring.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _remember_plan(out: Path, curriculum: Curriculum, seed: int) -> None:
    """Record a run folder's plan; another plan is refused, because it would resume wrongly."""
    path = out / "plan.json"
    wanted = curriculum.plan(seed)
    require_plan(path, wanted, STATES)
    if not any((out / name).exists() for name in STATES):
        (out / _VAE_LOSSES).unlink(missing_ok=True)  # of a run that ended before its first state
    write_whole(path, json.dumps(wanted, indent=2) + "\n")
