"""Low-rank updates of the U-Net's matrices: trained beside prompts, merged by export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import picture_questions, write_checkpoint
from torch import Tensor

from dsd_trt.bundle.method import Mode
from dsd_trt.errors import InputError
from dsd_trt.train.diffusion.checkpoint import Checkpoint, read_checkpoint
from dsd_trt.train.fewshot.encodings import encode_questions
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.fit import Fitted, fit_adapter
from dsd_trt.train.fewshot.model import build_model, score_all
from dsd_trt.train.fewshot.served import Served
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.scoring.adapter import Adapter
from dsd_trt.train.scoring.layers import cross_attention_names
from dsd_trt.train.scoring.updates import LowRankUpdates

TEXTS = ["a red circle", "a blue square", "a green star", "a white ring"]
SETTINGS = FewShotSettings(
    steps=3, questions=4, negatives=1, hard=1.0, learning_rate=3e-2, rank=2, hidden=8, update_rank=3
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return read_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def examples(checkpoint: Checkpoint) -> Examples:
    return encode_questions(checkpoint, picture_questions(TEXTS))


@pytest.fixture(scope="module")
def trained(checkpoint: Checkpoint, examples: Examples) -> Iterator[Fitted]:
    before = {name: it.clone() for name, it in checkpoint.unet.state_dict().items()}
    yield fit_adapter(checkpoint, examples, replace(SETTINGS, mode="both"))
    for name, value in checkpoint.unet.state_dict().items():
        assert torch.equal(value, before[name]), name


def served(checkpoint: Checkpoint, adapter: Adapter | None, examples: Examples) -> Tensor:
    return Served(checkpoint, adapter, examples.unconditional, levels=SETTINGS.levels).score(
        examples
    )


def test_training_begins_with_the_score_of_the_base_model(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    model = build_model(checkpoint, examples, SETTINGS)
    with model.updated():
        score, _ = score_all(model, examples)
    assert torch.equal(score, served(checkpoint, None, examples))


def test_every_update_is_learned_and_leaves_the_unet_as_it_was(
    checkpoint: Checkpoint, examples: Examples, trained: Fitted
) -> None:
    merged = trained.adapter.merged
    blocks = {name.partition(".transformer_blocks")[0] for name in merged}
    assert len(merged) == 2 * 8 * len(blocks)  # up and down of eight layers a block
    assert len(blocks) == len(trained.adapter.head_weights)
    # Nothing after the last scored map counts: only that block's query and what precedes it.
    unmoved = {name for name, it in merged.items() if name.endswith(".up") and not it.any()}
    last = cross_attention_names(checkpoint.unet)[-1]
    after = ("attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
    assert unmoved == {f"{last}.{layer}.up" for layer in after}


@pytest.mark.parametrize("mode", ["pair", "matrix"])
def test_merged_weights_score_as_the_trained_model_does(
    checkpoint: Checkpoint, examples: Examples, trained: Fitted, mode: Mode, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, mode=mode)
    adapter = replace(trained.adapter, mode=mode)
    model = build_model(checkpoint, examples, settings, adapter)  # training would go on from here
    with model.updated():
        score, _ = score_all(model, examples, settings.modes[0])
    with_prompts_alone, _ = score_all(model, examples, settings.modes[0])
    adapter.save(tmp_path)
    merged = served(checkpoint, Adapter.load(tmp_path), examples)
    torch.testing.assert_close(merged, score, rtol=0, atol=2e-6)
    assert (with_prompts_alone - score).abs().max() > 1e-4


def test_mixed_precision_computes_the_same_updates_but_for_rounding(
    checkpoint: Checkpoint, examples: Examples, trained: Fitted
) -> None:
    model = build_model(checkpoint, examples, SETTINGS, trained.adapter)
    rows = [part[examples.images[:2]] for part in (examples.latents,)]
    texts = [part[examples.texts[:2]] for part in (examples.text_states, examples.token_masks)]
    inputs = (*rows, torch.tensor([0, 1]), *texts, examples.unconditional)
    names = {name.rpartition(".")[0] for name in trained.adapter.merged}

    def run(*, updated: bool, autocast: bool) -> tuple[Tensor, set[torch.dtype]]:
        """Logits, and the precisions of the updated layers' outputs."""
        seen: list[Tensor] = []
        layers = [checkpoint.unet.get_submodule(name) for name in names]
        hooks = [it.register_forward_hook(lambda _, __, out: seen.append(out)) for it in layers]
        context = model.updated() if updated else contextlib.nullcontext()
        with context, torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
            logits = model(*inputs)
        for hook in hooks:
            hook.remove()
        return logits, {it.dtype for it in seen}

    exact, single = run(updated=True, autocast=False)
    rounded, half = run(updated=True, autocast=True)
    without, _ = run(updated=False, autocast=False)
    assert (single, half) == ({torch.float32}, {torch.bfloat16})
    assert (rounded - exact).abs().max() < 0.5 * (without - exact).abs().max()


def test_updates_of_another_rank_are_refused(checkpoint: Checkpoint, trained: Fitted) -> None:
    with pytest.raises(InputError, match="--from none"):
        LowRankUpdates(checkpoint.unet, 2, trained.adapter.merged)
