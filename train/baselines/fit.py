"""Few-shot training of the baselines, on DSD's examples, batches and losses."""

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
from dsd_trt.train.data.held_out import hold_out
from dsd_trt.train.fewshot.batch import sample_batch
from dsd_trt.train.fewshot.examples import Examples
from dsd_trt.train.fewshot.model import Validation
from dsd_trt.train.fewshot.settings import FewShotSettings
from dsd_trt.train.left_out import LeftOut, refuse
from dsd_trt.train.question import Question
from dsd_trt.train.run.device import best_device

METHODS: Mapping[str, type[Matcher]] = {
    "zero-shot": Matcher,
    "fine-tuning": HeadTuning,
    "prompt-learning": PromptLearning,
}
LEARNING_RATES: Mapping[str, float] = {"fine-tuning": 1e-4, "prompt-learning": 2e-3}
"""Default learning rate by method; pretrained heads need a smaller one than new vectors."""

Report = Callable[[int, float, Validation | None], None]
"""Callback `(step, loss, validation)` after each step; `validation` is None at most steps."""


@dataclass(frozen=True)
class History:
    """Losses and validations of a training.

    Attributes:
        losses: training loss of each step.
        validations: validation results in order of their steps.
    """

    losses: list[float]
    validations: list[Validation]

    @property
    def best(self) -> Validation | None:
        """The validation whose parameters were kept; None without validation."""
        return max(self.validations, key=_rank, default=None)


def build_matcher(clip: Clip, method: str, seed: int = 0) -> Matcher:
    """A baseline at step 0, on `best_device`.

    Args:
        clip: pretrained CLIP that the baseline starts from.
        method: name of the baseline, one of `METHODS`.
        seed: random seed of new parameters.
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
        clip: pretrained CLIP, which stays unchanged.
        method: name of the baseline: "fine-tuning" or "prompt-learning".
        questions: few-shot examples, validation questions included.
        settings: hyperparameters of training, see `fit`.
        validation: share of the questions' sources held out for early stopping, in [0, 1].
        report: callback `(step, loss, validation)` after each step.
        left_out: collector of questions left out; None raises an error for the first one.

    Raises:
        InputError: the questions cannot be learned from.
    """
    parts = hold_out(questions, validation, settings.seed)
    kept, learned = parts.held, parts.learned
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
    """Train a baseline's learned parameters in place, and restore the best ones at the end.

    Args:
        matcher: baseline whose learned parameters are trained in place.
        examples: training examples, encoded by `matcher`.
        settings: hyperparameters of training, of which steps, batches, loss, learning rate and
            early stopping apply; the others are DSD's own.
        validation: validation examples for early stopping and the choice of the best step, step 0
            included; None keeps the last step.
        report: callback `(step, loss, validation)` after each step.
    """
    _balance(matcher, examples)
    learned = matcher.learned()
    optimizer = torch.optim.AdamW(learned.values(), lr=settings.learning_rate, weight_decay=0.01)
    history, best, waited = History([], []), dict[str, Tensor](), 0
    for step in range(settings.steps + 1):
        outcome, at_end = None, step == settings.steps
        # Step 0 is validated too: training has to beat the initial parameters.
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
        # The same seed as in `fit_adapter` on one process, so that DSD trains on the same pairs.
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
    """Accuracy and cross-entropy (Eq. 6) on validation questions.

    Args:
        matcher: baseline with its present parameters.
        examples: validation examples, encoded by `matcher`.
        step: number of completed steps.
    """
    f = score_all(matcher, examples)
    with torch.no_grad():
        logits = matcher.match(f.to(matcher.device), None).cpu()
    loss = F.binary_cross_entropy_with_logits(logits, examples.labels)
    return Validation(step, examples.right_answers(f), float(loss))


@torch.no_grad()
def _balance(matcher: Matcher, examples: Examples) -> None:
    """Initialise b, which CLIP lacks: probability 1/2 is halfway between positives and negatives.

    CLIP's cosines lie in a narrow band far from zero and are scaled by 100. With a fixed b the
    loss would start at 10 to 20, and training would first change b alone.
    """
    f, labels = score_all(matcher, examples), examples.labels
    middle = (f[labels == 1].mean() + f[labels == 0].mean()) / 2
    matcher.match.b.copy_(-matcher.match.log_a.exp() * middle)


def _rank(outcome: Validation) -> tuple[float, float]:
    return outcome.accuracy, -outcome.loss
