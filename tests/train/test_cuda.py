"""What PyTorch and the CUDA runtime do on a GPU; `make test-gpu` runs it, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from checkpoints import picture_questions, write_adapter, write_checkpoint
from numpy.typing import NDArray

from dsd_trt.bundle.method import HeadMode, Mode, ScoreKind, TrainedFor
from dsd_trt.engine.cuda import (
    Buffer,
    DeviceMemory,
    Event,
    RecordedGraph,
    Stream,
    compute_capability,
    memory_in_use,
)
from dsd_trt.train.baselines.clip import load_clip
from dsd_trt.train.baselines.fit import build_matcher, train_baseline
from dsd_trt.train.baselines.matcher import by_matcher
from dsd_trt.train.build import build_scoring_unet
from dsd_trt.train.diffusion.checkpoint import read_checkpoint
from dsd_trt.train.diffusion.families import FAMILIES, tiny
from dsd_trt.train.diffusion.random_model import write_random_model
from dsd_trt.train.evaluation.ablation import LEVELS, collect
from dsd_trt.train.evaluation.by_model import by_model
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.fit import fit_adapter
from dsd_trt.train.fewshot.model import build_model
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.fewshot.training import train_adapter
from dsd_trt.train.question import Question
from dsd_trt.train.run.device import best_device
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.adapter_file import STATE_NAME
from dsd_trt.train.shapes.datasets import shapes_refcocog

pytestmark = pytest.mark.gpu

CPU, TEXTS = torch.device("cpu"), ["a red circle", "a blue square", "a green star", "a white ring"]
SETTINGS = FewShotSettings(
    steps=20, questions=4, negatives=1, hard=1.0, learning_rate=1e-2, rank=2, hidden=8
)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Convolutions round to TF32 unless told otherwise, and the CPU does not."""
    assert torch.cuda.is_available(), "these tests need a GPU, and a PyTorch built for it"
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return picture_questions(TEXTS)


def _on_cpu(
    model: Path, adapter: Path | None, score: ScoreKind, mode: Mode, questions: list[Question]
) -> NDArray[np.float64]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsd_trt.train.evaluation.by_model.best_device", lambda: CPU)
        scores = by_model(str(model), adapter, score=score, mode=mode)(questions)
    return np.array(scores)


@pytest.mark.parametrize(
    ("head_mode", "score", "mode"),
    [
        ("learned", "attention", "pair"),
        ("learned", "attention", "matrix"),
        ("dynamic", "attention+denoising", "pair"),
    ],
)
def test_scores_are_those_of_the_cpu(
    model: Path,
    questions: list[Question],
    tmp_path: Path,
    head_mode: HeadMode,
    score: ScoreKind,
    mode: Mode,
) -> None:
    assert best_device().type == "cuda"
    adapter = write_adapter(tmp_path / "adapter", model, head_mode=head_mode, score=score)
    there = np.array(by_model(str(model), adapter, score=score, mode=mode)(questions))
    here = _on_cpu(model, adapter, score, mode, questions)
    assert np.ptp(here) > 1e-3
    assert np.abs(there - here).max() < 1e-5


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_every_family_scores_and_learns(
    family: str, questions: list[Question], tmp_path: Path
) -> None:
    folder = write_random_model(tmp_path / "model", tiny(FAMILIES[family]))
    there = np.array(by_model(str(folder), None)(questions))
    assert np.abs(there - _on_cpu(folder, None, "attention", "pair", questions)).max() < 1e-5
    report = train_adapter(
        str(folder), questions, replace(SETTINGS, steps=3), tmp_path / "run", {}, validation=0.25
    )
    assert np.isfinite(report.losses).all()
    adapter = Adapter.load(tmp_path / "run")
    build_scoring_unet(read_checkpoint(folder), adapter)  # on the CPU, where export wants it


