"""Few-shot training of the baselines: the examples, batches and losses that DSD learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsd_trt.train.baselines.clip import Clip
from dsd_trt.train.baselines.head import HeadTuning
from dsd_trt.train.baselines.matcher import Matcher, encode_with_clip, pair_up, score_all
from dsd_trt.train.baselines.prompts import PromptLearning
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut, refuse
from dsd_trt.train.question import Question, split
from dsd_trt.train.run.device import best_device

METHODS: Mapping[str, type[Matcher]] = {
    "zero-shot": Matcher,
    "fine-tuning": HeadTuning,
    "prompt-learning": PromptLearning,
}
LEARNING_RATES: Mapping[str, float] = {"fine-tuning": 1e-4, "prompt-learning": 2e-3}
"""Where none is given: pretrained heads move less than new vectors."""

Report = Callable[[int, float, Validation | None], None]
"""Called with (step, loss, validation where there was one) after every step."""


@dataclass(frozen=True)
class History:
    """How a training went.

    Attributes:
        losses: of every step.
        validations: in order.
    """

    losses: list[float]
    validations: list[Validation]

    @property
    def best(self) -> Validation | None:
        """The validation whose parameters were kept; None without validation."""
        return max(self.validations, key=_rank, default=None)


def build_matcher(clip: Clip, method: str, seed: int = 0) -> Matcher:
    """A baseline before its first step, on `best_device`.

    Args:
        clip: what it is made from.
        method: one of `METHODS`.
        seed: of initial values.
    """
    torch.manual_seed(seed)
    return METHODS[method](clip).to(best_device())


def train_baseline(
    clip: Clip,
    method: str,
    questions: Sequence[Question],
    settings: FewShotSettings,
    validation: float = 0.15,
    report: Report = lambda step, loss, validation: None,
    left_out: LeftOut | None = None,
) -> tuple[Matcher, History]:
    """Train a baseline on few-shot questions.

    Args:
        clip: not changed.
        method: one of `METHODS` that learns: "fine-tuning" or "prompt-learning".
        questions: the examples.
        settings: as for `fit`.
        validation: share of the questions' sources kept to stop early by.
        report: told of every step.
        left_out: gets the questions that are left out; None refuses them.

    Raises:
        InputError: questions that cannot be learned from.
    """
    kept, learned = split(questions, validation, settings.seed)
    matcher = build_matcher(clip, method, settings.seed)
    note = refuse if left_out is None else left_out.add
    examples = encode_with_clip(matcher, learned, note)
    if left_out is not None:
        left_out.require_some(len(examples), "few-shot examples")
    of_examples = 0 if left_out is None else left_out.questions
    held = encode_with_clip(matcher, kept, note) if kept else None
    if left_out is not None and held is not None:
        left_out.require_some(len(held), "validation questions", of_examples)
    history = fit(
        matcher,
        examples,
        settings,
        validation=held,
        report=report,
    )
    return matcher, history


def fit(
    matcher: Matcher,
    examples: Examples,
    settings: FewShotSettings,
    *,
    validation: Examples | None = None,
    report: Report = lambda step, loss, validation: None,
) -> History:
    """Learn what `matcher` declares as learned, in place; it ends with the best of it.

    Args:
        matcher: a baseline.
        examples: to learn from, of this matcher.
        settings: of these steps, batches (questions, negatives, hard, seed), loss, learning rate
            and early stopping count; the rest is DSD's own.
        validation: other examples, to stop early by and to choose the best step, before the first
            one included; without them the last step counts.
        report: told of every step.
    """
    _balance(matcher, examples)
    learned = matcher.learned()
    optimizer = torch.optim.AdamW(learned.values(), lr=settings.learning_rate, weight_decay=0.01)
    history, best, waited = History([], []), dict[str, Tensor](), 0
    for step in range(settings.steps + 1):
        outcome, at_end = None, step == settings.steps
        # Before the first step, too: what is learned has to beat what it starts from.
        if validation and (step % settings.validate_every == 0 or at_end):
            outcome = validate(matcher, validation, step)
            history.validations.append(outcome)
            waited += 1
            if _rank(outcome) == max(map(_rank, history.validations)):
                best = {name: value.detach().clone() for name, value in learned.items()}
                waited = 0
        if step > 0:
            report(step, history.losses[-1], outcome)
        if at_end or waited == settings.patience:
            break
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - step / settings.steps)
        # The seed of `fit_adapter` on one process: DSD sees the very same pairs.
        batch = sample_batch(examples, settings, np.random.default_rng([settings.seed, step, 0, 0]))
        f = pair_up(matcher, examples, batch.images.flatten(), batch.texts.flatten())
        loss = batch.loss(matcher.match(f, None).cpu(), settings.loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.losses.append(loss.item())
    matcher.load_state_dict(best, strict=False)
    return history


def validate(matcher: Matcher, examples: Examples, step: int) -> Validation:
    """Answer questions; the cross-entropy is that of Eq. 6."""
    f = score_all(matcher, examples)
    with torch.no_grad():
        logits = matcher.match(f.to(matcher.device), None).cpu()
    loss = F.binary_cross_entropy_with_logits(logits, examples.labels)
    return Validation(step, float(np.mean(examples.right_answers(f))), float(loss))


@torch.no_grad()
def _balance(matcher: Matcher, examples: Examples) -> None:
    """Put the logistic's middle halfway between right and wrong pairs, as b is no part of CLIP.

    CLIP's cosines lie in a narrow band far from zero, times a scale of 100: any fixed b would begin
    with losses of ten or twenty, and training with nothing but b.
    """
    f, labels = score_all(matcher, examples), examples.labels
    middle = (f[labels == 1].mean() + f[labels == 0].mean()) / 2
    matcher.match.b.copy_(-matcher.match.log_a.exp() * middle)


def _rank(outcome: Validation) -> tuple[float, float]:
    return outcome.accuracy, -outcome.loss