@pytest.mark.parametrize("head_mode", ["learned", "calibrated", "dynamic"])
@pytest.mark.parametrize("recompute", [False, True])
def test_training_follows_the_cpus(
    model: Path, questions: list[Question], head_mode: HeadMode, recompute: bool
) -> None:
    settings = replace(SETTINGS, head_mode=head_mode, recompute=recompute)
    checkpoint = read_checkpoint(model)
    examples = encode_questions(checkpoint, questions)
    there = fit_adapter(checkpoint, examples, settings, validation=examples)
    # Given back as it came: on the CPU, where it scores what was learned.
    assert next(checkpoint.unet.parameters()).device == CPU
    scoring = build_scoring_unet(checkpoint, there.adapter)
    scoring(
        examples.latents[:1], torch.tensor([0]), examples.unconditional, examples.token_masks[:1]
    )
    losses = _losses_on_cpu(model, questions, settings)
    assert np.abs(np.array(there.losses) - losses).max() < 1e-3
    assert there.losses[-1] < there.losses[0]


def _losses_on_cpu(
    model: Path, questions: list[Question], settings: FewShotSettings
) -> NDArray[np.float64]:
    checkpoint = read_checkpoint(model)
    examples = encode_questions(checkpoint, questions)
    whole = build_model(checkpoint, examples, settings)
    learned = [p for p in whole.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, weight_decay=0.01)
    losses = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        batch = sample_batch(examples, settings, np.random.default_rng([settings.seed, step, 0, 0]))
        (logits,) = whole(*batch.inputs(examples, CPU))
        loss = batch.loss(logits, settings.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("mode", ["pair", "both"])
def test_mixed_precision_learns_and_goes_on_after_a_kill(
    model: Path,
    questions: list[Question],
    tmp_path: Path,
    precision: Literal["fp16", "bf16"],
    mode: TrainedFor,
) -> None:
    settings = replace(
        SETTINGS, mixed_precision=precision, mode=mode, validate_every=4, head_mode="learned"
    )

    checkpoint = read_checkpoint(model, best_device())
    examples = encode_questions(checkpoint, questions)

    def die(step: int, loss: float, validation: object) -> None:
        if step == 10:
            raise KeyboardInterrupt

    whole = fit_adapter(checkpoint, examples, settings, validation=examples).losses
    with pytest.raises(KeyboardInterrupt):
        fit_adapter(
            checkpoint,
            examples,
            settings,
            validation=examples,
            state_path=tmp_path / STATE_NAME,
            report=die,
        )
    again = fit_adapter(
        checkpoint, examples, settings, validation=examples, state_path=tmp_path / STATE_NAME
    )
    assert np.isfinite(whole).all()
    assert whole[-1] < whole[0]
    assert np.abs(np.array(again.losses) - whole).max() < 2e-2  # sums on a GPU have no fixed order


def test_ablations_and_baselines_run_there(questions: list[Question]) -> None:
    checkpoint = read_checkpoint("shapes", best_device())
    asked = list(shapes_refcocog(8, 5))
    examples = encode_questions(checkpoint, asked)
    maps = collect(build_scoring_unet(checkpoint, levels=LEVELS), examples)
    assert np.isfinite(maps.pooled["lse 20"]).all()
    clip = load_clip(Path(__file__).parents[2] / "benchmarks" / "tiny-clip")
    for method in ("fine-tuning", "prompt-learning"):
        matcher, history = train_baseline(clip, method, asked, replace(SETTINGS, steps=3))
        assert matcher.device.type == "cuda"
        assert np.isfinite(history.losses).all()
        assert np.isfinite(np.concatenate(by_matcher(matcher)(asked))).all()
    assert build_matcher(clip, "zero-shot").device.type == "cuda"


def test_the_cuda_runtime_moves_what_engines_move() -> None:
    major, minor = torch.cuda.get_device_capability(0)
    assert compute_capability() == f"{major}.{minor}"
    before = memory_in_use()
    held = DeviceMemory(512 << 20)
    assert memory_in_use() - before >= 512 << 20
    del held
    assert memory_in_use() - before < 512 << 20

    stream, start, end = Stream(), Event(), Event()
    buffer = Buffer((4, 1000), np.float32)
    sent = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
    buffer.host[:] = sent
    start.record(stream)
    buffer.upload(4, stream)
    stream.synchronize()
    buffer.host[:] = 0
    with RecordedGraph(stream) as graph:
        buffer.download(3, stream)
    stream.synchronize()
    assert not buffer.host.any()  # recorded, not run
    graph.launch()
    end.record(stream)
    end.synchronize()
    assert np.array_equal(buffer.host[:3], sent[:3])
    assert not buffer.host[3].any()
    assert 0 < end.since(start) < 10
